"""`VOLUME[@SNAPSHOT]`: names, ids, prefixes, the latest, and what the errors tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lamella.base.errors import NothingMatched, UsageError
from lamella.base.ids import DomainId, VolumeId
from lamella.format.records import AddSnap, Volume, raw
from lamella.operations.shared.selection import find_snapshot, find_volume, select, split_selector
from lamella.repository.repository import Repository
from tests.unit.small_repository import Small, snapshot_record


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small.make(tmp_path)


def volume(number: int, name: str) -> Volume:
    return Volume(VolumeId(number.to_bytes(16, "big")), DomainId(bytes([7] * 16)), 16, name, "", b"file:%d" % number)


def snap(number: int, name: str, of: int = 1) -> AddSnap:
    return replace(snapshot_record(number, volume=of), name=name)


def texts(repo: Repository, *selectors: str) -> list[str]:
    return [one.text for one in select(repo, selectors)]


@pytest.mark.parametrize(
    ("text", "want"), [("a", ("a", None)), ("a@b", ("a", "b")), ("a@b@c", ("a", "b@c")), ("a b@x", ("a b", "x"))]
)
def test_selectors_are_split(text: str, want: tuple[str, str | None]) -> None:
    assert split_selector(text) == want


@pytest.mark.parametrize("text", ["", "@", "@x", "x@"])
def test_parts_may_not_be_empty(text: str) -> None:
    with pytest.raises(UsageError, match="not a selection"):
        split_selector(text)


def test_snapshots_by_prefix_name_and_latest(small: Small) -> None:
    small.publish([volume(1, "disk"), raw(snap(1, "20260101T000000Z-aaaa"))])
    small.publish([raw(snap(2, "20260102T000000Z-bbbb"))])
    small.publish([raw(snap(3, "20260102T000000Z-bbbbb"))])
    with small.opened() as repo:
        assert texts(repo, "disk@20260101") == ["disk@20260101T000000Z-aaaa"]
        assert texts(repo, "disk@20260102T000000Z-bbbb") == ["disk@20260102T000000Z-bbbb"]  # a name before a prefix
        assert texts(repo, "disk") == texts(repo, "disk@latest") == ["disk@20260102T000000Z-bbbbb"]
        assert texts(repo, "disk@20260101", "disk") == ["disk@20260101T000000Z-aaaa", "disk@20260102T000000Z-bbbbb"]
        with pytest.raises(NothingMatched) as caught:
            select(repo, ["disk@2026"])
        assert all(part in caught.value.hint for part in ("aaaa", "bbbb", "bbbbb"))
        with pytest.raises(NothingMatched, match="no snapshot 2027") as caught:
            select(repo, ["disk@2027"])
        assert caught.value.exit_code == 4
        assert "list" in caught.value.hint


def test_without_selectors_everything_by_volume_and_time(small: Small) -> None:
    small.publish([volume(1, "zeta"), raw(snap(1, "s1")), raw(snap(3, "s3"))])
    small.publish([volume(2, "alpha"), volume(3, "empty"), raw(snap(2, "s2", of=2))])
    with small.opened() as repo:
        assert texts(repo) == ["alpha@s2", "zeta@s1", "zeta@s3"]


def test_volumes_by_name_and_id(small: Small) -> None:
    small.publish([volume(1, "disk"), volume(2, "other"), raw(snap(1, "s1"))])
    with small.opened() as repo:
        assert find_volume(repo, "disk").volume_id == (1).to_bytes(16, "big")
        assert find_volume(repo, (2).to_bytes(16, "big").hex()).name == "other"
        for wrong in ("Disk", "dis", "disk~0000", "00"):
            with pytest.raises(NothingMatched, match="no volume") as caught:
                find_volume(repo, wrong)
            assert caught.value.hint == "volumes: disk, other"


def test_an_empty_repository_says_that_it_has_no_volumes(small: Small) -> None:
    with small.opened() as repo:
        assert texts(repo) == []
        with pytest.raises(NothingMatched) as caught:
            select(repo, ["disk"])
        assert caught.value.hint == "volumes: none"


def test_a_name_that_several_share_needs_its_digits(small: Small) -> None:
    one, two = 0xAAAA << 112, 0xBBBB << 112
    small.publish([volume(one, "disk"), volume(two, "disk"), raw(snap(1, "s1", of=one)), raw(snap(2, "s2", of=two))])
    with small.opened() as repo:
        with pytest.raises(NothingMatched, match="several volumes") as caught:
            select(repo, ["disk"])
        assert caught.value.hint == "write one of: disk~aaaa, disk~bbbb"
        assert texts(repo, "disk~bbbb") == ["disk~bbbb@s2"]
        assert texts(repo) == ["disk~aaaa@s1", "disk~bbbb@s2"]


def test_a_name_made_to_look_like_another_volume_is_never_taken_for_it(small: Small) -> None:
    one, two = 0xAAAA << 112, 0xBBBB << 112
    small.publish([volume(one, "disk"), volume(two, "disk"), volume(3, "disk~aaaa")])
    with small.opened() as repo:
        with pytest.raises(NothingMatched) as caught:
            find_volume(repo, "disk~aaaa")
        assert one.to_bytes(16, "big").hex() in caught.value.hint
        assert find_volume(repo, one.to_bytes(16, "big").hex()).volume_id == one.to_bytes(16, "big")


def test_several_latest_are_left_to_the_user_unless_one_is_ours(small: Small) -> None:
    with small.opened() as one, small.opened("two") as two, small.opened("three") as three:
        one.publish([raw(volume(1, "disk")), raw(snap(1, "first"))])
        two.reload()
        three.reload()
        two.publish([raw(snap(2, "from-two"))])
        three.publish([raw(snap(3, "from-three"))])
        for repo in (one, two, three):
            repo.reload()
        with pytest.raises(NothingMatched, match="several latest") as caught:
            select(one, ["disk"])
        assert caught.value.hint == "choose: from-three, from-two"
        assert texts(two, "disk") == ["disk@from-two"]
        assert texts(three, "disk@latest") == ["disk@from-three"]
        assert texts(one, "disk@from-th") == ["disk@from-three"]
        one.publish([raw(snap(4, "after both"))])
        for repo in (one, two, three):
            repo.reload()
            assert texts(repo, "disk") == ["disk@after both"]


def test_the_latest_beyond_a_checkpoint_is_told_by_the_whole_history(small: Small) -> None:
    with small.opened() as one, small.opened("two") as two:
        one.publish([raw(volume(1, "disk")), raw(snap(1, "older"))])
        two.reload()
        two.publish([raw(snap(2, "newer"))])
        for _ in range(70):
            two.publish([])
    with small.opened("three") as repo:
        assert not repo.history.whole
        assert texts(repo, "disk") == ["disk@newer"]


def test_a_volume_without_snapshots(small: Small) -> None:
    small.publish([volume(1, "disk")])
    with small.opened() as repo:
        with pytest.raises(NothingMatched, match="has no snapshot"):
            select(repo, ["disk"])
        with pytest.raises(NothingMatched):
            find_snapshot(repo, find_volume(repo, "disk"), "latest")
