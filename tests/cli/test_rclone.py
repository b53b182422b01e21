"""Repositories on a remote of the user's own rclone, with the real programs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.program import COMMAND, Lamella, environment
from tests.features import require


@pytest.fixture
def lamella(tmp_path: Path, keyfile: Path) -> Lamella:
    """The command, and a remote of rclone that is a directory here."""
    require("rclone", shutil.which("rclone") is not None, "not installed")
    config = tmp_path / "rclone.conf"
    config.write_text("[here]\ntype = local\n")
    (tmp_path / "far").mkdir()
    variables = {"LAMELLA_REPO": f"rclone:here:{tmp_path}/far/repo", "RCLONE_CONFIG": str(config)}
    return Lamella(variables, ["--keyfile", str(keyfile)])


def programs(tmp_path: Path) -> list[int]:
    """The numbers of the rclones that run with the configuration of this test."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            mine = entry.name.isdigit() and str(tmp_path).encode() in (entry / "environ").read_bytes()
            if mine and (entry / "comm").read_text().strip() == "rclone":
                found.append(int(entry.name))
    return found


def test_from_init_to_prune_and_nothing_stays_behind(lamella: Lamella, image: Path, tmp_path: Path) -> None:
    lamella.ok("init", "-q")
    lamella.ok("backup", image)
    with image.open("r+b") as file:
        file.write(b"changed")
    assert lamella.json("backup", image)["volumes"][0]["new_chunks"] == 1
    assert lamella.json("verify", "--level", "full")["findings"] == []
    lamella.ok("restore", "disk", "--to", tmp_path / "out.img")
    assert (tmp_path / "out.img").read_bytes() == image.read_bytes()
    lamella.ok("prune", "--keep-last", "1")
    said = lamella.run("doctor").out
    assert "no reliable locks" in said and "no remote of rclone keeps two programs" in said and "power cut" in said
    # The directory is a repository as any other.
    lamella.ok("verify", "--level", "full", "-r", tmp_path / "far" / "repo")
    assert programs(tmp_path) == []
    assert list((tmp_path / "far" / "repo" / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("place", "code", "says"),
    [
        ("rclone:nowhere:x", 2, "didn't find section"),
        ("rclone:here", 2, "write rclone:REMOTE:PATH"),
        ("rclone:/etc", 2, "write rclone:REMOTE:PATH"),
        ("rclone:here:/nowhere/at/all", 10, "there is no such directory"),
        ("rclone:here:{tmp}/key", 2, "is a file not a directory"),
        ("rclone:here:{tmp}/far", 10, "no repository"),
    ],
)
def test_what_is_wrong_is_one_line_and_the_right_code(
    lamella: Lamella, tmp_path: Path, place: str, code: int, says: str
) -> None:
    done = lamella.run("list", "-r", place.format(tmp=tmp_path))
    assert (done.code, says in done.err) == (code, True), done
    assert done.err.count("\n") == 1


def test_no_rclone_and_a_password_nobody_can_be_asked_for_are_one_line(lamella: Lamella, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("sh", "cat"):
        (tmp_path / "bin" / name).symlink_to(f"/bin/{name}")
    done = lamella.run("list", env={"PATH": str(tmp_path / "bin")})
    assert (done.code, "there is no such program" in done.err, done.err.count("\n")) == (2, True, 1), done
    (tmp_path / "rclone.conf").write_text("# Encrypted rclone configuration File\n\nRCLONE_ENCRYPT_V0:\nAAAA\n")
    done = lamella.run("list")
    assert (done.code, done.err.count("\n")) == (1, 1), done


def test_killed_programs_leave_a_repository_that_goes_on(lamella: Lamella, tmp_path: Path) -> None:
    """Lamella is killed, or its rclone: nothing runs on, the next run works, and what was stored is used."""
    big = tmp_path / "big.img"
    big.write_bytes(os.urandom(48 << 20))
    lamella.ok("init", "-q")
    command = [*COMMAND, *lamella.options, "--limit-rate", "10M", "backup", str(big)]
    for victim in ("rclone", "lamella"):
        running = subprocess.Popen(command, env=environment(lamella.env), stderr=subprocess.PIPE, text=True)
        packs = tmp_path / "far" / "repo" / "p"
        while not (packs.is_dir() and any(packs.rglob("*"))) and running.poll() is None:
            time.sleep(0.02)
        killed = programs(tmp_path) if victim == "rclone" else [running.pid]
        assert killed
        if victim == "rclone":  # which is started anew without a word where nothing was asked of it just then
            for number in killed:
                os.kill(number, signal.SIGSTOP)
            time.sleep(3)
        for number in killed:
            os.kill(number, signal.SIGKILL)
        _, said = running.communicate(timeout=60)
        if victim == "rclone":
            assert running.returncode == 0 and "trying again" in said, said
            shutil.rmtree(packs.parent)
            lamella.ok("init", "-q", "--keyfile", lamella.options[1])
            shutil.rmtree(tmp_path / "far" / "repo" / "tmp", ignore_errors=True)
    for _ in range(100):
        if not programs(tmp_path):
            break
        time.sleep(0.1)
    assert programs(tmp_path) == []
    lamella.ok("backup", big)
    assert lamella.json("verify", "--level", "full")["findings"] == []
