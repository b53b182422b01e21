"""Writing a file so that a crash leaves its old content or its new content, whole."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

PRIVATE = 0o600
CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES}


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file that only its owner can read, in one step. Raises OSError.

    Two writers of one file in one process need a lock: they share the temporary name.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # a killed process of the same number left it
        write_new(temporary, content)
        temporary.replace(path)
        sync_directory(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_new(path: Path, content: bytes) -> None:
    """Write a private file that must not exist, durably except for its name. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def make_private(path: Path) -> None:
    """Make a directory and those that are missing above it, for their owner alone. Raises OSError.

    `Path.mkdir(parents=True)` would give the ones above the mode that the umask allows: to everybody, where it is 0.
    """
    if not path.is_dir():
        make_private(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def sync_directory(directory: Path | int) -> None:
    """Make the names in a directory, a path or an open descriptor, durable. Raises OSError.

    The one rule for file systems that cannot sync a directory (CIFS answers EINVAL, some in user space ENOTSUP or
    ENOSYS), and for a directory that may be written and not read: everything is synced, which says as much.
    """
    descriptor = -1
    try:
        descriptor = (
            os.open(directory, os.O_RDONLY | os.O_CLOEXEC) if isinstance(directory, Path) else os.dup(directory)
        )
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise
        os.sync()
    finally:
        if descriptor >= 0:
            os.close(descriptor)
