"""The stream of `zfs send`: real ones, and what is refused. `zfs_streams` says what was done between the moments."""

from __future__ import annotations

import gzip
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost
from lamella.sources.zfs.stream import MAX_PAYLOAD, RECORD_BYTES, Expected, delta
from lamella_kit.source_reading import check_delta

HERE = Path(__file__).parent / "zfs_streams"
GRAIN = 1 << 16
SIZE = 16 * GRAIN + 8192
END = (1 << 64) - 1
EXPECTED = Expected(11, 22, SIZE, SIZE)
BEGIN, OBJECT, FREEOBJECTS, WRITE, FREE, STOP, BYREF, SPILL, EMBEDDED, RANGE, REDACT = range(11)


def record(kind: int, form: str, *numbers: int, order: str = "<", payload: bytes = b"", named: int = 0) -> bytes:
    """A record and what follows it."""
    body = struct.pack(f"{order}II", kind, named) + struct.pack(order + form, *numbers)
    return body.ljust(RECORD_BYTES, b"\0") + payload


def begin(
    features: int = 1 << 22, kind: int = 1, of: int = 3, order: str = "<", base: int = 11, now: int = 22
) -> bytes:
    return record(BEGIN, "QQQIIQQ", 0x2F5BACBAC, features << 2 | kind, 0, of, 4, now, base, order=order)


def write(offset: int, length: int, compressed: int = 0, order: str = "<", number: int = 1) -> bytes:
    form = "QIIQQQBBB5x40xQ"
    numbers = (number, 23, 0, offset, length, 22, 7, 0, 15 if compressed else 0, compressed)
    return record(WRITE, form, *numbers, order=order, payload=b"x" * (compressed or length))


def free(offset: int, length: int, order: str = "<", number: int = 1) -> bytes:
    return record(FREE, "QQQQ", number, offset, length, 22, order=order)


def stop(now: int = 22, order: str = "<") -> bytes:
    return record(STOP, "4QQ", 1, 2, 3, 4, now, order=order)


def whole(*parts: bytes, order: str = "<") -> bytes:
    return begin(order=order) + b"".join(parts) + free(SIZE, END, order) + stop(order=order)


def read(content: bytes, expected: Expected = EXPECTED, piece: int = 0, grain: int = GRAIN) -> Delta:
    step = piece or max(1, len(content))
    return delta((content[at : at + step] for at in range(0, len(content), step)), expected, grain)


def runs(found: Delta) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    return list(found.changed.runs()), list(found.zeroed.runs())


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("piece", [0, 1, 311, 313])
def test_what_was_written_and_freed(order: str, piece: int) -> None:
    bonus = record(OBJECT, "QIIIIBBBBI", 1, 23, 0, 8192, 5, 0, 0, 0, 0, 0, order=order, payload=bytes(8))
    content = whole(
        bonus,
        write(GRAIN - 1, 2, order=order),
        write(4 * GRAIN, 8192, 100, order=order),
        free(6 * GRAIN, GRAIN // 2, order),
        free(6 * GRAIN + GRAIN // 2, GRAIN, order),
        write(9 * GRAIN, 512, number=2, order=order),
        free(0, END, order, number=2),
        record(EMBEDDED, "QQQQBB6xII", 1, 10 * GRAIN, 8192, 22, 15, 0, 100, 21, order=order, payload=bytes(24)),
        order=order,
    )
    assert runs(read(content, piece=piece)) == ([(0, 2), (4, 5), (7, 8), (10, 11)], [(6, 7)])


def test_what_is_freed_to_the_end_is_zero_to_the_end() -> None:
    assert runs(read(whole(free(14 * GRAIN + 1, END)))) == ([(14, 15)], [(15, 17)])
    assert runs(read(whole(free(16 * GRAIN, 8192)))) == ([], [(16, 17)])


def test_the_later_record_counts() -> None:
    assert runs(read(whole(free(0, 2 * GRAIN), write(GRAIN, 512)))) == ([(1, 2)], [(0, 1)])
    assert runs(read(whole(write(GRAIN, 512), free(0, 2 * GRAIN)))) == ([], [(0, 2)])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "cut short"),
        (begin(kind=2) + stop(), "one volume"),
        (begin(of=2) + stop(), "one volume"),
        (begin(base=12) + stop(), "other snapshots"),
        (begin(now=23) + stop(), "other snapshots"),
        (begin(features=1 << 24) + stop(), "RAW"),
        (begin(features=1 << 0 | 1 << 21) + stop(), "DEDUP, REDACTED"),
        (begin(features=1 << 28) + stop(), "bit 28"),
        (begin() + stop(23), "another snapshot"),
        (begin() + stop() + b"x", "follows its end"),
        (begin() + begin() + stop(), "kind 0"),
        (begin() + record(BYREF, "Q", 1) + stop(), "kind 6"),
        (begin() + record(RANGE, "Q", 0) + stop(), "kind 9"),
        (begin() + record(REDACT, "QQQQ", 1, 0, 8192, 22) + stop(), "kind 10"),
        (begin() + record(77, "Q", 1) + stop(), "kind 77"),
        (begin() + record(FREEOBJECTS, "QQQ", 0, 2, 22) + stop(), "as a whole"),
        (begin() + record(WRITE, "QIIQQQ", 1, 23, 0, 0, MAX_PAYLOAD + 1, 22) + stop(), "followed by"),
        (begin() + record(OBJECT, "QIIII", 2, 23, 0, 0, 0, named=MAX_PAYLOAD + 1) + stop(), "followed by"),
        (begin() + record(SPILL, "QQQ", 2, END, 22) + stop(), "followed by"),
        (begin() + free(5, END - 1) + stop(), "beyond 2"),
        (bytes(RECORD_BYTES) + stop(), "begin"),
    ],
)
def test_what_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(CheckpointLost, match=why):
        read(content)


