"""Whoever stole the credential of a host that may only add can neither remove nor replace anything."""

from __future__ import annotations

import hashlib
import os
import shlex
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cli.program import Lamella
from tests.fault.pipe_thief import DELETE, DELETES, IMMUTABLE, KEEP, LOCK, WRITES, Refused, Thief
from tests.system.qrexec import qrexec
from tests.system.ssh_server import ssh_server

SERVE = (sys.executable, "-m", "lamella", "serve")
Steal = Callable[[], Thief]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A real repository with two snapshots."""
    (tmp_path / "key").write_bytes(os.urandom(32))
    (tmp_path / "key").chmod(0o600)
    lamella = Lamella({"LAMELLA_REPO": str(tmp_path / "repo")}, ["--keyfile", str(tmp_path / "key")])
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(1 << 20))
    lamella.ok("init", "-q")
    for _ in range(2):
        lamella.ok("backup", image)
        image.write_bytes(os.urandom(1 << 20))
    return tmp_path / "repo"


@pytest.fixture(params=["serve", "ssh", "qrexec"])
def steal(request: pytest.FixtureRequest, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Steal]:
    """The documented recipes, and a function that connects as a thief would."""
    with ExitStack() as stack:
        if request.param == "serve":
            argv: tuple[str, ...] = (*SERVE, "--append-only", str(repository))
        elif request.param == "ssh":
            server = stack.enter_context(ssh_server())
            server.allow(command=shlex.join((*SERVE, "--append-only", str(repository))))
            argv = (str(server.bin / "ssh"), "-T", "-p", str(server.port), "127.0.0.1", "rm", "-rf", str(repository))
        else:
            bench = stack.enter_context(qrexec(monkeypatch))
            qube = bench.qube("storage")
            qube.install_service()
            qube.map("main", repository, "--append-only")
            argv = (str(bench.client), "storage", "lamella.Repo+main")
        yield lambda: stack.enter_context(Thief(argv, place=str(repository.parent)))


def _held(repository: Path) -> dict[str, tuple[bytes, int]]:
    """Every object: its bytes, and the inode that holds them."""
    return {
        str(path.relative_to(repository)): (path.read_bytes(), path.stat().st_ino)
        for path in repository.rglob("*")
        if path.is_file() and "tmp" not in path.parts[-2:-1]
    }


def test_nothing_can_be_removed_or_replaced(steal: Steal, repository: Path) -> None:
    before = _held(repository)
    thief = steal()
    assert thief.abilities & (DELETES | WRITES | IMMUTABLE) == WRITES | IMMUTABLE
    assert set(thief.names()) == set(before)
    for name, (content, _) in before.items():
        with pytest.raises(Refused):
            thief.ask(DELETE, name.encode())
        for other in (b"", content[:-1], content + b"\0", bytes(len(content))):
            with pytest.raises(Refused):
                thief.put(name, other)
    assert _held(repository) == before


def test_nothing_can_be_put_where_it_does_not_belong(steal: Steal, repository: Path) -> None:
    before = _held(repository)
    content = b"5000 bytes that are no pack, one and the same in every run".ljust(5000, b"!")
    right, wrong = hashlib.sha256(content).hexdigest(), hashlib.sha256(b"").hexdigest()
    assert right[:2] != wrong[:2], "a folder that fits would be right"
    commit = next(name for name in before if name.startswith("w/"))
    writer = commit.split("/")[1]
    forged = bytearray(before[commit][0])
    forged[-1] ^= 1
    signed = hashlib.sha256(forged).hexdigest()
    thief = steal()
    for name, body in (
        (f"p/{wrong[:2]}/{wrong}", content),
        (f"p/{wrong[:2]}/{right}", content),
        (f"p/{right}", content),
        ("p/../../outside", content),
        ("../outside", content),
        ("/etc/outside", content),
        ("tmp/" + right[:32], content),
        (f"i/{wrong}", content),
        ("i/other", content),
        ("keys/00000000", content),
        (f"w/{writer}/{3:016x}-{right}", content),
        (f"w/{writer}/{9:016x}-{hashlib.sha256(before[commit][0]).hexdigest()}", before[commit][0]),
        (f"w/{'0' * 32}/{1:016x}-{hashlib.sha256(before[commit][0]).hexdigest()}", before[commit][0]),
        (f"w/{writer}/{1:016x}-{signed}", bytes(forged)),
    ):
        with pytest.raises(Refused):
            thief.put(name, body)
    assert _held(repository) == before
    assert not (repository.parent / "outside").exists()
    # Adding is what the credential is for.
    thief.put(f"p/{right[:2]}/{right}", content, durable=True)
    thief.put(commit, before[commit][0])
    assert _held(repository).keys() - before.keys() == {f"p/{right[:2]}/{right}"}


def test_the_exclusive_lock_is_not_given_and_the_place_is_not_the_clients(steal: Steal, repository: Path) -> None:
    (repository.parent / "secret").write_bytes(b"not yours")
    thief = steal()
    thief.ask(LOCK, b"\0")
    with pytest.raises(Refused):
        thief.ask(LOCK, b"\1")
    assert "secret" not in thief.names()
    with pytest.raises(Refused):
        thief.ask(KEEP, struct.pack("<Q", 9) + b"../secret")


def test_the_owner_still_backs_up_and_cannot_prune(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: the client's own Lamella over a key that is bound to `serve --append-only`."""
    with ssh_server() as server:
        monkeypatch.setenv("PATH", f"{server.bin}:{os.environ['PATH']}")
        server.allow(command=shlex.join((*SERVE, "--append-only", str(repository))))
        place = f"ssh://127.0.0.1:{server.port}/anything"
        lamella = Lamella({"LAMELLA_REPO": place}, ["--keyfile", str(tmp_path / "key")])
        before = _held(repository)
        lamella.ok("backup", tmp_path / "disk.img")
        assert len(lamella.json("list")["snapshots"]) == 3
        lamella.ok("verify")
        after = _held(repository)
        assert {name: after[name] for name in before} == before


