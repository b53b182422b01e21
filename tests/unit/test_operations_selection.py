"""`VOLUME[@SNAPSHOT]`: names, ids, prefixes, the latest, and what the errors tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lamella.base.errors import NothingMatched, UsageError
from lamella.base.ids import VolumeId
from lamella.format.owners import Give, Join
from lamella.format.records import AddSnap, Volume, raw
from lamella.operations.shared.selection import find_snapshot, find_volume, select, split_selector
from lamella.repository.repository import Repository
from tests.unit.small_repository import WRITER, Small, snapshot_record, tick, volume_record


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small.make(tmp_path)


def volume(small: Small, number: int, name: str) -> Volume:
    """A volume under an id made of a number: an admin says so, for the writer of host "one"."""
    made = volume_record(small.own(), number, name, b"file:%d" % number)
    return replace(made, volume_id=VolumeId(number.to_bytes(16, "big")))


def snap(number: int, name: str, of: int | VolumeId = 1) -> AddSnap:
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
    small.publish([volume(small, 1, "disk"), raw(snap(1, "20260101T000000Z-aaaa"))])
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
    small.publish([volume(small, 1, "zeta"), raw(snap(1, "s1")), raw(snap(3, "s3"))])
    small.publish([volume(small, 2, "alpha"), volume(small, 3, "empty"), raw(snap(2, "s2", of=2))])
    with small.opened() as repo:
        assert texts(repo) == ["alpha@s2", "zeta@s1", "zeta@s3"]


def test_volumes_by_name_and_id(small: Small) -> None:
    small.publish([volume(small, 1, "disk"), volume(small, 2, "other"), raw(snap(1, "s1"))])
    with small.opened() as repo:
        assert find_volume(repo, "disk").volume_id == (1).to_bytes(16, "big")
        assert find_volume(repo, (2).to_bytes(16, "big").hex()).name == "other"
        near, every = "did you mean disk?", "volumes: disk, other"
        for wrong, hint in {"Disk": near, "dis": near, "disk~ffff": near, "00": every}.items():
            with pytest.raises(NothingMatched, match="no volume") as caught:
                find_volume(repo, wrong)
            assert caught.value.hint == hint


def test_an_empty_repository_says_that_it_has_no_volumes(small: Small) -> None:
    with small.opened() as repo:
        assert texts(repo) == []
        with pytest.raises(NothingMatched) as caught:
            select(repo, ["disk"])
        assert caught.value.hint == "volumes: none"


def test_a_name_that_several_share_needs_its_digits(small: Small) -> None:
    one, two = 0xAAAA << 112, 0xBBBB << 112
    disks = [volume(small, one, "disk"), volume(small, two, "disk")]
    small.publish([*disks, raw(snap(1, "s1", of=one)), raw(snap(2, "s2", of=two))])
    with small.opened() as repo:
        with pytest.raises(NothingMatched, match="does not say which volume") as caught:
            select(repo, ["disk"])
        who = f"of writer {small.own().hex()[:8]} one"
        assert caught.value.hint == f"write one of: disk~aaaa ({who}), disk~bbbb ({who})"
        assert texts(repo, "disk~bbbb") == ["disk~bbbb@s2"]
        assert texts(repo) == ["disk~aaaa@s1", "disk~bbbb@s2"]


def test_a_plain_name_means_the_hosts_own_volume(small: Small) -> None:
    """Whatever others call theirs; a host without a volume of that name is asked which is meant."""
    mine, other = small.own(), small.own("two")
    ours, theirs = volume_record(mine, 1, "disk"), volume_record(other, 2, "disk")
    with small.opened() as one, small.opened("two", WRITER) as two:
        one.publish([raw(ours), raw(snap(1, "ours", of=ours.volume_id))])
        two.reload()
        two.publish([raw(theirs), raw(snap(2, "theirs", of=theirs.volume_id))])
        one.reload()
        two.reload()
        assert texts(one, "disk") == ["disk@ours"]
        assert texts(two, "disk") == ["disk@theirs"]
        assert texts(one, f"disk~{theirs.volume_id.hex()[:4]}")[0].endswith("@theirs")
    with small.opened("three") as repo:
        with pytest.raises(NothingMatched, match="does not say which volume"):
            select(repo, ["disk"])
        assert texts(repo, f"disk~{ours.volume_id.hex()[:4]}")[0].endswith("@ours")


def test_a_claim_is_never_the_latest_and_is_selected_in_full(small: Small) -> None:
    ours = volume_record(small.own(), 1, "disk")
    with small.opened() as one, small.opened("two", WRITER) as two, small.opened("three") as three:
        one.publish([raw(ours), raw(snap(1, "20260101T000000Z-aaaa", of=ours.volume_id))])
        two.reload()
        two.publish([raw(snap(2, "20260102T000000Z-bbbb", of=ours.volume_id))])
        two.publish([raw(snap(3, "20260101T000000Z-aaaa", of=ours.volume_id))])
        for repo in (one, two, three):
            repo.reload()
        assert texts(one, "disk") == texts(three, "disk") == ["disk@20260101T000000Z-aaaa"]
        assert select(two, ["disk"])[0].snapshot.ref.writer == two.own_writer  # its own word counts there
        for repo in (one, three):
            assert select(repo, ["disk@20260101T000000Z-aaaa"])[0].snapshot.ref.writer == one.own_writer
            assert texts(repo, "disk@20260102T000000Z-bbbb") == ["disk@20260102T000000Z-bbbb"]
            with pytest.raises(NothingMatched, match="no snapshot"):
                select(repo, ["disk@20260102"])
            assert select(repo, ["disk@" + (3).to_bytes(16, "big").hex()])[0].snapshot.claim


def test_a_name_made_to_look_like_another_volume_is_never_taken_for_it(small: Small) -> None:
    one, two = 0xAAAA << 112, 0xBBBB << 112
    small.publish([volume(small, one, "disk"), volume(small, two, "disk"), volume(small, 3, "disk~aaaa")])
    with small.opened() as repo:
        with pytest.raises(NothingMatched) as caught:
            find_volume(repo, "disk~aaaa")
        assert one.to_bytes(16, "big").hex() in caught.value.hint
        assert find_volume(repo, one.to_bytes(16, "big").hex()).volume_id == one.to_bytes(16, "big")


def now(added: AddSnap) -> AddSnap:
    """The same made at this moment: a time before a host's last look is not believed."""
    return replace(added, time_ms=tick())


