"""Targets that are named by what holds them, and are no paths."""

from __future__ import annotations

from lamella.base.errors import UsageError
from lamella.sources.base import PoolLimits
from lamella.sources.target import Target


def choose_named(
    text: str, *, overwrite: bool, in_place: bool, pool: str | None = None, limits: PoolLimits | None = None
) -> Target:
    """Return the target `lvm:VG/LV` or `rbd:POOL/IMAGE`; `pool` and `limits` are for thin volumes.

    Raises UsageError for what is there without consent; SourceError if LVM or Ceph cannot be asked.
    """
    if text.startswith("lvm:"):
        from lamella.sources.lvm.target import choose_thin

        return choose_thin(text, overwrite=overwrite, in_place=in_place, pool=pool, limits=limits)
    if pool is not None:
        raise UsageError("--pool is for thin volumes of LVM", obj=pool, hint="an RBD image's pool is part of its name")
    from lamella.sources.rbd.target import choose_rbd

    return choose_rbd(text, overwrite=overwrite, in_place=in_place)
