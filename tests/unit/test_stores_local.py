"""What the local store leaves on the disk, what it makes durable, and how it walks a directory others may write to."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.base.errors import (
    Locked,
    NoRepository,
    ObjectNotFound,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    UsageError,
)
from lamella.base.trust import Sealed
from lamella.stores.base import range_end
from lamella.stores.local import flock as _flock
from lamella.stores.local.flock import file_system_in, file_system_of
from lamella.stores.local.refusal import store_error
from lamella.stores.local.store import LocalStore
from lamella_kit.store_reading import listed

WEEK_SECONDS = 7 * 86400


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "repo"


@pytest.fixture
def store(place: Path) -> LocalStore:
    return LocalStore.open(place, create=True)


# --- opening ---------------------------------------------------------------------------------------------------------


def test_opening_needs_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for wrong in ("missing", "file", "file/below"):
        with pytest.raises(NoRepository):
            LocalStore.open(tmp_path / wrong)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_create_makes_one_directory_and_not_those_above(tmp_path: Path) -> None:
    with pytest.raises(NoRepository):
        LocalStore.open(tmp_path / "disk" / "repo", create=True)
    assert list(tmp_path.iterdir()) == []
    LocalStore.open(tmp_path / "repo", create=True).put("a", Sealed(b"x"))
    assert LocalStore.open(tmp_path / "repo", create=True).get("a") == b"x"
    with pytest.raises(UsageError):
        LocalStore.open(tmp_path / "repo", create=True, read_only=True)


def test_the_url_is_absolute(place: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.parent)
    relative = LocalStore.open("repo")
    assert relative.url == store.url == str(place)
    monkeypatch.chdir("/")
    store.put("a", Sealed(b"x"))
    assert relative.get("a") == b"x"
    relative.sync()


def test_closing_twice_is_allowed_and_gives_the_descriptor_back(store: LocalStore) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (as many entries as descriptors)
    store.close()
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1  # noqa: PTH208
    for call in (store.sync, lambda: store.put("a", Sealed(b"")), lambda: store.delete("a"), lambda: store.sweep(0)):
        with pytest.raises(StoreError):
            call()


# --- files -----------------------------------------------------------------------------------------------------------


def test_objects_are_private_files_and_nothing_else_is_left(place: Path, store: LocalStore) -> None:
    store.put("p/ab/x", Sealed(b"content"))
    store.put("p/ab/x", Sealed(b"content"))
    with pytest.raises(StoreRefused):
        store.put("p/ab/x", Sealed(b"other"))
    found = {str(path.relative_to(place)): path.lstat() for path in place.rglob("*")}
    assert set(found) == {"tmp", "p", "p/ab", "p/ab/x"}
    assert {name: stat.S_IMODE(status.st_mode) for name, status in found.items()} == {
        "tmp": 0o700,
        "p": 0o700,
        "p/ab": 0o700,
        "p/ab/x": 0o600,
    }
    assert found["p/ab/x"].st_nlink == 1


def test_no_call_leaks_a_descriptor(place: Path, store: LocalStore) -> None:
    (place / "link").symlink_to(place)
    store.put("p/ab/x", Sealed(b"content"))

    def attempt(call: Callable[[], object]) -> None:
        with pytest.raises(StoreError):
            call()

    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(5):
        store.put("p/ab/x", Sealed(b"content"))
        attempt(lambda: store.put("p/ab/x", Sealed(b"other")))
        attempt(lambda: store.put("p/ab/x/y", Sealed(b"below an object")))
        attempt(lambda: store.get("p/ab/x", 0, 100))
        attempt(lambda: store.get("p/ab"))
        attempt(lambda: store.get("p/none/x"))
        attempt(lambda: store.get("link/x"))
        attempt(lambda: store.stat("p/ab"))
        next(store.list(""))
        with store.lock(exclusive=True), pytest.raises(Locked), store.lock(exclusive=False):
            pytest.fail("locked twice")
        store.sync()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_names_below_tmp_are_kept_for_unfinished_writes(store: LocalStore) -> None:
    for name in ("tmp", "tmp/x", "tmp/" + "0" * 32):
        with pytest.raises(StoreRefused):
            store.put(name, Sealed(b"x"))
        with pytest.raises(StoreRefused):
            store.get(name)
    store.put("p/tmp/x", Sealed(b"only the root's tmp is special"))
    store.put("tmpx", Sealed(b""))
    assert set(listed(store)) == {"p/tmp/x", "tmpx"}


def test_a_file_that_shrinks_while_it_is_read_is_an_error(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("a", Sealed(b"0123456789"))
    whole = os.pread
    monkeypatch.setattr(
        os, "pread", lambda fd, length, offset: whole(fd, min(length, 4), offset) if offset < 8 else b""
    )
    with pytest.raises(StoreError) as caught:
        store.get("a")
    assert caught.value.obj == "a"
    assert store.get("a", 1, 7) == b"1234567", "a read in pieces is whole"


# --- durability ------------------------------------------------------------------------------------------------------


@pytest.fixture
def synced(place: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths given to fsync, below the root, in order; room is kept back before."""
    store.sync()
    paths: list[str] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        fsync(descriptor)
        paths.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), place))  # noqa: PTH115

    monkeypatch.setattr(os, "fsync", recorded)
    return paths


