"""The `reflink` driver: an image file is frozen as a clone that shares its blocks; clones are compared by their maps.

The clone is one moment, taken by the file system. Where the addresses in extent maps mean something (XFS, Btrfs), it
can be kept, and what changed since is found by comparing two maps; elsewhere it is read and forgotten. What cannot be
cloned is read in place, as the `file` driver does, and compared completely.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from lamella.base.delta import Delta
from lamella.base.durable import sync_directory
from lamella.base.errors import CheckpointLost, SourceError, SpacePinned, UsageError
from lamella.base.extents import Extent
from lamella.sources import cloning
from lamella.sources.base import Consistency, FrozenVolume, Keeping, Source
from lamella.sources.checkpoint_files import CheckpointFiles, Token
from lamella.sources.driver import OpenVolume, read_failed
from lamella.sources.file import FileSource, open_file
from lamella.sources.reflink import fiemap, maps

_AT_RISK_SHARE: Final = 20
_AT_RISK_BYTES: Final = 2 << 30

CompareMaps = Callable[[int, int, int, int, int], Delta]
"""Called with the base's and the new clone's descriptor, their sizes in bytes, and the grain in bytes."""

Edit = Callable[[int, Callable[[], None]], None]
"""Changes an open clone (`sources.editing`)."""


def open_reflink(text: str, machine: str, keeping: Keeping) -> Source:
    """Return the source at a path. Raises SourceError if it is missing, UsageError if it is no image file."""
    return ClonedSource(image_at(text, machine, "reflink", keeping), keeping, "reflink", compare_extents)


def image_at(text: str, machine: str, driver: str, keeping: Keeping) -> FileSource:
    """The image file at a path. Raises SourceError if it is missing, UsageError if it is a device."""
    source = open_file(text, machine, keeping)
    if source.path.is_block_device():
        raise UsageError(f"the {driver} driver reads image files, not devices", obj=text)
    return source


def compare_extents(old: int, new: int, base_size: int, size: int, grain: int) -> Delta:
    """Compare two clones by the extent maps any user may ask for. Raises CheckpointLost."""
    return maps.guarded(fiemap.pieces, old, new, base_size, size, grain)


class ClonedSource:
    """An image file that is cloned to be frozen. Remembers what `keep` was called for until the moment ends."""

    def __init__(self, image: FileSource, keeping: Keeping, driver: str, compare: CompareMaps) -> None:
        if not keeping.owner:
            raise UsageError(f"the {driver} driver keeps checkpoints, and their owner is not named")
        self._image = image
        self._driver = driver
        self._compare = compare
        self._files = CheckpointFiles(image.path, image.identity, keeping, driver)
        self._unkept: set[str] = set()

    @property
    def driver(self) -> str:
        """`btrfs` or `reflink`."""
        return self._driver

    @property
    def tracks(self) -> bool:
        """Whether the image lies where extent maps tell what changed; False too if it cannot be opened."""
        try:
            with _opened(self._image.path) as fd:
                return cloning.file_system(fd).tracks
        except SourceError:
            return False

    @property
    def identity(self) -> bytes:
        """That of the file: the same whichever driver reads it."""
        return self._image.identity

    @property
    def default_name(self) -> str:
        """The base name without its last extension; not yet made a valid volume name."""
        return self._image.default_name

    @contextmanager
    def freeze(self) -> Iterator[FrozenVolume]:
        """Clone the image; where that cannot be done, open it as it is, and say why when asked for a delta."""
        with ExitStack() as stack:
            frozen = self._cloned(stack)
            if not isinstance(frozen, str):
                yield frozen
                return
            plain = stack.enter_context(self._image.freeze())
            plain.why_untracked = f"no checkpoint can be made: {frozen}"
            yield plain

    def keep(self, checkpoint: str) -> None:
        """Make a frozen moment durable and let it stay. Raises CheckpointLost if it is not there any more."""
        with self._files.opened(checkpoint) as (fd, directory):
            try:
                os.fsync(fd)
                sync_directory(directory)
            except OSError as reason:
                raise SourceError(f"the checkpoint cannot be made durable: {reason.strerror}") from reason
        self._unkept.discard(Token.parse(checkpoint).file)

    def drop(self, checkpoint: str) -> None:
        """Remove the checkpoint with this text, or the file with this name, if it is of this source and owner."""
        self._files.drop(checkpoint)

    def kept(self) -> list[str]:
        """All checkpoints of this source and owner, oldest first, but those of moments this object still holds."""
        return [token.text for token in self._files.kept() if token.file not in self._unkept]

    @contextmanager
    def kept_bytes(self, checkpoint: str) -> Iterator[OpenVolume]:
        """The bytes of a kept moment. Raises CheckpointLost."""
        with self._files.opened(checkpoint) as (fd, _):
            kept = OpenVolume(self._image.path, fd, os.fstat(fd).st_size)
            try:
                yield kept
            finally:
                kept.closed()

    def _cloned(self, stack: ExitStack) -> FrozenClone | str:
        """The frozen clone, undone when `stack` ends; or why there can be none. Raises SourceError."""
        with _opened(self._image.path) as image, ExitStack() as undone:
            if os.fstatvfs(image).f_flag & os.ST_RDONLY:
                return "the file system is read-only"
            _refuse_if_nearly_full(self._image.path, image)
            frozen = self.clone(image, undone, lambda fd, look: None)
            stack.push(undone.pop_all())
            return frozen

    def clone(self, image: int, undone: ExitStack, edit: Edit) -> FrozenClone | str:
        """A clone of an open file, held by `undone`, changed by `edit` before it has a name; or why there can be none.

        Raises SourceError.
        """
        directory = undone.enter_context(self._files.directory())
        if directory is None:
            return "there is no directory to keep it in"
        fd = cloning.nameless_file(directory)
        if isinstance(fd, str):
            return fd
        undone.callback(os.close, fd)
        why = cloning.clone(image, fd)
        if why:
            return why
        edit(fd, lambda: None)  # a full file system says so at once
        frozen = FrozenClone(self._image.path, fd, self._delta)
        undone.callback(frozen.closed)
        if cloning.file_system(fd).tracks:
            self._name(frozen, fd, directory, undone)
        return frozen

    def _name(self, frozen: FrozenClone, fd: int, directory: int, undone: ExitStack) -> None:
        """Give the complete clone a name, to be taken away again unless `keep` is called."""
        names = self._files.next_names()
        while True:
            name = next(names)
            undone.callback(self._forget, name, fd, directory)
            self._unkept.add(name)
            try:
                # Until here it had no name: what a kill leaves behind is a whole checkpoint or nothing.
                os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory, follow_symlinks=True)
            except FileExistsError:
                continue
            except OSError as reason:
                frozen.why_untracked = f"no checkpoint can be made: {cloning.refusal(reason)}"
                return
            frozen.checkpoint = self._files.token(fd, name).text
            return

    def _forget(self, name: str, fd: int, directory: int) -> None:
        if name in self._unkept:
            self._unkept.discard(name)
            self._files.undo(name, fd, directory)

    def _delta(self, new: int, size: int, base: str, grain: int) -> Delta:
        with self._files.opened(base) as (old, _):
            return self._compare(old, new, os.fstat(old).st_size, size, grain)


class FrozenClone(OpenVolume):
    """A clone of the image: nobody writes to it. It can be kept once it has a `checkpoint`."""

    def __init__(self, path: Path, fd: int, delta: Callable[[int, int, str, int], Delta]) -> None:
        super().__init__(path, fd, os.fstat(fd).st_size)
        self.checkpoint = ""
        self.why_untracked = "the maps of this file system do not tell what changed"
        self._delta = delta

    def consistency(self) -> Consistency:
        """LIVE: one moment, of a file that somebody may have been writing."""
        return Consistency.LIVE

    def allocated(self) -> Iterator[Extent]:
        """Yield what the clone's extent map holds; all of it where such maps are not relied on."""
        if self.checkpoint:
            yield from fiemap.allocated(self._fd, self._size)
        elif self._size:
            yield Extent(0, self._size)

    def delta_since(self, base: str, grain: int) -> Delta:
        """The ranges that differ from the checkpoint, from the maps of both. Raises CheckpointLost."""
        if not self.checkpoint:
            raise CheckpointLost(self.why_untracked)
        return self._delta(self._fd, self._size, base, grain)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open an image file for reading. Raises SourceError if it is not there or no regular file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as reason:
        raise read_failed(path, reason) from reason
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise SourceError(f"{path} is no longer an image file", obj=str(path))
        yield fd
    finally:
        os.close(fd)


def nearly_full(free_bytes: int, total_bytes: int) -> bool:
    """Whether a checkpoint would endanger a file system: free space below both 5 % and 2 GiB."""
    return free_bytes < _AT_RISK_BYTES and free_bytes * _AT_RISK_SHARE < total_bytes


def _refuse_if_nearly_full(path: Path, fd: int) -> None:
    found = os.fstatvfs(fd)
    free = found.f_bavail * found.f_frsize
    if nearly_full(free, found.f_blocks * found.f_frsize):
        raise SpacePinned(
            f"the file system of {path} is nearly full ({free >> 20} MiB free): a checkpoint would pin its blocks",
            obj=str(path),
            hint="free space there, or force the file driver",
        )
