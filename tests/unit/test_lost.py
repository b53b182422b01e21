"""LOST records: ranges joined, made few enough, and whose word counts; objects moved aside."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.base.errors import IntegrityError, StoreUnavailable
from lamella.base.trust import Clear
from lamella.format.known import understood
from lamella.format.lost import Lost
from lamella.format.ranges import fewer, join
from lamella.format.records import NO_REF, RawRecord, raw
from lamella.operations.look.listing import snapshots
from lamella.operations.shared.aside import may_set_aside, set_aside
from lamella.operations.shared.selection import select
from lamella.stores.memory import MemoryStore
from lamella_kit.fault_store import FaultStore
from tests.unit.small_repository import CHUNK, Small, image

RANGES = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 20)), max_size=30).map(
    lambda pairs: sorted((start, start + length) for start, length in pairs)
)


def covered(ranges: list[tuple[int, int]]) -> set[int]:
    return {byte for start, end in ranges for byte in range(start, end)}


@given(RANGES)
def test_joining_covers_the_same(ranges: list[tuple[int, int]]) -> None:
    joined = join(ranges)
    assert covered(joined) == covered(ranges)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(joined))


@given(RANGES, st.integers(1, 8))
def test_fewer_ranges_cover_at_least_the_same_and_as_little_more_as_can_be(
    ranges: list[tuple[int, int]], most: int
) -> None:
    joined = join(ranges)
    few = fewer(joined, most)
    assert len(few) == min(most, len(joined))
    assert covered(few) >= covered(joined)
    gaps = sorted(other[0] - one[1] for one, other in itertools.pairwise(joined))
    assert len(covered(few)) - len(covered(joined)) == sum(gaps[: max(0, len(joined) - most)])


def test_more_ranges_than_a_record_holds_keep_their_exact_sum() -> None:
    lost = Lost.of(NO_REF, [(3 * number, 3 * number + 1) for number in range(10_000)])
    assert (lost.lost_bytes, len(lost.ranges)) == (10_000, 4096)
    assert understood(raw(lost)) == lost


@pytest.mark.parametrize(
    "value",
    [
        bytes(40) + (5).to_bytes(8, "little") + bytes(6),
        bytes(48) + (1).to_bytes(4, "little") + bytes(8) + (9).to_bytes(8, "little") + bytes(2),
        bytes(40) + (1).to_bytes(8, "little") + (1).to_bytes(4, "little") + bytes(16) + bytes(2),
        bytes(40)
        + (9).to_bytes(8, "little")
        + (1).to_bytes(4, "little")
        + bytes(8)
        + (5).to_bytes(8, "little")
        + bytes(2),
    ],
)
def test_sums_that_cannot_be_are_refused(value: bytes) -> None:
    with pytest.raises(IntegrityError):
        understood(RawRecord(Lost.TYPE, value))


def test_the_newest_word_counts_and_of_unrelated_ones_all(small: Small, tmp_path: Path) -> None:
    small.backup(image(tmp_path / "disk.img", "abc"))
    with small.opened() as repo:
        ref = select(repo, [])[0].snapshot.ref
    with small.opened() as one, small.opened("two") as two:
        one.publish([raw(Lost.of(ref, [(0, CHUNK)]))])
        two.publish([raw(Lost.of(ref, [(CHUNK, 2 * CHUNK)], ["settings"]))])
    with small.opened() as repo:
        (lost,) = [one.lost for one in repo.catalogue.snapshots]
        assert lost is not None
        assert (lost.ranges, lost.documents) == (((0, 2 * CHUNK),), ("settings",))
        (row,) = snapshots(repo)
        assert (row["result"], row["lost"]) == ("incomplete", ["disk"])
        repo.publish([raw(Lost.of(ref, []))])
        repo.reload()
        assert repo.catalogue.snapshots[0].lost is None, "it had seen both"


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small.make(tmp_path)


def test_moving_aside_keeps_the_bytes_and_can_be_killed_anywhere() -> None:
    content = b"bad bytes"
    aside = f"quarantine/{hashlib.sha256(content).hexdigest()}/p/00/x"
    for method in ("put", "sync", "get", "delete"):
        inner = MemoryStore({"p/00/x": content})
        store = FaultStore(inner)
        store.fail(method, StoreUnavailable("gone"), after=int(method == "get"))
        with pytest.raises(StoreUnavailable):
            set_aside(store, "p/00/x")
        store.assert_all_fired()
        assert inner.objects()["p/00/x"] == content, method
        assert set_aside(store, "p/00/x") == aside
        assert inner.objects() == {aside: content}
    assert may_set_aside(MemoryStore())


def test_a_copy_that_does_not_read_back_keeps_the_object_where_it_is() -> None:
    inner = MemoryStore()
    inner.put("p/00/x", Clear(b"bad bytes"))
    store = FaultStore(inner)
    store.flip_byte(0, after=1)
    with pytest.raises(Exception, match="does not read back"):
        set_aside(store, "p/00/x")
    assert inner.objects()["p/00/x"] == b"bad bytes"
