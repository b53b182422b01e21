"""Copying snapshots into another repository, with other keys, domains, ids and another store (docs/decisions/0028).

Snapshots go in history order, each built on the copy of one next to it: only what differs between the two is read, each
chunk is opened and its id recomputed before it is stored under the id it has there. A commit follows each run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lamella.base.errors import IntegrityError, RepositoryError, SourceError
from lamella.base.events import Event, Progress, Reporter, Warned, silent
from lamella.format.encoder import Encoder
from lamella.format.inner import Origin, OriginPlace
from lamella.format.labels import Tag
from lamella.format.node import Shape
from lamella.history.catalogue import Snapshot
from lamella.operations.copy.plan import CopyPlanner, CopyRow, State, by_run, choose, require_two
from lamella.operations.copy.publish import Copied, CopyPublisher, carry_moment, copy_documents
from lamella.operations.copy.volume import SnapshotVolume
from lamella.operations.shared.completeness import is_complete
from lamella.operations.shared.heads import fingerprint
from lamella.operations.writing.chunks import VolumeReader
from lamella.operations.writing.session import WritingSession
from lamella.repository.repository import Repository
from lamella.run.pipeline import default_workers

_COMMIT_AFTER = 1 << 30
"""Bytes stored after which a run that is not complete yet gets a commit of what there is."""


@dataclass(frozen=True, slots=True)
class CopyOptions:
    """Options of a copy. `check_all` decodes everything that was compressed before it is stored."""

    compression: str = "auto"
    workers: int | None = None
    check_all: bool = False
    transfer_last: int | None = None
    """Of each volume only so many of the newest snapshots, where no snapshot is named; None: all."""


@dataclass(slots=True)
class CopyResult:
    """The outcome. `copied`, `present` and `failed` count snapshots of volumes."""

    rows: list[CopyRow]
    read_bytes: int = 0
    stored_bytes: int = 0
    metadata_bytes: int = 0
    seconds: float = 0.0
    fingerprint: str = ""
    warnings: list[str] = field(default_factory=list)

    def count(self, state: State) -> int:
        """The number of rows in this state."""
        return sum(row.state == state for row in self.rows)

    @property
    def complete(self) -> bool:
        """Whether everything that was selected is in the other repository now, or was removed there."""
        return not self.count(State.FAILED)


def plan_copy(
    source: Repository, target: Repository, selectors: Sequence[str], options: CopyOptions | None = None
) -> CopyPlan:
    """Decide what would be copied. Raises UsageError, NothingMatched, RolledBack, IntegrityError, StoreError."""
    options = options or CopyOptions()
    Encoder(options.compression)
    require_two(source, target)
    source.refresh_map()
    target.refresh_map()
    return CopyPlan(source, target, selectors, options)


class CopyPlan:
    """The plan of a copy; `rows` is for people, `execute` does it."""

    def __init__(self, source: Repository, target: Repository, selectors: Sequence[str], options: CopyOptions) -> None:
        self._source = source
        self._target = target
        self._options = options
        self._selectors = selectors
        self._planner = CopyPlanner(source, target)
        self.rows = self._planner.rows(choose(source, selectors, options.transfer_last))

    def execute(self, reporter: Reporter = silent) -> CopyResult:
        """Do it. A snapshot that cannot be read is left out and reported; what was committed stays.

        Raises StoreError if a store fails, RolledBack, IntegrityError.
        """
        started = time.monotonic()
        if self._target.memory.writer_key() is None:
            # The ids of new volumes follow from the writer that creates them.
            self._target.memory.creator()
            self._planner = CopyPlanner(self._source, self._target)
            self.rows = self._planner.rows(choose(self._source, self._selectors, self._options.transfer_last))
        result = CopyResult(self.rows)
        copying = _Copying(self._source, self._target, self._options, self._planner, reporter)
        for row in self.rows:
            if row.state == State.WANTED:
                reporter(Progress("copy", row.selected.text, 0, row.snapshot.added.size))
        for rows in by_run(self.rows):
            copying.run(rows, result)
        copying.carry_tags(self.rows)
        self._target.reload()
        result.fingerprint = fingerprint(self._target)
        result.seconds = round(time.monotonic() - started, 3)
        return result


class _Copying:
    """The state of copying: which snapshots are in the target by now, and what they can be built on."""

    def __init__(
        self,
        source: Repository,
        target: Repository,
        options: CopyOptions,
        planner: CopyPlanner,
        reporter: Reporter,
    ) -> None:
        self._source = source
        self._target = target
        self._options = options
        self._planner = planner
        self._reporter = reporter
        self._copies: dict[bytes, dict[int, Snapshot]] = {}
        self._publisher = CopyPublisher(source, target)

    def run(self, rows: list[CopyRow], result: CopyResult) -> None:
        """Copy one run's snapshots, in one commit or, if they are large, several."""
        wanted = [row for row in rows if row.state == State.WANTED]
        while wanted:
            done: list[Copied] = []
            with WritingSession(self._target) as session:
                session.announce()
                while wanted and session.data_bytes < _COMMIT_AFTER:
                    one = self._copied(session, wanted.pop(0), result)
                    done += [one] if one is not None else []
                if done:
                    self._publisher.publish(session, done, rows)
                    for one in done:
                        self._remember(one)
                result.stored_bytes += session.data_bytes
                result.metadata_bytes += session.metadata_bytes

    def carry_tags(self, rows: list[CopyRow]) -> None:
        """Publish what tags the copies lack; tags taken away here stay there."""
        lacking = [
            Tag(row.there.ref, False, tag)
            for row in rows
            if row.there is not None
            for tag in row.snapshot.tags
            if tag not in row.there.tags
        ]
        if lacking:
            self._target.publish(lacking)

    def _copied(self, session: WritingSession, row: CopyRow, result: CopyResult) -> Copied | None:
        try:
            one = self._copy(session, row)
        except SourceError as error:
            row.state, row.reason = State.FAILED, error.message
            self._reporter(Warned(f"{row.selected.text} was not copied: {error.message}"))
            return None
        result.read_bytes += one.read.figures.read_bytes
        self._reporter(Progress("copy", row.selected.text, one.shape.size, one.shape.size))
        return one

    def _copy(self, session: WritingSession, row: CopyRow) -> Copied:
        base = self._base(row)
        if base is not None:
            try:
                return self._built_on(session, row, base)
            except IntegrityError as error:
                self._reporter(Warned(f"{row.selected.text}: its neighbour there cannot be read: {error.message}"))
        return self._built_on(session, row, None)

    def _built_on(self, session: WritingSession, row: CopyRow, base: tuple[Snapshot, Snapshot] | None) -> Copied:
        if row.destination is None:
            raise ValueError("a row that is not to be copied")
        added, there = row.snapshot.added, row.destination
        here, base_there = (None, None) if base is None else base
        domain_id = there.domain_id if base_there is None else base_there.added.domain_id
        shape = Shape(there.volume_id, added.size, added.chunk_log2)
        reader = VolumeReader(
            self._target,
            session.packer(domain_id),
            shape,
            None if base_there is None else self._target.tree(base_there),
            compression=self._options.compression,
            check_all=self._options.check_all,
            check_base=False,
            workers=self._options.workers or default_workers(),
        )
        volume = SnapshotVolume(self._source, row.snapshot, here)
        read = reader.read(volume, volume.tasks(), row.selected.text, self._staged)
        documents = copy_documents(self._source, row.selected, session.packer(domain_id))
        return Copied(row, shape, domain_id, base_there, read, documents)

    def _staged(self, event: Event) -> None:
        self._reporter(replace(event, stage="copy") if isinstance(event, Progress) else event)

    def _base(self, row: CopyRow) -> tuple[Snapshot, Snapshot] | None:
        """The nearest snapshot of the volume that this host copied and that is whole there: here, and there."""
        volume = row.selected.volume
        known = self._copies_of(row)
        place = next(number for number, one in enumerate(volume.snapshots) if one.ref == row.snapshot.ref)
        for number in sorted(known, key=lambda number: (number > place, abs(number - place))):
            here, there = volume.snapshots[number], known[number]
            if self._usable(row, here, there):
                return here, there
        return None

    def _usable(self, row: CopyRow, here: Snapshot, there: Snapshot) -> bool:
        volume_id = row.destination.volume_id if row.destination is not None else None
        return (
            self._copied_by_us(here, there)
            and not there.conflict
            and not here.conflict
            and there.added.volume_id == volume_id
            and here.added.domain_id == row.snapshot.added.domain_id
            and here.added.chunk_log2 == there.added.chunk_log2 == row.snapshot.added.chunk_log2
            and is_complete(self._target, there)
        )

    def _copied_by_us(self, here: Snapshot, there: Snapshot) -> bool:
        """Whether this host made one of the two directly from the other.

        Another writer may claim that a snapshot is a copy when it is not: what is built on it repeats the claim.
        """
        sides = (self._source, here), (self._target, there)
        return any(_made_from(*copy, *original) for copy, original in (sides, sides[::-1]))

    def _copies_of(self, row: CopyRow) -> dict[int, Snapshot]:
        volume = row.selected.volume
        if volume.volume_id not in self._copies:
            self._copies[volume.volume_id] = self._planner.copies(volume)
        return self._copies[volume.volume_id]

    def _remember(self, one: Copied) -> None:
        if one.there is None:
            raise ValueError("a copy that was not published")
        row = one.row
        row.there, row.state = one.there, State.COPIED
        try:
            carry_moment(self._source, row.snapshot, self._target, one.there)
        except RepositoryError as error:
            self._reporter(
                Warned(f"{row.selected.text}: the next backup there must compare everything: {error.message}")
            )
        place = next(n for n, snapshot in enumerate(row.selected.volume.snapshots) if snapshot.ref == row.snapshot.ref)
        self._copies_of(row)[place] = one.there


def _made_from(repo: Repository, copy: Snapshot, other: Repository, original: Snapshot) -> bool:
    origin = Origin.of(copy.added)
    made = OriginPlace(other.repo_id, original.ref)
    return origin is not None and origin.copied == made and copy.ref.writer == repo.own_writer
