"""Restoring a volume: plan, write, read everything back and compare, and only then give it its name."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lamella.base.errors import LamellaError, UsageError
from lamella.base.events import Progress, Reporter, Warned, silent
from lamella.operations.restore.filling import Filling
from lamella.operations.shared.selection import Selected
from lamella.operations.shared.streaming import VolumeStream, identify_chunk
from lamella.repository.repository import Repository
from lamella.run.pipeline import default_workers, ordered_map
from lamella.sources.base import PoolLimits
from lamella.sources.target import OldState, Target
from lamella.sources.targets import choose_target

_FOR_EACH_PROCESSOR, _MOST_WORKERS = 3, 8
"""Workers wait for disks and stores most of the time (measured: decision 0046); each holds some 12 MiB."""


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """How to restore. `overwrite` consents to replacing what is at the target; `in_place` gives up its old state."""

    workers: int | None = None
    overwrite: bool = False
    in_place: bool = False
    pool: str | None = None
    """The thin pool of a new thin volume."""
    pool_limits: PoolLimits | None = None


@dataclass(slots=True)
class RestoreResult:
    """A volume that was restored and compared."""

    path: Path
    bytes_written: int
    compared_bytes: int
    tail_bytes: int
    seconds: float


def plain_bytes(count: int) -> str:
    """A number of bytes, to the byte."""
    return f"{count} bytes"


def plan_restore(
    repo: Repository, selected: Selected, target: Path, options: RestoreOptions | None = None
) -> RestorePlan:
    """Decide how a volume would be restored. Raises UsageError, IntegrityError, StoreError."""
    if not selected.snapshot.added.usable:
        raise UsageError("this snapshot needs a newer version of lamella", obj=selected.text)
    repo.refresh_map()
    return RestorePlan(repo, selected, target, options or RestoreOptions())


def data_bytes(repo: Repository, selected: Selected) -> int:
    """What a restore writes at most: the chunks of a snapshot that hold data. Raises IntegrityError, StoreError."""
    repo.refresh_map()
    tree = repo.tree(selected.snapshot)
    shape = tree.shape
    root = repo.tree_reader(selected.snapshot.added.domain_id).node(shape, tree.root, shape.depth - 1, 0)
    return min(root.data_below * shape.chunk_size, shape.size)


class RestorePlan:
    """What a restore will do."""

    def __init__(self, repo: Repository, selected: Selected, path: Path, options: RestoreOptions) -> None:
        self._repo = repo
        self._selected = selected
        self._options = options
        self._stream = VolumeStream(repo, selected)
        self._target: Target = choose_target(
            path,
            overwrite=options.overwrite,
            in_place=options.in_place,
            pool=options.pool,
            limits=options.pool_limits,
        )
        self.target = path
        self.volume = selected.volume_name
        self.snapshot = selected.snapshot.name
        self.size = self._stream.shape.size
        self.data_bytes = data_bytes(repo, selected)
        self.in_place = self._target.old_state == OldState.LOST
        self.replaces = self._target.old_state != OldState.NONE

    def lines(self, shown: Callable[[int], str] = plain_bytes) -> list[str]:
        """The plan for people; `shown` writes a number of bytes."""
        if self.in_place:
            how = f"{self.target} is overwritten in place; its old state is lost, and mixed if this is interrupted"
        elif self.replaces:
            how = f"{self.target} is replaced once the restored volume has been compared"
        else:
            link = self.target.is_symlink()
            how = f"{self.target.resolve()} is created" + (f", to which {self.target} leads" if link else "")
        return [
            f"restore {self._selected.text}: {shown(self.size)}, of which at most {shown(self.data_bytes)} are data",
            how,
        ]

    def execute(self, reporter: Reporter = silent) -> RestoreResult:
        """Do it. What cannot be completed stays under a name that says so, and the next attempt goes on from there.

        Raises UsageError or SourceError for the target, IntegrityError if anything cannot be read or compares wrong.
        """
        started = time.monotonic()
        target = self._target
        target.prepare(self.size, self.data_bytes)
        try:
            written, compared = self._fill(reporter)
            target.finish()
            for note in target.notes:
                reporter(Warned(note, str(target.path)))
        except LamellaError as error:
            left = target.abandon()
            error.hint = error.hint or f"what was restored so far is in {left}"
            raise
        except BaseException:
            target.abandon()
            raise
        return RestoreResult(target.path, written, compared, target.tail_bytes, round(time.monotonic() - started, 3))

    def _fill(self, reporter: Reporter) -> tuple[int, int]:
        """Write and compare everything. Returns the bytes written and compared."""
        filling = Filling(self._stream, identify_chunk(self._repo, self._selected), self._target)
        workers = self._options.workers or min(_MOST_WORKERS, _FOR_EACH_PROCESSOR * default_workers())
        done = written = compared = 0
        # What cannot be proven at once is read a second time, which counts as much as the first.
        total = self.data_bytes if self._target.is_direct(0, 0) else 2 * self.data_bytes
        for part in ordered_map(filling.fill, filling.pieces(), workers=workers):
            written += part.written
            done += part.data
            compared += part.proven_bytes
            filling.note(part)
            reporter(Progress("restore", self.volume, min(done, total), total))
        self._target.settle()
        for count in ordered_map(filling.prove, filling.unproven(), workers=workers):
            compared += count
            reporter(Progress("restore", self.volume, min(done + compared, total), total))
        return written, compared
