"""A snapshot as one image file: raw, qcow2, or a tar with its documents. Each is a stream that needs no seeking.

The tree says beforehand what is a hole, so every head can be written before the data.
"""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Iterator, Sequence
from io import RawIOBase
from typing import NamedTuple

from lamella.base.events import Progress, Reporter
from lamella.operations.access.view import PIECE, Part, SnapshotView, Stretch
from lamella.run.pipeline import default_workers, ordered_map

_WINDOW = 1 << 30
_ZEROS = memoryview(bytes(PIECE))

# qcow2 version 3, from the QEMU project's docs/interop/qcow2.txt.
_CLUSTER_LOG2 = 16
_CLUSTER = 1 << _CLUSTER_LOG2
_SECTOR = 512
_L2_ENTRIES = _CLUSTER // 8
_REFCOUNTS = _CLUSTER // 2
"""Entries of 16 bits in a refcount block."""
_COPIED = 1 << 63
_READS_ZERO = 1
_QCOW2_HEAD = struct.Struct(">4sIQIIQIIQQIIQQQQII")

_TAR_BLOCK = 512
_WORTH_A_HOLE = 1 << 20
"""Bytes: a shorter hole in a tar is written as zeros, so that the map of holes stays small."""


class Image(NamedTuple):
    """The bytes of an image, in order."""

    length: int
    parts: Iterator[Part]


def raw(view: SnapshotView, workers: int | None = None) -> Image:
    """The volume as it is."""
    return Image(view.size, _volume(view, _stretches(view, 0, view.size), workers))


def qcow2(view: SnapshotView, workers: int | None = None) -> Image:
    """A qcow2 image without a backing file; holes stay holes, zeros take no space.

    A volume that does not end at a sector is followed by zeros up to the next: qcow2 knows whole sectors only.
    """
    tables = [_table(view, start) for start in range(0, view.size, _L2_ENTRIES * _CLUSTER)]
    layout = _Layout.of(tables)
    return Image(layout.clusters * _CLUSTER, _qcow2_parts(view, tables, layout, workers))


def tar(view: SnapshotView, name: str, time_ms: int, documents: Sequence[tuple[str, bytes]]) -> Image:
    """A tar with `name`/disk.img, sparse as GNU tar writes it (format 1.0), and `name`/documents/... ."""
    mtime = time_ms // 1000
    runs = _data_runs(view)
    numbers = [len(runs) + 1, *(number for run in runs for number in run), view.size, 0]
    holes = "".join(f"{number}\n" for number in numbers).encode("ascii")
    holes += bytes(-len(holes) % _TAR_BLOCK)
    data = sum(length for _, length in runs)
    disk = tarfile.TarInfo(f"{name}/GNUSparseFile.0/disk.img")
    disk.size, disk.mtime, disk.mode = len(holes) + data, mtime, 0o600
    disk.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": f"{name}/disk.img",
        "GNU.sparse.realsize": str(view.size),
    }
    head = disk.tobuf(tarfile.PAX_FORMAT) + holes
    padding = bytes(-data % _TAR_BLOCK)
    tail = padding + b"".join(_tar_document(name, one, content, mtime) for one, content in documents)
    tail += bytes(2 * _TAR_BLOCK)

    def parts() -> Iterator[Part]:
        yield head
        for start, length in runs:
            yield from _volume(view, iter([(start, Stretch(length, False, False))]), None)
        yield tail

    return Image(len(head) + data + len(tail), parts())


def pour(image: Image, target: RawIOBase, volume: str, reporter: Reporter, *, sparse: bool) -> None:
    """Write an image; with `sparse` zeros are left out, which makes holes in a new file. Raises OSError."""
    done = 0
    for part in image.parts:
        if isinstance(part, int):
            done += part
            if sparse:
                target.seek(part, 1)
            else:
                for start in range(0, part, PIECE):
                    _write(target, _ZEROS[: min(PIECE, part - start)])
        else:
            done += len(part)
            _write(target, memoryview(part))
        reporter(Progress("export", volume, min(done, image.length), image.length))
    if sparse:
        target.truncate(done)


def _write(target: RawIOBase, content: memoryview) -> None:
    while content:
        written = target.write(content)
        content = content[written or 0 :]


def _stretches(view: SnapshotView, start: int, end: int) -> Iterator[tuple[int, Stretch]]:
    """The stretches of `[start, end)`, each with its offset."""
    for low in range(start, end, _WINDOW):
        for stretch in view.extents(low, min(_WINDOW, end - low)):
            yield low, stretch
            low += stretch.length


def _volume(view: SnapshotView, stretches: Iterator[tuple[int, Stretch]], workers: int | None) -> Iterator[Part]:
    """The bytes of stretches in order, data decoded by several threads."""

    def pieces() -> Iterator[tuple[int, int, bool]]:
        for start, (length, _, zero) in stretches:
            end = start + length
            while start < end:
                stop = end if zero else min(end, start - start % PIECE + PIECE)
                yield start, stop - start, zero
                start = stop

    def load(piece: tuple[int, int, bool]) -> list[Part]:
        start, length, zero = piece
        return [length] if zero else list(view.parts(start, length))

    for parts in ordered_map(load, pieces(), workers=workers or default_workers()):
        yield from parts


# -- qcow2 ---------------------------------------------------------------------------------------------------------


