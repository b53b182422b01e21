"""Where a volume of ZFS is now, by its identity."""

from __future__ import annotations

from typing import Final

from lamella.sources.zfs import commands

_PARTS: Final = 3


def place_of(identity: bytes) -> str | None:
    """`zfs:POOL/VOL` for the identity of a volume in a pool that is imported, whether or not the volume is there.

    Raises SourceError if ZFS cannot be asked.
    """
    parts = identity.decode("utf-8", "surrogateescape").split(":", 2)
    pool = commands.pools().get(parts[1]) if len(parts) == _PARTS else None
    return None if pool is None else f"zfs:{pool}/{parts[2]}"
