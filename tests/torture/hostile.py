"""A writer with a slot of its own, which opens the data of all, and says what is not true."""

from __future__ import annotations

import contextlib
import importlib.util
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from unittest import mock

from lamella.base.ids import SnapId
from lamella.format.commit import Head
from lamella.format.container import Kind
from lamella.format.deletion import Remove
from lamella.format.labels import Tag
from lamella.format.lost import Address, Bad, Lost
from lamella.format.records import NO_REF, AddSnap, RawRecord, raw
from lamella.history import history as history_module
from lamella.history.catalogue import Snapshot
from lamella.history.publish import Publisher
from lamella.repository.repository import Repository
from lamella.stores.local.store import LocalStore
from tests.torture.world import HOUR_MS, SECRET, VOLUMES, World, host_at

OWNED = importlib.util.find_spec("lamella.history.owners") is not None
"""Whether volumes belong to somebody: before that a flood pushes others' snapshots out."""
FLOOD = 4
ATTACKS = ("seen", "bad", "lost", "remove", "label", *(("flood", "flood", "future") if OWNED else ()))


@contextlib.contextmanager
def _forged_seen() -> Iterator[None]:
    honest = Publisher._seen

    def forged(
        self: Publisher, history: history_module.History, own: history_module.Chain, *, complete: bool
    ) -> tuple[Head, ...]:
        seen = honest(self, history, own, complete=complete)
        return tuple(Head(head.writer, 1 << 62, bytes(32)) for head in seen)

    with mock.patch.object(Publisher, "_seen", forged):
        yield


class Hostile:
    """Publishes as a host of its own, never with the prune key."""

    def __init__(self, world: World) -> None:
        self._world = world

    def attack(self, how: str, chance: random.Random) -> bool:
        """One attack; False if there is nothing to attack."""
        if how != "flood":
            return self._once(how, chance)
        # One an hour, and everybody looks after each: what came in the same hour would count once.
        for _ in range(FLOOD):
            if not self._once(how, chance):
                return False
            for host in VOLUMES:
                self._world.run(host, "list")
            self._world.now_ms += HOUR_MS
        return True

    def _once(self, how: str, chance: random.Random) -> bool:
        world = self._world
        with (
            world.determined("hostile"),
            Repository.open(LocalStore.open(world.repo), SECRET, host_at(world.place / "hostile", "hostile")) as repo,
        ):
            victims = sorted(repo.catalogue.snapshots, key=lambda one: one.ref)
            if not victims or repo.problems:
                return False
            attack: Callable[[Repository, Sequence[Snapshot], random.Random], list[RawRecord]] = getattr(
                self, f"_{how}"
            )
            records = attack(repo, victims, chance)
            if not records:
                return False
            with _forged_seen() if how == "seen" else contextlib.nullcontext():
                repo.publish(records)
        return True

    def _bad(self, repo: Repository, victims: Sequence[Snapshot], chance: random.Random) -> list[RawRecord]:
        """Forged verdicts on places that are sound: manifests, and the heads of packs."""
        packs = [bytes.fromhex(entry.name[-64:]) for entry in repo.store.list("p/")]
        root = chance.choice(victims).added.root
        addresses = [Address(pack, kind, root) for pack in packs for kind in (Kind.LEAF, Kind.INNER)]
        addresses += map(Address.head, packs)
        return [raw(Bad(tuple(addresses[:2000])))]

    def _lost(self, repo: Repository, victims: Sequence[Snapshot], chance: random.Random) -> list[RawRecord]:
        """Others' snapshots are said to be lost."""
        some = chance.sample(victims, min(len(victims), 3))
        return [raw(Lost.of(one.ref, [(0, 1 << 16)])) for one in some]

    def _remove(self, repo: Repository, victims: Sequence[Snapshot], chance: random.Random) -> list[RawRecord]:
        """Removals without the prune key's signature."""
        return [raw(Remove((chance.choice(victims).ref,)))]

    def _flood(self, repo: Repository, victims: Sequence[Snapshot], chance: random.Random) -> list[RawRecord]:
        """One more snapshot of somebody else's volume, with what it held long ago."""
        return [raw(self._forged(victims, chance, self._world.clock("hostile")))]

    def _future(self, repo: Repository, victims: Sequence[Snapshot], chance: random.Random) -> list[RawRecord]:
        """The same from the year 9999."""
        return [raw(self._forged(victims, chance, 253_370_764_800_000))]

    def _forged(self, victims: Sequence[Snapshot], chance: random.Random, time_ms: int) -> AddSnap:
        victim = min((one.added for one in victims), key=lambda one: (one.time_ms, one.name, one.volume_id))
        drawn = chance.randbytes(16)
        return replace(victim, snap_id=SnapId(drawn), time_ms=time_ms, name=f"forged-{drawn.hex()[:8]}", parent=NO_REF)

    def _label(self, repo: Repository, victims: Sequence[Snapshot], chance: random.Random) -> list[RawRecord]:
        """Others' tags and pins are taken away."""
        return [raw(Tag(one.ref, True, "kept")) for one in victims[:3]]

    def _seen(self, repo: Repository, victims: Sequence[Snapshot], chance: random.Random) -> list[RawRecord]:
        """This commit says that it has seen commits that nobody wrote, of numbers that cannot be."""
        return [raw(Tag(chance.choice(victims).ref, False, "seen"))]
