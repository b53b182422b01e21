"""Checkpoint files: their place, name and owner, and how a file is recognised.

A checkpoint file is a read-only clone of an image, `<source 16 hex>-<owner 8 hex>-<n>`, in the directory `.lamella` at
the top of the image's subvolume or mount: never beside the image, where it would go with the machine it belongs to. The
text that names a checkpoint holds everything that changes when a file is edited, copied or made again, so that only the
very file that was kept is used. One process at a time may work with the checkpoints of a source and owner.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from lamella.base.errors import CheckpointLost, SourceError
from lamella.sources.base import Keeping
from lamella.sources.cloning import file_system, generation
from lamella.sources.driver import MomentToken

DIRECTORY: Final = ".lamella"
"""Name of the directory, in the topmost place we may write to."""

_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{8})-([1-9][0-9]{0,15})")


@dataclass(frozen=True, slots=True)
class Token(MomentToken):
    """The facts of a checkpoint file when it was made."""

    driver: str
    system: str
    file: str
    inode: int
    generation: int
    size: int
    ctime_ns: int

    @classmethod
    def of(cls, fd: int, file: str, driver: str) -> Token:
        """Describe an open checkpoint file as it is now."""
        now = os.fstat(fd)
        return cls(driver, file_system(fd).uuid, file, now.st_ino, generation(fd), now.st_size, now.st_ctime_ns)

    def difference(self, now: Token) -> str:
        """Why `now` is not the file this token was made of; empty if it is."""
        if self == now:
            return ""
        if self.driver != now.driver:
            return f"was made by the {self.driver} driver"
        if self.system != now.system:
            return "is on another file system than the one it was made on"
        if (self.inode, self.generation) != (now.inode, now.generation):
            return "is another file than the one that was kept"
        return "was changed since it was made"


class CheckpointFiles:
    """The checkpoint files of one source and owner.

    New ones go to the first directory that can be had; old ones are looked for in all of them. A directory is used only
    if it is ours and nobody else may write to it.
    """

    def __init__(self, image: Path, identity: bytes, keeping: Keeping, driver: str) -> None:
        self._image = image
        self._driver = driver
        self._keeping = keeping
        self._prefix = f"{source_name(identity)}-{keeping.owner}-"

    @contextmanager
    def directory(self) -> Iterator[int | None]:
        """The open directory for a new checkpoint, made if need be; None where none can be had."""
        chosen = self._keeping.directory
        if chosen is not None:
            with suppress(OSError):
                chosen.mkdir(mode=0o700, parents=True, exist_ok=True)
        for place in self._default_places() if chosen is None else [chosen.absolute()]:
            fd = _own_directory(place, make=True)
            if fd is not None:
                try:
                    yield fd
                finally:
                    os.close(fd)
                return
        yield None

    def next_names(self) -> Iterator[str]:
        """Yield names not in use, each with a number higher than all before."""
        numbers = [_number(name) for _, names in self._listed() for name in names]
        return (f"{self._prefix}{number}" for number in count(max(numbers, default=0) + 1))

    def kept(self) -> list[Token]:
        """All that are there as they are now, oldest first. Raises SourceError."""
        found: list[Token] = []
        for directory, names in self._listed():
            for name in names:
                with _opened(name, directory) as fd:
                    if fd is not None:
                        found.append(self.token(fd, name))
        return sorted(found, key=lambda token: _number(token.file))

    @contextmanager
    def opened(self, text: str) -> Iterator[tuple[int, int]]:
        """Open the checkpoint that `text` names, and its directory.

        Raises CheckpointLost unless it is there, ours, of this source, and exactly what it was.
        """
        token = Token.parse(text)
        if not self._ours(token.file):
            raise CheckpointLost("the checkpoint belongs to another source or owner")
        why = "is gone"
        for directory, names in self._listed():
            if token.file not in names:
                continue
            with _opened(token.file, directory) as fd:
                why = "is gone" if fd is None else token.difference(self.token(fd, token.file))
                if fd is not None and not why:
                    yield fd, directory
                    return
        raise CheckpointLost(f"the checkpoint {token.file} {why}")

    def drop(self, text: str) -> None:
        """Remove the checkpoint with this text or name; nothing else, and nothing that got its name later.

        Raises SourceError if it cannot be removed.
        """
        token: Token | None = None
        name = text
        if not self._ours(text):
            with suppress(CheckpointLost):
                token = Token.parse(text)
            if token is None or not self._ours(token.file):
                return
            name = token.file
        for directory, names in self._listed():
            if name not in names:
                continue
            with _opened(name, directory) as fd:
                if fd is not None and _same_file(token, self.token(fd, name)):
                    _unlink(name, directory)

    def undo(self, name: str, fd: int, directory: int) -> None:
        """Take the name away from the open file if it still has it. Raises SourceError."""
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(name, dir_fd=directory, follow_symlinks=False), os.fstat(fd)):
                _unlink(name, directory)

    def token(self, fd: int, name: str) -> Token:
        """Describe an open checkpoint file as it is now; everything done to it later makes it another one."""
        return Token.of(fd, name, self._driver)

    def _ours(self, name: str) -> bool:
        return _NAME.fullmatch(name) is not None and name.startswith(self._prefix)

    def _listed(self) -> Iterator[tuple[int, list[str]]]:
        """Yield each directory of ours that exists, open, with our names in it."""
        for _, fd, names in _named_in(self._keeping.directory, self._default_places()):
            yield fd, [name for name in names if self._ours(name)]

    def _default_places(self) -> list[Path]:
        """Where the directory may be, the best place first."""
        return [directory / DIRECTORY for directory in _up_from(self._image.resolve().parent)][::-1]


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file that is named like a checkpoint, whoever made it."""

    path: Path
    source: str
    """16 hexadecimal digits: `source_name` of its source."""
    owner: str
    held_bytes: int
    """Bytes of the blocks it refers to; most of them may be the image's too."""
    changed_ms: int
    """When it was made, or changed by somebody, in milliseconds since 1970."""
    inode: int


