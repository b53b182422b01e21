"""No space left: at every write to the destination, on real small file systems, in state and cache directories."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError, RepositoryError, StoreError, StoreFull
from lamella.memory.host import Host, machine_name
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from lamella.stores.local.store import LocalStore
from lamella.stores.memory import MemoryStore
from lamella_kit.image_files import mounted
from lamella_kit.quota_store import QuotaStore
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
    restored,
    short_rescue,
    volume,
    with_fresh_cache,
)
from tests.features import require

FIRST = b"1" * CHUNK + os.urandom(700)
SECOND = b"1" * CHUNK + os.urandom(900)
MIB = 1 << 20
_VARIES = 48


def test_full_at_every_write_of_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with short_rescue(monkeypatch):
        sizes = MemoryStore()
        init(sizes, host_at(tmp_path / "sizes"))
        for limit in limits(sizes.objects(), {}):
            store, host = QuotaStore(MemoryStore(), limit), host_at(tmp_path / str(limit))
            with pytest.raises(StoreFull):
                init(store, host)
            store.limit_bytes = MIB
            init(store, host)
            truth = Truth()
            truth.learn(backup(store, host, volume(FIRST)), {"disk": FIRST})
            check_sound(store, host, truth, tmp_path)


def limits(after: dict[str, bytes], before: dict[str, bytes]) -> Iterator[int]:
    """Room for none, one, two .. of the new objects, and for all but the end of each.

    Random ids compress by a few bytes better or worse, so the next run's objects are not of the very same size.
    """
    room = sum(map(len, before.values()))
    for name, content in after.items():
        if name not in before:
            yield room
            yield room + len(content) - _VARIES
            room += len(content)


def test_full_at_every_write_of_a_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with short_rescue(monkeypatch):
        first, host, truth = MemoryStore(), host_at(tmp_path / "first"), Truth()
        init(first, host)
    truth.learn(backup(first, host, volume(FIRST)), {"disk": FIRST})
    whole = MemoryStore(first.objects())
    shutil.copytree(tmp_path / "first", tmp_path / "dry")
    backup(whole, host_at(tmp_path / "dry"), volume(SECOND))
    steps = list(limits(whole.objects(), first.objects()))
    assert len(steps) >= 4
    for limit in steps:
        place = tmp_path / f"limit-{limit}"
        shutil.copytree(tmp_path / "first", place)
        inner, now = MemoryStore(first.objects()), Truth(dict(truth.volumes))
        store = QuotaStore(inner, limit)
        with pytest.raises(StoreFull):
            backup(store, host_at(place), volume(SECOND))
        assert commits(inner) == commits(first), "nothing was committed"
        check_sound(inner, host_at(place), now, tmp_path)
        check_sound(inner, fresh_host(tmp_path / "fresh"), now, tmp_path)
        store.limit_bytes = MIB
        now.learn(backup(store, host_at(place), volume(SECOND)), {"disk": SECOND})
        check_sound(inner, host_at(place), now, tmp_path)
        check_rescue(inner.objects(), now, tmp_path)


def commits(store: MemoryStore) -> set[str]:
    return {name for name in store.objects() if name.startswith("w/")}


# -- real file systems ------------------------------------------------------------------------------------------------


@contextmanager
def small_file_system(place: Path, size: int) -> Iterator[Path]:
    require("root", os.geteuid() == 0, "only root may mount")
    place.mkdir()
    with mounted("none", place, kind="tmpfs", options=f"size={size},mode=700"):
        yield place


@contextmanager
def store_in(place: Path) -> Iterator[LocalStore]:
    """One program's use of a local repository: closed at the end, as the process would."""
    store = LocalStore.open(place, create=True)
    try:
        yield store
    finally:
        store.close()


def fill(place: Path, leave: int = 0) -> Path:
    """Take all space but about `leave` bytes."""
    filler = place / "filler"
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    with filler.open("wb") as file:
        file.write(bytes(max(0, free - leave)))
    return filler


@pytest.mark.parametrize("leave", [0, 4096, 8192, 16384, 65536, 131072])
def test_a_full_file_system(tmp_path: Path, leave: int) -> None:
    larger = FIRST + random.Random(1).randbytes(CHUNK * 3)
    with small_file_system(tmp_path / "disk", 2 * MIB) as disk:
        host, truth = host_at(tmp_path / "host"), Truth()
        with store_in(disk / "R") as store:
            init(store, host)
            truth.learn(backup(store, host, volume(FIRST)), {"disk": FIRST})
        filler = fill(disk, leave)
        with store_in(disk / "R") as store, pytest.raises(StoreFull):
            backup(store, host, volume(larger))
        with store_in(disk / "R") as store:
            check_sound(store, host, truth, tmp_path)
        assert not list((disk / "R" / "tmp").iterdir()), "unfinished writes take the space that is missing"
        filler.unlink()
        with store_in(disk / "R") as store:
            truth.learn(backup(store, host, volume(larger)), {"disk": larger})
            check_sound(store, host, truth, tmp_path)
            check_sound(store, fresh_host(tmp_path / "fresh"), truth, tmp_path)


def test_init_on_a_full_file_system(tmp_path: Path) -> None:
    with small_file_system(tmp_path / "disk", MIB) as disk:
        host, truth = host_at(tmp_path / "host"), Truth()
        filler = fill(disk, 32768)
        with store_in(disk / "R") as store, pytest.raises(StoreError):
            init(store, host)
        filler.unlink()
        with store_in(disk / "R") as store:
            init(store, host)
            truth.learn(backup(store, host, volume(FIRST)), {"disk": FIRST})
            check_sound(store, host, truth, tmp_path)


