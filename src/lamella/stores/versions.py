"""Stores that keep older versions of objects, and how readers reach them when the newest version is not genuine.

Lamella never replaces an object. Where a bucket keeps versions, a thief who may put can still add a newer version of an
object; the genuine version is then among the older ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

Judge = Callable[[bytes], bool]
"""Whether these bytes are the genuine object."""


@runtime_checkable
class Versioned(Protocol):
    """A store, or a wrapper around one, that may hold several versions of an object."""

    def reinstate(self, name: str, is_genuine: Judge) -> bool:
        """Look for a version of `name` that `is_genuine` accepts and let `get` and `stat` give that one from now on.

        False if there is none, or if the store keeps no versions. Raises StoreError.
        """


@runtime_checkable
class Replaceable(Protocol):
    """A store, or a wrapper around one, that can try what a thief of its credential would."""

    def try_replacing(self, name: str, content: bytes) -> bool:
        """Try to put other bytes under a taken name; True if they are what a reader gets now.

        For probe objects of `doctor` only. Raises StoreError other than StoreRefused.
        """

    def try_erasing(self, name: str) -> bool:
        """Try to remove an object with all its versions; True if a reader does not find it. Raises StoreError."""


def reinstate(store: object, name: str, is_genuine: Judge) -> bool:
    """`store.reinstate` where the store has it, else False."""
    return isinstance(store, Versioned) and store.reinstate(name, is_genuine)
