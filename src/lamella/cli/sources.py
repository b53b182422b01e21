"""The sources that a command names, and what of them is kept between runs."""

from __future__ import annotations

from pathlib import Path

from lamella.cli.context import Context
from lamella.sources.base import Keeping, PoolLimits, Source


def named_source(context: Context, text: str, driver: str | None = None, name: str | None = None) -> Source:
    """The source at a path, with the driver that fits it or the one named; or the stream that is called `name`.

    Raises SourceError, UsageError.
    """
    if is_stream(text):
        from lamella.cli.streams import stream_source  # most sources are places

        return stream_source(context, text, name)
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
        backing_dirs=tuple(map(Path, context.config.backup.backing_dirs)),
    )


def may_be_several(place: str) -> bool:
    """Whether a source may be a pattern, a directory or a virtual machine (`found_sources`)."""
    pattern = not place.startswith(("nbd:", "nbd+unix:", "!")) and any(one in place for one in "*?[")
    machine, path = place.startswith(("qmp:", "libvirt:")), Path(place.removeprefix("qcow2:"))
    return pattern or machine or (path.is_dir() and not is_stream(place))


def is_stream(place: str) -> bool:
    """Whether a source is standard input or the output of a command."""
    return place == "-" or place.startswith("!")
