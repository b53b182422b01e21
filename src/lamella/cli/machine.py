"""An id for a machine whose system has none."""

from __future__ import annotations

import secrets
from pathlib import Path

from lamella.base.durable import make_private, write_durably
from lamella.base.errors import LamellaError


def new_id(state: Path) -> str:
    """A random id, kept in the state directory. Raises LamellaError."""
    made, path = secrets.token_hex(16), state / "machine"
    try:
        make_private(state)
        write_durably(path, made.encode("ascii") + b"\n")
    except OSError as error:
        raise LamellaError(f"cannot write {path}: {error.strerror}", obj=str(path)) from error
    return made
