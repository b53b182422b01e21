"""Reading what thin_delta and thin_dump write: XML as it comes, in constant memory, nothing guessed.

Both tools write a `superblock` with the size of a pool block in sectors of 512 bytes; everything below it counts pool
blocks. thin_delta writes `same`, `different`, `left_only` and `right_only` with `begin` and `length`, or, told to be
verbose, without them and with `range` elements inside; thin_dump writes `range_mapping` and `single_mapping` (the
schemas of thin-provisioning-tools 0.9 and 1.1). Anything else is refused: a delta that was understood in part would
hide changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final
from xml.parsers import expat

from lamella.base.errors import CheckpointLost
from lamella.base.extents import Extent

_SECTOR: Final = 512
_BLOCK_SECTORS: Final = range(128, 2_097_153, 128)
"""Possible sizes of a pool block, in sectors: 64 KiB to 1 GiB (Linux: device-mapper/thin-provisioning.rst)."""
_LONGEST_ELEMENT: Final = 1 << 16
_DIGITS: Final = 20
"""Of the largest number of 64 bits."""

_DIFFERENT: Final = frozenset({"different", "left_only", "right_only"})


def differing(pieces: Iterable[bytes], thin1: int, thin2: int) -> Iterator[Extent]:
    """Yield the byte ranges in which thin device `thin2` may differ from `thin1`, from the output of thin_delta.

    Ranges come in the order they were written, and may lie beyond the end of either device. Blocks that only `thin1`
    maps are among them: they may read as zeros, or as the data of an external origin. Raises CheckpointLost, at the
    latest after the last range, if the output is not whole or not understood.
    """
    return _XmlReader(_DeltaSchema(thin1, thin2)).extents(pieces)


def mapped(pieces: Iterable[bytes], thin: int) -> Iterator[Extent]:
    """Yield the byte ranges that the thin device maps, from the output of `thin_dump --dev-id`.

    Raises CheckpointLost like `differing`.
    """
    return _XmlReader(_DumpSchema(thin)).extents(pieces)


def _refused(why: str) -> CheckpointLost:
    return CheckpointLost(f"what the thin tools wrote cannot be relied on: {why}")


_Attributes = dict[str, str]
_Found = Callable[[int, int], None]
"""Called with the first block and the number of blocks."""


class _DeltaSchema:
    """Which elements thin_delta may write; `inner` is seen once for a whole output."""

    inner = "diff"

    def __init__(self, thin1: int, thin2: int) -> None:
        self._thins = (thin1, thin2)
        self._kind = ""
        self._ranges = 0

    def enter(self, attributes: _Attributes) -> None:
        found = (_number(attributes, "left"), _number(attributes, "right"))
        if found != self._thins:
            raise _refused(f"it compares {found[0]} and {found[1]} instead of {self._thins[0]} and {self._thins[1]}")

    def start(self, depth: int, name: str, attributes: _Attributes, found: _Found) -> None:
        if depth == 0 and (name in _DIFFERENT or name == "same"):
            self._kind, self._ranges = name, 0
            if "begin" in attributes:
                self._range(attributes, found)
        elif depth == 1 and name == "range":
            self._range(attributes, found)
        else:
            raise _refused(f"it has the unknown element {name!r}")

    def end(self, depth: int) -> None:
        if depth == 0 and not self._ranges:
            raise _refused(f"an element {self._kind!r} does not say where it is")

    def _range(self, attributes: _Attributes, found: _Found) -> None:
        begin, length = _number(attributes, "begin"), _number(attributes, "length")
        self._ranges += 1
        if self._kind in _DIFFERENT:
            found(begin, length)


class _DumpSchema:
    """Which elements thin_dump may write for one device."""

    inner = "device"

    def __init__(self, thin: int) -> None:
        self._thin = thin

    def enter(self, attributes: _Attributes) -> None:
        if _number(attributes, "dev_id") != self._thin:
            raise _refused("it describes another device")

    def start(self, depth: int, name: str, attributes: _Attributes, found: _Found) -> None:
        if depth == 0 and name == "single_mapping":
            found(_number(attributes, "origin_block"), 1)
        elif depth == 0 and name == "range_mapping":
            found(_number(attributes, "origin_begin"), _number(attributes, "length"))
        else:
            raise _refused(f"it has the unknown element {name!r}")

    def end(self, depth: int) -> None:
        pass


class _XmlReader:
    """Drives expat; what a piece tells is handed on before the next piece is read."""

    def __init__(self, schema: _DeltaSchema | _DumpSchema) -> None:
        self._schema = schema
        self._depth = 0
        self._block_bytes = 0
        self._inner_seen = 0
        self._events = 0
        self._waiting: list[Extent] = []
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = self._doctype
        self._parser = parser

    def extents(self, pieces: Iterable[bytes]) -> Iterator[Extent]:
        quiet = 0
        for piece in pieces:
            before = self._events
            self._parse(piece, last=False)
            # Expat keeps an element until it is complete; nothing we read has long ones.
            quiet = 0 if self._events > before else quiet + len(piece)
            if quiet > _LONGEST_ELEMENT:
                raise _refused("an element has no end")
            yield from self._waiting
            self._waiting.clear()
        self._parse(b"", last=True)
        if self._inner_seen != 1:
            raise _refused(f"it has {self._inner_seen} elements {self._schema.inner!r} instead of one")

    def _parse(self, piece: bytes, *, last: bool) -> None:
        try:
            self._parser.Parse(piece, last)
        except expat.ExpatError as reason:
            raise _refused(str(reason)) from reason

    def _start(self, name: str, attributes: _Attributes) -> None:
        self._events += 1
        if self._depth == 0:
            sectors = _number(attributes, "data_block_size") if name == "superblock" else 0
            if sectors not in _BLOCK_SECTORS:
                raise _refused("it does not begin with a superblock and a possible size of blocks")
            self._block_bytes = sectors * _SECTOR
        elif self._depth == 1:
            if name != self._schema.inner:
                raise _refused(f"it has the unknown element {name!r}")
            self._inner_seen += 1
            self._schema.enter(attributes)
        else:
            self._schema.start(self._depth - 2, name, attributes, self._found)
        self._depth += 1

    def _end(self, _name: str) -> None:
        self._events += 1
        self._depth -= 1
        if self._depth >= 2:
            self._schema.end(self._depth - 2)

    def _doctype(self, *_: object) -> None:
        raise _refused("it declares a document type")

    def _found(self, begin: int, length: int) -> None:
        if not length:
            raise _refused("it has an empty range")
        self._waiting.append(Extent(begin * self._block_bytes, (begin + length) * self._block_bytes))


def _number(attributes: _Attributes, name: str) -> int:
    text = attributes.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        raise _refused(f"{name} is no number")
    return int(text)
