"""Change maps of other tools: too much is believed, too little never, and nonsense is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.base.errors import CheckpointLost, UsageError
from lamella.operations.look.diff import DiffResult, write_lines, write_map
from lamella.operations.shared.change_map import SCHEMA, ChangeMap, read_map

GRAIN = 1 << 16
SIZE = 20 * GRAIN + 5


def lamella_map(*ranges: list[Any], size: Any = SIZE, base: Any = "base", **more: Any) -> bytes:  # noqa: ANN401
    return json.dumps({"schema": SCHEMA, "size": size, "base": base, "ranges": ranges, **more}).encode()


def test_both_forms_are_read() -> None:
    ours = read_map(lamella_map([0, 5, "data"], [65536, 65536, "zero"]), "m")
    assert ours == ChangeMap(SIZE, "base", ((0, 5, False), (65536, 65536, True)))
    rbd = read_map(
        b'[{"offset":0,"length":5,"exists":"true"},{"offset":65536,"length":65536,"exists":"false"},'
        b'{"offset":9,"length":1,"exists":true},{"offset":10,"length":1,"exists":false}]',
        "m",
    )
    assert rbd == ChangeMap(None, "", ((0, 5, False), (65536, 65536, True), (9, 1, False), (10, 1, True)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"null",
        b"5",
        b'"text"',
        b"\xff",
        lamella_map(schema="lamella-map/2"),
        lamella_map([0, 5]),
        lamella_map([0, 5, "data", 1]),
        lamella_map([0, 5, "hole"]),
        lamella_map([-1, 5, "data"]),
        lamella_map([0, -5, "data"]),
        lamella_map([True, 5, "data"]),
        lamella_map([0, 5.0, "data"]),
        lamella_map(["0", 5, "data"]),
        lamella_map([0, 1 << 63, "data"]),
        lamella_map(size=None),
        lamella_map(size="5"),
        lamella_map(ranges=5),
        b'[{"offset":0,"length":5}]',
        b'[{"offset":0,"length":5,"exists":"maybe"}]',
        b'[{"offset":0,"exists":"true"}]',
        b"[5]",
        b"[null]",
        b"# nothing but a comment\n0 5 data 7",
        b"0 5",
        b"0 5 hole",
        b"0 5 DATA",
        b"1 5 data",
        b"0 5 data\n6 5 same",
        b"0 5 data\n4 5 same",
        b"0 5 data\n5 0 same",
        b"0 -5 data",
        b"0 5.0 data",
        b"0 0x data",
        b"0 99999999999999999999 data",
        b"0 9223372036854775807 same\n9223372036854775807 9223372036854775807 data",
        b"0 5 \xffdata",
        "0 \u0665 data".encode(),
    ],
)
def test_what_is_no_map_is_refused(content: bytes) -> None:
    with pytest.raises(UsageError, match="is not a change map"):
        read_map(content, "m")


ranges = st.lists(
    st.tuples(st.integers(0, 22 * GRAIN), st.one_of(st.integers(0, 3 * GRAIN), st.just(GRAIN)), st.booleans()),
    max_size=6,
).map(tuple)


@given(ranges, st.sampled_from([SIZE, 20 * GRAIN, 1, 0]), st.sampled_from([SIZE, 19 * GRAIN, 0]))
def test_a_delta_names_every_byte_of_the_map(
    ranges: tuple[tuple[int, int, bool], ...], size: int, base_size: int
) -> None:
    delta = ChangeMap(None, "", ranges).delta(GRAIN, base_size, size)
    assert (delta.grain, delta.base_size, delta.size) == (GRAIN, base_size, size)
    for offset, length, is_zero in ranges:
        for byte in {offset, offset + length - 1, offset + length // 2}:
            if offset <= byte < min(offset + length, size):
                chunk = byte // GRAIN
                assert chunk in delta.changed or (is_zero and chunk in delta.zeroed)
    for first, end in delta.zeroed.runs():
        for chunk in range(first, end):
            start, stop = chunk * GRAIN, min((chunk + 1) * GRAIN, size)
            assert any(at <= start and stop <= at + length for at, length, zero in ranges if zero), (
                "called zero from end to end by no range"
            )


def test_a_map_of_a_huge_range_costs_nothing() -> None:
    delta = ChangeMap(None, "", ((5, (1 << 63) - 1, True), (1 << 62, 1 << 62, False))).delta(GRAIN, SIZE, SIZE)
    assert list(delta.changed.runs()) == [(0, 1)]
    assert list(delta.zeroed.runs()) == [(1, 21)]


def test_a_map_of_another_size_is_not_used() -> None:
    with pytest.raises(CheckpointLost, match="bytes"):
        ChangeMap(SIZE, "", ()).delta(GRAIN, SIZE, SIZE + 1)


def test_what_is_written_is_read_again() -> None:
    result = DiffResult(SIZE, 10 * GRAIN, GRAIN, GRAIN, 2 * GRAIN, [(0, GRAIN, "data"), (GRAIN, 2 * GRAIN, "zero")])
    content = write_map(result, "20261122T184501Z-k3v9")
    expected = ChangeMap(10 * GRAIN, "20261122T184501Z-k3v9", ((0, GRAIN, False), (GRAIN, 2 * GRAIN, True)))
    assert read_map(content, "m") == expected


def test_lines_are_read() -> None:
    text = b"# made by a tool\n0 0x10000 same # as before\n\n65536 65536 data\n  0x20000\t5 zero\r\n131077 100 same\n"
    assert read_map(text, "m") == ChangeMap(131177, "", ((65536, 65536, False), (131072, 5, True)))
    assert read_map(b"0 7 same", "m") == ChangeMap(7, "", ())


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["data", "zero", None])), max_size=8), st.integers(0, 2))
def test_lines_that_are_written_say_what_the_json_says(runs: list[tuple[int, str | None]], tail: int) -> None:
    ranges, end = [], 0
    for length, kind in runs:
        if kind is not None:
            ranges.append((end, length, kind))
        end += length
    size = end + tail
    if not size:
        return
    result = DiffResult(size, size, GRAIN, 0, 0, ranges)
    lines = write_lines(result)
    assert read_map(lines, "m") == read_map(write_map(result, ""), "m")
    starts = [tuple(map(int, line.split()[:2])) for line in lines.splitlines()]
    assert [start for start, _ in starts] == [sum(length for _, length in starts[:at]) for at in range(len(starts))]
