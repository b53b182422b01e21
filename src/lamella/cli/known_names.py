"""Names of volumes and snapshots as this host last saw them, for completion: a cache that any command may lose."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lamella.base.errors import RepositoryError

_MOST_SNAPSHOTS = 100
"""Of each volume, the newest."""
_MOST_BYTES = 1 << 24


def remember(cache_dir: Path, place: str, snapshots: Iterable[Mapping[str, Any]]) -> None:
    """Keep the names in rows of `lamella list --json`, oldest first. What cannot be written is left out."""
    from lamella.memory.writing import replace_file

    found: dict[str, list[str]] = {}
    for row in snapshots:
        for volume in row["volumes"]:
            found.setdefault(volume, []).append(row["snapshot"])
    newest = {volume: names[: -_MOST_SNAPSHOTS - 1 : -1] for volume, names in found.items()}
    with suppress(RepositoryError, OSError):
        replace_file(_file(cache_dir, place), json.dumps(newest).encode())


def known(cache_dir: Path, place: str) -> dict[str, list[str]]:
    """Volume -> its snapshots, newest first; nothing where nothing is remembered."""
    try:
        with _file(cache_dir, place).open("rb") as file:
            found = json.loads(file.read(_MOST_BYTES))
        return {str(volume): [str(name) for name in names] for volume, names in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _file(cache_dir: Path, place: str) -> Path:
    name = place if ":" in place else os.path.realpath(place)
    return cache_dir / "names" / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.json"
