"""A server for the directory that its client names: what runs on a far side that has no Lamella (bundle.py).

The agent can do no more than the account it runs under. A destination that must be protected from its client needs a
server that its owner starts (`lamella serve`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.base.errors import UsageError
from lamella.stores.local.store import LocalStore
from lamella.stores.pipe.guarded import GuardedStore
from lamella.stores.pipe.server import Server

if TYPE_CHECKING:
    from lamella.stores.pipe.frames import Hello

BELOW_HOME = "/~/"
"""The prefix of a place below the home directory of the far side's account."""


def main(source: int = 0, sink: int = 1) -> None:
    """Serve one client on two descriptors."""
    Server(source, sink, opened).run()


def opened(hello: Hello) -> GuardedStore:
    """The store at the place that the client names. Raises UsageError, NoRepository, StoreError."""
    store = LocalStore.open(directory(hello.place), create=hello.create, read_only=hello.read_only)
    return GuardedStore(store, checked=hello.checked)


def directory(place: str) -> Path:
    """The directory that a place names. Raises UsageError."""
    if not place.startswith("/") or "\0" in place:
        raise UsageError("a place at the far side is an absolute path, or begins with /~/", obj=place)
    if place.startswith(BELOW_HOME):
        # The account's own home; without one (a bare service) expanduser leaves the ~ where it is.
        home = Path("~").expanduser()
        return Path(os.path.normpath(home / place[len(BELOW_HOME) :]))
    return Path(place)
