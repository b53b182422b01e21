"""The file systems of the kit, for tests: where one cannot be had, the test is skipped, or fails if it is required."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamella_kit import loop_fs
from tests.features import require


@contextmanager
def make(kind: str, options: str = "", size: int = loop_fs.DEFAULT_SIZE) -> Iterator[Path]:
    """Give the mount point of a new file system, `btrfs` or `xfs`, mounted with `options`."""
    need(kind)
    with loop_fs.make(kind, options, size) as mount:
        yield mount


def need(kind: str) -> None:
    """Go on only if `make` can work here."""
    reason = loop_fs.missing(kind)
    require(kind, not reason, reason)
