"""`lamella export --all`: everything as files that sha256sum, qemu-img and tar can judge without Lamella."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from tests.cli.program import Lamella, environment
from tests.features import require

MIB = 1 << 20
SECONDS = 120
KILLS = int(os.environ.get("LAMELLA_KILLS", "3"))
"""By hand 10 and more."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where everything goes."""
    path = tmp_path / "gone"
    path.mkdir()
    return path


def is_right(folder: Path) -> bool:
    """What somebody without Lamella finds: every file but the two lists has the checksum that is listed."""
    done = subprocess.run(["sha256sum", "--strict", "-c", "--quiet", "SHA256SUMS"], cwd=folder, capture_output=True)
    listed = {line[66:] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return done.returncode == 0 and there == listed | {"SHA256SUMS", "snapshots.json"}


def history(lamella: Lamella, image: Path, count: int, seed: int = 1) -> dict[str, bytes]:
    """Back up several states of an image: name of the snapshot -> content."""
    chance, states = random.Random(seed), dict[str, bytes]()
    for number in range(count):
        with image.open("r+b") as file:
            file.seek(chance.randrange(4) * MIB + chance.randrange(MIB))
            file.write(chance.randbytes(5000))
        document = image.with_name("settings.xml")
        document.write_text(f"<domain id='{number}'/>")
        done = lamella.json("backup", image, "--document", f"settings.xml={document}")
        states[done["snapshot"]] = image.read_bytes()
    return states


def test_every_snapshot_leaves_and_programs_of_others_agree(empty: Lamella, image: Path, folder: Path) -> None:
    states = history(empty, image, 3)
    for kind, ending in (("raw", "img"), ("qcow2", "qcow2")):
        done = empty.json("export", "--all", folder, "--format", kind)
        assert [row["snapshot"] for row in done["exports"]] == list(states) and all(r["new"] for r in done["exports"])
        assert is_right(folder)
        for name, content in states.items():
            image.write_bytes(content)
            path = folder / f"disk/{name}.{ending}"
            words: list[str | Path] = ["qemu-img", "compare", "-f", "raw", "-F", kind, image, path]
            assert subprocess.run(words, capture_output=True).returncode == 0
            assert path.stat().st_blocks * 512 < 3 * MIB and path.stat().st_mode & 0o777 == 0o600
    for number, name in enumerate(states):
        assert (folder / f"disk/{name}.documents/settings.xml").read_text() == f"<domain id='{number}'/>"
    told = json.loads((folder / "snapshots.json").read_text())["files"]
    assert told[f"disk/{name}.img"]["volume"] == "disk" and told[f"disk/{name}.img"]["size"] == 8 * MIB


def test_a_second_run_writes_what_is_missing_and_nothing_else(empty: Lamella, image: Path, folder: Path) -> None:
    history(empty, image, 2)
    empty.ok("export", "--all", folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.img")}
    gone = sorted(times)[0]
    gone.unlink()
    (new,) = history(empty, image, 1, seed=2)
    empty.ok("rename", "disk", "other:name")
    done = empty.json("export", "--all", folder)
    assert [row["new"] for row in done["exports"]] == [True, False, True] and is_right(folder)
    assert gone.exists() and (folder / f"disk/{new}.img").exists(), "a volume keeps its directory under a new name"
    kept = [path for path in times if path != gone]
    assert [path.stat().st_mtime_ns for path in kept] == [times[path] for path in kept]
    (folder / "SHA256SUMS").unlink()
    done = empty.json("export", "--all", folder)
    assert not any(row["new"] for row in done["exports"]) and is_right(folder), "compared, and listed again"


def test_what_is_there_is_compared_by_size_and_checksum(empty: Lamella, image: Path, folder: Path) -> None:
    """A disk full of files that a broken copy cut short must not pass for a whole history."""
    names = list(history(empty, image, 3))
    empty.ok("export", "--all", folder)
    cut, other, touched = paths = [folder / f"disk/{name}.img" for name in names]
    right = [path.read_bytes() for path in paths]
    for remembered in (True, False):
        if not remembered:  # as after a kill, or in a directory that an older version wrote
            (folder / "snapshots.json").unlink()
        os.truncate(cut, 8 * MIB - 1)
        other.write_bytes(right[1][:-1] + b"!")
        os.utime(touched, (1, 1))
        done = empty.json("export", "--all", folder, code=3)
        said = [row.get("error", "") for row in done["exports"]]
        assert ["was changed" in text for text in said] == [True, True, False]
        assert ("1 B shorter" in said[0]) == remembered and "its checksum" in said[1] and "\n" not in said[1]
        assert (cut.stat().st_size, other.read_bytes()[-1:]) == (8 * MIB - 1, b"!"), "nothing is replaced"
    (folder / f"disk/{names[2]}.documents/settings.xml").write_text("another")
    cut.unlink()
    other.unlink()
    done = empty.json("export", "--all", folder, code=3)
    assert ["error" in row or row["new"] for row in done["exports"]] == [True, True, True]
    assert "settings.xml was changed" in done["exports"][2]["error"]
    assert [path.read_bytes() for path in paths] == right


def test_what_is_there_and_is_something_else_is_never_replaced(empty: Lamella, image: Path, folder: Path) -> None:
    one, two = history(empty, image, 2)
    (folder / "disk").mkdir()
    mine = folder / f"disk/{one}.img"
    mine.write_text("mine")
    (folder / "unrelated").write_text("mine, too")
    done = empty.json("export", "--all", folder, code=3)
    assert ["error" in row for row in done["exports"]] == [True, False]
    assert mine.read_text() == "mine" and (folder / f"disk/{two}.img").exists()
    assert not list(folder.rglob("*.lamella-export"))


def test_killed_again_and_again_it_goes_on(empty: Lamella, image: Path, folder: Path) -> None:
    states = history(empty, image, 4)
    words = [*empty.command, *empty.options, "--limit-rate", "4M", "export", "--all", str(folder), "-q"]
    chance = random.Random(7)
    for turn in range(KILLS):
        process = subprocess.Popen(words, env=environment(empty.env), stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + chance.uniform(0.1, 1.2)
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT if turn % 3 == 2 else signal.SIGKILL)
        err = process.communicate(timeout=SECONDS)[1]
        assert "Traceback" not in err
        for path in folder.rglob("*.img"):
            assert path.read_bytes() == states[path.stem], "what has a name is whole"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.img")}
    empty.ok("export", "--all", folder)
    assert is_right(folder)
    assert {path.stem: path.read_bytes() for path in folder.rglob("*.img")} == states
    assert all(path.stat().st_mtime_ns == then for path, then in before.items()), "nothing is written twice"


def test_a_torn_list_is_mended(empty: Lamella, image: Path, folder: Path) -> None:
    history(empty, image, 1)
    empty.ok("export", "--all", folder)
    lines = (folder / "SHA256SUMS").read_bytes()
    for kept in (1, 30, 70):
        (folder / "SHA256SUMS").write_bytes(lines[: len(lines) - kept])
        empty.ok("export", "--all", folder)
        assert is_right(folder)
    (folder / "snapshots.json").write_text('{"folders": {"0": "../out"}, "files": 3')
    done = empty.run("export", "--all", folder)
    assert (done.code, "cannot be understood" in done.err, done.err.count("\n")) == (1, True, 1)


def test_names_suit_every_file_system_and_never_meet(empty: Lamella, image: Path, folder: Path) -> None:
    names = ["work:private", "work?private", "WORK", "work", "sha256sums", "x" * 128, 'a\\b"c|d ', "ends."]
    for number, name in enumerate(names):
        one = image.with_name(f"{number}.img")
        one.write_bytes(os.urandom(5000))
        names[number] = f"{name}={one}"
    empty.ok("backup", *names)
    empty.ok("export", "--all", folder)
    assert is_right(folder)
    found = [path.name for path in folder.iterdir() if path.is_dir()]
    assert len({one.casefold() for one in found}) == len(names)
    assert not any(set('\\:*?"<>|') & set(one) or one[-1] in ". " for one in found), found
    empty.ok("export", "--all", folder)
    assert [path.name for path in folder.iterdir() if path.is_dir()] == found


def test_a_damaged_snapshot_stops_no_other(empty: Lamella, image: Path, place: Path, tmp_path: Path) -> None:
    folder, other = tmp_path / "all", tmp_path / "other.img"
    folder.mkdir()
    other.write_bytes(os.urandom(MIB))
    empty.ok("backup", image)
    packs = [path for path in (place / "p").rglob("*") if path.is_file()]
    empty.ok("backup", other)
    for path in packs:
        spoiled = bytearray(path.read_bytes())
        for at in range(0, len(spoiled), 10_000):
            spoiled[at] ^= 1
        path.chmod(0o600)
        path.write_bytes(spoiled)
    done = empty.json("export", "--all", folder, code=3)
    assert ["error" in row for row in done["exports"]] == [True, False]
    assert [path.read_bytes() for path in folder.rglob("*.img")] == [other.read_bytes()]
    assert is_right(folder)


def test_a_full_disk_ends_it_and_the_next_run_goes_on(empty: Lamella, image: Path, tmp_path: Path) -> None:
    states = history(empty, image, 3)
    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "none", small], capture_output=True, text=True)
    require("mount", done.returncode == 0, done.stderr.strip())
    try:
        full = empty.run("export", "--all", small)
        assert (full.code, "No space" in full.err, "goes on" in full.err) == (1, True, True), full.err
        assert len(list(small.rglob("*.img"))) == 1 and not list(small.rglob("*.lamella-export"))
        subprocess.run(["mount", "-o", "remount,size=20M", small], check=True)
        empty.ok("export", "--all", small)
        assert is_right(small) and {one.stem for one in small.rglob("*.img")} == set(states)
    finally:
        subprocess.run(["umount", small], check=True)


