"""What `verify` finds bad, as other hosts and their users meet it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.cli.program import ROOT, Lamella

MIB = 1 << 20
Found = dict[str, object]


def damage(place: Path) -> None:
    """Overwrite a few bytes amid the largest pack: of a chunk."""
    pack = max((path for path in (place / "p").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(pack.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = os.urandom(64)
    pack.chmod(0o600)
    pack.write_bytes(content)


def commits(place: Path) -> list[Path]:
    return sorted(path for path in (place / "w").rglob("*") if path.is_file())


@pytest.fixture
def other(saved: Lamella, tmp_path: Path) -> Lamella:
    """Another host with the same key, that knows nothing yet."""
    places = {"LAMELLA_STATE_DIR": str(tmp_path / "there/state"), "LAMELLA_CACHE_DIR": str(tmp_path / "there/cache")}
    return Lamella({**saved.env, **places}, saved.options)


def notes(proof: Found) -> list[str]:
    rows = proof["findings"]
    assert isinstance(rows, list)
    return [row["message"] for row in rows if row["severity"] == "note"]


def test_what_one_host_finds_another_stores_anew(
    saved: Lamella, other: Lamella, image: Path, place: Path, tmp_path: Path
) -> None:
    assert saved.json("verify", "--level", "full")["recorded"] == 0
    damage(place)
    before = commits(place)
    assert "recorded for other hosts: 1 place" in saved.run("verify", "--level", "full").out
    assert len(commits(place)) == len(before) + 1
    for lamella in (saved, other, saved):
        proof = lamella.json("verify", "--level", "full", code=20)
        assert (proof["recorded"], len(proof["unrestorable"])) == (0, 1)
    assert len(commits(place)) == len(before) + 1
    assert saved.json("-q", "verify", code=20)["recorded"] == 0

    assert other.json("backup", image)["volumes"][0]["new_chunks"] == 1
    proof = other.json("verify", "--level", "full")
    assert proof["unrestorable"] == []
    assert {row["severity"] for row in proof["findings"]} == {"note"}, "the bad copy is told of, and nobody needs it"
    other.ok("restore", "disk", "--to", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == image.read_bytes()


def test_a_place_that_takes_nothing_is_verified_all_the_same(saved: Lamella, place: Path) -> None:
    damage(place)
    for path in (place / "tmp").iterdir():
        path.unlink()
    (place / "tmp").rmdir()
    (place / "tmp").write_bytes(b"")  # nothing can be put any more, whoever tries
    before = commits(place)
    proof = saved.json("verify", "--level", "full", code=20)
    assert (proof["recorded"], len(proof["unrestorable"])) == (0, 1)
    assert any("could not be recorded" in text for text in notes(proof))
    assert commits(place) == before


def test_over_a_connection_that_only_reads(saved: Lamella, place: Path, tmp_path: Path) -> None:
    damage(place)
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    serve = f"PYTHONPATH={ROOT / 'src'} exec {sys.executable} -m lamella serve --read-only {place}"
    program.write_text(f"#!/bin/sh\n{serve}\n")
    program.chmod(0o700)
    before = commits(place)
    env = {**saved.env, "PATH": f"{program.parent}:{os.environ['PATH']}", "LAMELLA_REPO": f"ssh://there{place}"}
    proof = Lamella(env, saved.options).json("verify", "--level", "full", code=20)
    assert (proof["recorded"], len(proof["unrestorable"])) == (0, 1)
    assert any("read-only" in text for text in notes(proof))
    assert commits(place) == before


def test_at_a_mirror_nothing_is_recorded(saved: Lamella, place: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    saved.ok("mirror", "--to", mirror)
    damage(mirror)
    before = commits(mirror)
    proof = saved.json("-r", mirror, "verify", "--level", "full", code=20)
    assert proof["recorded"] == 0
    assert any("mirror" in text for text in notes(proof))
    assert commits(mirror) == before
    assert saved.json("verify", "--level", "full")["findings"] == []


# -- what was checked --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["20", "0", "1048575", "0.5"])
def test_a_budget_of_a_few_bytes_is_a_mistake(saved: Lamella, text: str) -> None:
    done = saved.run("verify", "--budget", text)
    assert (done.code, done.out) == (2, "")
    assert "20G" in done.err


@pytest.mark.parametrize("text", ["20K", "1048576", "20B", "1.5G"])
def test_a_budget_that_is_meant(saved: Lamella, text: str) -> None:
    assert saved.ok("verify", "--budget", text).out.rstrip().endswith("no damage found")


def test_a_sample_of_nothing_does_not_say_that_all_is_well(empty: Lamella, tmp_path: Path) -> None:
    with (tmp_path / "holes.img").open("wb") as file:
        file.truncate(4 * MIB)
    empty.ok("backup", tmp_path / "holes.img")
    for arguments in (["verify"], ["verify", "--budget", "1M"]):
        shown = empty.ok(*arguments).out
        assert "nothing was checked" in shown
        assert "no damage found" not in shown
        (row,) = empty.json("list")["volumes"]
        assert (row["verified"]["level"], row["verified"]["result"]) == ("structure", "ok")
    assert "no damage found" in empty.ok("verify", "--level", "full").out, "all there is was read"
