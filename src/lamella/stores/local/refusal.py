"""Why the file system refuses: the path that the account may not use, and the command that mends it."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from lamella.base.errors import StoreRefused
from lamella.stores.local.directory import TEMPORARY


def refusal(root: Path, obj: str, text: str) -> StoreRefused:
    """The error for an object, or a prefix of names, below `root` that this account may not read or write."""
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
