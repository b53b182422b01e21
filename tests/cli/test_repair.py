"""`lamella repair` and the levels of `verify` as users meet them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.cli.program import Lamella

MIB = 1 << 20


def packs(place: Path) -> list[Path]:
    return sorted(path for path in (place / "p").rglob("*") if path.is_file())


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = os.urandom(64)
    path.chmod(0o600)
    path.write_bytes(content)


def restored(lamella: Lamella, tmp_path: Path) -> bytes:
    out = tmp_path / "out.img"
    lamella.ok("restore", "disk", "--to", out, "--overwrite")
    return out.read_bytes()


def test_nothing_to_repair(saved: Lamella) -> None:
    result = saved.json("repair")
    assert (result["found"], result["actions"], result["lost"], result["remaining"]) == ([], [], [], [])
    assert "nothing to repair" in saved.ok("repair").out


def test_the_live_source_mends(saved: Lamella, image: Path, place: Path, tmp_path: Path) -> None:
    damage(packs(place)[0])
    assert saved.run("verify", "--level", "full").code == 20
    assert "DAMAGED" in saved.run("list").out
    plan = saved.run("repair", "-n")
    assert plan.code == 20
    assert "would be moved aside: p/" in plan.out
    assert "would be stored anew: disk@" in plan.out
    assert not (place / "quarantine").exists()
    result = saved.json("repair")
    assert {row["action"] for row in result["actions"]} >= {"moved aside", "stored anew"}
    assert result["lost"] == result["remaining"] == []
    assert list((place / "quarantine").rglob("*"))
    assert restored(saved, tmp_path) == image.read_bytes()
    assert saved.json("verify", "--level", "full")["findings"] == []
    assert saved.json("repair")["actions"] == []


def test_a_loss_is_reported_by_range_and_shown_until_a_copy_mends_it(
    saved: Lamella, image: Path, place: Path, tmp_path: Path
) -> None:
    mirror = tmp_path / "mirror"
    shutil.copytree(place, mirror)
    content = image.read_bytes()
    image.unlink()
    damage(packs(place)[0])
    shown = saved.run("repair")
    assert shown.code == 20
    assert "lost of disk@" in shown.out
    assert "    bytes " in shown.out
    (shot,) = saved.json("list")["snapshots"]
    assert (shot["result"], shot["lost"]) == ("incomplete", ["disk"])
    assert "INCOMPLETE: disk (parts are lost: disk)" in saved.ok("list").out
    lost = saved.json("info", "disk")["lost"]
    assert lost["bytes"] == sum(row["end"] - row["start"] for row in lost["ranges"]) > 0
    (gone,) = saved.json("repair", code=20)["lost"]
    assert gone["ranges"] == lost["ranges"]
    result = saved.json("repair", "--from", mirror)
    assert result["lost"] == []
    (shot,) = saved.json("list")["snapshots"]
    assert (shot["result"], shot["lost"]) == ("complete", [])
    assert restored(saved, tmp_path) == content


def test_all_commits_lost(saved: Lamella, image: Path, place: Path, tmp_path: Path) -> None:
    content = image.read_bytes()
    shutil.rmtree(place / "w")
    stranger = Lamella(
        {**saved.env, "LAMELLA_STATE_DIR": str(tmp_path / "state"), "LAMELLA_CACHE_DIR": str(tmp_path / "cache")},
        saved.options,
    )
    assert stranger.run("list").code == 20
    result = stranger.json("repair")
    assert [row["object"].partition("@")[0] for row in result["actions"] if row["action"] == "rebuilt"] == ["disk"]
    (shot,) = stranger.json("list")["snapshots"]
    assert shot["rebuilt"]
    assert "rebuilt by a repair" in stranger.ok("list").out
    assert restored(stranger, tmp_path) == content


def test_from_another_repository_with_its_own_secret(saved: Lamella, image: Path, place: Path, tmp_path: Path) -> None:
    other, key = tmp_path / "other", tmp_path / "other-key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    second = Lamella({**saved.env, "LAMELLA_REPO": str(other)}, ["--keyfile", str(key)])
    second.ok("init", "-q")
    second.ok("backup", image)
    content = image.read_bytes()
    image.unlink()
    for pack in packs(place):
        damage(pack)
    assert saved.run("repair", "--from", other).code == 12, "the same key does not open it"
    result = saved.json("repair", "--from", other, "--from-keyfile", key)
    assert result["lost"] == []
    assert restored(saved, tmp_path) == content


def test_another_path_of_the_source(saved: Lamella, image: Path, place: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.img"
    image.rename(moved)
    content = moved.read_bytes()
    damage(packs(place)[0])
    result = saved.json("repair", "--source", f"disk={moved}")
    assert result["lost"] == []
    assert restored(saved, tmp_path) == content


def test_what_makes_no_sense_is_2(saved: Lamella, tmp_path: Path) -> None:
    for words in (["--from", "x"], ["--source", "a=b"], ["--level", "full"], ["--from-keyfile", "x"]):
        assert saved.run("check", *words).code == 2
        moved = saved.run("check", *words, "--repair")
        assert moved.code == 2 and moved.err.splitlines() == [
            "lamella: --repair is a command of its own; write: lamella repair"
        ]
    assert saved.run("repair", "--source", "disk").code == 2
    assert saved.run("repair", "--from", tmp_path / "nowhere").code == 10


def test_a_repository_in_use_is_examined_and_not_mended(saved: Lamella, place: Path) -> None:
    import fcntl

    damage(packs(place)[0])
    with (place / "lamella").open("rb") as marker:
        fcntl.flock(marker, fcntl.LOCK_SH)
        assert saved.run("repair").code == 11
        assert saved.run("repair", "-n").code == 20
    assert not (place / "quarantine").exists()


def damage_head(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[200:212] = os.urandom(12)  # the directory of a pack begins the pack
    path.chmod(0o600)
    path.write_bytes(content)


@pytest.mark.parametrize("level", ["full", "sample"])
def test_what_only_this_host_remembers_to_find_is_not_whole(
    saved: Lamella, image: Path, place: Path, tmp_path: Path, level: str
) -> None:
    """No other host can read a pack whose directory does not open: a good verdict here would be a false one."""
    saved.ok("verify", "--level", "full")
    content = image.read_bytes()
    image.unlink()
    for pack in packs(place):
        damage_head(pack)
    assert saved.run("verify", "--level", "full").code == 20
    shown = saved.run("verify", "--level", level)
    assert shown.code == 20 and "cannot be restored: disk@" in shown.out
    assert "another pack has the same content" not in shown.out
    assert "DAMAGED" in saved.run("list").out
    assert saved.run("status").code == 3
    assert saved.ok("repair").code == 0
    assert "no damage found" in saved.ok("verify", "--level", "full").out
    empty = {name: str(tmp_path / name) for name in ("LAMELLA_STATE_DIR", "LAMELLA_CACHE_DIR")}
    stranger = Lamella(saved.env | empty, saved.options)
    assert restored(stranger, tmp_path) == content


def test_packs_of_one_length_that_changed_places_are_what_they_are_to_a_host_that_knew_them(
    empty: Lamella, tmp_path: Path
) -> None:
    """Both are sound, under each other's name: what this host remembers to lie there, it must not take for proven."""
    images = [tmp_path / f"{name}.img" for name in "ab"]
    for one in images:
        one.write_bytes(os.urandom(MIB))
    empty.ok("backup", *images, "--chunk-size", "64K")
    for one in images:
        one.write_bytes(b"new" + one.read_bytes()[3:])
    empty.ok("backup", *images)  # the manifests lie elsewhere, most chunks in the packs of before
    place = Path(empty.env["LAMELLA_REPO"])
    large = [path for path in packs(place) if path.stat().st_size > MIB]
    (first, second), sound = large, [path.read_bytes() for path in large]
    assert len(sound[0]) == len(sound[1])

    def exchange(contents: list[bytes]) -> None:
        for path, content in zip((first, second), contents, strict=True):
            path.chmod(0o600)
            path.write_bytes(content)

    exchange(sound[::-1])
    shown = empty.run("verify", "--level", "full")
    assert shown.code == 20 and shown.out.count("does not match its name") == 2
    assert all(shown.out.count(f"cannot be restored: {name}@") == 2 for name in "ab"), shown.out
    assert empty.ok("list").out.count("full: DAMAGED") == 2
    exchange(sound)
    empty.ok("verify", "--level", "full")
    exchange(sound[::-1])
    # Once one part was met that does not open, a backup relies on nothing else there unread.
    assert empty.run("restore", "a", "--to", tmp_path / "out").code == 20
    empty.ok("backup", images[0])
    empty.ok("restore", "a", "--to", tmp_path / "out", "--overwrite")
    assert (tmp_path / "out").read_bytes() == images[0].read_bytes()
