"""`lamella key rekey` as its users fear it: old secrets that still open, snapshots left behind, kills, damage."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.program import COMMAND, Lamella, environment

MIB = 1 << 20


@pytest.fixture
def history(saved: Lamella, image: Path) -> dict[str, bytes]:
    """The contents of the volume's snapshots, by name: three snapshots, the first is tagged."""
    first = saved.json("list")["snapshots"][0]["snapshot"]
    contents = {first: image.read_bytes()}
    saved.ok("tag", f"disk@{first}", "first")
    for number in range(2):
        with image.open("r+b") as file:
            file.seek(number * 256 << 10)
            file.write(os.urandom(4096))
        contents[saved.json("backup", image)["snapshot"]] = image.read_bytes()
    return contents


@pytest.fixture
def new(tmp_path: Path) -> Lamella:
    """The command, told the new repository and its key file."""
    return Lamella({"LAMELLA_REPO": str(tmp_path / "new")}, ["--keyfile", str(tmp_path / "new.key")])


def rekeying(tmp_path: Path) -> list[str]:
    return ["key", "rekey", "--to", str(tmp_path / "new"), "--new-keyfile", str(tmp_path / "new.key"), "--generate"]


def require_all(new: Lamella, history: dict[str, bytes], tmp_path: Path) -> None:
    """Every snapshot is in the new repository, to the byte, for Lamella and for the emergency reader."""
    assert {row["snapshot"] for row in new.json("list")["snapshots"]} == set(history)
    for number, (name, content) in enumerate(history.items()):
        out = tmp_path / f"out{number}"
        new.ok("restore", f"disk@{name}", "--to", out, "--overwrite")
        assert out.read_bytes() == content
    reader: list[str | Path] = [
        sys.executable,
        "-I",
        tmp_path / "new" / "restore.py",
        "--repo",
        tmp_path / "new",
        *new.options,
    ]
    target = tmp_path / f"rescued{time.monotonic_ns()}"
    subprocess.run([*reader, "restore", "disk", "--to", target], check=True, capture_output=True)
    assert target.read_bytes() == list(history.values())[-1]


def test_everything_is_there_and_the_old_secret_opens_nothing(
    saved: Lamella, new: Lamella, history: dict[str, bytes], image: Path, tmp_path: Path
) -> None:
    planned = saved.ok(*rekeying(tmp_path), "-n")
    assert "would make" in planned.out and not (tmp_path / "new").exists() and not (tmp_path / "new.key").exists()
    sheet = tmp_path / "sheet"
    made = saved.json(*rekeying(tmp_path), "--recovery-sheet", sheet)
    assert (made["result"], made["copied"], made["not_copied"]) == ("complete", 3, [])
    assert made["verified_bytes"] > 0 and made["findings"] == 0
    require_all(new, history, tmp_path)
    assert new.json("list")["snapshots"][0]["tags"] == ["first"]
    assert saved.run("list", "-r", tmp_path / "new").code == 12
    key = tmp_path / "recovery"
    key.write_text(re.findall(r"(?:[A-Z2-7]{5}-\s*){13}[A-Z2-7]{5}", sheet.read_text())[0])
    Lamella({}, ["--recovery-key-file", str(key)]).ok("prune", "-n", "--keep-last", "1", "-r", tmp_path / "new")
    # Neither the data nor a name is to be found by whoever holds the old keys: no sealed byte string was carried over.
    old, copied = (
        {path.read_bytes() for path in root.rglob("p/**/*") if path.is_file()}
        for root in (Path(saved.env["LAMELLA_REPO"]), tmp_path / "new")
    )
    assert old and copied and not old & copied
    # The next backup continues there.
    assert new.json("backup", image)["stored_bytes"] == 0


def test_the_old_repository_stays_as_it_is(saved: Lamella, history: dict[str, bytes], tmp_path: Path) -> None:
    place = Path(saved.env["LAMELLA_REPO"])
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    saved.ok(*rekeying(tmp_path))
    after = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert {path: after.get(path) for path in before} == before


def test_repeated_it_copies_what_came_since(
    saved: Lamella, new: Lamella, history: dict[str, bytes], image: Path, tmp_path: Path
) -> None:
    saved.ok(*rekeying(tmp_path))
    with image.open("r+b") as file:
        file.write(os.urandom(4096))
    name = saved.json("backup", image)["snapshot"]
    again = saved.json(*rekeying(tmp_path))
    assert (again["copied"], again["present"]) == (1, 3)
    require_all(new, {**history, name: image.read_bytes()}, tmp_path)


