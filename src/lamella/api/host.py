"""This host as the command `lamella` knows it, for programs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from lamella.cli.places import this_host
from lamella.memory.host import Host as _Host


@dataclass(frozen=True, slots=True)
class LocalHost(_Host):
    """A host: where it keeps what it remembers, and what it calls itself. `here` is that of the command."""

    @classmethod
    def here(cls, environment: Mapping[str, str] | None = None) -> Self:
        """This host with the state and the cache of the command, by these variables or those of the process.

        Root has /var/lib/lamella and /var/cache/lamella, other users their own directories; LAMELLA_STATE_DIR and
        LAMELLA_CACHE_DIR name others. Raises UsageError for a directory that other users could change.
        """
        found = this_host(os.environ if environment is None else environment)
        return cls(found.machine, found.label, found.state_dir, found.cache_dir)


Host = LocalHost
