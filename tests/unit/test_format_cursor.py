"""Fixed-width fields (FORMAT, first paragraph)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lamella.base.errors import IntegrityError
from lamella.format import cursor as fields
from lamella.format.cursor import Cursor


def test_fields_one_after_the_other() -> None:
    content = b"\x01\x02\x03\x04" + fields.text("\u00e4") + fields.bytes16(b"xyz") + b"\x01\0\0rest"
    reader = Cursor(content, "x")
    assert (reader.uint(1), reader.uint(3), reader.text()) == (1, 0x040302, "\u00e4")
    assert (reader.bytes16(), reader.flag(), reader.remaining) == (b"xyz", True, 6)
    reader.zeros(2)
    assert reader.rest() == b"rest"
    reader.end()
    assert reader.rest() == b""


@pytest.mark.parametrize(
    "content", [b"\x02ab", b"\x01\x00\x00\x00ab", b"\xff\xff\xff\xff" + bytes(30), b"\x08\x00\x00\x00" + bytes(31)]
)
def test_a_count_is_refused_before_its_entries_are_read(content: bytes) -> None:
    reader = Cursor(content, "x")
    with pytest.raises(IntegrityError):
        reader.count(4, 4)


def test_a_count_that_just_fits() -> None:
    assert Cursor(b"\x08\x00" + bytes(32), "x").count(2, 4) == 8


@pytest.mark.parametrize("content", [b"", b"\x01", b"\x02\xc3", b"\x01\xff", b"\x02\xc0\x80", b"\x03\xed\xa0\x80"])
def test_bad_texts(content: bytes) -> None:
    with pytest.raises(IntegrityError):
        Cursor(content, "x").text()


@pytest.mark.parametrize("content", [b"", b"\x02", b"\xff"])
def test_flags_are_0_or_1(content: bytes) -> None:
    with pytest.raises(IntegrityError):
        Cursor(content, "x").flag()


def test_the_error_names_the_object_and_nothing_is_consumed() -> None:
    reader = Cursor(b"abc", "keys/12345678")
    with pytest.raises(IntegrityError) as caught:
        reader.take(4)
    assert caught.value.obj == "keys/12345678"
    assert reader.take(3) == b"abc"


def test_bytes_after_the_end_and_reserved_bytes() -> None:
    with pytest.raises(IntegrityError):
        Cursor(b"a", "x").end()
    with pytest.raises(IntegrityError):
        Cursor(b"\0\x01", "x").zeros(2)


@pytest.mark.parametrize(("encode", "limit"), [(fields.u8, 8), (fields.u16, 16), (fields.u32, 32), (fields.u64, 64)])
def test_integers_have_their_width(encode: Callable[[int], bytes], limit: int) -> None:
    largest = (1 << limit) - 1
    assert encode(largest) == b"\xff" * (limit // 8)
    for value in (largest + 1, -1):
        with pytest.raises(OverflowError):
            encode(value)


def test_texts_have_at_most_255_bytes() -> None:
    assert len(fields.text("\u00e4" * 127)) == 255
    with pytest.raises(OverflowError):
        fields.text("\u00e4" * 128)
