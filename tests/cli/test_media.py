"""Disks that take turns, as their users fear them: the wrong disk written to, one mixed up with another at the same
mount point, a disk that nobody brought for weeks, and a disk that cannot be restored from without the others."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lamella.base import clock
from lamella.cli.main import main
from tests.cli.program import Lamella

DAY_MS = 86_400_000
DISKS = ("red", "green", "blue")


class Shelf:
    """Disks on a shelf, one mount point, and a host that backs up an image to whichever disk is mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mount = folder / "mnt"
        self.mount.mkdir()
        self.image = folder / "disk.img"
        self.image.write_bytes(os.urandom(1 << 20))
        (folder / "key").write_bytes(os.urandom(32))
        (folder / "key").chmod(0o600)
        places = {"CONFIG": "config.toml", "STATE_DIR": "state", "CACHE_DIR": "cache"}
        self.lamella = Lamella({f"LAMELLA_{name}": str(folder / place) for name, place in places.items()})
        self.ids: dict[str, str] = {}

    def make(self, *names: str) -> None:
        """Make repositories on new disks; none stays mounted."""
        for name in names:
            place = self.folder / "shelf" / name
            place.mkdir(parents=True)
            self.insert(name)
            made = self.lamella.json("init", "-r", self.mount / "lamella", "--keyfile", self.folder / "key")
            self.ids[name] = made["repository_id"]
            self.remove()

    def configure(self, *names: str, more: str = "") -> None:
        tables = "".join(
            f'[repositories.{name}]\nurl = "{self.mount}/lamella"\nid = "{self.ids[name]}"\n'
            f'keyfile = "{self.folder}/key"\n'
            for name in names
        )
        turns = ", ".join(f'"{name}"' for name in names)
        profile = f'[profiles.nightly]\nsources = ["disk={self.image}"]\nrepositories = ["vault"]\n'
        text = f"{tables}[media.vault]\nrepositories = [{turns}]\n{profile}{more}"
        (self.folder / "config.toml").write_text(text)

    def insert(self, name: str) -> None:
        """Mount a disk: the mount point leads to it."""
        self.remove()
        self.mount.rmdir()
        self.mount.symlink_to(self.folder / "shelf" / name)

    def remove(self) -> None:
        """Unmount what is mounted: the mount point is an empty directory."""
        if self.mount.is_symlink():
            self.mount.unlink()
            self.mount.mkdir()

    def backup(self, *options: str, code: int = 0) -> dict[str, Any]:
        return self.lamella.json("backup", "-r", "vault", *options, f"disk={self.image}", code=code)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    made = Shelf(tmp_path)
    made.make(*DISKS)
    made.configure(*DISKS)
    return made


