"""Restoring with what this host kept of the volume: a moment whose bytes are those of a snapshot (decision 0050).

A new file begins as a clone of the moment, a new thin volume as a snapshot of it. Every chunk of it is read back and
its id recomputed, as of any unfinished file, so nothing is believed; only what differs is fetched. With `trust_local`
the record of the moment, the file system that shares its blocks, and the change map of a volume that is written over
in place are believed: then only what they say differs is looked at, and a sample of the rest. If the sample shows
anything else, everything is compared.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lamella.base.chunkset import ChunkSet
from lamella.base.errors import CheckpointLost, IntegrityError, LamellaError, SourceError
from lamella.base.events import Reporter, silent
from lamella.crypto.chunk_id import Identify
from lamella.format.node import Shape
from lamella.operations.moments.monitor import delta_from
from lamella.operations.restore.comparing import Comparison
from lamella.operations.restore.filling import Filling, Row
from lamella.operations.restore.restore import RestoreOptions, RestorePlan, RestoreResult
from lamella.operations.shared.kept import KeptMoment, kept_moment
from lamella.operations.shared.ranges import RANGE
from lamella.operations.shared.selection import Selected
from lamella.operations.shared.streaming import ChunkBatch, VolumeStream, identify_chunk
from lamella.packs.tree import SlotRun
from lamella.packs.tree_changes import changes
from lamella.repository.repository import Repository
from lamella.sources.base import Keeping
from lamella.sources.checkpoint_files import CheckpointFiles
from lamella.sources.local_target import NewFile
from lamella.sources.places import place_of
from lamella.sources.registry import open_kept_source
from lamella.sources.seeded_file import Seeded, SeededFile, SeededInPlace
from lamella.sources.target import OldState, Target
from lamella.sources.used_target import InPlaceFile

Piece = ChunkBatch | SlotRun

_ONE_IN = 100
_LEAST_CHUNKS, _MOST_BYTES = 64, 1 << 30
"""The sample: 64 chunks or one in 100, whichever is more, at most 1 GiB."""
_CLONING = ("btrfs", "lvm_thin", "reflink")


@dataclass(slots=True)
class KeptUse:
    """The use of a checkpoint in a restore; `why_not`: why none served, or why everything was compared after all."""

    snapshot: str = ""
    """The snapshot whose bytes the moment holds; empty if no moment served."""
    trusted: bool = False
    """Only what differs and a sample was compared."""
    sampled_bytes: int = 0
    why_not: str = ""


class KeptPlan(RestorePlan):
    """A restore that uses a checkpoint where it can, and does without it where it cannot."""

    def __init__(self, repo: Repository, selected: Selected, path: Path, options: RestoreOptions) -> None:
        super().__init__(repo, selected, path, options)
        self.kept = KeptUse()
        self.differing_bytes: int | None = None
        """Bytes that are written at most where the target begins as a clone; None where it does not."""
        self._changed = ChunkSet()
        self._live: KeptMoment | None = None
        try:
            self._use(kept_moment(repo, selected))
        except (SourceError, IntegrityError) as error:  # it is the moment's trouble, not that of the wanted snapshot
            self.kept = KeptUse(why_not=error.message)

    def execute(self, reporter: Reporter = silent) -> RestoreResult:
        if self._live is not None and self._options.trust_local:
            try:
                self._changed |= self._changed_since(self._live)
            except LamellaError as error:
                self.kept = KeptUse(why_not=error.message)
        result = super().execute(reporter)
        self.said_of_kept = self._in_words()
        return result

    def _use(self, moment: KeptMoment) -> None:
        """Choose how the moment can serve this target. Raises CheckpointLost."""
        if moment.entry.driver not in _CLONING:
            raise CheckpointLost(f"checkpoints of the {moment.entry.driver} driver are not used yet")
        self._changed = self._changed_from(moment)
        self._begin(moment)
        # Compared with all that it holds, the moment's own volume does not need the moment.
        self.kept = KeptUse(moment.snapshot.name if self._live is None or self._options.trust_local else "")

    def _begin(self, moment: KeptMoment) -> None:
        """Let the target begin as the moment, or the moment's own volume with what it holds. Raises CheckpointLost."""
        entry, keeping, files = moment.entry, self._keeping, isinstance(self._target, NewFile | InPlaceFile)
        if (entry.driver == "lvm_thin") == files:
            raise CheckpointLost("the checkpoint is in another kind of storage than the target")
        if not files:
            from lamella.sources.lvm.held_target import held_import, held_target  # most volumes are files

            words = entry.identity, entry.checkpoint, keeping, self._expected_bytes()
            made = self._options.made_empty
            self._target = held_import(self.target, *words) if made else held_target(self._target, *words)
            self._live = None if made or self._target.old_state == OldState.NONE else moment
            return
        place = str(self.target) if self._options.made_empty else place_of(entry.identity, self._repo.host.machine)
        if place is None:
            raise CheckpointLost("the volume that the checkpoint is of is not on this machine")
        kept = CheckpointFiles(Path(place), entry.identity, keeping, entry.driver)
        if isinstance(self._target, NewFile):
            self.differing_bytes = expected = self._expected_bytes()
            self._target = SeededFile(
                self.target,
                overwrite=self._options.overwrite,
                files=kept,
                checkpoint=entry.checkpoint,
                differing_bytes=expected,
            )
        elif self._options.made_empty:
            self._target = SeededInPlace(self.target, kept, entry.checkpoint, self._expected_bytes())
        elif str(self.target.resolve()) != place:
            raise CheckpointLost("the target is not the volume that the checkpoint is of")
        else:
            self._live = moment

    def _expected_bytes(self) -> int:
        """The bytes to be written to a target that begins as the moment. Raises CheckpointLost if it is most of it."""
        differing = min(self.data_bytes, len(self._changed) * self._stream.shape.chunk_size)
        if differing > self.data_bytes // 2:
            raise CheckpointLost("more than half of the volume differs from the checkpoint")
        return differing

    @property
    def _keeping(self) -> Keeping:
        host = self._repo.host
        return Keeping(host.owner, self._options.checkpoint_dir, records=host.source_records)

    def _changed_from(self, moment: KeptMoment) -> ChunkSet:
        """The chunks that differ between the moment's snapshot and the wanted one. Raises IntegrityError."""
        found, shape = ChunkSet(), self._stream.shape
        reader = self._repo.tree_reader(self._stream.domain_id)
        for run, _ in changes(reader, self._repo.tree(moment.snapshot), self._stream.tree):
            found.add(run.first, run.end)
        return _with_ends(found, moment.entry.size, shape)

    def _changed_since(self, moment: KeptMoment) -> ChunkSet:
        """The chunks in which the live volume may differ from the moment. Raises SourceError at any doubt."""
        entry, shape, repo = moment.entry, self._stream.shape, self._repo
        text = str(self.target)
        place = text if text.startswith("lvm:") else str(self.target.resolve())
        source = open_kept_source(place, repo.host.machine, self._keeping, entry.driver)
        if source.identity != entry.identity:
            raise CheckpointLost("the checkpoint belongs to another source")
        with repo.host.source_lock(source.identity, 0.0), source.freeze() as frozen:
            delta = delta_from(repo.host, source, frozen, entry.checkpoint, shape.chunk_size)
        if (delta.base_size, delta.grain) != (entry.size, shape.chunk_size):
            raise CheckpointLost("the checkpoint has another size than the snapshot it belongs to")
        return _with_ends(delta.changed | delta.zeroed, delta.size, shape)

    # -- trusting ---------------------------------------------------------------------------------------------------

    def _filling(self) -> Filling:
        everything = super()._filling()
        if isinstance(self._target, Seeded) and self._target.why_not:
            self.kept = KeptUse(why_not=self._target.why_not)
        if not self._options.trust_local or not self.kept.snapshot:
            return everything
        identify = identify_chunk(self._repo, self.selected)
        trusting = _Trusting(self._stream, identify, self._target, self._pieces)
        self.kept.trusted = True
        for piece in self._pieces(self._sample()):
            right = trusting.right_bytes(piece)
            if right is None:
                why = "a sample shows that the checkpoint is not what it was: everything was compared"
                self.kept = KeptUse(self.kept.snapshot, why_not=why)
                return everything
            self.kept.sampled_bytes += right
        return trusting

    def _sample(self) -> ChunkSet:
        """Chunks chosen by chance among those that are believed."""
        found, chance, shape = ChunkSet(), random.SystemRandom(), self._stream.shape
        most = max(1, _MOST_BYTES >> shape.chunk_log2)
        for _ in range(min(max(_LEAST_CHUNKS, shape.chunks // _ONE_IN), most)):
            chunk = chance.randrange(shape.chunks)
            found.add(chunk, chunk + 1)
        return found - self._changed

    def _pieces(self, chunks: ChunkSet | None = None) -> Iterator[Piece]:
        """The volume's slots for these chunks, in order; without any, for those that differ."""
        reader = self._repo.tree_reader(self._stream.domain_id)
        per_piece = max(1, RANGE >> self._stream.shape.chunk_log2)
        rows: list[Row] = []
        for first, end in (self._changed if chunks is None else chunks).runs():
            for run in reader.runs(self._stream.tree, first, end):
                if isinstance(run.slot, bytes):
                    rows.append((run.first, run.slot))
                if rows and (len(rows) == per_piece or not isinstance(run.slot, bytes)):
                    yield ChunkBatch(tuple(rows))
                    rows = []
                if not isinstance(run.slot, bytes):
                    yield run
        if rows:
            yield ChunkBatch(tuple(rows))

    def _in_words(self) -> str:
        use = self.kept
        if use.trusted:
            return f"compared what differs from the checkpoint of {use.snapshot}, and a sample of the rest"
        if use.snapshot:
            return f"began as the checkpoint of {use.snapshot}"
        return f"everything was compared: {use.why_not}" if self._options.trust_local else ""

    def use_of_kept(self) -> dict[str, object]:
        use = self.kept
        return {
            "kept": use.snapshot or None,
            "trusted": use.trusted,
            "sampled_bytes": use.sampled_bytes,
            "reason": use.why_not,
        }


class _Trusting(Comparison):
    """Fills and proves the pieces that differ, and no others."""

    def __init__(
        self, stream: VolumeStream, identify: Identify, target: Target, differing: Callable[[], Iterator[Piece]]
    ) -> None:
        super().__init__(stream, identify, target)
        self._differing = differing

    def pieces(self) -> Iterator[Piece]:
        return self._differing()

    def unproven(self) -> Iterator[Piece]:
        for piece in self._differing():
            if isinstance(piece, SlotRun):
                yield piece
            elif left := tuple(row for row in piece.chunks if bisect(self._proven, row[0]) % 2 == 0):
                yield ChunkBatch(left)


def _with_ends(changed: ChunkSet, before: int, shape: Shape) -> ChunkSet:
    """Where two states end at different bytes, everything from the smaller end on may differ; no chunk beyond."""
    if before != shape.size:
        changed.add(min(before, shape.size) // shape.chunk_size, shape.chunks)
    changed.discard(shape.chunks, 1 << 62)
    return changed
