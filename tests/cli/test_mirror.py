"""`lamella mirror` as users meet it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.cli.program import Lamella


def tree(place: Path) -> dict[str, bytes]:
    objects = (path for path in place.rglob("*") if path.is_file() and path.parent != place / "tmp")
    return {str(path.relative_to(place)): path.read_bytes() for path in objects}


def change(image: Path) -> None:
    with image.open("r+b") as file:
        file.write(os.urandom(4096))


def test_mirror_without_a_key(saved: Lamella, place: Path, image: Path, tmp_path: Path) -> None:
    keyless = Lamella(saved.env)
    second = tmp_path / "mirror"
    planned = keyless.json("mirror", "--to", second, "-n")
    assert planned["missing_objects"] == len(tree(place)) and not second.exists()
    made = keyless.json("mirror", "--to", second)
    assert (made["result"], made["copied_objects"]) == ("complete", planned["missing_objects"])
    assert tree(second) == tree(place)
    change(image)
    saved.ok("backup", image)
    said = keyless.ok("mirror", "--to", second).out
    assert "objects copied" in said and tree(second) == tree(place)
    there = Lamella({"LAMELLA_REPO": str(second)}, saved.options)
    there.ok("restore", "disk", "--to", tmp_path / "out.img")
    assert (tmp_path / "out.img").read_bytes() == image.read_bytes()
    there.ok("verify", "--level", "full")


def test_an_older_mirror(saved: Lamella, place: Path, image: Path, tmp_path: Path) -> None:
    second = tmp_path / "mirror"
    Lamella(saved.env).ok("mirror", "--to", second)
    saved.ok("backup", image)
    there = Lamella({"LAMELLA_REPO": str(second)}, saved.options)
    listed = there.run("list")
    assert listed.code == 0 and "an older copy" in listed.err
    assert "an older copy" in there.run("restore", "disk", "--to", tmp_path / "out.img").err
    refused = there.run("backup", image)
    assert refused.code == 11 and "mirror" in refused.err and "check --accept-rollback" in refused.err
    assert "is a mirror" in there.ok("check").out
    assert there.json("check", "--accept-rollback", "-y")["accepted"]
    there.ok("backup", image)
    saved.ok("backup", image)
    # Copied by hand it is a rollback, as ever.
    shutil.copytree(second, tmp_path / "by hand", ignore=lambda *_: [])
    by_hand = Lamella({"LAMELLA_REPO": str(tmp_path / "by hand")}, saved.options)
    assert by_hand.run("list").code == 21


@pytest.mark.parametrize("way", ["mirror", "by hand"])
def test_a_proof_of_a_copy_is_none_of_its_source(empty: Lamella, place: Path, tmp_path: Path, way: str) -> None:
    """The newest snapshot rots here and is whole there: here the one stays that was proven here."""
    image, second = tmp_path / "disk.img", tmp_path / "mirror"
    image.write_bytes(os.urandom(1 << 20))
    empty.ok("backup", image)
    empty.ok("verify", "--level", "full")
    before = set(tree(place))
    image.write_bytes(os.urandom(1 << 20))
    empty.ok("backup", image)
    if way == "mirror":
        empty.ok("mirror", "--to", second)
    else:
        shutil.copytree(place, second)
    rotten = max((place / name for name in set(tree(place)) - before), key=lambda path: path.stat().st_size)
    content = bytearray(rotten.read_bytes())
    content[len(content) // 2] ^= 1
    rotten.chmod(0o600)
    rotten.write_bytes(content)
    there = Lamella(empty.env | {"LAMELLA_REPO": str(second)}, empty.options)
    (verified,) = (row["verified"] for row in empty.json("status")["volumes"])
    there.ok("verify", "--level", "full")
    (row,) = there.json("status")["volumes"]
    assert row["verified"]["level"] == "full" and row["verified"]["time"] > verified["time"]
    assert there.json("list")["volumes"][0]["verified"]["time"] == row["verified"]["time"]
    (row,) = empty.json("status")["volumes"]
    assert row["verified"] == verified
    empty.ok("prune", "--keep-last", "1")
    assert len(empty.json("list", "disk")["snapshots"]) == 2


def test_damage_is_left_out_and_named(saved: Lamella, place: Path, tmp_path: Path) -> None:
    pack = next(place.glob("p/*/*"))
    content = bytearray(pack.read_bytes())
    content[-1] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content)
    done = Lamella(saved.env).run("--json", "mirror", "--to", tmp_path / "mirror")
    assert done.code == 20
    assert [row["object"] for row in done.json["findings"]] == [str(pack.relative_to(place))]
    assert not (tmp_path / "mirror" / pack.relative_to(place)).exists()


def test_damage_in_the_mirror_is_mended_when_that_is_wanted(saved: Lamella, place: Path, tmp_path: Path) -> None:
    """Rot at the far side is found only by reading it there; a disk that cannot read is no reason to give up."""
    keyless, copy = Lamella(saved.env), tmp_path / "mirror"
    keyless.ok("mirror", "--to", copy)
    packs = sorted(copy.glob("p/*/*"))
    for pack in packs:
        content = bytearray(pack.read_bytes())
        content[len(content) // 2] ^= 1
        pack.chmod(0o600)
        pack.write_bytes(content)
    assert keyless.json("mirror", "--to", copy)["findings"] == []  # nobody has looked
    shown = keyless.json("mirror", "-n", "--to", copy, "--resync-corrupt", code=20)
    assert shown["damaged_objects"] == len(packs), "whoever only asks is told as by verify"
    done = keyless.json("mirror", "--to", copy, "--resync-corrupt")
    assert (done["mended_objects"], done["result"]) == (len(packs), "complete")
    assert {path.relative_to(copy): path.read_bytes() for path in packs} == {
        path.relative_to(place): path.read_bytes() for path in place.glob("p/*/*")
    }
    saved.ok("verify", "-r", copy, "--level", "full")
    commit = next(copy.glob("w/*/*"))
    commit.chmod(0o600)
    commit.write_bytes(b"")
    assert "not copied" not in keyless.run("mirror", "-n", "--to", copy, "--resync-corrupt").out
    assert keyless.json("mirror", "--to", copy, "--resync-corrupt")["mended_objects"] == 1
    assert keyless.json("mirror", "--to", copy)["findings"] == [], "what was set aside is no news"


def test_the_last_snapshots_are_a_matter_of_copy(saved: Lamella, tmp_path: Path) -> None:
    refused = saved.run("mirror", "--to", tmp_path / "m", "--transfer-last", "2")
    assert refused.code == 2 and "lamella copy --to REPO --transfer-last N" in refused.err


def test_what_is_refused(saved: Lamella, place: Path, tmp_path: Path) -> None:
    keyless = Lamella(saved.env)
    assert keyless.run("mirror", "--to", tmp_path / "m", "disk").code == 2
    assert keyless.run("mirror", "--to", tmp_path / "m", "--to-keyfile", "x").code == 2
    assert keyless.run("mirror", "--to", tmp_path / "m", "-r", tmp_path / "nothing").code == 10
    other = tmp_path / "other"
    saved.ok("init", "-q", "-r", other)
    refused = keyless.run("mirror", "--to", other)
    assert refused.code == 1 and "another repository" in refused.err
    assert keyless.run("mirror", "--to", place).code == 2


def test_the_option_that_was_names_the_command(saved: Lamella) -> None:
    moved = saved.run("copy", "--mirror")
    assert moved.code == 2 and moved.out == ""
    assert moved.err.splitlines() == ["lamella: --mirror is a command of its own; write: lamella mirror"]
    assert saved.run("--json", "copy", "--to", "x", "--mirror").json["error"]["exit"] == 2
