"""The local store against what really happens to directories: full, read-only, planted, vanished, killed, shared."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import lamella
from lamella.base.errors import Locked, ObjectNotFound, StoreFull, StoreRefused, StoreUnavailable
from lamella.base.trust import Sealed
from lamella.stores.local.store import LocalStore
from lamella_kit.store_reading import listed
from tests.contract.conftest import Mount
from tests.features import require

_SECONDS = 60
_NOBODY = 65534


def _name(content: bytes) -> str:
    name = hashlib.sha256(content).hexdigest()
    return f"p/{name[:2]}/{name}"


def _assert_whole(store: LocalStore) -> list[str]:
    """Every visible object is what its name says; returns the names."""
    names = list(listed(store))
    for name in names:
        assert _name(store.get(name)) == name
    return names


@contextmanager
def _child(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process with our modules, killed at the end; speaks by lines."""
    source = str(Path(lamella.__path__[0]).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=_SECONDS)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# --- full ------------------------------------------------------------------------------------------------------------


def test_a_full_file_system_takes_no_half_objects_and_goes_on_after_a_removal(small_file_system: Path) -> None:
    store = LocalStore.open(small_file_system / "repo", create=True)
    stored: list[str] = []
    with pytest.raises(StoreFull) as caught:
        for _ in range(100):
            content = os.urandom(200_000)
            store.put(_name(content), Sealed(content))
            stored.append(_name(content))
    assert not caught.value.retryable
    assert stored
    store.sync()
    assert sorted(_assert_whole(store)) == sorted(stored)
    assert list((small_file_system / "repo" / "tmp").iterdir()) == []
    store.delete(stored[0])
    store.sync()
    again = os.urandom(150_000)
    store.put(_name(again), Sealed(again))
    assert _name(again) in _assert_whole(store)
    store.close()


# --- not writable ----------------------------------------------------------------------------------------------------


def test_a_file_system_turned_read_only_refuses_writes_and_still_reads_and_locks(mount: Mount) -> None:
    place = mount("-t", "tmpfs", "-o", "size=1m", "turned")
    store = LocalStore.open(place)
    store.put("p/ab/x", Sealed(b"content"))
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True, timeout=_SECONDS)
    with pytest.raises(StoreRefused):
        store.put("p/ab/y", Sealed(b"more"))
    with pytest.raises(StoreRefused):
        store.delete("p/ab/x")
    with store.lock(exclusive=True):
        assert store.get("p/ab/x") == b"content"
    assert listed(store) == {"p/ab/x": 7}
    opened_later = LocalStore.open(place)
    assert not opened_later.abilities.write
    assert not opened_later.abilities.delete
    with pytest.raises(StoreRefused):
        opened_later.put("p/ab/y", Sealed(b"more"))
    with opened_later.lock(exclusive=False):
        assert listed(opened_later) == {"p/ab/x": 7}


@pytest.fixture
def place_of_nobody() -> Iterator[Path]:
    """A directory of, and a test run by, a user whom permissions bind."""
    place = Path(tempfile.mkdtemp(prefix="lamella-test-"))
    place.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, place)
        if os.geteuid() == 0:
            os.chown(place, _NOBODY, _NOBODY)
            os.seteuid(_NOBODY)
            stack.callback(os.seteuid, 0)
        yield place


def test_a_directory_without_write_permission_refuses(place_of_nobody: Path) -> None:
    store = LocalStore.open(place_of_nobody)
    store.put("p/ab/x", Sealed(b"content"))
    (place_of_nobody / "p" / "ab").chmod(0o500)
    try:
        with pytest.raises(StoreRefused):
            store.put("p/ab/y", Sealed(b"more"))
        with pytest.raises(StoreRefused):
            store.delete("p/ab/x")
    finally:
        (place_of_nobody / "p" / "ab").chmod(0o700)
    assert list((place_of_nobody / "tmp").iterdir()) == []
    assert listed(store) == {"p/ab/x": 7}


def test_a_directory_that_cannot_be_read_never_looks_empty(place_of_nobody: Path) -> None:
    store = LocalStore.open(place_of_nobody)
    store.put("p/ab/x", Sealed(b"content"))
    (place_of_nobody / "p").chmod(0o000)
    try:
        for prefix in ("", "p/", "p/ab/"):
            with pytest.raises(StoreRefused):
                listed(store, prefix)
        with pytest.raises(StoreRefused):
            store.get("p/ab/x")
        with pytest.raises(StoreRefused):
            store.stat("p/ab/x")
    finally:
        (place_of_nobody / "p").chmod(0o700)


