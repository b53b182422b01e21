"""Restoring several volumes into a directory: each has a result of its own, and no failure keeps the others back.

The same command, given again, goes on: files that are right already are compared and stay, an unfinished file is gone
on with, and what failed is tried once more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from lamella.base.errors import LamellaError, UsageError, shown_bytes
from lamella.base.events import Progress, Reporter, silent
from lamella.operations.restore.comparing import Comparison
from lamella.operations.restore.kept import KeptPlan
from lamella.operations.restore.restore import RestoreOptions, RestorePlan, plan_restore
from lamella.operations.shared.selection import Selected
from lamella.operations.shared.streaming import VolumeStream, identify_chunk
from lamella.repository.repository import Repository
from lamella.run.pipeline import default_workers, ordered_map
from lamella.sources.local_target import PARTIAL_SUFFIX
from lamella.sources.standing_file import StandingFile

RESTORED, UNCHANGED, FAILED = "restored", "unchanged", "failed"


@dataclass(frozen=True, slots=True)
class RestoredVolume:
    """The result for one volume. `result` is RESTORED, UNCHANGED (its file was right already) or FAILED."""

    volume: str
    path: Path
    result: str
    bytes_written: int = 0
    compared_bytes: int = 0
    seconds: float = 0.0
    error: LamellaError | None = None


@dataclass(frozen=True, slots=True)
class VolumesPlan:
    """The volumes to restore, and those that cannot even be begun."""

    repo: Repository
    directory: Path
    options: RestoreOptions
    parts: tuple[RestorePlan, ...]
    failed: tuple[RestoredVolume, ...]
    _made: set[tuple[int, int]] = field(default_factory=set)
    """Device and inode of each file that is right now."""

    @property
    def replaced(self) -> list[Path]:
        """The files that may lose what they hold."""
        consent = self.options.overwrite or self.options.in_place
        return [part.target for part in self.parts if consent and part.replaces]

    def require_space(self) -> None:
        """Raise LamellaError unless all volumes fit: each one is whole before the file that it replaces goes."""
        there = os.statvfs(self.directory)
        free = there.f_bavail * there.f_frsize
        left, short = free, 0
        for part in self.parts:
            old, partial = _bytes_of(part.target), _bytes_of(part.target.with_name(part.target.name + PARTIAL_SUFFIX))
            if part.replaces and not (self.options.overwrite or part.in_place):
                continue  # it is compared, and neither written nor replaced
            differing = part.differing_bytes if isinstance(part, KeptPlan) else None
            left -= max(0, part.data_bytes - (old if part.in_place else partial)) if differing is None else differing
            short = max(short, -left)
            # What a clone replaces may share its blocks with the checkpoint.
            left += 0 if part.in_place or differing is not None else old
        if short:
            message = f"not enough space in {self.directory}: {shown_bytes(short)} too few for all volumes"
            hint = "nothing was written; free some space, or restore fewer volumes"
            raise LamellaError(message, obj=str(self.directory), hint=hint)

    def execute(self, reporter: Reporter = silent) -> Iterator[RestoredVolume]:
        """Restore one after another; yields what came of each of `parts`, in their order. Raises no LamellaError."""
        for part in self.parts:
            reporter(Progress("restore", part.volume, 0, part.data_bytes))
        for part in self.parts:
            started = time.monotonic()
            try:
                done = self._done(part, reporter)
                found = part.target.stat()
                self._made.add((found.st_dev, found.st_ino))
            except LamellaError as error:
                done = RestoredVolume(part.volume, part.target, FAILED, error=error)
            except OSError as error:
                said = LamellaError(error.strerror or str(error), obj=str(part.target))
                done = RestoredVolume(part.volume, part.target, FAILED, error=said)
            reporter(Progress("restore", part.volume, part.data_bytes, part.data_bytes))
            yield replace(done, seconds=round(time.monotonic() - started, 3))

    def _done(self, part: RestorePlan, reporter: Reporter) -> RestoredVolume:
        path = part.target
        if path.exists():
            found = path.stat()
            if (found.st_dev, found.st_ino) in self._made:
                raise UsageError(
                    f"another volume is restored to {path} already", obj=str(path), hint="restore it separately"
                )
            compared = None if part.in_place else self._compared(part, reporter)
            if compared is not None:
                return RestoredVolume(part.volume, path, UNCHANGED, 0, compared)
            if not (self.options.overwrite or part.in_place):
                message = f"{path} exists already, and is not {part.volume}@{part.snapshot}"
                raise UsageError(message, obj=str(path), hint="add --overwrite to replace it")
        result = part.execute(reporter)
        return RestoredVolume(part.volume, result.path, RESTORED, result.bytes_written, result.compared_bytes)

    def _compared(self, part: RestorePlan, reporter: Reporter) -> int | None:
        """The number of compared bytes of a file that equals the volume; None for any other file."""
        target = StandingFile(part.target)
        try:
            target.prepare(part.size)
            if target.size != part.size:
                return None
            stream, identify = VolumeStream(self.repo, part.selected), identify_chunk(self.repo, part.selected)
            comparison, done = Comparison(stream, identify, target), 0
            workers = self.options.workers or default_workers()
            with closing(ordered_map(comparison.right_bytes, comparison.pieces(), workers=workers)) as compared:
                for count in compared:
                    if count is None:
                        return None
                    done += count
                    reporter(Progress("restore", part.volume, min(done, part.data_bytes), part.data_bytes))
                return done
        finally:
            target.abandon()


def plan_volumes(
    repo: Repository,
    selected: Sequence[tuple[Selected, Path]],
    directory: Path,
    options: RestoreOptions,
) -> VolumesPlan:
    """Decide how snapshots would be restored to files in a directory, each with the file's path.

    A file that is there is written over where the options say `in_place`; others are new. Raises StoreError.
    """
    parts: list[RestorePlan] = []
    failed: list[RestoredVolume] = []
    for one, path in selected:
        how = replace(options, in_place=options.in_place and path.exists())
        try:
            parts.append(plan_restore(repo, one, path, how))
        except LamellaError as error:
            failed.append(RestoredVolume(one.volume_name, path, FAILED, error=error))
    return VolumesPlan(repo, directory, options, tuple(parts), tuple(failed))


def _bytes_of(path: Path) -> int:
    """The space that a file takes; 0 where there is none."""
    try:
        return path.stat().st_blocks * 512  # stat(2): counted in 512 bytes everywhere
    except OSError:
        return 0
