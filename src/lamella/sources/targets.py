"""To what a volume is restored. What a kind of target needs is imported with it."""

from __future__ import annotations

from pathlib import Path

from lamella.base.errors import UsageError
from lamella.sources.base import PoolLimits
from lamella.sources.target import Target


def choose_target(
    path: Path, *, overwrite: bool, in_place: bool, pool: str | None = None, limits: PoolLimits | None = None
) -> Target:
    """Return the target that fits what is at `path`, or `lvm:VG/LV`, which may be a new volume in the thin pool `pool`,
    or `rbd:POOL/IMAGE`.

    Raises UsageError for a device without `overwrite`, and for a pool where none is needed; SourceError if LVM or Ceph
    cannot be asked.
    """
    if str(path).startswith(("lvm:", "rbd:")):
        from lamella.sources.named_targets import choose_named

        return choose_named(str(path), overwrite=overwrite, in_place=in_place, pool=pool, limits=limits)
    if pool is not None:
        raise UsageError("a pool is for a new thin volume only", obj=pool, hint="write --to lvm:VG/LV")
    is_device = path.is_block_device()
    if not (is_device or in_place):
        from lamella.sources.local_target import NewFile

        return NewFile(path, overwrite=overwrite)
    from lamella.sources.used_target import BlockDevice, InPlaceFile

    if not is_device:
        return InPlaceFile(path)
    if not overwrite:
        raise UsageError(f"{path} is a device and would be overwritten", obj=str(path), hint="add --overwrite")
    from lamella.sources.lvm.commands import may_be_thin

    if not may_be_thin(path):
        return BlockDevice(path)
    from lamella.sources.lvm.target import ThinDevice

    return ThinDevice(path)
