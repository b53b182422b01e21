"""Writing files of a tree into a directory, whatever the tree says and whatever is in the directory already.

Every name is opened from its directory and no link is followed, so nothing is written outside. A file gets its name
when it is complete.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from lamella.base.errors import IntegrityError, LamellaError, printable
from lamella.sources.tree.details import is_kept
from lamella.sources.tree.folders import FOLDER_FLAGS, Folders
from lamella.sources.tree.layout import Extra, FileStatus, Flag, OwnerNames
from lamella.sources.tree.reader import FileTree, TreeEntry
from lamella.sources.tree.scan import Told

_PARTIAL: Final = ".lamella-partial-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_UNUSUAL = stat.S_ISUID | stat.S_ISGID


@dataclass(frozen=True, slots=True)
class ExtractOptions:
    """How files are written. Without root's powers everything belongs to whoever writes it."""

    overwrite: bool = False
    """Replace files that are there; directories are filled up."""
    devices: bool = False
    numeric: bool = False
    """Owners by their numbers, although this host knows their names."""
    is_root: bool = False


@dataclass(slots=True)
class Extracted:
    """What became of an extraction."""

    files: int = 0
    bytes: int = 0
    left_out: Told = field(default_factory=Told)
    """What was not written, or not as it was."""
    damaged: Told = field(default_factory=Told)
    """Files whose content could not be read from the repository."""
    mixed: Told = field(default_factory=Told)
    """Files that changed while they were saved: their content mixes several states."""


@dataclass(slots=True)
class _OpenFolder:
    entry: TreeEntry
    descriptor: int


