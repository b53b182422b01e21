"""A second place of one repository: its objects, byte for byte, without any key (docs/decisions/0029).

Nothing is ever overwritten or removed: the mirror is the union of what it had and what the source has. Packs come
before the commits that need them, commits in the order of their chains, the marker last. A source that changes
meanwhile is read in rounds: commits that were listed before the packs need no other ones, and an object that vanishes
begins a new round.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice

from lamella.base.errors import (
    IntegrityError,
    ObjectNotFound,
    RepositoryError,
    RolledBack,
    StoreError,
    StoreRefused,
    UnknownFormat,
    UsageError,
)
from lamella.base.events import Progress, Reporter, silent
from lamella.base.ids import RepoId, WriterId
from lamella.base.names import (
    COMMITS,
    SLOT_SIZE,
    Part,
    hash_in,
    pack_hash,
    pack_name,
    part_of,
)
from lamella.base.signed import TRAILER_SIZE, trailer_fault
from lamella.base.trust import Clear
from lamella.crypto.sign import verified
from lamella.crypto.slots import is_signed
from lamella.format import keyslot, marker
from lamella.format.commit import Head, parse_name, split_trailer
from lamella.format.container import MAX_OBJECT
from lamella.memory.host import Host
from lamella.memory.pins import Places
from lamella.operations.shared.findings import DAMAGE, NOTE, Finding
from lamella.packs.reach import require_alive
from lamella.repository.slots import read_marker
from lamella.run.pipeline import default_workers, ordered_map
from lamella.stores.base import Entry, Held, Store

_SETTLED_ROUNDS = 3
"""So often the commits must be the same before and after the packs were copied; then commits may go on coming."""
_MOST_ROUNDS = 100
_SYNC_EVERY = 1000
_MAX_TEXT = 16 * 1024 * 1024
_MAX_BYTES = {
    Part.PACK: MAX_OBJECT,
    Part.SEGMENT: MAX_OBJECT,
    Part.COMMIT: MAX_OBJECT + TRAILER_SIZE,
    Part.KEY: SLOT_SIZE,
}


@dataclass(slots=True)
class MirrorResult:
    """The outcome. `extra_objects` are in the mirror, but not in the source: no longer, or not yet."""

    repo_id: RepoId
    copied_objects: int = 0
    copied_bytes: int = 0
    present_objects: int = 0
    extra_objects: int = 0
    rounds: int = 0
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def damaged(self) -> bool:
        """Whether something in the source or the mirror is not what its name says."""
        return any(finding.severity == DAMAGE for finding in self.findings)


@dataclass(frozen=True, slots=True)
class MirrorPlan:
    """What would be copied now."""

    repo_id: RepoId
    missing_objects: int
    missing_bytes: int
    present_objects: int


def plan_mirror(source: Store, target: Store) -> MirrorPlan:
    """Find out what a mirror lacks. Raises NoRepository, RepositoryError, RolledBack, StoreError."""
    mark = read_marker(source)
    here, there = Objects.listed(source), Objects.listed(target)
    if marker.NAME in there.small:
        _require_same(mark, target)
    require_one_history(here, there)
    missing = [entry for entry in here.entries() if not there.has(entry.name)]
    return MirrorPlan(mark.repo_id, len(missing), sum(entry.size for entry in missing), here.count - len(missing))


def mirror(
    source: Store, target: Store, host: Host, *, reporter: Reporter = silent, workers: int | None = None,
    lock_wait: float = 0.0,
) -> MirrorResult:  # fmt: skip
    """Bring everything that the source has to the target, which is empty or a place of the same repository.

    Raises UsageError, NoRepository, RepositoryError for a place that holds something else, RolledBack if both places
    were written to under one writer, Locked, IntegrityError, StoreError.
    """
    started = time.monotonic()
    if source.url == target.url:
        raise UsageError("both places are the same", obj=source.url)
    mark = read_marker(source)
    with ExitStack() as held:
        locks = [held.enter_context(source.lock(exclusive=False, wait_seconds=lock_wait))]
        fresh = not _has_marker(target)
        # Until there is a marker nobody else may begin a repository there.
        locks.append(held.enter_context(target.lock(exclusive=fresh, wait_seconds=lock_wait)))
        if _has_marker(target):
            _require_same(mark, target)
        mirroring = _Mirroring(source, target, mark, Places(host.memory(mark.repo_id)), reporter, workers)
        mirroring.locks = [lock for lock in locks if lock is not None]
        result = mirroring.run()
    result.seconds = round(time.monotonic() - started, 3)
    return result


def require_one_history(here: Objects, there: Objects) -> None:
    """Raises RolledBack if a commit of the target would make a fork with one of the source."""
    for place, names in there.commits.items():
        mine = here.commits.get(place)
        if mine and not names <= mine:
            writer, seq = place
            raise RolledBack(
                f"both places have a commit {seq} of writer {writer.hex()[:8]} of their own: both were written to",
                obj=Head(writer, seq, min(names - mine)).name,
                hint="joining them would fork the history; copy both into a third repository with: lamella copy",
            )


def _has_marker(store: Store) -> bool:
    try:
        store.stat(marker.NAME)
    except ObjectNotFound:
        return False
    return True


def _require_same(mark: marker.Marker, target: Store) -> None:
    if read_marker(target) != mark:
        raise RepositoryError(
            "this place holds another repository", obj=target.url, hint="to copy snapshots into it: lamella copy"
        )


class _Mirroring:
    """One run."""

    def __init__(
        self, source: Store, target: Store, mark: marker.Marker, places: Places, reporter: Reporter, workers: int | None
    ) -> None:
        self._source = source
        self._target = target
        self._mark = mark
        self._places = places
        self._reporter = reporter
        self._workers = workers or default_workers()
        self._result = MirrorResult(mark.repo_id)
        self._bad: set[str] = set()
        self._signed: set[Head] = set()
        self._vanished = False
        self.locks: list[Held] = []
        """Those that can be lost."""

    def run(self) -> MirrorResult:
        there = Objects.listed(self._target)
        self._clear_way(there)
        # From here on the place is known as a mirror in the making: what is left after a kill is recognised.
        self._places.begun(self._target.url)
        for number in range(1, _MOST_ROUNDS + 1):
            self._result.rounds = number
            if self._round(there, settled=number <= _SETTLED_ROUNDS):
                return self._finished(there)
        raise RepositoryError("the source kept losing objects while it was read", obj=self._source.url)

    def _clear_way(self, there: Objects) -> None:
        """Resume an unfinished mirror; refuse anything else that has no marker."""
        empty = not there.count and not there.ignored
        if marker.NAME in there.small or empty or self._places.get(self._target.url).mirror:
            return
        here = Objects.listed(self._source)
        foreign = next((entry.name for entry in there.entries() if not here.has(entry.name)), there.ignored)
        if foreign:
            hint = "choose an empty or new directory"
            raise RepositoryError(f"{self._target.url} holds something else: {foreign}", obj=foreign, hint=hint)

    # -- rounds -------------------------------------------------------------------------------------------------------

    def _round(self, there: Objects, *, settled: bool) -> bool:
        """Copy what is missing; False if the source changed in a way that asks for another round."""
        self._vanished = False
        losses = [lock.losses for lock in self.locks]
        commits = _commits(self._source)
        here = Objects.listed(self._source, commits)
        require_one_history(here, there)
        if self._result.rounds == 1:
            self._result.present_objects = sum(there.has(entry.name) for entry in here.entries())
        self._compare_sizes(here, there)
        self._copy([entry for entry in here.entries() if self._comes_first(entry, there)], there)
        if self._vanished or (settled and _commits(self._source) != commits):
            return False
        if losses != [lock.losses for lock in self.locks]:
            return False  # somebody may have had the place alone meanwhile: look at everything again
        for lock, seen in zip(self.locks, losses, strict=True):
            lock.renew(seen)
        for layer in _layers(entry for entry in commits if self._lacks(entry, there)):
            self._copy(layer, there)
        if self._vanished:
            return False
        if marker.NAME not in there.small:
            self._target.put(marker.NAME, self._mark.encode())
            self._target.sync()
            there.add(Entry(marker.NAME, marker.SIZE))
            self._result.copied_objects += 1
            self._result.copied_bytes += marker.SIZE
        self._result.extra_objects = sum(not here.has(entry.name) for entry in there.entries())
        return True

    def _lacks(self, entry: Entry, there: Objects) -> bool:
        return entry.name not in self._bad and not there.has(entry.name)

    def _comes_first(self, entry: Entry, there: Objects) -> bool:
        return part_of(entry.name) not in (Part.COMMIT, Part.MARKER) and self._lacks(entry, there)

    def _copy(self, entries: Sequence[Entry], there: Objects) -> None:
        """Copy objects and make them durable. Report and leave out any object whose bytes do not fit its name."""
        total = sum(entry.size for entry in entries)
        done = 0
        waiting = iter(entries)
        while batch := list(islice(waiting, _SYNC_EVERY)):
            for entry, copied in ordered_map(self._copied, batch, workers=self._workers):
                done += entry.size
                if copied:
                    there.add(entry)
                    self._result.copied_objects += 1
                    self._result.copied_bytes += entry.size
                self._reporter(Progress("mirror", self._target.url, done, total, self._result.copied_bytes))
            self._target.sync()

    def _copied(self, entry: Entry) -> tuple[Entry, bool]:
        try:
            content = check(self._source, entry, self._mark)
        except ObjectNotFound:
            self._vanished = True
            return entry, False
        if isinstance(content, Finding):
            self._report(content)
            self._bad.add(entry.name)
            return entry, False
        try:
            self._target.put(entry.name, Clear(content))
        except StoreRefused as error:
            if part_of(entry.name) != Part.KEY:
                raise
            # Where objects can only be added no slots can: its owner copies them at the place itself.
            self._report(Finding("mirror", NOTE, entry.name, f"not copied: {error.message}"))
            self._bad.add(entry.name)
            return entry, False
        head = parse_name(entry.name)
        if head is not None:
            self._signed.add(head)
        return entry, True

    def _compare_sizes(self, here: Objects, there: Objects) -> None:
        """Same name, other size; or text that differs: said, and left as it is."""
        for name, size in there.different(here):
            text = f"{self._target.url} has {size} bytes under this name, the source {here.size(name)}"
            self._report(Finding("mirror", DAMAGE, name, text))
            self._bad.add(name)
        for name in here.small.keys() & there.small.keys() - self._bad:
            if part_of(name) == Part.TEXT and self._source.get(name) != self._target.get(name):
                self._report(Finding("mirror", NOTE, name, "differs from the source's; left as it is"))
                self._bad.add(name)

    def _report(self, finding: Finding) -> None:
        if finding not in self._result.findings:
            self._result.findings.append(finding)

    def _newest(self, there: Objects) -> Iterator[Head]:
        """The newest commit of each chain in the mirror that its writer signed: what must be seen there from now on."""
        done: set[WriterId] = set()
        for writer, seq in sorted(there.commits, key=lambda place: -place[1]):
            for sha256 in sorted(there.commits[writer, seq]) if writer not in done else ():
                head = Head(writer, seq, sha256)
                size = there.size(head.name) or 0
                if head in self._signed or not isinstance(
                    check(self._target, Entry(head.name, size), self._mark), Finding
                ):
                    done.add(writer)
                    yield head

    def _finished(self, there: Objects) -> MirrorResult:
        self._places.seen(self._target.url, list(self._newest(there)))
        if there.ignored:
            self._report(Finding("mirror", NOTE, there.ignored, "no object of a repository; left as it is"))
        return self._result


def _layers(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    """Commits in the order of their chains, one of each chain at a time: what is durable never lacks an earlier one."""
    chains: dict[WriterId, list[tuple[int, Entry]]] = {}
    for entry in entries:
        head = parse_name(entry.name)
        if head is not None:
            chains.setdefault(head.writer, []).append((head.seq, entry))
    rows = [[entry for _, entry in sorted(chain, key=lambda row: row[0])] for chain in chains.values()]
    for number in range(max(map(len, rows), default=0)):
        yield [row[number] for row in rows if number < len(row)]


def _commits(store: Store) -> list[Entry]:
    """Every commit that a store lists, in order."""
    return sorted(store.list(COMMITS), key=lambda entry: entry.name)


@dataclass(slots=True)
class Objects:
    """The objects of one place. Packs are kept by their hash: there may be a million."""

    packs: dict[bytes, int] = field(default_factory=dict)
    small: dict[str, int] = field(default_factory=dict)
    commits: dict[tuple[WriterId, int], set[bytes]] = field(default_factory=dict)
    ignored: str = ""
    """A name that belongs to no repository, if there is one."""

    @classmethod
    def listed(cls, store: Store, commits: Sequence[Entry] | None = None) -> Objects:
        """Everything a store lists, commits before packs. Raises StoreError."""
        found = cls()
        for entry in _commits(store) if commits is None else commits:
            found.add(entry)
        for entry in store.list(""):
            if not entry.name.startswith(COMMITS):
                found.add(entry)
        return found

    def add(self, entry: Entry) -> None:
        """Take an object in."""
        name = entry.name
        sha256 = pack_hash(name)
        if sha256 is not None:
            self.packs[sha256] = entry.size
            return
        part = part_of(name)
        if not part:
            self.ignored = self.ignored or name
            return
        self.small[name] = entry.size
        head = parse_name(name) if part == Part.COMMIT else None
        if head is not None:
            self.commits.setdefault((head.writer, head.seq), set()).add(head.sha256)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.packs) + len(self.small)

    def has(self, name: str) -> bool:
        """Whether an object of that name is there."""
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        """Its size in bytes."""
        sha256 = pack_hash(name)
        return self.small.get(name) if sha256 is None else self.packs.get(sha256)

    def entries(self) -> Iterator[Entry]:
        """All of them: slots and text, packs, segments, commits."""
        for sha256, size in sorted(self.packs.items()):
            yield Entry(pack_name(sha256), size)
        for name, size in sorted(self.small.items()):
            yield Entry(name, size)

    def different(self, other: Objects) -> Iterator[tuple[str, int]]:
        """Names that both have, and their size here, where the sizes differ."""
        mine: Iterable[tuple[str, int]] = ((pack_name(one), size) for one, size in self.packs.items())
        for rows in (mine, self.small.items()):
            for name, size in rows:
                if other.size(name) not in (None, size):
                    yield name, size


def check(store: Store, entry: Entry, mark: marker.Marker) -> bytes | Finding:
    """The bytes of an object if they are what its name says, else what is wrong with them.

    Raises ObjectNotFound if it is gone, StoreError if the store is out of reach.
    """
    name, part = entry.name, part_of(entry.name)
    if entry.size > (_MAX_TEXT if part is None else _MAX_BYTES.get(part, _MAX_TEXT)):
        return Finding("mirror", DAMAGE, name, f"an object of {entry.size} bytes cannot be what its name says")
    try:
        content = store.get(name)
    except ObjectNotFound:
        raise
    except StoreError as error:
        require_alive(store, error)
        return Finding("mirror", DAMAGE, name, f"cannot be read: {error.message}")
    named = hash_in(name)
    if named is not None and not hashlib.sha256(content).digest().startswith(named):
        return Finding("mirror", DAMAGE, name, "its bytes are not what its name says; not copied")
    fault = _fault(name, part, content, mark)
    return Finding("mirror", NOTE, name, f"{fault}; not copied") if fault else content


def _fault(name: str, part: Part | None, content: bytes, mark: marker.Marker) -> str:
    """Why an object whose bytes fit its name counts for nothing, as the marker tells; empty if it may count.

    Anybody who can add objects can add such a one: it is no damage. Texts need a key to be judged.
    """
    try:
        if part == Part.KEY:
            return "" if is_signed(mark, keyslot.decode(content, name)) else "a key slot that no admin signed"
        head = parse_name(name)
        if head is not None:
            _, trailer = split_trailer(content, head)
            return trailer_fault(mark.signers, head.writer, head.seq, trailer, verified)
    except (IntegrityError, UnknownFormat) as error:
        return error.message
    return ""