def test_of_several_latest_the_newest_by_time_is_taken_and_the_others_are_named(small: Small) -> None:
    told: list[str] = []
    with small.opened() as one, small.opened("two") as two, small.opened("three") as three:
        own = [repo.memory.creator().id for repo in (one, two, three)]
        disk = volume_record(own[0], 1, "disk")
        one.publish(
            [raw(disk), raw(now(snap(1, "first", of=disk.volume_id))), Join(own[1], own[0]), Join(own[2], own[0])]
        )
        two.reload()
        three.reload()
        two.publish([raw(now(snap(2, "from-two", of=disk.volume_id)))])
        three.publish([raw(now(snap(3, "from-three", of=disk.volume_id)))])
        for repo in (one, two, three):
            repo.reload()
            repo.host.notices.listener = told.append
            assert texts(repo, "disk") == ["disk@from-three"]
        assert [text for text in told if "possibly as recent: from-two" in text] == told and len(told) == 3
        assert texts(one, "disk@from-tw") == ["disk@from-two"]
        one.publish([raw(now(snap(4, "after both", of=disk.volume_id)))])
        for repo in (one, two, three):
            repo.reload()
            assert texts(repo, "disk") == ["disk@after both"]


def test_the_latest_beyond_a_checkpoint_is_told_by_the_whole_history(small: Small) -> None:
    with small.opened() as one, small.opened("two") as two:
        disk = volume_record(one.memory.creator().id, 1, "disk")
        give = Give(disk.volume_id, two.memory.creator().id)
        one.publish([raw(disk), raw(snap(1, "older", of=disk.volume_id)), give])
        two.reload()
        two.publish([raw(replace(snap(2, "newer", of=disk.volume_id), time_ms=5))])
        for _ in range(70):
            two.publish([])
    with small.opened("three") as repo:
        assert not repo.history.whole
        assert texts(repo, "disk") == ["disk@newer"]


def test_a_volume_without_snapshots(small: Small) -> None:
    small.publish([volume(small, 1, "disk")])
    with small.opened() as repo:
        with pytest.raises(NothingMatched, match="has no snapshot"):
            select(repo, ["disk"])
        with pytest.raises(NothingMatched):
            find_snapshot(repo, find_volume(repo, "disk"), "latest")