class _Table(NamedTuple):
    """The plan of an L2 table: its beginning in the volume, the number of data clusters, and whether it is needed."""

    start: int
    data: int
    needed: bool


class _Layout(NamedTuple):
    """Where everything lies, in clusters: the head, the L1 table, the refcounts; then each L2 table and its data."""

    l1: int
    refcount_table: int
    refcount_blocks: int
    clusters: int

    @classmethod
    def of(cls, tables: list[_Table]) -> _Layout:
        """The least number of refcount blocks that count themselves, too."""
        l1 = -(-8 * len(tables) // _CLUSTER)
        content = sum(table.data + table.needed for table in tables)
        blocks = 1
        while True:
            table = -(-8 * blocks // _CLUSTER)
            clusters = 1 + l1 + table + blocks + content
            if blocks * _REFCOUNTS >= clusters:
                return cls(l1, table, blocks, clusters)
            blocks += 1

    @property
    def refcounts_at(self) -> int:
        """The first cluster of the refcount table."""
        return 1 + self.l1

    @property
    def content_at(self) -> int:
        """The first cluster of the first L2 table."""
        return self.refcounts_at + self.refcount_table + self.refcount_blocks


def _table(view: SnapshotView, start: int) -> _Table:
    data, needed = 0, False
    for _, stretch in _stretches(view, start, min(view.size, start + _L2_ENTRIES * _CLUSTER)):
        needed = needed or not stretch.hole
        data += 0 if stretch.zero else -(-stretch.length // _CLUSTER)
    return _Table(start, data, needed)


def _qcow2_parts(view: SnapshotView, tables: list[_Table], layout: _Layout, workers: int | None) -> Iterator[Part]:
    yield _qcow2_head(view.size, len(tables), layout)
    l1: list[int] = []
    at = layout.content_at
    for table in tables:
        l1.append(at << _CLUSTER_LOG2 | _COPIED if table.needed else 0)
        at += table.data + table.needed
    yield _numbers(l1, layout.l1)
    first = layout.refcounts_at + layout.refcount_table
    yield _numbers([first + n << _CLUSTER_LOG2 for n in range(layout.refcount_blocks)], layout.refcount_table)
    for block in range(layout.refcount_blocks):
        used = min(_REFCOUNTS, layout.clusters - block * _REFCOUNTS)
        yield b"\0\1" * used + bytes(2 * (_REFCOUNTS - used))
    at = layout.content_at
    for table in tables:
        if table.needed:
            yield from _qcow2_table(view, table, at + 1, workers)
            at += table.data + 1


def _qcow2_table(view: SnapshotView, table: _Table, at: int, workers: int | None) -> Iterator[Part]:
    """An L2 table, and the data that it maps to the clusters from `at` on."""
    end = min(view.size, table.start + _L2_ENTRIES * _CLUSTER)
    stretches = list(_stretches(view, table.start, end))
    entries: list[int] = []
    for _, (length, hole, zero) in stretches:
        count = -(-length // _CLUSTER)
        if zero:
            entries += [0 if hole else _READS_ZERO] * count
        else:
            entries += [cluster << _CLUSTER_LOG2 | _COPIED for cluster in range(at, at + count)]
            at += count
    yield _numbers(entries, 1)
    data = [(start, stretch) for start, stretch in stretches if not stretch.zero]
    yield from _volume(view, iter(data), workers)
    if data and data[-1][0] + data[-1][1].length == view.size:
        yield bytes(-view.size % _CLUSTER)


def _qcow2_head(size: int, tables: int, layout: _Layout) -> bytes:
    head = _QCOW2_HEAD.pack(
        b"QFI\xfb",
        3,
        0,  # no backing file
        0,
        _CLUSTER_LOG2,
        -(-size // _SECTOR) * _SECTOR,
        0,  # not encrypted
        tables,
        _CLUSTER,
        layout.refcounts_at << _CLUSTER_LOG2,
        layout.refcount_table,
        0,  # no snapshots
        0,
        0,  # no feature that a reader must know, may know, or clears when it writes
        0,
        0,
        4,  # refcounts of 2^4 bits
        _QCOW2_HEAD.size,
    )
    return head + bytes(_CLUSTER - len(head))


def _numbers(numbers: list[int], clusters: int) -> bytes:
    packed = struct.pack(f">{len(numbers)}Q", *numbers)
    return packed + bytes(clusters * _CLUSTER - len(packed))


# -- tar ---------------------------------------------------------------------------------------------------------


def _data_runs(view: SnapshotView) -> list[tuple[int, int]]:
    """Where the data lie: offsets and lengths, short holes counted as data."""
    runs: list[tuple[int, int]] = []
    for start, (length, _, zero) in _stretches(view, 0, view.size):
        if zero:
            continue
        if runs and start - sum(runs[-1]) < _WORTH_A_HOLE:
            runs[-1] = (runs[-1][0], start + length - runs[-1][0])
        else:
            runs.append((start, length))
    return runs


def _tar_document(folder: str, name: str, content: bytes, mtime: int) -> bytes:
    # Whoever unpacks it must get a file in that folder, whatever the document is called.
    plain = name.replace("/", "_")
    head = tarfile.TarInfo(f"{folder}/documents/{'_' * plain.startswith('.')}{plain}")
    head.size, head.mtime, head.mode = len(content), mtime, 0o600
    return head.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % _TAR_BLOCK)
