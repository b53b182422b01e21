"""Having the service thaw what a restore needs (docs/decisions/0100): which packs, asking for them, and waiting.

Nothing is remembered here: what was asked for and what is ready the service says, so a later run goes on by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from lamella.base.errors import ObjectCold, StoreUnavailable
from lamella.base.events import Progress, Reporter, silent
from lamella.base.ids import ChunkId
from lamella.base.names import pack_hash, pack_name
from lamella.format.container import Kind
from lamella.operations.shared.selection import Selected
from lamella.repository.repository import Repository
from lamella.run.pipeline import ordered_map
from lamella.stores.cold import Thawable, Warmth, thawable

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds between two questions whether a pack is ready: the service takes minutes to days."""
_IDS_AT_ONCE = 256
_WORKERS = 16


@dataclass(frozen=True, slots=True)
class ThawPlan:
    """The packs that must be thawed, with their bytes: those nobody asked for yet, and those that are on their way."""

    cold: Mapping[str, int] = field(default_factory=dict)
    thawing: Mapping[str, int] = field(default_factory=dict)
    first: bool = False
    """More may be needed: what these packs hold must be read before anybody knows."""

    @property
    def packs(self) -> dict[str, int]:
        """All of them."""
        return {**self.cold, **self.thawing}

    @property
    def total_bytes(self) -> int:
        """Their bytes."""
        return sum(self.packs.values())


def plan_thaw(repo: Repository, selected: Sequence[Selected]) -> ThawPlan:
    """What must be thawed before these snapshots can be restored; nothing where no pack may be cold.

    Raises IntegrityError, StoreError.
    """
    store = thawable(repo.store)
    if store is None:
        return ThawPlan()
    repo.refresh_map()
    names = store.cold_names()
    if not names:
        return ThawPlan()
    needed: set[bytes] = set()
    first = False
    try:
        for one in selected:
            needed |= _needed(repo, one, lambda pack: pack_name(pack) in names)
    except ObjectCold as error:  # a part of a manifest, as older versions laid it
        needed, first = {pack_hash(error.obj) or b""}, True
    found: dict[Warmth, dict[str, int]] = {one: {} for one in Warmth}
    wanted = [name for name in map(pack_name, sorted(needed)) if name in names]
    for name, warmth in ordered_map(lambda name: (name, store.warmth(name)), wanted, workers=_WORKERS):
        pack = pack_hash(name) or b""
        found[warmth][name] = repo.blobs.cold.get(pack) or repo.blobs.length(pack) or 0
    if _now_known(repo, found[Warmth.READABLE]):
        return plan_thaw(repo, selected)
    return ThawPlan(found[Warmth.COLD], found[Warmth.THAWING], first)


def _now_known(repo: Repository, readable: Mapping[str, int]) -> bool:
    """Take note that these packs can be read; whether that tells what some of them hold."""
    ready, unknown = {pack_hash(name) or b"" for name in readable}, set(repo.blobs.unknown_cold())
    for pack in ready:
        repo.blobs.cold.pop(pack, None)
    if not ready & unknown:
        return False
    repo.refresh_map(again=True)
    return True


def _needed(repo: Repository, one: Selected, may_be_cold: Callable[[bytes], bool]) -> set[bytes]:
    """Packs that may be cold and that a snapshot needs: of each content the first place, unless another is warm."""
    added, tree = one.snapshot.added, repo.tree(one.snapshot)
    runs = repo.tree_reader(added.domain_id).runs(tree)
    chunks = (run.slot for run in runs if isinstance(run.slot, bytes))
    parts = [part for document in added.documents for part in document.parts]
    found: set[bytes] = set()
    for kind, ids in ((Kind.CHUNK, chunks), (Kind.DOCUMENT, iter(parts))):
        for some in _batches(ids):
            # A chunk that is stored as a difference needs the packs of its base and of the difference.
            batch = repo.contents.blobs_of(added.domain_id, some)
            places = repo.blobs.find_many(kind, batch)
            for id_ in batch:
                packs = [place.pack for place in places.get(id_, ()) if place.domain_id == added.domain_id]
                if not packs:
                    found |= set(repo.blobs.unknown_cold())
                elif all(map(may_be_cold, packs)):
                    found.add(packs[0])
    return found


def _batches(ids: Iterator[ChunkId]) -> Iterator[list[ChunkId]]:
    while batch := list(dict.fromkeys(islice(ids, _IDS_AT_ONCE))):
        yield batch


def ask(repo: Repository, plan: ThawPlan, days: int, tier: str) -> None:
    """Have the service begin to thaw. Raises StoreRefused where this credential may not ask, StoreError."""
    store = _store(repo)
    for _ in ordered_map(lambda name: store.thaw(name, days, tier), plan.cold, workers=_WORKERS):
        pass


def wait(repo: Repository, plan: ThawPlan, pause: Callable[[float], None], reporter: Reporter = silent) -> None:
    """Return when all of it can be read. A service that does not answer for a while is asked again.

    Only the first pack that is not ready is asked for: the others were asked for with it. Raises StoreError.
    """
    store, done = _store(repo), 0
    reporter(Progress("thaw", "", 0, plan.total_bytes))
    for name, size in plan.packs.items():
        seconds = FIRST_PAUSE  # where one is ready, the others soon are
        while not _is_ready(store, name):
            pause(seconds)
            seconds = min(2 * seconds, LONGEST_PAUSE)
        done += size
        reporter(Progress("thaw", "", done, plan.total_bytes))
    repo.blobs.cold.clear()
    repo.refresh_map(again=True)


def _is_ready(store: Thawable, name: str) -> bool:
    with suppress(StoreUnavailable):
        return store.warmth(name) is Warmth.READABLE
    return False


def _store(repo: Repository) -> Thawable:
    found = thawable(repo.store)
    assert found is not None  # there is a plan
    return found
