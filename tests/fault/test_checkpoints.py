"""Long chains: checkpoints, catalogue segments, pins older than them, and segments that are damaged or gone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.base.errors import RolledBack
from lamella.format.commit import CHECKPOINT_EVERY, parse_name
from lamella.format.records import AddSnap
from lamella.history.acceptance import accept_history
from lamella.memory.host import Host
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from tests.fault.world import (
    CHUNK,
    SECRET,
    Truth,
    backup,
    check_rescue,
    check_sound,
    fresh_host,
    host_at,
    init,
    short_rescue,
    verified,
    volume,
)


def content(number: int) -> bytes:
    return bytes([number % 250 + 1]) * CHUNK + number.to_bytes(4, "little")


Life = tuple[MemoryStore, Host, Truth]
"""A long chain, the host that wrote it, and what must come back. `early` beside the host knows its beginning only."""


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, MemoryStore, Truth]]:
    """Made once: a chain with a checkpoint some commits ago."""
    place = tmp_path_factory.mktemp("grown")
    store, host, truth = MemoryStore(), host_at(place / "host"), Truth()
    with pytest.MonkeyPatch.context() as patch, short_rescue(patch):
        init(store, host)
    for number in range(CHECKPOINT_EVERY + 5):
        truth.learn(backup(store, host, volume(content(number))), {"disk": content(number)})
        if number == 10:
            shutil.copytree(place / "host", place / "early")
    yield place, store, truth


@pytest.fixture
def life(grown: tuple[Path, MemoryStore, Truth], tmp_path: Path) -> Life:
    """A copy of it that the test may change."""
    place, store, truth = grown
    for name in ("host", "early"):
        shutil.copytree(place / name, tmp_path / name)
    return MemoryStore(store.objects()), host_at(tmp_path / "host"), Truth(dict(truth.volumes))


def texts(store: MemoryStore, host: Host, *, whole: bool = False) -> set[str]:
    with Repository.open(store, SECRET, host, whole=whole) as repo:
        assert not repo.problems, repo.problems
        return {one.text for one in select(repo, [])}


def test_more_commits_than_fit_before_two_checkpoints(life: Life, tmp_path: Path) -> None:
    store, host, truth = life
    for number in range(CHECKPOINT_EVERY):
        truth.learn(backup(store, host, volume(content(number))), {"disk": content(number)})
    stranger = fresh_host(tmp_path / "stranger")
    assert texts(store, stranger) == set(truth.volumes) == texts(store, host)
    assert texts(store, fresh_host(tmp_path / "another"), whole=True) == set(truth.volumes)
    with Repository.open(store, SECRET, stranger) as repo:
        (chain,) = repo.history.chains.values()
        assert chain.checkpoint[0] > CHECKPOINT_EVERY, "nothing was checkpointed"
        assert not repo.history.whole, "a stranger need not read the whole chain"
    # A pin older than two checkpoints: all steps in between are checked, and nothing is seen twice.
    early = host_at(tmp_path / "early")
    assert texts(store, early) == set(truth.volumes)
    check_sound(store, fresh_host(tmp_path / "stranger"), truth, tmp_path)
    check_rescue(store.objects(), Truth(dict(list(truth.volumes.items())[::12])), tmp_path)
    # Another writer goes on from there, and so does a host that lost its state.
    truth.learn(backup(store, fresh_host(tmp_path / "third", "third"), volume(b"x", "x")), {"x": b"x"})
    shutil.rmtree(host.state_dir)
    truth.learn(backup(store, host, volume(content(1))), {"disk": content(1)})
    assert texts(store, fresh_host(tmp_path / "stranger")) == set(truth.volumes)


def test_a_rollback_to_before_a_checkpoint_is_noticed(life: Life) -> None:
    store, host, _ = life
    older = {name: found for name, found in store.objects().items() if seq_of(name) <= CHECKPOINT_EVERY - 5}
    with pytest.raises(RolledBack):
        backup(MemoryStore(older), host, volume(b"x"))


def seq_of(name: str) -> int:
    head = parse_name(name)
    return 0 if head is None else head.seq


@pytest.mark.parametrize("part", ["first", "pinned", "middle", "checkpoint", "before the checkpoint", "newest"])
def test_a_commit_of_a_long_chain_is_missing(life: Life, tmp_path: Path, part: str) -> None:
    """Noticed by whoever can know it; and what the checkpoint carries is still there."""
    store, host, truth = life
    with Repository.open(store, SECRET, host) as repo:
        (chain,) = repo.history.chains.values()
        checkpoint, newest = chain.checkpoint[0], max(map(seq_of, store.objects()))
    seqs = {"first": 1, "pinned": 12, "middle": (12 + checkpoint) // 2, "checkpoint": checkpoint, "newest": newest}
    seq = seqs.get(part, checkpoint - 1)
    left = MemoryStore({name: found for name, found in store.objects().items() if seq_of(name) != seq})
    for who in (host, host_at(tmp_path / "early"), fresh_host(tmp_path / "stranger")):
        if part == "newest" and who.state_dir != host.state_dir:
            continue  # only who saw it can miss it
        with Repository.open(left, SECRET, who) as repo:
            assert repo.problems, f"{part} is missing, and {who.label} does not notice"
            shown = {one.text for one in select(repo, [])}
            lost = set(truth.volumes) - shown
            assert len(lost) <= 1, f"one commit is missing, and {len(lost)} snapshots with it"
    with Repository.open(left, SECRET, host) as repo:
        assert accept_history(repo.log)
    result = backup(left, host, volume(content(77)))
    assert f"disk@{result.snapshot}" in texts(left, host)


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, MemoryStore, Truth]]:
    """Enough records for several small segments: a chain of real backups."""
    place = tmp_path_factory.mktemp("segmented")
    store, host, truth = MemoryStore(), host_at(place / "host"), Truth()
    with pytest.MonkeyPatch.context() as patch, short_rescue(patch):
        patch.setattr("lamella.history.checkpoints.TAIL_BYTES", 1000)
        patch.setattr("lamella.history.checkpoints.SEGMENT_BYTES", 2000)
        init(store, host)
        for number in range(CHECKPOINT_EVERY + 4):
            truth.learn(backup(store, host, volume(content(number))), {"disk": content(number)})
    yield place, store, truth


@pytest.fixture
def with_segments(segmented: tuple[Path, MemoryStore, Truth], tmp_path: Path) -> Life:
    place, store, truth = segmented
    shutil.copytree(place / "host", tmp_path / "host")
    return MemoryStore(store.objects()), host_at(tmp_path / "host"), Truth(dict(truth.volumes))


def segment_packs(store: MemoryStore, host: Host) -> list[str]:
    with Repository.open(store, SECRET, host) as repo:
        (chain,) = repo.history.chains.values()
        assert chain.carried is not None
        return [f"p/{place.pack.hex()[:2]}/{place.pack.hex()}" for place in chain.carried.segments]


def test_catalogue_segments_carry_the_older_records(with_segments: Life, tmp_path: Path) -> None:
    store, host, truth = with_segments
    assert len(segment_packs(store, host)) >= 2
    stranger = fresh_host(tmp_path / "stranger")
    assert texts(store, stranger) == set(truth.volumes)
    with Repository.open(store, SECRET, stranger) as repo:
        assert not repo.history.whole
        assert len(repo.catalogue.runs) == len(truth.volumes)
    check_sound(store, stranger, truth, tmp_path)
    check_rescue(store.objects(), truth, tmp_path)


@pytest.mark.parametrize("which", [0, -1], ids=["first segment", "last segment"])
@pytest.mark.parametrize("deed", ["removed", "damaged", "truncated"])
def test_a_segment_that_cannot_be_read_loses_no_snapshot(
    with_segments: Life, tmp_path: Path, which: int, deed: str
) -> None:
    """Segments repeat what the commits say. Whoever still has those needs no segment."""
    store, host, truth = with_segments
    name = segment_packs(store, host)[which]
    objects = store.objects()
    whole = objects.pop(name)
    if deed == "damaged":
        objects[name] = whole[:-1] + bytes([whole[-1] ^ 1])
    elif deed == "truncated":
        objects[name] = whole[:-10]
    left = MemoryStore(objects)
    for who in (fresh_host(tmp_path / "stranger"), host):
        with Repository.open(left, SECRET, who) as repo:
            assert {one.text for one in select(repo, [])} == set(truth.volumes)
        with Repository.open(left, SECRET, who) as repo:
            result = verified(repo)
            assert result.damaged and not result.unrestorable, result.findings
    check_rescue(objects, truth, tmp_path)


def test_the_newest_records_are_never_in_a_segment_alone(with_segments: Life, tmp_path: Path) -> None:
    """All segments gone: what came after the checkpoint is there without any of them."""
    store, host, truth = with_segments
    gone = set(segment_packs(store, host))
    objects = {name: found for name, found in store.objects().items() if name not in gone}
    with Repository.open(MemoryStore(objects), SECRET, fresh_host(tmp_path / "stranger")) as repo:
        shown = {one.text for one in select(repo, [])}
        assert list(truth.volumes)[-1] in shown
        assert all(isinstance(one.snapshot.added, AddSnap) for one in select(repo, []))
