"""Objects that a service keeps in a class from which it must thaw them first (docs/decisions/0100).

What is cold is what the service says: by the class in a listing, by the headers of HEAD, and by refusing a GET. Nobody
else remembers it, so an interrupted restore finds out again what was asked for and what is ready.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import Enum
from typing import Any, Protocol, runtime_checkable

LEAST_COLD = 4 << 20
"""Packs of fewer bytes stay in a class that is read at once: small objects cost more there than they save."""
TIERS = ("standard", "bulk", "expedited")
"""How fast the service thaws, and how much it charges; the words of S3."""


class Warmth(Enum):
    """Whether an object can be read."""

    READABLE = "readable"
    THAWING = "thawing"
    COLD = "cold"


@runtime_checkable
class Thawable(Protocol):
    """A store, or a wrapper around one, whose service may have to thaw objects."""

    def cold_names(self) -> Collection[str]:
        """The objects that may have to be thawed, by the listings that this handle made so far; asks nothing."""

    def warmth(self, name: str) -> Warmth:
        """What the service says of an object. Raises ObjectNotFound, StoreError."""

    def thaw(self, name: str, days: int, tier: str) -> None:
        """Ask the service for a copy that can be read for so many days; again, it changes nothing.

        Raises StoreRefused where this credential may not ask, ObjectNotFound, StoreError.
        """


class _Wrapped:
    """What a store inside wrappers can do, tried again as the outermost of them does."""

    def __init__(self, outer: Any, inner: Thawable) -> None:  # noqa: ANN401 - lamella.stores.wrap
        self._tried: Callable[[Callable[[], Any]], Any] = outer._through
        self._below = inner

    def cold_names(self) -> Collection[str]:
        return self._below.cold_names()

    def warmth(self, name: str) -> Warmth:
        found: Warmth = self._tried(lambda: self._below.warmth(name))
        return found

    def thaw(self, name: str, days: int, tier: str) -> None:
        self._tried(lambda: self._below.thaw(name, days, tier))


def thawable(store: object) -> Thawable | None:
    """The store where the one inside all wrappers can thaw, else None."""
    inner = store
    while (below := getattr(inner, "_inner", None)) is not None:
        inner = below
    if not isinstance(inner, Thawable):
        return None
    return inner if inner is store else _Wrapped(store, inner)
