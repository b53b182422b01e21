"""The messages between the two sides: kinds of frames, their sizes at most, and their content (docs/PIPE.md).

The frames are those of a store behind a pipe. `request` is the number of the WANT or MAKE that a frame belongs to, else
0.
"""

from __future__ import annotations

import struct

from lamella.format.container import FIRST_READ, MAX_BLOBS, MAX_CONTENT, MAX_OBJECT

VERSION = 1
MOST_WANTED = 1024
"""Contents in one WANT or MAKE."""
MOST_NAMED = 8192
"""Packs in one PACKS frame."""
MOST_FETCHED = MAX_CONTENT + FIRST_READ
"""Bytes of a pack in one BYTES frame: any sealed blob fits, and so does a directory of the most blobs (FORMAT 5)."""
assert MOST_FETCHED > 32 * MAX_BLOBS + 128


class Word:
    """The kinds of frames. Below 16 the near side's, from there on the far side's."""

    KEY = 1
    """First: the exported key file of one domain, without trees (FORMAT 3)."""
    PACKS = 2
    """SHA-256 of packs to look into, in this order; an empty one ends a list. After the second list there are no more.
    """
    WANT = 3
    """Kind u8, then ids: their contents are wanted, in this order."""
    BYTES = 4
    """Answer to FETCH: 1, then the bytes (fewer, where the pack ends before); or 0: no such pack, or it fails."""
    MAKE = 5
    """Like WANT, for chunks that are stored as differences: of each its own id, that of its base, and its difference's.
    """
    READY = 16
    """First, once the key was read: version u16."""
    FETCH = 17
    """SHA-256 of a named pack, offset u32, length u32."""
    MORE = 18
    """The packs named so far do not have it: the second list is wanted."""
    CONTENT = 19
    """The content of the next id that is wanted."""
    FAULT = 20
    """Instead of the next content: why there is none, UTF-8. It ends the answer."""


NEAR_LIMITS = {
    Word.KEY: 4096,
    Word.PACKS: 32 * MOST_NAMED,
    Word.WANT: 1 + 24 * MOST_WANTED,
    Word.MAKE: 72 * MOST_WANTED,
    Word.BYTES: 1 + MOST_FETCHED,
}
FAR_LIMITS = {Word.READY: 2, Word.FETCH: 40, Word.MORE: 0, Word.CONTENT: MAX_CONTENT, Word.FAULT: 1024}

READY = struct.Struct("<H")
FETCH = struct.Struct("<32sII")


def within_a_pack(offset: int, length: int) -> bool:
    """Whether a FETCH asks for what a pack can have."""
    return 0 < length <= MOST_FETCHED and offset + length <= MAX_OBJECT
