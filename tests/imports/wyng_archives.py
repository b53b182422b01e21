"""The archives that the real wyng made, and what it restored from them."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "wyng"
EXPECTED: dict[str, dict[str, dict[str, tuple[str | None, int]]]] = json.loads((HERE / "expected.json").read_text())
"""Archive -> volume -> session -> SHA-256 and size; no SHA-256 where wyng itself cannot restore the session."""
PASSPHRASE = "a wyng passphrase"


def unpacked(name: str, place: Path) -> Path:
    """The directory of an archive, made below `place`."""
    with tarfile.open(HERE / f"{name}.tar.xz") as tar:
        options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(place, **options)
    return place / name
