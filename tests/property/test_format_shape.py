"""Laws of the chunk grid and the depth of a tree (FORMAT 6)."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lamella.base.errors import IntegrityError
from lamella.base.ids import VolumeId
from lamella.base.trust import Opened
from lamella.format.document import PART_MAGIC, part_of, parts
from lamella.format.node import Shape

VOLUME = VolumeId(bytes(16))
SIZES = st.integers(0, 2**64 - 1) | st.integers(0, 70 << 16)
LOGS = st.integers(16, 22)


@given(SIZES, LOGS)
@example(0, 16)
@example(64 << 16, 16)
@example((64 << 16) + 1, 16)
@example(64**3 << 22, 22)
@example((64**3 << 22) + 1, 22)
def test_depth_is_the_least_that_holds_all_chunks(size: int, log2: int) -> None:
    shape = Shape(VOLUME, size, log2)
    assert 1 <= shape.depth <= 10
    assert 64**shape.depth >= max(1, shape.chunks)
    assert shape.depth == 1 or 64 ** (shape.depth - 1) < shape.chunks


@given(SIZES, LOGS)
def test_chunks_cover_the_volume(size: int, log2: int) -> None:
    shape = Shape(VOLUME, size, log2)
    assert (shape.chunks - 1) * shape.chunk_size < size <= shape.chunks * shape.chunk_size
    if size:
        assert 0 < shape.chunk_length(shape.chunks - 1) <= shape.chunk_size
        assert (shape.chunks - 1) * shape.chunk_size + shape.chunk_length(shape.chunks - 1) == size


@given(st.integers(0, 300 << 16), LOGS)
def test_lengths_of_all_chunks_add_up(size: int, log2: int) -> None:
    shape = Shape(VOLUME, size, log2)
    lengths = [shape.chunk_length(chunk) for chunk in range(shape.chunks)]
    assert sum(lengths) == size
    assert all(length == shape.chunk_size for length in lengths[:-1])


@given(st.integers(64**10 + 1, 64**12))
def test_too_many_chunks(chunks: int) -> None:
    with pytest.raises(IntegrityError):
        _ = Shape(VOLUME, chunks << 16, 16).depth


@given(st.integers(0, 3), st.integers(-1, 1))
def test_documents_are_cut_at_8_mib_with_their_head(pieces: int, more: int) -> None:
    size = max(0, pieces * ((8 << 20) - 8) + more)
    document = bytes(size)
    made = list(parts(document))
    assert b"".join(part_of(Opened(part), "d") for part in made) == document
    assert all(len(part) == 8 << 20 for part in made[:-1])
    assert all(len(PART_MAGIC) < len(part) <= 8 << 20 for part in made)
