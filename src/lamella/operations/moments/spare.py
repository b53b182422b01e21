"""Moments that are given up because space is short (docs/decisions/0089).

The rule: where a source cannot be frozen because there is too little room, the moments go that other repositories will
want than those which are served now, the oldest first, until there is room. Such a repository, on a medium that is away
for example, is compared in full at its next turn: that costs time, and no data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from lamella.base.errors import SourceError, SpacePinned
from lamella.memory.host import HostMemory
from lamella.memory.ledger import needed_checkpoints
from lamella.sources.base import FrozenVolume, Source


def frozen_with_room(
    held: ExitStack, source: Source, served: Sequence[HostMemory], error: SourceError, warn: Callable[[str], None]
) -> FrozenVolume | SourceError:
    """The frozen volume of a source that `error` refused for want of room, or why there is still none.

    Moments go that no repository of `served` needs. The source's lock is held.
    """
    while isinstance(error, SpacePinned):
        try:
            if not _give_up_oldest(source, served, warn):
                return error
            return held.enter_context(source.freeze())
        except SourceError as again:
            error = again
    return error


def _give_up_oldest(source: Source, served: Sequence[HostMemory], warn: Callable[[str], None]) -> bool:
    """Remove the oldest moment that can go; False if there is none. Raises SourceError."""
    needed = needed_checkpoints(served[0].host, source.identity, served)
    spare = [moment for moment in source.kept() if moment not in needed]
    if not spare:
        return False
    source.drop(spare[0])
    os.sync()  # a file system says that space is free once it has written that down
    warn(
        f"{source.default_name}: space is short: a moment was given up that another repository was to start from; "
        "its next backup compares everything"
    )
    return True
