"""Restoring a volume: plan, write, read everything back and compare, and only then give it its name."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from lamella.base.errors import LamellaError, UsageError, shown_bytes
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
    """Options of a restore. `overwrite` consents to replacing the target; `in_place` gives up its old state."""

    workers: int | None = None
    overwrite: bool = False
    in_place: bool = False
    pool: str | None = None
    """The thin pool of a new thin volume."""
    pool_limits: PoolLimits | None = None
    trust_local: bool = False
    """Compare only what differs from a moment that this host kept, and a sample (decision 0050)."""
    checkpoint_dir: Path | None = None
    """Where checkpoints are, if not in their default place."""
    made_empty: bool = False
    """The target was made for this restore and is empty: it may begin as a checkpoint."""


@dataclass(slots=True)
class RestoreResult:
    """A volume that was restored and compared."""

    path: Path
    bytes_written: int
    compared_bytes: int
    tail_bytes: int
    seconds: float


def plan_restore(
    repo: Repository, selected: Selected, target: Path, options: RestoreOptions | None = None
) -> RestorePlan:
    """Decide how a volume would be restored. Raises UsageError, IntegrityError, StoreError."""
    if not selected.snapshot.added.usable:
        raise UsageError("this snapshot needs a newer version of lamella", obj=selected.text)
    options = options or RestoreOptions()
    looks = not options.in_place or options.made_empty or str(target).startswith("lvm:")
    if options.trust_local or (looks and (repo.memory.directory / "ledger.json").exists()):
        from lamella.operations.restore.kept import KeptPlan  # most restores are on another machine, or another disk

        return KeptPlan(repo, selected, target, options)
    return RestorePlan(repo, selected, target, options)


def data_bytes(repo: Repository, selected: Selected) -> int:
    """The bytes that a restore writes at most: the chunks that hold data. Raises IntegrityError, StoreError."""
    repo.refresh_map()
    tree = repo.tree(selected.snapshot)
    shape = tree.shape
    root = repo.tree_reader(selected.snapshot.added.domain_id).node(shape, tree.root, shape.depth - 1, 0)
    return min(root.data_below * shape.chunk_size, shape.size)


class RestorePlan:
    """The plan of a restore."""

    said_of_kept = ""
    """The use of this host's checkpoint in a few words for people, once it was executed."""

    def __init__(self, repo: Repository, selected: Selected, path: Path, options: RestoreOptions) -> None:
        self._repo = repo
        self.selected = selected
        self._options = options
        self.data_bytes = data_bytes(repo, selected)
        self._stream = VolumeStream(repo, selected)
        self._target: Target = choose_target(
            path,
            overwrite=options.overwrite,
            in_place=options.in_place,
            pool=options.pool,
            limits=options.pool_limits,
        )
        self.target = path
        self.volume, self.snapshot = selected.volume_name, selected.snapshot.name
        self.size = self._stream.shape.size
        self.in_place = self._target.old_state == OldState.LOST
        self.replaces = self._target.old_state != OldState.NONE
        self.left: Path | None = None
        """Where an attempt that ended early left what it had restored."""

    def lines(self) -> list[str]:
        """The plan for people."""
        if self.in_place:
            how = f"will overwrite {self.target} in place; its old state is lost, and mixed if this is interrupted"
        elif self.replaces:
            how = f"will replace {self.target} once the restored volume has been compared"
        else:
            place = self.target.resolve() if self.target.parent.is_dir() else self.target  # lvm: and rbd: are no paths
            how = f"will create {place}" + (f", to which {self.target} leads" if self.target.is_symlink() else "")
        size, data = shown_bytes(self.size), shown_bytes(self.data_bytes)
        return [f"restore {self.selected.text}: {size}, of which at most {data} are data", how]

    def use_of_kept(self) -> dict[str, object]:
        """The use of this host's checkpoint in the restore; empty where none was looked for."""
        return {}

    def execute(self, reporter: Reporter = silent) -> RestoreResult:
        """Do it. What cannot be completed stays under a name that says so, and the next attempt continues from there.

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
        except BaseException as error:
            self.left = target.abandon()
            if isinstance(error, LamellaError):
                error.hint = error.hint or f"what was restored so far is in {self.left}"
            raise
        return RestoreResult(target.path, written, compared, target.tail_bytes, round(time.monotonic() - started, 3))

    def _fill(self, reporter: Reporter) -> tuple[int, int]:
        """Write and compare everything. Returns the bytes written and compared."""
        filling = self._filling()
        workers = self._options.workers or min(_MOST_WORKERS, _FOR_EACH_PROCESSOR * default_workers())
        done = written = compared = 0
        # What cannot be proven at once is read a second time: each time counts for a half.
        rounds, total = 1 if self._target.is_direct(0, 0) else 2, self.data_bytes
        for part in ordered_map(filling.fill, filling.pieces(), workers=workers):
            written += part.written
            done += part.data
            compared += part.proven_bytes
            filling.note(part)
            reporter(Progress("restore", self.volume, min(done // rounds, total), total))
        self._target.settle()
        for count in ordered_map(filling.prove, filling.unproven(), workers=workers):
            compared += count
            reporter(Progress("restore", self.volume, min((done + compared) // rounds, total), total))
        return written, compared

    def _filling(self) -> Filling:
        return Filling(self._stream, identify_chunk(self._repo, self.selected), self._target)
