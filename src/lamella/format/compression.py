"""Codecs of blob bodies: decoding them, with every check made before anything is decompressed (FORMAT 4)."""

from __future__ import annotations

import zlib
from enum import IntEnum

from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.base.trust import Opened


class Codec(IntEnum):
    """How a payload is encoded."""

    RAW = 0
    ZLIB = 1
    ZSTD = 2


def decode(body: Opened, expected_length: int, name: str) -> Opened:
    """Return the content of an authenticated body, never more than `expected_length` bytes of it.

    Raises IntegrityError when anything differs from what the position implies, UnknownFormat for an unknown codec.
    """
    if len(body) < 5 or int.from_bytes(body[1:5], "little") != expected_length:
        raise IntegrityError("a blob whose length is not what its place implies", obj=name)
    codec, payload = body[0], memoryview(body)[5:]
    if codec == Codec.RAW:
        content = bytes(payload)
    elif codec == Codec.ZLIB:
        content = _inflate(payload, expected_length, name)
    elif codec == Codec.ZSTD:
        from lamella.format.zstd import unzstd  # histories do without

        content = unzstd(payload, expected_length, name)
    else:
        raise UnknownFormat(f"a blob with unknown codec {codec}", obj=name)
    if len(content) != expected_length:
        raise IntegrityError("a blob that decodes to the wrong length", obj=name)
    return Opened(content)


def _inflate(payload: memoryview, expected_length: int, name: str) -> bytes:
    inflater = zlib.decompressobj()
    try:
        # One byte more than expected shows a longer stream without ever producing it.
        content = inflater.decompress(payload, expected_length + 1)
    except zlib.error as error:
        raise IntegrityError("a blob that does not inflate", obj=name) from error
    if not inflater.eof or inflater.unused_data or inflater.unconsumed_tail:
        raise IntegrityError("a zlib stream with a wrong end", obj=name)
    return content
