"""What cannot be read, through the command: damaged and deleted commits, seen from hosts that know more or less."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lamella.cli.main import main
from lamella.cli.places import this_host
from lamella.crypto.slots import key_file
from lamella.format.commit import Head, parse_name
from lamella.packs.building import build_commit
from lamella.repository.repository import Repository
from lamella.stores.url import open_store

ADMIN, WRITER = b"a" * 32, b"w" * 32
SIZE = 1 << 20


@dataclass
class World:
    """A repository, and hosts with places of their own; every command runs in this process."""

    place: Path
    capture: pytest.CaptureFixture[str] | None = None
    shots: list[str] = field(default_factory=list)
    """The snapshots of `disk`, oldest first."""
    images: Path = Path()

    @property
    def store(self) -> Path:
        return self.place / "repository"

    def env(self, host: str) -> dict[str, str]:
        return {
            "LAMELLA_REPO": str(self.store),
            "LAMELLA_STATE_DIR": str(self.place / host / "state"),
            "LAMELLA_CACHE_DIR": str(self.place / host / "cache"),
            "LAMELLA_CONFIG": str(self.place / "none"),
        }

    def run(self, host: str, *arguments: str | Path, secret: str = "") -> tuple[int, str, str]:
        """The exit code, and what was said on both streams."""
        secret = secret or ("writer" if host == "two" else "admin")
        code = main(["--keyfile", str(self.place / secret), *map(str, arguments)], self.env(host))
        if self.capture is None:
            return code, "", ""
        out, err = self.capture.readouterr()
        assert "Traceback" not in err and "internal error" not in err, err
        return code, out, err

    def ok(self, host: str, *arguments: str | Path) -> str:
        code, out, err = self.run(host, *arguments)
        assert code == 0, (arguments, code, out, err)
        return out

    def json(self, host: str, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
        got, out, err = self.run(host, "--json", *arguments)
        assert got == code, (arguments, got, out, err)
        document = json.loads(out)
        assert isinstance(document, dict)
        return document

    def backup(self, host: str, name: str, letter: bytes, code: int = 0) -> None:
        """Back up a volume that is full of this letter."""
        (self.images / f"{name}.img").write_bytes(letter * SIZE)
        known = self.names()
        got, _, err = self.run(host, "backup", self.images / f"{name}.img")
        assert got == code, err
        assert bool(set(self.names()) - set(known)) == (code == 0)

    def names(self) -> list[Head]:
        found = [parse_name(str(path.relative_to(self.store))) for path in self.store.glob("w/*/*")]
        return sorted(head for head in found if head is not None)

    def path(self, head: Head) -> Path:
        return self.store / head.name

    def restored(self, host: str, selector: str, content: bytes | None, code: int) -> str:
        """Restore, which ends with `code`; what is there afterwards is `content`, or nothing."""
        target = self.place / "restored"
        got, out, err = self.run(host, "restore", selector, "--to", target)
        assert got == code, (selector, got, out, err)
        found = target.read_bytes()[:1] if target.exists() else None
        assert found == content, selector
        target.unlink(missing_ok=True)
        return err


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.chmod(0o600)
    if how == "deleted":
        path.unlink()
    elif how == "flipped":
        path.write_bytes(content[:-200] + bytes([content[-200] ^ 4]) + content[-199:])
    elif how == "truncated":
        path.write_bytes(content[: len(content) - 200])
    else:
        path.write_bytes(bytes(len(content)))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Chain of host "one": init, a key, a, b, c, d. Host "two", a writer, saved `other` before b. Host "knew" has seen
    all that, and lost its cache.
    """
    world = World(tmp_path_factory.mktemp("built"), images=tmp_path_factory.mktemp("images"))
    for name, key in (("admin", ADMIN), ("writer", WRITER)):
        (world.place / name).write_bytes(key)
        (world.place / name).chmod(0o600)  # another mode is told
    world.ok("one", "init", "-q")
    world.ok("one", "key", "add", "--role", "writer", "--new-keyfile", world.place / "writer")
    world.backup("one", "disk", b"a")
    world.backup("two", "other", b"o")
    for letter in (b"b", b"c", b"d"):
        world.backup("one", "disk", letter)
    world.ok("knew", "list")
    shutil.rmtree(world.place / "knew" / "cache")
    return world


