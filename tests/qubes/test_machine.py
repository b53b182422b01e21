"""A life of a few qubes in random order: whatever was frozen comes back, under whatever names and pools."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lamella.qubes.admin import Admin
from lamella.qubes.names import FEATURE
from lamella.qubes.restore_plan import RestoreWishes
from lamella.qubes.settings_apply import IN_PROGRESS
from lamella.stores.memory import MemoryStore
from lamella_kit.fake_qubesd import FakeQubesd
from lamella_kit.qubes_layouts import Refusal
from tests.fault.world import host_at, init
from tests.qubes.conftest import populate
from tests.qubes.system import back_up, content, essence, restore

NAMES = st.sampled_from(["work", "vault", "own"])
SIZE = 1 << 18


class QubesLife(RuleBasedStateMachine):
    """Start, stop, write, rename, move, resize, back up, break off, restore."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="lamella-qubes-"))
        for pool in ("one", "two"):
            (self.place / pool).mkdir()
        pools = {"one": self.place / "one", "two": self.place / "two"}
        self.system = FakeQubesd(self.place / "run", pools, volume_size=SIZE).__enter__()
        self.admin = Admin(self.system.place, self.system.internal_place, seconds=20)
        self.host = host_at(self.place / "dom0")
        self.store = MemoryStore()
        self.names = {name: name for name in ("work", "vault", "own")}
        """What a qube was called at first -> what it is called now."""
        self.saved: dict[str, tuple[bytes, dict[str, object]]] = {}
        """By its present name, what a restore must bring back."""

    def teardown(self) -> None:
        self.system.__exit__()
        shutil.rmtree(self.place)

    @initialize()
    def begin(self) -> None:
        populate(self.system)
        init(self.store, self.host)

    @rule(which=NAMES, data=st.binary(min_size=1, max_size=100), at=st.integers(0, SIZE // 2))
    def write_something(self, which: str, data: bytes, at: int) -> None:
        self.system.write(self.names[which], data, offset=at)

    @rule(which=NAMES)
    def start_or_stop(self, which: str) -> None:
        name = self.names[which]
        if self.system.qubes[name].state == "Halted":
            self.system.start(name)
        else:
            self.system.stop(name)

    @rule(which=NAMES, number=st.integers(1, 3))
    def rename(self, which: str, number: int) -> None:
        old, new = self.names[which], f"{which}-{number}"
        if self.system.qubes[old].state == "Halted" and new not in self.system.qubes:
            self.system.rename(old, new)
            self.names[which] = new
            self.saved.pop(old, None)

    @rule(which=NAMES, pool=st.sampled_from(["one", "two"]))
    def move(self, which: str, pool: str) -> None:
        if self.system.qubes[self.names[which]].state == "Halted":
            self.system.move(self.names[which], "private", pool)

    @rule(which=NAMES, more=st.integers(1, 3))
    def resize(self, which: str, more: int) -> None:
        self.system.resize(self.names[which], "private", SIZE + more * 70_000)

    @rule(which=NAMES, tag=st.sampled_from(["a", "b"]), value=st.text("xyz ", max_size=5))
    def change_settings(self, which: str, tag: str, value: str) -> None:
        qube = self.system.qubes[self.names[which]]
        qube.tags ^= {tag}
        qube.features[f"f-{tag}"] = value

    @rule(which=NAMES)
    def back_up_one(self, which: str) -> None:
        name = self.names[which]
        back_up(self.store, self.host, self.admin, name)
        self.saved[name] = (content(self.system, name), essence(self.system.qubes[name]))

    @rule(which=NAMES, after=st.integers(0, 8))
    def a_start_in_the_middle_of_a_backup(self, which: str, after: int) -> None:
        """The state changes between two calls: what is saved is one of the two states, and here they are equal."""
        name = self.names[which]
        left = after

        def meddle(method: str, dest: str) -> None:
            nonlocal left
            if method == "admin.vm.CurrentState" and dest == name:
                left -= 1
                if left == 0:
                    self.start_or_stop(which)

        before = content(self.system, name)
        self.system.before_call = meddle
        done = back_up(self.store, self.host, self.admin, name)
        self.system.before_call = lambda *_: None
        assert done.complete
        self.saved[name] = (before, essence(self.system.qubes[name]))

    @precondition(lambda self: self.saved)
    @rule(data=st.data(), broken=st.booleans())
    def overwrite(self, data: st.DataObject, broken: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.saved)))
        if self.system.qubes[name].state != "Halted":
            return
        before = content(self.system, name)

        def refuse(method: str, dest: str) -> None:
            if method == "internal.vm.volume.ImportBegin":
                raise Refusal("StoragePoolException", "no space")

        self.system.before_call = refuse if broken else lambda *_: None
        wishes = RestoreWishes(overwrite=True, exact=True)
        result = restore(self.store, self.host, self.admin, [name], wishes)[name]
        self.system.before_call = lambda *_: None
        if broken:
            assert result.result == "failed"
            assert content(self.system, name) == before
            return
        self._check(name)

    @precondition(lambda self: self.saved)
    @rule(data=st.data())
    def lose_and_restore(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.saved)))
        if self.system.qubes[name].state != "Halted":
            self.system.stop(name)
        self.system.remove(name)
        restore(self.store, self.host, self.admin, [name])
        self._check(name)
        assert FEATURE in self.system.qubes[name].features

    def _check(self, name: str) -> None:
        saved, settings_then = self.saved[name]
        assert content(self.system, name) == saved
        assert essence(self.system.qubes[name]) == settings_then

    @invariant()
    def nobody_is_kept_from_starting(self) -> None:
        assert not any(IN_PROGRESS in qube.tags for qube in self.system.qubes.values())


QubesLife.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestQubesLife = QubesLife.TestCase
