"""Whatever number a record of an authenticated commit has, every command shows it, or refuses it with a reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lamella import rescue
from lamella.cli.main import main
from lamella.cli.places import this_host
from lamella.crypto.slots import key_file
from lamella.format.container import Kind
from lamella.format.inner import Refuted, Sampled
from lamella.format.lost import Address, Bad, Lost
from lamella.format.records import AddSnap, Figures, RawRecord, Run, raw
from lamella.format.sessions import Session, SessionVolume
from lamella.repository.repository import Repository
from lamella.stores.url import open_store

KEY = b"k" * 32
MOST = (1 << 64) - 1
SIZE = (1 << 63) - 1
NUMBERS = [0, 1, 253_402_300_800_000, 1 << 53, SIZE, MOST]
WORDS: list[list[str]] = [
    line.split()
    for line in """
    list
    list disk
    list --json
    list disk --json
    info --sizes
    info
    info --json
    info disk
    info disk --json
    info disk@extreme
    prune -n --keep-last 1
    prune -n --keep-daily 3
    prune -n --keep-within 3m
    prune -n --thin-older 1d:day
    check
    doctor
    verify
    verify --level full
    diff FIRST disk@extreme
    prune --keep-last 1 -y
    """.strip().splitlines()
]


class World:
    """A repository with a sound snapshot, `first`; every command runs in this process."""

    def __init__(self, place: Path) -> None:
        self.store, self.place = place / "repository", place
        (place / "key").write_bytes(KEY)
        (place / "key").chmod(0o600)
        self.image = place / "disk.img"
        self.image.write_bytes(b"sound" * 40_000)
        self.env = {
            "LAMELLA_REPO": str(self.store),
            "LAMELLA_STATE_DIR": str(place / "state"),
            "LAMELLA_CACHE_DIR": str(place / "cache"),
            "LAMELLA_CONFIG": str(place / "none"),
        }
        assert self.run("init", "-q") == 0
        assert self.run("backup", "-q", str(self.image)) == 0
        self.first = f"disk@{self.snapshot().name}"

    def run(self, *words: str) -> int:
        return main(["--keyfile", str(self.place / "key"), *words], self.env)

    def open(self) -> Repository:
        host = this_host(self.env)
        return Repository.open(open_store(str(self.store)), key_file(KEY), host)

    def publish(self, records: Sequence[RawRecord]) -> None:
        with self.open() as repo:
            repo.publish(records)

    def snapshot(self) -> AddSnap:
        with self.open() as repo:
            return repo.catalogue.snapshots[0].added


def crafted(good: AddSnap, number: int) -> list[RawRecord]:
    """Every number that a record has, this large where its field allows it."""
    size = min(number, SIZE)
    inner = (
        Figures(min(number, 255), number, number, number, number).encode(),
        Sampled(number, number).encode(),
        Refuted(number, number).encode(),
    )
    shot = replace(good, snap_id=type(good.snap_id)(b"x" * 16), time_ms=number, size=size, name="extreme", inner=inner)
    ref = good.parent._replace(seq=number)
    session = Session(b"s" * 16, "extreme", (SessionVolume(good.volume_id, "disk", ref, good.root),), (b"p" * 32,), ())
    records = [shot, Run("extreme", True, ()), session, Bad((Address(b"p" * 32, Kind.CHUNK, good.root),))]
    if number:
        records.append(Lost.of(ref, [(number, number + max(1, size))]))
    return [raw(record) for record in records]


@pytest.mark.parametrize("number", NUMBERS)
def test_every_command_bears_every_number(tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int) -> None:
    world = World(tmp_path)
    world.publish(crafted(world.snapshot(), number))
    capsys.readouterr()
    failed = []
    for words in WORDS:
        code = world.run(*(world.first if word == "FIRST" else word for word in words))
        out, err = capsys.readouterr()
        if "Traceback" in err or "internal error" in err or code not in {0, 4, 20}:
            failed.append((words, code, err))
        if "--json" in words:
            document: Any = json.loads(out)
            assert document["schema"] == "lamella/1"
    assert not failed
    # The sound snapshot is as restorable as before.
    target = tmp_path / "out.img"
    assert world.run("restore", world.first, "--to", str(target)) == 0
    assert target.read_bytes() == world.image.read_bytes()
    for words in (["list"], ["info"], ["needs", "disk@extreme"]):
        code = rescue.main(["--repo", str(world.store), "--keyfile", str(tmp_path / "key"), *words])
        out, err = capsys.readouterr()
        assert "internal error" not in err and code in {0, 4}, (words, code, err)


def test_a_snapshot_of_a_size_that_no_file_has_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(tmp_path)
    good = world.snapshot()
    world.publish([raw(replace(good, snap_id=type(good.snap_id)(b"x" * 16), size=SIZE + 1, name="extreme"))])
    capsys.readouterr()
    assert world.run("list", "disk") == 0
    assert "extreme" not in capsys.readouterr().out
    assert rescue.main(["--repo", str(world.store), "--keyfile", str(tmp_path / "key"), "list"]) == 0
    assert "extreme" not in capsys.readouterr().out
    assert world.run("prune", "--keep-last", "1", "-y") == 20, "a record that must be understood, and cannot be"