def _files(place: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


def test_a_disk_that_is_no_medium_of_the_set_is_not_written_to(shelf: Shelf) -> None:
    shelf.make("foreign")
    before = _files(shelf.folder / "shelf/foreign")
    shelf.insert("foreign")
    for command in (["backup", "--if-available", f"disk={shelf.image}"], ["list"], ["prune", "-y"]):
        for name in ("vault", "red")[: 1 if command[0] == "list" else 2]:
            done = shelf.lamella.run(command[0], "-r", name, *command[1:])
            assert done.code == 1, done  # not merely absent: nobody would hear of the new disk for weeks
            assert shelf.ids["foreign"] in done.err, done.err
    assert _files(shelf.folder / "shelf/foreign") == before


def test_a_strange_disk_costs_no_other_repository_its_backup_and_is_told(shelf: Shelf) -> None:
    main, told = shelf.folder / "main", shelf.folder / "told"
    shelf.lamella.ok("init", "-q", "-r", main, "--keyfile", shelf.folder / "key")
    more = f'[profiles.nightly.notify]\ncommand = "tee -a {told}"\n'
    more += f'[repositories.main]\nurl = "{main}"\nkeyfile = "{shelf.folder}/key"\n'
    shelf.configure(*DISKS, more=more)
    path = shelf.folder / "config.toml"
    path.write_text(path.read_text().replace('repositories = ["vault"]', 'repositories = ["vault", "main"]'))
    shelf.make("foreign")
    shelf.insert("foreign")
    done = shelf.lamella.json("backup", "-r", "vault", "-r", "main", f"disk={shelf.image}", code=3)
    assert [row["result"] for row in done["repositories"]] == ["failed", "complete"]
    steps = shelf.lamella.json("run", "nightly", code=3)["steps"]
    saves = [(row["repository"], row["result"]) for row in steps if row["step"] == "backup"]
    assert saves == [("vault", "failed"), ("main", "done")]
    assert shelf.ids["foreign"] in told.read_text()


def test_a_disk_of_another_name_is_absent_not_taken_for_it(shelf: Shelf) -> None:
    shelf.insert("green")
    before = _files(shelf.folder / "shelf/green")
    done = shelf.lamella.run("backup", "-r", "red", f"disk={shelf.image}")
    assert done.code == 10 and "holds green now" in done.err, done
    done = shelf.lamella.run("backup", "-r", "red", "--if-available", f"disk={shelf.image}")
    assert done.code == 75, done
    assert shelf.lamella.run("mirror", "-r", shelf.folder / "shelf/blue/lamella", "--to", "red").code == 10
    assert _files(shelf.folder / "shelf/green") == before


def test_no_disk_is_absent_and_each_has_its_age(shelf: Shelf) -> None:
    done = shelf.lamella.run("backup", "-r", "vault", f"disk={shelf.image}")
    assert done.code == 10 and "no medium of vault is here" in done.err, done
    assert shelf.lamella.run("backup", "-r", "vault", "--if-available", f"disk={shelf.image}").code == 75
    assert shelf.lamella.json("run", "nightly", code=75)["result"] == "absent"
    shelf.insert("red")
    steps = shelf.lamella.json("run", "nightly")["steps"]
    assert [(row["step"], row["repository"], row["result"]) for row in steps] == [
        ("backup", "red", "done"),
        ("verify", "red", "done"),
    ]
    shelf.remove()
    done = shelf.lamella.run("list", "-r", "vault")
    assert done.code == 10 and "red: last backup " in done.err and "green: no backup of this host yet" in done.err
    (line,) = [line for line in shelf.lamella.run("status").out.splitlines() if " media vault" in line]
    assert line.count("green") == 1 and " now old" not in line + done.err


def test_two_disks_at_once_are_both_saved_to_and_one_is_named_for_anything_else(shelf: Shelf) -> None:
    text = (shelf.folder / "config.toml").read_text()
    second = f'[repositories.green]\nurl = "{shelf.mount}/lamella"'
    there = f'[repositories.green]\nurl = "{shelf.folder}/shelf/green/lamella"'
    (shelf.folder / "config.toml").write_text(text.replace(second, there))
    shelf.insert("red")
    assert [row["repository"] for row in shelf.backup()["repositories"]] == ["red", "green"]
    marker = shelf.folder / "shelf/green/lamella/lamella"
    content = marker.read_bytes()
    marker.chmod(0o600)
    marker.write_bytes(b"rot" + content[3:])
    alone = shelf.lamella.run("backup", "-r", "vault", f"disk={shelf.image}")
    assert alone.code == 0 and "green: " in alone.err, "a bad disk is named, and costs the good one nothing"
    marker.write_bytes(content)
    done = shelf.lamella.run("restore", "-r", "vault", "disk", "--to", shelf.folder / "back")
    assert done.code == 2 and "-r red or -r green" in done.err, done


def test_a_wrong_set_is_said_before_anything_runs(shelf: Shelf) -> None:
    good = (shelf.folder / "config.toml").read_text()
    for old, new, said in (
        (f'id = "{shelf.ids["red"]}"\n', "", "repositories.red has no id"),
        (shelf.ids["red"], shelf.ids["green"], "two repositories have the id"),
        (shelf.ids["red"], "12", "32 hexadecimal digits"),
        ('["red", "green"', '["rot", "green"', "'rot', which is not configured"),
        ("[media.vault]", "[media.red]", "a repository has the same name"),
        ('repositories = ["red", "green", "blue"]\n', "", "repositories is missing"),
    ):
        assert old in good
        (shelf.folder / "config.toml").write_text(good.replace(old, new))
        assert any(said in one for one in shelf.lamella.json("config", "validate", code=2)["problems"]), said


# -- sixty days -------------------------------------------------------------------------------------------------------


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch, shelf: Shelf) -> Iterator[list[int]]:
    """The wall time of commands in this process, in days and parts of days from now."""
    now, real = [0], clock.now_ms

    def then() -> int:
        return real() + now[0]

    for name, module in list(sys.modules.items()):
        if name.startswith("lamella") and getattr(module, "now_ms", None) is real:
            monkeypatch.setattr(module, "now_ms", then)
    monkeypatch.setattr(clock, "now_ms", then)
    yield now
    now[0] = 0  # modules that were loaded meanwhile keep this clock


def test_three_disks_over_sixty_days_each_restorable_alone(
    shelf: Shelf, moved: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk is brought every few days, in any order; whatever the days, each disk has what it was given."""

    def run(*words: str | Path) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = main(["--json", *map(str, words)], {**os.environ, **shelf.lamella.env})
        return code, json.loads(capsys.readouterr().out)

    chance, given, last = random.Random(18), dict[str, dict[str, bytes]](), dict[str, int]()
    for day in range(60):
        moved[0] = day * DAY_MS
        with shelf.image.open("r+b") as image:
            image.seek(chance.randrange(15) << 16)
            image.write(chance.randbytes(5000))
        name = chance.choice((*DISKS, None)) if day < 40 else None
        if name is not None:
            shelf.insert(name)
            code, found = run("run", "nightly")
            assert code == 0, found
            assert found["steps"][0]["repository"] == name
            given.setdefault(name, {})[found["steps"][0]["document"]["snapshot"]] = shelf.image.read_bytes()
            last[name] = day
        else:
            shelf.remove()
            assert run("run", "nightly")[0] == 75
        if day % 10 == 9:
            _, status = run("status")
            (row,) = status["media"]
            ages = {one["repository"]: one["age_seconds"] for one in row["members"]}
            assert {one: None if age is None else age // 86_400 for one, age in ages.items()} == {
                one: day - last[one] if one in last else None for one in DISKS
            }
            newest = day - max(last.values())
            assert (row["state"] == "bad") == (newest > 14), row
            assert (f"no medium for {newest} d" in row["reasons"]) == (newest > 14), row
    assert given.keys() == set(DISKS)
    shutil.rmtree(shelf.folder / "state")
    shutil.rmtree(shelf.folder / "cache")
    for name, snapshots in given.items():
        shelf.insert(name)  # alone, on a host that knows nothing
        _, found = run("list", "-r", "vault")
        assert {row["snapshot"] for row in found["snapshots"]} == snapshots.keys()
        for snapshot in (min(snapshots), max(snapshots)):
            back = shelf.folder / f"{name}-{snapshot}"
            assert run("restore", "-r", "vault", f"disk@{snapshot}", "--to", back)[0] == 0
            assert back.read_bytes() == snapshots[snapshot], (name, snapshot)
