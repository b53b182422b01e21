"""Restoring to a file or a block device. Whoever uses either is asked for before anything is written."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from lamella.base.durable import sync_directory
from lamella.base.errors import Locked, SourceError, UsageError
from lamella.sources.target import OldState, OpenTarget, in_use, refuse_used

PARTIAL_SUFFIX: Final = ".lamella-partial"
"""Ends the name of a file whose restore is not complete."""
PROC: Final = Path("/proc")
SYS: Final = Path("/sys")

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_MAX_LINKS: Final = 40
"""The kernel follows no more (path_resolution(7))."""
_OCTAL = re.compile(r"\\([0-7]{3})")


class NewFile(OpenTarget):
    """A file written beside its final name, and renamed when it is complete."""

    starts_zeroed = True

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        super().__init__(path)
        self._overwrite = overwrite
        self.old_state = OldState.REPLACED if path.exists() else OldState.NONE

    def prepare(self, size: int, needed_bytes: int) -> None:
        with self._opening():
            self.path = _resolved(self._given)
            self.working_path = self.path.with_name(self.path.name + PARTIAL_SUFFIX)
            if _existing_file(self.path) and not self._overwrite:
                raise _exists(self.path)
            self._fd = _open_partial(self.working_path)
            os.ftruncate(self._fd, 0)  # before the space is counted: an earlier attempt may hold it
            _check_space(self._fd, self.path, needed_bytes)
            os.ftruncate(self._fd, size)
            self._size = size

    def finish(self) -> None:
        with self._translated("finish"):
            old = _existing_file(self.path)
            if old and self._overwrite:
                # Only root gives files away, FAT knows no owners, a user namespace not all of them: what cannot be
                # kept is no reason to lose a restored volume.
                with suppress(OSError):
                    os.fchown(self._fd, old.st_uid, old.st_gid)
                with suppress(OSError):
                    os.fchmod(self._fd, stat.S_IMODE(old.st_mode))
            os.ftruncate(self._fd, self._size)
            os.fsync(self._fd)
            if self._overwrite:
                self.working_path.replace(self.path)
            else:
                _rename_to_free_name(self.working_path, self.path)
            self.working_path = self.path
            sync_directory(self.path.parent)
        self._close()


class InPlaceFile(OpenTarget):
    """An existing file, overwritten where it lies: its old state is lost, and stays a mixture if the restore fails."""

    def prepare(self, size: int, needed_bytes: int) -> None:
        with self._opening():
            self.path = self.working_path = _resolved(self._given)
            old = _existing_file(self.path)
            if old is None:
                raise UsageError(f"{self.path} does not exist", obj=str(self.path), hint="leave out --in-place")
            refuse_used(self.path, uses_of_file(self.path))
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            _lock(self._fd, self.path)
            own_bytes = os.fstat(self._fd).st_blocks * 512  # stat(2): counted in 512 bytes everywhere
            _check_space(self._fd, self.path, needed_bytes - own_bytes)
            os.ftruncate(self._fd, size)
            self._size = size

    def finish(self) -> None:
        with self._translated("finish"):
            os.ftruncate(self._fd, self._size)
            os.fsync(self._fd)
        self._close()


class BlockDevice(OpenTarget):
    """A block device that nobody uses, at least as large as the volume; what lies behind the volume stays as it is."""

    def prepare(self, size: int, needed_bytes: int) -> None:
        with self._opening():
            self.path = self.working_path = _resolved(self._given)
            found = self.path.stat()
            if not stat.S_ISBLK(found.st_mode):
                raise UsageError(f"{self.path} is not a block device", obj=str(self.path))
            refuse_used(self.path, uses_of_device(found.st_rdev))
            self._fd = self._open_exclusively()
            device_size = os.lseek(self._fd, 0, os.SEEK_END)
            if device_size < size:
                raise SourceError(
                    f"{self.path} has {device_size} bytes, the volume {size}: too small", obj=str(self.path)
                )
            self._size = size
            self.tail_bytes = device_size - size

    def finish(self) -> None:
        with self._translated("finish"):
            os.fsync(self._fd)
        self._close()

    def stored(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        yield start, end

    def _open_exclusively(self) -> int:
        try:
            # open(2): without O_CREAT, O_EXCL on a block device fails with EBUSY while the kernel uses it, in any mount
            # namespace, and keeps it from being mounted until it is closed.
            return os.open(self.path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        except OSError as reason:
            if reason.errno != errno.EBUSY:
                raise
            raise in_use(self.path, "the kernel holds it") from reason


def _resolved(path: Path) -> Path:
    """Follow links, so that a link to the target stays a link. OSError if the directory does not exist."""
    _refuse_foreign_links(path)
    final = path.resolve()
    final.parent.stat()
    return final


def _refuse_foreign_links(path: Path, left: int = _MAX_LINKS) -> None:
    """Raise UsageError for another user's link in a directory where everybody may put links, such as /tmp.

    The kernel does the same if it opens a name (fs.protected_symlinks, proc_sys_fs(5)); links are followed here.
    """
    for one in (*reversed(path.absolute().parents), path.absolute()):
        if left == 0 or not one.is_symlink():
            continue
        above, owner = one.parent.stat(), one.lstat().st_uid
        everybodys = above.st_mode & stat.S_ISVTX and above.st_mode & stat.S_IWOTH
        if everybodys and owner not in (os.geteuid(), above.st_uid):
            raise UsageError(f"{one} is another user's link: it is not followed", obj=str(path), hint="name its target")
        _refuse_foreign_links(one.parent / one.readlink(), left - 1)


def _existing_file(path: Path) -> os.stat_result | None:
    """The state of the regular file at `path`, None if nothing is there. Raises UsageError for anything else."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path} is not a regular file", obj=str(path))
    return found


