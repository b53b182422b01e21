"""Whose word counts, through the command: a writer with the data key against the owner of a volume."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lamella.base.ids import ChunkId, RepoId, SnapId, WriterId
from lamella.crypto.slots import key_file
from lamella.format.commit import Head
from lamella.format.inner import Origin, OriginPlace
from lamella.format.records import AddSnap, Document, RawRecord, Ref, Volume, raw, volume_id
from lamella.history.catalogue import VolumeState
from lamella.history.publish import append
from lamella.memory.host import Host, machine_name
from lamella.repository.repository import Repository
from lamella.stores.url import open_store
from tests.cli.test_missing_history import ADMIN, WRITER, World

RESCUE = Path(__file__).resolve().parents[2] / "src" / "lamella" / "rescue.py"


@dataclass
class Thief:
    """Another writer, which publishes what it likes. Its snapshots have the tree of the oldest one of the victim's."""

    world: World
    secret: bytes = WRITER
    added: list[AddSnap] = field(default_factory=list)

    def host(self) -> Host:
        place = self.world.place / "thief"
        return Host(machine_name("thief"), "thief", place / "state", place / "cache")

    def say(self, *records: RawRecord) -> WriterId:
        with Repository.open(open_store(str(self.world.store)), key_file(self.secret), self.host()) as repo:
            return append(repo.log, records).head.writer

    def head(self) -> Head:
        with Repository.open(open_store(str(self.world.store)), key_file(self.secret), self.host()) as repo:
            assert repo.own_writer is not None
            return repo.history.chains[repo.own_writer].heads[-1]

    def state(self, name: str = "disk") -> VolumeState:
        with Repository.open(open_store(str(self.world.store)), key_file(self.secret), self.host()) as repo:
            found = [one for one in repo.catalogue.volumes.values() if one.name == name]
            return max(found, key=lambda one: len(one.snapshots))

    def volume(self, name: str, identity: bytes = b"file:thief") -> Volume:
        """A volume of its own."""
        with Repository.open(open_store(str(self.world.store)), key_file(self.secret), self.host()) as repo:
            creator = repo.memory.creator().id
        record = self.state().record
        assert record is not None
        made = replace(record, creator=creator, nonce=bytes(16), name=name, identity=identity, signature=bytes(64))
        return replace(made, volume_id=volume_id(creator, made.nonce))

    def snapshot(self, name: str, time_ms: int, inner: Sequence[RawRecord] = (), number: int = 0) -> AddSnap:
        """A snapshot in the victim's volume, with the oldest content."""
        oldest = self.state().snapshots[0].added
        snap_id = SnapId((1000 + len(self.added) + number).to_bytes(16, "big"))
        made = replace(oldest, snap_id=snap_id, name=name, time_ms=time_ms, inner=tuple(inner))
        self.added.append(made)
        return made


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Host "one", an admin's, saved a, b and c; there is a writer's slot."""
    world = World(tmp_path_factory.mktemp("built"), images=tmp_path_factory.mktemp("images"))
    (world.place / "admin").write_bytes(ADMIN)
    (world.place / "admin").chmod(0o600)
    (world.place / "writer").write_bytes(WRITER)
    (world.place / "writer").chmod(0o600)
    world.ok("one", "init", "-q")
    world.ok("one", "key", "add", "--role", "writer", "--new-keyfile", world.place / "writer")
    for letter in (b"a", b"b", b"c"):
        world.backup("one", "disk", letter)
    return world


@pytest.fixture
def world(built: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> World:
    place = tmp_path / "world"
    shutil.copytree(built.place, place)
    capsys.readouterr()
    made = World(place, capsys, images=built.images)
    made.ok("one", "list")
    return made


def rescued(world: World, selector: str, content: bytes | None, code: int = 0) -> str:
    """The same with the emergency reader."""
    target = world.place / "rescued"
    command = [sys.executable, "-I", "-S", str(RESCUE), "restore", selector, "--repo", str(world.store)]
    done = subprocess.run(
        [*command, "--keyfile", str(world.place / "admin"), "--to", str(target)], capture_output=True, text=True
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    found = target.read_bytes()[:1] if target.exists() else None
    assert found == content
    target.unlink(missing_ok=True)
    return done.stderr


def sound(world: World, content: bytes, selector: str = "disk") -> None:
    """The owner, a host that knows nothing and the emergency reader restore the owner's newest snapshot."""
    for host in ("one", "fresh"):
        world.restored(host, selector, content, 0)
    rescued(world, selector, content)


