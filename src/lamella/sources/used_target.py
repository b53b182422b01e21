"""Restoring over a file or device that is there. Whoever uses either is asked for before anything is written."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from lamella.base.errors import SourceError, UsageError, shown_bytes
from lamella.sources.local_target import check_space, existing_file, lock, own_bytes, resolved
from lamella.sources.target import OpenTarget

PROC: Final = Path("/proc")
SYS: Final = Path("/sys")

_MAX_LINKS: Final = 40
"""The kernel follows no more (path_resolution(7))."""
_OCTAL = re.compile(r"\\([0-7]{3})")


class InPlaceFile(OpenTarget):
    """An existing file, overwritten where it lies: its old state is lost, and stays a mixture if the restore fails."""

    holds = True

    def prepare(self, size: int, needed_bytes: int) -> None:
        with self._opening():
            self.path = self.working_path = resolved(self._given)
            old = existing_file(self.path)
            if old is None:
                raise UsageError(f"{self.path} does not exist", obj=str(self.path), hint="leave out --in-place")
            refuse_used(self.path, uses_of_file(self.path))
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            lock(self._fd, self.path, self.notes)
            check_space(self._fd, self.path, needed_bytes - own_bytes(self._fd))
            os.ftruncate(self._fd, size)
            self._begin(size)

    def finish(self) -> None:
        with self._translated("finish"):
            os.ftruncate(self._fd, self._size)
            os.fsync(self._fd)
        self._close()


class BlockDevice(OpenTarget):
    """A block device that nobody uses, at least as large as the volume; what lies behind the volume stays as it is."""

    holds = True

    def prepare(self, size: int, needed_bytes: int) -> None:
        with self._opening():
            self.path = self.working_path = resolved(self._given)
            found = self.path.stat()
            if not stat.S_ISBLK(found.st_mode):
                raise UsageError(f"{self.path} is not a block device", obj=str(self.path))
            refuse_used(self.path, uses_of_device(found.st_rdev))
            self._fd = self._open_exclusively()
            device_size = os.lseek(self._fd, 0, os.SEEK_END)
            if device_size < size:
                raise SourceError(
                    f"{self.path} is {shown_bytes(size - device_size)} too small for the volume", obj=str(self.path)
                )
            self.tail_bytes = device_size - size
            self._begin(size)

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


def refuse_used(path: Path, uses: list[str]) -> None:
    """Raise UsageError if there are any uses of what would be written."""
    if uses:
        raise in_use(path, "; ".join(uses))


def in_use(path: Path, how: str) -> UsageError:
    """The error that says why a target must not be written."""
    return UsageError(
        f"{path} is in use: {how}", obj=str(path), hint="unmount or detach it, or shut the guest down, first"
    )


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
    """Return the loop devices that show the file at `path`, and whether QEMU writes to that file, one line each."""
    from lamella.sources.qemu_lock import qemu_may_write  # only where a file is replaced or written over

    found = []
    with suppress(OSError), path.open("rb") as file:  # whoever opens it to write says why that fails
        if qemu_may_write(file.fileno()):
            found.append("QEMU has it open for writing")
    # drivers/block/loop.c: the attribute holds the path as it was when the loop device was set up.
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


def refuse_foreign_links(path: Path, left: int = _MAX_LINKS) -> None:
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
        refuse_foreign_links(one.parent / one.readlink(), left - 1)