def test_killed_anywhere_it_resumes(saved: Lamella, new: Lamella, history: dict[str, bytes], tmp_path: Path) -> None:
    """SIGKILL after ever longer times, until a run ends by itself; what is there then is whole."""
    command = [*COMMAND, *saved.options, *rekeying(tmp_path)]
    kills, wait = 0, 0.2
    while True:
        process = subprocess.Popen(
            command, env=environment(saved.env), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            code = process.wait(wait)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills, wait = kills + 1, wait * 1.15
            continue
        assert code == 0, code
        break
    assert kills
    require_all(new, history, tmp_path)


@pytest.mark.parametrize("which", ["the one in use", "another"])
def test_a_secret_of_the_old_repository_is_refused(which: str, saved: Lamella, keyfile: Path, tmp_path: Path) -> None:
    other = keyfile
    if which == "another":
        other = tmp_path / "other.key"
        saved.ok("key", "add", "--new-keyfile", other, "--generate", "--role", "writer")
    done = saved.run("key", "rekey", "--to", tmp_path / "new", "--new-keyfile", other)
    assert done.code == 2 and "opens the old repository" in done.err
    assert not (tmp_path / "new").exists()


def spoil(path: Path) -> None:
    """Damage the middle of a file: more than there can be padding between two blobs."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = os.urandom(64)
    path.write_bytes(content)


def largest_pack(place: Path) -> Path:
    return max((path for path in (place / "p").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_what_cannot_be_read_is_named_and_the_rest_is_copied(
    saved: Lamella, new: Lamella, history: dict[str, bytes], image: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.img"
    other.write_bytes(os.urandom(MIB))
    saved.ok("backup", other, "--domain", "elsewhere")
    sealed = largest_pack(Path(saved.env["LAMELLA_REPO"]))
    spoil(sealed)
    done = saved.run(*rekeying(tmp_path))
    assert done.code == 3 and "NOT COPIED" in done.out
    lost = {line.split(": ")[1] for line in done.out.splitlines() if line.startswith("NOT COPIED")}
    there = {f"{volume}@{row['snapshot']}" for row in new.json("list")["snapshots"] for volume in row["volumes"]}
    everything = {f"{volume}@{row['snapshot']}" for row in saved.json("list")["snapshots"] for volume in row["volumes"]}
    assert lost and there and lost | there == everything and not lost & there


def test_a_damaged_copy_is_no_proof(saved: Lamella, history: dict[str, bytes], tmp_path: Path) -> None:
    saved.ok(*rekeying(tmp_path))
    spoil(largest_pack(tmp_path / "new"))
    done = saved.run(*rekeying(tmp_path))
    assert done.code == 20 and "does NOT hold" in done.out


def test_chosen_snapshots_and_secrets_to_give_anew(
    saved: Lamella, new: Lamella, history: dict[str, bytes], tmp_path: Path
) -> None:
    saved.ok("key", "add", "--recovery", "--recovery-sheet", tmp_path / "old.sheet")
    newest = list(history)[-1]
    made = saved.json(*rekeying(tmp_path), f"disk@{newest}")
    assert (made["copied"], made["secrets_not_carried_over"]) == (1, {"admin recovery key": 1})
    require_all(new, {newest: history[newest]}, tmp_path)


def test_mistakes(saved: Lamella, history: dict[str, bytes], tmp_path: Path) -> None:
    """Mistakes that cost nothing: no secret, the same repository, a foreign directory, a sheet that is there."""
    place = saved.env["LAMELLA_REPO"]
    assert saved.run("key", "rekey", "--to", tmp_path / "new").code == 2
    assert saved.run("key", "rekey", "--to", place, "--new-keyfile", saved.options[1]).code == 2
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").write_text("mine")
    foreign: list[str | Path] = [
        "key",
        "rekey",
        "--to",
        tmp_path / "foreign",
        "--new-keyfile",
        tmp_path / "new.key",
        "--generate",
    ]
    done = saved.run(*foreign)
    assert done.code == 1 and "letter.txt" in done.err
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["letter.txt"]
    sheet = tmp_path / "sheet"
    sheet.write_text("older")
    assert saved.run(*rekeying(tmp_path), "--recovery-sheet", sheet).code == 2 and sheet.read_text() == "older"