DAY = 86_400_000
FAR = 253_402_300_000_000


def test_a_volume_is_not_taken_by_saying_that_it_is_ones_own(world: World) -> None:
    thief = Thief(world)
    record = thief.state().record
    assert record is not None
    own = thief.volume("x")
    thief.say(
        raw(replace(record, name="stolen")),
        raw(replace(record, creator=own.creator, name="stolen")),
        raw(replace(record, creator=own.creator, nonce=bytes(16), name="stolen")),
        raw(thief.snapshot("20990101T000000Z-fake", FAR)),
    )
    sound(world, b"c")
    rows = world.json("fresh", "list")
    assert [row["volume"] for row in rows["volumes"]] == ["disk"]
    assert [row["claimant"] != "" for row in rows["snapshots"]] == [False, False, False, True]


def test_what_is_called_as_the_victims_volume_changes_nothing_for_the_victim(world: World) -> None:
    """Neither the name by which it is restored, nor the one that its rules have, nor where it is saved next."""
    thief = Thief(world)
    thief.say(raw(thief.volume("disk", thief.state().identity)))
    world.restored("one", "disk", b"c", 0)
    world.backup("one", "disk", b"d")
    world.restored("one", "disk", b"d", 0)
    assert [row["volume"] for row in world.json("one", "list")["volumes"]] == ["disk"]
    # A host that has no volume of its own is asked which is meant, and told whose they are.
    code, _, err = world.run("fresh", "restore", "disk", "--to", world.place / "no")
    assert code == 4 and "does not say which volume is meant" in err and err.count("of writer") == 2
    full = f"disk~{thief.state().volume_id.hex()[:4]}"
    world.restored("fresh", full, b"d", 0)
    rescued(world, "disk", None, 4)
    rescued(world, full, b"d")
    world.restored("one", full, b"d", 0)  # it means the same where the plain name would do


def test_rules_by_name_go_by_the_name_that_the_owner_gave(world: World) -> None:
    """An empty volume of that name may not make a policy miss the victim's."""
    thief = Thief(world)
    thief.say(raw(thief.volume("disk")))
    (world.place / "none").write_text("[prune]\nkeep_last = 1\n[prune.volumes.disk]\nkeep_last = 9\n")
    for host in ("one", "third"):
        assert world.json(host, "prune", "-y")["removed"] == []
    assert len(world.json("one", "list")["snapshots"]) == 3


def test_neither_time_nor_origin_of_a_claim_makes_it_the_latest(world: World) -> None:
    thief = Thief(world)
    place = OriginPlace(RepoId(b"R" * 16), Ref(WriterId(b"w" * 16), 1 << 62, SnapId(b"s" * 16)))
    thief.say(raw(thief.snapshot("20990101T000000Z-copy", FAR, [Origin(place, place).encode()])))
    sound(world, b"c")
    for host in ("one", "fresh"):
        assert world.json(host, "list")["volumes"][0]["latest"] == world.json(host, "list")["snapshots"][2]["snapshot"]
    world.backup("one", "disk", b"d")
    sound(world, b"d")
    # It is restored if it is named in full.
    world.restored("fresh", "disk@20990101T000000Z-copy", b"a", 0)
    rescued(world, "disk@20990101T000000Z-copy", b"a")


def test_seven_claims_an_hour_displace_nothing(world: World) -> None:
    thief = Thief(world)
    names = [row["snapshot"] for row in world.json("one", "list")["snapshots"]]
    newest = thief.state().snapshots[-1].added.time_ms
    for hour in range(1, 5):
        thief.say(*(raw(thief.snapshot(f"claim-{hour}-{n}", newest + hour * 3_600_000 + n)) for n in range(7)))
        for host in ("one", "third"):
            world.run(host, "prune", "--keep-last", "3", "--keep-daily", "1", "-y")
    left = [row["snapshot"] for row in world.json("one", "list")["snapshots"] if not row["claimant"]]
    assert left == names
    for name, letter in zip(names, (b"a", b"b", b"c"), strict=True):
        world.restored("one", f"disk@{name}", letter, 0)