def test_two_at_once_do_not_meet(empty: Lamella, image: Path, folder: Path) -> None:
    history(empty, image, 1)
    words = [*empty.command, *empty.options, "--limit-rate", "200K", "export", "--all", str(folder), "-q"]
    with subprocess.Popen(words, env=environment(empty.env), stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + SECONDS
        while not list(folder.rglob("*.lamella-export")) and time.monotonic() < until:
            time.sleep(0.02)
        second = empty.run("export", "--all", folder)
        process.kill()
    assert (second.code, "another export" in second.err) == (11, True), second.err


def test_trees_of_files_leave_as_tars_that_hold_everything(empty: Lamella, tmp_path: Path, folder: Path) -> None:
    tree = tmp_path / "home"
    (tree / "below").mkdir(parents=True)
    (tree / "below/file").write_bytes(os.urandom(70_000))
    os.link(tree / "below/file", tree / "hard")
    (tree / "away").symlink_to("/etc/passwd")
    (tree / os.fsdecode(b"not utf-8 \xff")).write_text("x")
    (tree / ("long" * 60)).write_text("y")
    os.truncate(tree / "below/file", 5 * MIB)
    os.mkfifo(tree / "pipe")
    os.utime(tree / "below/file", ns=(1_600_000_000_123_456_789, 1_600_000_000_123_456_789))
    empty.ok("files", "backup", tree)
    empty.ok("export", "--all", folder)
    assert is_right(folder)
    (path,) = folder.rglob("*.tar")
    assert path.stat().st_blocks * 512 < MIB, "holes stay holes"
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["tar", "-C", out, "-xpf", path], check=True)
    same = subprocess.run(["diff", "-r", "--no-dereference", tree, out], capture_output=True, text=True)
    assert not [line for line in same.stdout.splitlines() if "pipe" not in line], same.stdout
    assert (out / "pipe").is_fifo() and (out / "hard").samefile(out / "below/file")
    assert (out / "below/file").stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert (out / "below").stat().st_mtime_ns == (tree / "below").stat().st_mtime_ns
    with tarfile.open(path) as archive:
        assert archive.getmember("./away").linkname == "/etc/passwd"
    shutil.rmtree(tree)


def test_what_no_tar_can_hold_is_named_and_stops_nothing(empty: Lamella, tmp_path: Path, folder: Path) -> None:
    tree = tmp_path / "a"
    tree.mkdir()
    (tree / "file").write_text("x")
    for name in (b"user.\xff", b"user.a=b", b"user.plain"):
        os.setxattr(tree / "file", name, b"1=2")
    (tmp_path / "z.img").write_bytes(os.urandom(5000))
    empty.ok("files", "backup", tree)
    empty.ok("backup", tmp_path / "z.img")
    done = empty.ok("export", "--all", folder)
    assert is_right(folder) and len(list(folder.rglob("*.img"))) == 1
    assert done.err.count("left out: file: its attribute") == 2
    (path,) = folder.rglob("*.tar")
    with tarfile.open(path) as archive:
        held = {key: text for key, text in archive.getmember("./file").pax_headers.items() if "xattr" in key}
    assert held == {"SCHILY.xattr.user.plain": "1=2"}, "and no attribute has the name of another one"