def test_a_quota_is_kept(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    with Thief((*SERVE, "--append-only", "--quota", "20000B", str(tmp_path / "repo"))) as thief:
        stored = []
        with pytest.raises(Refused, match="quota"):
            for _ in range(10):
                content = os.urandom(6000)
                name = hashlib.sha256(content).hexdigest()
                thief.put(f"p/{name[:2]}/{name}", content)
                stored.append(f"p/{name[:2]}/{name}")
        assert len(stored) == 3
        assert sorted(thief.names()) == sorted(stored)
    with Thief((*SERVE, "--quota", "20000B", str(tmp_path / "repo"))) as thief:
        thief.ask(DELETE, stored[0].encode())
        content = os.urandom(6000)
        name = hashlib.sha256(content).hexdigest()
        thief.put(f"p/{name[:2]}/{name}", content)


def test_a_prefix_keeps_clients_apart(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    for prefix in ("alpha", "beta"):
        with Thief((*SERVE, "--append-only", "--prefix", prefix, str(tmp_path / "repo"))) as thief:
            assert thief.names() == []
            thief.put("lamella", prefix.encode())
    assert (tmp_path / "repo" / "alpha" / "lamella").read_bytes() == b"alpha"
    assert (tmp_path / "repo" / "beta" / "lamella").read_bytes() == b"beta"


@pytest.mark.parametrize("prefix", ["..", "a/b", "", ".x", "a\n"])
def test_a_prefix_is_one_name(tmp_path: Path, prefix: str) -> None:
    done = Lamella().run("serve", "--prefix", prefix, tmp_path)
    assert done.code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["note", "x/y", "lamella2", "restore.py~", "README.txt", "quarantine/p/a", "P/ab/x", "tmp2/x", "lost+found/a"],
)
def test_only_objects_of_a_repository_are_taken(steal: Steal, repository: Path, name: str) -> None:
    """What is put here stays for ever: no client may leave files that are no part of a repository."""
    before = _held(repository)
    with pytest.raises(Refused):
        steal().put(name, b"anything")
    assert _held(repository) == before


FLOODS = {
    "two objects at once": [(7, 1, struct.pack("<IB", 10, 0) + b"p/a"), (7, 2, struct.pack("<IB", 10, 0) + b"p/b")],
    "too large": [(7, 1, struct.pack("<IB", (72 << 20) + 1, 0) + b"p/a")],
    "more than announced": [(7, 1, struct.pack("<IB", 3, 0) + b"p/a"), (8, 1, b"four")],
    "piece of nothing": [(8, 1, b"x")],
    "empty piece": [(7, 1, struct.pack("<IB", 3, 0) + b"p/a"), (8, 1, b"")],
    "unknown": [(77, 1, b"")],
    "second greeting": [(1, 1, struct.pack("<HB", 1, 0) + b"/etc")],
    "long name": [(3, 1, b"a" * 256)],
    "short request": [(2, 1, b"abc")],
    "long lock": [(11, 1, b"\0\0")],
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_client_that_breaks_the_rules_is_dropped(tmp_path: Path, flood: str) -> None:
    (tmp_path / "repo").mkdir()
    with Thief((*SERVE, str(tmp_path / "repo"))) as thief:
        for kind, number, payload in FLOODS[flood]:
            thief.send(kind, number + 100, payload)
        with pytest.raises((Refused, EOFError)):
            thief.names()
            thief.names()
    assert [path for path in (tmp_path / "repo").rglob("*") if path.is_file()] == []
