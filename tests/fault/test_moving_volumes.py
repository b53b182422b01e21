"""A volume that moves while it is read is never called complete, and one that comes to rest is saved as it is then."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamella.operations.backup.story import BackupOptions, BackupResult, VolumeResult
from lamella.operations.look import listing
from lamella.operations.look.description import describe
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from lamella.run.spawn import run
from lamella.sources import frozen_file
from lamella.sources.file import FileSource
from lamella.sources.frozen_file import FrozenFile
from lamella.stores.memory import MemoryStore
from lamella_kit.image_files import loop_device, mounted, sparse_file
from tests.fault.world import SECRET, Truth, backup, check_sound, host_at, init, volume
from tests.features import require
from tests.unit.real_devices import need_devices

MACHINE = "0123456789abcdef"
MIB = 1 << 20
SIZE = 16 * MIB
TRIES = 50
OLD, NEW = b"old!" * 1024, b"new!" * 1024
ONE_MOMENT = BackupOptions(chunk_log2=16, workers=1, require_consistent=True)
Deed = Callable[[int], None]


@pytest.fixture(scope="module")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An ext4 of its own."""
    place = tmp_path_factory.mktemp("ext4")
    image, mount = sparse_file(place / "fs.img", 128 * MIB, {}), place / "mnt"
    mount.mkdir()
    with need_devices():
        run(["mkfs.ext4", "-q", str(image)], timeout_seconds=60)
        with loop_device(image) as device, mounted(str(device), mount, kind="ext4"):
            yield mount


@contextmanager
def at_each_read(monkeypatch: pytest.MonkeyPatch, deed: Deed) -> Iterator[None]:
    """The real driver; `deed` is called with the number of each read before it is done, over all freezes."""
    numbers = iter(range(1_000_000))

    class Disturbed(FrozenFile):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            deed(next(numbers))
            super().read_into(offset, buffer)

    with monkeypatch.context() as patched:
        patched.setattr(frozen_file, "FrozenFile", Disturbed)
        yield


@contextmanager
def writing_on(path: Path, offset: int) -> Iterator[None]:
    """Somebody writes to one place all the time."""
    over = threading.Event()

    def write() -> None:
        while not over.wait(0.01):
            put(path, offset, OLD)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()