def list_near(image: Path, directory: Path | None) -> list[ListedFile]:
    """Everybody's checkpoints where those of an image may lie, which need not exist. Raises SourceError."""
    start = image.resolve().parent
    while not start.is_dir():
        start = start.parent
    places = [place / DIRECTORY for place in _up_from(start)]
    listed = (
        _listed_file(place, name, fd) for place, fd, names in _named_in(directory, places) for name in sorted(names)
    )
    return [one for one in listed if one is not None]


def _listed_file(place: Path, name: str, directory: int) -> ListedFile | None:
    with _opened(name, directory) as fd:
        if fd is None:
            return None
        found, (source, owner, _) = os.fstat(fd), name.split("-")
        changed_ms = found.st_ctime_ns // 1_000_000
        return ListedFile(place / name, source, owner, found.st_blocks * 512, changed_ms, found.st_ino)


def remove_listed(file: ListedFile) -> bool:
    """Remove a listed file if it is still that file; returns whether it was. Raises SourceError."""
    directory = _own_directory(file.path.parent, make=False)
    if directory is None:
        return False
    try:
        with _opened(file.path.name, directory) as fd:
            same = fd is not None and os.fstat(fd).st_ino == file.inode
            if same:
                _unlink(file.path.name, directory)
            return same
    finally:
        os.close(directory)


def source_name(identity: bytes) -> str:
    """The 16 hexadecimal digits that stand for a source in names of checkpoints."""
    return hashlib.sha256(b"lamella source\0" + identity).hexdigest()[:16]


def _up_from(start: Path) -> Iterator[Path]:
    """Yield a directory and those above it as far as they belong to the same subvolume and mount."""
    place = _place_of(start)
    if place is None:
        return
    for directory in (start, *start.parents):
        # The number of the device changes at the border of a subvolume, that of the mount where a directory is mounted
        # on another one of the same file system.
        if _place_of(directory) != place:
            return
        yield directory


def _place_of(directory: Path) -> tuple[int, str] | None:
    """Device and number of the mount of a directory; None if it cannot be looked at."""
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines()
        return os.fstat(fd).st_dev, next((line for line in lines if line.startswith("mnt_id:")), "")
    except OSError:
        return None
    finally:
        os.close(fd)


def _own_directory(place: Path, *, make: bool) -> int | None:
    """Open a directory of checkpoints, made if wanted; None if there is none or somebody else may write to it."""
    if make:
        with suppress(OSError):
            place.mkdir(mode=0o700)
    try:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    found = os.fstat(fd)
    if found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return fd
    os.close(fd)
    return None


def _named_in(chosen: Path | None, places: list[Path]) -> Iterator[tuple[Path, int, list[str]]]:
    """Yield each directory of checkpoints that is there, open, with the names of checkpoints in it."""
    for place in dict.fromkeys([*([] if chosen is None else [chosen.absolute()]), *places]):
        fd = _own_directory(place, make=False)
        if fd is None:
            continue
        try:
            yield place, fd, [name for name in _names_in(fd, place) if _NAME.fullmatch(name)]
        finally:
            os.close(fd)


def _names_in(fd: int, place: Path) -> list[str]:
    try:
        return os.listdir(fd)
    except OSError as reason:
        raise SourceError(f"cannot read {place}: {reason.strerror}", obj=str(place)) from reason


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])


@contextmanager
def _opened(name: str, directory: int) -> Iterator[int | None]:
    """Open a checkpoint file of ours for reading; None if it is gone or is no regular file of ours."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        yield None
        return
    try:
        found = os.fstat(fd)
        yield fd if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() else None
    finally:
        os.close(fd)


def _same_file(token: Token | None, now: Token) -> bool:
    """Whether `now` may be removed as `token`: an edited file may, another one that took the name may not."""
    return token is None or (token.inode, token.generation) == (now.inode, now.generation)


def _unlink(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except OSError as reason:
        raise SourceError(f"the checkpoint {name} cannot be removed: {reason.strerror}", obj=name) from reason
