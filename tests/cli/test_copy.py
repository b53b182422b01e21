"""`lamella copy` as users meet it: two repositories, two secrets, what is said and how it ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.program import Lamella


@pytest.fixture
def second(tmp_path: Path, lamella: Lamella) -> Path:
    """Another repository, with a key of its own."""
    key = tmp_path / "second.key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    Lamella({}, ["--keyfile", str(key)]).ok("init", "-q", "-r", tmp_path / "second")
    return tmp_path / "second"


def there(second: Path) -> Lamella:
    return Lamella({"LAMELLA_REPO": str(second)}, ["--keyfile", f"{second}.key"])


def change(image: Path) -> None:
    with image.open("r+b") as file:
        file.write(os.urandom(4096))


def test_copy_restore_and_repeat(saved: Lamella, image: Path, second: Path, tmp_path: Path) -> None:
    change(image)
    saved.ok("backup", image)
    to = ("--to", second, "--to-keyfile", f"{second}.key")
    planned = saved.json("copy", "-n", *to)
    assert planned["dry_run"] and [row["result"] for row in planned["snapshots"]] == ["wanted", "wanted"]
    assert there(second).json("list")["snapshots"] == []
    made = saved.json("copy", *to)
    assert (made["copied"], made["present"], made["failed"], made["result"]) == (2, 0, 0, "complete")
    assert made["read_bytes"] < 2 << 20
    listed = [
        {key: row[key] for key in ("snapshot", "time", "volumes", "size")} for row in saved.json("list")["snapshots"]
    ]
    copied = there(second).json("list")["snapshots"]
    assert [{key: row[key] for key in listed[0]} for row in copied] == listed
    there(second).ok("restore", "disk", "--to", tmp_path / "out.img")
    assert (tmp_path / "out.img").read_bytes() == image.read_bytes()
    again = saved.json("copy", *to)
    assert (again["copied"], again["present"], again["stored_bytes"]) == (0, 2, 0)
    assert "2 there already" in saved.ok("copy", *to).out


def test_a_selection(saved: Lamella, image: Path, second: Path) -> None:
    change(image)
    newest = saved.json("backup", image)["snapshot"]
    to = ("--to", second, "--to-keyfile", f"{second}.key")
    made = saved.json("copy", *to, "disk@latest")
    assert [row["snapshot"] for row in made["snapshots"]] == [newest]
    assert saved.json("copy", *to, "disk")["present"] == 1
    assert saved.run("copy", *to, "nobody").code == 4


def test_the_newest_of_each_volume(saved: Lamella, image: Path, second: Path) -> None:
    """Whoever copies over a slow line wants last night first; what is older comes when it is asked for."""
    for _ in range(2):
        change(image)
        saved.ok("backup", image)
    everything = sorted(row["snapshot"] for row in saved.json("list")["snapshots"])
    last = ("--to", second, "--to-keyfile", f"{second}.key", "--transfer-last")
    assert [row["snapshot"] for row in saved.json("copy", *last, "2")["snapshots"]] == everything[-2:]
    assert saved.json("copy", *last, "2")["copied"] == 0
    assert saved.json("copy", *last, "9")["copied"] == len(everything) - 2
    assert saved.run("copy", *last, "0").code == 2


def test_secrets_of_the_second_repository(saved: Lamella, second: Path, tmp_path: Path) -> None:
    key = f"{second}.key"
    to = ("copy", "--to", second)
    none = saved.run(*to)
    assert none.code == 2 and "--to-keyfile" in none.err
    both = saved.run(*to, "--to-keyfile", key, env={"LAMELLA_TO_PASSPHRASE": "x"})
    assert both.code == 2 and "LAMELLA_TO_PASSPHRASE, --to-keyfile" in both.err
    wrong = saved.run(*to, "--to-keyfile", saved.options[1])
    assert wrong.code == 12
    config = tmp_path / "config.toml"
    config.write_text(f'[repositories.second]\nurl = "{second}"\nkeyfile = "{key}"\n')
    assert saved.run("copy", "--to", "second", env={"LAMELLA_CONFIG": str(config)}).code == 0


def test_a_passphrase_from_a_variable(saved: Lamella, tmp_path: Path) -> None:
    other = tmp_path / "other"
    Lamella({"LAMELLA_PASSPHRASE": "correct horse"}).ok("init", "-q", "-r", other, "--kdf-cost", "17")
    assert saved.run("copy", "--to", other, env={"LAMELLA_TO_PASSPHRASE": "correct horse"}).code == 0


def test_what_is_refused(saved: Lamella, place: Path, tmp_path: Path) -> None:
    same = saved.run("copy", "--to", place, "--to-keyfile", saved.options[1])
    assert same.code == 2 and "same repository" in same.err
    missing = saved.run("copy", "--to", tmp_path / "nothing", "--to-keyfile", saved.options[1])
    assert missing.code == 10
    assert saved.run("copy").code == 2


def test_what_cannot_be_read_makes_it_incomplete(saved: Lamella, place: Path, image: Path, second: Path) -> None:
    packs = set(place.glob("p/*/*"))
    change(image)
    bad = saved.json("backup", image)["snapshot"]
    (lost,) = set(place.glob("p/*/*")) - packs
    lost.unlink()
    done = saved.run("--json", "copy", "--to", second, "--to-keyfile", f"{second}.key")
    assert done.code == 3
    rows = {row["snapshot"]: row["result"] for row in done.json["snapshots"]}
    assert rows.pop(bad) == "failed" and list(rows.values()) == ["copied"]
    assert "was not copied" in done.err
