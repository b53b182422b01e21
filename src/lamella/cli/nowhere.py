"""For a stream that nobody reads any more: loaded only then."""

from __future__ import annotations

import os
from typing import TextIO


def drop(stream: TextIO) -> None:
    """Send a stream that nobody reads any more to nowhere, so that the work can end well."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.dup2(nowhere, stream.fileno())
    except (OSError, ValueError):
        pass
    finally:
        os.close(nowhere)
