"""Headers of qcow2 images, made by anybody: read exactly, or refused in a sentence; never a crash, never a guess."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.base.errors import SourceError
from lamella.sources.qcow2.header import Qcow2Header, is_qcow2, parse_header

CLUSTER = 1 << 16


def header(
    *,
    version: int = 3,
    name: bytes = b"",
    bits: int = 16,
    size: int = 5 << 30,
    crypt: int = 0,
    incompatible: int = 0,
    extensions: tuple[tuple[int, bytes], ...] = (),
    length: int = 104,
    name_at: int | None = None,
    name_length: int | None = None,
) -> bytes:
    """The first cluster of an image."""
    more = b"".join(struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8) for kind, data in extensions)
    begin = length if version > 2 else 72
    at = name_at if name_at is not None else (begin + len(more) + 8 if name else 0)
    count = len(name) if name_length is None else name_length
    head = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", version, at, count, bits, size, crypt, 80, 3 << 16, 1 << 16, 1, 2, 0
    )
    if version > 2:
        head += struct.pack(">QQQII", incompatible, 0, 0, 4, length)
    content = head + bytes(max(0, begin - len(head))) + more + bytes(8) + name
    return content + bytes(CLUSTER - len(content))


BACKING, DATA, BITMAPS = 0xE2792ACA, 0x44415441, 0x23852875


def test_everything_that_a_header_says() -> None:
    extensions = (
        (BACKING, b"raw"),
        (0x6803F857, bytes(48)),
        (DATA, b"d.raw"),
        (BITMAPS, struct.pack(">IIQQ", 3, 0, 8, 0)),
    )
    found = parse_header(header(name=b"b\xc3\xa4se.img", extensions=extensions, incompatible=4), "x")
    assert found == Qcow2Header(3, 5 << 30, "bäse.img", "raw", "d.raw", True, "", 2, 3)
    old = parse_header(header(version=2, name=b"old", extensions=((BACKING, b"qcow2"),)), "x")
    assert (old.version, old.backing, old.backing_format) == (2, "old", "qcow2")
    assert parse_header(header(crypt=2), "x").encryption == "LUKS"
    assert parse_header(header(incompatible=2), "x").corrupt
    assert parse_header(header(incompatible=1 << 5 | 1 << 60), "x").unknown_features == 1 << 5 | 1 << 60
    assert is_qcow2(header()) and not is_qcow2(b"QFI")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"QFI\xfb",
        b"QED\0" + bytes(200),
        header(version=1),
        header(version=4),
        header(bits=8),
        header(bits=22),
        header(size=1 << 63),
        header(crypt=3),
        header(length=100),
        header(length=105),
        header(name=b"x", name_at=50),
        header(name=b"x", name_at=1 << 40),
        header(name=b"x", name_at=CLUSTER),
        header(name=b"x", name_at=CLUSTER - 1, name_length=2),
        header(name=b"x" * 1024),
        header(name=b"a\0b"),
        header(name=b"name")[:114],
        header(extensions=((BACKING, b"raw"), (BACKING, b"qcow2"))),
        header(extensions=((5, b""),))[:104] + struct.pack(">II", 5, 1 << 31) + bytes(CLUSTER),
        header(extensions=((BACKING, b"r\0w"),)),
    ],
)
def test_what_is_no_header_is_refused(content: bytes) -> None:
    with pytest.raises(SourceError, match="x is no sound qcow2 image"):
        parse_header(content, "x")


@given(st.integers(0, 1 << 32), st.integers(1, 8), st.sampled_from([0, 72, 104, 112, 300, CLUSTER]))
def test_any_damage_gives_a_header_or_a_sentence(seed: int, places: int, cut: int) -> None:
    chance = random.Random(seed)
    extensions = ((BACKING, b"qcow2"), (DATA, b"file"), (BITMAPS, bytes(24)))
    content = bytearray(header(version=chance.choice([2, 3]), name=b"base.qcow2", extensions=extensions))
    for _ in range(places):
        content[chance.randrange(220)] = chance.randrange(256)
    try:
        found = parse_header(bytes(content[: cut or CLUSTER]), "x")
    except SourceError as error:
        assert "x is no sound qcow2 image" in error.message
    else:
        assert "\0" not in found.backing + found.backing_format + found.data_file
