"""The difference between two snapshots of a volume; the cost follows the difference."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from lamella.base.errors import UsageError
from lamella.format.node import Shape
from lamella.operations.shared.change_map import SCHEMA
from lamella.operations.shared.selection import Selected
from lamella.packs.tree_changes import changes
from lamella.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class DiffResult:
    """Ranges of the second snapshot that differ from the first: (offset, length, "data" or "zero"), ascending.

    `changed_bytes` counts the data ranges, `zeroed_bytes` the others; both on the grid of `chunk_size` bytes.
    """

    size_a: int
    size_b: int
    chunk_size: int
    changed_bytes: int
    zeroed_bytes: int
    ranges: list[tuple[int, int, str]]


def compare(repo: Repository, a: Selected, b: Selected) -> DiffResult:
    """Compare two snapshots of one volume by their trees. Raises UsageError, IntegrityError, StoreError."""
    one, other = a.snapshot.added, b.snapshot.added
    if (one.volume_id, one.chunk_log2, one.domain_id) != (other.volume_id, other.chunk_log2, other.domain_id):
        raise UsageError("only snapshots of one volume and chunk size can be compared", obj=f"{a.text} {b.text}")
    repo.refresh_map()
    return summed(one.size, repo.tree(b.snapshot).shape, _changes(repo, a, b))


def summed(size_a: int, shape: Shape, changes: Iterator[tuple[int, int, str]]) -> DiffResult:
    """The difference made of ascending ranges of the second state, whose shape is given."""
    ranges = list(_merged(changes))
    totals = {word: sum(length for _, length, kind in ranges if kind == word) for word in ("data", "zero")}
    return DiffResult(size_a, shape.size, shape.chunk_size, totals["data"], totals["zero"], ranges)


def _changes(repo: Repository, a: Selected, b: Selected) -> Iterator[tuple[int, int, str]]:
    new = repo.tree(b.snapshot)
    reader = repo.tree_reader(b.snapshot.added.domain_id)
    log2 = new.shape.chunk_log2
    for run, old in changes(reader, repo.tree(a.snapshot), new):
        start, end = run.first << log2, min(run.end << log2, new.shape.size)
        if run.slot == old:
            continue  # the same chunk, stored in another way
        if isinstance(run.slot, bytes):
            yield start, end - start, "data"
        elif isinstance(old, bytes):
            yield start, end - start, "zero"


def _merged(ranges: Iterator[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    current: tuple[int, int, str] | None = None
    for offset, length, kind in ranges:
        if current is not None and current[2] == kind and current[0] + current[1] == offset:
            current = (current[0], current[1] + length, kind)
            continue
        if current is not None:
            yield current
        current = (offset, length, kind)
    if current is not None:
        yield current


def write_map(result: DiffResult, base: str) -> bytes:
    """A comparison of two snapshots as a change map from `base`, on the chunk grid (schema `lamella-map/1`)."""
    ranges = [[offset, length, kind] for offset, length, kind in result.ranges]
    content = {"schema": SCHEMA, "size": result.size_b, "base": base, "ranges": ranges}
    return json.dumps(content, separators=(",", ":")).encode("ascii") + b"\n"


def write_lines(result: DiffResult) -> bytes:
    """The same as lines `START LENGTH data|zero|same`, which cover the second snapshot without a gap (borg's form)."""
    lines, end = [], 0
    for offset, length, kind in [*result.ranges, (result.size_b, 0, "")]:
        if offset > end:
            lines.append(f"{end} {offset - end} same")
        if length:
            lines.append(f"{offset} {length} {kind}")
        end = offset + length
    return "\n".join([*lines, ""]).encode("ascii")