def test_a_stream_cut_anywhere_is_refused() -> None:
    content = whole(write(0, 700), free(4 * GRAIN, GRAIN))
    for length in range(0, len(content), 13):
        with pytest.raises(CheckpointLost, match="cut short"):
            read(content[:length])


def test_any_bytes_give_a_delta_or_a_reason() -> None:
    """2,000 damaged streams: no other error, no endless reading, nothing beyond the volume."""
    chance = random.Random(7)
    good = whole(write(0, 512), free(3 * GRAIN, 2 * GRAIN), write(9 * GRAIN, 8192, 77))
    for _ in range(2000):
        content = bytearray(good)
        for _ in range(chance.choice([1, 1, 2, 8])):
            place = chance.randrange(len(content))
            content[place] = chance.choice([0, 1, 0x7F, 0xFF, chance.randrange(256)])
        if chance.random() < 0.3:
            del content[chance.randrange(len(content)) :]
        try:
            found = read(bytes(content))
        except CheckpointLost:
            continue
        assert not found.changed & found.zeroed
        assert all(end <= 17 for _, end in (found.changed | found.zeroed).runs())


@given(st.lists(st.tuples(st.booleans(), st.integers(0, SIZE - 1), st.integers(1, 6 * GRAIN)), max_size=12))
def test_no_order_of_records_hides_a_change(acts: list[tuple[bool, int, int]]) -> None:
    before = b"a" * SIZE
    now = bytearray(before)
    parts = []
    for is_write, offset, length in acts:
        end = min(offset + length, SIZE)
        now[offset:end] = (b"b" if is_write else b"\0") * (end - offset)
        parts.append(write(offset, end - offset, 1) if is_write else free(offset, length))
    for grain in (GRAIN, 4 * GRAIN):
        check_delta(read(whole(*parts), grain=grain), before, bytes(now))


def recorded() -> Iterator[tuple[str, Path]]:
    for path in sorted(HERE.glob("*.json")):
        yield path.stem, path


def test_there_are_recorded_streams() -> None:
    assert len(list(recorded())) >= 3


@pytest.mark.parametrize(("name", "path"), list(recorded()))
def test_recorded_streams(name: str, path: Path) -> None:
    """Streams that `zfs send` wrote, beside what was written and freed: no chunk too few, and none too many."""
    facts = json.loads(path.read_text())
    content = gzip.decompress(path.with_suffix(".zfs.gz").read_bytes())
    found = read(content, Expected(facts["base"], facts["now"], facts["base_size"], facts["size"]), piece=65536)
    assert runs(found) == ([tuple(run) for run in facts["changed"]], [tuple(run) for run in facts["zeroed"]]), name
