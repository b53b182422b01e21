"""The sources that a command names, and what of them is kept between runs."""

from __future__ import annotations

from pathlib import Path

from lamella.cli.context import Context
from lamella.sources.base import Keeping, PoolLimits, Source


def named_source(context: Context, text: str, driver: str | None = None) -> Source:
    """The source at a path, with the driver that fits it or the one named. Raises SourceError, UsageError."""
    from lamella.sources.registry import open_kept_source  # a restore asks for settings alone

    return open_kept_source(text, context.host.machine, keeping(context), driver)


def keeping(context: Context) -> Keeping:
    """The settings of checkpoints, and their owner."""
    configured, lvm = context.config.backup.checkpoint_dir, context.config.lvm
    return Keeping(
        context.host.owner,
        None if configured is None else Path(configured),
        records=context.host.source_records,
        limits=PoolLimits(lvm.data_percent, lvm.metadata_percent),
    )


def may_be_several(place: str) -> bool:
    """Whether a source may be a pattern or a directory (`found_sources`)."""
    return (not place.startswith(("nbd:", "nbd+unix:")) and any(one in place for one in "*?[")) or Path(place).is_dir()