def test_a_file_is_synced_before_its_name_and_directories_at_sync(store: LocalStore, synced: list[str]) -> None:
    store.put("p/ab/x", Sealed(b"content"))
    assert len(synced) == 1
    assert synced[0].startswith("tmp/")
    synced.clear()
    store.sync()
    assert synced == ["p/ab", "p", "."]
    synced.clear()
    store.sync()
    assert synced == []


def test_names_that_others_may_not_have_synced_are_synced_too(
    place: Path, store: LocalStore, synced: list[str]
) -> None:
    (place / "p").mkdir()
    (place / "p" / "x").write_bytes(b"copied here")
    store.put("p/x", Sealed(b"copied here"))
    assert synced[1:] == ["p/x"]
    synced.clear()
    store.sync()
    assert synced == ["p", "."]
    synced.clear()
    store.delete("p/gone")
    store.sync()
    assert synced == ["p", "."]


class Full:
    """Writing files fails until there is no reserve any more: as on a disk without a free block."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reserve = place / "tmp" / "reserve"
        self.errno = errno.ENOSPC
        self._write = os.write
        monkeypatch.setattr(os, "write", self._full)

    def _full(self, descriptor: int, content: bytes) -> int:
        if self.reserve.exists():
            raise OSError(self.errno, os.strerror(self.errno))
        return self._write(descriptor, content)


@pytest.fixture
def full(place: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> Full:
    store.sync()
    return Full(place, monkeypatch)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_what_is_kept_back_is_given_up_for_small_writes_under_the_exclusive_lock(
    store: LocalStore, full: Full, number: int
) -> None:
    assert full.reserve.stat().st_size == 1 << 20
    full.errno = number
    with pytest.raises(StoreFull):
        store.put("w/x", Sealed(b"small"))
    with store.lock(exclusive=False), pytest.raises(StoreFull):
        store.put("w/x", Sealed(b"small"))
    with store.lock(exclusive=True):
        with pytest.raises(StoreFull):
            store.put("p/x", Sealed(bytes((1 << 18) + 1)))
        assert full.reserve.exists()
        store.put("w/x", Sealed(bytes(1 << 18)))
        assert not full.reserve.exists()
        store.sync()
        assert full.reserve.stat().st_size == 1 << 20, "as soon as there is room"
    with pytest.raises(StoreFull):
        store.put("w/y", Sealed(b"small"))
    assert [path.name for path in full.reserve.parent.iterdir()] == ["reserve"]
    assert set(listed(store)) == {"w/x"}
    assert store.sweep(0) == 0


def test_nothing_is_given_up_for_other_failures(store: LocalStore, full: Full) -> None:
    full.errno = errno.EIO
    with store.lock(exclusive=True), pytest.raises(StoreUnavailable):
        store.put("w/x", Sealed(b"small"))
    assert full.reserve.exists()


def test_nothing_is_kept_back_where_it_does_not_fit_or_may_not_be(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"of somebody else")
    store = LocalStore.open(place, create=True)
    (place / "tmp").mkdir()
    (place / "tmp" / "reserve").symlink_to(outside)
    store.sync()
    assert stat.S_ISREG((place / "tmp" / "reserve").lstat().st_mode)
    assert outside.read_bytes() == b"of somebody else"

    (place / "tmp" / "reserve").unlink()
    monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    LocalStore.open(place).sync()
    assert not list((place / "tmp").iterdir())
    monkeypatch.undo()

    LocalStore.open(place, read_only=True).sync()
    assert not list((place / "tmp").iterdir())


def test_after_a_failed_sync_no_later_one_succeeds(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("p/x", Sealed(b"content"))

    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(StoreError) as caught:
            store.sync()
        assert not caught.value.retryable
    with pytest.raises(StoreError) as caught:
        store.sync()
    assert not caught.value.retryable


def test_a_file_that_cannot_be_synced_gets_no_name(
    place: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(StoreUnavailable):
            store.put("p/x", Sealed(b"content"))
    assert listed(store) == {}
    assert list((place / "tmp").iterdir()) == []
    store.put("p/x", Sealed(b"content"))
    assert store.get("p/x") == b"content"


def test_a_file_system_that_cannot_sync_directories_syncs_all(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a", Sealed(b"x"))
    all_synced: list[bool] = []

    def unsupported(descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", unsupported)
    monkeypatch.setattr(os, "sync", lambda: all_synced.append(True))
    store.sync()
    assert all_synced == [True]


# --- listing ---------------------------------------------------------------------------------------------------------


def test_what_is_no_object_is_left_out(place: Path, store: LocalStore) -> None:
    store.put("p/ab/x", Sealed(b"content"))
    outside = place.parent / "outside"
    outside.mkdir()
    (outside / "y").write_bytes(b"")
    (place / "linked").symlink_to(outside)
    (place / "p" / "link").symlink_to(outside / "y")
    for name in ("UPPER", ".hidden", "sp ace", "lost+found"):
        (place / name).mkdir()
        (place / name / "valid").write_bytes(b"")
    (place / "p" / "Upper").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(place) + b"/\xff")).write_bytes(b"")
    os.mkfifo(place / "p" / "pipe")
    assert listed(store) == {"p/ab/x": 7}


def test_invalid_names_are_borne_as_many_as_others(
    place: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may add objects may add some of invalid names, and would stop everybody else by a few."""
    store.put("a", Sealed(b"x"))
    (place / "p").mkdir()
    for number in range(1000):
        (place / f"A{number}").touch()
        (place / "p" / f"A{number}").symlink_to("nowhere")
    assert listed(store) == {"a": 1}
    monkeypatch.setattr("lamella.stores.local.directory.MOST_OTHERS", 2000)
    assert listed(store) == {"a": 1}
    (place / "p" / "B").touch()
    with pytest.raises(StoreRefused):
        listed(store)
    assert listed(store, "p/") == {}, "each listing counts for itself"


