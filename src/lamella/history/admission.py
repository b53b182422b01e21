"""Which writers count once enrolment is closed (FORMAT 8, ADMIT): those that an admin admitted, and nobody else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from lamella.base.errors import RepositoryError
from lamella.base.ids import WriterId
from lamella.base.signed import enrolled_by, trailer_of
from lamella.crypto.derive import Keys
from lamella.crypto.sign import verified
from lamella.format.commit import ChainEntry, Head, parse_name, writer_id
from lamella.format.owners import Admit
from lamella.history.history import Chain, History
from lamella.history.records import of_kinds, prune_signed

if TYPE_CHECKING:
    from lamella.history.log import Log
    from lamella.memory.host import WriterKey


class Admission:
    """The writers that the ADMIT records of a repository admit."""

    def __init__(self, found: Iterable[Admit], shown: Iterable[WriterId] = ()) -> None:
        """`shown` are the writers whose own commits show that the prune key enrolled them."""
        rows = list(found)
        self.enrolments = {writer_id(public): enrolment for one in rows for public, enrolment in one.writers}
        """The admitted writers that ADMIT names, each with its enrolment by the prune key."""
        self.closed = any(one.closes for one in rows)
        """Only admitted writers count."""
        self.admitted = frozenset(self.enrolments.keys() | set(shown))

    def __str__(self) -> str:
        """For people: who may write."""
        if not self.closed:
            return "open"
        return f"closed: only {len(self.admitted)} admitted hosts may write; lamella check --admit lets another one"

    def counts(self, writer: WriterId) -> bool:
        """Whether a writer may say anything here."""
        return not self.closed or writer in self.admitted


def admission(
    keys: Keys,
    history: History,
    said: Iterable[tuple[WriterId, ChainEntry]],
    content_of: Callable[[Head], bytes | None],
) -> Admission:
    """Read ADMIT records, each given with the writer of its chain, and drop problems of strangers from the history.

    `content_of` gives the bytes of a commit that was read.
    """
    rows = [(writer, entry, known) for writer, row in said for entry, known in of_kinds([row], Admit)]
    found = [known for writer, entry, known in rows if prune_signed(keys, writer, entry)]
    if not any(one.closes for one in found):
        return Admission(found)
    shown = {row.head.writer for row in history.unreadable if row.evidence is not None and row.evidence.admitted}
    shown |= {chain.writer for chain in history.chains.values() if _shows(keys, chain, content_of)}
    made = Admission(found, shown)
    history.problems = [problem for problem in history.problems if made.counts(problem.writer)]
    named = [(parse_name(name), (name, reason)) for name, reason in history.damaged]
    history.damaged = [row for head, row in named if head is None or made.counts(head.writer)]
    return made


def part(history: History, made: Admission) -> None:
    """Take the chains of strangers away from those that count."""
    history.strangers = {writer: chain for writer, chain in history.chains.items() if not made.counts(writer)}
    history.chains = {writer: chain for writer, chain in history.chains.items() if made.counts(writer)}


def _shows(keys: Keys, chain: Chain, content_of: Callable[[Head], bytes | None]) -> bool:
    contents = (content_of(commit.head) for commit in reversed(chain.commits))
    return any(content is not None and is_admitted(keys, *trailer_of(content)[:2]) for content in contents)


def is_admitted(keys: Keys, public: bytes, enrolment: bytes) -> bool:
    """Whether the prune key enrolled this writer."""
    signers = keys.marker.signers
    return enrolled_by(signers, public, enrolment, verified) == signers.prune


def own_enrolment(keys: Keys, key: WriterKey, made: Admission, newest: bytes | None) -> bytes:
    """The enrolment for this host's next commit: the prune key's, if an admin's word, the memory or the newest commit
    holds that. Raises RepositoryError for a host that is not admitted where enrolment is closed.
    """
    known = [made.enrolments.get(key.id, b""), key.enrolment, b"" if newest is None else trailer_of(newest).enrolment]
    for one in known:
        if one and is_admitted(keys, key.public, one):
            return one
    if not made.counts(key.id):
        raise not_admitted(key.public, "", stored=newest is not None)
    return keys.enrolment(key.public)


def require_admitted(log: Log) -> None:
    """Raises RepositoryError where this host is not admitted, and its secret is no admin's."""
    key = log.memory.creator()
    if not log.history.counts(key.id) and not is_admitted(log.keys, key.public, key.enrolment):
        raise not_admitted(key.public, log.store.url, stored=log.history.newest(key.id) > 0)


def require_still_open(log: Log) -> None:
    """Look again after this host's first commit: an admin may have closed enrolment since the history was read.

    Because both look after they wrote, the host finds the closing or the admin finds the host. Only a first commit pays
    for a look, one listing, and commits are read only if some are new: the closing names every host that is there, and
    a backup reads the history after its commit anyway. Raises RepositoryError if this host does not count, StoreError.
    """
    key = log.memory.creator()
    if is_admitted(log.keys, key.public, key.enrolment):
        return
    newest = {head for names in log.reader.names("").values() for head in names[max(names)]}
    if any(head.writer != key.id for head in newest.difference(log.history.heads)):
        log.history.admission = log.reader.read(log.pins).admission  # what else this run publishes is refused
    if not log.history.counts(key.id):
        raise not_admitted(key.public, log.store.url, stored=True)


def not_admitted(public: bytes, place: str, *, stored: bool) -> RepositoryError:
    """The error for a host that an admin must admit first. `stored`: some of its commits are in the repository."""
    left = (
        "the data that this host stored stays unused until an admin admits the host"
        if stored
        else "nothing was written"
    )
    hint = f"an admin admits it with: lamella check --admit {public.hex()}"
    return RepositoryError(f"enrolment is closed, and this host is not admitted: {left}", obj=place, hint=hint)
