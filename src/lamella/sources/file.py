"""The `file` driver: image files and block devices, read as they are. The fallback where nothing better can be asked.

There is no local snapshot: the volume is read in place while it may change, and `consistency` says whether it did
(docs/decisions/0049).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.base.clock import Clock, now_ms
from lamella.base.errors import SourceError
from lamella.sources.base import Keeping
from lamella.sources.driver import OpenVolume, Untracked, read_failed

if TYPE_CHECKING:
    from lamella.sources.frozen_file import FrozenFile

_MACHINE = re.compile(r"[0-9a-f]{16}")

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
}


def open_file(text: str, machine: str, keeping: Keeping | None = None) -> FileSource:
    """Return the source at a path. Nothing of it is ever kept, whatever `keeping` says.

    Raises SourceError if it is missing or of a kind that holds no volume.
    """
    path = Path(text)
    checked_kind(path, _stat(path))
    return FileSource(path, machine, known_as=keeping.known_as if keeping is not None else b"")


@dataclass(frozen=True)
class FileSource(Untracked):
    """A regular file or block device at `path`, on the machine whose hash is `machine` (16 hexadecimal digits)."""

    path: Path
    machine: str
    clock: Clock = now_ms
    driver: str = "file"
    known_as: bytes = b""
    """The identity, if it is not that of the place."""

    def __post_init__(self) -> None:
        if not _MACHINE.fullmatch(self.machine):
            raise ValueError(f"not a machine hash: {self.machine!r}")

    @property
    def identity(self) -> bytes:
        """`file:MACHINE:PATH`, the path absolute and without links.

        A device keeps its own last link: `/dev/mapper/x` stays the same volume, the `/dev/dm-3` behind it may be
        another one after the next start.
        """
        if self.known_as:
            return self.known_as
        path = self.path.parent.resolve() / self.path.name if self.path.is_block_device() else self.path.resolve()
        return b"file:" + self.machine.encode() + b":" + os.fsencode(path)

    @property
    def default_name(self) -> str:
        """The base name without its last extension; not yet made a valid volume name."""
        return self.path.stem

    @contextmanager
    def freeze(self) -> Iterator[FrozenFile]:
        """Open the volume for reading. Nothing is held still: `consistency` tells afterwards what was seen."""
        from lamella.sources.frozen_file import FrozenFile  # whoever only asks where a volume is needs no reader

        # Looked at before it is opened: opening some devices has effects (a tape rewinds, a watchdog starts).
        is_block = checked_kind(self.path, _stat(self.path))
        # A pipe put in the file's place in between must not make the open wait for a writer.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | (0 if is_block else os.O_NONBLOCK)
        try:
            fd = os.open(self.path, flags)
        except OSError as reason:
            raise read_failed(self.path, reason) from reason
        frozen: FrozenFile | None = None
        try:
            frozen = FrozenFile(self.path, fd, self.clock())
            yield frozen
        finally:
            if frozen is not None:
                frozen.closed()
            os.close(fd)


def path_of(identity: bytes, machine: str) -> Path | None:
    """The path that an identity names, None if it is not one of this machine's image files or devices."""
    start = b"file:" + machine.encode("ascii") + b":"
    return Path(os.fsdecode(identity.removeprefix(start))) if identity.startswith(start) else None


def holds_image(path: Path) -> bool:
    """Whether a file begins like a qcow2 image."""
    begin = bytearray(4)
    try:
        with path.open("rb", buffering=0) as file:
            volume = OpenVolume(path, file.fileno(), len(begin))  # it leaves nothing in the page cache
            volume.read_into(0, memoryview(begin))
            volume.closed()
    except (OSError, SourceError):
        return False
    return begin == b"QFI\xfb"


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as reason:
        raise read_failed(path, reason) from reason


def checked_kind(path: Path, found: os.stat_result) -> bool:
    """Return whether it is a block device (else a regular file). Raises SourceError for everything else."""
    if stat.S_ISREG(found.st_mode):
        return False
    if stat.S_ISBLK(found.st_mode):
        return True
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), "of an unknown kind")
    raise SourceError(f"{path} is {kind}, not an image file or a block device", obj=str(path))
