"""Writing the small files of a command: recovery sheets, keys, documents. Never a volume."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from lamella.base.durable import sync_directory, write_new
from lamella.base.errors import LamellaError, UsageError
from lamella.cli.files import reason_of

_CANNOT_LINK = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
"""What file systems without hard links answer (link(2))."""


def write_file(path: Path, content: bytes, *, overwrite: bool) -> None:
    """Write a file only its owner can read, durably; what it replaces is replaced at once.

    Raises UsageError if it exists and `overwrite` is not given, LamellaError when it cannot be written.
    """
    # Never under its own name before it is whole: a run that is killed must not leave half a file that is believed.
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}.lamella-partial")
    try:
        write_new(made, content)
        if overwrite:
            made.replace(path)
        else:
            _place(made, path)
        sync_directory(path.parent)
    except FileExistsError as error:
        raise exists(path) from error
    except OSError as error:
        raise LamellaError(f"cannot write {path}: {reason_of(error)}", obj=str(path)) from error
    finally:
        with suppress(OSError):
            made.unlink(missing_ok=True)


def _place(made: Path, path: Path) -> None:
    """Give a finished file its name, which nothing has. Raises FileExistsError, OSError."""
    try:
        path.hardlink_to(made)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        # A USB stick's file system: between the question and the answer somebody else could take the name.
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        made.replace(path)


def exists(path: Path) -> UsageError:
    """The error for a file that must not be there."""
    return UsageError(f"{path} exists already", obj=str(path))
