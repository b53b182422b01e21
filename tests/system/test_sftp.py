"""Repositories behind a real sshd that lets its client do nothing but transfer files, with the real command."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.program import COMMAND, Lamella, environment
from tests.system.ssh_server import SshServer, ssh_server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SshServer]:
    """A running sshd, whose `ssh` is first on the PATH."""
    with ssh_server() as running:
        running.allow(command="internal-sftp")
        monkeypatch.setenv("PATH", f"{running.bin}:{os.environ['PATH']}")
        yield running


@pytest.fixture
def lamella(tmp_path: Path, server: SshServer) -> Lamella:
    """The command, told a key file and a repository behind the server that is not there yet."""
    (tmp_path / "key").write_bytes(os.urandom(32))
    (tmp_path / "key").chmod(0o600)
    place = f"sftp://127.0.0.1:{server.port}{tmp_path}/repo"
    return Lamella({"LAMELLA_REPO": place}, ["--keyfile", str(tmp_path / "key")])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Some data."""
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(3 << 20) + bytes(1 << 20))
    return path


def test_from_init_to_restore_and_what_doctor_says(lamella: Lamella, image: Path, tmp_path: Path) -> None:
    lamella.ok("init", "-q")
    lamella.ok("backup", image)
    with image.open("r+b") as file:
        file.write(b"changed")
    assert lamella.json("backup", image)["volumes"][0]["new_chunks"] == 1
    assert len(lamella.json("list")["snapshots"]) == 2
    assert lamella.json("verify", "--level", "full")["findings"] == []
    lamella.ok("restore", "disk", "--to", tmp_path / "out.img")
    assert (tmp_path / "out.img").read_bytes() == image.read_bytes()
    lamella.ok("prune", "--keep-last", "1")
    doctor = lamella.run("doctor")
    assert "no reliable locks" in doctor.out and "far side" not in doctor.out
    # The directory is a repository as any other.
    lamella.ok("verify", "--level", "full", "-r", tmp_path / "repo")


def test_a_poorer_server_is_told_by_doctor(lamella: Lamella, image: Path, server: SshServer) -> None:
    server.allow(command="internal-sftp -P hardlink,fsync")
    lamella.ok("init", "-q")
    lamella.ok("backup", image)
    lamella.ok("verify", "--level", "full")
    said = lamella.run("doctor").out
    assert "cannot be asked to make writes durable" in said and "makes no hard links" in said


def test_a_repository_below_the_home_directory(lamella: Lamella, tmp_path: Path, server: SshServer) -> None:
    home = Path("~").expanduser() if os.geteuid() else Path("/root")
    below = os.path.relpath(tmp_path / "below", home)
    lamella.env["LAMELLA_REPO"] = f"sftp://127.0.0.1:{server.port}/~/{below}"
    lamella.ok("init", "-q")
    assert (tmp_path / "below" / "lamella").is_file()
    lamella.ok("list")


@pytest.mark.parametrize(
    ("place", "code", "says"),
    [
        ("sftp://127.0.0.1:{port}/nowhere/at/all", 10, "there is no such directory"),
        ("sftp://127.0.0.1:{port}{tmp}/key", 10, "not a directory"),
        ("sftp://127.0.0.1:{port}{tmp}", 10, "no repository"),
        ("sftp://127.0.0.1:22199/x", 1, "Connection refused"),
        ("sftp://no-such-host.invalid:{port}/x", 1, "Could not resolve hostname"),
        ("sftp://localhost:{port}/x", 1, "Host key verification failed"),
        ("sftp://127.0.0.1:{port}", 2, "sftp: names no path"),
        ("sftp://-oProxyCommand=touch%20x/x", 2, "write sftp://"),
        ("sftp:host:path", 2, "write sftp://"),
    ],
)
def test_what_is_wrong_is_one_line_and_the_right_code(
    lamella: Lamella, server: SshServer, tmp_path: Path, place: str, code: int, says: str
) -> None:
    done = lamella.run("list", "-r", place.format(port=server.port, tmp=tmp_path))
    assert (done.code, says in done.err) == (code, True), done
    assert done.err.count("\n") == 1


def test_a_host_without_sftp_and_a_key_that_is_not_known_are_one_line(lamella: Lamella, server: SshServer) -> None:
    server.allow(command="echo no shell for you; sleep 5")
    done = lamella.run("list")
    assert (done.code, "no shell for you" in done.err, done.err.count("\n")) == (1, True, 1), done
    (server.place / "authorized").write_text("")
    done = lamella.run("list")
    assert (done.code, "Permission denied" in done.err, done.err.count("\n")) == (1, True, 1), done
    server.stop()
    assert lamella.run("--if-available", "list").code == 75


def test_a_first_backup_over_a_link_that_is_cut_often_is_whole(
    lamella: Lamella, server: SshServer, tmp_path: Path
) -> None:
    big = tmp_path / "big.img"
    big.write_bytes(os.urandom(48 << 20))
    lamella.ok("init", "-q")
    command = [*COMMAND, *lamella.options, "--limit-rate", "20M", "backup", str(big)]
    running = subprocess.Popen(command, env=environment(lamella.env), stderr=subprocess.PIPE, text=True)
    packs, arriving = tmp_path / "repo" / "p", tmp_path / "repo" / "tmp"
    cuts, cut_off = 0, set[str]()
    while running.poll() is None and cuts < 4:
        time.sleep(0.005)
        # A connection that is idle may go without a word: nothing was lost. These are cut in the middle of an object.
        now = {path.name for path in arriving.glob("*")} - cut_off if packs.is_dir() else set()
        if now:
            server.cut()
            cuts, cut_off = cuts + 1, cut_off | now
    _, said = running.communicate(timeout=120)
    assert running.returncode == 0, said
    assert cuts == 4 and "trying again" in said, said
    assert lamella.json("verify", "--level", "full")["findings"] == []
    stored = sum(path.stat().st_size for path in packs.rglob("*") if path.is_file())
    assert stored < 1.05 * big.stat().st_size, "nothing is stored twice"


def test_a_put_that_finds_no_room_says_so(lamella: Lamella, server: SshServer, tmp_path: Path) -> None:
    """The file-size limit of the server's session stands for a full disk: the protocol has no word for either."""
    big = tmp_path / "big.img"
    big.write_bytes(os.urandom(4 << 20))
    lamella.ok("init", "-q")
    server.allow(command="ulimit -f 1000; trap '' XFSZ; exec /usr/lib/openssh/sftp-server")
    done = lamella.run("backup", big)
    assert (done.code, "the far side cannot write on" in done.err, "prune" in done.err) == (1, True, True), done
    server.allow(command="internal-sftp")
    lamella.ok("backup", big)
    assert lamella.json("verify", "--level", "full")["findings"] == []
