"""Enrolment is closed, through the command: who comes with the data key counts for nothing, and no host is lost."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lamella.base.errors import RepositoryError, StoreRefused
from lamella.base.ids import SnapId
from lamella.base.names import COMMITS
from lamella.base.signed import TRAILER_SIZE, commit_message, trailer_of
from lamella.base.trust import Sealed
from lamella.cli.places import this_host
from lamella.crypto.derive import Keys
from lamella.crypto.sign import public_of, sign
from lamella.crypto.slots import key_file
from lamella.format.commit import CHECKPOINT_EVERY, Body, Head, writer_id
from lamella.format.records import AddSnap, RawRecord, Volume, raw, volume_id
from lamella.packs.building import build_commit
from lamella.repository.repository import Repository
from lamella.stores.pipe.guarded import GuardedStore
from lamella.stores.url import open_store
from tests.cli.program import Terminal
from tests.cli.test_missing_history import ADMIN, WRITER, World
from tests.cli.test_owners import RESCUE, Thief, rescued
from tests.cli.test_owners import built as built
from tests.cli.test_owners import world as world
from tests.counting_store import CountingStore

SEED = b"t" * 32


class Enrolled:
    """A thief with the data key, whose program asks nobody: commits of a chain of its own, put beside the others."""

    def __init__(self, world: World, seed: bytes = SEED) -> None:
        self._world = world
        self._seed = seed
        self.heads: list[Head] = []
        with Repository.open(open_store(str(world.store)), key_file(WRITER), Thief(world).host()) as repo:
            self.keys: Keys = repo.keys
            known = [one for one in repo.catalogue.volumes.values() if one.name == "disk"]
            record, oldest = known[0].record, known[0].snapshots[0]
        assert record is not None
        self._volume: Volume = record
        self._added: AddSnap = oldest.added

    @property
    def writer(self) -> bytes:
        return writer_id(public_of(self._seed))

    def commit(self, records: list[RawRecord], seen: tuple[Head, ...] = (), seq: int = 0) -> tuple[Head, bytes]:
        writer = writer_id(public_of(self._seed))
        seq = seq or len(self.heads) + 1
        prev = self.heads[-1].sha256 if self.heads else bytes(32)
        body = Body(writer, seq, prev, 4_000_000_000_000, (0, bytes(32)), seen, tuple(records))
        content = build_commit(self.keys, self._seed, self.keys.enrolment(public_of(self._seed)), body)
        head = Head(writer, seq, hashlib.sha256(content).digest())
        self.heads.append(head)
        return head, content

    def put(self, records: list[RawRecord], seen: tuple[Head, ...] = (), seq: int = 0) -> Path:
        head, content = self.commit(records, seen, seq)
        path = self._world.store / head.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    def put_unreadable(self) -> None:
        """What any server takes for a commit, and nobody can open."""
        head, content = self.commit([])
        inside = content[:400] + bytes(64) + content[464:-TRAILER_SIZE]
        trailer = trailer_of(content)._replace(container=hashlib.sha256(inside).digest())
        trailer = trailer._replace(signature=sign(self._seed, commit_message(self.keys.root, *head[:2], trailer)))
        content = inside + b"".join(trailer)
        path = self._world.store / head._replace(sha256=hashlib.sha256(content).digest()).name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

    def backup(self, name: str) -> None:
        """A snapshot of the victim's volume, and one of a volume of its own with the same name."""
        own = writer_id(public_of(self._seed))
        mine = replace(
            self._volume, creator=own, nonce=bytes(16), volume_id=volume_id(own, bytes(16)), signature=bytes(64)
        )
        ids = (SnapId(hashlib.sha256(word + name.encode()).digest()[:16]) for word in (b"claim", b"own"))
        claim = replace(self._added, snap_id=next(ids), name=name)
        other = replace(
            claim, snap_id=SnapId(hashlib.sha256(b"own" + name.encode()).digest()[:16]), volume_id=mine.volume_id
        )
        self.put([raw(mine), raw(claim), raw(other)])


