"""Damage to what a host remembers costs warnings and time, never data or a wrong answer (docs/decisions/0039)."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lamella.base.errors import RolledBack, StoreUnavailable
from lamella.memory import codec
from lamella.memory.confirmations import Confirmations
from lamella.memory.encoding import encode
from lamella.memory.first_seen import FirstSeen
from lamella.memory.host import Host, HostMemory, Notices, Table
from lamella.memory.intervals import Intervals
from lamella.memory.ledger import Ledger, LedgerEntry, ResumeMemory, ResumePoint, needed_checkpoints, new_volume
from lamella.memory.verdicts import Verdicts
from lamella.operations.look import listing
from lamella.operations.mirror.mirror import mirror
from lamella.operations.moments.monitor import monitor
from lamella.operations.prune.prune import run_prune
from lamella.operations.prune.retaining import Policy, plan_retention
from lamella.operations.prune.retention import ALL, Retention
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from lamella.stores.local.store import LocalStore
from tests.fault.resuming import World, small_steps
from tests.fault.test_mirror import At
from tests.fault.world import CHUNK, SECRET, backup, host_at, restored, verified, volume

TABLES = {
    "confirmed", "first_seen", "intended", "ledger", "looks", "pins", "places", "proven", "readings", "unfinished",
    "verified", "writer",
}  # fmt: skip
GUARDS = ("pins.json", "places.json")
"""What these say is expected of the repository: changed into something else of the same form they raise an alarm."""


class Lived:
    """Holds a world: Hypothesis shows what a test is given, and disks are long."""

    def __init__(self, world: World) -> None:
        self.world = world


@pytest.fixture
def shown(lived: World) -> Lived:
    return Lived(lived)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with small_steps():
        yield live(tmp_path_factory.mktemp("lived"))


def live(place: Path) -> World:
    """A host with something in all its tables: a checkpoint, intervals, a broken first backup, a mirror, a prune."""
    world = World.make(place / "one", chunks=12)
    world.run()
    made = backup(world.memory.connect(), host_at(place / "two", "two"), volume(b"x" * CHUNK, "theirs"))
    world.truth[f"theirs@{made.snapshot}"] = b"x" * CHUNK
    world.write(3)
    world.run()
    monitor(world.host, world.disk.source())
    world.write(4)
    monitor(world.host, world.disk.source())
    with Repository.open(world.memory.connect(), SECRET, world.host) as repo:
        assert not verified(repo).damaged
        listing.volumes(repo)
        FirstSeen(repo.memory, repo.clock).younger("unneeded", [b"p" * 16], 0)
    mirror(world.memory.connect(), At("/mirror"), world.host)
    world.add("second", 20)
    store = world.store()
    store.fail("put", StoreUnavailable("the link is down"), after=3)
    with pytest.raises(StoreUnavailable):
        world.run(store, "second")
    with Repository.open(world.memory.connect(), SECRET, world.host) as repo:
        verdict = listing.volumes(repo)
        assert [row["verified"] is not None for row in verdict] == [True, True]
    assert {path.stem for path in world.host.state_dir.glob("repo/*/*.json")} == TABLES
    return world


def files(world: World) -> list[Path]:
    state = world.host.state_dir
    return [
        *sorted(state.glob("repo/*/*.json")),
        *sorted(state.glob("intervals/*/*.json")),
        state / "intervals" / "key",
    ]


class Damage:
    """How a file is damaged, as a test case can be shown and repeated."""

    def __init__(self, how: str, at: float) -> None:
        self.how, self.at = how, at

    def of(self, content: bytes) -> bytes:
        position = int(self.at * len(content) * 8)
        if self.how == "truncated":
            return content[: position // 8]
        if self.how == "flipped":
            flipped = bytearray(content)
            flipped[position // 8] ^= 1 << position % 8
            return bytes(flipped)
        return {"empty": b"", "zeros": bytes(len(content)), "nested": b"[" * 100_000, "other": b"[3]"}[self.how]

    def __repr__(self) -> str:
        return f"Damage({self.how!r}, {self.at!r})"


damages = st.builds(
    Damage,
    st.sampled_from(["truncated", "flipped", "flipped", "flipped", "empty", "zeros", "nested", "other"]),
    st.floats(0, 1, exclude_max=True),
)


def is_no_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return True
    return False


def seen(world: World, host: Host) -> None:
    with Repository.open(world.memory.connect(), SECRET, host) as repo:
        repo.require_sound_history()
        listing.snapshots(repo)
        listing.volumes(repo)
        needed_checkpoints(host, world.disk.source().identity)


def used(world: World, host: Host) -> None:
    """What reads the memory, one command after another; everything that was saved is there."""
    seen(world, host)
    monitor(host, world.disk.source())
    world.write(5)
    assert world.run(host=host).complete
    with Repository.open(world.memory.connect(), SECRET, host, exclusive=True) as repo:
        found = {f"{one.volume.name}@{one.snapshot.name}": one for one in select(repo, [])}
        assert set(found) == set(world.truth)
        for name, one in found.items():
            assert restored(repo, one, world.place / "out.img") == world.truth[name]
        assert not verified(repo, "full").damaged
        assert not plan_retention(repo, Policy(Retention(last=ALL))).removed
        result = run_prune(repo, [])
        assert not (result.blocked or result.damaged)


def check(lived: World, place: Path, number: int, damage: Damage) -> None:
    world = lived.copied(place)
    told: list[str] = []
    host = Host(world.host.machine, "one", world.host.state_dir, world.host.cache_dir, Notices(told.append))
    path = files(world)[number % len(files(world))]
    damaged = damage.of(path.read_bytes())
    path.write_bytes(damaged)
    try:
        used(world, host)
    except RolledBack:
        assert path.name in GUARDS and not is_no_json(damaged), "an alarm without a reason"
        return
    aside = path.with_name(f"{path.name}.damaged")
    if "intervals" in path.parts:
        assert told == [], "what was lost is said by the backup's mode"
    elif is_no_json(damaged):
        assert aside.read_bytes() == damaged
        assert len(told) == 1 and path.name in told[0]
    else:
        assert bool(told) == aside.exists()
    told.clear()
    host.notices.told.clear()
    seen(world, host)
    assert told == [], "it is reported once"


@settings(
    max_examples=12,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(number=st.integers(0, 13), damage=damages)
def test_any_damage_is_noticed_and_nothing_is_lost(shown: Lived, tmp_path: Path, number: int, damage: Damage) -> None:
    with small_steps():
        check(shown.world, tmp_path / "case", number, damage)


def test_all_tables_may_be_damaged_at_once(lived: World, tmp_path: Path) -> None:
    """Every one of them is read by some command, and said by name."""
    told: list[str] = []
    with small_steps():
        world = lived.copied(tmp_path / "case")
        host = Host(world.host.machine, "one", world.host.state_dir, world.host.cache_dir, Notices(told.append))
        for path in files(world):
            path.write_bytes(path.read_bytes()[:-9])
        used(world, host)
    assert {name for name in TABLES if any(f"{name}.json" in text for text in told)} == TABLES


def test_the_check_notices_a_table_that_forgets_in_silence(
    lived: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault: damage counts as an empty table, and nothing is set aside."""
    sound = Table.load

    def silent(table: Table[object]) -> tuple[object, bytes, str]:
        return (*sound(table)[:2], "")

    monkeypatch.setattr(Table, "load", silent)
    number = next(at for at, path in enumerate(files(lived)) if path.name == "pins.json")
    with pytest.raises((AssertionError, FileNotFoundError)):
        check(lived, tmp_path / "case", number, Damage("truncated", 0.5))


