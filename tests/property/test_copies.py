"""Any history, copied in any order by any host over any ways, with packs lost on the way: each copy is the original."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lamella.base.errors import NothingMatched
from lamella.memory.host import Host
from lamella.operations.copy.plan import State
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from tests.fault.copies import copy
from tests.fault.world import SECRET, Truth, backup, check_sound, host_at, init, restored, volume
from tests.property.test_diff_source import changed, edit, sizes

NAMES = ("alpha", "beta")
save = st.tuples(st.just("save"), st.sampled_from(NAMES), sizes, st.lists(edit, max_size=4))
ways = st.tuples(st.just("copy"), st.sampled_from([(0, 1), (1, 0), (1, 2), (2, 0)]), st.sampled_from(["one", "two"]))
one_of = st.tuples(st.just("one"), st.integers(0, 9), st.sampled_from([(0, 1), (1, 2)]))
loss = st.tuples(st.just("lose"), st.integers(1, 2), st.integers(0, 20))
lives = st.lists(st.one_of(save, save, ways, one_of, loss), min_size=3, max_size=12)


class Places:
    """Three repositories; the first is backed up to."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.stores = [MemoryStore() for _ in range(3)]
        self.truth = Truth()
        self.contents = {name: bytearray() for name in NAMES}
        for number, store in enumerate(self.stores):
            init(store, self.host("one"), id_alg=1 + number % 2)

    def host(self, name: str) -> Host:
        return host_at(self.place / name, name)

    def save(self, name: str, size: int, edits: list[tuple[int, str, int]]) -> None:
        self.contents[name] = changed(self.contents[name], size, edits)
        content = bytes(self.contents[name])
        self.truth.learn(backup(self.stores[0], self.host("one"), volume(content, name)), {name: content})

    def copy(self, way: tuple[int, int], who: str, *selectors: str) -> None:
        source, target = (self.stores[number] for number in way)
        try:
            copy(source, target, self.host(who), *selectors)
        except NothingMatched:
            with Repository.open(source, SECRET, self.host("one")) as repo:
                assert not select(repo, [])

    def copy_one(self, number: int, way: tuple[int, int]) -> None:
        with Repository.open(self.stores[way[0]], SECRET, self.host("one")) as repo:
            everything = [one.text for one in select(repo, [])]
        if everything:
            self.copy(way, "one", everything[number % len(everything)])

    def lose(self, where: int, number: int) -> None:
        """A repository loses a pack: what it lists may break, what is copied to it from then on may not."""
        packs = sorted(name for name in self.stores[where].objects() if name.startswith("p/"))
        if len(packs) > 1:  # a repository without any pack is refused
            self.stores[where].delete(packs[number % len(packs)])

    def check(self) -> None:
        """Whatever restores is the original; nothing is listed that was never saved."""
        for store in self.stores[1:]:
            with Repository.open(store, SECRET, self.host("reader")) as repo:
                for one in select(repo, []):
                    try:
                        content = restored(repo, one, self.place / "out.img")
                    except Exception:  # noqa: BLE001 - packs were lost
                        continue
                    assert content == self.truth.volumes[one.text]


@settings(
    suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=15, phases=[Phase.reuse, Phase.generate]
)
@given(life=lives)
def test_any_life_of_copies(life: list[tuple[object, ...]]) -> None:
    place = Path(tempfile.mkdtemp(prefix="lamella-copies-"))
    try:
        places = Places(place)
        lost = False
        for step, *details in life:
            if step == "one":
                step = "copy_one"
            lost = lost or step == "lose"
            if step != "lose" or places.truth.volumes:
                getattr(places, str(step))(*details)
        places.check()
        # A place where nothing was lost is whole, and a copy into a new one makes everything whole again.
        fresh = MemoryStore()
        init(fresh, places.host("one"))
        places.stores.append(fresh)
        if places.truth.volumes:
            result = copy(places.stores[0], fresh, places.host("one"))
            assert result.count(State.COPIED) == len(places.truth.volumes)
            check_sound(fresh, places.host("reader"), places.truth, place)
            again = copy(places.stores[0], fresh, places.host("two"))
            assert again.count(State.PRESENT) == len(places.truth.volumes)
        if not lost:
            for store in places.stores[1:3]:
                with Repository.open(store, SECRET, places.host("reader")) as repo:
                    listed = {one.text for one in select(repo, [])}
                    assert len(listed) == len(select(repo, [])), "a snapshot was copied twice"
                truth = Truth({text: places.truth.volumes[text] for text in listed})
                check_sound(store, places.host("reader"), truth, place)
    finally:
        shutil.rmtree(place)
