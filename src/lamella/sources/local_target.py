"""Restoring to a new file."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from lamella.base.durable import sync_directory
from lamella.base.errors import Locked, SourceError, UsageError, shown_bytes
from lamella.sources.target import OldState, OpenTarget

PARTIAL_SUFFIX: Final = ".lamella-partial"
"""Ends the name of a file whose restore is not complete."""
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL, errno.EIO}
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class NewFile(OpenTarget):
    """A file written beside its final name, and renamed when it is complete. What an earlier attempt left is kept."""

    starts_zeroed = True
    suffix = PARTIAL_SUFFIX

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        super().__init__(path)
        self._overwrite = overwrite
        # Where the kernel follows no link of another user nothing is seen; `prepare` says whose link it is.
        self.old_state = OldState.REPLACED if os.access(path, os.F_OK) else OldState.NONE

    def prepare(self, size: int, needed_bytes: int) -> None:
        with self._opening():
            self.path = resolved(self._given)
            self.working_path = self.path.with_name(self.path.name + self.suffix)
            replaced = existing_file(self.path) is not None
            if replaced and not self._overwrite:
                raise _exists(self.path)
            if replaced:
                from lamella.sources.replacement import hand_on_layout, require_replaceable

                require_replaceable(self.path)
            self._fd = open_partial(self.working_path, self.notes)
            self.holds = os.fstat(self._fd).st_size > 0
            self.starts_zeroed = not self.holds
            try:
                check_space(self._fd, self.path, needed_bytes - own_bytes(self._fd))
                if replaced and not self.holds:
                    hand_on_layout(self.path, self._fd)
                os.ftruncate(self._fd, size)
                self._begin(size)
            except BaseException:
                if not self.holds:  # what is empty is no beginning to keep
                    with suppress(OSError):
                        self.working_path.unlink()
                raise

    def zero(self, start: int, end: int) -> None:
        self.punch(start, end)  # as if nothing had ever been written there

    def punch(self, start: int, end: int) -> None:
        self._check_range(start, end)
        from lamella.sources.held_zeros import not_zero  # a new file is all zeros

        for offset, stop in not_zero(self.read_into, self.stored(start, end)):
            super().punch(offset, stop)

    def finish(self) -> None:
        self.take_name()
        self._close()

    def take_name(self) -> None:
        """Make everything durable and give the file, which stays open, its final name. Raises as `finish`."""
        with self._translated("finish"):
            if self._overwrite and existing_file(self.path):
                from lamella.sources.replacement import hand_on

                self.notes += hand_on(self.path, self._fd)
            os.ftruncate(self._fd, self._size)
            os.fsync(self._fd)
            if self._overwrite:
                self.working_path.replace(self.path)
            else:
                rename_to_free_name(self.working_path, self.path)
            self.working_path = self.path
            sync_directory(self.path.parent)


def resolved(path: Path) -> Path:
    """Follow links, so that a link to the target stays a link. OSError if the directory does not exist."""
    final = path.resolve()
    if final != path.absolute():
        from lamella.sources.used_target import refuse_foreign_links  # only where there are links

        refuse_foreign_links(path)
    final.parent.stat()
    return final


def existing_file(path: Path) -> os.stat_result | None:
    """The state of the regular file at `path`, None if nothing is there. Raises UsageError for anything else."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path} is not a regular file", obj=str(path))
    return found


def open_partial(partial: Path, notes: list[str]) -> int:
    """Open the incomplete file, new or left by an earlier attempt, as its only writer; note what cannot be had."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    found = existing_file(partial)
    if found is not None and found.st_nlink > 1:
        # An attempt that ended between giving the final name and taking this one away: the bytes belong to that name.
        partial.unlink()
        found = None
    if found is not None and found.st_uid != os.geteuid():
        raise UsageError(f"{partial} belongs to another user", obj=str(partial), hint="remove it")
    try:
        fd = os.open(partial, flags | (os.O_CREAT | os.O_EXCL if found is None else 0), 0o600)
    except FileExistsError as reason:
        raise Locked(f"another restore has just begun to write {partial}", obj=str(partial)) from reason
    try:
        lock(fd, partial, notes)
        opened = os.fstat(fd)
        # The lock may have come free because its holder finished: then this descriptor is the finished file.
        if opened.st_nlink != 1 or not os.path.samestat(opened, partial.lstat()):
            raise Locked(f"another restore has just finished with {partial}", obj=str(partial))
        _make_private(fd, partial, notes)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _make_private(fd: int, path: Path, notes: list[str]) -> None:
    try:
        os.fchmod(fd, 0o600)
    except OSError as reason:  # FAT, CIFS and many in user space keep one mode for all files
        if os.fstat(fd).st_mode & 0o077:
            notes.append(f"the file system keeps no permissions, others may read {path}: {reason.strerror}")


def lock(fd: int, path: Path, notes: list[str]) -> None:
    """Keep other restores out of an open file; note where the file system cannot. Raises Locked."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as reason:
        raise Locked(f"another restore is writing {path}", obj=str(path)) from reason
    except OSError as reason:
        if reason.errno not in _NO_LOCKS:
            raise
        notes.append(f"the file system has no locks, a second restore to {path} would not be noticed")


def own_bytes(fd: int) -> int:
    """The space an open file has already."""
    return os.fstat(fd).st_blocks * 512  # stat(2): counted in 512 bytes everywhere


def check_space(fd: int, path: Path, needed_bytes: int) -> None:
    """Raise SourceError if the file system of an open file has not that much room."""
    there = os.fstatvfs(fd)
    free = there.f_bavail * there.f_frsize
    if needed_bytes > free:
        raise SourceError(
            f"not enough space for {path}: {shown_bytes(needed_bytes - free)} too few",
            obj=str(path),
            hint="free some space, or choose another place",
        )


def rename_to_free_name(partial: Path, path: Path) -> None:
    """Rename, but never over something that appeared in the meantime."""
    try:
        path.hardlink_to(partial)
    except FileExistsError as reason:
        raise _exists(path) from reason
    except OSError as reason:
        if reason.errno not in _NO_LINKS:
            raise
        # A file system without hard links: looking first leaves a gap of microseconds, which nothing here can close.
        if existing_file(path):
            raise _exists(path) from reason
        partial.rename(path)
    else:
        partial.unlink(missing_ok=True)  # another restore may have tidied up after this one already


def _exists(path: Path) -> UsageError:
    return UsageError(f"{path} exists already", obj=str(path), hint="add --overwrite, or choose another name")
