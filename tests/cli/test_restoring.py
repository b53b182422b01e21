"""`restore` of several volumes, and what it says when it ends early.

What the user fears: the sixth of twelve volumes fails in the night and the rest is not tried; after Ctrl-C everything
is fetched again; nobody says what is whole.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lamella.base.names import pack_hash
from lamella.sources.local_target import PARTIAL_SUFFIX
from lamella_kit.image_files import mounted
from tests.cli.program import COMMAND, SECONDS, Lamella, Terminal, environment
from tests.features import require
from tests.unit.real_devices import need_devices

MIB = 1 << 20
SIZES = {"a": 1, "b": 2, "work:private": 6, "z z": 1}
"""MiB of each volume, in the order in which they are restored."""


class Volumes:
    """Four volumes with data of their own, and a directory to restore them to."""

    def __init__(self, saved: Path, place: Path) -> None:
        shutil.copytree(saved, place / "saved")
        self.command = _command(place / "saved")
        self.to = place / "restored"
        self.to.mkdir()
        self.contents = {name: _read(place / "saved" / f"{name}.source") for name in SIZES}

    def path(self, name: str) -> Path:
        return self.to / f"{name}.img"

    def partial(self, name: str) -> Path:
        return self.to / f"{name}.img{PARTIAL_SUFFIX}"

    def right(self) -> set[str]:
        """The volumes that are there, to the byte."""
        return {name for name, content in self.contents.items() if _read(self.path(name)) == content}

    def slow(self, *words: str | Path) -> list[str]:
        """A restore in which the third volume takes some seconds."""
        options = [*self.command.options, "--limit-rate", "1500k"]
        return [*options, "restore", *map(str, words), "--to", f"{self.to}/"]


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _command(place: Path) -> Lamella:
    return Lamella({"LAMELLA_REPO": str(place / "repository")}, ["--keyfile", str(place / "key")])


@pytest.fixture(scope="module")
def saved_volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository, made once; the state of this host is made anew in each test."""
    place, noise = tmp_path_factory.mktemp("volumes"), random.Random(1)
    (place / "key").write_bytes(noise.randbytes(32))
    (place / "key").chmod(0o600)
    command = _command(place)
    command.ok("init", "-q")
    for name, size in SIZES.items():
        image = place / f"{name}.source"
        image.write_bytes(noise.randbytes(size * MIB - 777) + bytes(MIB) + noise.randbytes(99))
        command.ok("backup", f"{name}={image}", "-q")  # one run each, so that no pack holds two of them
    return place


@pytest.fixture
def volumes(saved_volumes: Path, tmp_path: Path) -> Volumes:
    return Volumes(saved_volumes, tmp_path)


def test_every_volume_in_one_command(volumes: Volumes) -> None:
    plan = volumes.command.json("restore", "--all", "--to", f"{volumes.to}/", "-n")
    assert [row["volume"] for row in plan["volumes"]] == list(SIZES) and not any(volumes.to.iterdir())
    done = volumes.command.json("restore", "--all", "--to", f"{volumes.to}/")
    assert volumes.right() == set(SIZES) and done["result"] == "complete"
    assert {row["volume"]: row["result"] for row in done["volumes"]} == dict.fromkeys(SIZES, "restored")
    assert all(row["compared_bytes"] >= row["data_bytes"] for row in done["volumes"])
    again = volumes.command.json("restore", "--all", "--to", f"{volumes.to}/")
    assert {row["volume"]: row["result"] for row in again["volumes"]} == dict.fromkeys(SIZES, "unchanged")
    assert sum(row["bytes_written"] for row in again["volumes"]) == 0
    assert all(row["compared_bytes"] >= row["data_bytes"] - 65536 for row in again["volumes"])
    assert len(list(volumes.to.iterdir())) == len(SIZES)


def test_named_volumes_and_their_moments(volumes: Volumes, tmp_path: Path) -> None:
    first = volumes.command.json("list", "b")["snapshots"][0]["snapshot"]
    (tmp_path / "saved" / "b.source").write_bytes(b"new" * MIB)
    volumes.command.ok("backup", f"b={tmp_path / 'saved' / 'b.source'}", "-q", "--adopt")
    volumes.command.ok("restore", f"b@{first}", "a", "--to", volumes.to)
    assert volumes.right() == {"a", "b"}
    done = volumes.command.run("restore", f"b@{first}", "b", "--to", volumes.to)
    assert done.code == 2 and "named twice" in done.err
    done = volumes.command.run("restore", "a", "nothing", "--to", volumes.to)
    assert done.code == 4 and "nothing" in done.err
    # The latest is another one than what lies there: never replaced without consent, and replaced with it.
    done = volumes.command.run("restore", "a", "b", "--to", volumes.to)
    assert done.code == 3 and "exists already, and is not b@" in done.err and "add --overwrite" in done.err
    assert volumes.right() == {"a", "b"}
    volumes.command.ok("restore", "a", "b", "--to", volumes.to, "--overwrite")
    assert _read(volumes.path("b")) == b"new" * MIB


