"""Repositories behind a real sshd, with the real command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.program import Lamella
from tests.system.ssh_server import SshServer, ssh_server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SshServer]:
    """A running sshd, whose `ssh` is first on the PATH."""
    with ssh_server() as running:
        monkeypatch.setenv("PATH", f"{running.bin}:{os.environ['PATH']}")
        yield running


@pytest.fixture
def lamella(tmp_path: Path, server: SshServer) -> Lamella:
    """The command, told a key file and a repository behind the server that is not there yet."""
    (tmp_path / "key").write_bytes(os.urandom(32))
    (tmp_path / "key").chmod(0o600)
    return Lamella(
        {"LAMELLA_REPO": f"ssh://127.0.0.1:{server.port}{tmp_path}/repo"}, ["--keyfile", str(tmp_path / "key")]
    )


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Some data."""
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(3 << 20) + bytes(1 << 20))
    return path


def _round(lamella: Lamella, image: Path, tmp_path: Path) -> None:
    lamella.ok("init", "-q")
    lamella.ok("backup", image)
    with image.open("r+b") as file:
        file.write(b"changed")
    assert lamella.json("backup", image)["volumes"][0]["new_chunks"] == 1
    assert len(lamella.json("list")["snapshots"]) == 2
    assert lamella.json("verify", "--level", "full")["findings"] == []
    lamella.ok("restore", "disk", "--to", tmp_path / "out.img")
    assert (tmp_path / "out.img").read_bytes() == image.read_bytes()


def test_init_backup_verify_restore(lamella: Lamella, image: Path, tmp_path: Path) -> None:
    _round(lamella, image, tmp_path)


def test_a_repository_below_the_home_directory(
    lamella: Lamella, image: Path, tmp_path: Path, server: SshServer
) -> None:
    home = Path("~").expanduser() if os.geteuid() else Path("/root")
    below = os.path.relpath(tmp_path / "below", home)
    lamella.env["LAMELLA_REPO"] = f"ssh://127.0.0.1:{server.port}/~/{below}"
    lamella.ok("init", "-q")
    assert (tmp_path / "below" / "lamella").is_file()


def test_a_path_that_would_be_more_to_a_shell_is_a_path(lamella: Lamella, tmp_path: Path, server: SshServer) -> None:
    name = "a b;touch ${IFS}x`id`'\"$(id)&|*"
    lamella.env["LAMELLA_REPO"] = f"ssh://127.0.0.1:{server.port}{tmp_path}/{name.replace('%', '%25')}"
    lamella.ok("init", "-q")
    assert (tmp_path / name / "lamella").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"key", name}


def test_the_connection_is_used_again(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second command finds the connection of the first: the server sees one login."""
    with ssh_server(reuse=True) as running:
        monkeypatch.setenv("PATH", f"{running.bin}:{os.environ['PATH']}")
        (tmp_path / "key").write_bytes(os.urandom(32))
        (tmp_path / "key").chmod(0o600)
        place = f"ssh://127.0.0.1:{running.port}{tmp_path}/repo"
        lamella = Lamella({"LAMELLA_REPO": place}, ["--keyfile", str(tmp_path / "key")])
        lamella.ok("init", "-q")
        lamella.ok("backup", image)
        assert (running.place / "log").read_text().count("Accepted publickey") == 1


@pytest.mark.parametrize(
    ("place", "code", "says"),
    [
        ("ssh://127.0.0.1:{port}/nowhere/at/all", 10, "there is no such directory"),
        ("ssh://127.0.0.1:22199/x", 1, "Connection refused"),
        ("ssh://no-such-host.invalid:{port}/x", 1, "Could not resolve hostname"),
        ("ssh://localhost:{port}/x", 1, "Host key verification failed"),
        ("ssh://127.0.0.1:{port}", 2, "names no path"),
        ("ssh://-oProxyCommand=touch%20x/x", 2, "not a host"),
        ("ssh://127.0.0.1:99999/x", 2, "not a host"),
    ],
)
def test_what_is_wrong_is_one_line_and_the_right_code(
    lamella: Lamella, server: SshServer, place: str, code: int, says: str
) -> None:
    done = lamella.run("list", "-r", place.format(port=server.port))
    assert (done.code, says in done.err) == (code, True), done
    assert done.err.count("\n") == 1


def test_a_key_that_is_not_known_is_one_line(lamella: Lamella, server: SshServer) -> None:
    (server.place / "authorized").write_text("")
    done = lamella.run("list")
    assert (done.code, "Permission denied" in done.err, done.err.count("\n")) == (1, True, 1), done


def test_no_python_at_the_far_side_is_one_line(lamella: Lamella, server: SshServer, tmp_path: Path) -> None:
    server.allow(command=f"exec {tmp_path}/python3")
    done = lamella.run("list")
    assert (done.code, "needs python3" in done.err, done.err.count("\n")) == (1, True, 1), done


def test_a_directory_that_may_not_be_read_is_one_line(lamella: Lamella, server: SshServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = lamella.run("list", "-r", f"ssh://127.0.0.1:{server.port}{tmp_path}/file")
    assert (done.code, "not a directory" in done.err) == (10, True), done