@dataclass
class Extraction:
    """Writes into the open directory `target`. `tell` receives the bytes of each file that was written."""

    tree: FileTree
    target: int
    options: ExtractOptions
    tell: Callable[[int], None]
    result: Extracted = field(default_factory=Extracted)

    def __post_init__(self) -> None:
        self._folders = Folders(self.target)
        self._links: dict[tuple[int, int], TreeEntry] = {}

    @cached_property
    def _owners(self) -> OwnerNames:
        """By their names; by their numbers alone where the names are damaged: that costs no file."""
        try:
            return self.tree.owners()
        except IntegrityError as error:
            self.result.left_out.add(b"", f"names of owners, who come back by their numbers: {error.message}")
            return OwnerNames()

    def extract(self, start: TreeEntry) -> None:
        """Write an entry, and all below, at its path below the target.

        Raises IntegrityError if the tree itself is damaged, LamellaError where nothing more can be written.
        """
        levels: list[_OpenFolder] = []
        try:
            for entry in self.tree.walk(start):
                self._leave(levels, entry)
                self._enter(levels, entry, start)
            self._leave(levels, None)
        finally:
            for level in levels:
                os.close(level.descriptor)
            self._folders.close()

    # -- directories --------------------------------------------------------------------------------------------------

    def _leave(self, levels: list[_OpenFolder], entry: TreeEntry | None) -> None:
        """Finish the directories that the next entry is not in: what comes into a directory changes its time."""
        while levels and (entry is None or not _is_below(entry.path, levels[-1].entry.path)):
            level = levels.pop()
            try:
                self._dress(level.descriptor, level.entry)
            except OSError as error:
                self._left_out(level.entry, error)
            finally:
                os.close(level.descriptor)

    def _enter(self, levels: list[_OpenFolder], entry: TreeEntry, start: TreeEntry) -> None:
        above = entry.path.rpartition(b"/")[0]
        try:
            if entry is start:
                with self._made(above) as folder:
                    self._write(levels, folder, entry)
            elif levels and levels[-1].entry.path == above:
                self._write(levels, levels[-1].descriptor, entry)
            # else its directory could not be made, which was said
        except OSError as error:
            if error.errno in _FULL:
                raise LamellaError(f"cannot write {_shown(entry)}: {error.strerror}", obj=_shown(entry)) from error
            self._left_out(entry, error)

    @contextmanager
    def _made(self, path: bytes) -> Iterator[int]:
        """The directory at a path below the target, made if it is not there. Raises OSError."""
        held = os.dup(self.target)
        for name in path.split(b"/") if path else ():
            try:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=held)
                below = os.open(name, FOLDER_FLAGS, dir_fd=held)
            finally:
                os.close(held)
            held = below
        try:
            yield held
        finally:
            os.close(held)

    def _write(self, levels: list[_OpenFolder], folder: int, entry: TreeEntry) -> None:
        """Raises OSError."""
        if entry.is_absent:
            self.result.left_out.add(entry.path, "it could not be read when it was saved")
            if not entry.is_folder:
                return
        kind = stat.S_IFMT(entry.status.mode)
        if kind == stat.S_IFDIR:
            levels.append(_OpenFolder(entry, self._folder(folder, entry)))
        elif kind == stat.S_IFREG:
            self._file(folder, entry)
        elif kind == stat.S_IFLNK:
            self._new(folder, entry, lambda name: os.symlink(entry.target, name, dir_fd=folder))
        elif kind == stat.S_IFIFO:
            self._new(folder, entry, lambda name: os.mkfifo(name, 0o600, dir_fd=folder))
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            self._device(folder, entry, kind)
        else:
            self.result.left_out.add(entry.path, "of an unknown kind")

    def _folder(self, folder: int, entry: TreeEntry) -> int:
        if not entry.path:
            return os.dup(self.target)
        try:
            os.mkdir(entry.name, 0o700, dir_fd=folder)
        except FileExistsError:
            if not self.options.overwrite:
                raise
        return os.open(entry.name, FOLDER_FLAGS, dir_fd=folder)

    # -- everything else ----------------------------------------------------------------------------------------------

    def _file(self, folder: int, entry: TreeEntry) -> None:
        status = entry.status
        if status.links > 1 and self._is_linked(folder, entry):
            return
        self._refuse_present(folder, entry)
        partial = f"{_PARTIAL}{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            file = os.open(partial, flags, 0o600, dir_fd=folder)
            try:
                self._fill(file, entry)
                self._dress(file, entry)
            finally:
                os.close(file)
            os.rename(partial, entry.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException as error:
            with suppress(OSError):
                os.unlink(partial, dir_fd=folder)
            if isinstance(error, IntegrityError):
                self.result.damaged.add(entry.path, error.message)
                return
            raise
        self._counted(entry)

    def _fill(self, file: int, entry: TreeEntry) -> None:
        """Raises OSError, IntegrityError."""
        for offset, piece in self.tree.content(entry):
            done = len(piece) if _is_zero(piece) else 0
            while done < len(piece):
                done += os.pwrite(file, memoryview(piece)[done:], offset + done)
        os.ftruncate(file, entry.length)

    def _counted(self, entry: TreeEntry) -> None:
        self.result.files += 1
        self.result.bytes += entry.length
        if entry.place.flags & Flag.CHANGED:
            self.result.mixed.add(entry.path, "it changed while it was saved")
        if entry.status.links > 1:
            self._links.setdefault((entry.status.device, entry.status.inode), entry)
        self.tell(entry.length)

    def _is_linked(self, folder: int, entry: TreeEntry) -> bool:
        """Whether a file is another name of one that was written, and has that name now. Raises OSError."""
        first = self._links.get((entry.status.device, entry.status.inode))
        if first is None or (first.status, first.length) != (entry.status, entry.length):
            return False
        self._refuse_present(folder, entry)
        above, _, name = first.path.rpartition(b"/")
        with self._folders.opened(above) as other:

            def link(partial: str | bytes) -> None:
                os.link(name, partial, src_dir_fd=other, dst_dir_fd=folder, follow_symlinks=False)

            self._new(folder, entry, link, dressed=True)
        return True

    def _device(self, folder: int, entry: TreeEntry, kind: int) -> None:
        number = next((value for what, value in entry.details if what == Extra.DEVICE), b"")
        if not (self.options.devices and self.options.is_root and number):
            self.result.left_out.add(entry.path, "a device: root restores them with --devices")
            return
        try:
            device = os.makedev(int.from_bytes(number[:4], "little"), int.from_bytes(number[4:], "little"))
        except (OverflowError, ValueError):
            raise OSError(errno.EINVAL, "a device of an impossible number") from None
        self._new(folder, entry, lambda name: os.mknod(name, kind | 0o600, device, dir_fd=folder))

    def _new(
        self, folder: int, entry: TreeEntry, make: Callable[[str | bytes], None], *, dressed: bool = False
    ) -> None:
        """Make something that has no content, complete before it gets its name. Raises OSError."""
        self._refuse_present(folder, entry)
        partial = f"{_PARTIAL}{secrets.token_hex(8)}"
        try:
            make(partial)
            if not dressed:
                self._dress_named(folder, partial, entry)
            os.rename(partial, entry.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial, dir_fd=folder)
            raise
        with suppress(FileNotFoundError):  # rename(2) does nothing where both are names of one file
            os.unlink(partial, dir_fd=folder)
        self.result.files += 1

    def _refuse_present(self, folder: int, entry: TreeEntry) -> None:
        """Raises FileExistsError for what may not be replaced."""
        try:
            present = os.stat(entry.name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not self.options.overwrite or stat.S_ISDIR(present.st_mode):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    # -- rights, owners, times ----------------------------------------------------------------------------------------

    def _dress(self, file: int, entry: TreeEntry) -> None:
        """Give an open file or directory its owner, rights, attributes and times. Raises OSError."""
        status = entry.status
        mode = stat.S_IMODE(status.mode)
        if self.options.is_root:
            os.fchown(file, *self._owner(status))
        else:
            mode &= ~_UNUSUAL  # they would give the power of another owner
        for kind, value in entry.details:  # before the rights, which may forbid its owner to give attributes
            if kind == Extra.ATTRIBUTE:
                self._attribute(file, entry, *value.split(b"\0", 1))
        os.fchmod(file, mode)
        os.utime(file, ns=(status.mtime_ns, status.mtime_ns))

    def _attribute(self, file: int, entry: TreeEntry, name: bytes, value: bytes) -> None:
        text = os.fsdecode(name)
        if not is_kept(text):
            return
        try:
            os.setxattr(file, text, value)
        except OSError as error:
            if error.errno in _FULL:
                raise
            why = f"its attribute {printable(text)} could not be set: {error.strerror}"
            self.result.left_out.add(entry.path, why)

    def _dress_named(self, folder: int, name: str, entry: TreeEntry) -> None:
        """The same for what cannot be opened. Raises OSError."""
        status = entry.status
        if self.options.is_root:
            os.chown(name, *self._owner(status), dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISLNK(status.mode):
            self._chmod(folder, name, status.mode & ~(0 if self.options.is_root else _UNUSUAL))
        times = (status.mtime_ns, status.mtime_ns)
        os.utime(name, ns=times, dir_fd=folder, follow_symlinks=False)

    @staticmethod
    def _chmod(folder: int, name: str, mode: int) -> None:
        """As lchmod(2) would: whoever owns the directory could put a link there meanwhile. Raises OSError."""
        there = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            if stat.S_IFMT(os.fstat(there).st_mode) != stat.S_IFMT(mode):
                raise FileExistsError(errno.EEXIST, "something else took its place")
            Path(f"/proc/self/fd/{there}").chmod(stat.S_IMODE(mode))
        finally:
            os.close(there)

    def _owner(self, status: FileStatus) -> tuple[int, int]:
        """Account and group by their names, where this host knows those."""
        uid, gid = status.uid, status.gid
        if not self.options.numeric:
            with suppress(KeyError, ValueError):
                uid = pwd.getpwnam(self._owners.users[uid]).pw_uid
            with suppress(KeyError, ValueError):
                gid = grp.getgrnam(self._owners.groups[gid]).gr_gid
        return uid, gid

    def _left_out(self, entry: TreeEntry, error: OSError) -> None:
        self.result.left_out.add(entry.path, error.strerror or str(error))


def _is_below(path: bytes, above: bytes) -> bool:
    return not above or path.startswith(above + b"/")


def _is_zero(piece: bytes) -> bool:
    return not (piece[0] or piece[-1]) and piece.count(0) == len(piece)


def _shown(entry: TreeEntry) -> str:
    return printable(os.fsdecode(entry.path)) or "."
