"""Reading and writing the small files of a command: secrets, sheets, documents. Never a volume."""

from __future__ import annotations

import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lamella.base.errors import LamellaError, UsageError


def read_file(path: str | Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes. Raises UsageError when it cannot be read or is larger."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {_reason(error)}", obj=str(path)) from error
    if len(content) > limit:
        raise UsageError(f"{path} has more than {limit} bytes", obj=str(path))
    return content


def warn_if_readable(path: str, warn: Callable[[str], None]) -> None:
    """Warn of a file with a secret in it that other users can read."""
    with suppress(OSError):  # whoever reads it says why that fails
        if Path(path).stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            warn(f"other users can read {path}, which holds a secret; run: chmod go-rwx {path}")


def write_file(path: Path, content: bytes, *, overwrite: bool) -> None:
    """Write a file only its owner can read, durably; what it replaces is replaced at once.

    Raises UsageError if it exists and `overwrite` is not given, LamellaError when it cannot be written.
    """
    from lamella.base.durable import sync_directory, write_new  # most commands only read

    # Under its own name when it is new: not every file system (a USB stick's) can link a finished file into place.
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}.lamella-partial") if overwrite else path
    try:
        write_new(made, content)
        made.replace(path)
        sync_directory(path.parent)
    except FileExistsError as error:
        raise exists(path) from error
    except OSError as error:
        with suppress(OSError):
            made.unlink()
        raise LamellaError(f"cannot write {path}: {_reason(error)}", obj=str(path)) from error


def exists(path: Path) -> UsageError:
    """The error for a file that must not be there."""
    return UsageError(f"{path} exists already", obj=str(path))


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
