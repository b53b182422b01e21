"""Tags, pins, names and removals: whose word counts, and since when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.base.errors import NothingMatched
from lamella.base.ids import SnapId
from lamella.format.deletion import Remove
from lamella.format.labels import Pin, Tag
from lamella.format.records import Ref, Rename, Run, Volume, raw
from lamella.history.catalogue import Snapshot
from lamella.history.latest import latest
from lamella.operations.look import listing
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from tests.unit.small_repository import WRITER, Small, snapshot_record, volume_record


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small.make(tmp_path)


@pytest.fixture
def one(small: Small) -> Iterator[Repository]:
    """An admin's host."""
    with small.opened() as repo:
        yield repo


@pytest.fixture
def two(small: Small) -> Iterator[Repository]:
    """Another host, with a writer's secret."""
    with small.opened("two", WRITER) as repo:
        yield repo


def made(repo: Repository) -> Volume:
    """A volume of the host's own."""
    return volume_record(repo.memory.creator().id, 1)


def add(repo: Repository, number: int, of: Volume | None = None) -> Ref:
    repo.reload()
    head = repo.publish([raw(snapshot_record(number, volume=1 if of is None else of.volume_id))]).head
    repo.reload()
    return Ref(head.writer, head.seq, SnapId(number.to_bytes(16, "big")))


def say(repo: Repository, *records: Tag | Pin | Rename | Remove | Volume) -> None:
    repo.reload()
    repo.publish(records)


def shot(repo: Repository, ref: Ref) -> Snapshot:
    repo.reload()
    return next(one for one in repo.catalogue.snapshots if one.ref == ref)


# -- tags and pins -----------------------------------------------------------------------------------------------------


def test_a_tag_is_given_by_the_author_or_the_prune_key_and_taken_by_the_giver_or_the_prune_key(
    one: Repository, two: Repository
) -> None:
    ref = add(two, 1)
    say(one, Tag(ref, False, "keep"), Tag(ref, False, "also"))
    say(two, Tag(ref, False, "mine"))
    assert shot(one, ref).tags == ("also", "keep", "mine")
    say(two, Tag(ref, True, "keep"), Tag(ref, True, "mine"))
    assert shot(one, ref).tags == ("also", "keep")
    say(one, Tag(ref, True, "also"))
    assert shot(one, ref).tags == ("keep",)


def test_the_prune_key_takes_away_what_others_gave_and_they_may_give_it_again(one: Repository, two: Repository) -> None:
    ref = add(two, 1)
    say(two, Tag(ref, False, "x"), Pin(ref, False, "trial"))
    assert shot(one, ref).pinned == "trial"
    say(one, Tag(ref, True, "x"), Pin(ref, True, ""))
    assert (shot(one, ref).tags, shot(one, ref).pinned) == ((), None)
    say(two, Tag(ref, False, "x"))
    assert shot(one, ref).tags == ("x",)


def test_nobody_else_gives_a_tag_or_a_pin(one: Repository, two: Repository) -> None:
    """What nobody may remove, and what `@^TAG` means, is the owners' to say."""
    disk = made(one)
    one.publish([disk])
    ref, claim = add(one, 1, disk), add(two, 2, disk)
    say(two, Tag(ref, False, "x"), Pin(ref, False, "for ever"), Tag(claim, False, "mine"), Pin(claim, False, "mine"))
    assert (shot(one, ref).tags, shot(one, ref).pinned) == ((), None)
    assert (shot(one, claim).tags, shot(one, claim).pinned) == (("mine",), "mine")
    with pytest.raises(NothingMatched, match="no snapshot of volume disk has"):
        select(one, ["disk@^mine"])  # it is another writer's word about its own


def test_what_was_given_unseen_stays(one: Repository, two: Repository) -> None:
    """A tag given at the same time as another one is taken away is a tag."""
    ref = add(two, 1)
    two.reload()
    two.publish([Pin(ref, False, "two's")])
    one.publish([Pin(ref, True, "")])  # has not seen it
    assert shot(one, ref).pinned == "two's"
    say(one, Pin(ref, True, ""))
    assert shot(one, ref).pinned is None


