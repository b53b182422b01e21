"""The `btrfs` driver: clones like `reflink`, compared by the file system's own extent items where that is permitted."""

from __future__ import annotations

from lamella.base.delta import Delta
from lamella.base.errors import UsageError
from lamella.sources.base import Keeping, Source
from lamella.sources.cloning import driver_for
from lamella.sources.reflink import btrfs_tree, maps
from lamella.sources.reflink.reflink import ClonedSource, compare_extents, image_at

DRIVER = "btrfs"


def open_btrfs(text: str, machine: str, keeping: Keeping) -> Source:
    """Return the source at a path. Raises SourceError if it is missing, UsageError if it is not on Btrfs."""
    image = image_at(text, machine, DRIVER, keeping)
    if driver_for(image.path) != DRIVER:
        raise UsageError("the btrfs driver reads image files on Btrfs", obj=text)
    return ClonedSource(image, keeping, DRIVER, compare_items)


def compare_items(old: int, new: int, base_size: int, size: int, grain: int) -> Delta:
    """Compare two clones by their extent items, or by extent maps without CAP_SYS_ADMIN. Raises CheckpointLost.

    Both are sound; the maps take every compressed extent for changed.
    """
    try:
        return maps.guarded(btrfs_tree.pieces, old, new, base_size, size, grain)
    except PermissionError:
        return compare_extents(old, new, base_size, size, grain)
