"""Several backups at once to one local repository, from processes that share nothing but files."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from lamella.repository.repository import Repository
from lamella.stores.local.store import LocalStore
from lamella.stores.memory import MemoryStore
from lamella_kit.fault_store import FaultStore
from tests.fault.world import (
    CHUNK,
    SECRET,
    Truth,
    backup,
    check_rescue,
    check_sound,
    fresh_host,
    host_at,
    init,
    volume,
)

ROOT = Path(__file__).parents[2]
SECONDS = 60


class Program:
    """A backup in another process."""

    def __init__(self, repo: Path, place: Path, image: Path, *, machine: str = "one", hold: bool = False) -> None:
        words = [str(repo), str(place), machine, "hold" if hold else "go", str(image)]
        self.image = image
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.together", *words],
            cwd=ROOT,
            env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PATH": "/usr/bin:/bin"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> dict[str, Any]:
        """The next thing it says."""
        said: dict[str, Any] = json.loads(pipe(self.process.stdout).readline())
        return said

    def go_on(self) -> None:
        pipe(self.process.stdin).write("\n")
        pipe(self.process.stdin).flush()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=SECONDS)


def pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


@contextmanager
def programs(*made: Program) -> Iterator[tuple[Program, ...]]:
    try:
        yield made
    finally:
        for program in made:
            program.close()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    place = tmp_path / "R"
    store = LocalStore.open(place, create=True)
    init(store, host_at(tmp_path / "maker", "maker"))
    store.close()
    return place


def image(place: Path, seed: int) -> Path:
    place.write_bytes(b"common" * 30000 + random.Random(seed).randbytes(3 * CHUNK))
    return place


def learned(truth: Truth, program: Program, said: dict[str, Any]) -> None:
    truth.volumes[f"{program.image.stem}@{said['snapshot']}"] = program.image.read_bytes()


def objects(repo: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(repo)): path.read_bytes()
        for path in repo.rglob("*")
        if path.is_file() and path.parent.name != "tmp"
    }


def check_all(repo: Path, truth: Truth, tmp_path: Path) -> None:
    store = LocalStore.open(repo)
    check_sound(store, fresh_host(tmp_path / "fresh"), truth, tmp_path)
    store.close()
    check_rescue(objects(repo), truth, tmp_path)


@pytest.mark.parametrize("same_host", [True, False], ids=["one host", "two hosts"])
def test_different_volumes_at_once(repo: Path, tmp_path: Path, same_host: bool) -> None:
    """Both are reading at the same moment; whichever commits first, both succeed. Twice: first and later backups."""
    truth = Truth()
    images = [image(tmp_path / "a.img", 1), image(tmp_path / "b.img", 2)]
    for seed in (3, 4):
        a = Program(repo, tmp_path / "one", images[0], hold=True)
        other = (tmp_path / "one", "one") if same_host else (tmp_path / "two", "two")
        b = Program(repo, other[0], images[1], machine=other[1], hold=True)
        with programs(a, b):
            assert "reading" in a.line() and "reading" in b.line()
            a.go_on()
            b.go_on()
            for program in (a, b):
                said = program.line()
                assert said.get("complete") is True, said
                learned(truth, program, said)
        check_all(repo, truth, tmp_path)
        images = [image(tmp_path / "a.img", seed), image(tmp_path / "b.img", seed + 10)]
    assert len(truth.volumes) == 4


def test_the_same_source_at_once(repo: Path, tmp_path: Path) -> None:
    disk, truth = image(tmp_path / "a.img", 1), Truth()
    first = Program(repo, tmp_path / "one", disk, hold=True)
    with programs(first):
        assert "reading" in first.line()
        second = Program(repo, tmp_path / "one", disk)
        with programs(second):
            said = second.line()
            assert (said.get("error"), said.get("exit")) == ("Locked", 11), said
        first.go_on()
        said = first.line()
        assert said.get("complete") is True
        learned(truth, first, said)
    third = Program(repo, tmp_path / "one", disk)
    with programs(third):
        learned(truth, third, third.line())
    check_all(repo, truth, tmp_path)


def test_a_killed_backup_leaves_no_lock_behind(repo: Path, tmp_path: Path) -> None:
    disk, truth = image(tmp_path / "a.img", 1), Truth()
    for _ in range(2):
        killed = Program(repo, tmp_path / "one", disk, hold=True)
        with programs(killed):
            assert "reading" in killed.line()
    after = Program(repo, tmp_path / "one", disk)
    with programs(after):
        learned(truth, after, after.line())
    check_all(repo, truth, tmp_path)


class Interrupting(FaultStore):
    """Does something else, once, between a listing of packs and its first entry: as a slow listing would meet it."""

    def __init__(self, inner: MemoryStore, meanwhile: Any) -> None:  # noqa: ANN401 - any callable
        super().__init__(inner)
        self.meanwhile = meanwhile
        self.armed = False

    def list(self, prefix: str) -> Any:  # noqa: ANN401 - an iterator of entries
        entries = list(super().list(prefix))
        if prefix == "p/" and self.armed:
            self.armed = False
            self.meanwhile()
        return iter(entries)


def test_a_stale_listing_of_one_run_does_not_spoil_another_of_the_same_host(tmp_path: Path) -> None:
    """Both share the cache: what the one has just put must not be forgotten because the other did not see it listed."""
    inner, host, truth = MemoryStore(), host_at(tmp_path / "host"), Truth()
    init(inner, host)
    a, b = b"a" * CHUNK + b"1", b"b" * CHUNK + b"2"
    truth.learn(backup(inner.connect(), host, volume(a, "a")), {"a": a})

    def other_run() -> None:
        truth.learn(backup(inner.connect(), host, volume(b, "b")), {"b": b})

    for _ in range(2):
        store = Interrupting(inner, other_run)
        store.armed = True
        truth.learn(backup(store, host, volume(a, "a")), {"a": a})
        assert not store.armed
        check_sound(inner.connect(), host, truth, tmp_path)
        b += b"more" * 10000


def test_a_stale_listing_while_the_other_run_checks_its_packs(tmp_path: Path) -> None:
    """The other way round: the packs of a run in progress are forgotten in the shared cache before it commits."""
    inner, host, truth = MemoryStore(), host_at(tmp_path / "host"), Truth()
    init(inner, host)
    a, b = b"a" * CHUNK + b"1", b"b" * CHUNK + b"2"
    truth.learn(backup(inner.connect(), host, volume(a, "a")), {"a": a})
    stale = [entry for entry in inner.list("p/")]

    class Forgetful(FaultStore):
        def sync(self) -> None:
            super().sync()
            with Repository.open(Old(inner), SECRET, host) as repo:
                repo.refresh_map()

    class Old(FaultStore):
        def list(self, prefix: str) -> Any:  # noqa: ANN401
            return iter(stale) if prefix == "p/" else super().list(prefix)

    truth.learn(backup(Forgetful(inner), host, volume(b, "b")), {"b": b})
    check_sound(inner.connect(), host, truth, tmp_path)
