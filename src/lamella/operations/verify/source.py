"""Comparing a snapshot with its live source: differences are news, not damage."""

from __future__ import annotations

from collections.abc import Iterator

from lamella.base.errors import SourceError
from lamella.base.events import Progress, Reporter
from lamella.format.node import Slot
from lamella.operations.shared.findings import VerifyResult
from lamella.operations.shared.reading import RANGE, Buffers, is_zero
from lamella.operations.shared.selection import Selected
from lamella.operations.shared.streaming import identify_chunk, live_source
from lamella.packs.tree import Run
from lamella.repository.repository import Repository
from lamella.run.pipeline import ordered_map
from lamella.sources.base import FrozenVolume, Source


def compare_with_source(
    repo: Repository, one: Selected, source: Source | None, result: VerifyResult, reporter: Reporter, workers: int
) -> bool:
    """Read the source and compare it with the snapshot; each differing range becomes a note.

    False, and a note, if the source could not be read.
    """
    try:
        live = source if source is not None else live_source(repo, one)
        with live.freeze() as frozen:
            comparing = _Comparing(repo, one, frozen)
            compared = 0
            differing: list[tuple[int, int]] = []
            for length, different in ordered_map(comparing.compare, comparing.pieces(), workers=workers):
                compared += length
                for start, end in different:
                    if differing and differing[-1][1] == start:
                        differing[-1] = (differing[-1][0], end)
                    else:
                        differing.append((start, end))
                reporter(Progress("verify", one.volume_name, compared, frozen.size))
            if frozen.size != one.snapshot.added.size:
                text = f"the source has {frozen.size} bytes now, the snapshot {one.snapshot.added.size}"
                result.note("source", one.text, text)
    except SourceError as error:
        result.note("source", one.text, f"not compared: {error.message}")
        return False
    result.checked_bytes += compared
    for start, end in differing[:100]:
        result.note("source", one.text, f"bytes {start} to {end} differ from the source as it is now")
    if len(differing) > 100:
        result.note("source", one.text, f"and {len(differing) - 100} more ranges")
    return True


class _Comparing:
    def __init__(self, repo: Repository, one: Selected, frozen: FrozenVolume) -> None:
        self._repo = repo
        self._one = one
        self._frozen = frozen
        self._tree = repo.tree(one.snapshot)
        self._identify = identify_chunk(repo, one)
        self._buffers = Buffers(self._tree.shape.chunk_size)

    def pieces(self) -> Iterator[Run]:
        """Runs of at most one range each."""
        step = max(1, RANGE >> self._tree.shape.chunk_log2)
        for run in self._repo.tree_reader(self._one.snapshot.added.domain_id).runs(self._tree):
            for first in range(run.first, run.end, step):
                yield Run(first, min(first + step, run.end), run.slot)

    def compare(self, run: Run) -> tuple[int, list[tuple[int, int]]]:
        """Bytes compared and the ranges that differ."""
        shape = self._tree.shape
        different: list[tuple[int, int]] = []
        compared = 0
        for chunk in range(run.first, run.end):
            start, length = chunk << shape.chunk_log2, shape.chunk_length(chunk)
            here = min(length, self._frozen.size - start)
            if here <= 0 or not self._same(run, start, length, here):
                different.append((start, start + length))
            compared += max(here, 0)
        return compared, different

    def _same(self, run: Run, start: int, length: int, here: int) -> bool:
        view = self._buffers.view(here)
        self._frozen.read_into(start, view)
        if here < length:
            return False
        return is_zero(view) if run.slot in (Slot.HOLE, Slot.ZERO) else self._identify(view) == run.slot