def test_a_claim_does_not_stand_in_for_the_last_whole_snapshot(world: World) -> None:
    thief = Thief(world)
    thief.say(raw(thief.snapshot("20260101T000000Z-mine", 5)))
    names = [row["snapshot"] for row in world.json("one", "list")["snapshots"] if not row["claimant"]]
    for name in names[:2]:
        world.ok("one", "delete", f"disk@{name}", "-y")
    code, _, err = world.run("one", "delete", f"disk@{names[2]}", "-y")
    assert code == 2 and "no whole snapshot of disk would be left" in err


def unlike(image: Path, letter: bytes) -> None:
    """An image that no other one shares a chunk with."""
    image.write_bytes(hashlib.shake_256(letter).digest(1 << 20))


def packs(world: World) -> int:
    return len(list(world.store.glob("p/*/*")))


def later(world: World, host: str, days: int) -> None:
    """Everything that this host saw first, it saw so many days earlier."""
    for path in (world.place / host / "state").rglob("first_seen.json"):
        content = path.read_text()
        path.write_text(re.sub(r"\b1[0-9]{12}\b", lambda when: str(int(when[0]) - days * DAY), content))


JUNK = (
    {"root": ChunkId(b"j" * 24)},  # an unreadable manifest: of what is below it nobody knows
    {"documents": (Document("absent", 100, (ChunkId(b"d" * 24),)),)},  # so much is gone that prune suspects the place
    {"inner": (RawRecord(0x0777, b""),)},  # of a later version
)


@pytest.mark.parametrize("junk", JUNK, ids=["manifest", "parts", "version"])
def test_a_claim_that_was_never_whole_is_waited_for_by_nobody(world: World, junk: dict[str, Any]) -> None:
    """It neither stops deletion nor counts as whole; whatever it may need is kept for 30 days."""
    image = world.images / "disk.img"
    for letter in (b"x", b"y"):
        unlike(image, letter)
        world.ok("one", "backup", image)
    thief = Thief(world)
    claim = replace(thief.snapshot("20260101T000000Z-junk", 5), **junk)
    thief.say(raw(claim))
    before = packs(world)
    for host in ("one", "fresh"):
        code, out, err = world.run(host, "prune", "--keep-last", "1", "-y")
        assert code == 0, (host, out, err)
        assert "was never whole here" in out + err
        assert packs(world) == before
    left = [row["snapshot"] for row in world.json("one", "list")["snapshots"]]
    assert len(left) == 2 and claim.name in left  # alone in its list it counts for nothing, and no rule removes it
    later(world, "one", 31)
    assert world.run("one", "prune", "--keep-last", "1", "-y")[0] == 0
    assert packs(world) < before
    world.ok("fresh", "restore", "disk", "--to", world.place / "restored")
    assert (world.place / "restored").read_bytes() == image.read_bytes()
    world.ok("one", "delete", f"disk@{claim.name}", "-y", "--yes-last")


def test_a_claim_that_was_whole_here_once_is_missed(world: World) -> None:
    """It may be all that a machine without its state has: what is below a rotten node of it waits for a repair."""
    image = world.images / "disk.img"
    unlike(image, b"x")
    before = set(world.store.glob("p/*/*"))
    assert world.run("two", "backup", image)[0] == 0
    name = next(row["snapshot"] for row in world.json("one", "list")["snapshots"] if row["claimant"])
    made = set(world.store.glob("p/*/*")) - before
    world.ok("one", "prune", "--keep-last", "5", "-y")  # and saw that it was whole
    for path in made:
        path.unlink()
    code, _, err = world.run("one", "prune", "--keep-last", "1", "-y")
    assert code in (20, 21) and name in err


