"""How far a long run is, said in SESSION commits and remembered with the moment that is read (docs/decisions/0016).

Order: everything stored is durable; the moment is kept; this host remembers which moment it is; then the commit says
how far it was read. Killed anywhere in between, the earlier resume point counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lamella.base.clock import now_ms
from lamella.base.errors import IntegrityError, LamellaError, RepositoryError, SourceError
from lamella.base.ids import NO_CHUNK, VolumeId
from lamella.format.node import Shape
from lamella.format.records import NO_REF, PartialRoot, SessionVolume
from lamella.memory.resume import ResumeMemory, ResumePoint
from lamella.operations.backup.pacing import Pace
from lamella.operations.backup.plan import COMPARE, PlanRow
from lamella.operations.backup.publish import Saved
from lamella.operations.moments.rotation import drop_unneeded
from lamella.operations.writing.session import Session
from lamella.packs.tree import Tree
from lamella.packs.tree_writer import Partial
from lamella.repository.repository import Repository


class Recorder:
    """Records the progress of one run. The sources' locks are held."""

    def __init__(
        self, repo: Repository, session: Session, pace: Pace, rows: Sequence[PlanRow], warn: Callable[[str], None]
    ) -> None:
        self._repo = repo
        self._session = session
        self._pace = pace
        self._warn = warn
        self._memory = ResumeMemory(repo.memory, repo.keys)
        self._volumes = [_intended(row) for row in rows]
        self._said: dict[VolumeId, PartialRoot] = {}
        """What the last commit says."""
        self._remembered: dict[VolumeId, ResumePoint] = {}
        for row in rows:
            if row.resume is not None:
                self._said[row.volume_id] = _root(row, row.resume)
                self._remembered[row.volume_id] = row.resume
        self._fresh: dict[VolumeId, tuple[Saved, PartialRoot]] = {}
        """What was noted since."""
        self._read_bytes = 0
        self._last = pace.now()
        self._broken_off = False
        """A step of recording did not end: packs may be in nobody's hands, so nothing more is said of this run."""

    # -- while a volume is read ---------------------------------------------------------------------------------------

    def watch(self, saved: Saved) -> Watch:
        """What the reader of a volume tells its progress to."""
        return Watch(self, saved)

    def due(self, read_bytes: int) -> bool:
        """Count what was read; whether it is time to say how far the run is."""
        self._read_bytes += read_bytes
        return self._read_bytes >= self._pace.bytes or self._pace.now() - self._last >= self._pace.seconds

    def note(self, saved: Saved, partial: Partial | None) -> None:
        """Take it as what the next commit says of a volume, unless an earlier run came farther."""
        volume_id, shape = saved.shape.volume_id, saved.shape
        before = self._said.get(volume_id)
        if partial is None or (before is not None and saved.goes_on and partial.done < before.done):
            return
        root = PartialRoot(volume_id, saved.row.domain_id, partial.root, shape.size, shape.chunk_log2, partial.done)
        self._fresh[volume_id] = saved, root

    def finished(self, saved: Saved) -> None:
        """A volume was read to its end."""
        self.note(saved, Partial(saved.read.root, saved.shape.chunks))

    def forget(self, saved: Saved) -> None:
        """Nothing said of a volume may be used: the change map it was read by was wrong, or it cannot be read."""
        volume_id = saved.shape.volume_id
        self._said.pop(volume_id, None)
        self._remembered.pop(volume_id, None)
        self._fresh.pop(volume_id, None)
        self._remember(volume_id, [])

    def announce(self) -> None:
        """Say what the run builds on before it looks what is stored. Raises StoreError, RolledBack, RepositoryError."""
        self._session.announce(self._volumes, list(self._said.values()))

    # -- commits ------------------------------------------------------------------------------------------------------

    def record(self) -> None:
        """Say how far the run is, durably. Raises StoreError, RolledBack, RepositoryError."""
        self._broken_off = True
        self._session.flush()
        news = self._keep_moments()
        roots = {**self._said, **{volume_id: root for volume_id, (_, root) in self._fresh.items()}}
        self._session.note(self._volumes, list(roots.values()))
        self._said = roots
        for saved, root in self._fresh.values():
            self._settle(saved, root, news.get(root.volume_id))
        self._fresh.clear()
        self._read_bytes, self._last = 0, self._pace.now()
        self._broken_off = False

    def stopped(self) -> None:
        """The user or the system ends the run: say once more how far it is, if that is worth a commit.

        If it came while that was being said, the last commit counts: what was in the hands of the main thread is torn.
        """
        if self._read_bytes >= self._pace.least_bytes and not self._broken_off:
            self._quietly(self._record_what_is_whole)

    def _record_what_is_whole(self) -> None:
        """The interruption came between any two steps: a root counts only if all its nodes can be read again."""
        self._session.flush()
        self._fresh = {volume_id: one for volume_id, one in self._fresh.items() if self._is_whole(one[1])}
        self.record()

    def _is_whole(self, root: PartialRoot) -> bool:
        tree = Tree(Shape(root.volume_id, root.size, root.chunk_log2), root.root)
        try:
            for _ in self._repo.tree_reader(root.domain_id).runs(tree):
                pass
        except IntegrityError:
            return False
        return True

    def broken(self) -> None:
        """The store failed: if it still takes a commit, what it has taken until then is pinned. Nothing is raised."""
        if self._session.stored_packs:
            self._quietly(self._salvage)

    def _salvage(self) -> None:
        self._session.salvage()
        self._session.note(self._volumes, list(self._said.values()))

    def _quietly(self, record: Callable[[], None]) -> None:
        try:
            record()
        except LamellaError as error:
            self._warn(f"how far the run came could not be recorded: {error.message}")

    def unfinished(self, published: Sequence[VolumeId]) -> bool:
        """Whether something that is not published can be gone on with."""
        return bool(self._said.keys() - set(published))

    # -- the moments --------------------------------------------------------------------------------------------------

    def _keep_moments(self) -> dict[VolumeId, ResumePoint]:
        """Keep the moments that new roots are of, and remember them beside those the last commit spoke of."""
        news: dict[VolumeId, ResumePoint] = {}
        for volume_id, (saved, root) in self._fresh.items():
            point = self._point(saved, root)
            if point is None:
                continue
            try:
                saved.row.request.source.keep(point.checkpoint)
            except SourceError as error:
                self._warn(f"{saved.row.volume}: if this is broken off, all of it is read again: {error.message}")
                continue
            before = self._remembered.get(volume_id)
            if self._remember(volume_id, [point] if before is None else [before, point]):
                news[volume_id] = point
        return news

    def _point(self, saved: Saved, root: PartialRoot) -> ResumePoint | None:
        source = saved.row.request.source
        if not saved.frozen.checkpoint or not source.tracks:
            return None
        return ResumePoint(
            self._session.id,
            root.root,
            root.size,
            root.chunk_log2,
            root.done,
            NO_CHUNK if saved.row.base is None else saved.row.base.added.root,
            saved.result.mode == COMPARE,
            source.identity,
            source.driver,
            saved.frozen.checkpoint,
            now_ms(),
        )

    def _remember(self, volume_id: VolumeId, points: list[ResumePoint]) -> bool:
        try:
            self._memory.record(volume_id, points)
        except RepositoryError as error:
            self._repo.pins.unsaved = error.message
            return False
        return True

    def _settle(self, saved: Saved, root: PartialRoot, point: ResumePoint | None) -> None:
        """The commit is durable: what only the one before it needed can go."""
        base = saved.row.base
        if base is None or self._repo.blobs.complete(base.added.root):
            self._repo.blobs.set_complete([root.root])
        if point is None or not self._remember(root.volume_id, [point]):
            return
        self._remembered[root.volume_id] = point
        try:
            drop_unneeded(self._repo.host, saved.row.request.source, in_use=point.checkpoint)
        except SourceError as error:
            self._warn(f"{saved.row.volume}: an old kept moment could not be removed: {error.message}")


@dataclass(frozen=True, slots=True)
class Watch:
    """A recorder, as the reader of one volume sees it."""

    recorder: Recorder
    saved: Saved

    def due(self, read_bytes: int) -> bool:
        """Count what was read; whether to call `record` as soon as that is possible."""
        return self.recorder.due(read_bytes)

    def record(self, partial: Partial | None) -> None:
        """Say how far the run is, durably. Raises StoreError, RolledBack, RepositoryError."""
        self.recorder.note(self.saved, partial)
        self.recorder.record()

    def stopped(self, partial: Partial | None) -> None:
        """The reading is being stopped: this is how far it came."""
        self.recorder.note(self.saved, partial)


def _intended(row: PlanRow) -> SessionVolume:
    base = row.base
    return SessionVolume(
        row.volume_id,
        row.volume,
        NO_REF if base is None else base.ref,
        NO_CHUNK if base is None else base.added.root,
    )


def _root(row: PlanRow, point: ResumePoint) -> PartialRoot:
    return PartialRoot(row.volume_id, row.domain_id, point.root, point.size, point.chunk_log2, point.done)