def test_directories_nested_too_deep_for_a_name_are_left_out(place: Path, store: LocalStore) -> None:
    store.put("/".join("d" * 128), Sealed(b"deepest"))
    directory = os.open(place, os.O_RDONLY)
    for _ in range(200):
        try:
            os.mkdir("e", dir_fd=directory)
        finally:
            below = os.open("e", os.O_RDONLY, dir_fd=directory)
            os.close(directory)
            directory = below
    os.close(directory)
    assert listed(store) == {"/".join("d" * 128): 7}


def test_a_file_that_vanishes_is_left_out_a_directory_is_an_error(place: Path, store: LocalStore) -> None:
    names = [f"k/{number}" for number in range(10)]
    for name in names:
        store.put(name, Sealed(b"x"))
    listing = store.list("k/")
    first = next(listing).name
    for name in set(names) - {first}:
        store.delete(name)
    assert list(listing) == []

    for number in range(10):
        store.put(f"p/{number}/x", Sealed(b"x"))
    listing = store.list("p/")
    first = next(listing).name
    for number in range(10):
        if f"p/{number}/x" != first:
            store.delete(f"p/{number}/x")
            (place / "p" / str(number)).rmdir()
    with pytest.raises(StoreUnavailable):
        list(listing)


# --- lock ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marker", [True, False])
def test_a_marker_that_changes_between_open_and_lock_is_locked_anew(
    place: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch, marker: bool
) -> None:
    if marker:
        store.put("lamella", Sealed(b"old"))
    real = _flock._try
    swapped: list[bool] = []

    def swapping(descriptor: int, exclusive: bool) -> bool:
        if not swapped:
            swapped.append(True)
            store.delete("lamella")
            store.put("lamella", Sealed(b"new"))
        return real(descriptor, exclusive)

    monkeypatch.setattr(_flock, "_try", swapping)
    with store.lock(exclusive=True), pytest.raises(Locked), store.lock(exclusive=False):
        pytest.fail("the first lock is on a file that nobody opens any more")


