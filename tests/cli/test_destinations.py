"""`backup` to several repositories: one moment, a result for each, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.program import Done, Lamella


@pytest.fixture
def two(tmp_path: Path, keyfile: Path) -> list[str]:
    """Two repositories with the same key file."""
    places = [str(tmp_path / "A"), str(tmp_path / "B")]
    for place in places:
        Lamella({}, ["--keyfile", str(keyfile)]).ok("init", "-q", "-r", place)
    return places


@pytest.fixture
def command(keyfile: Path) -> Lamella:
    return Lamella({}, ["--keyfile", str(keyfile)])


def words(places: list[str]) -> list[str]:
    return [word for place in places for word in ("-r", place)]


def rows(done: Done) -> list[dict[str, Any]]:
    found = done.json["repositories"]
    assert isinstance(found, list)
    return found


def restored(command: Lamella, place: str, target: Path) -> bytes:
    command.ok("restore", "-q", "-r", place, "disk", "--to", target, "--overwrite")
    return target.read_bytes()


def test_both_get_the_same_moment(command: Lamella, two: list[str], image: Path, tmp_path: Path) -> None:
    """The hook after the freeze changes the image: whoever froze it again for the second repository would see that."""
    done = command.run(*words(two), "backup", image, "--json")
    assert (done.code, done.json["result"], done.json["command"]) == (0, "complete", "backup")
    assert [row["repository"] for row in rows(done)] == two
    for row in rows(done):
        assert row["result"] == "complete" and row["volumes"][0]["volume"] == "disk" and row["snapshot"]
    for place in two:
        assert restored(command, place, tmp_path / "out.img") == image.read_bytes()


def test_before_and_after_the_command_and_for_people(command: Lamella, two: list[str], image: Path) -> None:
    done = command.run("-r", two[0], "backup", "-r", two[1], image)
    assert done.code == 0
    assert [line for line in done.out.splitlines() if line.endswith(":")] == [f"{place}:" for place in two]
    assert done.out.count("snapshot ") == 2


def test_one_that_is_missing_does_not_stop_the_other(command: Lamella, two: list[str], image: Path) -> None:
    done = command.run(*words([two[0], two[0] + "-no", two[1]]), "backup", image, "--json")
    assert done.code == 3
    assert [row["result"] for row in rows(done)] == ["complete", "failed", "complete"]
    assert rows(done)[1]["error"]["exit"] == 10
    assert done.json["result"] == "incomplete"


def test_all_missing(command: Lamella, two: list[str], image: Path) -> None:
    done = command.run(*words([two[0] + "-no", two[1] + "-no"]), "backup", image, "--json")
    assert (done.code, done.json["result"]) == (10, "failed")
    done = command.run(*words([two[0] + "-no", two[1] + "-no"]), "--if-available", "backup", image, "--json")
    assert done.code == 75
    assert [row["result"] for row in rows(done)] == ["skipped", "skipped"]


def test_an_absent_one_is_skipped_if_that_is_wanted(command: Lamella, two: list[str], image: Path) -> None:
    done = command.run(*words([two[0] + "-no", two[1]]), "--if-available", "backup", image, "--json")
    assert (done.code, done.json["result"]) == (0, "incomplete")
    assert [row["result"] for row in rows(done)] == ["skipped", "complete"]
    assert rows(done)[0]["error"]["exit"] == 75
    assert "skipped" in done.err


def test_another_secret_for_each_from_the_configuration(tmp_path: Path, image: Path, two: list[str]) -> None:
    other = tmp_path / "key2"
    other.write_bytes(b"another key file, of 32 bytes..!")
    third = str(tmp_path / "C")
    Lamella({}, ["--keyfile", str(other)]).ok("init", "-q", "-r", third)
    config = tmp_path / "config.toml"
    config.write_text(
        f'[repositories.one]\nurl = "{two[0]}"\nkeyfile = "{tmp_path / "key"}"\n'
        f'[repositories.two]\nurl = "{third}"\nkeyfile = "{other}"\n'
        '[backup]\nrepositories = ["one", "two"]\n'
    )
    configured = Lamella({"LAMELLA_CONFIG": str(config)})
    done = configured.run("backup", image, "--json")
    assert done.code == 0, done.err
    assert [row["repository"] for row in rows(done)] == ["one", "two"]
    for name in ("one", "two"):
        assert len(configured.ok("list", "-r", name, "--json").json["snapshots"]) == 1
    single = configured.run("backup", image, "-r", "two", "--json")
    assert "repositories" not in single.json and single.json["snapshot"], "one destination has the document it had"


def test_a_secret_in_a_descriptor_is_read_once(tmp_path: Path, image: Path) -> None:
    places = [str(tmp_path / "A"), str(tmp_path / "B")]
    word = {"LAMELLA_PASSPHRASE": "a passphrase"}
    for place in places:
        Lamella(word).ok("init", "-q", "-r", place, "--kdf-cost", "17")
    done = Lamella({"LAMELLA_PASSPHRASE_FD": "0"}).run(*words(places), "backup", image, "--json", input="a passphrase")
    assert done.code == 0, done.err


def test_a_dry_run_shows_each_plan_and_writes_nothing(command: Lamella, two: list[str], image: Path) -> None:
    command.ok("backup", "-q", "-r", two[0], image)
    done = command.run(*words(two), "backup", image, "-n", "--json")
    assert done.code == 0
    assert [row["volumes"][0]["mode"] for row in rows(done)] == ["compare", "full"]
    assert command.ok("list", "-r", two[1], "--json").json["snapshots"] == []


def test_other_commands_take_the_last_one_named(command: Lamella, two: list[str], image: Path) -> None:
    command.ok("backup", "-q", "-r", two[1], image)
    assert len(command.ok("-r", two[0], "list", "-r", two[1], "--json").json["snapshots"]) == 1
    assert command.ok("-r", two[1], "list", "-r", two[0], "--json").json["snapshots"] == []


def test_hooks_run_once(command: Lamella, two: list[str], image: Path, tmp_path: Path) -> None:
    script = tmp_path / "hook"
    script.write_text(f"#!/bin/sh\necho $1 >> {tmp_path}/log\n")
    script.chmod(0o755)
    done = command.run(*words(two), "backup", image, "--before", f"{script} before", "--after", f"{script} after")
    assert done.code == 0
    assert (tmp_path / "log").read_text().split() == ["before", "after"]


def test_reading_slowly_reads_the_same(command: Lamella, two: list[str], image: Path, tmp_path: Path) -> None:
    command.ok("backup", "-q", "-r", two[0], image, "--read-rate", "64M")
    assert restored(command, two[0], tmp_path / "out.img") == image.read_bytes()
    refused = command.run("backup", "-r", two[0], image, "--read-rate", "0")
    assert refused.code == 2


def test_the_document_of_one_destination_is_what_it_was(command: Lamella, two: list[str], image: Path) -> None:
    done = command.run("-r", two[0], "-r", two[0], "backup", image, "--json")
    keys = {"schema", "command", "snapshot", "result", "seconds", "metadata_bytes", "stored_bytes", "fingerprint"}
    assert set(json.loads(done.out)) == keys | {"warnings", "volumes"}
