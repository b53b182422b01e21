"""Differences of chunks: what is made comes back, and both readers take and refuse the same contents."""

from __future__ import annotations

import random

import pytest

from lamella import rescue
from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.base.trust import Opened
from lamella.format.cursor import u32
from lamella.format.difference import BLOCK, LEAST, apply, make, padded
from lamella.format.encoder import Encoder

LENGTHS = (1, BLOCK - 1, BLOCK, BLOCK + 1, 8 * BLOCK, 9 * BLOCK - 7, 16 * BLOCK, 33 * BLOCK + 5)
CASES = 1500


def pair(chance: random.Random) -> tuple[bytes, bytes]:
    """Two contents of one length, of which the second differs here and there."""
    old = chance.randbytes(chance.choice(LENGTHS))
    new = bytearray(old)
    for _ in range(chance.randrange(5)):
        at = chance.randrange(len(new))
        size = min(chance.choice((1, 100, BLOCK, 3 * BLOCK)), len(new) - at)
        new[at : at + size] = chance.choice((bytes(size), chance.randbytes(size)))
    return old, bytes(new)


def by_lamella(old: bytes, content: bytes) -> bytes | None:
    try:
        return apply(old, Opened(content), "a difference")
    except (IntegrityError, UnknownFormat):
        return None


def by_rescue(old: bytes, content: bytes) -> bytes | None:
    try:
        return rescue.merged(old, content)
    except rescue.Bad:
        return None


def test_what_is_made_comes_back_by_both_readers() -> None:
    chance = random.Random(1)
    encoders = [Encoder(setting) for setting in ("auto", "portable", "off")]
    whole = 0
    for _ in range(CASES):
        old, new = pair(chance)
        content = make(memoryview(old), memoryview(new), chance.choice(encoders).encode)
        if content is None:
            whole += 1
            different = [at for at in range(0, len(new), BLOCK) if old[at : at + BLOCK] != new[at : at + BLOCK]]
            assert len(different) * BLOCK * 2 > len(new)
            continue
        assert by_lamella(old, content) == new == by_rescue(old, content)
        assert len(content) == padded(len(content)), "a padded length stays"
    assert 0 < whole < CASES


def spoilt(chance: random.Random, content: bytes) -> bytes:
    """A content that no writer made: bits, lengths, codecs and ends."""
    found = bytearray(content)
    for _ in range(chance.randrange(1, 3)):
        how = chance.randrange(6)
        if how == 0:
            # Mostly in the head and the map, which few of the bytes are.
            found[chance.choice((9, 10, chance.randrange(16), chance.randrange(len(found))))] ^= 1 << chance.randrange(
                8
            )
        elif how == 1:
            found[:4] = u32(chance.choice((0, 4, 5, 6, len(found) - 4, len(found), 1 << 31)))
        elif how == 2:
            found[5:9] = u32(chance.choice((0, 1, 2, BLOCK + 1, 1 << 22, 1 << 31)))
        elif how == 3:
            found[4] = chance.randrange(5)
        elif how == 4:
            del found[chance.randrange(9, len(found)) :]
        else:
            found += chance.choice((bytes(9), b"\1"))
    return bytes(found)


def test_both_readers_refuse_the_same_and_never_make_another_length() -> None:
    chance = random.Random(2)
    encoders = [Encoder(setting) for setting in ("auto", "portable", "off")]
    taken = 0
    for number in range(CASES):
        old, new = pair(chance)
        content = make(memoryview(old), memoryview(new), chance.choice(encoders).encode)
        bad = spoilt(chance, content or bytes(600))
        mine, its = by_lamella(old, bad), by_rescue(old, bad)
        assert mine == its, f"case {number}: {bad[:20].hex()} of {len(bad)} bytes"
        assert mine is None or len(mine) == len(old)
        taken += mine is not None
    assert 0 < taken < CASES, "some spoilt bits only change what is made: the id tells"


@pytest.mark.parametrize("length", [9, 13, LEAST, LEAST + 1, 4000, 4096, 4097, 1 << 20, (1 << 20) + 1])
def test_lengths_fall_into_eight_classes_between_powers_of_two(length: int) -> None:
    found = padded(length)
    assert length <= found <= max(LEAST, length * 9 // 8 + 1)
    if length > LEAST:
        top = 1 << (length - 1).bit_length() - 1
        assert found % (top >> 3) == 0


def test_few_lengths_are_seen() -> None:
    assert len({padded(length) for length in range(1025, 2049)}) == 8