# --- planted ---------------------------------------------------------------------------------------------------------


def test_a_link_in_place_of_an_object_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"not yours")
    store = LocalStore.open(tmp_path / "repo", create=True)
    store.put("p/ab/x", Sealed(b"not yours"))
    planted = tmp_path / "repo" / "p" / "ab" / "y"
    planted.symlink_to(secret)
    with pytest.raises(StoreRefused):
        store.get("p/ab/y")
    with pytest.raises(StoreRefused):
        store.stat("p/ab/y")
    for content in (b"not yours", b"other"):
        with pytest.raises(StoreRefused):
            store.put("p/ab/y", Sealed(content))
    assert listed(store) == {"p/ab/x": 9}
    store.delete("p/ab/y")
    assert not planted.is_symlink()
    assert secret.read_bytes() == b"not yours"


def test_a_link_in_place_of_a_directory_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_bytes(b"outside")
    store = LocalStore.open(tmp_path / "repo", create=True)
    (tmp_path / "repo" / "p").symlink_to(outside)
    with pytest.raises(StoreRefused):
        store.get("p/x")
    with pytest.raises(StoreRefused):
        store.put("p/y", Sealed(b"y"))
    with pytest.raises(StoreRefused):
        store.delete("p/x")
    with pytest.raises(StoreRefused):
        listed(store, "p/")
    assert [path.name for path in outside.iterdir()] == ["x"]


def test_a_pipe_or_device_in_place_of_an_object_does_not_stop_us(tmp_path: Path) -> None:
    store = LocalStore.open(tmp_path / "repo", create=True)
    os.mkfifo(tmp_path / "repo" / "lamella")
    for call in (
        lambda: store.get("lamella"),
        lambda: store.stat("lamella"),
        lambda: store.put("lamella", Sealed(b"")),
    ):
        with pytest.raises(StoreRefused):
            call()
    with pytest.raises(StoreRefused), store.lock(exclusive=False):
        pytest.fail("locked a pipe")
    assert listed(store) == {}


def test_a_directory_in_place_of_an_object_refuses_the_put(tmp_path: Path) -> None:
    store = LocalStore.open(tmp_path / "repo", create=True)
    (tmp_path / "repo" / "p" / "ab").mkdir(parents=True)
    with pytest.raises(StoreRefused):
        store.put("p/ab", Sealed(b""))
    with pytest.raises(ObjectNotFound):
        store.get("p/ab")


# --- vanished --------------------------------------------------------------------------------------------------------


def _assert_unavailable(store: LocalStore) -> None:
    for prefix in ("", "p/", "nothing/"):
        with pytest.raises(StoreUnavailable):
            listed(store, prefix)
    with pytest.raises(StoreUnavailable):
        store.get("p/ab/nothing")
    with pytest.raises(StoreUnavailable):
        store.stat("p/ab/nothing")
    with pytest.raises(StoreUnavailable):
        store.sync()


def test_a_removed_root_is_unavailable_not_empty(tmp_path: Path) -> None:
    store = LocalStore.open(tmp_path / "repo", create=True)
    store.put("p/ab/x", Sealed(b"content"))
    shutil.rmtree(tmp_path / "repo")
    _assert_unavailable(store)
    with pytest.raises(StoreUnavailable):
        store.get("p/ab/x")
    with pytest.raises(StoreUnavailable):
        store.put("p/ab/y", Sealed(b"more"))
    with pytest.raises(StoreUnavailable):
        store.delete("p/ab/x")


def test_another_directory_in_the_place_of_the_root_is_unavailable_not_empty(tmp_path: Path) -> None:
    store = LocalStore.open(tmp_path / "repo", create=True)
    store.put("p/ab/x", Sealed(b"content"))
    (tmp_path / "repo").rename(tmp_path / "moved")
    (tmp_path / "repo").mkdir()
    _assert_unavailable(store)
    assert list((tmp_path / "repo").iterdir()) == []


