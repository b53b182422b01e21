"""What is in a directory, as the system says it, to be compared with a restored one."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any


def seen(top: Path | bytes, *, times: bool = True) -> dict[bytes, tuple[Any, ...]]:
    """Everything below a directory: rights, owners, times, links, attributes, contents."""
    base = os.fsencode(top)
    found: dict[bytes, tuple[Any, ...]] = {}
    for above, folders, files in os.walk(base):
        for name in [*folders, *files]:
            path = os.path.join(above, name)
            found[os.path.relpath(path, base)] = look(path, times=times)
    return found


def look(path: bytes, *, times: bool = True) -> tuple[Any, ...]:
    """What there is to say of one file."""
    status = os.lstat(path)
    content: object = None
    if stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            content = file.read()
    attributes = () if stat.S_ISLNK(status.st_mode) else tuple(sorted(_attributes(path)))
    links = status.st_nlink if stat.S_ISREG(status.st_mode) else 1
    when = status.st_mtime_ns if times else 0
    return (status.st_mode, status.st_uid, status.st_gid, when, links, attributes, content)


def _attributes(path: bytes) -> list[tuple[str, bytes]]:
    return [(name, os.getxattr(path, name)) for name in os.listxattr(path) if not name.startswith("security.selinux")]
