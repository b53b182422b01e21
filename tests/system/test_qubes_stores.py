"""Repositories in another qube, and behind ssh from there, with the real command and the service that is shipped."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.program import Lamella
from tests.system.qrexec import Bench, qrexec
from tests.system.ssh_server import ssh_server


@pytest.fixture(params=["dom0", "qube"])
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Qubes, seen from dom0 and from one of them."""
    with qrexec(monkeypatch, dom0=request.param == "dom0") as made:
        yield made


@pytest.fixture
def lamella(tmp_path: Path) -> Lamella:
    """The command, told a key file."""
    (tmp_path / "key").write_bytes(os.urandom(32))
    (tmp_path / "key").chmod(0o600)
    return Lamella({}, ["--keyfile", str(tmp_path / "key")])


def _round(lamella: Lamella, place: str, tmp_path: Path) -> None:
    lamella.env["LAMELLA_REPO"] = place
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(2 << 20))
    lamella.ok("init", "-q")
    lamella.ok("backup", image)
    lamella.ok("verify")
    lamella.ok("restore", "disk", "--to", tmp_path / "out.img")
    assert (tmp_path / "out.img").read_bytes() == image.read_bytes()


def test_the_service_that_is_shipped(bench: Bench, lamella: Lamella, tmp_path: Path) -> None:
    storage = bench.qube("storage")
    storage.install_service()
    storage.map("main", tmp_path / "repo")
    _round(lamella, "qubes://storage/main", tmp_path)
    assert (tmp_path / "repo" / "lamella").is_file()
    assert set(bench.calls) == {"storage lamella.Repo"}


def test_a_qube_without_lamella(bench: Bench, lamella: Lamella, tmp_path: Path) -> None:
    storage = bench.qube("storage")
    _round(lamella, f"qubes://storage/{storage.home}/backup", tmp_path)
    assert (storage.home / "backup" / "lamella").is_file()
    assert set(bench.calls) == {"storage qubes.VMExec"}
    # Nothing was left in the qube but the repository.
    assert {path.name for path in storage.home.iterdir()} == {"backup"}


def test_ssh_from_inside_a_qube(lamella: Lamella, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ssh_server() as server, qrexec(monkeypatch, dom0=True, first=str(server.bin)) as bench:
        bench.qube("net")
        _round(lamella, f"qubes-ssh://net:127.0.0.1:{server.port}{tmp_path}/repo", tmp_path)
        assert set(bench.calls) == {"net qubes.VMExec"}
        assert "Accepted publickey" in (server.place / "log").read_text()


def test_a_mapped_name_that_leads_on_through_ssh(
    lamella: Lamella, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dom0 says a name only; where it leads is the qube's business."""
    with ssh_server() as server, qrexec(monkeypatch, dom0=True, first=str(server.bin)) as bench:
        net = bench.qube("net")
        net.install_service()
        net.map("away", f"ssh://127.0.0.1:{server.port}{tmp_path}/repo")
        _round(lamella, "qubes-ssh://net/away", tmp_path)


def test_callers_are_kept_apart(lamella: Lamella, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with qrexec(monkeypatch) as bench:
        storage = bench.qube("storage")
        storage.install_service()
        (tmp_path / "all").mkdir()
        storage.map("main", tmp_path / "all", "# for everyone", "--append-only", "per-caller")
        _round(lamella, "qubes://storage/main", tmp_path)
        assert (tmp_path / "all" / "caller" / "lamella").is_file()


@pytest.mark.parametrize(
    ("place", "code", "says"),
    [
        ("qubes://storage/unknown", 1, "no destination named unknown"),
        ("qubes://storage/../x", 2, "not a name"),
        ("qubes://storage/", 2, "not a place"),
        ("qubes://no qube/x", 2, "not a place"),
        ("qubes://nowhere/main", 1, "Failed to connect to nowhere"),
        ("qubes://storage//not/there", 10, "no such directory"),
        ("qubes://closed/main", 1, "Request refused"),
        ("qubes-ssh://net:-oX=y/x", 2, "not a host"),
    ],
)
def test_what_is_wrong_is_one_line_and_the_right_code(
    bench: Bench, lamella: Lamella, place: str, code: int, says: str
) -> None:
    bench.qube("storage").install_service()
    bench.qube("closed")
    done = lamella.run("list", "-r", place)
    assert (done.code, says in done.err, done.err.count("\n")) == (code, True, 1), done


def test_without_qubes_it_is_said(lamella: Lamella, tmp_path: Path) -> None:
    done = lamella.run("list", "-r", "qubes://storage/main", env={"PATH": str(tmp_path)})
    assert (done.code, "not a qube" in done.err) == (1, True)


@pytest.mark.parametrize("argument", ["", ".", "..", "a/b", "a b", "../main", "$(id)"])
def test_the_service_takes_names_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str) -> None:
    with qrexec(monkeypatch) as bench:
        storage = bench.qube("storage")
        storage.install_service()
        env = {"PATH": os.environ["PATH"], "HOME": str(storage.home), "QREXEC_SERVICE_ARGUMENT": argument}
        done = subprocess.run(
            [storage.home / "rpc" / "lamella.Repo"], env=env, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 1
        assert done.stdout == b""
        assert b"no destination is named" in done.stderr
