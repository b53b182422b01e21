"""thin_delta and thin_dump: which versions are trusted, and their output under a reservation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from typing import Final

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost, SourceError
from lamella.base.extents import Extent
from lamella.run.spawn import run, stream
from lamella.sources.lvm import thin_xml
from lamella.sources.lvm.commands import QUERY_SECONDS

_DELTA_SECONDS: Final = 3600.0
_OLDEST: Final = (0, 7, 4)
_BROKEN: Final = ((1, 0, 0), (1, 0, 6))
"""From the first, before the second: thin_delta misread its options and ranges (CHANGES of 1.0.6)."""
_MAP_GRAIN: Final = 1 << 16
"""Every size of a pool block is a multiple of this."""
_VERSION: Final = re.compile(r"\d+(?:\.\d+)+")


def version_of(text: str) -> tuple[int, ...]:
    """The version in what a tool says of itself, as numbers; empty if there is none."""
    found = _VERSION.search(text)
    return tuple(int(part) for part in found[0].split(".")) if found and len(found[0]) < 64 else ()


def fault_of(version: tuple[int, ...]) -> str:
    """Why a version of thin_delta is not used; empty if it is."""
    shown = ".".join(map(str, version))
    if not version:
        return "it does not state its version"
    if version < _OLDEST:
        return f"version {shown} is too old"
    if _BROKEN[0] <= version < _BROKEN[1]:
        return f"version {shown} is known to be wrong; 1.0.6 is right"
    return ""


@cache
def _checked_version() -> str:
    try:
        said = run(["thin_delta", "--version"], timeout_seconds=QUERY_SECONDS, error=SourceError)
    except SourceError as error:
        return error.message
    return fault_of(version_of(said.decode("ascii", "replace")))


def require_thin_delta() -> None:
    """Raise CheckpointLost if the installed thin_delta cannot be relied on, or there is none."""
    fault = _checked_version()
    if fault:
        raise CheckpointLost(f"thin_delta cannot be used: {fault}")


def delta(device: str, old: tuple[int, int], new: tuple[int, int], grain: int) -> Delta:
    """The ranges that may differ between two thin devices, each given as its id and its size in bytes.

    `device` is the pool's metadata, of which a snapshot is reserved. Raises CheckpointLost.
    """
    (old_id, old_size), (new_id, new_size) = old, new
    # Never the option right before the path: 0.9 would take it for a block number.
    command = ["thin_delta", "--metadata-snap", "--thin1", str(old_id), "--thin2", str(new_id), device]
    changed = ChunkSet()
    with _output(command) as pieces:
        for extent in thin_xml.differing(pieces, old_id, new_id):
            _add(changed, extent, new_size, grain)
    return Delta.bounded(grain, old_size, new_size, changed, ChunkSet())


def mapped(device: str, thin_id: int, size: int) -> Iterator[Extent]:
    """The ranges that a thin device of `size` bytes maps, ascending. Conditions and errors are those of `delta`.

    All of it is read before this returns, into a bit for each 64 KiB.
    """
    blocks = ChunkSet()
    with _output(["thin_dump", "--metadata-snap", "--dev-id", str(thin_id), device]) as pieces:
        for extent in thin_xml.mapped(pieces, thin_id):
            _add(blocks, extent, size, _MAP_GRAIN)
    return (Extent(first * _MAP_GRAIN, min(end * _MAP_GRAIN, size)) for first, end in blocks.runs())


@contextmanager
def _output(command: list[str]) -> Iterator[Iterator[bytes]]:
    pieces = stream(command, timeout_seconds=_DELTA_SECONDS, error=CheckpointLost)
    with closing(pieces):
        yield pieces


def _add(chunks: ChunkSet, extent: Extent, size: int, grain: int) -> None:
    """Add the part of a range that lies in a volume of `size` bytes, widened to the grid."""
    if extent.start < size:
        chunks.add(extent.start // grain, -(-min(extent.end, size) // grain))
