"""Images that change a little, for `--deltas`: chunks that cannot be compressed, of which a few bytes are others later.

A chunk is a word: what it was made as, and after a `#` what was written over a part of it since.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

CHUNK = 1 << 16
_EDIT = 500


def content(word: bytes) -> bytes:
    """The bytes of a chunk."""
    made, _, edit = word.partition(b"#")
    chunk = bytearray(random.Random(made).randbytes(CHUNK))
    if edit:
        chance = random.Random(edit)
        at = chance.randrange(CHUNK - _EDIT)
        chunk[at : at + _EDIT] = chance.randbytes(_EDIT)
    return bytes(chunk)


def write_image(path: Path, chunks: Mapping[int, bytes]) -> None:
    """An image with these chunks and zeros. What stays as it is is not written, and not told as a change."""
    path.touch()
    size = (max(chunks) + 3) * CHUNK - 1000
    with path.open("r+b") as file:
        file.truncate(size)
        for number in range(-(-size // CHUNK)):
            file.seek(number * CHUNK)
            new = content(chunks[number]) if number in chunks else bytes(min(CHUNK, size - number * CHUNK))
            if file.read(CHUNK) != new:
                file.seek(number * CHUNK)
                file.write(new)


def changed(volume: str, held: Mapping[int, bytes], chance: random.Random) -> dict[int, bytes]:
    """Other chunks than those that a volume has: most of them the same, some with another edit or none."""
    if not held:
        return {number: f"common {number}".encode() for number in (0, 1, 70)} | {80: f"{volume} 80".encode()}
    chunks = dict(held)
    for _ in range(chance.randrange(1, 4)):
        number = chance.choice(sorted(chunks))
        made, what = chunks[number].partition(b"#")[0], chance.random()
        if what < 0.8:
            chunks[number] = made + (f"#{chance.randrange(5)}".encode() if what < 0.65 else b"")
        elif what < 0.9:
            chunks[number] = f"{volume} {chance.randrange(8)}".encode()
        elif number != 80:
            del chunks[number]
    chunks[chance.randrange(2, 64)] = f"{volume} {chance.randrange(8)}".encode()
    if chance.random() < 0.15:
        chunks[81 + chance.randrange(2)] = b"grown"
    return chunks