def rescue(world: World, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-I", "-S", str(RESCUE), *words, "--repo", str(world.store)]
    return subprocess.run([*argv, "--keyfile", str(world.place / "admin")], capture_output=True, text=True, check=False)


def close(world: World) -> None:
    assert "enrolment is closed" in world.ok("one", "check", "--close-enrolment", "-y")


def writer_of(world: World, host: str = "two") -> str:
    writers: list[dict[str, str]] = world.json(host, "info")["writers"]
    return next(one["writer"] for one in writers if one["this_host"])


def told_key(text: str) -> str:
    found = re.search(r"lamella check --admit ([0-9a-f]{64})", text)
    assert found is not None, text
    return found[1]


COMMANDS = (
    ["list"], ["info"], ["info", "disk"], ["verify", "--level", "full"], ["check"], ["doctor"], ["key", "list"],
    ["diff", "disk"], ["prune", "--keep-last", "5", "-n"], ["prune", "--keep-last", "5"], ["repair", "-n"],
)  # fmt: skip


def test_who_comes_with_the_data_key_counts_for_nothing_in_any_command(world: World) -> None:
    before = {tuple(words): world.run("one", *words)[0] for words in COMMANDS}
    snapshots = [(row["snapshot"], row["volumes"]) for row in world.json("one", "list")["snapshots"]]
    rescued_rows = rescue(world, "list").stdout.splitlines()[2:]
    close(world)
    thief = Enrolled(world)
    thief.backup("20330101T000000Z-evil")
    thief.put([], seen=(Head(world.names()[0].writer, 9_999, bytes(32)),))  # what would be missing history
    thief.put([], seq=7)  # a gap
    thief.put([RawRecord(0x7ABC, b"of a later version")])
    thief.put_unreadable()  # proven to have been a commit
    Enrolled(world, b"u" * 32).put_unreadable()  # of a chain of which nothing else is there
    for host in ("one", "fresh"):
        assert [(row["snapshot"], row["volumes"]) for row in world.json(host, "list")["snapshots"]] == snapshots
        code, _, err = world.run(host, "list")
        assert code == 0
        assert f"writer {thief.writer.hex()[:8]} is not admitted" in err
        assert "evil" not in world.ok(host, "info", "disk")
        world.restored(host, "disk", b"c", 0)
    assert {tuple(words): world.run("one", *words)[0] for words in COMMANDS} == before
    evil = "disk@20330101T000000Z-evil"
    for words in (["delete", evil, "-y"], ["tag", evil, "x"], ["restore", evil, "--to", world.place / "evil"]):
        assert world.run("one", *words)[0] == 4, words
    places = (world.place / "mirror", world.place / "copy")
    world.ok("one", "-r", places[1], "init", "-q")
    world.ok("one", "mirror", "--to", places[0])
    world.ok("one", "copy", "--to", places[1], "--to-keyfile", world.place / "admin")
    for place in places:
        listed = world.run("fresh", "-r", place, "list")
        assert listed[0] == 0, listed
        assert "evil" not in listed[1]
    world.backup("one", "disk", b"d")
    world.restored("fresh", "disk", b"d", 0)
    done = rescue(world, "list")
    assert done.returncode == 0, done.stderr
    assert "evil" not in done.stdout
    assert "enrolment is closed" in done.stdout
    assert f"writer {thief.writer.hex()} is not admitted" in done.stderr
    assert {line.split()[1] for line in rescued_rows} <= {line.split()[1] for line in done.stdout.splitlines()[2:]}
    assert rescue(world, "restore", "disk@20330101T000000Z-evil", "--to", str(world.place / "x")).returncode == 4
    assert "is not admitted" in rescued(world, "disk", b"d")


def test_before_it_is_closed_the_same_thief_counts(world: World) -> None:
    """Else the test above would prove nothing."""
    Enrolled(world).backup("20330101T000000Z-evil")
    assert "evil" in world.ok("one", "list")
    assert "evil" in rescue(world, "list").stdout


def test_hosts_that_wrote_before_go_on_and_others_are_told_who_admits_them(world: World) -> None:
    world.backup("two", "other", b"x")
    shown = world.ok("one", "check", "--close-enrolment", "-n")
    assert shown.count("admitted: writer") == 2
    assert "would be closed" in shown
    world.ok("one", "info")
    close(world)
    world.backup("two", "other", b"y")
    assert "closed: only 2 admitted hosts" in world.ok("one", "info")
    assert "closed: only 2 admitted hosts" in world.ok("one", "key", "list")
    assert "closed: only 2 admitted hosts" in world.ok("one", "doctor")

    objects = sorted(path for path in world.store.rglob("*") if path.is_file())
    (world.images / "third.img").write_bytes(b"z" * (1 << 20))
    code, _, err = world.run("three", "backup", world.images / "third.img", secret="writer")
    assert code == 1
    key = told_key(err)
    assert objects == sorted(path for path in world.store.rglob("*") if path.is_file())
    world.restored("three", "disk", b"c", 0)  # reading is nobody's favour
    code, _, err = world.run("two", "check", "--admit", key)
    assert code == 1
    assert "admin" in err
    assert "admitted: writer" in world.ok("one", "check", "--admit", key, "-y")
    assert world.run("three", "backup", world.images / "third.img", secret="writer")[0] == 0
    world.restored("fresh", "third", b"z", 0)
    rescued(world, "third", b"z")


def test_a_host_with_an_admins_secret_admits_itself_for_good(world: World) -> None:
    close(world)
    (world.images / "third.img").write_bytes(b"z" * (1 << 20))
    assert world.run("three", "backup", world.images / "third.img", secret="admin")[0] == 0
    (world.images / "third.img").write_bytes(b"Z" * (1 << 20))
    assert world.run("three", "backup", world.images / "third.img", secret="writer")[0] == 0
    rescued(world, "third", b"Z")


def test_a_host_that_goes_on_from_an_older_state_stays_admitted(world: World) -> None:
    """Its own newest commit holds the enrolment that the state does not know: a checkpoint may be all that is read."""
    world.backup("two", "other", b"x")
    state, old = world.place / "two" / "state", world.place / "old"
    shutil.copytree(state, old)
    (world.images / "other.img").write_bytes(b"y" * (1 << 20))
    world.ok("one", "check", "--admit", writer_of(world)[:8], "-y")  # before it is closed, which names everybody
    assert world.run("two", "backup", world.images / "other.img", secret="admin")[0] == 0
    shutil.rmtree(state)
    old.rename(state)
    world.backup("two", "other", b"z")
    newest = max(head for head in world.names() if head.writer.hex() == writer_of(world))
    server = GuardedStore(open_store(str(world.store)), append_only=True, admitted=True)
    content = world.path(newest).read_bytes()
    world.path(newest).unlink()
    server.put(newest.name, Sealed(content))


def test_an_own_host_whose_state_was_lost_restores_is_admitted_and_goes_on(world: World) -> None:
    world.backup("two", "other", b"x")
    old = writer_of(world)
    close(world)
    shutil.rmtree(world.place / "two" / "state")
    (world.images / "other.img").write_bytes(b"y" * (1 << 20))
    world.restored("two", "other", b"x", 0)
    code, _, err = world.run("two", "backup", world.images / "other.img")
    assert code == 1
    world.ok("one", "check", "--admit", told_key(err), "-y")
    assert world.run("two", "backup", world.images / "other.img")[0] == 0
    # As a claim, like every machine that lost its state, until an admin says for whom it acts.
    own = writer_of(world)
    world.ok("one", "check", "--join", f"{own[:8]}={old[:8]}", "-y")
    world.restored("fresh", "other", b"y", 0)
    rescued(world, "other", b"y")


def test_who_wrote_at_the_moment_of_closing_is_admitted_later_with_all_data(world: World) -> None:
    """A host that began while the admin closed: its packs wait, and the word of the admin brings it back whole."""
    shutil.copytree(world.store, world.place / "before")
    close(world)
    after = world.place / "after"
    world.store.rename(after)
    (world.place / "before").rename(world.store)
    world.backup("two", "other", b"x")
    shutil.copytree(after, world.store, dirs_exist_ok=True)
    assert "other" not in world.ok("one", "list")
    world.ok("one", "prune", "--keep-last", "5")
    _, _, err = world.run("one", "list")
    known = re.search(r"lamella check --admit ([0-9a-f]{8})\b", err)
    assert known is not None, err
    world.ok("one", "check", "--admit", known[1], "-y")
    world.restored("fresh", "other", b"x", 0)
    rescued(world, "other", b"x")
    world.backup("two", "other", b"y")


def while_it_reads(world: World, *command: str) -> str:
    """The word for `--before` with which host "one", the admin's, runs a command in the middle of another's backup."""
    places = [f"{name}={value}" for name, value in world.env("one").items()]
    program = [sys.executable, "-m", "lamella", "--keyfile", str(world.place / "admin")]
    return shlex.join(["env", *places, *program, *command])


CLOSE = ("check", "--close-enrolment", "-y")


def test_a_new_host_is_told_that_it_was_closed_while_it_read(world: World) -> None:
    """What its user fears: "complete", and a snapshot that counts for nothing."""
    image = world.images / "third.img"
    image.write_bytes(b"z" * (1 << 20))
    words = ("--before", while_it_reads(world, *CLOSE))
    code, out, err = world.run("three", "backup", image, *words, secret="writer")
    assert code == 1, (out, err)
    assert "complete" not in out + err
    assert "the data that this host stored stays unused until an admin admits the host" in err
    assert "third" not in world.ok("one", "list")
    code, _, again = world.run("three", "backup", image, secret="writer")
    assert code == 1
    assert told_key(again) == told_key(err)
    assert "stays unused" in again
    world.ok("one", "check", "--admit", told_key(err), "-y")
    world.restored("fresh", "third", b"z", 0)  # nothing of the first run is lost
    rescued(world, "third", b"z")
    image.write_bytes(b"Z" * (1 << 20))
    assert world.run("three", "backup", image, secret="writer")[0] == 0
    world.restored("fresh", "third", b"Z", 0)


def test_an_admin_is_told_of_the_host_that_began_while_the_question_was_open(world: World) -> None:
    """That host saw nothing closed: only the admin's own look after closing can find it."""
    words = ["--keyfile", str(world.place / "admin"), "check", "--close-enrolment"]
    with Terminal(words, world.env("one")) as terminal:
        terminal.expect("Continue?")
        world.backup("two", "other", b"x")
        terminal.type("y")
        assert terminal.end() == 0, terminal.seen
    assert "enrolment is closed" in terminal.seen
    told = re.search(r"not admitted; [^:]*: lamella check --admit ([0-9a-f]{8})", terminal.seen)
    assert told is not None, terminal.seen
    assert world.run("two", "backup", world.images / "other.img")[0] == 1
    world.ok("one", "check", "--admit", told[1], "-y")
    world.restored("fresh", "other", b"x", 0)
    world.backup("two", "other", b"y")


def test_a_host_that_began_while_the_question_was_open_is_told_by_its_next_commit(world: World, tmp_path: Path) -> None:
    """Its first commit came too late to be named, and too early to see that it was closed."""
    begun, closed = tmp_path / "begun", tmp_path / "closed"
    wait = shlex.join(["sh", "-c", f"touch {begun}; until [ -e {closed} ]; do sleep 0.05; done"])
    program = [sys.executable, "-m", "lamella", "--keyfile", str(world.place / "writer")]
    words = ["--keyfile", str(world.place / "admin"), "check", "--close-enrolment"]
    with Terminal(words, world.env("one")) as terminal:
        terminal.expect("Continue?")
        world.backup("two", "other", b"x")
        backup = subprocess.Popen(
            [*program, "backup", str(world.images / "other.img"), "--before", wait],
            env={**os.environ, **world.env("two")}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        while not begun.exists():
            assert backup.poll() is None, backup.communicate()
            time.sleep(0.05)
        terminal.type("y")
        assert terminal.end() == 0, terminal.seen
    closed.touch()
    said, _ = backup.communicate(timeout=60)
    assert backup.returncode == 1, said
    assert "stays unused until an admin admits the host" in said
    assert told_key(said)


def test_a_host_that_was_there_or_is_an_admins_goes_on_while_it_is_closed(world: World) -> None:
    world.backup("two", "other", b"x")
    for host, secret, name in (("two", "writer", "other"), ("three", "admin", "third")):
        image = world.images / f"{name}.img"
        image.write_bytes(b"y" * (1 << 20))
        words = ("--before", while_it_reads(world, *CLOSE))
        code, _, err = world.run(host, "backup", image, *words, secret=secret)
        assert code == 0, err
        world.restored("fresh", name, b"y", 0)


def test_a_host_that_begins_beside_others_is_not_mistaken(world: World) -> None:
    """Another host's new commit is no closing."""
    image = world.images / "third.img"
    image.write_bytes(b"z" * (1 << 20))
    words = ("--before", while_it_reads(world, "tag", "disk@latest", "seen"))
    assert world.run("three", "backup", image, *words, secret="writer")[0] == 0
    world.restored("fresh", "third", b"z", 0)


def test_whatever_a_new_host_says_first_it_is_told_and_says_no_more(world: World) -> None:
    """Not only a backup: a tag, a copy, the report of a verification."""
    with Repository.open(open_store(str(world.store)), key_file(WRITER), this_host(world.env("three"))) as repo:
        close(world)
        known = len(world.names())
        for _ in range(2):
            with pytest.raises(RepositoryError, match="enrolment is closed, and this host is not admitted"):
                repo.publish([])
        assert len(world.names()) == known + 1


@pytest.mark.parametrize("secret", [WRITER, ADMIN])
def test_to_look_again_costs_one_listing_in_the_life_of_a_host_that_is_no_admins(world: World, secret: bytes) -> None:
    store = CountingStore(open_store(str(world.store)))
    with Repository.open(store, key_file(secret), this_host(world.env("three"))) as repo:
        for looks in (int(secret == WRITER), 0, 0):
            store.calls.clear()
            repo.publish([])
            assert store.calls.count(("list", COMMITS)) == looks
            assert store.count("get") == 0


def test_a_known_commit_of_a_stranger_that_goes_is_still_missed(world: World) -> None:
    """A pin is a witness, whoever counts: who deletes the commits that show an admission must not hide a host."""
    close(world)
    (world.images / "third.img").write_bytes(b"z" * (1 << 20))
    assert world.run("three", "backup", world.images / "third.img", secret="admin")[0] == 0
    world.ok("one", "list")
    for path in (world.store / "w" / writer_of(world, "three")).iterdir():
        path.unlink()
    assert world.run("one", "list")[0] == 21


def test_a_server_takes_the_admitted_host_and_no_other(world: World) -> None:
    """`serve --admitted` knows no secret: what the admin said must be in the host's own commits."""
    close(world)
    (world.images / "third.img").write_bytes(b"z" * (1 << 20))
    _, _, err = world.run("three", "backup", world.images / "third.img", secret="writer")
    world.ok("one", "check", "--admit", told_key(err), "-y")
    before = set(world.names())
    assert world.run("three", "backup", world.images / "third.img", secret="writer")[0] == 0
    server = GuardedStore(open_store(str(world.store)), append_only=True, admitted=True)
    for head in set(world.names()) - before:
        content = world.path(head).read_bytes()
        world.path(head).unlink()
        server.put(head.name, Sealed(content))
    rescued(world, "third", b"z")
    head, content = Enrolled(world).commit([])
    with pytest.raises(StoreRefused, match="an admin enrolled"):
        server.put(head.name, Sealed(content))


def test_it_stays_closed_when_the_log_is_compacted(world: World) -> None:
    """The commit that closed it is deleted in the end: the checkpoints after it say so instead."""
    close(world)
    closing = max(world.names(), key=lambda head: head.seq)
    thief = Enrolled(world)
    thief.backup("20330101T000000Z-evil")
    for _ in range(3):
        with Repository.open(open_store(str(world.store)), key_file(ADMIN), this_host(world.env("one"))) as repo:
            for _ in range(CHECKPOINT_EVERY + 1):
                repo.publish([])
        world.ok("one", "prune", "--keep-last", "5")
    assert not world.path(closing).exists()
    for host in ("one", "fresh", "another"):
        assert len(world.json(host, "list")["snapshots"]) == 3
        assert "closed: only 1 admitted hosts" in world.ok(host, "info")
    done = rescue(world, "list")
    assert done.returncode == 0 and "evil" not in done.stdout and "enrolment is closed" in done.stdout
