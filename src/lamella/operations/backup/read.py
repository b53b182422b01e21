"""Reading one frozen volume: the planned way, and where that way turns out wrong the next safer way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lamella.base.errors import CheckpointLost, IntegrityError, SourceError
from lamella.base.events import Reporter
from lamella.operations.backup.plan import COMPARE, FULL, INCREMENTAL, BackupOptions
from lamella.operations.backup.recording import Recorder
from lamella.operations.backup.stages import NO_MOMENT, Frozen, Read, VolumeResult, Way, failed
from lamella.operations.shared import reading
from lamella.operations.shared.reading import Task
from lamella.operations.writing.chunks import MapRefuted, VolumeReader, Watch
from lamella.operations.writing.session import WritingSession
from lamella.packs.tree import Tree
from lamella.repository.repository import Repository
from lamella.run.pipeline import default_workers
from lamella.sources.base import Consistency

if TYPE_CHECKING:
    from lamella.format.records import RawRecord
    from lamella.operations.writing.differences import Differences
    from lamella.stores.wrap.limited import TokenBucket


@dataclass(frozen=True, slots=True)
class Attempts:
    """Reads the volumes of one run."""

    repo: Repository
    options: BackupOptions
    session: WritingSession
    recorder: Recorder
    reporter: Reporter
    warn: Callable[[str], None]
    bucket: TokenBucket | None = None
    saved: frozenset[bytes] = frozenset()
    """The identities of the sources of the run."""

    def volume(self, frozen: Frozen) -> Read | VolumeResult:
        """Read a volume; a source that fails gives a result. Raises StoreError, IntegrityError."""
        way = Way(frozen.plan.mode, frozen.plan.reason, frozen.plan.base)
        try:
            way = self._going_on(frozen, replace(way, notes=(*frozen.notes, *self._image(frozen))))
        except SourceError as error:
            return failed(frozen.plan, error.message, way, frozen.shape)
        while True:
            started = time.monotonic()
            try:
                return self._settled(self._attempt(frozen, way), started)
            except SourceError as error:
                if way.mode != INCREMENTAL or not isinstance(error, CheckpointLost):
                    return failed(frozen.plan, error.message, way, frozen.shape)
                way = replace(way, mode=COMPARE, reason=error.message)
            except MapRefuted as error:
                way = self._without_maps(frozen, way, error)
            except IntegrityError as error:
                way = self._without_what_is_damaged(frozen, way, error)

    def _image(self, frozen: Frozen) -> tuple[RawRecord, ...]:
        """Notes about a volume that is a disk image of a special format, or comes out of one."""
        from lamella.sources.file import holds_image, path_of  # the driver of most volumes has it loaded

        path = path_of(frozen.source.identity, self.repo.host.machine)
        is_disk = frozen.plan.driver == "qcow2"
        if not is_disk and (path is None or not holds_image(path)):
            return ()
        from lamella.operations.backup.image_note import image_note  # most volumes are disks themselves

        return image_note(self.repo, frozen, self.saved, self.warn)

    def _going_on(self, frozen: Frozen, way: Way) -> Way:
        if frozen.plan.resume is None:
            return way
        # Loaded only by a run that continues another.
        from lamella.operations.backup import changes

        return changes.going_on(self.repo.host, frozen, way, frozen.plan.resume)

    def _attempt(self, frozen: Frozen, way: Way) -> Read:
        if frozen.plan.driver in ("stream", "files"):
            from lamella.operations.backup.unfrozen import read_unfrozen  # most volumes can be read anywhere

            return read_unfrozen(self, frozen, way)
        if way.begun is None and way.mode != INCREMENTAL:
            base = None if way.base is None else self.repo.tree(way.base)
            return self._read(frozen, way, base, reading.everything(frozen.volume, frozen.shape))
        # Loaded only by a run that relies on a change map.
        from lamella.format.inner import Sampled
        from lamella.operations.backup import changes

        todo = changes.tasks(self.repo, self.options, frozen, way)
        read = self._read(frozen, way, todo.base, todo.tasks)
        sampled = Sampled(todo.cursor, read.tree.figures.sampled_bytes)
        return replace(read, way=replace(way, notes=(*way.notes, sampled.encode())))

    def _without_maps(self, frozen: Frozen, way: Way, error: MapRefuted) -> Way:
        from lamella.format.inner import Refuted

        self.warn(f"{frozen.plan.volume}: {error}; everything is compared instead")
        self.recorder.forget(frozen.shape.volume_id)
        mode, refuted = FULL if way.base is None else COMPARE, Refuted(error.offset, error.length)
        return Way(mode, "the change map was wrong", way.base, notes=(*way.notes, refuted.encode()))

    def _without_what_is_damaged(self, frozen: Frozen, way: Way, error: IntegrityError) -> Way:
        """Raises the error if nothing that is stored was built on."""
        volume = frozen.plan.volume
        if way.begun is not None:
            self.warn(f"{volume}: the data of the interrupted run cannot be read: {error.message}")
            self.recorder.forget(frozen.shape.volume_id)
            return replace(way, begun=None)
        if way.base is None:
            raise error
        self.warn(f"{volume}: the last snapshot cannot be read, so everything is stored again: {error.message}")
        return Way(FULL, "the last snapshot is damaged", None, notes=way.notes)

    def _settled(self, read: Read, started: float) -> Read:
        """The volume that was read, if it is of one moment or cannot be had otherwise. Raises SourceError."""
        unseen = read.consistency == Consistency.UNKNOWN and not self.options.require_consistent
        if unseen or read.consistency not in NO_MOMENT:
            return read
        from lamella.operations.backup.moving import Settling  # most volumes are held still

        settling = Settling(self.options.require_consistent, self._again, self.repo.clock, self.warn)
        return settling.settled(read, time.monotonic() - started)

    def _again(self, frozen: Frozen, first: Read) -> Read:
        self.session.flush()
        base = Tree(frozen.shape, first.tree.root)
        return self._read(frozen, first.way, base, reading.everything(frozen.volume, frozen.shape), Watch())

    def _read(
        self, frozen: Frozen, way: Way, base: Tree | None, tasks: Iterable[Task], watch: Watch | None = None
    ) -> Read:
        watch = watch or self.recorder.watch(frozen, way)
        with self._differences(frozen, way) as differences:
            reader = replace(self.reader(frozen, base), differences=differences)
            tree = reader.read(frozen.volume, tasks, frozen.plan.volume, self.reporter, watch)
        consistency = frozen.volume.consistency()
        if self.options.before and consistency == Consistency.LIVE:
            consistency = Consistency.QUIESCED
        return Read(frozen, way, tree, int(consistency))

    def _differences(self, frozen: Frozen, way: Way) -> AbstractContextManager[Differences | None]:
        """What this host kept of the base, if chunks may be stored as differences from that."""
        entry = frozen.plan.entry
        if not self.options.deltas or entry is None or way.mode != INCREMENTAL:
            return nullcontext()
        from lamella.operations.writing.differences import differences  # where the user asks for them

        return differences(frozen.source, entry.checkpoint, frozen.shape.chunk_size, self.options.compression)

    def reader(self, frozen: Frozen, base: Tree | None, kind: type[VolumeReader] = VolumeReader) -> VolumeReader:
        """The reader of a volume, which stores what `base` has not."""
        return kind(
            self.repo,
            self.session.packer(frozen.plan.domain_id),
            frozen.shape,
            base,
            compression=self.options.compression,
            check_all=self.options.check_all,
            check_base=base is not None and not self.repo.blobs.complete(base.root),
            workers=self.options.workers or default_workers(),
            bucket=self.bucket,
        )
