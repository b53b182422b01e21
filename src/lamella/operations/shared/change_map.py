"""Change maps of other tools: which ranges differ from a known state.

Three forms are read: the schema `lamella-map/1`, the JSON of `rbd diff`, and the lines of borg (`borg create --map`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost, UsageError

SCHEMA = "lamella-map/1"
STATES = ("data", "zero", "same")
"""The states of a range: read it; it reads as zeros; it is as in the base."""
MAX_FILE = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ChangeMap:
    """Ranges `(offset, length, is_zero)` that may differ from a base; everything else is the same.

    `size` is the volume's size after the changes, None if the tool does not say; `base` is the snapshot the map says it
    starts from, empty if it does not say.
    """

    size: int | None
    base: str
    ranges: tuple[tuple[int, int, bool], ...]

    def delta(self, grain: int, base_size: int, size: int) -> Delta:
        """The map on a volume's grid. Raises CheckpointLost if it speaks of another size."""
        if self.size is not None and self.size != size:
            raise CheckpointLost(f"the change map is of a volume of {self.size} bytes, the source has {size}")
        touched, zeroed, data = ChunkSet(), ChunkSet(), ChunkSet()
        for offset, length, is_zero in self.ranges:
            stop = min(offset + length, size)  # what lies beyond the end is nobody's
            first, end = offset // grain, -(-stop // grain)
            touched.add(first, end)
            if not is_zero:
                data.add(first, end)
            else:  # only chunks that are zero from end to end need no reading
                zeroed.add(-(-offset // grain), end if stop == size else stop // grain)
        zeroed = zeroed - data
        return Delta.bounded(grain, base_size, size, touched - zeroed, zeroed)


def read_map(content: bytes, name: str) -> ChangeMap:
    """A map in any of its forms. Raises UsageError."""
    try:
        if content.lstrip()[:1].isdigit() or content.lstrip()[:1] == b"#":
            return _from_lines(content.decode("ascii"))
        found = json.loads(content)
        if isinstance(found, list):
            return ChangeMap(None, "", tuple(_rbd_range(row) for row in found))
        if found.get("schema") != SCHEMA:
            raise UsageError(f"{name} is not a change map: its schema is not {SCHEMA}", obj=name)
        ranges = tuple(_range(*row) for row in found["ranges"])
        return ChangeMap(_number(found["size"]), str(found.get("base", "")), ranges)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{name} is not a change map: {error}", obj=name) from error


def _number(value: Any) -> int:  # noqa: ANN401 - whatever the JSON held
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError(f"not a size or offset: {value!r}")
    return value


def _range(offset: Any, length: Any, kind: Any) -> tuple[int, int, bool]:  # noqa: ANN401 - whatever the JSON held
    if kind not in ("data", "zero"):
        raise ValueError(f"not a kind of range: {kind!r}")
    return _number(offset), _number(length), kind == "zero"


def _rbd_range(row: dict[str, Any]) -> tuple[int, int, bool]:
    exists = row["exists"]
    if exists not in ("true", "false", True, False):
        raise ValueError(f"not true or false: {exists!r}")
    return _number(row["offset"]), _number(row["length"]), exists in ("false", False)


def _from_lines(text: str) -> ChangeMap:
    """`START LENGTH STATE` on each line, decimal or 0x and hexadecimal; the lines cover the volume without a gap.

    So the size of the volume follows, and a map that was cut off, or is of another volume, is noticed.
    """
    end, ranges = 0, []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 3 or words[2] not in STATES:
            raise ValueError(f"line {number} is not START LENGTH {'|'.join(STATES)}")
        start, length = (_number(int(word, 16 if word[:2].lower() == "0x" else 10)) for word in words[:2])
        if start != end or not length:
            raise ValueError(f"line {number} does not begin where the line before ends, or is of no bytes")
        end = _number(start + length)
        if words[2] != "same":
            ranges.append((start, length, words[2] == "zero"))
    return ChangeMap(end, "", tuple(ranges))