def test_the_last_pin_says_why(one: Repository) -> None:
    ref = add(one, 1)
    say(one, Pin(ref, False, "first"))
    say(one, Pin(ref, False, "second"))
    assert shot(one, ref).pinned == "second"


def test_a_snapshot_is_selected_by_its_tag(one: Repository) -> None:
    disk = made(one)
    one.publish([disk])
    first, second = add(one, 1, disk), add(one, 2, disk)
    say(one, Tag(first, False, "before the move"), Tag(first, False, "both"), Tag(second, False, "both"))
    one.reload()
    assert select(one, ["disk@^before the move"])[0].snapshot.ref == first
    with pytest.raises(NothingMatched, match="on several"):
        select(one, ["disk@^both"])
    with pytest.raises(NothingMatched, match="no snapshot of volume disk has"):
        select(one, ["disk@^before"])
    rows = {row["snapshot"]: row["tags"] for row in listing.snapshots(one)}
    assert rows == {"snap-0001": ["before the move", "both"], "snap-0002": ["both"]}


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_volume_is_renamed_by_its_author_or_the_prune_key(one: Repository, two: Repository) -> None:
    disk = made(two).volume_id
    two.publish([made(two)])
    say(two, Rename(disk, "by two"))
    one.reload()
    assert list(one.catalogue.shown_names().values()) == ["by two"]
    say(one, Rename(disk, "by the key"))
    one.reload()
    assert list(one.catalogue.shown_names().values()) == ["by the key"]
    assert one.catalogue.notes == []
    say(two, Rename(disk, "by two again"))
    one.reload()
    assert list(one.catalogue.shown_names().values()) == ["by two again"]


def test_others_may_not_rename(one: Repository, two: Repository) -> None:
    one.publish([made(one)])
    say(two, Rename(made(one).volume_id, "stolen"))
    one.reload()
    assert list(one.catalogue.shown_names().values()) == ["disk"]
    assert any("not believed" in note for note in one.catalogue.notes)


# -- removals ----------------------------------------------------------------------------------------------------------


def test_a_signed_removal_ends_a_snapshot(one: Repository, two: Repository) -> None:
    first, second = add(two, 1), add(two, 2)
    say(one, Remove((second,)))
    for repo in (one, two):
        repo.reload()
        assert [snapshot.ref for snapshot in repo.catalogue.snapshots] == [first]
        assert latest(repo.catalogue.snapshots)[0].ref == first
        (removal,) = repo.catalogue.removed.values()
        assert removal.added is not None
        assert (removal.ref, removal.added.name) == (second, "snap-0002")
        assert removal.commits == ((one.own_writer, one.history.chains[removal.commits[0][0]].heads[-1].seq),)


def test_an_unsigned_removal_only_marks(one: Repository, two: Repository) -> None:
    ref = add(one, 1)
    say(two, Remove((ref,)))
    assert shot(one, ref).marked_removed
    assert one.catalogue.removed == {}
    assert any("marks 1 snapshot as removed" in note for note in one.catalogue.notes)
    assert listing.snapshots(one)[0]["marked_removed"] is True


def test_removing_an_impostor_ends_the_conflict(one: Repository, two: Repository) -> None:
    true = add(one, 1)
    false = add(two, 1)
    assert shot(one, true).conflict
    say(one, Remove((false,)))
    assert not shot(one, true).conflict


def test_what_a_run_said_goes_with_its_snapshots(one: Repository) -> None:
    run = Run("snap-0001", False, ())
    head = one.publish([raw(snapshot_record(1)), raw(run)]).head
    one.reload()
    assert one.catalogue.runs == {"snap-0001": run}
    say(one, Remove((Ref(head.writer, head.seq, SnapId((1).to_bytes(16, "big"))),)))
    one.reload()
    assert one.catalogue.runs == {}
    assert listing.volumes(one) == []
