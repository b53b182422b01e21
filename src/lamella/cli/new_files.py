"""Writing the small files of a command: recovery sheets, keys, documents. Never a volume."""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path

from lamella.base.durable import sync_directory, write_new
from lamella.base.errors import LamellaError, UsageError
from lamella.cli.files import reason_of


def write_file(path: Path, content: bytes, *, overwrite: bool) -> None:
    """Write a file only its owner can read, durably; what it replaces is replaced at once.

    Raises UsageError if it exists and `overwrite` is not given, LamellaError when it cannot be written.
    """
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
        raise LamellaError(f"cannot write {path}: {reason_of(error)}", obj=str(path)) from error


def exists(path: Path) -> UsageError:
    """The error for a file that must not be there."""
    return UsageError(f"{path} exists already", obj=str(path))