def test_the_check_notices_a_codec_that_lets_an_error_through(
    lived: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault: what is no JSON is an error of another kind than the one that tables expect."""
    sound = codec.parse

    def careless(kind: type[object], text: bytes, under: str, faults: list[str]) -> object:
        json.loads(text)
        return sound(kind, text, under, faults)

    monkeypatch.setattr(codec, "parse", careless)
    with pytest.raises(json.JSONDecodeError):
        check(lived, tmp_path / "case", 0, Damage("empty", 0.0))


# -- what is damaged in part -------------------------------------------------------------------------------------------


def test_a_damaged_pin_takes_no_other_with_it(lived: World, tmp_path: Path) -> None:
    world = lived.copied(tmp_path / "case")
    (path,) = world.host.state_dir.glob("repo/*/pins.json")
    content = json.loads(path.read_bytes())
    one, two = sorted(content["heads"], key=lambda writer: content["heads"][writer][0])
    content["heads"][one][1] = "ab"
    path.write_text(json.dumps(content))
    told: list[str] = []
    host = Host(world.host.machine, "one", world.host.state_dir, world.host.cache_dir, Notices(told.append))
    newest = max(name for name in world.memory.objects() if name.startswith(f"w/{two}/"))
    world.memory.delete(newest)
    with Repository.open(world.memory.connect(), SECRET, host) as repo:
        assert [problem.kind for problem in repo.problems] == ["back"], "the pin that is left still detects a rollback"
    assert len(told) == 1 and "pins.json" in told[0] and one in told[0]


@pytest.mark.parametrize("content", [b"", b'{"heads": {"zz": 1}}'])
def test_a_memory_that_cannot_be_written_is_read_all_the_same(lived: World, tmp_path: Path, content: bytes) -> None:
    """A full disk, or one that is mounted to be read only: a restore needs nothing of it."""
    world = lived.copied(tmp_path / "case")
    (path,) = world.host.state_dir.glob("repo/*/pins.json")
    path.write_bytes(content)
    (path.parent / "tables.lock").unlink(missing_ok=True)
    (path.parent / "tables.lock").mkdir()  # who runs as root may write everywhere
    told: list[str] = []
    host = Host(world.host.machine, "one", world.host.state_dir, world.host.cache_dir, Notices(told.append))
    with Repository.open(world.memory.connect(), SECRET, host) as repo:
        assert not repo.problems
        assert not verified(repo).damaged
    assert path.read_bytes() == content
    assert any("cannot be set aside" in text for text in told)
    assert sum("out of date" in text for text in told) == 1


def test_what_the_system_cannot_read_is_never_written_over(tmp_path: Path) -> None:
    told: list[str] = []
    host = Host("5" * 16, "one", tmp_path / "state", tmp_path / "cache", Notices(told.append))
    memory = HostMemory(host, tmp_path / "state")
    (tmp_path / "state" / "pins.json").mkdir(parents=True)
    table = Table(memory, "pins.json", dict[str, int])
    assert table.read() == {}
    with memory.may_fail():
        table.change(lambda rows: {"a": 1})
    assert (tmp_path / "state" / "pins.json").is_dir()
    assert len(told) == 2


# -- the golden state directory ---------------------------------------------------------------------------------------


@pytest.fixture
def before(tmp_path: Path) -> tuple[Host, Path]:
    """A state directory and its repository, without packs, as the program wrote them once (tests/golden/memory)."""
    with tarfile.open(Path(__file__).parents[1] / "golden" / "memory" / "state.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return host_at(tmp_path), tmp_path / "repository"


def test_a_state_directory_of_before_is_read_as_it_is(before: tuple[Host, Path]) -> None:
    host, place = before
    told: list[str] = []
    host = Host(host.machine, host.label, host.state_dir, host.cache_dir, Notices(told.append))
    store = LocalStore.open(place)
    with Repository.open(store, SECRET, host) as repo:
        assert not repo.problems
        own = repo.own_writer
        assert own is not None and sorted(repo.pins.heads) == sorted(repo.history.chains)
        assert repo.log.places.get("/mirror").mirror and repo.log.places.get("memory:").wrote
        there = [chain.head for chain in repo.history.chains.values() if chain.head is not None]
        assert sum(repo.log.sightings.of(head.writer, head.seq) is not None for head in there) == 2
        volumes = {volume.name: volume for volume in repo.catalogue.volumes.values()}
        disk = volumes["disk"].volume_id
        verdict = Verdicts(repo.memory).of(disk)
        assert verdict is not None and (verdict.level, verdict.result) == ("full", "ok")
        entry, why = Ledger(repo.memory, repo.keys).entry(disk)
        assert entry is not None, why
        assert Confirmations(repo.memory).unsaid(own, []) == [entry.ref]
        assert [link.end for link in Intervals(host, entry.identity).walk(entry.checkpoint)] == ["disk#3", "disk#4"]
        assert entry.checkpoint in needed_checkpoints(host, entry.identity)
        ids = new_volume(repo.memory, b"tracked:second", "")
        (point,) = ResumeMemory(repo.memory, repo.keys).points(ids.volume_id)
        assert (point.done, point.checkpoint) == (8, "second#1")
        assert FirstSeen(repo.memory, lambda: 1_900_000_000_000).age_ms("unneeded", b"p" * 16) > 0
    assert told == []
    assert [path for path in host.state_dir.rglob("*.damaged")] == []


def test_the_pins_of_before_still_detect_a_rollback(before: tuple[Host, Path]) -> None:
    host, place = before
    longest = max(((place / "w").iterdir()), key=lambda chain: len(list(chain.iterdir())))
    for commit in sorted(longest.iterdir())[-2:]:
        commit.unlink()
    with Repository.open(LocalStore.open(place), SECRET, host) as repo:
        assert [problem.kind for problem in repo.problems] == ["back"]


# -- the codec ---------------------------------------------------------------------------------------------------------

hashes = st.binary(min_size=24, max_size=24)
numbers = st.integers(0, (1 << 64) - 1)


@given(
    st.builds(
        ResumePoint,
        st.binary(max_size=20), hashes, numbers, numbers, numbers, hashes, st.booleans(), st.binary(max_size=9),
        st.text(), st.text(), numbers,
    )
)  # fmt: skip
def test_what_is_encoded_is_decoded(point: ResumePoint) -> None:
    faults: list[str] = []
    assert codec.decode(ResumePoint, json.loads(json.dumps(encode(point))), faults) == point
    assert faults == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 1 << 70) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(["seq", "root", "size", "driver", "identity", "writer"]), json_values)
def test_a_value_of_another_type_is_unfit(name: str, value: object) -> None:
    good = {
        "writer": "00" * 16, "seq": 1, "snap_id": "00" * 16, "root": "00" * 24, "size": 1, "chunk_log2": 16,
        "identity": "", "driver": "x", "checkpoint": "y",
    }  # fmt: skip
    faults: list[str] = []
    assert encode(codec.decode(LedgerEntry, good, faults)) == good
    try:
        found = codec.decode(LedgerEntry, {**good, name: value}, faults)
    except codec.Unfit:
        return
    assert encode(found) == {**good, name: value}
