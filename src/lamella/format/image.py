"""The inner record IMAGE of ADD_SNAP: a volume is an image in a format of its own, or the disk in one (FORMAT 8)."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from lamella.format.layout import TEXT, U8, U64, many, row
from lamella.format.records import AddSnap, RawRecord

IMAGE = 0x8012
MOST_FILES = 65


class Holds(IntEnum):
    """What the volume's bytes are."""

    FILE = 0
    """Those of the image file."""
    DISK = 1
    """Those of the disk that the image holds, as a guest sees it."""


class ImageNote(NamedTuple):
    """The format, the bytes of the disk, and the files: the image, then those that it needs, each as it was named."""

    holds: int
    size: int
    format: str
    files: tuple[str, ...]

    def encode(self) -> RawRecord:
        """The inner record."""
        return RawRecord(IMAGE, _IMAGE.encode(self._replace(files=self.files[:MOST_FILES])))

    @classmethod
    def of(cls, added: AddSnap) -> ImageNote | None:
        """What a snapshot says; None if nothing."""
        return added.inner_value(IMAGE, _IMAGE)


_IMAGE = row(ImageNote, U8, U64, TEXT, many(2, TEXT))
