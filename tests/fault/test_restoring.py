"""Restores that are killed, fill the disk, or meet a disk or repository that lies. What the user fears: a restore that
says done and is wrong, and a restore that must start again.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamella.base.errors import IntegrityError, SourceError
from lamella.base.names import pack_name
from lamella.format.container import Kind
from lamella.format.encoder import Encoder
from lamella.operations.backup.story import BackupOptions
from lamella.operations.restore.restore import RestoreOptions, RestoreResult, plan_restore
from lamella.operations.shared.selection import select
from lamella.operations.shared.streaming import VolumeStream
from lamella.packs.blobmap import Place
from lamella.repository.repository import Repository
from lamella.sources import target as target_module
from lamella.sources.local_target import PARTIAL_SUFFIX
from lamella.stores.base import Store
from lamella.stores.memory import MemoryStore
from lamella.stores.wrap.wrapper import Wrapper
from lamella_kit.image_files import mounted
from tests.fault.world import CHUNK, SECRET, backup, host_at, init, volume
from tests.unit.real_devices import need_devices

MIB = 1 << 20
RAW = BackupOptions(chunk_log2=16, workers=1, compression="off")


class LoggedStore(Wrapper):
    """Appends each read to a file, so that what a killed process had read is known; each read takes a moment."""

    def __init__(self, inner: Store, log: Path, before: Callable[[int], None] = lambda count: None) -> None:
        super().__init__(inner)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._before = before
        self._count = 0

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self._count += 1
        self._before(self._count)
        os.write(self._log, f"{name} {offset} {length or 0}\n".encode())
        return super().get(name, offset, length)


class World:
    """One volume in a repository, and where each of its chunks lies."""

    def __init__(self, place: Path, content: bytes, options: BackupOptions = RAW) -> None:
        self.store = MemoryStore()
        self.host = host_at(place / "host")
        self.content = content
        self.log = place / "log"
        init(self.store, self.host)
        backup(self.store, self.host, volume(content), options=options)

    def restore(
        self, target: Path, options: RestoreOptions | None = None, before: Callable[[int], None] = lambda count: None
    ) -> RestoreResult:
        self.log.unlink(missing_ok=True)
        with Repository.open(LoggedStore(self.store, self.log, before), SECRET, self.host) as repo:
            one = select(repo, ["disk"])[0]
            return plan_restore(repo, one, target, options or RestoreOptions(workers=2)).execute()

    def places(self) -> dict[int, Place]:
        """Chunk -> the place of its blob."""
        with Repository.open(self.store, SECRET, self.host) as repo:
            repo.refresh_map()
            runs = [run for run in VolumeStream(repo, select(repo, ["disk"])[0]).runs() if isinstance(run.slot, bytes)]
            found = repo.blobs.find_many(Kind.CHUNK, [run.slot for run in runs if isinstance(run.slot, bytes)])
            return {run.first: found[run.slot][0] for run in runs if isinstance(run.slot, bytes)}

    def fetched(self, places: dict[int, Place]) -> list[tuple[int, int]]:
        """The first and the last chunk of each read that the last restore made of chunks."""
        starts = {(pack_name(place.pack), place.blob.offset): chunk for chunk, place in places.items()}
        ends = {
            (pack_name(place.pack), place.blob.offset + place.blob.sealed_length): chunk
            for chunk, place in places.items()
        }
        reads = [line.split() for line in self.log.read_text().splitlines()]
        rows = [(name, int(offset), int(length)) for name, offset, length in reads]
        return [
            (starts[name, offset], ends[name, offset + length])
            for name, offset, length in rows
            if (name, offset) in starts and (name, offset + length) in ends
        ]

    def right(self, path: Path) -> set[int]:
        """The chunks that a file holds."""
        there = path.read_bytes() if path.exists() else b""
        starts = range(0, len(self.content), CHUNK)
        return {at // CHUNK for at in starts if there[at : at + CHUNK] == self.content[at : at + CHUNK]}


@contextmanager
def ways(monkeypatch: pytest.MonkeyPatch, way: str) -> Iterator[None]:
    """Past the page cache where the file system of the tests can, or through it."""
    with monkeypatch.context() as patch:
        if way == "cached":
            patch.setattr(target_module, "reopened", lambda fd: -1)
        yield


@pytest.fixture(params=["direct", "cached"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with ways(monkeypatch, request.param):
        yield request.param


# --- killed -----------------------------------------------------------------------------------------------------------


def test_twenty_kills_and_nothing_that_was_on_the_disk_is_fetched_again(tmp_path: Path, way: str) -> None:
    world = World(tmp_path, random.Random(1).randbytes(48 * MIB + 777))
    places, target = world.places(), tmp_path / "out.img"
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    moments, kills, before = random.Random(2), 0, 0
    while kills < 20:
        held = world.right(partial)
        assert len(held) >= before, "an attempt took away what an earlier attempt had written"
        before = len(held)
        child = os.fork()
        if child == 0:
            # Slower with every kill, so that twenty fit into one restore.
            world.restore(target, before=lambda count: time.sleep(0.05) if count > 3 else None)
            os._exit(0)
        time.sleep(moments.uniform(0.05, 0.4))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or target.exists()
        if not os.WIFSIGNALED(status):
            target.unlink()  # it was quicker
            continue
        kills += 1
        if world.log.exists():
            assert not [read for read in world.fetched(places) if read[0] in held or read[1] in held]
    held = world.right(partial)
    result = world.restore(target)
    assert target.read_bytes() == world.content
    assert not [read for read in world.fetched(places) if read[0] in held or read[1] in held]
    assert result.bytes_written == sum(len(world.content[c * CHUNK :][:CHUNK]) for c in places.keys() - held)
    assert result.compared_bytes >= len(world.content)


def test_a_partial_file_of_anything_becomes_exactly_the_volume(tmp_path: Path, way: str) -> None:
    """Of another volume, longer, shorter, or sparse in other places: nothing of it shines through."""
    noise = random.Random(3)
    content = noise.randbytes(5 * CHUNK) + bytes(7 * CHUNK) + noise.randbytes(3 * CHUNK) + bytes(CHUNK) + b"tail"
    world = World(tmp_path, content)
    for old in (noise.randbytes(40 * CHUNK), b"x", bytes(17 * CHUNK), content[: 9 * CHUNK] + noise.randbytes(CHUNK)):
        target = tmp_path / "out.img"
        target.with_name(target.name + PARTIAL_SUFFIX).write_bytes(old)
        world.restore(target)
        assert target.read_bytes() == content
        if any(old):  # zeros that are there already stay
            assert target.stat().st_blocks * 512 <= 9 * CHUNK + 8192, "holes stay holes"
        target.unlink()


def test_in_place_only_what_differs_is_fetched(tmp_path: Path, way: str) -> None:
    world = World(tmp_path, random.Random(4).randbytes(20 * MIB + 5))
    places, target = world.places(), tmp_path / "out.img"
    changed = bytearray(world.content)
    for chunk in (3, 77, 200):
        changed[chunk * CHUNK + 9] ^= 1
    target.write_bytes(changed)
    result = world.restore(target, RestoreOptions(workers=2, in_place=True))
    assert target.read_bytes() == world.content
    assert sorted(world.fetched(places)) == [(3, 3), (77, 77), (200, 200)]
    assert result.bytes_written == 3 * CHUNK
    assert result.compared_bytes >= len(world.content)


# --- full -------------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_in_the_middle_is_gone_on_with(tmp_path: Path) -> None:
    world = World(tmp_path, random.Random(5).randbytes(20 * MIB))
    places, disk, image = world.places(), tmp_path / "disk", tmp_path / "ext4.img"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    with need_devices():
        assert os.system(f"mkfs.ext4 -q -F -m 0 {image}") == 0
        with mounted(str(image), disk, kind="ext4", options="loop"):
            target, filler = disk / "out.img", disk / "filler"
            partial = target.with_name(target.name + PARTIAL_SUFFIX)

            def fill(count: int) -> None:
                begun = partial.exists() and partial.stat().st_blocks * 512 >= 8 * MIB
                if begun and not filler.exists():
                    there = os.statvfs(disk)
                    with filler.open("wb") as file:
                        os.posix_fallocate(file.fileno(), 0, there.f_bavail * there.f_frsize - 2 * MIB)

            with pytest.raises(SourceError, match="No space left") as caught:
                world.restore(target, RestoreOptions(workers=1), before=fill)
            assert caught.value.hint and not target.exists()
            held = world.right(partial)
            assert len(held) >= 8 * MIB // CHUNK
            filler.unlink()
            world.restore(target)
            assert target.read_bytes() == world.content
            assert not [read for read in world.fetched(places) if read[0] in held or read[1] in held]


# --- lies -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [False, True])
def test_a_disk_that_loses_one_write_is_named(
    tmp_path: Path, way: str, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that it has written, and has not: found wherever it is, and the repository is not blamed."""
    world = World(tmp_path, random.Random(6).randbytes(9 * MIB))
    target = tmp_path / "out.img"
    if in_place:
        target.write_bytes(b"old")
    real = os.pwrite
    lost = iter((False, True))

    def pwrite(fd: int, part: memoryview, offset: int) -> int:
        return len(part) if next(lost, False) else real(fd, part, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(IntegrityError, match="does not hold what was written at offset") as caught:
            world.restore(target, RestoreOptions(workers=1, in_place=in_place))
    assert "sound here" in caught.value.hint
    assert in_place or not target.exists()
    world.restore(target, RestoreOptions(in_place=in_place))
    assert target.read_bytes() == world.content


def spoiled(place: Path, content: bytes, chunk: int, monkeypatch: pytest.MonkeyPatch) -> World:
    """A repository in which one chunk was altered after its id was computed, and sealed then: it authenticates."""
    wanted = content[chunk * CHUNK :][:CHUNK]
    real = Encoder.encode

    def encode(self: Encoder, part: bytes | memoryview) -> bytes:
        return real(self, b"\xff" + bytes(part)[1:] if bytes(part) == wanted else part)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode", encode)
        return World(place, content)


def test_a_chunk_sealed_wrongly_is_the_repositorys_fault(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = spoiled(tmp_path, random.Random(7).randbytes(5 * MIB), 40, monkeypatch)
    with pytest.raises(IntegrityError, match="content is not what its id says"):
        world.restore(tmp_path / "out.img")
    assert not (tmp_path / "out.img").exists()
