"""Reading fixed-width fields with every length checked before use (FORMAT, first paragraph)."""

from __future__ import annotations

from typing import NoReturn

from lamella.base.errors import IntegrityError


class Cursor:
    """A position in some bytes; `take` returns exactly what was asked for or raises IntegrityError naming `what`."""

    __slots__ = ("_content", "_what", "position")

    def __init__(self, content: bytes, what: str) -> None:
        self._content = content
        self._what = what
        self.position = 0

    @property
    def remaining(self) -> int:
        """Bytes not yet taken."""
        return len(self._content) - self.position

    def fail(self, why: str) -> NoReturn:
        """Raise IntegrityError for this object."""
        raise IntegrityError(f"malformed {self._what}: {why}", obj=self._what)

    def take(self, length: int) -> bytes:
        """The next `length` bytes."""
        start = self.position
        end = start + length
        if end > len(self._content):
            self.fail("ends too early")
        self.position = end
        return self._content[start:end]

    def uint(self, width: int) -> int:
        """The next little-endian unsigned integer of `width` bytes."""
        return int.from_bytes(self.take(width), "little")

    def count(self, width: int, entry_size: int) -> int:
        """A count of `width` bytes whose entries, at least `entry_size` bytes each, must still fit."""
        number = self.uint(width)
        if number * entry_size > self.remaining:
            self.fail("a count is larger than what follows")
        return number

    def text(self) -> str:
        """u8 length and UTF-8."""
        raw = self.take(self.uint(1))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail("text is not UTF-8")

    def bytes16(self) -> bytes:
        """u16 length and bytes."""
        return self.take(self.uint(2))

    def zeros(self, length: int) -> None:
        """Reserved bytes, which must be zero."""
        if any(self.take(length)):
            self.fail("reserved bytes are not zero")

    def rest(self) -> bytes:
        """Everything not yet taken."""
        return self.take(self.remaining)

    def flag(self) -> bool:
        """One byte, 0 or 1."""
        number = self.uint(1)
        if number > 1:
            self.fail("a byte that must be 0 or 1")
        return number == 1

    def end(self) -> None:
        """Nothing may follow."""
        if self.remaining:
            self.fail("bytes after the end")


def u8(value: int) -> bytes:
    """One byte. Raises OverflowError outside 0..255."""
    return value.to_bytes(1, "little")


def u16(value: int) -> bytes:
    """Two bytes, little endian."""
    return value.to_bytes(2, "little")


def u32(value: int) -> bytes:
    """Four bytes, little endian."""
    return value.to_bytes(4, "little")


def u64(value: int) -> bytes:
    """Eight bytes, little endian."""
    return value.to_bytes(8, "little")


def text(value: str) -> bytes:
    """u8 length and UTF-8. Raises OverflowError above 255 bytes."""
    raw = value.encode("utf-8")
    return u8(len(raw)) + raw


def bytes16(value: bytes) -> bytes:
    """u16 length and bytes."""
    return u16(len(value)) + value


def clipped(value: str) -> str:
    """The beginning of a text, short enough for a text field."""
    return value.encode("utf-8", "replace")[:250].decode("utf-8", "ignore")
