"""Any life of two volumes: written, punched, resized, backed up with any options, caches and state lost in between.

Every snapshot ever made must restore to the bytes the volume had then, and verify must find nothing.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, multiple, precondition, rule

from lamella.operations.backup.story import BackupOptions, Request, plan_backup
from lamella.operations.look.diff import compare
from lamella.operations.prune.plan import PruneOptions
from lamella.operations.prune.prune import run_prune
from lamella.operations.restore.restore import RestoreOptions, plan_restore
from lamella.operations.shared.selection import Selected, select
from lamella.operations.verify.verify import VerifyOptions, verify
from lamella.repository.repository import Repository
from lamella.sources.zeroing import Zeroing, zero_range
from tests.unit.small_repository import CHUNK, Small

NAMES = ("alpha", "beta")
MOST = 70 * CHUNK
"""Two levels of nodes; most of it holes."""


class Kept(NamedTuple):
    """A snapshot as the test remembers it."""

    volume: str
    snapshot: str
    content: bytes


which = st.sampled_from(NAMES)
sizes = st.one_of(
    st.sampled_from([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 63 * CHUNK, 64 * CHUNK, 64 * CHUNK + 1, MOST]),
    st.integers(0, MOST),
    st.integers(0, 4 * CHUNK),
)
places = st.one_of(st.integers(0, MOST), st.integers(0, 70).map(lambda chunk: chunk * CHUNK))
lengths = st.one_of(st.integers(1, 3 * CHUNK), st.sampled_from([1, CHUNK, 2 * CHUNK, 64 * CHUNK]))
options = st.builds(
    BackupOptions,
    compression=st.sampled_from(["auto", "off", "portable", "1"]),
    check_all=st.booleans(),
    workers=st.integers(1, 3),
    chunk_log2=st.just(16),
    domain=st.just("shared"),
)


Edit = tuple[str, str, int, int, int]
"""Volume, kind of edit, place, length, seed."""
kinds = st.sampled_from(["pattern", "little", "noise", "zero", "punch", "cut", "hole"])
edits = st.tuples(which, kinds, places, lengths, st.integers(0, 5))


def expected_ranges(old: bytes, new: bytes) -> list[tuple[int, int, str]]:
    """What differs, chunk by chunk, told from the bytes; equal neighbours joined."""
    ranges: list[tuple[int, int, str]] = []
    for start in range(0, len(new), CHUNK):
        one, other = old[start : start + CHUNK], new[start : start + CHUNK]
        if one == other or not (any(one) or any(other)):
            continue
        kind = "data" if any(other) else "zero"
        if ranges and ranges[-1][2] == kind and ranges[-1][0] + ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + len(other), kind)
        else:
            ranges.append((start, len(other), kind))
    return ranges


class Life(RuleBasedStateMachine):
    """The rules."""

    kept = Bundle("kept")

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="lamella-life-"))
        self.small = Small.make(self.place)
        self.snapshots: list[Kept] = []
        self.last: dict[str, bytes] = {}
        self.lost_state = False

    def teardown(self) -> None:
        shutil.rmtree(self.place)

    # -- the volumes ---------------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        return self.place / f"{name}.img"

    @initialize(sizes=st.tuples(sizes, sizes))
    def volumes(self, sizes: tuple[int, int]) -> None:
        for name, size in zip(NAMES, sizes, strict=True):
            self.path(name).touch()
            os.truncate(self.path(name), size)

    def edit(self, name: str, place: int, length: int, content: bytes | None, how: Zeroing | None = None) -> None:
        """Write `content` again and again over a range, or zero it; never beyond the end."""
        size = self.path(name).stat().st_size
        start = place % size if size else 0
        end = min(start + length, size)
        with self.path(name).open("r+b") as file:
            if content is not None:
                os.pwrite(file.fileno(), (content * (-(-length // len(content)) + 1))[: end - start], start)
            elif how is not None:
                zero_range(file.fileno(), start, end, how)

    def change(self, edit: Edit) -> None:
        """Do one edit."""
        name, kind, place, length, seed = edit
        if kind == "pattern":
            self.edit(name, place, min(length, 4 * CHUNK), b"%d-" % seed)
        elif kind == "little":
            self.edit(name, place, 1 + seed, b"%d" % seed)
        elif kind == "noise":
            self.edit(name, place, min(length, 4 * CHUNK), random.Random(seed).randbytes(CHUNK))
        elif kind == "zero":
            self.edit(name, place, length, None, Zeroing.KEEP_SPACE)
        elif kind == "punch":
            self.edit(name, place, length, None, Zeroing.GIVE_BACK)
        else:  # cut off at `place`; "hole" grows back
            size = self.path(name).stat().st_size
            os.truncate(self.path(name), min(place, size))
            if kind == "hole":
                os.truncate(self.path(name), size)

    @rule(edit=edits)
    def write(self, edit: Edit) -> None:
        self.change(edit)

    @rule(name=which, size=sizes)
    def resize(self, name: str, size: int) -> None:
        os.truncate(self.path(name), size)

    # -- the host ------------------------------------------------------------------------------------------------------

    @rule()
    def lose_the_cache(self) -> None:
        shutil.rmtree(self.small.host().cache_dir, ignore_errors=True)

    @rule()
    def lose_the_state(self) -> None:
        shutil.rmtree(self.small.host().state_dir, ignore_errors=True)
        self.lost_state = True

    # -- the repository ------------------------------------------------------------------------------------------------

    @rule(
        target=kept,
        before=st.lists(edits, max_size=5),
        names=st.sets(which, min_size=1),
        options=options,
        check=st.booleans(),
    )
    def backup(self, before: list[Edit], names: set[str], options: BackupOptions, check: bool) -> object:
        for edit in before:
            self.change(edit)
        with self.small.opened() as repo:
            requests = [Request(None, self.small.source(self.path(name))) for name in sorted(names)]
            # Without its state it is another writer, which an admin lets act for the one of before.
            result = plan_backup(repo, requests, replace(options, adopt=self.lost_state)).execute()
            told = [text for text in result.warnings if "the source shrank" not in text]
            assert (result.complete, told) == (True, [])
            assert repo.problems == []
        made = [Kept(name, result.snapshot, self.path(name).read_bytes()) for name in sorted(names)]
        for one, row in zip(made, sorted(result.volumes, key=lambda row: row.volume), strict=True):
            assert (row.volume, row.source_bytes) == (one.volume, len(one.content))
            if self.last.get(one.volume) == one.content:
                assert row.new_chunks == row.stored_bytes == 0
            self.last[one.volume] = one.content
        self.snapshots += made
        for one in made if check else []:
            self.restore_and_compare(one, RestoreOptions(workers=2, overwrite=True))
        return multiple(*made)

    def selected(self, repo: Repository, *chosen: Kept) -> list[Selected]:
        return select(repo, [f"{one.volume}@{one.snapshot}" for one in chosen])

    def restore_and_compare(self, one: Kept, options: RestoreOptions) -> None:
        """Over whatever was restored before."""
        target = self.place / "restored.img"
        if options.in_place:
            target.touch()
            os.truncate(target, len(one.content))
        with self.small.opened() as repo:
            result = plan_restore(repo, self.selected(repo, one)[0], target, options).execute()
            assert result.compared_bytes == len(one.content)
            assert repo.contents.bad_places == []
        assert target.read_bytes() == one.content

    @rule(one=kept, workers=st.integers(1, 3), in_place=st.booleans())
    def restore(self, one: Kept, workers: int, in_place: bool) -> None:
        self.restore_and_compare(one, RestoreOptions(workers=workers, overwrite=True, in_place=in_place))

    @rule(one=consumes(kept), repack=st.booleans(), unused=st.sampled_from([0.0, 5.0, 30.0]))
    def prune(self, one: Kept, repack: bool, unused: float) -> None:
        with self.small.opened(exclusive=True) as repo:
            refs = [row.snapshot.ref for row in self.selected(repo, one)]
            result = run_prune(repo, refs, PruneOptions(repack=repack, max_unused=unused, last=True))
        assert (result.removed, result.blocked) == (refs, [])
        assert not repack or result.dead_bytes * 100 <= unused * result.live_bytes
        if one == [other for other in self.snapshots if other.volume == one.volume][-1]:
            self.last.pop(one.volume, None)  # its chunks may be gone
        self.snapshots.remove(one)

    @rule(one=kept, other=kept)
    def diff(self, one: Kept, other: Kept) -> None:
        if one.volume != other.volume:
            return
        with self.small.opened() as repo:
            found = compare(repo, *self.selected(repo, one, other))
        ranges = expected_ranges(one.content, other.content)
        assert found.ranges == ranges
        assert (found.size_a, found.size_b, found.chunk_size) == (len(one.content), len(other.content), CHUNK)
        assert found.changed_bytes == sum(length for _, length, kind in ranges if kind == "data")
        assert found.zeroed_bytes == sum(length for _, length, kind in ranges if kind == "zero")

    @precondition(lambda self: bool(self.snapshots))
    @rule(level=st.sampled_from(["structure", "sample", "full"]), percent=st.sampled_from([1.0, 50.0, 100.0]))
    def verify(self, level: str, percent: float) -> None:
        with self.small.opened() as repo:
            everything = select(repo, [])
            assert sorted(one.text for one in everything) == sorted(
                f"{one.volume}@{one.snapshot}" for one in self.snapshots
            )
            result = verify(repo, everything, VerifyOptions(level=level, percent=percent, workers=2))
            assert (result.findings, result.unrestorable) == ([], [])

    @rule(one=kept)
    def verify_against_the_source(self, one: Kept) -> None:
        with self.small.opened() as repo:
            result = verify(repo, self.selected(repo, one), VerifyOptions(level="source", workers=2))
        assert not result.damaged
        same = self.path(one.volume).read_bytes() == one.content
        assert bool(result.findings) is not same

    @precondition(lambda self: bool(self.snapshots))
    @rule()
    def the_latest_is_the_last_one_made(self) -> None:
        with self.small.opened() as repo:
            for name, content in self.last.items():
                (latest,) = select(repo, [name])
                last = [one for one in self.snapshots if one.volume == name][-1]
                assert latest.snapshot.name == last.snapshot
                assert last.content == content


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=max(10, settings().max_examples // 2),
    stateful_step_count=25 if settings().max_examples <= 100 else 60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
