"""A chunk as the list of the blocks in which it differs from another chunk of the same length (FORMAT 6).

content = `length of the body u32 | body | zeros`; the body is one of FORMAT 4 (codec, rlen, payload), and holds a map
with one bit for each block of 4 KiB (block n: bit n mod 8 of byte n div 8; set: it differs), then the blocks that
differ, in order. The zeros take the content to one of eight lengths between two powers of two.
"""

from __future__ import annotations

from collections.abc import Callable

from lamella.base.errors import IntegrityError
from lamella.base.trust import Opened
from lamella.format import compression
from lamella.format.cursor import u32

BLOCK = 4096
LEAST = 512
"""No content is shorter."""


def padded(length: int) -> int:
    """The length of the content that holds so many bytes."""
    step = max(LEAST, 1 << (length - 1).bit_length() - 1) >> 3
    return max(LEAST, -(-length // step) * step)


def make(old: memoryview, new: memoryview, encode: Callable[[bytes], bytes]) -> bytes | None:
    """The difference from `old` to `new`, which are equally long; None if more than half of the blocks differ.

    `encode` makes a body of the list.
    """
    changed = bytearray(-(-len(new) // BLOCK) + 7 >> 3)
    blocks: list[bytes] = []
    for number, start in enumerate(range(0, len(new), BLOCK)):
        block = bytes(new[start : start + BLOCK])
        if block != bytes(old[start : start + BLOCK]):
            changed[number >> 3] |= 1 << (number & 7)
            blocks.append(block)
    if len(blocks) * BLOCK * 2 > len(new):
        return None
    body = encode(b"".join((changed, *blocks)))
    return (u32(len(body)) + body).ljust(padded(4 + len(body)), b"\0")


def apply(old: bytes, content: Opened, name: str) -> Opened:
    """The chunk that differs from `old` by this content. Raises IntegrityError; the caller checks the chunk's id."""
    end = 4 + int.from_bytes(content[:4], "little")
    if not 9 <= end <= len(content) or content.count(0, end) != len(content) - end:
        raise IntegrityError("a difference that is not well-formed", obj=name)
    head = -(-len(old) // BLOCK) + 7 >> 3
    length = int.from_bytes(content[5:9], "little")
    if not head <= length <= head + len(old):
        raise IntegrityError("a difference that is no list of blocks of its chunk", obj=name)
    listed = compression.decode(Opened(content[4:end]), length, name)
    made, at = bytearray(old), head
    for start in range(0, len(old), BLOCK):
        number = start // BLOCK
        if listed[number >> 3] >> (number & 7) & 1:
            size = min(BLOCK, len(old) - start)
            made[start : start + size] = listed[at : at + size]
            at += size
    if at != len(listed) or len(made) != len(old):
        raise IntegrityError("a difference of another chunk", obj=name)
    return Opened(bytes(made))
