"""What a writer with the data key alone, and a thief who can only add objects, can still do: all of it, measured.

What a user fears: that a stolen credential destroys or replaces a backup, or that nothing works any more. The data
stays restorable by every command here, no command ends otherwise than before, and each thing that was added costs a
reader no more than a bounded number of requests. `python -m tests.cli.test_what_thieves_cost 500` prints the figures
of docs/THREATS.md.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pytest

from lamella.base.ids import SnapId, WriterId
from lamella.base.names import pack_name
from lamella.crypto.slots import key_file
from lamella.format.container import Kind
from lamella.format.lost import Address, Bad
from lamella.format.records import RawRecord, raw
from lamella.format.sessions import Session
from lamella.history.publish import append
from lamella.memory.host import Host, machine_name
from lamella.repository.repository import Repository
from lamella.stores.local.store import LocalStore
from lamella.stores.url import open_store
from tests.cli.program import COMMAND
from tests.cli.test_missing_history import ADMIN, WRITER, World
from tests.fault.pipe_thief import DELETE, Refused, Thief

OBJECTS = 15
SIZE = 4096
FAR = 2**62
COMMANDS = {
    "list": ("list",),
    "backup": ("backup", "IMAGE"),
    "restore": ("restore", "disk", "--to", "TARGET"),
    "verify": ("verify",),
    "verify full": ("verify", "--level", "full"),
    "prune": ("prune", "--keep-last", "9", "-y"),
}


class Cost(NamedTuple):
    """Of one command: its exit code, requests to the store, CPU seconds."""

    code: int
    requests: int
    cpu: float


@dataclass
class Meter:
    """Counts the requests of commands in this process."""

    requests: int = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("get", "stat", "list", "put", "delete"):
                patch.setattr(LocalStore, name, self._counted(getattr(LocalStore, name)))
            yield

    def _counted(self, real: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **more: object) -> object:
            self.requests += 1
            return real(*arguments, **more)

        return counted


def costs(world: World, host: str) -> dict[str, Cost]:
    """Every command, the first of them by a host that knows as much as it is called."""
    found: dict[str, Cost] = {}
    target = world.place / "restored"
    words = {"IMAGE": world.images / "disk.img", "TARGET": target}
    for name, command in COMMANDS.items():
        meter, began = Meter(), time.process_time()
        with meter.counting():
            code, _, _ = world.run(host, *(words.get(word, word) for word in command))
        found[name] = Cost(code, meter.requests, time.process_time() - began)
    assert target.read_bytes() == (world.images / "disk.img").read_bytes()
    target.unlink()
    return found


def victim(place: Path, capture: pytest.CaptureFixture[str] | None) -> World:
    """A repository of an admin's host with three snapshots, and a writer's slot, whose secret was stolen."""
    world = World(place / "world", capture, images=place / "images")
    for folder in (world.place, world.images):
        folder.mkdir()
    for name, secret in (("admin", ADMIN), ("writer", WRITER)):
        (world.place / name).write_bytes(secret)
        (world.place / name).chmod(0o600)
    world.run("one", "init", "-q")
    world.run("one", "key", "add", "--role", "writer", "--new-keyfile", world.place / "writer")
    for letter in (b"a", b"b", b"c"):
        (world.images / "disk.img").write_bytes(letter * (1 << 20))
        world.run("one", "backup", world.images / "disk.img")
    return world


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> World:
    return victim(tmp_path, capsys)


# -- who has no secret, and may only add ------------------------------------------------------------------------------


def add_junk(world: World, count: int, *flags: str) -> int:
    """Everything that a server takes of somebody without a secret; returns its bytes. All else is refused."""
    before = {path: path.read_bytes() for path in world.store.rglob("*") if path.is_file()}
    stored = 0
    with Thief((*COMMAND, "serve", "--append-only", *flags, str(world.store))) as thief:
        for name in (
            "lamella",
            "restore.py",
            "keys/01234567",
            f"w/{'ab' * 16}/{1:016x}-{'cd' * 32}",
            "x",
            "i/x",
            "p/x",
        ):
            with pytest.raises(Refused):
                thief.put(name, os.urandom(SIZE))
        for path in before:
            with pytest.raises(Refused):
                thief.ask(DELETE, str(path.relative_to(world.store)).encode())
        for number in range(count):
            content = os.urandom(SIZE)
            sha256 = hashlib.sha256(content).digest()
            thief.put(pack_name(sha256) if number % 2 else f"i/{sha256.hex()}", content)
            stored += SIZE
    assert {path: path.read_bytes() for path in before} == before
    return stored


# -- who has the data key ----------------------------------------------------------------------------------------------


@contextmanager
def as_writer(world: World, number: int = 0) -> Iterator[Repository]:
    """The repository, opened with the stolen secret; each number is a writer of its own."""
    place = world.place / f"thief-{number}"
    host = Host(machine_name(f"thief {number}"), "thief", place / "state", place / "cache")
    store = open_store(str(world.store))
    with closing(store), Repository.open(store, key_file(WRITER), host) as repo:
        yield repo


def flood(world: World, count: int) -> str:
    """Commits of one writer: claims to the victim's volume, runs that need every pack, bad addresses.

    Returns the writer as `check --expel` takes it.
    """
    packs = [bytes.fromhex(path.name) for path in world.store.glob("p/*/*")]
    with as_writer(world) as repo:
        victim = repo.catalogue.snapshots[0].added
        for number in range(count):
            claim = replace(
                victim, snap_id=SnapId(os.urandom(16)), name=f"claim-{os.urandom(8).hex()}", time_ms=FAR, packs=()
            )
            held = Session(os.urandom(16), f"run-{number}", (), tuple(packs), ())
            bad = Bad(tuple(sorted(Address(pack, Kind.CHUNK, victim.root) for pack in packs)))
            writer = append(repo.log, [raw(claim), raw(held), raw(bad)]).head.writer
    return writer.hex()[:8]


def crowd(world: World, count: int) -> list[WriterId]:
    """As many writers, each with a commit."""
    found: list[WriterId] = []
    for number in range(1, count + 1):
        with as_writer(world, number) as repo:
            made: list[RawRecord] = [raw(Session(os.urandom(16), "crowd", (), (), ()))]
            found.append(append(repo.log, made).head.writer)
    return found


# -- what that costs ---------------------------------------------------------------------------------------------------


def harmless(before: dict[str, Cost], after: dict[str, Cost], each: int) -> None:
    """Every command ends as before, and sends so many requests more at most."""
    assert {name: one.code for name, one in after.items()} == dict.fromkeys(COMMANDS, 0)
    more = {name: after[name].requests - before[name].requests for name in COMMANDS}
    assert max(more.values()) <= each, more


@pytest.mark.parametrize("flags", [(), ("--admitted",)])
def test_a_thief_who_may_only_add(world: World, flags: tuple[str, ...]) -> None:
    before = costs(world, "one")
    add_junk(world, OBJECTS, *flags)
    for host in ("one", "fresh"):
        harmless(before, costs(world, host), 3 * OBJECTS + 40)


def test_a_writer_with_the_data_key_alone(world: World) -> None:
    """Until it is expelled, and then."""
    before = costs(world, "one")
    who = flood(world, OBJECTS)
    crowd(world, 3)
    for host in ("one", "fresh"):
        harmless(before, costs(world, host), 4 * OBJECTS + 40)
    names = {row["snapshot"]: row for row in world.json("one", "list")["snapshots"]}
    assert sum(name.startswith("claim-") for name in names) == OBJECTS
    # It holds deletion up: its runs need every pack. Snapshots are removed all the same, and nothing of it is.
    pruned = world.json("one", "prune", "--keep-last", "1", "-y")
    assert pruned["removed"] and not pruned["freed_bytes"]
    # Expelled, it makes itself another writer, which is known as its successor; `serve --admitted` takes none at all.
    world.ok("one", "check", "--expel", who, "-y")
    assert flood(world, OBJECTS) != who
    harmless(before, costs(world, "fresh too"), 6 * OBJECTS + 40)
    rows = [row for row in world.json("one", "list")["snapshots"] if row["snapshot"].startswith("claim-")]
    assert len(rows) == 2 * OBJECTS and 0 < sum(row["expelled"] for row in rows) <= OBJECTS
    # What an admin deletes of both stays away.
    world.ok("one", "delete", "--expelled", "-y")
    left = [row["snapshot"] for row in world.json("one", "list")["snapshots"] if row["snapshot"].startswith("claim-")]
    assert set(left) == {row["snapshot"] for row in rows if not row["expelled"]}
    world.ok("one", "delete", *(f"disk@{name}" for name in left), "-y", "--yes-last")
    assert not any(row["snapshot"].startswith("claim-") for row in world.json("one", "list")["snapshots"])


# -- the figures -------------------------------------------------------------------------------------------------------


def figures(count: int) -> None:
    """Print them: for each command the requests and CPU seconds before and after, by a host that knew all before."""
    for what in ("adds", "writes"):
        with tempfile.TemporaryDirectory() as place, Path(os.devnull).open("w") as nothing:
            said, sys.stdout, sys.stderr = sys.stdout, nothing, nothing
            try:
                world = victim(Path(place), None)
                size = sum(path.stat().st_size for path in world.store.rglob("*") if path.is_file())
                rows = {"before": costs(world, "one"), "fresh before": costs(world, "fresh")}
                began = time.monotonic()
                who = "" if what == "adds" else flood(world, count)
                if not who:
                    add_junk(world, count, "--admitted")
                spent = time.monotonic() - began
                more = sum(path.stat().st_size for path in world.store.rglob("*") if path.is_file()) - size
                rows |= {"after": costs(world, "one"), "again": costs(world, "one"), "fresh": costs(world, "newer")}
                if who:
                    world.run("one", "check", "--expel", who, "-y")
                    flood(world, count)
                    rows |= {"expelled": costs(world, "one"), "fresh, expelled": costs(world, "newest")}
            finally:
                sys.stdout, sys.stderr = said, sys.__stderr__
        print(f"{what} {count}: {more} bytes in {spent:.1f} s")
        for word, row in rows.items():
            print(f"{word:16}", *(f"{name} {one.code}: {one.requests} r {one.cpu:.2f} s;" for name, one in row.items()))


if __name__ == "__main__":
    figures(int(sys.argv[1]))
