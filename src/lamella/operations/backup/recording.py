"""The progress of a long run, in SESSION commits and in this host's memory (docs/decisions/0016).

Order: everything stored is durable; the moment is kept; this host remembers which moment it is; then the commit says
how far it was read. Killed anywhere in between, the earlier resume point counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lamella.base.clock import now_ms
from lamella.base.errors import LamellaError, SourceError
from lamella.base.ids import VolumeId
from lamella.format.records import NO_REF
from lamella.format.sessions import PartialRoot, SessionVolume
from lamella.memory.ledger import ResumeMemory, ResumePoint
from lamella.operations.backup.plan import COMPARE, Pace, VolumePlan, partial_tree
from lamella.operations.backup.stages import Frozen, Read, Way
from lamella.operations.moments.rotation import drop_unneeded
from lamella.operations.shared.completeness import tree_is_complete
from lamella.operations.writing.chunks import Watch
from lamella.operations.writing.session import WritingSession
from lamella.packs.tree_writer import Partial
from lamella.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class _Reached:
    """The progress of an attempt to read a volume."""

    frozen: Frozen
    way: Way
    root: PartialRoot


class Recorder:
    """Records the progress of one run. The sources' locks are held."""

    def __init__(
        self,
        repo: Repository,
        session: WritingSession,
        pace: Pace,
        plans: Sequence[VolumePlan],
        warn: Callable[[str], None],
    ) -> None:
        self._repo = repo
        self._session = session
        self._pace = pace
        self._warn = warn
        self._memory = ResumeMemory(repo.memory, repo.keys)
        self._volumes = [
            SessionVolume(plan.volume_id, plan.volume, NO_REF if plan.base is None else plan.base.ref, plan.base_root)
            for plan in plans
        ]
        points = [(plan, plan.resume) for plan in plans if plan.resume is not None]
        self._said = {
            plan.volume_id: PartialRoot(
                plan.volume_id, plan.domain_id, point.root, point.size, point.chunk_log2, point.done
            )
            for plan, point in points
        }
        """The roots that the last commit names."""
        self._remembered = {plan.volume_id: point for plan, point in points}
        self._fresh: dict[VolumeId, _Reached] = {}
        """The roots that were noted since."""
        self._read_bytes = 0
        self._last = pace.now()
        self._broken_off = False
        """A step of recording did not end: packs may be in nobody's hands, so nothing more is said of this run."""

    # -- while a volume is read ---------------------------------------------------------------------------------------

    def watch(self, frozen: Frozen, way: Way) -> Watch:
        """Receives the progress of an attempt."""
        return _AttemptWatch(self, frozen, way)

    def due(self, read_bytes: int) -> bool:
        """Count what was read; whether it is time to say how far the run is."""
        self._read_bytes += read_bytes
        return self._read_bytes >= self._pace.bytes or self._pace.now() - self._last >= self._pace.seconds

    def note(self, frozen: Frozen, way: Way, partial: Partial | None) -> None:
        """Take `partial` as what the next commit says of a volume, unless an earlier run came farther."""
        shape, before = frozen.shape, self._said.get(frozen.shape.volume_id)
        if partial is None or (before is not None and way.begun is not None and partial.done < before.done):
            return
        root = PartialRoot(
            shape.volume_id, frozen.plan.domain_id, partial.root, shape.size, shape.chunk_log2, partial.done
        )
        self._fresh[shape.volume_id] = _Reached(frozen, way, root)

    def finished(self, read: Read) -> None:
        """A volume was read to its end."""
        self.note(read.frozen, read.way, Partial(read.tree.root, read.frozen.shape.chunks))

    def forget(self, volume_id: VolumeId) -> None:
        """Nothing said of a volume may be used: the change map it was read by was wrong, or it cannot be read."""
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
        said = {**self._said, **{volume_id: reached.root for volume_id, reached in self._fresh.items()}}
        self._session.note(self._volumes, list(said.values()))
        self._said = said
        for volume_id, reached in self._fresh.items():
            self._settle(reached, news.get(volume_id))
        self._fresh.clear()
        self._read_bytes, self._last = 0, self._pace.now()
        self._broken_off = False

    def stopped(self) -> None:
        """The user or the system ends the run: say once more how far it is, if that is worth a commit.

        If the interruption came while that was being said, the last commit counts: what the main thread had in its
        hands is torn.
        """
        if self._read_bytes >= self._pace.least_bytes and not self._broken_off:
            self._quietly(self._record_what_is_whole)

    def _record_what_is_whole(self) -> None:
        """The interruption came between any two steps: a root counts only if all its nodes can be read again."""
        self._session.flush()
        for root in [reached.root for reached in self._fresh.values()]:
            if not tree_is_complete(self._repo, root.domain_id, partial_tree(root.volume_id, root)):
                del self._fresh[root.volume_id]
        self.record()

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
            self._warn(f"the progress of the run could not be recorded: {error.message}")

    def unfinished(self, published: Sequence[VolumeId]) -> bool:
        """Whether a later run can continue something that is not published."""
        return bool(self._said.keys() - set(published))

    # -- the moments --------------------------------------------------------------------------------------------------

    def _keep_moments(self) -> dict[VolumeId, ResumePoint]:
        """Keep the moments that new roots are of, and remember them beside those the last commit spoke of."""
        news: dict[VolumeId, ResumePoint] = {}
        for volume_id, reached in self._fresh.items():
            point, plan = self._point(reached), reached.frozen.plan
            if point is None:
                continue
            try:
                reached.frozen.source.keep(point.checkpoint)
            except SourceError as error:
                self._warn(
                    f"{plan.volume}: if this run is interrupted, the next run reads the whole volume again: "
                    f"{error.message}"
                )
                continue
            before = self._remembered.get(volume_id)
            if self._remember(volume_id, [point] if before is None else [before, point]):
                news[volume_id] = point
        return news

    def _point(self, reached: _Reached) -> ResumePoint | None:
        frozen, way, root = reached.frozen, reached.way, reached.root
        if not frozen.volume.checkpoint or not frozen.source.tracks:
            return None
        return ResumePoint(
            self._session.id,
            root.root,
            root.size,
            root.chunk_log2,
            root.done,
            way.base_root,
            way.mode == COMPARE,
            frozen.source.identity,
            frozen.source.driver,
            frozen.volume.checkpoint,
            now_ms(),
        )

    def _remember(self, volume_id: VolumeId, points: list[ResumePoint]) -> bool:
        with self._repo.memory.may_fail():
            self._memory.record(volume_id, points)
            return True
        return False

    def _settle(self, reached: _Reached, point: ResumePoint | None) -> None:
        """The commit is durable: what only the commit before it needed can go."""
        root, base = reached.root, reached.way.base
        if base is None or self._repo.blobs.complete(base.added.root):
            self._repo.blobs.set_complete([root.root])
        if point is None or not self._remember(root.volume_id, [point]):
            return
        self._remembered[root.volume_id] = point
        try:
            drop_unneeded(self._repo.host, reached.frozen.source, in_use=point.checkpoint)
        except SourceError as error:
            self._warn(f"{reached.frozen.plan.volume}: an old checkpoint could not be removed: {error.message}")


@dataclass(frozen=True, slots=True)
class _AttemptWatch(Watch):
    """A recorder, as the reader of one volume sees it."""

    recorder: Recorder
    frozen: Frozen
    way: Way

    def due(self, read_bytes: int) -> bool:
        return self.recorder.due(read_bytes)

    def record(self, partial: Partial | None) -> None:
        self.stopped(partial)
        self.recorder.record()

    def stopped(self, partial: Partial | None) -> None:
        self.recorder.note(self.frozen, self.way, partial)
