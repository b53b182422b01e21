"""Reading the small files of a command: secrets, documents, keys. Never a volume."""

from __future__ import annotations

import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lamella.base.errors import UsageError, shown_bytes


def read_file(path: str | Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes. Raises UsageError when it cannot be read or is larger."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {reason_of(error)}", obj=str(path)) from error
    if len(content) > limit:
        raise UsageError(f"{path} has more than {shown_bytes(limit)}", obj=str(path))
    return content


def warn_if_readable(path: str, warn: Callable[[str], None]) -> None:
    """Warn of a file with a secret in it that other users can read."""
    with suppress(OSError):  # whoever reads it says why that fails
        if Path(path).stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            warn(f"other users can read {path}, which holds a secret; run: chmod go-rwx {path}")


def reason_of(error: OSError | ValueError) -> str:
    """The cause of an error, in the system's words."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