def test_a_full_state_directory(tmp_path: Path) -> None:
    """What the host would note there costs time if it is lost; the snapshot comes first."""
    with small_file_system(tmp_path / "state", 256 * 1024) as state:
        host = Host(machine_name("one"), "box", state / "lamella", tmp_path / "cache")
        store, truth = MemoryStore(), Truth()
        init(store, host)
        truth.learn(backup(store, host, volume(FIRST)), {"disk": FIRST})
        filler = fill(state)
        for content in (SECOND, FIRST):
            result = backup(store, host, volume(content))
            assert any("No space left" in warning for warning in result.warnings)
            truth.learn(result, {"disk": content})
            check_sound(store, host, truth, tmp_path)
        filler.unlink()
        truth.learn(backup(store, host, volume(SECOND)), {"disk": SECOND})
        check_sound(store, host, truth, tmp_path, others=(FIRST, SECOND))
        check_sound(store, fresh_host(tmp_path / "fresh"), truth, tmp_path, others=(FIRST, SECOND))


def test_a_state_directory_that_is_full_from_the_start(tmp_path: Path) -> None:
    with small_file_system(tmp_path / "state", 256 * 1024) as state:
        store, truth = MemoryStore(), Truth()
        init(store, host_at(tmp_path / "maker"))
        filler = fill(state)
        host = Host(machine_name("two"), "box", state / "lamella", tmp_path / "cache")
        with pytest.raises(RepositoryError, match="No space left"):
            backup(store, host, volume(FIRST))
        filler.unlink()
        truth.learn(backup(store, host, volume(FIRST)), {"disk": FIRST})
        check_sound(store, host, truth, tmp_path)


def test_restoring_needs_no_space_for_state(tmp_path: Path) -> None:
    """In an emergency the disk with the state may be full: reading must work all the same."""
    with small_file_system(tmp_path / "full", 256 * 1024) as full:
        store, truth = MemoryStore(), Truth()
        init(store, host_at(tmp_path / "maker"))
        truth.learn(backup(store, host_at(tmp_path / "maker"), volume(FIRST)), {"disk": FIRST})
        fill(full)
        check_sound(store, Host(machine_name("two"), "box", full / "s", full / "c"), truth, tmp_path)


@pytest.mark.parametrize("leave", [0, 8192, 65536, 160 * 1024])
def test_a_full_cache_directory(tmp_path: Path, leave: int) -> None:
    """The cache is disposable: nothing may depend on room for it."""
    with small_file_system(tmp_path / "cache", 512 * 1024) as cache:
        host = Host(machine_name("one"), "box", tmp_path / "state", cache / "lamella")
        store, truth = MemoryStore(), Truth()
        init(store, host)
        truth.learn(backup(store, host, volume(FIRST)), {"disk": FIRST})
        filler = fill(cache, leave)
        many = b"".join(bytes([number]) * CHUNK for number in range(1, 120)) + SECOND
        for content in (SECOND, many):
            try:
                truth.learn(backup(store, host, volume(content)), {"disk": content})
            except RepositoryError as error:
                assert "cache" in error.message and "LAMELLA_CACHE_DIR" in error.hint
        filler.unlink()
        truth.learn(backup(store, host, volume(many + b"1")), {"disk": many + b"1"})
        check_sound(store, host, truth, tmp_path)
        check_sound(store, fresh_host(tmp_path / "fresh"), truth, tmp_path)


def test_a_cache_that_is_garbage_or_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    store, truth, host = MemoryStore(), Truth(), host_at(tmp_path / "host")
    init(store, host)
    truth.learn(backup(store, host, volume(FIRST)), {"disk": FIRST})
    (found,) = host.cache_dir.rglob("cache.sqlite")
    whole = found.read_bytes()
    for garbage in (b"", b"not a database at all" * 500, whole[:5000], whole[: len(whole) // 2], bytes(len(whole))):
        found.write_bytes(garbage)
        check_sound(store, host, truth, tmp_path)
        truth.learn(backup(store, host, volume(SECOND)), {"disk": SECOND})
    nowhere = Host(machine_name("x"), "x", Path("/dev/null/state"), Path("/dev/null/cache"))
    check_sound(store, nowhere, truth, tmp_path)


@pytest.mark.parametrize("stride", [499, pytest.param(17, marks=pytest.mark.long)])
def test_a_cache_with_damaged_pages_never_gives_wrong_bytes(tmp_path: Path, stride: int) -> None:
    """It may cost a run, or make a place look empty; deleting the cache is then all it takes."""
    store, truth, host = MemoryStore(), Truth(), host_at(tmp_path / "host")
    init(store, host)
    for content in (FIRST, SECOND):
        truth.learn(backup(store, host, volume(content)), {"disk": content})
    (found,) = host.cache_dir.rglob("cache.sqlite")
    whole = found.read_bytes()
    for offset in range(0, len(whole), stride):
        damaged = bytearray(whole)
        damaged[offset] ^= 0x10
        found.parent.mkdir(parents=True, exist_ok=True)
        found.write_bytes(damaged)
        with Repository.open(store, SECRET, host) as repo:
            for one in select(repo, []):
                try:
                    assert restored(repo, one, tmp_path / "out.img") == truth.volumes[one.text], offset
                except LamellaError:
                    for left in tmp_path.glob("out.img*"):
                        left.unlink()
        with_fresh_cache(host, host.cache_dir)
    check_sound(store, host, truth, tmp_path)