@pytest.mark.parametrize("how", ["--overwrite", "--in-place"])
def test_only_what_is_wrong_is_written(volumes: Volumes, how: str) -> None:
    volumes.command.ok("restore", "--all", "--to", volumes.to)
    with volumes.path("work:private").open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"wrong")
    volumes.path("b").unlink()
    with volumes.path("z z").open("r+b") as file:
        file.seek(MIB + MIB // 2)  # where the volume reads as zeros
        file.write(b"wrong")
    with volumes.path("a").open("ab") as file:
        file.write(b"longer")
    done = volumes.command.json("restore", "--all", "--to", volumes.to, how)
    assert volumes.right() == set(SIZES)
    written = {row["volume"]: row["bytes_written"] for row in done["volumes"]}
    assert written["b"] > 0
    if how == "--in-place":
        assert written["a"] == written["z z"] == 0 and written["work:private"] <= 128 << 10


@pytest.mark.parametrize("how", ["before it begins", "in the middle"])
def test_the_second_fails_and_the_rest_is_restored(volumes: Volumes, tmp_path: Path, how: str) -> None:
    place = tmp_path / "saved" / "repository"
    packs = [path for path in place.rglob("p/*/*") if pack_hash(str(path.relative_to(place)))]
    pack = min(packs, key=lambda one: abs(one.stat().st_size - 2 * MIB))  # the only one of that size is volume b's
    whole = pack.read_bytes()
    pack.chmod(0o600)
    pack.write_bytes(whole[: MIB // 2] + (b"" if how == "before it begins" else bytes(99) + whole[MIB // 2 + 99 :]))
    done = volumes.command.run("restore", "b", "a", "work:private", "z z", "--to", f"{volumes.to}/", "--json")
    assert done.code == 3, done.err
    rows = {row["volume"]: row for row in done.json["volumes"]}
    assert volumes.right() == {"a", "work:private", "z z"} and done.json["result"] == "incomplete"
    assert rows["b"]["result"] == "failed" and rows["b"]["error"] and rows["b"]["kind"]
    assert "1 of 4 volumes were not restored: b" in done.err
    assert not volumes.path("b").exists()
    done = volumes.command.run("restore", "b", "--to", f"{volumes.to}/")
    assert done.code == 1 and not volumes.path("b").exists()


def test_all_takes_the_latest_whole_snapshot(volumes: Volumes, tmp_path: Path) -> None:
    place = tmp_path / "saved" / "repository"
    before = set(place.rglob("p/*/*"))
    (tmp_path / "saved" / "b.source").write_bytes(random.Random(9).randbytes(3 * MIB))
    volumes.command.ok("backup", f"b={tmp_path / 'saved' / 'b.source'}", "-q", "--adopt")
    for path in set(place.rglob("p/*/*")) - before:
        if path.stat().st_size > 2 * MIB:
            path.unlink()
    done = volumes.command.run("restore", "--all", "--to", volumes.to)
    assert done.code == 0, done.err
    assert volumes.right() == set(SIZES) and "the latest whole one" in done.err


def test_a_failed_read_of_the_moment_hides_no_volume(volumes: Volumes, tmp_path: Path) -> None:
    """A disk that delivered wrong bytes once, and right ones ever since: no verification is needed in between."""
    place = tmp_path / "saved" / "repository"
    image = tmp_path / "saved" / "b.source"
    older = set(place.rglob("p/*/*"))
    image.write_bytes(random.Random(9).randbytes(3 * MIB))
    volumes.command.ok("backup", f"b={image}", "-q", "--adopt")
    packs = {path: path.read_bytes() for path in set(place.rglob("p/*/*")) - older if path.stat().st_size > 2 * MIB}
    assert packs
    for path, content in packs.items():
        path.chmod(0o600)
        path.write_bytes(content[: MIB // 2] + bytes(MIB) + content[MIB // 2 + MIB :])
    failed = volumes.command.run("restore", "b", "--to", tmp_path / "out")
    assert failed.code == 20, failed
    still = volumes.command.run("restore", "--all", "--to", f"{volumes.to}/")
    assert "the latest whole one" in still.err and volumes.right() == set(SIZES)
    for path, content in packs.items():
        path.write_bytes(content)
    volumes.path("b").unlink()
    done = volumes.command.ok("restore", "--all", "--to", f"{volumes.to}/")
    assert "whole" not in done.err and _read(volumes.path("b")) == image.read_bytes()
    # What was found again stays found.
    volumes.command.ok("backup", f"b={image}", "-q")
    assert volumes.command.json("verify", "b", "--level", "structure")["unrestorable"] == []


# --- ended early ------------------------------------------------------------------------------------------------------


def until_begun(volumes: Volumes, name: str) -> None:
    """Wait until a part of the volume is on the disk."""
    end = time.monotonic() + SECONDS
    while not (volumes.partial(name).exists() and volumes.partial(name).stat().st_blocks):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_ctrl_c_at_the_third_volume(volumes: Volumes) -> None:
    """On a terminal: it says what is whole, what lies there partially, and how to go on; and so it does."""
    command = volumes.slow("--all")
    with Terminal(command, volumes.command.env) as person:
        person.expect("restored b@")
        until_begun(volumes, "work:private")
        person.press("\x03")
        assert person.end() == 130
    said = person.seen
    assert "restored and compared: a, b;" in said
    assert f"what was restored lies in {volumes.partial('work:private')}" in said.replace("\r\n", "")
    assert "not restored yet: work:private, z z; the same command goes on from here" in said
    assert "repository is whole" not in said and "(2 of 4)" in said
    assert volumes.right() == {"a", "b"} and volumes.partial("work:private").exists()
    there = volumes.partial("work:private").stat().st_ino
    before = {name: volumes.path(name).stat().st_mtime_ns for name in ("a", "b")}
    done = volumes.command.json("restore", "--all", "--to", f"{volumes.to}/")
    rows = {row["volume"]: row for row in done["volumes"]}
    assert volumes.right() == set(SIZES)
    assert {name: volumes.path(name).stat().st_mtime_ns for name in ("a", "b")} == before
    assert rows["a"]["result"] == rows["b"]["result"] == "unchanged"
    assert volumes.path("work:private").stat().st_ino == there
    assert rows["work:private"]["bytes_written"] < rows["work:private"]["data_bytes"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_the_third_volume(volumes: Volumes, number: signal.Signals) -> None:
    command = [*COMMAND, *volumes.slow("--all"), "--json"]
    with subprocess.Popen(
        command, env=environment(volumes.command.env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        until_begun(volumes, "work:private")
        process.send_signal(number)
        out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, err
    found = json.loads(out)
    assert found["result"] == "interrupted" and found["error"]["exit"] == 130
    assert [row["volume"] for row in found["volumes"]] == ["a", "b"]
    assert found["not_restored"] == ["work:private", "z z"]
    assert "restored and compared: a, b" in found["error"]["hint"] and "repository is whole" not in err


@pytest.mark.parametrize("how", ["new", "--overwrite", "--in-place"])
def test_one_volume_is_interrupted(volumes: Volumes, how: str) -> None:
    target, partial = volumes.path("work:private"), volumes.partial("work:private")
    words = [] if how == "new" else [how]
    if words:
        target.write_bytes(b"old")
    command = [
        *volumes.command.options,
        "--limit-rate",
        "1500k",
        "restore",
        "work:private",
        "--to",
        str(target),
        "--workers",
        "1",  # of several each fetches a range, and all may be written at the very end
        *words,
    ]
    with subprocess.Popen(
        [*COMMAND, *command, "-q"], env=environment(volumes.command.env), stderr=subprocess.PIPE, text=True
    ) as process:
        end, begun = time.monotonic() + SECONDS, target if how == "--in-place" else partial
        while not (begun.exists() and begun.stat().st_blocks > 64):
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130 and "the same command goes on from there" in err
    expected = {
        "new": f"{target} is not there yet, what was restored lies in {partial}",
        "--overwrite": f"{target} is as it was before, what was restored lies in {partial}",
        "--in-place": f"{target} is now a mixture of old and new",
    }
    assert expected[how] in err and "repository is whole" not in err
    if how == "--overwrite":
        assert target.read_bytes() == b"old"
    volumes.command.ok("restore", "work:private", "--to", target, *words)
    assert target.read_bytes() == volumes.contents["work:private"] and not partial.exists()


def test_an_interruption_before_anything_is_written(saved: Lamella, tmp_path: Path) -> None:
    """While the repository is opened: the words of a restore, not those of a backup."""
    program = (
        "import sys; from lamella.cli import chosen\n"
        "def stop(*words):\n    import signal; signal.raise_signal(signal.SIGINT)\n"
        "chosen.select = stop\nfrom lamella.cli.main import entry; entry()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *saved.options, "restore", "disk", "--to", str(tmp_path / "out")],
        env=environment(saved.env), capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 130 and "nothing was written" in done.stderr
    assert not (tmp_path / "out").exists()


# --- image files ------------------------------------------------------------------------------------------------------


def test_a_restored_overlay_names_the_file_that_it_needs(empty: Lamella, tmp_path: Path) -> None:
    """An overlay is nothing without its backing file, whatever it is called and wherever it is restored to."""
    images, there = tmp_path / "images", tmp_path / "there"
    for folder in (images, there):
        folder.mkdir()
    base, overlay, raw = images / "base.qcow2", images / "web.qcow2", images / "raw.img"
    qemu_img("create", "-q", "-f", "qcow2", base, "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", overlay)
    # A guest chooses what a raw disk begins with: its name must not call it an image.
    raw.write_bytes(overlay.read_bytes())
    empty.ok("backup", overlay, base)
    empty.ok("backup", raw)
    alone = empty.ok("restore", "web", "--to", there / "web.img")
    (said,) = [line for line in alone.err.splitlines() if "does not start" in line]
    assert f"{there / 'web.img'} does not start without {there / 'base.qcow2'}" in said
    rebase = said.partition("say where it is: ")[2].replace("FILE", str(base))
    assert "restore that file" in said and rebase.startswith("qemu-img rebase"), said
    qemu_img(*rebase.split()[1:])
    qemu_img("check", "-q", there / "web.img")
    # Together: the names of images stay, so the overlay finds its base.
    both = empty.ok("restore", "web", "base", "--to", f"{there}/")
    assert {path.name for path in there.iterdir()} == {"web.img", "web.qcow2", "base.qcow2"}
    assert "does not start" not in both.err
    qemu_img("check", "-q", there / "web.qcow2")
    (there / "base.qcow2").unlink()
    assert "does not start" in empty.ok("restore", "web", "--to", f"{there}/").err, "also where it is right already"
    empty.ok("restore", "raw", "--to", f"{there}/")
    assert (there / "raw.img").read_bytes() == raw.read_bytes()


def qemu_img(*words: str | Path) -> None:
    require("qemu-img", shutil.which("qemu-img") is not None, "there is no qemu-img")
    subprocess.run(["qemu-img", *map(str, words)], check=True, timeout=SECONDS)


# --- refused ----------------------------------------------------------------------------------------------------------


def test_space_is_checked_for_all_first(volumes: Volumes, tmp_path: Path) -> None:
    """What fits one after another and not all together is refused before anything is written."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with need_devices(), mounted("none", disk, kind="tmpfs", options=f"size={8 * MIB}"):
        done = volumes.command.run("restore", "--all", "--to", f"{disk}/")
        assert done.code == 1 and "not enough space" in done.err and "nothing was written" in done.err
        assert not any(disk.iterdir())
        volumes.command.ok("restore", "work:private", "a", "--to", f"{disk}/")
        # Each is whole before what it replaces goes; a file that is right already needs nothing.
        volumes.command.ok("restore", "work:private", "a", "--to", f"{disk}/")
        done = volumes.command.run("restore", "work:private", "a", "--to", f"{disk}/", "--overwrite")
        assert done.code == 1 and "not enough space" in done.err


def test_two_names_for_one_file(volumes: Volumes) -> None:
    """As on a file system that knows no capitals: the second would replace the first, just told to be restored."""
    volumes.path("b").symlink_to(volumes.path("a"))
    for how in ("--overwrite", "--in-place"):
        done = volumes.command.run("restore", "a", "b", "--to", volumes.to, how)
        assert done.code == 3 and "another volume is restored to" in done.err
        assert volumes.right() == {"a"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["disk", "--to", "{}/no/"], "there is no directory"),
        (["--all", "--to", "{}/no"], "there is no directory"),
        (["--all", "disk", "--to", "{}"], "name none"),
        (["--to", "{}/"], "no volume is named"),
        (["--to", "{}/x"], "no volume is named"),
        (["disk", "--document", "x", "--to", "{}/"], "is for one volume"),
        (["disk", "disk", "--pool", "x", "--to", "{}/"], "is for one volume"),
        (["disk", "--in-place", "--to", "{}/missing"], "leave out --in-place"),
    ],
)
def test_what_cannot_be_is_said_before_a_secret_is_asked_for(
    saved: Lamella, tmp_path: Path, words: list[str], said: str
) -> None:
    command = Lamella(saved.env, [])  # no key: whoever asked for it would fail with another error
    done = command.run("restore", *(word.format(tmp_path) for word in words))
    assert done.code == 2 and said in done.err, done.err