@pytest.fixture
def world(built: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> World:
    place = tmp_path / "world"
    shutil.copytree(built.place, place)
    capsys.readouterr()
    made = World(place, capsys, images=built.images)
    made.shots = [row["snapshot"] for row in made.json("reader", "list", "disk")["snapshots"]]
    for host in ("one", "two", "knew"):  # this place is no other one to them
        made.ok(host, "list")
    shutil.rmtree(place / "knew" / "cache")
    shutil.rmtree(place / "reader")
    assert len(made.shots) == 4
    return made


def chain(world: World, host: str = "one") -> list[Head]:
    """The commits of that host's first writer, ascending."""
    writer = min((head for head in world.names()), key=lambda head: world.path(head).stat().st_mtime_ns).writer
    rows = [head for head in world.names() if (head.writer == writer) == (host == "one")]
    return sorted(rows, key=lambda head: head.seq)


STORED = (["verify", "--level", "structure"], ["check"], ["doctor"], ["prune", "--keep-last", "1", "-y"])
CACHED = (["list"], ["info"])


def refused_everywhere(world: World, host: str, commands: Sequence[Sequence[str]]) -> None:
    before = sorted(path for path in world.store.rglob("*") if path.is_file())
    for arguments in commands:
        code, out, err = world.run(host, *arguments)
        assert code == 21, (host, arguments, code, out, err)
    assert sorted(path for path in world.store.rglob("*") if path.is_file()) == before


@pytest.mark.parametrize("which", ["newest", "middle", "first"])
@pytest.mark.parametrize("how", ["flipped", "truncated", "zeroed", "deleted"])
def test_a_commit_that_cannot_be_read_is_missing_history_in_every_command(world: World, how: str, which: str) -> None:
    commits = chain(world)
    assert [head.seq for head in commits] == [1, 2, 3, 4, 5, 6]
    head = {"newest": commits[-1], "middle": commits[3], "first": commits[0]}[which]
    damaged(world.path(head), how)
    whole = world.shots[2] if which != "newest" else world.shots[1]
    content = b"c" if which != "newest" else b"b"
    # The host that made it has it in its cache: it may list and restore, but nothing is proved or deleted by that.
    refused_everywhere(world, "one", STORED)
    if how == "deleted":
        refused_everywhere(world, "one", CACHED)
    else:
        for arguments in CACHED:
            world.ok("one", *arguments)
        world.restored("one", "disk", b"d", 0)
    for host in ("knew", "fresh"):
        # What no host knows of and nothing is left of is not there.
        if host == "fresh" and which == "newest" and how in ("zeroed", "deleted"):
            sound_everywhere(world, host)
            world.restored(host, "disk", b"c", 0)
            continue
        refused_everywhere(world, host, [*STORED, *CACHED])
        world.backup(host, "disk", b"x", code=21)
        said = world.restored(host, "disk", None, 21)
        assert "in full" in said and len(said.splitlines()) == 1
        said = world.restored(host, f"disk@{whole}", content, 21)
        assert f"restoring disk@{whole}, of 20" in said
        for prefix in (whole[:-1], "latest"):
            world.restored(host, f"disk@{prefix}", None, 21)
        # The first writer signed with the prune key: it may have done anything.
        world.restored(host, "other", None, 21)


def test_one_sentence_names_the_object_and_the_command(world: World) -> None:
    head = chain(world)[-1]
    damaged(world.path(head), "flipped")
    code, out, err = world.run("knew", "check")
    assert (code, err) == (21, "")
    problem, fingerprint = out.splitlines()
    assert problem.startswith("problem: ") and "lamella repair" in problem
    assert problem.endswith(f"lamella check --give-up {head.name}") and fingerprint.startswith("fingerprint ")
    (row,) = world.json("knew", "check", code=21)["problems"]
    assert (row["key"], row["object"]) == (f"unreadable:{head.writer.hex()}:6:{head.sha256.hex()}", head.name)


def test_where_a_part_is_missing_of_a_writer_that_never_touched_the_volume_it_is_restored(world: World) -> None:
    commits = chain(world, "two")
    assert [head.seq for head in commits] == [1]
    world.backup("two", "other", b"p")
    damaged(world.path(chain(world, "two")[-1]), "flipped")
    world.restored("fresh", "disk", b"d", 21)
    world.restored("fresh", "other", None, 21)
    damaged(world.path(chain(world, "two")[0]), "flipped")
    world.restored("newer", "disk", None, 21)  # nothing of it can be read: it may have touched everything


def test_what_is_missing_is_not_said_to_be_no_snapshot(world: World) -> None:
    damaged(world.path(chain(world)[-1]), "flipped")
    code, _, err = world.run("fresh", "restore", f"disk@{world.shots[-1]}", "--to", world.place / "out")
    assert code == 21 and "cannot be read" in err
    assert world.run("one", "restore", "disk@1999", "--to", world.place / "out")[0] == 4


# -- mending -----------------------------------------------------------------------------------------------------------


def sound_everywhere(world: World, *hosts: str, lacks_files: bool = False) -> None:
    """Nothing is wrong; with `lacks_files` but that the commit is given up that said what the clear files must be."""
    for host in hosts:
        for arguments in (*CACHED, *STORED[1:3]):
            world.ok(host, *arguments)
        found = world.json(host, *STORED[0], code=20 if lacks_files else 0)["findings"]
        assert {row["kind"] for row in found if row["severity"] != "note"} == ({"file"} if lacks_files else set())


@pytest.mark.parametrize("which", [0, 3, 5])
def test_a_repair_brings_it_back_from_the_cache(world: World, which: int) -> None:
    damaged(world.path(chain(world)[which]), "flipped")
    assert world.run("knew", "repair", "-y")[0] == 21  # it has no cache
    said = world.ok("one", "repair", "-y")
    assert f": {chain(world)[which].name}" in said and "repaired: 2 steps" in said
    sound_everywhere(world, "one", "knew", "fresh")
    world.restored("fresh", "disk", b"d", 0)


@pytest.mark.parametrize("which", [0, 3, 5])
@pytest.mark.parametrize("how", ["flipped", "zeroed", "deleted"])
@pytest.mark.parametrize("accepted", [False, True])
def test_giving_it_up_ends_it_for_every_host(world: World, which: int, how: str, accepted: bool) -> None:
    head = chain(world)[which]
    damaged(world.path(head), how)
    shutil.rmtree(world.place / "one" / "cache")
    if accepted:
        world.ok("one", "check", "--accept-rollback", "-y")
        world.ok("one", "prune", "--keep-last", "9", "-y")  # it may go on; the log is shortened once it is given up
    giver = "knew" if accepted else "one"
    said = world.run(giver, "check", "--give-up", head.name, "-n")
    assert said[0] == 21 and f"would be given up: {head.name}" in said[1]
    assert world.run("one", "check")[0] == (0 if accepted else 21)
    assert f"given up: {head.name}" in world.ok(giver, "check", "--give-up", head.name, "-y")
    sound_everywhere(world, "one", "knew", "fresh", lacks_files=which == 0)
    latest = b"c" if which == 5 else b"d"
    world.restored("fresh", "disk", latest, 0)
    world.backup("one", "disk", b"e")
    world.backup("two", "other", b"q")
    for host in ("one", "knew", "fresh"):
        world.ok(host, "prune", "--keep-last", "2", "-y")
        sound_everywhere(world, host, lacks_files=which == 0)
        world.restored(host, "disk", b"e", 0)
    refusal = world.run(giver, "check", "--give-up", head.name)
    assert refusal[0] == 4 and len(refusal[2].splitlines()) == 1


@pytest.mark.parametrize("how", ["flipped", "truncated", "zeroed", "deleted"])
def test_a_dry_repair_tells_what_the_repair_does(world: World, how: str) -> None:
    """Who looks first is not told to give up what this host can bring back."""
    name = chain(world)[-2 if how == "deleted" else -1]
    damaged(world.path(name), how)
    _, out, err = world.run("one", "repair", "-n")
    assert f"would be put back: {name.name}" in out
    assert "--accept-rollback" not in out + err and "tree notes" not in out
    world.ok("one", "repair", "-y")
    assert world.run("new", "list")[0] == 0


def test_the_repair_comes_first_whatever_is_missing(world: World) -> None:
    newest = chain(world)[-1]
    world.path(newest).unlink()
    _, out, _ = world.run("one", "check")
    (problem,) = (line for line in out.splitlines() if line.startswith("problem: "))
    assert problem.index("lamella repair;") < problem.index(f"lamella check --give-up {newest.name}")
    world.ok("one", "repair", "-y")
    world.restored("new", "disk", b"d", 0)


def test_who_takes_the_history_as_it_is_gives_up_for_every_host_and_finds_the_volume_again(world: World) -> None:
    newest = chain(world)[-1]
    damaged(world.path(newest), "flipped")
    code, _, err = world.run("new", "check", "--give-up", newest.name, "-n")
    assert code == 21 and "one state of a volume without a snapshot can be recovered" in err
    out = world.ok("new", "repair", "--accept-rollback", "-y")
    assert f"given up: {newest.name}" in out and "rebuilt: disk@" in out
    for host in ("newer", "knew", "two"):
        world.ok(host, "list")
        world.ok(host, "verify")
    world.restored("newer", "disk", b"d", 0)
    world.backup("two", "other", b"p")


def test_what_can_be_given_up(world: World) -> None:
    sound = chain(world)[3]
    for text in (sound.name, "w/x", sound._replace(sha256=bytes(32)).name):
        code, _, err = world.run("one", "check", "--give-up", text)
        assert code == 4 and err.count("\n") == 1 and "not known to be missing" in err
    damaged(world.path(sound), "flipped")
    code, _, err = world.run("one", "check", "--give-up", sound.name, "-y", secret="writer")
    assert code == 1 and "use an admin's passphrase" in err
    code, _, err = world.run("one", "check", "--give-up", sound.name, "--accept-rollback", "-y")
    assert code == 2
    damaged(world.path(chain(world, "two")[0]), "deleted")  # another one that is missing is no obstacle
    assert world.run("one", "check", "--give-up", sound.name, "-y")[0] == 21
    (row,) = world.json("one", "check", code=21)["problems"]
    world.ok("one", "check", "--give-up", row["object"], "-y")
    sound_everywhere(world, "one", "fresh")


@pytest.mark.parametrize("how", ["give up", "accept"])
def test_a_host_never_uses_a_number_twice(world: World, how: str) -> None:
    """Its newest commit rots, it goes on, and then the right bytes come back: that is no fork, and both are there."""
    head = chain(world)[-1]
    right = world.path(head).read_bytes()
    damaged(world.path(head), "flipped")
    shutil.rmtree(world.place / "one" / "cache")
    world.backup("one", "disk", b"e", code=21)
    if how == "accept":
        world.ok("one", "check", "--accept-rollback", "-y")
    else:
        world.ok("one", "check", "--give-up", head.name, "-y")
    world.backup("one", "disk", b"e")
    assert [one for one in world.names() if one.writer == head.writer and one.seq >= head.seq] == [head]
    world.path(head).write_bytes(right)
    for host in ("one", "two", "knew", "fresh"):
        sound_everywhere(world, host)
        assert len(world.json(host, "list", "disk")["snapshots"]) == 5
    world.restored("fresh", f"disk@{world.shots[-1]}", b"d", 0)
    world.backup("one", "disk", b"f")
    sound_everywhere(world, "one", "fresh")


def test_a_deleted_own_head_is_not_made_anew_after_it_was_accepted(world: World) -> None:
    head = chain(world)[-1]
    right = world.path(head).read_bytes()
    damaged(world.path(head), "deleted")
    shutil.rmtree(world.place / "one" / "cache")
    world.ok("one", "check", "--accept-rollback", "-y")
    world.backup("one", "disk", b"e")
    world.path(head).write_bytes(right)
    sound_everywhere(world, "one", "two", "fresh")
    assert len(world.json("fresh", "list", "disk")["snapshots"]) == 5


# -- junk --------------------------------------------------------------------------------------------------------------


def test_junk_under_a_commits_name_changes_nothing(world: World) -> None:
    """Anybody who may add can put it there: it is a note, and no commit, number, head or fork."""
    (*_, newest) = chain(world)
    content = world.path(newest).read_bytes()
    garbage = os.urandom(900)
    stranger = newest._replace(writer=type(newest.writer)(b"s" * 16), seq=1)
    mangled = content[:-1] + bytes([content[-1] ^ 1])
    names = [
        newest._replace(seq=7, sha256=hashlib.sha256(garbage).digest()),
        newest._replace(seq=2**63, sha256=hashlib.sha256(garbage).digest()),
        newest._replace(sha256=hashlib.sha256(mangled).digest()),  # a damaged copy of what is there intact
        stranger._replace(sha256=hashlib.sha256(garbage).digest()),
        stranger._replace(sha256=hashlib.sha256(content).digest()),  # an intact commit of another writer
        newest._replace(seq=8, sha256=hashlib.sha256(content).digest()),
    ]
    before = {host: world.json(host, "check")["fingerprint"] for host in ("one", "knew")}
    for head in names:
        bytes_ = {hashlib.sha256(one).digest(): one for one in (garbage, mangled, content)}[head.sha256]
        world.path(head).parent.mkdir(exist_ok=True)
        world.path(head).write_bytes(bytes_)
    for host in ("one", "knew", "fresh"):
        sound_everywhere(world, host)
        found = world.json(host, "check")
        assert sum(head.name in note for head in names for note in found["notes"]) == len(names)
        assert found["fingerprint"] == before["one"]
        world.restored(host, "disk", b"d", 0)
        assert "sound: 2 chains" in world.ok(host, "check")
    pins = json.loads(next((world.place / "fresh" / "state" / "repo").glob("*/pins.json")).read_text())
    assert pins["heads"][newest.writer.hex()][0] == 6 and stranger.writer.hex() not in pins["heads"]
    world.ok("one", "prune", "--keep-last", "1", "-y")
    world.backup("one", "disk", b"e")
    sound_everywhere(world, "one", "fresh")
    seqs = [head.seq for head in chain(world) if head not in names]
    assert seqs == list(range(1, len(seqs) + 1)) and len(seqs) > 7


# -- a lie about what was seen ---------------------------------------------------------------------------------------


def lie(world: World, seen: Head) -> None:
    """Writer "two" publishes a commit that says it has seen this."""
    host = this_host(world.env("two"))
    with Repository.open(open_store(str(world.store)), key_file(WRITER), host) as repo:
        key = repo.memory.writer_key()
        assert key is not None
        last = repo.history.chains[key.id].commits[-1]
        body = replace(last.body, seq=last.head.seq + 1, prev=last.head.sha256, seen=(seen,), records=())
        content = build_commit(repo.keys, key.seed, key.enrolment, body)
        repo.store.put(Head(key.id, body.seq, hashlib.sha256(content).digest()).name, content)


def test_a_lie_about_what_was_seen_hides_no_snapshot_and_can_be_ended(world: World) -> None:
    writer = chain(world)[0].writer
    lie(world, Head(writer, 1 << 63, b"h" * 32))
    for host in ("one", "fresh"):
        found = world.json(host, "list", code=21)
        assert [row["snapshots"] for row in found["volumes"]] == [4, 1]
        said = world.restored(host, "disk", None, 21)  # its own writer may have lost a commit: nobody knows
        assert f"disk@{world.shots[-1]}" in said
        world.restored(host, f"disk@{world.shots[-1]}", b"d", 21)
    (row,) = world.json("fresh", "check", code=21)["problems"]
    assert row["key"].startswith(f"seen:{writer.hex()}:{1 << 63}:")
    world.ok("one", "check", "--give-up", row["object"], "-y")
    sound_everywhere(world, "one", "two", "fresh")
    world.restored("fresh", "disk", b"d", 0)
    world.backup("one", "disk", b"e")
    world.restored("fresh", "disk", b"e", 0)
    sound_everywhere(world, "one", "two", "fresh")


def test_another_hash_at_a_number_that_is_there_is_no_witness(world: World) -> None:
    lie(world, chain(world)[-1]._replace(writer=chain(world)[0].writer, seq=5))  # another hash: that is no witness
    world.ok("fresh", "list")
    world.restored("fresh", "disk", b"d", 0)


# -- a state that is expected ------------------------------------------------------------------------------------------


def test_a_state_that_is_expected(world: World) -> None:
    mark = world.json("one", "check")["fingerprint"]
    target = world.place / "restored"
    world.ok("one", "--expect", mark, "list")
    world.ok("one", "list", "--expect", mark.lower().replace("-", " "))
    world.ok("one", "restore", "disk", "--to", target, "--expect", mark.replace("-", ""))
    target.unlink()
    world.backup("one", "disk", b"e")
    new = world.json("one", "check")["fingerprint"]
    text = f"the head fingerprint is {new}, not the expected one: this is another state"
    image = world.images / "disk.img"
    for arguments in (
        ["list"],
        ["info"],
        ["check"],
        ["repair"],
        ["verify"],
        ["backup", image],
        ["restore", "disk", "--to", target],
        ["prune", "--keep-last", "1"],
        ["key", "list"],
        ["tag", "disk@latest", "x"],
    ):
        code, out, err = world.run("one", *arguments, "--expect", mark)
        assert (code, out) == (21, "") and text in err, arguments
    code, out, _ = world.run("one", "doctor", "--expect", mark)
    assert code == 21 and text in out
    assert not target.exists()
    for malformed in ("", "x", mark[:-1], f"{mark}A", mark.replace(mark[0], "1")):
        assert world.run("one", "list", "--expect", malformed)[0] == 2