def test_the_first_backup_of_a_source_goes_to_a_volume_of_ones_own(world: World) -> None:
    """Whoever may write can say in advance what the source of the next volume will be, and in which domain."""
    thief = Thief(world)
    world.backup("one", "next", b"n")
    state = thief.state("next")
    world.ok("one", "delete", "next", "--all-snapshots", "-y", "--yes-last")
    (world.images / "planned.img").write_bytes(b"p" * 1024)
    identity = state.identity.replace(b"next.img", b"planned.img")
    trap = thief.volume("planned", identity)
    thief.say(raw(trap), raw(replace(thief.snapshot("trap", 5), volume_id=trap.volume_id)))
    world.backup("one", "planned", b"p")
    world.restored("one", "planned", b"p", 0)
    rows = [row for row in world.json("one", "list")["volumes"] if row["volume"].startswith("planned")]
    assert {row["volume"]: row["id"] == trap.volume_id.hex() for row in rows}["planned"] is False


def test_what_an_expelled_writer_said_after_that_counts_no_more(world: World) -> None:
    """Its names, order and snapshots; its data stays until somebody deletes it, and an expulsion can be undone."""
    thief = Thief(world)
    world.ok("one", "check")
    mine = thief.volume("theirs")
    first = thief.say(raw(mine), raw(thief.snapshot("before", 5)))
    number = thief.head().seq
    thief.say(raw(thief.snapshot("after", 6)), raw(replace(mine, name="disk")))
    who = f"{first.hex()[:8]}@{number}"
    assert world.run("two", "check", "--expel", who, "-y")[0] == 1
    made = world.json("one", "check", "--expel", who, "-y")
    for host in ("one", "fresh"):
        rows = world.json(host, "list")
        assert {row["volume"] for row in rows["volumes"]} == {"disk"}
        assert {
            row["snapshot"]: row["expelled"] for row in rows["snapshots"] if row["snapshot"] in ("before", "after")
        } == {
            "before": False,
            "after": True,
        }
    listed = subprocess.run(
        [sys.executable, "-I", "-S", str(RESCUE), "list", "--repo", str(world.store), "--keyfile",
         str(world.place / "admin")], capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "disk~" not in listed and listed.count("expelled") == 1
    # It may go on writing: nothing of that counts, waits or is deleted.
    thief.say(raw(thief.snapshot("later", FAR)), raw(replace(mine, name="disk")))
    world.ok("one", "prune", "--keep-last", "9", "-y", "--remove-delay", "0h")
    sound(world, b"c")
    names = [row["snapshot"] for row in world.json("one", "list")["snapshots"] if row["expelled"]]
    assert names == ["after", "later"] or set(names) == {"after", "later"}
    world.ok("one", "check", "--readmit", made["id"])
    assert not any(row["expelled"] for row in world.json("fresh", "list")["snapshots"])
    again = world.json("one", "check", "--expel", who, "-y")
    assert again["id"] != made["id"]
    assert len(world.json("one", "delete", "--expelled", "-y")["removed"]) == 2
    assert not any(row["expelled"] for row in world.json("fresh", "list")["snapshots"])


def test_what_was_removed_of_an_expelled_writer_stays_away(world: World) -> None:
    """Also what went before it was expelled, when another snapshot of it was left."""
    thief = Thief(world)
    who = thief.say(raw(thief.volume("theirs")))
    number = thief.head().seq
    thief.say(raw(thief.snapshot("gone", 5)), raw(thief.snapshot("stays", 6)))
    world.ok("one", "delete", "disk@gone", "-y")
    world.ok("one", "check", "--expel", f"{who.hex()[:8]}@{number}", "-y")
    world.ok("one", "prune", "--keep-last", "9", "-y")
    rows = {row["snapshot"]: row["expelled"] for row in world.json("one", "list")["snapshots"]}
    assert "gone" not in rows and rows["stays"]
    world.ok("one", "delete", "--expelled", "-y")
    world.ok("one", "prune", "--keep-last", "9", "-y")
    assert len(world.json("one", "list")["snapshots"]) == 3


def test_a_host_that_lost_everything_goes_on_with_its_volumes_with_an_admins_secret(world: World) -> None:
    shutil.rmtree(world.place / "one")
    (world.images / "disk.img").write_bytes(b"d" * (1 << 20))
    world.ok("one", "backup", "--adopt", world.images / "disk.img")
    sound(world, b"d")
    rows = world.json("third", "list")
    assert [row["claimant"] for row in rows["snapshots"]] == [""] * 4
    assert len(rows["volumes"]) == 1
    # One list: what the lost machine saved counts with what this one saves.
    assert len(world.json("one", "prune", "--keep-last", "2", "-y")["removed"]) == 2


def test_the_warning_of_a_claim_names_adopt_where_the_secret_is_an_admins(world: World) -> None:
    shutil.rmtree(world.place / "one")
    code, _, err = world.run("one", "backup", world.images / "disk.img")
    assert code == 0 and "count as claims" in err and "; or add --adopt" in err, err


def test_a_host_that_lost_everything_saves_claims_until_an_admin_joins_it(world: World) -> None:
    """With a writer's secret: it restores all, saves at once with the same ids, and one JOIN makes all of it count."""
    restored = world.place / "back"
    code, _, err = world.run("two", "restore", "disk", "--to", restored)
    assert code == 0 and restored.read_bytes()[:1] == b"c", err
    (world.images / "disk.img").write_bytes(b"d" * (1 << 20))
    code, out, err = world.run("two", "--json", "backup", world.images / "disk.img")
    assert code == 0 and "count as claims" in err and "--adopt" not in err, (code, out, err)
    rows = world.json("two", "list")
    assert [bool(row["claimant"]) for row in rows["snapshots"]] == [False, False, False, True]
    assert len(rows["volumes"]) == 1
    world.restored("two", "disk", b"d", 0)  # its own claims count on its own host
    for host in ("one", "fresh"):
        world.restored(host, "disk", b"c", 0)
    rescued(world, "disk", b"c")
    assert world.json("one", "prune", "--keep-last", "1", "-y")["removed"] != []
    world.restored("two", "disk", b"d", 0)
    new, old = (rows["snapshots"][3]["claimant"], rows["volumes"][0]["owners"][0])
    assert world.run("two", "check", "--join", f"{new[:8]}={old[:8]}", "-y")[0] == 1
    assert "would own" in world.ok("one", "check", "--join", f"{new[:8]}={old[:8]}", "-n")
    world.restored("fresh", "disk", b"c", 0)
    world.ok("one", "check", "--join", f"{new[:8]}={old[:8]}", "-y")
    for host in ("one", "two", "fresh"):
        world.restored(host, "disk", b"d", 0)
        assert [row["claimant"] for row in world.json(host, "list")["snapshots"]] == ["", ""]
    rescued(world, "disk", b"d")


def test_what_passed_a_full_verification_stays_until_a_newer_one_passed(world: World) -> None:
    world.ok("one", "verify", "--level", "full")
    proven = world.json("one", "list")["snapshots"][2]["snapshot"]
    for letter in (b"d", b"e"):
        world.backup("one", "disk", letter)
    rules = ("prune", "--keep-last", "1", "-y")
    assert "none passed verify --level full" in world.run("third", *rules, "-n")[2]
    done = world.json("one", *rules)
    assert done["unverified"] == []
    assert len(done["removed"]) == 3 and [row["snapshot"] for row in done["kept"]][1:] == [proven]
    world.restored("one", f"disk@{proven}", b"c", 0)
    read = world.json("one", "verify", "--level", "full", "--new-packs", "disk@latest")
    assert 0 < read["checked_bytes"] <= 2 << 20
    assert [row["snapshot"] for row in world.json("one", *rules)["removed"]] == [proven]


def test_what_was_there_before_an_image_was_emptied_stays(world: World) -> None:
    last = world.json("one", "list")["snapshots"][2]["snapshot"]
    (world.images / "disk.img").write_bytes(b"")
    for _ in range(4):
        world.ok("one", "backup", world.images / "disk.img")
    kept = [row["snapshot"] for row in world.json("one", "prune", "--keep-last", "3", "-y")["kept"]]
    assert len(kept) == 4 and last in kept
    world.restored("one", f"disk@{last}", b"c", 0)
