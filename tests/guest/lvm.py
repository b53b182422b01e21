"""A volume group with a thin pool on the guest's disk, thin volumes as the source contract changes them."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random

from lamella.sources.base import Keeping, Source
from lamella.sources.registry import open_kept_source
from tests.guest.machine import DISK

MACHINE = "0123456789abcdef"
OWNER = "00c0ffee"
EXTENT = 4096
"""Bytes; the smallest there are, so that volumes end anywhere within a block of the pool."""
BLOCK = 65536

_BLKDISCARD = 0x1277  # linux/fs.h
_SECONDS = 120
_KINDS = ["write"] * 8 + ["write again", "zero", "resize"] + ["discard"] * 3
_numbers = count(1)


def run(*words: str | Path, code: int = 0) -> str:
    """Run a command that must end with this code; return what it printed."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=_SECONDS, check=False)
    assert done.returncode == code, f"{' '.join(map(str, words))}: {done.returncode} {done.stderr} {done.stdout}"
    return done.stdout


@dataclass(frozen=True)
class Pool:
    """A thin pool in a volume group of its own name."""

    vg: str
    name: str = "pool"
    records: Path = Path("/run/lamella-records")

    @property
    def text(self) -> str:
        return f"{self.vg}/{self.name}"

    @property
    def device(self) -> str:
        return f"{self.vg}-{self.name}-tpool"

    def status(self) -> list[str]:
        """The words of its status, from the transaction on."""
        lines = run("dmsetup", "status", "--target", "thin-pool").splitlines()
        return next(
            line.split()[4:] for line in lines if line.startswith((f"{self.device}:", f"{self.vg}-{self.name}:"))
        )

    def volumes(self) -> dict[str, str]:
        """Name -> tags of every visible logical volume but the pool."""
        lines = run("lvs", "--noheadings", "--separator", "|", "-o", "lv_name,lv_tags", self.vg).splitlines()
        rows = (line.strip().split("|") for line in lines)
        return {name: tags for name, tags in rows if name != self.name}

    def volume(self, name: str = "") -> ThinVolume:
        """A volume that does not exist yet."""
        return ThinVolume(self, name or f"vm-{next(_numbers)}-private")

    def source(self, name: str, owner: str = OWNER) -> Source:
        keeping = Keeping(owner, records=self.records)
        return open_kept_source(f"lvm:{self.vg}/{name}", MACHINE, keeping)

    def clean(self) -> None:
        """Remove every thin volume, and whatever is reserved."""
        if self.status()[3] != "-":
            run("dmsetup", "message", self.device, "0", "release_metadata_snap")
        while names := [f"{self.vg}/{name}" for name in self.volumes()]:
            # What an external origin bears goes with it, and is missed by this command afterwards.
            subprocess.run(["lvremove", "-ff", "-y", "-q", *names], capture_output=True, timeout=_SECONDS, check=False)


@contextmanager
def pool_on(device: Path, vg: str = "vg", data_mib: int = 512, metadata_mib: int = 8) -> Iterator[Pool]:
    """A new volume group and pool on a device; both are gone at the end."""
    run("pvcreate", "-q", "-ff", "-y", device)
    run("vgcreate", "-q", "-s", f"{EXTENT}b", vg, device)
    sizes = ["-L", f"{data_mib}M", "--chunksize", f"{BLOCK}b", "--poolmetadatasize", f"{metadata_mib}M"]
    run("lvcreate", "-q", "--type", "thin-pool", *sizes, "--poolmetadataspare", "n", "-n", "pool", vg)
    try:
        yield Pool(vg)
    finally:
        run("vgremove", "-ff", "-y", "-q", vg)
        run("pvremove", "-ff", "-y", "-q", device)


@contextmanager
def pool_on_the_disk() -> Iterator[Pool]:
    """The pool that most tests use."""
    with pool_on(DISK) as pool:
        yield pool


class ThinVolume:
    """A thin volume of the contract (lamella_kit.volumes); sizes are rounded up to extents."""

    def __init__(self, pool: Pool, name: str) -> None:
        self.pool, self.name = pool, name

    @property
    def text(self) -> str:
        return f"{self.pool.vg}/{self.name}"

    @property
    def path(self) -> Path:
        return Path("/dev/mapper") / f"{self.pool.vg}-{self.name.replace('-', '--')}"

    @property
    def size(self) -> int:
        fd = os.open(self.path, os.O_RDONLY)
        try:
            return os.lseek(fd, 0, os.SEEK_END)
        finally:
            os.close(fd)

    def fill(self, content: bytes) -> None:
        size = _rounded(len(content))
        if not self.path.exists():
            run("lvcreate", "-q", "--type", "thin", "-V", f"{size}b", "-n", self.name, "--thinpool", self.pool.text)
        else:
            if self.size != size:
                run("lvresize", "-q", "-f", "-y", "-L", f"{size}b", self.text)
            # A discard leaves what is only a part of a block of the pool.
            self.write(0, bytes(size))
            self.discard(0, size)
        self.write(0, content)

    def write(self, offset: int, content: bytes) -> None:
        if offset + len(content) > self.size:
            self.resize(offset + len(content))
        with self._open() as fd:
            os.pwrite(fd, content, offset)
            os.fsync(fd)

    def discard(self, offset: int, length: int) -> None:
        """Give blocks back that lie completely in the range."""
        with self._open() as fd:
            fcntl.ioctl(fd, _BLKDISCARD, struct.pack("=QQ", offset, length))

    def resize(self, size: int) -> None:
        if _rounded(size) != self.size:
            run("lvresize", "-q", "-f", "-y", "-L", f"{_rounded(size)}b", self.text)

    def content(self) -> bytes:
        return self.path.read_bytes()

    def remove(self) -> None:
        run("lvremove", "-ff", "-y", "-q", self.text)

    def replace(self, content: bytes) -> None:
        new = self.pool.volume()
        new.fill(content)
        self.remove()
        run("lvrename", "-q", self.pool.vg, new.name, self.name)

    def sibling(self) -> ThinVolume:
        return self.pool.volume()

    @contextmanager
    def _open(self) -> Iterator[int]:
        fd = os.open(self.path, os.O_RDWR)
        try:
            yield fd
        finally:
            os.close(fd)


class ThinChanges:
    """Random changes to a thin volume, by a guest and its administrator."""

    def __init__(self, volume: ThinVolume, chance: Random, most: int) -> None:
        self.volume, self.most = volume, most
        self.done: Counter[str] = Counter()
        self._random = chance

    def __enter__(self) -> ThinChanges:
        if not self.volume.path.exists():
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
            self.volume.resize(self._random.randrange(EXTENT, self.most))
            return
        offset = self._random.randrange(size)
        length = min(self._random.choice([1, 512, 4096, BLOCK, 5 * BLOCK, 20 * BLOCK]), size - offset)
        if name == "discard":
            start = offset // 512 * 512
            self.volume.discard(start, -(-length // 512) * 512)
        elif name == "zero":
            self.volume.write(offset, bytes(length))
        elif name == "write again":
            self.volume.write(offset, self.volume.content()[offset : offset + length])
        else:
            self.volume.write(offset, self._random.randbytes(length))


def _rounded(size: int) -> int:
    return max(EXTENT, -(-size // EXTENT) * EXTENT)