def put(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b", buffering=0) as image:
        image.seek(offset)
        image.write(content)


def only(result: BackupResult) -> VolumeResult:
    (row,) = [row for row in result.volumes if row.volume == "disk"]
    return row


def test_fifty_torn_images_are_reported_as_such_everywhere(
    ext4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer goes on for as long as the run: first where it was read already, then where it was not."""
    store, host, chance = MemoryStore(), host_at(tmp_path / "host"), random.Random(7)
    init(store, host)
    image = sparse_file(ext4 / "disk.img", SIZE, {0: random.Random(1).randbytes(SIZE)})
    for number in range(TRIES):
        at, old, new = chance.randrange(1, 4), chance.randrange(256), chance.randrange(256)

        def write(read: int, at: int = at, old: int = old, new: int = new) -> None:
            if read == at:
                put(image, (old % (at * 64)) * 65536, NEW)
                put(image, SIZE - 65536 - (new % ((4 - at) * 64)) * 65536, NEW)

        with at_each_read(monkeypatch, write), writing_on(image, chance.randrange(256) * 65536):
            result = backup(store, host, FileSource(image, MACHINE))
        row = only(result)
        assert (row.result, row.consistency, result.word) == ("changed", 5, "changed"), f"try {number}"
        assert any("changed while it was read" in text for text in result.warnings), f"try {number}"
    with Repository.open(store, SECRET, host) as repo:
        assert {one["result"] for one in listing.snapshots(repo)} == {"changed"}
        assert {describe(repo, one)["consistency"] for one in select(repo, ["disk"])} == {"changed"}


@pytest.mark.parametrize("deed", ["touch", "write"])
def test_what_came_to_rest_is_read_once_more_and_is_one_moment(
    deed: str, ext4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, host, truth = MemoryStore(), host_at(tmp_path / "host"), Truth()
    init(store, host)
    content = random.Random(2).randbytes(SIZE)
    image = sparse_file(ext4 / "disk.img", SIZE, {0: content})

    def disturb(read: int) -> None:
        if read == 2 and deed == "touch":
            os.utime(image)
        elif read == 2:
            put(image, MIB, NEW)
            put(image, 15 * MIB, NEW)

    with at_each_read(monkeypatch, disturb):
        result = backup(store, host, FileSource(image, MACHINE))
    row = only(result)
    assert (row.result, row.consistency, result.warnings) == ("complete", 1, [])
    assert row.read_bytes == 2 * SIZE
    truth.learn(result, {"disk": image.read_bytes()})
    check_sound(store, host, truth, tmp_path)


def test_where_one_moment_is_required_nothing_of_a_torn_volume_is_published(
    ext4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, host, truth = MemoryStore(), host_at(tmp_path / "host"), Truth()
    init(store, host)
    image = sparse_file(ext4 / "disk.img", SIZE, {0: random.Random(3).randbytes(SIZE)})
    with at_each_read(monkeypatch, lambda read: put(image, (read % 8) * MIB, NEW)):
        alone = backup(store, host, FileSource(image, MACHINE), options=ONE_MOMENT)
        assert (alone.snapshot, alone.word, only(alone).result) == ("", "incomplete", "failed")
        result = backup(store, host, FileSource(image, MACHINE), volume(OLD, "other"), options=ONE_MOMENT)
    assert (result.word, only(result).result) == ("incomplete", "failed")
    assert "changed while it was read" in only(result).error
    truth.learn(result, {"other": OLD})
    check_sound(store, host, truth, tmp_path)
    with Repository.open(store, SECRET, host) as repo:
        assert f"disk@{result.snapshot}" not in {one.text for one in select(repo, [])}
    # Just written, and still by now: one moment can be had.
    again = backup(store, host, FileSource(image, MACHINE), options=ONE_MOMENT)
    assert (only(again).result, only(again).consistency) == ("complete", 1)


def test_a_device_shows_writes_but_never_that_there_were_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, host = MemoryStore(), host_at(tmp_path / "host")
    init(store, host)
    backing = sparse_file(tmp_path / "backing", SIZE, {0: OLD * 100})
    with need_devices(), loop_device(backing) as device:
        source = FileSource(device, MACHINE, known_as=b"disk")
        still = only_device(backup(store, host, source))
        assert (still.result, still.consistency) == ("complete", 0)
        with at_each_read(monkeypatch, lambda read: put(device, 15 * MIB, NEW) if read == 2 else None):
            moved = only_device(backup(store, host, source))
        assert (moved.result, moved.consistency) == ("changed", 5)
        refused = only_device(backup(store, host, source, options=ONE_MOMENT))
        assert refused.result == "failed" and "may have changed" in refused.error


def only_device(result: BackupResult) -> VolumeResult:
    (row,) = result.volumes
    return row


def test_a_disk_that_qemu_has_open_is_named_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is QEMU's own; the writes are the test's."""
    require("qemu-nbd", shutil.which("qemu-io") is not None, "qemu-utils is not installed")
    store, host = MemoryStore(), host_at(tmp_path / "host")
    init(store, host)
    image = sparse_file(tmp_path / "disk.img", SIZE, {0: random.Random(4).randbytes(SIZE)})
    qemu = ["qemu-io", "-f", "raw", str(image)]
    with subprocess.Popen(qemu, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as running:
        assert running.stdin is not None and running.stdout is not None
        running.stdin.write(b"write 0 4k\n")
        while b"ops/sec" not in running.stdout.readline():
            pass
        with at_each_read(monkeypatch, lambda read: put(image, (read % 8) * MIB, NEW)):
            result = backup(store, host, FileSource(image, MACHINE))
        assert any("QEMU has it open for writing" in text for text in result.warnings), result.warnings
        with FileSource(image, MACHINE).freeze() as frozen:
            assert frozen.in_use() == "QEMU"
        running.stdin.close()
        running.wait(20)
    with FileSource(image, MACHINE).freeze() as frozen:
        assert frozen.in_use() == ""
