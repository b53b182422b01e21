"""A ZFS pool in the guest's memory, and volumes in it as the source contract changes them."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from random import Random

from lamella.sources.base import Keeping, Source
from lamella.sources.registry import open_kept_source
from lamella.sources.zfs import commands
from lamella_kit.qubes_layouts import FakeVolume, Layout
from tests.guest.lvm import run
from tests.guest.machine import ZFS
from tools.guest_zfs import MODULES

MACHINE = "0123456789abcdef"
OWNER = "00c0ffee"
BLOCK = 8192
POOL = "tank"
_DISK, _DISK_BYTES = Path("/run/zfs-disk"), 512 << 20

_BLKDISCARD = 0x1277  # linux/fs.h
_ARC_BYTES = 128 << 20
_KINDS = ["write"] * 8 + ["write again", "zero", "resize"] + ["discard"] * 3
_numbers = count(1)


@contextmanager
def zfs_pool() -> Iterator[str]:
    """The pool; it is exported at the end, since one that is imported keeps the guest from ending."""
    if not Path("/sys/module/zfs").exists():
        for name in MODULES:
            more = [f"zfs_arc_max={_ARC_BYTES}"] if name == "zfs" else []
            run("/run/busybox", "insmod", ZFS / f"{name}.ko", *more)
    # A file: of a disk zpool makes partitions, and waits for udev to show them.
    with _DISK.open("wb") as file:
        file.truncate(_DISK_BYTES)
    run("zpool", "create", "-f", "-o", "autotrim=on", "-O", "compression=lz4", POOL, _DISK)
    try:
        yield POOL
    finally:
        run("zpool", "export", "-f", POOL)
        _DISK.unlink()


class ZfsVolume:
    """A volume of the contract (lamella_kit.volumes); sizes are rounded up to blocks."""

    def __init__(self, name: str = "", block: int = BLOCK, parent: str = POOL) -> None:
        self.name = name or f"{parent}/vm-{next(_numbers)}"
        self.block = block

    @property
    def path(self) -> Path:
        return Path(f"zfs:{self.name}")

    @property
    def size(self) -> int:
        return int(run("zfs", "get", "-Hpo", "value", "volsize", self.name))

    def exists(self) -> bool:
        command = ["zfs", "list", self.name]
        return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0

    def fill(self, content: bytes) -> None:
        size = self.rounded(len(content))
        if not self.exists():
            run("zfs", "create", "-s", "-b", str(self.block), "-V", str(size), self.name)
        else:
            self.resize(size)
            self.discard(0, size)
        self.write(0, content)

    def write(self, offset: int, content: bytes) -> None:
        if offset + len(content) > self.size:
            self.resize(offset + len(content))
        with self.opened() as fd:
            os.pwrite(fd, content, offset)
            os.fsync(fd)

    def discard(self, offset: int, length: int) -> None:
        with self.opened() as fd:
            fcntl.ioctl(fd, _BLKDISCARD, struct.pack("=QQ", offset, length))

    def resize(self, size: int) -> None:
        if self.rounded(size) != self.size:
            run("zfs", "set", f"volsize={self.rounded(size)}", self.name)

    def content(self) -> bytes:
        fd = commands.opened(self.name)
        try:
            return os.pread(fd, self.size, 0)
        finally:
            os.close(fd)

    def remove(self) -> None:
        run("zfs", "destroy", "-r", self.name)

    def replace(self, content: bytes) -> None:
        new = ZfsVolume(block=self.block)
        new.fill(content)
        self.remove()
        run("zfs", "rename", new.name, self.name)

    def sibling(self) -> ZfsVolume:
        return ZfsVolume(block=self.block)

    def source(self, owner: str = OWNER) -> Source:
        return open_kept_source(str(self.path), MACHINE, Keeping(owner))

    def destroy(self) -> None:
        """Remove it if it is there."""
        if self.exists():
            self.remove()

    def moments(self) -> list[str]:
        """Names of its snapshots and bookmarks, with their marks."""
        return [one.mark + one.name for one in commands.moments(self.name)]

    def rounded(self, size: int) -> int:
        return max(self.block, -(-size // self.block) * self.block)

    @contextmanager
    def opened(self) -> Iterator[int]:
        found = commands.opened(self.name)
        fd = os.open(f"/proc/self/fd/{found}", os.O_RDWR)
        os.close(found)
        try:
            yield fd
        finally:
            os.close(fd)


class ZfsChanges:
    """Random changes to a volume, by a guest and its administrator."""

    def __init__(self, volume: ZfsVolume, chance: Random, most: int) -> None:
        self.volume, self.most = volume, most
        self.done: Counter[str] = Counter()
        self._random = chance

    def __enter__(self) -> ZfsChanges:
        self.volume.fill(self._random.randbytes(self.most // 2))
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def change(self, count: int, earlier: Path | None = None) -> None:
        """Make `count` changes."""
        for _ in range(count):
            name = self._random.choice(_KINDS)
            self.done[name] += 1
            self._make(name)

    def _make(self, name: str) -> None:
        size = self.volume.size
        if name == "resize":
            self.volume.resize(self._random.randrange(self.volume.block, self.most))
            return
        offset = self._random.randrange(size)
        length = min(self._random.choice([1, 512, 4096, 65536, 5 * 65536, 20 * 65536]), size - offset)
        if name == "discard":
            start = offset // 512 * 512
            self.volume.discard(start, min(-(-length // 512) * 512, size - start))
        elif name == "zero":
            self.volume.write(offset, bytes(length))
        elif name == "write again":
            self.volume.write(offset, self.volume.content()[offset : offset + length])
        else:
            self.volume.write(offset, self._random.randbytes(length))


class ZfsLayout:
    """A qube's volumes in a pool as the driver zfs of Qubes OS lays them out: a running qube has the volume itself."""

    driver = "zfs"

    def config(self) -> dict[str, str]:
        return {"container": POOL}

    def vid(self, kind: str, qube: str, volume: str) -> str:
        return f"{POOL}/{qube}/{volume}"

    def path(self, vid: str, suffix: str = "") -> Path:
        """The device: there is no udev to make a link. Of what is not there, where the link would be."""
        if not ZfsVolume(vid + suffix).exists():
            return Path("/dev/zvol") / f"{vid}{suffix}"
        fd = commands.opened(vid + suffix)
        try:
            return Path(f"/proc/self/fd/{fd}").readlink()
        finally:
            os.close(fd)

    def live(self, vid: str) -> Path:
        return self.path(vid)

    def create(self, volume: FakeVolume) -> None:
        if volume.save_on_stop:
            self._make(volume.vid, volume.size)

    def start(self, volume: FakeVolume) -> None:
        if volume.name == "volatile":
            self._make(volume.vid, volume.size)

    def stop(self, volume: FakeVolume) -> None:
        if volume.name == "volatile":
            run("zfs", "destroy", "-r", volume.vid)

    def remove(self, volume: FakeVolume) -> None:
        if ZfsVolume(volume.vid).exists():
            run("zfs", "destroy", "-r", volume.vid)

    def resize(self, volume: FakeVolume, size: int) -> None:
        run("zfs", "set", f"volsize={size}", volume.vid)

    def take(self, volume: FakeVolume, other: Layout, vid: str) -> None:
        assert other is self, "there is one pool"
        if ZfsVolume(vid).exists():
            run("zfs", "rename", "-p", vid, volume.vid)

    def import_begin(self, volume: FakeVolume, size: int) -> Path:
        self._make(f"{volume.vid}-import", size)
        return self.path(volume.vid, "-import")

    def import_end(self, volume: FakeVolume, *, success: bool) -> None:
        if success:
            self.remove(volume)
            run("zfs", "rename", f"{volume.vid}-import", volume.vid)
            volume.size = ZfsVolume(volume.vid).size
        else:
            run("zfs", "destroy", f"{volume.vid}-import")

    def _make(self, vid: str, size: int) -> None:
        run("zfs", "create", "-p", "-s", "-V", str(size), vid)