def _open_partial(partial: Path) -> int:
    """Open the incomplete file, new or left by an earlier attempt, as its only writer."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    found = _existing_file(partial)
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
        _lock(fd, partial)
        opened = os.fstat(fd)
        # The lock may have come free because its holder finished: then this descriptor is the finished file.
        if opened.st_nlink != 1 or not os.path.samestat(opened, partial.lstat()):
            raise Locked(f"another restore has just finished with {partial}", obj=str(partial))
        os.fchmod(fd, 0o600)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as reason:
        raise Locked(f"another restore is writing {path}", obj=str(path)) from reason


def _check_space(fd: int, path: Path, needed_bytes: int) -> None:
    there = os.fstatvfs(fd)
    free = there.f_bavail * there.f_frsize
    if needed_bytes > free:
        raise SourceError(
            f"not enough space for {path}: {needed_bytes} bytes needed, {free} free",
            obj=str(path),
            hint="free some space, or choose another place",
        )


def _rename_to_free_name(partial: Path, path: Path) -> None:
    """Rename, but never over something that appeared in the meantime."""
    try:
        path.hardlink_to(partial)
    except FileExistsError as reason:
        raise _exists(path) from reason
    except OSError as reason:
        if reason.errno not in _NO_LINKS:
            raise
        # A file system without hard links: looking first leaves a gap of microseconds, which nothing here can close.
        if _existing_file(path):
            raise _exists(path) from reason
        partial.rename(path)
    else:
        partial.unlink(missing_ok=True)  # another restore may have tidied up after this one already


def _exists(path: Path) -> UsageError:
    return UsageError(f"{path} exists already", obj=str(path), hint="add --overwrite, or choose another name")


def uses_of_device(rdev: int, *, proc: Path = PROC, sys: Path = SYS) -> list[str]:
    """Return why the device with number `rdev` must not be written, one line each; empty if nobody uses it.

    Looks at the device, its partitions, and the devices built on any of them: mounts of this mount namespace, swap, and
    holders such as LVM, RAID and encryption. Other namespaces are seen by opening the device exclusively only.
    """
    numbers, found = _devices_on(_number(rdev), sys)
    found += [f"mounted at {where}" for number, where in _mounts(proc) if number in numbers]
    found += [f"used as swap: {where}" for number, where in _swaps(proc) if number in numbers]
    return list(dict.fromkeys(found))


def uses_of_file(path: Path, *, sys: Path = SYS) -> list[str]:
    """Return the loop devices that show the file at `path`, one line each."""
    # drivers/block/loop.c: the attribute holds the path as it was when the loop device was set up.
    found = []
    for attribute in sorted((sys / "block").glob("loop*/loop/backing_file")):
        try:
            same = path.samefile(attribute.read_text(errors="surrogateescape").removesuffix("\n"))
        except OSError:
            continue
        if same:
            found.append(f"shown as /dev/{attribute.parts[-3]}")
    return found


def _devices_on(number: str, sys: Path) -> tuple[set[str], list[str]]:
    """The numbers of the device and all that is built on it, and a line for each holder."""
    seen: set[str] = set()
    lines = []
    waiting = [number]
    while waiting:
        number = waiting.pop()
        if number in seen:
            continue
        seen.add(number)
        place = sys / "dev" / "block" / number
        partitions = [entry.parent for entry in place.glob("*/partition")]
        holders = list(place.glob("holders/*"))
        lines += [f"held by /dev/{holder.name}" for holder in holders]
        waiting += [(entry / "dev").read_text().strip() for entry in partitions + holders if (entry / "dev").exists()]
    return seen, lines


def _mounts(proc: Path) -> Iterator[tuple[str, str]]:
    """Yield (device number, mount point) for every mount (proc(5), mountinfo)."""
    for line in (proc / "self" / "mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        where = _unescaped(fields[4])
        yield fields[2], where
        # btrfs and others show a number of their own there; then only the source tells the device.
        source = _unescaped(fields[fields.index("-", 6) + 2])
        if source.startswith("/") and (number := _number_at(source)):
            yield number, where


def _swaps(proc: Path) -> Iterator[tuple[str, str]]:
    for line in (proc / "swaps").read_text(errors="surrogateescape").splitlines()[1:]:
        where = _unescaped(line.split()[0])
        if number := _number_at(where):
            yield number, where


def _number_at(path: str) -> str:
    """The device number of the block device at `path`; empty if there is none."""
    try:
        found = Path(path).stat()
    except OSError:
        return ""
    return _number(found.st_rdev) if stat.S_ISBLK(found.st_mode) else ""


def _number(rdev: int) -> str:
    return f"{os.major(rdev)}:{os.minor(rdev)}"


def _unescaped(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