def test_waiting_tries_again_until_the_time_is_over(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    with store.lock(exclusive=True), pytest.raises(Locked), store.lock(exclusive=False, wait_seconds=0.12):
        pytest.fail("locked twice")
    assert sum(pauses) == pytest.approx(0.12)
    assert max(pauses) <= 0.05


def test_a_file_system_without_locks_refuses(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StoreRefused), store.lock(exclusive=False):
        pytest.fail("locked")


# --- sweep -----------------------------------------------------------------------------------------------------------


def test_sweep_removes_old_unfinished_writes_only(place: Path, store: LocalStore) -> None:
    assert store.sweep(0) == 0
    store.put("p/x", Sealed(b"content"))
    now = (place / "p" / "x").stat().st_mtime
    ages = {"0" * 32: 8, "1" * 32: 6, "a" * 31: 8, "F" * 32: 8}
    for name, days in ages.items():
        path = place / "tmp" / name
        path.write_bytes(b"half")
        os.utime(path, (now - days * 86400,) * 2)
    (place / "tmp" / ("2" * 32)).mkdir()
    assert store.sweep(WEEK_SECONDS) == 1
    assert {path.name for path in (place / "tmp").iterdir()} == {"1" * 32, "2" * 32, "a" * 31, "F" * 32}
    assert store.sweep(5 * 86400) == 1
    assert store.get("p/x") == b"content"


def test_sweep_is_writing(place: Path, store: LocalStore) -> None:
    with pytest.raises(StoreRefused):
        LocalStore.open(place, read_only=True).sweep(0)


# --- pure parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EROFS, StoreRefused),
        (errno.EACCES, StoreRefused),
        (errno.EPERM, StoreRefused),
        (errno.ENAMETOOLONG, StoreRefused),
        (errno.EIO, StoreUnavailable),
        (errno.ESTALE, StoreUnavailable),
        (errno.ENODEV, StoreUnavailable),
        (errno.EMFILE, StoreUnavailable),
    ],
)
def test_what_an_error_of_the_system_means(number: int, expected: type[StoreError]) -> None:
    for absent in (True, False):
        error = store_error(OSError(number, os.strerror(number)), Path("/r"), "p/x", absent=absent)
        assert type(error) is expected
        assert error.obj == "p/x"


def test_a_missing_file_is_a_missing_object_only_where_one_is_looked_for() -> None:
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    assert type(store_error(missing, Path("/r"), "p/x", absent=True)) is ObjectNotFound
    assert type(store_error(missing, Path("/r"), "p/x", absent=False)) is StoreUnavailable


MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
2 27 0:33 / /with\\040space rw shared:7 master:1 - nfs4 host:/x rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
90 27 0:61 / /home rw shared:1 - fuse.sshfs - rw
"""


@pytest.mark.parametrize(
    ("mount", "expected"),
    [("27", "ext4"), ("2", "nfs4"), ("22", "proc"), ("90", "fuse.sshfs"), ("7", ""), ("", ""), ("1", "")],
)
def test_the_file_system_is_that_of_the_mount_number(mount: str, expected: str) -> None:
    assert file_system_in(MOUNTS, mount) == expected


def test_the_kernel_names_the_file_system_of_proc() -> None:
    descriptor = os.open("/proc/self", os.O_RDONLY)
    try:
        assert file_system_of(descriptor) == "proc"
    finally:
        os.close(descriptor)


@given(
    size=st.integers(0, 40),
    offset=st.integers(-3, 45),
    length=st.none() | st.integers(-3, 45),
)
def test_a_range_is_whole_or_an_error(size: int, offset: int, length: int | None) -> None:
    content = bytes(range(size))
    inside = offset in range(size + 1) and (length is None or offset + length in range(offset, size + 1))
    if inside:
        piece = content[offset : range_end("a", size, offset, length)]
        assert piece == content[offset:][: size if length is None else length]
        assert length is None or len(piece) == length
    else:
        with pytest.raises(StoreError):
            range_end("a", size, offset, length)
