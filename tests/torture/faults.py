"""Faults that attacks had found before, put back one at a time, to see that the torture finds them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from unittest import mock

from lamella.format.records import Ref
from lamella.history import catalogue
from lamella.history.catalogue import Snapshot
from lamella.history.chains import HistoryReader, Listed
from lamella.history.history import History
from lamella.memory.pins import Pins
from lamella.operations.prune.health import Flaw, Health
from tests.torture.hostile import OWNED


@contextlib.contextmanager
def _publication_decides() -> Iterator[None]:
    """C1: what was published counts as whole; nobody asks whether it can be read."""
    honest = Health.flaws

    def flaws(self: Health, snapshots: Iterable[Snapshot]) -> dict[Ref, Flaw]:
        honest(self, snapshots)
        return {}

    with mock.patch.object(Health, "flaws", flaws):
        yield


@contextlib.contextmanager
def _cache_decides() -> Iterator[None]:
    """H1: a commit that this host has in its cache is never read again."""
    honest = HistoryReader.read

    def read(
        self: HistoryReader, pins: Pins, *, whole: bool = False, stored: bool = False, listed: Listed | None = None
    ) -> History:
        return honest(self, pins, whole=whole, listed=listed)

    with mock.patch.object(HistoryReader, "read", read):
        yield


@contextlib.contextmanager
def _one_list_for_all() -> Iterator[None]:
    """H7: retention counts everybody's snapshots of a volume in one list."""
    honest = catalogue.by_series

    def by_series(snapshots: Iterable[Snapshot]) -> Mapping[object, list[Snapshot]]:
        rows = list(snapshots)
        series = next(iter(honest(rows)), None)
        return {} if series is None else {series: rows}

    with mock.patch("lamella.operations.prune.retaining.by_series", by_series):
        yield


FAULTS: Mapping[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "C1": _publication_decides,
    "H1": _cache_decides,
    **({"H7": _one_list_for_all} if OWNED else {}),
}


def put_back(fault: str | None) -> contextlib.AbstractContextManager[None]:
    """While it lasts the product has this fault; None: no fault."""
    return contextlib.nullcontext() if fault is None else FAULTS[fault]()
