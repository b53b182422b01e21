"""A second place of one repository: its objects, byte for byte, without any key (docs/decisions/0029).

Nothing is ever overwritten or removed: the mirror is the union of what it had and what the source has. Packs come
before the commits that need them, commits in the order of their chains, the marker last. A source that changes
meanwhile is read in rounds: commits that were listed before the packs need no other ones, and an object that vanishes
begins a new round.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice

from lamella.base.errors import (
    ObjectNotFound,
    RepositoryError,
    RolledBack,
    StoreRefused,
    UsageError,
)
from lamella.base.events import Progress, Reporter, silent
from lamella.base.ids import RepoId, WriterId
from lamella.base.names import (
    Part,
    part_of,
)
from lamella.base.trust import Clear
from lamella.format import marker
from lamella.format.commit import Head, parse_name
from lamella.memory.host import Host
from lamella.memory.pins import Places
from lamella.operations.mirror.checking import check
from lamella.operations.mirror.comparing import ComparedPlaces, SmallObjects, compare, list_commits
from lamella.operations.shared.findings import DAMAGE, NOTE, Finding
from lamella.repository.slots import read_marker
from lamella.run.pipeline import default_workers, ordered_map
from lamella.stores.base import Entry, Store
from lamella.stores.held import Held

_SETTLED_ROUNDS = 3
"""So often the commits must be the same before and after the packs were copied; then more commits may keep coming."""
_MOST_ROUNDS = 100
_SYNC_EVERY = 1000
_DISTANT_WORKERS = 8


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
    """The objects that would be copied now."""

    repo_id: RepoId
    missing_objects: int
    missing_bytes: int
    present_objects: int


def plan_mirror(source: Store, target: Store) -> MirrorPlan:
    """Find out what a mirror lacks. Raises NoRepository, RepositoryError, RolledBack, StoreError."""
    mark, found = read_marker(source), compare(source, target)
    if marker.NAME in found.there.sizes:
        require_same(mark, target)
    require_one_history(found.here, found.there)
    lacking = found.lacking()
    missing, size = found.missing_packs + len(lacking), found.missing_pack_bytes + sum(one.size for one in lacking)
    return MirrorPlan(mark.repo_id, missing, size, found.shared)


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
    workers = workers or suited_workers(source, target)
    with ExitStack() as held:
        locks = [held.enter_context(source.lock(exclusive=False, wait_seconds=lock_wait))]
        fresh = not has_marker(target)
        # Until there is a marker nobody else may begin a repository there.
        locks.append(held.enter_context(target.lock(exclusive=fresh, wait_seconds=lock_wait)))
        if has_marker(target):
            require_same(mark, target)
        mirroring = _Mirroring(source, target, mark, Places(host.memory(mark.repo_id)), reporter, workers)
        mirroring.locks = [lock for lock in locks if lock is not None]
        result = mirroring.run()
    result.seconds = round(time.monotonic() - started, 3)
    return result


def suited_workers(*stores: Store) -> int:
    """So many objects are on their way at the same time: more where a round trip costs more than the data in it."""
    return max(default_workers(), _DISTANT_WORKERS if any(store.abilities.distant for store in stores) else 1)


def require_one_history(here: SmallObjects, there: SmallObjects) -> None:
    """Raises RolledBack if a commit of the target would make a fork with one of the source."""
    for place, names in there.commits.items():
        mine = here.commits.get(place)
        if mine and not names <= mine:
            writer, seq = place
            raise RolledBack(
                f"both places have their own commit {seq} of writer {writer.hex()[:8]}: both were written to",
                obj=Head(writer, seq, min(names - mine)).name,
                hint="joining them would fork the history; copy both into a third repository with: lamella copy",
            )


def has_marker(store: Store) -> bool:
    """Whether a repository is there. Raises StoreError."""
    try:
        store.stat(marker.NAME)
    except ObjectNotFound:
        return False
    return True


def require_same(mark: marker.Marker, target: Store) -> None:
    """Raises RepositoryError if another repository is there."""
    if read_marker(target) != mark:
        raise RepositoryError(
            "this place holds another repository", obj=target.url, hint="to copy snapshots into it: lamella copy"
        )


class _Mirroring:
    """One run."""

    def __init__(
        self, source: Store, target: Store, mark: marker.Marker, places: Places, reporter: Reporter, workers: int
    ) -> None:
        self._source = source
        self._target = target
        self._mark = mark
        self._places = places
        self._reporter = reporter
        self._workers = workers
        self._result = MirrorResult(mark.repo_id)
        self._bad: set[str] = set()
        self._signed: set[Head] = set()
        self._vanished = False
        self.locks: list[Held] = []
        """Those that can be lost."""

    def run(self) -> MirrorResult:
        self._clear_way()
        # From here on the place is known as a mirror in the making: what is left after a kill is recognised.
        self._places.begun(self._target.url)
        for number in range(1, _MOST_ROUNDS + 1):
            self._result.rounds = number
            there = self._round(settled=number <= _SETTLED_ROUNDS)
            if there is not None:
                return self._finished(there)
        raise RepositoryError("the source kept losing objects while it was read", obj=self._source.url)

    def _clear_way(self) -> None:
        """Resume an unfinished mirror; refuse anything else that has no marker."""
        if has_marker(self._target) or self._places.get(self._target.url).mirror:
            return
        found = compare(self._source, self._target)
        strange = min(found.there.sizes.keys() - found.here.sizes.keys(), default="")
        foreign = found.first_extra or strange or found.there.ignored
        if foreign:
            hint = "choose an empty or new directory"
            raise RepositoryError(f"{self._target.url} holds something else: {foreign}", obj=foreign, hint=hint)

    # -- rounds -------------------------------------------------------------------------------------------------------

    def _round(self, *, settled: bool) -> SmallObjects | None:
        """Copy what is missing, and return what is there then; None if the source changed so that we look again."""
        self._vanished = False
        losses = [lock.losses for lock in self.locks]
        commits = list_commits(self._source)
        found = compare(self._source, self._target, commits, self._bad)
        there = found.there
        require_one_history(found.here, there)
        if self._result.rounds == 1:
            self._result.present_objects = found.shared
        self._compare_sizes(found)
        self._copy([entry for entry in found.lacking() if self._comes_first(entry)], there)
        self._copy_packs(found, commits)
        if self._vanished or (settled and list_commits(self._source) != commits):
            return None
        if losses != [lock.losses for lock in self.locks]:
            return None  # somebody may have had the place alone meanwhile: look at everything again
        for lock, seen in zip(self.locks, losses, strict=True):
            lock.renew(seen)
        for layer in _layers(entry for entry in commits if self._lacks(entry, there)):
            self._copy(layer, there)
        if self._vanished:
            return None
        if marker.NAME not in there.sizes:
            self._target.put(marker.NAME, self._mark.encode())
            self._target.sync()
            self._result.copied_objects += 1
            self._result.copied_bytes += marker.SIZE
        self._result.extra_objects = found.extra
        return there

    def _copy_packs(self, found: ComparedPlaces, commits: Sequence[Entry]) -> None:
        """Copy the packs that are missing, as many at a time as one pass over the listings gathered."""
        while found.missing:
            self._copy(found.missing, found.there, found.missing_pack_bytes)
            if self._vanished or len(found.missing) == found.missing_packs:
                return
            found = compare(self._source, self._target, commits, self._bad)

    def _lacks(self, entry: Entry, there: SmallObjects) -> bool:
        return entry.name not in self._bad and entry.name not in there.sizes

    def _comes_first(self, entry: Entry) -> bool:
        return part_of(entry.name) not in (Part.COMMIT, Part.MARKER) and entry.name not in self._bad

    def _copy(self, entries: Sequence[Entry], there: SmallObjects, total: int | None = None) -> None:
        """Copy objects and make them durable. Report and leave out any object whose bytes do not fit its name.

        `total`: the bytes of all that this is the beginning of, if there is more.
        """
        total = sum(entry.size for entry in entries) if total is None else total
        done = 0
        waiting = iter(entries)
        while batch := list(islice(waiting, _SYNC_EVERY)):
            for entry, copied in ordered_map(self._copied, batch, workers=self._workers):
                done += entry.size
                if copied:
                    self._result.copied_objects += 1
                    self._result.copied_bytes += entry.size
                    if part_of(entry.name) != Part.PACK:
                        there.add(entry)
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

    def _compare_sizes(self, found: ComparedPlaces) -> None:
        """Same name, other size; or text that differs: said, and left as it is."""
        for name, there, here in found.resized:
            text = f"{self._target.url} has {there} bytes under this name, the source {here}"
            self._report(Finding("mirror", DAMAGE, name, text))
            self._bad.add(name)
        for name in found.here.sizes.keys() & found.there.sizes.keys() - self._bad:
            if part_of(name) == Part.TEXT and self._source.get(name) != self._target.get(name):
                self._report(Finding("mirror", NOTE, name, "differs from the source's; left as it is"))
                self._bad.add(name)

    def _report(self, finding: Finding) -> None:
        if finding not in self._result.findings:
            self._result.findings.append(finding)

    def _newest(self, there: SmallObjects) -> Iterator[Head]:
        """The newest commit of each chain in the mirror that its writer signed: what must be seen there from now on."""
        done: set[WriterId] = set()
        for writer, seq in sorted(there.commits, key=lambda place: -place[1]):
            for sha256 in sorted(there.commits[writer, seq]) if writer not in done else ():
                head = Head(writer, seq, sha256)
                size = there.sizes[head.name]
                if head in self._signed or not isinstance(
                    check(self._target, Entry(head.name, size), self._mark), Finding
                ):
                    done.add(writer)
                    yield head

    def _finished(self, there: SmallObjects) -> MirrorResult:
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
