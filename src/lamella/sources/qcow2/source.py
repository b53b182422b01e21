"""The `qcow2` driver: the disk in a qcow2 image that nobody has open, as a guest sees it (docs/decisions/0058).

QEMU's own qemu-nbd reads it, on a socket that only this user can reach; what is read over it is read as from any NBD
server. The image and all files below it stay as they are.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lamella.base.clock import now_ms
from lamella.base.errors import SourceError
from lamella.base.nbd import ALLOCATION_CONTEXT
from lamella.run.spawn import Child
from lamella.sources.base import Consistency, Keeping
from lamella.sources.driver import Untracked
from lamella.sources.nbd.address import NbdAddress
from lamella.sources.nbd.export import Export
from lamella.sources.nbd.source import FrozenExport
from lamella.sources.opened_files import opened_files
from lamella.sources.qcow2.chain import ChainLink, block_device, read_chain
from lamella.sources.qemu_lock import qemu_may_write

DRIVER: Final = "qcow2"
_PREFIX: Final = f"{DRIVER}:"
_EXPORT: Final = "disk"
_START_SECONDS: Final = 30.0
_END_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.02
_SETTLED_MS: Final = 2000
"""A change so long ago shows in the stamps of every file system."""


def open_qcow2(text: str, machine: str, keeping: Keeping) -> Qcow2Source:
    """The image at `qcow2:PATH`, or at a path. Raises SourceError if there is none."""
    path = Path(text.removeprefix(_PREFIX))
    if not path.is_file() and not path.is_block_device():
        raise SourceError(f"there is no image {path}", obj=str(path))
    return Qcow2Source(path, machine, keeping.backing_dirs, keeping.known_as)


@dataclass(frozen=True, slots=True)
class Qcow2Source(Untracked):
    """An image; files below it may also lie in `backing_dirs`."""

    path: Path
    machine: str
    backing_dirs: tuple[Path, ...] = ()
    known_as: bytes = b""
    driver: str = DRIVER
    snapshot: str = ""
    """The id of a snapshot in the image; empty: its present state."""

    @property
    def identity(self) -> bytes:
        """`qcow2:MACHINE:PATH`: the disk in an image is another volume than the file."""
        return self.known_as or b"qcow2:" + self.machine.encode() + b":" + os.fsencode(self.path.resolve())

    @property
    def default_name(self) -> str:
        """The base name without its last extension; not yet made a valid volume name."""
        return self.path.stem

    @contextmanager
    def freeze(self) -> Iterator[FrozenImage]:
        """Open the image and what lies below it. QEMU's lock keeps every QEMU from writing as long as it is open."""
        links = read_chain(self.path, self.backing_dirs)
        files = [one for link in links for one in link.files]
        for one in files:
            _refuse_in_use(one)
        before, opened_ms = _stamps(files), now_ms()
        with (
            tempfile.TemporaryDirectory(prefix="lamella-") as folder,
            _served(links, Path(folder), self.snapshot) as (address, export),
        ):
            if read_chain(self.path, self.backing_dirs) != links:
                raise SourceError(f"{self.path} came to lie over another image while it was opened", obj=str(self.path))
            yield FrozenImage(address, export, links, before, opened_ms)


class FrozenImage(FrozenExport):
    """The disk in an image. `links` are the files that it is made of."""

    why_untracked = "an image keeps no record of changes that could be bound to a snapshot"

    def __init__(
        self,
        address: NbdAddress,
        export: Export,
        links: Sequence[ChainLink],
        before: Sequence[tuple[int, int, int]],
        opened_ms: int,
    ) -> None:
        super().__init__(address, export)
        self.links = tuple(links)
        self._before = before
        self._opened_ms = opened_ms

    def consistency(self) -> Consistency:
        """CHANGED if one of the files did; LIVE if their stamps are old enough to show that none did; else UNKNOWN."""
        now = _stamps([one for link in self.links for one in link.files])
        if now != self._before or super().consistency() == Consistency.CHANGED:
            return Consistency.CHANGED
        newest_ms = max(changed_ns for _, _, changed_ns in now) // 1_000_000
        still = newest_ms + _SETTLED_MS < self._opened_ms
        devices = any(one.is_block_device() for link in self.links for one in link.files)
        return Consistency.LIVE if still and not devices else Consistency.UNKNOWN


def _refuse_in_use(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if qemu_may_write(fd):
            raise SourceError(
                f"{path} is in use by QEMU: stop the machine, or save the disk through QEMU", obj=str(path)
            )
    finally:
        os.close(fd)


def _stamps(files: Sequence[Path]) -> list[tuple[int, int, int]]:
    """The parts of a file's inode that change with every write. Raises SourceError."""
    try:
        found = [one.stat() for one in files]
    except OSError as reason:
        raise SourceError(f"an image vanished: {reason.filename}: {reason.strerror}") from reason
    return [(one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in found]


@contextmanager
def _served(links: Sequence[ChainLink], folder: Path, snapshot: str = "") -> Iterator[tuple[NbdAddress, Export]]:
    """The disk behind qemu-nbd, which ends with its last client, so also if this process is killed."""
    program = shutil.which("qemu-nbd")
    if program is None:
        raise SourceError("qemu-nbd is not installed; it is in the package qemu-utils (Debian) or qemu-img (Fedora)")
    socket = folder / "socket"
    disk = "json:" + json.dumps(block_device(links))
    words = [program, "--read-only", "--shared=0", f"--export-name={_EXPORT}", f"--socket={socket}"]
    chosen = [f"--load-snapshot=snapshot.id={snapshot}"] if snapshot else []
    server = Child([*words, *chosen, disk], error=SourceError)
    address = NbdAddress(_EXPORT, socket=str(socket))
    try:
        export = _connected(server, address, str(links[0].path))
        try:
            _refuse_exchanged(server.pid, links)
            yield address, export
        finally:
            export.close()
    finally:
        server.terminate()
        server.end(_END_SECONDS)


def _refuse_exchanged(process: int, links: Sequence[ChainLink]) -> None:
    """Raise SourceError if the server has a file open that is not of the chain: a link in the place of one of them."""
    expected = {one for link in links for one in link.files}
    if not opened_files(process) <= expected:
        name = str(links[0].path)
        raise SourceError(f"a file of {name} was exchanged while it was opened", obj=name)


def _connected(server: Child, address: NbdAddress, name: str) -> Export:
    end = time.monotonic() + _START_SECONDS
    while True:
        server.drain_stderr()
        if Path(address.socket).exists():
            with suppress(SourceError):
                return Export(address, [ALLOCATION_CONTEXT])
        status = server.wait(_LOOK_SECONDS)
        if status is not None or time.monotonic() > end:
            server.drain_stderr()
            raise SourceError(f"QEMU cannot read {name}: {server.said() or 'it says nothing'}", obj=name)
