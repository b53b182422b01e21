"""A target that does not read back as what was written: whose fault is it?"""

from __future__ import annotations

import mmap

from lamella.base.errors import IntegrityError
from lamella.operations.restore.filling import Row
from lamella.operations.shared.streaming import ChunkBatch, VolumeStream
from lamella.sources.target import Target

_NOT_THE_REPOSITORY = (
    "the repository was read again and is sound here: the target's disk fails, or this machine's memory"
)


def look_again(stream: VolumeStream, target: Target, row: Row, held: bytes) -> None:
    """Find out whose fault a difference is. A chunk that the repository has twice, once wrong, is put right.

    `held` is what the target read back. Raises IntegrityError that names the target, or the place in the repository.
    """
    start, end = stream.span(row[0], row[0] + 1)
    delivered = dict(stream.decode([row]))[row[1]]
    right = stream.fetch(ChunkBatch((row,)))[row[1]]
    if delivered == right or delivered != held:
        raise difference(target, start, _NOT_THE_REPOSITORY)
    target.write(start, right)
    target.settle()
    with mmap.mmap(-1, end - start, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as buffer:
        with memoryview(buffer) as view:
            target.read_into(start, view)
        if bytes(buffer) != right:
            raise difference(target, start, _NOT_THE_REPOSITORY)


def difference(target: Target, offset: int, hint: str = "") -> IntegrityError:
    """The error that says where a target is wrong."""
    where = target.working_path
    message = f"{where} does not hold what was written at offset {offset}"
    return IntegrityError(message, obj=str(where), hint=hint)
