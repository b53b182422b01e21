"""New files and directories of a repository, for everybody who uses the repository.

What root makes in a repository of somebody else belongs to that account, and where the repository's directory has the
set-group-id bit, its group may use what anybody makes. A file system that refuses knows no owners, or another machine
decides on them: then everything stays private.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from lamella.stores.local.directory import DIRECTORY_FLAGS


def new_directory(parent: int, part: str, root: int) -> int:
    """Make a directory of mode 0700, unless another writer was faster; its descriptor. Raises OSError."""
    with suppress(FileExistsError):
        os.mkdir(part, 0o700, dir_fd=parent)
    made = os.open(part, DIRECTORY_FLAGS, dir_fd=parent)
    if not os.listdir(made):  # noqa: PTH208 - a descriptor; a directory that somebody put in its place meanwhile gives nothing away
        _share(made, root)
    return made


def new_file(parent: int, leaf: str, root: int) -> int:
    """Make a file of mode 0600 that must not exist; its descriptor, open for writing. Raises OSError."""
    made = os.open(leaf, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
    _share(made, root)
    return made


def write_whole(descriptor: int, content: bytes | memoryview) -> None:
    """Write all of `content` and wait until it is on the device. Raises OSError."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


def _share(made: int, root: int) -> None:
    above = os.fstat(root)
    with suppress(OSError):
        if above.st_uid and not os.geteuid():
            os.fchown(made, above.st_uid, above.st_gid)
        if above.st_mode & stat.S_ISGID:
            mode = os.fstat(made).st_mode
            os.fchmod(made, stat.S_IMODE(mode) | above.st_mode & (0o2070 if stat.S_ISDIR(mode) else 0o060))
