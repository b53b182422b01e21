"""Mending a mirror from its source without keys (docs/decisions/0090).

Everything that both places have is read at the mirror. The right bytes are in hand, checked against the name that both
give them, before anything is moved: so nothing is believed of either side. A bad object is moved aside, as `repair`
does, and only under the exclusive lock; bytes that cannot be read at all are removed. Killed in between, the object
is missing, and the next run copies it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from lamella.base.errors import ObjectCold, ObjectNotFound, StoreError
from lamella.base.events import Progress, Reporter, silent
from lamella.base.names import hash_in
from lamella.base.trust import Clear
from lamella.format import marker
from lamella.operations.mirror.checking import check
from lamella.operations.mirror.comparing import joined
from lamella.operations.mirror.mirror import has_marker, require_same, suited_workers
from lamella.operations.shared.aside import may_set_aside, set_aside
from lamella.operations.shared.findings import DAMAGE, NOTE, Finding
from lamella.packs.reach import require_alive
from lamella.repository.slots import read_marker
from lamella.run.pipeline import ordered_map
from lamella.stores.base import Entry, Store

_BATCH = 1000
Pair = tuple[Entry, Entry]
"""An object as the source lists it, and as the mirror does."""


@dataclass(frozen=True, slots=True)
class Resynced:
    """The outcome: how many objects of the mirror were bad, how many of them are mended, and what is to be said."""

    bad: int = 0
    mended: int = 0
    findings: tuple[Finding, ...] = ()


def resync_corrupt(
    source: Store, target: Store, *, reporter: Reporter = silent, workers: int | None = None, lock_wait: float = 0.0,
    dry: bool = False,
) -> Resynced:  # fmt: skip
    """Mend what can be mended; with `dry` only say what is bad. Nothing is done where there is no mirror yet.

    Raises NoRepository, RepositoryError for another repository, Locked, StoreError.
    """
    mark = read_marker(source)
    if not has_marker(target):
        return Resynced()
    require_same(mark, target)
    count = workers or suited_workers(source, target)
    with source.lock(exclusive=False, wait_seconds=lock_wait), target.lock(exclusive=False, wait_seconds=lock_wait):
        bad = list(_examined(source, target, mark, reporter, count))
    if dry or not may_set_aside(target):
        why = "" if dry or not bad else "; it cannot be mended there: no lock proves that nobody uses it"
        said = (Finding("mirror", DAMAGE, found.obj, f"in the mirror: {_fault(found)}{why}") for _, found in bad)
        return Resynced(len(bad), 0, tuple(said))
    if not bad:
        return Resynced()
    with source.lock(exclusive=False, wait_seconds=lock_wait), target.lock(exclusive=True, wait_seconds=lock_wait):
        return _mend_all(source, target, mark, [pair for pair, _ in bad])


def _fault(found: Finding) -> str:
    """What is wrong with an object, of which nothing was to be copied."""
    return found.message.removesuffix("; not copied")


def _examined(
    source: Store, target: Store, mark: marker.Marker, reporter: Reporter, workers: int
) -> Iterator[tuple[Pair, Finding]]:
    """Read every object that both places name by its hash, and yield those that are bad at the target."""
    total = sum(there.size for _, there in _at_both_places(source, target))
    done, pairs = 0, _at_both_places(source, target)

    def look(pair: Pair) -> tuple[Pair, bytes | Finding | None]:
        with suppress(ObjectNotFound, ObjectCold):
            found = check(target, pair[1], mark)
            return pair, found if isinstance(found, Finding) else None
        return pair, None  # the copying that follows brings it; what must be thawed first is no damage

    while batch := list(islice(pairs, _BATCH)):
        for pair, found in ordered_map(look, batch, workers=workers):
            done += pair[1].size
            reporter(Progress("examine", target.url, done, total))
            if isinstance(found, Finding):
                yield pair, found


def _mend_all(source: Store, target: Store, mark: marker.Marker, pairs: Sequence[Pair]) -> Resynced:
    mended, findings = 0, list[Finding]()
    for here, there in pairs:
        try:
            if not isinstance(check(target, there, mark), Finding):
                continue  # somebody else mended it meanwhile
            right = check(source, here, mark)
        except (ObjectNotFound, ObjectCold):
            continue
        if isinstance(right, Finding):
            findings.append(Finding("mirror", DAMAGE, here.name, f"bad at both places: {_fault(right)}"))
            continue
        try:
            aside = _make_way(target, here.name)
            target.put(here.name, Clear(right))
            target.sync()
        except StoreError as error:
            require_alive(target, error)
            findings.append(Finding("mirror", DAMAGE, here.name, f"could not be mended: {error.message}"))
            continue
        mended += 1
        findings.append(Finding("mirror", NOTE, here.name, f"mended from the source; {aside}"))
    return Resynced(len(pairs), mended, tuple(findings))


def _make_way(target: Store, name: str) -> str:
    """Free a name of its bad bytes; says what became of them. Raises StoreError; what can be read stays then."""
    try:
        target.get(name)
    except StoreError as error:
        require_alive(target, error)
        target.delete(name)
        target.sync()
        return "the bad bytes could not be read"
    return f"the bad bytes are in {set_aside(target, name)}"


def _at_both_places(source: Store, target: Store) -> Iterator[Pair]:
    for here, there in joined(source.list(""), target.list("")):
        if here is not None and there is not None and hash_in(here.name) is not None:
            yield here, there
