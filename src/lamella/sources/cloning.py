"""Questions to Linux file systems about clones: which one it is, whether it can share blocks, and to do so.

Numbers are those of the common ioctl encoding; where an architecture has another one, the kernel answers ENOTTY and the
file counts as lying on a file system that can do nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lamella.base.errors import SourceAtRisk, SourceError

_LONG: Final = struct.calcsize("l")
_NAMELESS: Final = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC


def _read(kind: int, number: int, size: int) -> int:
    return 2 << 30 | size << 16 | kind << 8 | number


def _write(kind: int, number: int, size: int) -> int:
    return 1 << 30 | size << 16 | kind << 8 | number


# linux/fs.h
_FICLONE: Final = _write(0x94, 9, 4)
_FS_IOC_GETFLAGS: Final = _read(ord("f"), 1, _LONG)
_FS_IOC_SETFLAGS: Final = _write(ord("f"), 2, _LONG)
_FS_IOC_GETVERSION: Final = _read(ord("v"), 1, _LONG)
FS_NOCOW_FL: Final = 0x00800000

# linux/btrfs.h: struct btrfs_ioctl_fs_info_args, the id after max_id and num_devices
_BTRFS_INFO_BYTES: Final = 1024
_BTRFS_IOC_FS_INFO: Final = _read(0x94, 31, _BTRFS_INFO_BYTES)
_BTRFS_FSID: Final = slice(16, 32)

# xfs/xfs_fs.h: struct xfs_fsop_geom_v1
_XFS_GEOMETRY: Final = struct.Struct("=8I4Q16s7I4x")
_XFS_IOC_FSGEOMETRY_V1: Final = _read(ord("X"), 100, _XFS_GEOMETRY.size)
_XFS_UUID, _XFS_FLAGS = 12, 16
_XFS_GEOM_FLAGS_REFLINK: Final = 1 << 20

_CANNOT: Final = {
    errno.EINVAL: "the file system does not allow it for this file",
    errno.EOPNOTSUPP: "the file system cannot do it",
    errno.ENOTTY: "the file system cannot do it",
    errno.EXDEV: "the directory for checkpoints is on another file system",
    errno.ETXTBSY: "the file is in use as swap space",
    errno.EPERM: "it is not permitted",
    errno.EACCES: "it is not permitted",
    errno.EROFS: "the file system is read-only",
    errno.EDQUOT: "the quota is used up",
    errno.EISDIR: "the kernel knows no files without a name",
    errno.ENOENT: "there is no /proc to name it by",
}


@dataclass(frozen=True, slots=True)
class FileSystem:
    """The file system a file lies on, as far as clones are concerned."""

    kind: str
    """`btrfs`, `xfs`, or empty for any other."""
    uuid: str
    """32 hexadecimal digits; empty for any other."""
    shares: bool
    """Whether files can share blocks; of other kinds it is not known before it was tried."""
    tracks: bool
    """Whether equal addresses in the extent maps of two files mean equal data, as long as both files exist."""


def file_system(fd: int) -> FileSystem:
    """Ask which file system an open file lies on.

    Only Btrfs and XFS `track`. Elsewhere an address may say nothing: the CIFS client gives the file's own offset, and
    bcachefs the address on one of several devices without saying which.
    """
    found = _answer(fd, _BTRFS_IOC_FS_INFO, _BTRFS_INFO_BYTES)
    if found is not None:
        return FileSystem("btrfs", found[_BTRFS_FSID].hex(), shares=True, tracks=True)
    found = _answer(fd, _XFS_IOC_FSGEOMETRY_V1, _XFS_GEOMETRY.size)
    if found is not None:
        fields = _XFS_GEOMETRY.unpack(found)
        shares = bool(fields[_XFS_FLAGS] & _XFS_GEOM_FLAGS_REFLINK)
        return FileSystem("xfs", fields[_XFS_UUID].hex(), shares, tracks=shares)
    return FileSystem("", "", shares=False, tracks=False)


def driver_for(image: Path) -> str:
    """The best driver for what is at a path: `btrfs`, `reflink` or `file`, found without leaving a trace."""
    try:
        # Looked at before it is opened: opening a device may have effects.
        if not stat.S_ISREG(image.stat().st_mode):
            return "file"
        fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return "file"
    try:
        system = file_system(fd)
    finally:
        os.close(fd)
    if system.kind == "btrfs":
        return "btrfs"
    shares = system.shares if system.kind else _shares(image.resolve().parent)
    return "reflink" if shares else "file"


def generation(fd: int) -> int:
    """The number that tells two files apart that had the same inode one after the other; 0 where there is none."""
    found = _answer(fd, _FS_IOC_GETVERSION, _LONG)
    return 0 if found is None else int(struct.unpack_from("=I", found)[0])


def nameless_file(directory: int) -> int | str:
    """A new empty file without a name, open for writing; or the reason why there can be none.

    Only we may read it. It vanishes with the descriptor unless it is linked. Raises SourceError.
    """
    try:
        fd = os.open(".", _NAMELESS, 0o400, dir_fd=directory)
    except OSError as reason:
        return refusal(reason)
    os.fchmod(fd, 0o400)  # whatever the umask took away
    return fd


def clone(image: int, target: int) -> str:
    """Let the empty file `target` share all blocks of `image` as they are at one moment.

    Returns the reason if that cannot be had, else nothing. Raises SourceError; SourceAtRisk if space ran out.
    """
    # Btrfs wants both with or both without checksums, which follows from the nodatacow flag or from mount options
    # that left no mark; so where the same flag is refused, the other one is tried.
    nocow = bool(inode_flags(image) & FS_NOCOW_FL)
    why = ""
    for wanted in (nocow, not nocow):
        try:
            set_nocow(target, wanted)
            fcntl.ioctl(target, _FICLONE, image)
        except OSError as reason:
            why = refusal(reason)
            if reason.errno != errno.EINVAL:
                return why
        else:
            return ""
    return why


def _shares(directory: Path) -> bool:
    """Whether two files of a directory can share blocks; tried with files that never have a name."""
    with ExitStack() as opened:
        try:
            first = os.open(directory, _NAMELESS, 0o600)
            opened.callback(os.close, first)
            second = os.open(directory, _NAMELESS, 0o600)
            opened.callback(os.close, second)
            fcntl.ioctl(second, _FICLONE, first)
        except OSError:
            return False
    return True


def _answer(fd: int, request: int, size: int) -> bytes | None:
    """The result of an ioctl in a buffer of `size` bytes; None if the file system does not know it."""
    buffer = bytearray(size)
    try:
        fcntl.ioctl(fd, request, buffer)
    except OSError:
        return None
    return bytes(buffer)


def inode_flags(fd: int) -> int:
    """The attributes that chattr(1) sets, as FS_*_FL bits of linux/fs.h; 0 where the file system has none."""
    # The kernel writes an int where the header says long.
    found = _answer(fd, _FS_IOC_GETFLAGS, _LONG)
    return 0 if found is None else int(struct.unpack_from("=I", found)[0])


def set_nocow(fd: int, wanted: bool) -> None:
    """Have an empty file written in place, or copied on write. Raises OSError."""
    flags = inode_flags(fd)
    if bool(flags & FS_NOCOW_FL) != wanted:
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("=I", flags ^ FS_NOCOW_FL).ljust(_LONG, b"\0"))


def refusal(reason: OSError) -> str:
    """Why a clone cannot be had, if that lies in the file or the place: the volume can still be read as it is.

    Raises SourceAtRisk if no space is left, SourceError for everything else.
    """
    why = _CANNOT.get(reason.errno or 0)
    if why is not None:
        return why
    if reason.errno == errno.ENOSPC:
        raise SourceAtRisk("no space is left for a checkpoint", hint="free space on the file system") from reason
    raise SourceError(f"a checkpoint cannot be made: {reason.strerror or reason}") from reason
