"""The secrets that open a repository: adding, changing, removing them."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from tests.cli.program import Lamella, Terminal


def test_added_key_file_opens(saved: Lamella, place: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    added = saved.json("key", "add", "--new-keyfile", new, "--generate")
    assert (added["type"], added["role"]) == ("key file", "admin")
    assert (stat.S_IMODE(new.stat().st_mode), new.stat().st_size) == (0o600, 32)
    other = Lamella({"LAMELLA_REPO": str(place)}, ["--keyfile", str(new)])
    slots = {row["name"]: row for row in other.json("key", "list")["slots"]}
    assert len(slots) == 2
    assert slots[added["slot"]]["current"]
    assert all(row["signed"] for row in slots.values())


def test_generated_key_file_must_not_exist(saved: Lamella, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.write_text("precious")
    assert saved.run("key", "add", "--new-keyfile", new, "--generate").code == 2
    assert new.read_text() == "precious"
    assert saved.run("key", "add", "--generate").code == 2


def test_writer_backs_up_and_cannot_touch_keys(saved: Lamella, place: Path, image: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    saved.ok("key", "add", "--new-keyfile", new, "--generate", "--role", "writer")
    writer = Lamella({"LAMELLA_REPO": str(place)}, ["--keyfile", str(new)])
    assert writer.json("info")["role"] == "writer"
    writer.ok("backup", image)
    refused = writer.run("key", "add", "--new-keyfile", tmp_path / "further", "--generate")
    assert refused.code == 2
    assert "admin" in refused.err
    assert not (tmp_path / "further").exists()
    assert writer.run("key", "remove", writer.json("key", "list")["slots"][0]["name"]).code == 2


def test_changed_key_file(saved: Lamella, place: Path, keyfile: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.write_bytes(os.urandom(64))
    saved.ok("key", "change", "--new-keyfile", new)
    assert saved.run("list").code == 12
    other = Lamella({"LAMELLA_REPO": str(place)}, ["--keyfile", str(new)])
    assert len(other.json("key", "list")["slots"]) == 1
    assert other.json("verify")["findings"] == []


def test_change_keeps_the_type(saved: Lamella, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet"
    done = saved.run("key", "change", "--recovery", "--recovery-sheet", sheet)
    assert done.code == 2
    assert "key add" in done.err
    assert not sheet.exists()


def test_added_recovery_key(saved: Lamella, place: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet"
    saved.ok("key", "add", "--recovery", "--recovery-sheet", sheet)
    assert saved.json("info")["fingerprint"] in sheet.read_text()
    found = re.search(r"(?:[A-Z2-7]{5}-\s*){13}[A-Z2-7]{5}", sheet.read_text())
    assert found is not None
    (tmp_path / "KEY").write_text(found[0])
    other = Lamella({"LAMELLA_REPO": str(place)}, ["--recovery-key-file", str(tmp_path / "KEY")])
    assert other.json("info")["role"] == "admin"


def test_recovery_key_without_a_place_to_show_it(saved: Lamella) -> None:
    assert saved.run("key", "add", "--recovery").code == 2
    assert len(saved.json("key", "list")["slots"]) == 1


def test_two_new_secrets(saved: Lamella, tmp_path: Path) -> None:
    done = saved.run("key", "add", "--new-keyfile", tmp_path / "x", env={"LAMELLA_NEW_PASSPHRASE": "y"})
    assert done.code == 2
    assert "LAMELLA_NEW_PASSPHRASE, --new-keyfile" in done.err


def test_new_passphrase_is_asked_for(saved: Lamella, place: Path, keyfile: Path) -> None:
    arguments: list[str | Path] = [
        "-r",
        place,
        "--keyfile",
        keyfile,
        "key",
        "add",
        "--kdf-cost",
        "17",
        "--role",
        "writer",
    ]
    with Terminal(arguments) as terminal:
        terminal.expect("New passphrase: ")
        terminal.type("hidden word")
        terminal.expect("New passphrase again: ")
        terminal.type("hidden word")
        assert terminal.end() == 0
        assert "hidden word" not in terminal.seen
    opened = Lamella({"LAMELLA_REPO": str(place), "LAMELLA_PASSPHRASE": "hidden word"})
    assert opened.json("info")["role"] == "writer"


def test_removal_is_confirmed_on_a_terminal(saved: Lamella, place: Path, keyfile: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    added = saved.json("key", "add", "--new-keyfile", new, "--generate")["slot"]
    arguments: list[str | Path] = ["-r", place, "--keyfile", keyfile, "key", "remove", added]
    for answer, code, left in (("n", 130, 2), ("", 130, 2), ("y", 0, 1)):
        with Terminal(arguments) as terminal:
            terminal.expect("[y/N] ")
            terminal.type(answer)
            assert terminal.end() == code
        assert len(saved.json("key", "list")["slots"]) == left


def test_removal_without_terminal(saved: Lamella, tmp_path: Path) -> None:
    added = saved.json("key", "add", "--new-keyfile", tmp_path / "new", "--generate")["slot"]
    assert saved.json("key", "remove", added.removeprefix("keys/")[:6])["removed"] == added
    (last,) = saved.json("key", "list")["slots"]
    refused = saved.run("key", "remove", last["name"])
    assert refused.code == 2
    assert "last admin" in refused.err


def test_append_only(lamella: Lamella, place: Path, image: Path, tmp_path: Path) -> None:
    assert lamella.run("init", "--append-only").code == 2
    assert not place.exists()
    sheet = tmp_path / "sheet"
    assert lamella.json("init", "--append-only", "--recovery-sheet", sheet)["append_only"]
    roles = {row["type"]: row["role"] for row in lamella.json("key", "list")["slots"]}
    assert roles == {"key file": "writer", "recovery key": "admin"}
    lamella.ok("backup", image)
    lamella.ok("restore", "disk", "--to", tmp_path / "out")
    assert lamella.run("key", "add", "--new-keyfile", tmp_path / "x", "--generate").code == 2
    assert "authorise deletion" in sheet.read_text()
