"""Intervals between checkpoints: what they compose to, and that no altered chain is ever followed."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost
from lamella.base.ids import RepoId
from lamella.memory.host import Host
from lamella.memory.intervals import GRAIN, Interval, Intervals, compose
from lamella.memory.ledger import needed_checkpoints

IDENTITY = b"tracked:disk"
SIZE = 40 * GRAIN


def delta(*changed: int, base_size: int = SIZE, size: int = SIZE) -> Delta:
    return Delta.bounded(GRAIN, base_size, size, ChunkSet((one, one + 1) for one in changed), ChunkSet([(30, 32)]))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host("5" * 16, "box", tmp_path / "state", tmp_path / "cache")


@pytest.fixture
def intervals(host: Host) -> Intervals:
    return Intervals(host, IDENTITY)


def files(host: Host) -> list[Path]:
    return sorted((host.state_dir / "intervals").glob("*/*.json"))


def file_of(host: Host, begin: str) -> Path:
    (found,) = [path for path in files(host) if json.loads(path.read_text())["interval"]["begin"] == begin]
    return found


def chain(intervals: Intervals, *moments: str) -> None:
    for number, (begin, end) in enumerate(pairwise(moments)):
        intervals.add(begin, end, delta(number))


def test_a_chain_is_walked_to_its_end(intervals: Intervals) -> None:
    chain(intervals, "a", "b", "c", "d")
    assert [(link.begin, link.end) for link in intervals.walk("a")] == [("a", "b"), ("b", "c"), ("c", "d")]
    assert [link.delta for link in intervals.walk("a")] == [delta(0), delta(1), delta(2)]
    assert [link.begin for link in intervals.walk("c")] == ["c"]
    assert intervals.walk("d") == []
    assert intervals.walk("unknown") == []


def test_two_chains_join(intervals: Intervals) -> None:
    intervals.add("a", "c", delta(1))
    intervals.add("b", "c", delta(2))
    intervals.add("c", "d", delta(3))
    assert [link.end for link in intervals.walk("a")] == ["c", "d"]
    assert [link.end for link in intervals.walk("b")] == ["c", "d"]
    assert intervals.keep_only(["b"]) == {"d"}
    assert [link.end for link in intervals.walk("b")] == ["c", "d"], "the link of the other chain is not missed"
    assert intervals.walk("a") == []


def test_links_that_no_base_leads_to_go(intervals: Intervals, host: Host) -> None:
    chain(intervals, "a", "b", "c")
    intervals.add("x", "c", delta(5))
    assert intervals.keep_only(["b", "lonely"]) == {"c", "lonely"}
    assert [json.loads(path.read_text())["interval"]["begin"] for path in files(host)] == ["b"]
    assert intervals.keep_only([]) == set()
    assert files(host) == []


def test_composed_deltas_name_all_changes() -> None:
    last = delta(9)
    assert compose([], last) is last
    links = [Interval("a", "b", (), delta(1, 2)), Interval("b", "c", (), delta(2, 3))]
    whole = compose(links, last)
    assert list(whole.changed.runs()) == [(1, 4), (9, 10)]
    assert list(whole.zeroed.runs()) == [(30, 32)]


def test_resizes_on_the_way_are_not_forgotten() -> None:
    """Cut off and grown again: everything behind the cut changed, although the ends have one size."""
    links = [
        Interval("a", "b", (), delta(size=10 * GRAIN + 1)),
        Interval("b", "c", (), delta(base_size=10 * GRAIN + 1)),
    ]
    whole = compose(links, delta())
    assert (whole.base_size, whole.size) == (SIZE, SIZE)
    assert set(range(10, 40)) == {
        number for first, end in (whole.changed | whole.zeroed).runs() for number in range(first, end)
    }
    assert 10 in whole.changed


def test_links_that_do_not_meet_are_no_delta() -> None:
    with pytest.raises(CheckpointLost, match="do not meet"):
        compose([Interval("a", "b", (), delta(size=SIZE + 1))], delta())
    finer = Delta.everything(GRAIN // 2, SIZE, SIZE)
    with pytest.raises(CheckpointLost, match="do not meet"):
        compose([Interval("a", "b", (), finer)], delta())


OTHER_VALUES = {
    "begin": "z",
    "end": "d",
    "previous": [],
    "grain": 2 * GRAIN,
    "base_size": 1,
    "size": SIZE + 1,
    "changed": [],
    "zeroed": [[0, 40]],
}


@pytest.mark.parametrize("field", sorted(OTHER_VALUES))
def test_an_edited_link_ends_the_walk(intervals: Intervals, host: Host, field: str) -> None:
    chain(intervals, "a", "b", "c")
    path = file_of(host, "b")
    content = json.loads(path.read_text())
    assert content["interval"][field] != OTHER_VALUES[field]
    content["interval"][field] = OTHER_VALUES[field]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointLost):
        intervals.walk("a")
    # The base is what is left to start from; nothing of the broken chain is.
    assert intervals.keep_only(["a"]) == {"a"}
    assert files(host) == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff", b'{"interval": 5, "mac": ""}', b'{"mac": "zz", "interval": {}}']
)
def test_a_damaged_link_ends_the_walk(intervals: Intervals, host: Host, content: bytes) -> None:
    chain(intervals, "a", "b", "c")
    file_of(host, "b").write_bytes(content)
    with pytest.raises(CheckpointLost):
        intervals.walk("a")
    intervals.add("x", "y", delta(1))
    assert intervals.keep_only(["a", "x"]) == {"a", "y"}


def test_a_link_under_another_name_is_not_followed(intervals: Intervals, host: Host) -> None:
    chain(intervals, "a", "b", "c")
    shutil.copy(file_of(host, "b"), file_of(host, "a"))
    with pytest.raises(CheckpointLost, match="altered"):
        intervals.walk("a")


def test_a_link_of_another_source_is_not_followed(intervals: Intervals, host: Host) -> None:
    chain(intervals, "a", "b")
    (own,) = files(host)
    other = Intervals(host, b"tracked:other")
    other.add("a", "c", delta(1))
    (foreign,) = set(files(host)) - {own}
    shutil.copy(foreign, own)
    with pytest.raises(CheckpointLost, match="altered or belongs to another"):
        intervals.walk("a")
    assert len(other.walk("a")) == 1


def test_a_link_of_another_host_is_not_followed(intervals: Intervals, host: Host, tmp_path: Path) -> None:
    chain(intervals, "a", "b")
    stranger = Host("5" * 16, "box", tmp_path / "stranger", tmp_path / "cache")
    shutil.copytree(host.state_dir, stranger.state_dir)
    assert len(Intervals(stranger, IDENTITY).walk("a")) == 1, "a copied state is the state"
    (stranger.state_dir / "intervals" / "key").unlink()
    with pytest.raises(CheckpointLost, match="altered"):
        Intervals(stranger, IDENTITY).walk("a")


def test_a_link_that_belongs_to_another_past_is_not_followed(intervals: Intervals, host: Host) -> None:
    """The first link is exchanged for one that ends at the same moment: the second was not made after that one."""
    chain(intervals, "a", "b", "c")
    second = file_of(host, "b").read_bytes()
    intervals.keep_only([])
    intervals.add("a", "b", delta(20))
    (host.state_dir / "intervals").mkdir(exist_ok=True)
    name = intervals._path("b")
    name.write_bytes(second)
    with pytest.raises(CheckpointLost, match="belong together"):
        intervals.walk("a")


def test_a_lost_link_is_a_gap(intervals: Intervals, host: Host) -> None:
    chain(intervals, "a", "b", "c")
    file_of(host, "b").unlink()
    assert [link.end for link in intervals.walk("a")] == ["b"], "the walk ends at a moment that is not there any more"


def test_nested_text_is_an_unreadable_record(tmp_path: Path) -> None:
    """Brackets deep enough to exhaust a parser: what cannot be read is lost, in every file of this host's memory."""
    host = Host("1" * 16, "here", tmp_path / "state", tmp_path / "cache")
    nested = "[" * 100_000
    memory = host.memory(RepoId(bytes(16)))
    memory.replace(memory.directory / "ledger.json", nested.encode())
    assert needed_checkpoints(host, b"disk") == set()
    intervals = Intervals(host, b"disk")
    intervals.add("a", "b", Delta.everything(GRAIN, GRAIN, GRAIN))
    [path] = (host.state_dir / "intervals").glob("*/*.json")
    path.write_text(nested)
    with pytest.raises(CheckpointLost):
        intervals.walk("a")
    assert intervals.keep_only(["a"]) == {"a"}
