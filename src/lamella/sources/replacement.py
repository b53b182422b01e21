"""The inheritance of a file that replaces another one: owner, rights, attributes, layout.

Narrower rather than wider: a right that cannot be given to the same people is given to nobody but the owner.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from lamella.base.errors import UsageError
from lamella.sources.cloning import FS_NOCOW_FL, inode_flags, set_nocow

_ACL: Final = "system.posix_acl_access"
_OF_CONTENT: Final = frozenset({"security.capability", "security.ima", "security.evm"})
"""Attributes that say something of the old content: the kernel itself drops them when a file is written."""
# linux/fs.h
_FS_IMMUTABLE_FL: Final = 0x10
_FS_APPEND_FL: Final = 0x20


def require_replaceable(path: Path) -> None:
    """Raises UsageError if the kernel would refuse at the end, or a guest would go on with a file without a name."""
    from lamella.sources.qemu_lock import qemu_may_write  # only where a file is replaced or written over

    with _opened(path) as old:
        if old is not None and qemu_may_write(old):
            hint = "shut the guest down first, or choose another name"
            raise UsageError(f"{path} is in use: QEMU has it open for writing", obj=str(path), hint=hint)
        if old is not None and inode_flags(old) & (_FS_IMMUTABLE_FL | _FS_APPEND_FL):
            hint = f"chattr -i -a {path}, or choose another name"
            raise UsageError(f"{path} may not be replaced: it is marked immutable", obj=str(path), hint=hint)


def hand_on_layout(path: Path, fd: int) -> None:
    """Have the empty file `fd` written in place if the file at `path` is (chattr +C): later it is too late."""
    with _opened(path) as old, suppress(OSError):
        if old is not None and inode_flags(old) & FS_NOCOW_FL:
            set_nocow(fd, True)


def hand_on(path: Path, fd: int) -> list[str]:
    """Give `fd`, which only its owner can use, everything else of the file at `path`; say what could not be given.

    Only root gives files away, FAT knows no owners, a user namespace not all of them: what cannot be kept is no reason
    to lose a restored volume.
    """
    old = path.lstat()
    attributes = _attributes(path)
    lost = _own(fd, old)
    acl = attributes.pop(_ACL, None)
    lost += _set(fd, attributes)
    mode = _narrowed(stat.S_IMODE(old.st_mode), owner="owner" not in lost, group="group" not in lost)
    with suppress(OSError):  # inherited from the directory; the old file has none, or another one
        os.removexattr(fd, _ACL)
    if acl is not None and (lost.count("owner") + lost.count("group") or _set(fd, {_ACL: acl})):
        lost.append("access control list")
        mode &= 0o700
    try:
        os.fchmod(fd, mode)
    except OSError:
        if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
            lost.append("mode")
    return [f"{path} does not have the {' and the '.join(lost)} of the file that it replaced"] if lost else []


def _own(fd: int, old: os.stat_result) -> list[str]:
    try:
        os.fchown(fd, old.st_uid, old.st_gid)
    except OSError:
        with suppress(OSError):  # a member of the group may do this much
            os.fchown(fd, -1, old.st_gid)
    new = os.fstat(fd)
    return ["owner"] * (new.st_uid != old.st_uid) + ["group"] * (new.st_gid != old.st_gid)


def _narrowed(mode: int, *, owner: bool, group: bool) -> int:
    """The mode for a file with another owner or group: whoever falls into a wider class gains nothing by that."""
    if not owner:
        above = mode >> 6 & 0o7
        mode &= ~stat.S_ISUID & (0o7700 | above << 3 | above)
    if not group:
        mode &= ~(stat.S_ISGID | 0o070) & (0o7770 | mode >> 3 & 0o7)
    return mode


def _attributes(path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with suppress(OSError):  # most file systems that know no attributes say so
        for name in os.listxattr(path, follow_symlinks=False):
            if name not in _OF_CONTENT:
                found[name] = os.getxattr(path, name, follow_symlinks=False)
    return found


def _set(fd: int, attributes: dict[str, bytes]) -> list[str]:
    """Set attributes; returns the names of those that cannot be set."""
    refused: list[str] = []
    for name, value in attributes.items():
        try:
            if not _has(fd, name, value):
                os.setxattr(fd, name, value)
        except OSError:
            refused.append(name)
    return refused


def _has(fd: int, name: str, value: bytes) -> bool:
    try:
        return os.getxattr(fd, name) == value
    except OSError:
        return False


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """A descriptor of the old file, None where it may be replaced but not read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)