def test_an_unmounted_root_is_unavailable_not_empty(mount: Mount) -> None:
    place = mount("-t", "tmpfs", "-o", "size=1m", "leaving")
    store = LocalStore.open(place)
    store.put("p/ab/x", Sealed(b"content"))
    subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=_SECONDS)
    _assert_unavailable(store)
    assert list(place.iterdir()) == []


# --- killed ----------------------------------------------------------------------------------------------------------

_PUT_FOR_EVER = """
import hashlib, os, sys, threading
from lamella.stores.local.store import LocalStore

store = LocalStore.open(sys.argv[1])

def put_for_ever():
    while True:
        content = os.urandom(64) * 4096
        name = hashlib.sha256(content).hexdigest()
        store.put(f"p/{name[:2]}/{name}", content)
        os.write(1, f"p/{name[:2]}/{name}\\n".encode())

for _ in range(3):
    threading.Thread(target=put_for_ever).start()
"""


def test_killed_in_the_middle_of_puts_every_visible_object_is_whole(tmp_path: Path) -> None:
    store = LocalStore.open(tmp_path / "repo", create=True)
    acknowledged: set[str] = set()
    for round_number in range(4):
        with _child(_PUT_FOR_EVER, str(tmp_path / "repo")) as process:
            acknowledged.update(_line(process) for _ in range(10 + round_number))
    visible = _assert_whole(store)
    assert "" not in acknowledged, "the child ended by itself"
    assert acknowledged <= set(visible)
    left = len(list((tmp_path / "repo" / "tmp").iterdir()))
    assert store.sweep(0) == left
    assert list((tmp_path / "repo" / "tmp").iterdir()) == []
    assert set(_assert_whole(store)) == set(visible)


# --- shared with another process -------------------------------------------------------------------------------------

_HOLD = """
import sys
from lamella.stores.local.store import LocalStore

store = LocalStore.open(sys.argv[1])
with store.lock(exclusive=sys.argv[2] == "exclusive"):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("marker", [True, False])
def test_two_processes_exclude_each_other(tmp_path: Path, marker: bool) -> None:
    store = LocalStore.open(tmp_path / "repo", create=True)
    if marker:
        store.put("lamella", Sealed(b"marker"))
    with _child(_HOLD, store.url, "exclusive") as process:
        assert _line(process) == "held"
        for exclusive in (True, False):
            with pytest.raises(Locked), store.lock(exclusive=exclusive):
                pytest.fail("two exclusive holders")
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert _line(process) == "released"
        with store.lock(exclusive=True):
            pass
    with _child(_HOLD, store.url, "shared") as process:
        assert _line(process) == "held"
        with store.lock(exclusive=False):
            pass
        with pytest.raises(Locked), store.lock(exclusive=True):
            pytest.fail("exclusive beside shared")


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    store = LocalStore.open(tmp_path / "repo", create=True)
    store.put("lamella", Sealed(b"marker"))
    with _child(_HOLD, store.url, "exclusive") as process:
        assert _line(process) == "held"
        process.kill()
        process.wait(_SECONDS)
        with store.lock(exclusive=True):
            pass


# --- which file systems lock properly --------------------------------------------------------------------------------


def test_the_lock_is_trusted_only_on_known_file_systems(mount: Mount) -> None:
    under = mount("-t", "tmpfs", "-o", "size=1m", "under")
    assert LocalStore.open(under).abilities.exclusive_lock
    for name in ("lower", "upper", "work"):
        (under / name).mkdir()
    with Path("/proc/filesystems").open(encoding="ascii") as known:
        require(
            "overlay", any(line.split()[-1] == "overlay" for line in known), "the kernel has no overlay file system"
        )
    options = f"lowerdir={under}/lower,upperdir={under}/upper,workdir={under}/work"
    over = mount("-t", "overlay", "-o", options, "overlay")
    assert not LocalStore.open(over).abilities.exclusive_lock
    # Bound below the overlay's directory: the path now passes through it, the files do not lie on it.
    (over / "inside").mkdir()
    subprocess.run(["mount", "--bind", str(under), str(over / "inside")], check=True, timeout=_SECONDS)
    try:
        assert LocalStore.open(over / "inside").abilities.exclusive_lock
    finally:
        subprocess.run(["umount", "--lazy", str(over / "inside")], check=True, timeout=_SECONDS)
