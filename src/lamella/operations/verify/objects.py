"""Checks of objects as such: commits, clear files, names, whole packs, and addresses known to be bad.

Known bad addresses are read again, new ones are published as BAD: a place to look at again, never a verdict
(docs/decisions/0036). A false alarm dies with the next reading.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lamella.base.errors import IntegrityError, LamellaError, ObjectCold, ObjectNotFound, StoreError, UnknownFormat
from lamella.base.events import Progress, Reporter
from lamella.base.ids import ChunkId, DomainId
from lamella.base.names import COMMITS, PROBE, QUARANTINE, README, RESCUE, SEGMENTS, pack_hash, pack_name
from lamella.format import commit, container, keyslot, marker
from lamella.format.container import Kind
from lamella.format.lost import MAX_BAD, Address, Bad
from lamella.format.records import raw
from lamella.operations.shared.auditing import audit
from lamella.operations.shared.findings import VerifyResult
from lamella.operations.shared.ignored_slots import ignored_text
from lamella.operations.shared.rereading import reread
from lamella.packs import census
from lamella.packs.containers import open_blob, open_head
from lamella.packs.reach import require_alive
from lamella.repository.repository import Repository
from lamella.repository.slots import read_slots
from lamella.run.pipeline import ordered_map
from lamella.stores.base import Entry

_MAX_FILE = 1 << 20
_KEEP_EVERY = 64
_MOST_RECORDS = 16
"""In one commit; the next verification publishes what is beyond."""
_APART = (SEGMENTS, QUARANTINE, PROBE, keyslot.PREFIX)
"""Caches, what a repair moved aside, and key slots, which are looked at apart: no part of any snapshot."""


def check_history(repo: Repository, result: VerifyResult) -> None:
    """Commits that do not open, and records that were not believed."""
    for name, message in repo.history.damaged:
        result.damage("commit", name, message)
    for text in repo.catalogue.notes:
        result.note("commit", COMMITS, text)


def check_stored_commits(repo: Repository, result: VerifyResult) -> None:
    """Every commit's bytes in the store: what was read may have been this host's copy of a commit that is bad now."""
    for chain in repo.history.chains.values():
        for one in chain.commits:
            name = one.head.name
            result.checked_objects += 1
            try:
                content = repo.store.get(name)
            except StoreError as error:
                require_alive(repo.store, error)
                result.damage("commit", name, error.message)
                continue
            if hashlib.sha256(content).digest() != one.head.sha256:
                result.damage("commit", name, "does not match its name")


def check_checkpoints(repo: Repository, result: VerifyResult) -> None:
    """Each newest checkpoint against what came before it: what it leaves out would be forgotten by later readers."""
    for problem in audit(repo).problems:
        result.damage("commit", COMMITS, problem.message)


def check_files(repo: Repository, result: VerifyResult) -> None:
    """The marker, key slots and texts against what the prune key signed (FORMAT 8, FILE)."""
    expected = repo.catalogue.files
    for name in (marker.NAME, README, RESCUE):
        if name not in expected:
            result.damage("file", name, "no signed record says what this object must be")
    for name, record in sorted(expected.items()):
        result.checked_objects += 1
        try:
            size = repo.store.stat(name)
            content = repo.store.get(name) if size == record.size and size <= _MAX_FILE else b""
        except ObjectNotFound:
            result.damage("file", name, "is missing")
            continue
        except StoreError as error:
            require_alive(repo.store, error)
            result.damage("file", name, error.message)
            continue
        if size != record.size or hashlib.sha256(content).digest() != record.sha256:
            result.damage("file", name, "is not what the repository's owner put there")


def check_names(repo: Repository, result: VerifyResult) -> None:
    """Objects that belong to nothing."""
    expected = repo.catalogue.files
    slots = read_slots(repo.store, repo.keys.marker)
    for slot in slots.signed:
        if slot.name not in expected:
            result.damage("file", slot.name, "a key slot that was removed, or whose addition was interrupted")
    if slots.ignored:
        result.note("name", keyslot.PREFIX, ignored_text(slots))
    for entry in repo.store.list(""):
        name = entry.name
        if not (name in expected or pack_hash(name) or commit.parse_name(name) or name.startswith(_APART)):
            result.note("name", name, "an object that nothing refers to")


@dataclass(slots=True)
class PackCheck:
    """The result of reading one pack whole."""

    name: str
    size: int
    chunks: int = 0
    chunk_bytes: int = 0
    trouble: str = ""
    bad: list[tuple[Kind, ChunkId]] = field(default_factory=list)
    """Blobs in it that could not be had."""
    cold: bool = False
    """It must be thawed before anybody can read it."""
    addresses: set[Address] = field(default_factory=set)
    """Where it does not open for good: blobs, or its head."""
    misnamed: bool = False
    """Its bytes are not those that its name says."""


class PackVerification:
    """Reads packs from the first to the last byte, and remembers what it saw: bad places, and when a pack was sound."""

    def __init__(self, repo: Repository, result: VerifyResult, reporter: Reporter, workers: int) -> None:
        self._repo = repo
        self._result = result
        self._reporter = reporter
        self._workers = workers
        self._now = repo.clock()
        self._sound: list[bytes] = []
        self._troubled: list[PackCheck] = []

    def everything(self, domains: set[DomainId] | None, *, new: bool = False) -> None:
        """Every pack of these domains (None: of all); only the `new` ones, that this host never found sound."""
        if new:
            due = [one for one in self._repo.suspects.due(domains, self._now) if not one.time_ms]
            self._check((Entry(pack_name(one.pack), one.length) for one in due), sum(one.length for one in due))
            return
        self._check(_packs(self._repo, domains), census.total_length(self._repo.blobs, domains))

    def longest_unread(self, domains: set[DomainId] | None, budget: int) -> None:
        """At most `budget` bytes of packs, and one pack at least: those this host has not read for the longest time."""
        chosen = list(self._within(domains, budget))
        self._check(iter(chosen), sum(entry.size for entry in chosen))

    def _within(self, domains: set[DomainId] | None, budget: int) -> Iterator[Entry]:
        left = budget
        for due in self._repo.suspects.due(domains, self._now):
            if due.length > left and left != budget:
                return
            left -= due.length
            yield Entry(pack_name(due.pack), due.length)

    def _check(self, packs: Iterator[Entry], total: int) -> None:
        done = 0
        try:
            for outcome in ordered_map(self._read, packs, workers=self._workers):
                self._note(outcome)
                done += outcome.size
                self._reporter(Progress("packs", "", done, total))
        finally:
            # Also when the user stops it: the next budgeted run continues here.
            self._keep()
        # Not before every pack was read: what is bad is known then, and another copy may be good.
        leave_headless(self._repo, (one for outcome in self._troubled for one in outcome.addresses))
        for outcome in self._troubled:
            self._result.bad |= outcome.addresses
            spare = bool(outcome.addresses) and not outcome.misnamed
            spare = spare and all(is_spare(self._repo, one) for one in outcome.addresses)
            _tell(self._result, "pack", outcome.name, outcome.trouble, spare=spare)
        self._troubled.clear()

    def _note(self, outcome: PackCheck) -> None:
        if outcome.cold:
            self._result.must_thaw(outcome.name, outcome.size)
            return
        self._result.checked_chunks += outcome.chunks
        self._result.checked_bytes += outcome.chunk_bytes
        self._result.checked_objects += 1
        sha256 = pack_hash(outcome.name) or b""
        if outcome.trouble:
            self._troubled.append(outcome)
            self._repo.suspects.mark(sha256, outcome.bad)
            return
        self._sound.append(sha256)
        if len(self._sound) >= _KEEP_EVERY:
            self._keep()

    def _keep(self) -> None:
        self._repo.suspects.prove(self._sound, self._now)
        for pack in set(self._repo.suspects.packs()) & set(self._sound):
            self._repo.suspects.clear(pack)
        self._sound.clear()

    def _read(self, entry: Entry) -> PackCheck:
        """Read a pack: name, head, padding, every blob. Raises StoreUnavailable."""
        outcome = PackCheck(entry.name, entry.size)
        pack = pack_hash(entry.name) or b""
        try:
            content = self._repo.store.get(entry.name)
        except ObjectCold:
            outcome.cold = True
            return outcome
        except StoreError as error:
            require_alive(self._repo.store, error)
            outcome.trouble = error.message
            outcome.bad = self._all_blobs(pack)
            if not (error.retryable or isinstance(error, ObjectNotFound)):
                self._piecewise(outcome, pack)
            return outcome
        try:
            self._open(outcome, content, pack)
        except (IntegrityError, UnknownFormat) as error:
            outcome.trouble = error.message
            outcome.bad = self._all_blobs(pack)
            outcome.addresses = {Address.head(pack)}
        if not outcome.trouble and hashlib.sha256(content).digest() != pack:
            outcome.trouble, outcome.misnamed = "does not match its name", True
            self._exchanged(outcome, content, pack)
        return outcome

    def _exchanged(self, outcome: PackCheck, content: bytes, pack: bytes) -> None:
        """Another sound pack of this length under its name: what this host knew to lie there does not."""
        there = open_head(self._repo.keys, outcome.name, content)
        known = self._repo.blobs.directory(pack)
        if known is not None and known.header != there.header:
            outcome.bad = self._all_blobs(pack)
            outcome.addresses = {Address(pack, kind, id_) for kind, id_ in outcome.bad}

    def _all_blobs(self, pack: bytes) -> list[tuple[Kind, ChunkId]]:
        known = self._repo.blobs.directory(pack)
        return [] if known is None else [(blob.kind, blob.id) for blob in known.blobs]

    def _piecewise(self, outcome: PackCheck, pack: bytes) -> None:
        """A pack that cannot be read as a whole: what of it can be read by itself."""
        blobs = {Address(pack, kind, id_) for kind, id_ in outcome.bad}
        found = reread(self._repo, blobs | {Address.head(pack)})
        outcome.addresses = set(found.bad)
        outcome.bad = [(one.kind, one.id) for one in blobs - found.sound]

    def _open(self, outcome: PackCheck, content: bytes, pack: bytes) -> None:
        head = open_head(self._repo.keys, outcome.name, content)
        domain = self._repo.keys.domain(head.domain_id)
        for blob in head.blobs:
            sealed = content[blob.offset : blob.offset + blob.sealed_length]
            try:
                opened = open_blob(domain, head.header, blob, sealed, outcome.name)
            except (IntegrityError, UnknownFormat) as error:
                outcome.bad.append((blob.kind, blob.id))
                outcome.addresses.add(Address(pack, blob.kind, blob.id))
                outcome.trouble = f"{blob.kind.name.lower()} {blob.id.hex()[:16]}: {error.message}"
                continue
            if blob.kind == Kind.CHUNK:
                outcome.chunks += 1
                outcome.chunk_bytes += len(opened)
        if not outcome.bad:
            try:
                container.check_padding(content, head.header, head.blobs, outcome.name)
            except IntegrityError as error:
                outcome.trouble = error.message  # every blob opened all the same


def _packs(repo: Repository, domains: set[DomainId] | None) -> Iterator[Entry]:
    if domains is None:
        yield from repo.blobs.packs()
        return
    for domain_id in sorted(domains):
        yield from repo.blobs.packs(domain_id)


def read_known_again(repo: Repository, result: VerifyResult) -> None:
    """Read what records or this host call bad and is listed; heads that do not open are looked at apart.

    Raises StoreUnavailable.
    """
    troubled = {pack_hash(name) for name, _ in census.troubled(repo.blobs)}
    packs = {one.pack for one in repo.catalogue.bad}
    listed = {pack for pack in packs if pack in troubled or repo.blobs.length(pack) is not None}
    apart = {Address.head(pack) for pack in packs & troubled}
    known = {one for one in repo.catalogue.bad - apart if one.pack in listed}
    for pack in repo.suspects.packs():
        known |= {Address(pack, blob.kind, blob.id) for blob in repo.suspects.blobs(pack)}
    found = reread(repo, known)
    leave_headless(repo, found.bad)
    for one in sorted(found.bad):
        _report(result, one, found.reasons[one], spare=is_spare(repo, one))
    for one in sorted(found.unread):
        _report(result, one, "was found bad before, and cannot be read for the moment")
    result.bad |= found.bad


def leave_headless(repo: Repository, bad: Iterable[Address]) -> None:
    """From now on nothing is read from the packs among these whose heads do not open: no other host could."""
    repo.contents.headless |= {one.pack for one in bad if one.kind == Kind.DIRECTORY}


def publish_bad(repo: Repository, result: VerifyResult) -> None:
    """Publish, in one commit, the bad addresses that no record names yet. Where that fails, a note says so."""
    news = sorted((result.bad | repo.contents.bad) - repo.catalogue.bad)[: _MOST_RECORDS * MAX_BAD]
    if not news:
        return
    try:
        if not repo.store.abilities.write:
            result.note(
                "record", repo.store.url, "the damage is not recorded for other hosts: this access is read-only"
            )
            return
        parts = [tuple(news[start : start + MAX_BAD]) for start in range(0, len(news), MAX_BAD)]
        repo.publish([raw(Bad(part)) for part in parts])
    except LamellaError as error:
        text = f"the damage could not be recorded for other hosts: {error.message}"
        result.note("record", repo.store.url, text)
        return
    result.recorded = len(news)
    repo.suspects.apply(news, repo.blobs)


def is_spare(repo: Repository, one: Address) -> bool:
    """Whether another pack has what does not open at an address: read and checked, not only listed.

    Whoever holds the data key can put garbage under an id that a snapshot needs. Raises StoreUnavailable.
    """
    if one.kind == Kind.DIRECTORY:
        return False
    domains = {place.domain_id for place in repo.suspects.places(one.kind, one.id) if place.pack == one.pack}
    try:
        return bool(domains) and all(repo.contents.get(domain_id, one.kind, one.id) for domain_id in domains)
    except (IntegrityError, UnknownFormat, StoreError) as error:
        if isinstance(error, StoreError):
            require_alive(repo.store, error)
        return False


def _report(result: VerifyResult, one: Address, reason: str, *, spare: bool = False) -> None:
    if one.kind == Kind.DIRECTORY:
        result.damage("pack", pack_name(one.pack), reason)
    else:
        text = f"{one.kind.name.lower()} {one.id.hex()[:16]}: {reason}"
        _tell(result, "blob", pack_name(one.pack), text, spare=spare)


def _tell(result: VerifyResult, kind: str, obj: str, text: str, *, spare: bool) -> None:
    if spare:
        result.note(kind, obj, f"{text}; another pack has the same content, and it is whole")
    else:
        result.damage(kind, obj, text)
