"""What an error of the file system means for a caller: the path that the account may not use, and what mends it."""

from __future__ import annotations

import errno
import os
import pwd
import stat
from pathlib import Path

from lamella.base.errors import (
    LamellaError,
    NoRepository,
    ObjectNotFound,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
)
from lamella.stores.local.directory import FULL, TEMPORARY

_REFUSED = {errno.EROFS, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EFBIG}
_ROOM = "make room there, then run the command again"


def store_error(error: OSError, root: Path, obj: str, *, absent: bool) -> StoreError:
    """Return what `error` means for a caller of the store at `root`; `absent`: a missing file is a missing object."""
    text = error.strerror or str(error)
    if absent and error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return ObjectNotFound("no such object", obj=obj)
    if error.errno in {errno.EACCES, errno.EPERM, *FULL}:
        return _refusal(error, root, obj)
    if error.errno in _REFUSED:
        return StoreRefused(f"the file system refuses: {text}", obj=obj)
    failed = StoreUnavailable(f"the file system failed: {text}", obj=obj)
    failed.brief = error.errno == errno.EIO
    return failed


def missing(error: OSError, place: Path, *, create: bool) -> LamellaError:
    """The error for a directory that is not there, or that cannot be made where it would be `create`d."""
    if not create:
        return NoRepository("there is no such directory", obj=str(place), hint="is its disk mounted?")
    if not place.parent.is_dir():
        hint = "make the directory above it first, and check that its disk is mounted"
        return NoRepository("there is no such directory", obj=str(place), hint=hint)
    return _unmakeable(
        place, error.strerror or str(error)
    )  # /proc and its like say "not found" of what nobody can make there


def _unmakeable(place: Path, text: str) -> StoreRefused:
    return StoreRefused(f"no directory can be made in {place.parent}: {text}", obj=str(place))


def _refusal(error: OSError, root: Path, obj: str) -> StoreError:
    """The error for an object, or a prefix of names, below `root` that this account may not read or write, or that
    finds no room.
    """
    text = error.strerror or str(error)
    if error.errno in FULL:
        quota = f": {text}" if error.errno == errno.EDQUOT else ""
        return StoreFull(f"no space left in {root}{quota}", obj=obj, hint=_ROOM)
    if obj == str(root) and _may(root.parent, os.X_OK) and not os.path.lexists(root):
        return _unmakeable(root, text)
    ways: list[list[str]] = [[*Path(obj).parts], [TEMPORARY]]
    path = next((found for access in (os.R_OK, os.W_OK) for way in ways if (found := _closed(root, way, access))), root)
    return StoreRefused(f"the file system refuses {path}: {text}", obj=obj, hint=_cure(root, path))


def _closed(root: Path, way: list[str], access: int) -> Path | None:
    """The first directory or file on the way that may not be read, or the first directory that may not be written."""
    path = root
    for part in ["", *way]:
        path = path / part
        try:
            is_directory = stat.S_ISDIR(path.stat().st_mode)
        except OSError:
            return None  # not made yet, or out of reach: what is above it is found first
        if is_directory and not _may(path, access | os.X_OK):
            return path
        if access == os.R_OK and not _may(path, access):
            return path
    return None


def _may(path: Path, access: int) -> bool:
    return os.access(path, access, effective_ids=True)


def _cure(root: Path, path: Path) -> str:
    try:
        mine, owner = root.stat().st_uid, path.stat().st_uid
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return "run as the account that owns the repository"
    me = os.geteuid()
    if owner != me and mine == me:
        return f"{path} belongs to {_name(owner)}; as root: chown -R {_name(me)} {root}"
    if owner != me:
        return f"{path} belongs to {_name(owner)}: run as {_name(mine)}, the owner of the repository"
    return f"its mode is {mode:04o}: chmod -R u+rwX {root}"


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
