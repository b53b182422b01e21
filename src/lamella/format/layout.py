"""Layouts of records: a `Field` holds both directions of a value, so that they cannot disagree (FORMAT 8).

A layout is a tuple of fields in the order of the bytes. What a field reads it also checks; IntegrityError names the
record that the cursor belongs to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from lamella.format import cursor
from lamella.format.cursor import Cursor

T = TypeVar("T")


class Field(NamedTuple, Generic[T]):
    """How a value becomes bytes, how it is read back, and the fewest bytes it can have."""

    encode: Callable[[T], bytes]
    decode: Callable[[Cursor], T]
    least: int


def exactly(size: int) -> Field[Any]:
    """Bytes of a fixed length: ids, hashes, signatures."""
    return Field(bytes, lambda source: source.take(size), size)


def uint(width: int) -> Field[int]:
    """An unsigned integer of `width` bytes."""
    return Field(lambda number: number.to_bytes(width, "little"), lambda source: source.uint(width), width)


def row(make: Callable[..., T], *fields: Field[Any]) -> Field[T]:
    """Several fields that `make` turns into one tuple."""
    decoders = [field.decode for field in fields]

    def encode(values: Any) -> bytes:  # noqa: ANN401 - a tuple, of whatever the fields hold
        return b"".join([field.encode(value) for field, value in zip(fields, values, strict=True)])

    return Field(encode, lambda source: make(*[decode(source) for decode in decoders]), sum(f.least for f in fields))


def pair(first: Field[Any], second: Field[Any]) -> Field[tuple[Any, Any]]:
    """Two fields as a plain tuple."""
    return row(lambda *values: values, first, second)


def many(width: int, field: Field[T]) -> Field[tuple[T, ...]]:
    """A count of `width` bytes, then so many of `field`. The count is refused if they cannot fit."""

    def encode(values: tuple[T, ...]) -> bytes:
        return b"".join([len(values).to_bytes(width, "little"), *map(field.encode, values)])

    def decode(source: Cursor) -> tuple[T, ...]:
        return tuple([field.decode(source) for _ in range(source.count(width, field.least))])

    return Field(encode, decode, width)


def padded(field: Field[T], zeros: int) -> Field[T]:
    """A field with reserved bytes behind, which must be zero."""

    def decode(source: Cursor) -> T:
        value = field.decode(source)
        source.zeros(zeros)
        return value

    return Field(lambda value: field.encode(value) + bytes(zeros), decode, field.least + zeros)


def checked(field: Field[T], accepts: Callable[[T], bool], why: str) -> Field[T]:
    """A field whose values are refused with `why` unless `accepts` is true for them."""

    def decode(source: Cursor) -> T:
        value = field.decode(source)
        if not accepts(value):
            source.fail(why)
        return value

    return Field(field.encode, decode, field.least)


def whole(field: Field[T], content: bytes, what: str) -> T:
    """Read a field that is all of `content`. Raises IntegrityError."""
    source = Cursor(content, what)
    value = field.decode(source)
    source.end()
    return value


ID, CHUNK, HASH, SIGNATURE = exactly(16), exactly(24), exactly(32), exactly(64)
U8, U64 = uint(1), uint(8)
TEXT: Field[str] = Field(cursor.text, Cursor.text, 1)
BYTES16 = Field(cursor.bytes16, Cursor.bytes16, 2)
FLAG: Field[bool] = Field(cursor.u8, Cursor.flag, 1)
REST = Field(bytes, Cursor.rest, 0)
