"""One small repository, and the judge of what Lamella does with a damaged copy of it. Also runs in worker processes."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError
from lamella.base.extents import Extent
from lamella.memory.host import Host
from lamella.operations.backup.story import BackupOptions
from lamella.operations.shared.selection import select
from lamella.operations.shared.streaming import read_document
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from lamella_kit.scripted_source import ScriptedSource
from tests.fault.world import CHUNK, SECRET, Truth, backup, host_at, init, restored, short_rescue, verified

DOCUMENT = b"<settings memory='400'/>" * 3
Objects = dict[str, bytes]


@dataclass
class Small:
    """The repository's objects after each commit, what must come back, and a host that knows it all."""

    ages: list[Objects] = field(default_factory=list)
    truth: Truth = field(default_factory=Truth)
    documented: str = ""
    """The snapshot that carries the document."""
    place: Path = Path()

    @property
    def objects(self) -> Objects:
        return self.ages[-1]

    def content(self, snapshot: str) -> bytes:
        """By the snapshot's name alone: a volume whose record is lost has lost its own."""
        return next(content for text, content in self.truth.volumes.items() if text.endswith(f"@{snapshot}"))


def sparse(size: int, chunks: Mapping[int, bytes]) -> ScriptedSource:
    """A volume called `disk` that is a hole but for these chunks."""
    content = bytearray(size)
    for number, start in chunks.items():
        content[number * CHUNK : (number + 1) * CHUNK] = (start * CHUNK)[: min(CHUNK, size - number * CHUNK)]
    extents = [Extent(number * CHUNK, min((number + 1) * CHUNK, size)) for number in sorted(chunks)]
    return ScriptedSource("disk", bytes(content), extents)


def build(place: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    """Two writers, two volumes, a tree of two levels, a volume that was resized, a document. Below 16 KiB."""
    small = Small(place=place)
    one, two = host_at(place / "one"), host_at(place / "two", "two")
    store = MemoryStore()
    with short_rescue(monkeypatch):
        init(store, one)
    small.ages.append(store.objects())
    disk = sparse(66 * CHUNK - 1000, {0: b"a", 1: b"b", 40: b"c", 65: b"end"})
    options = BackupOptions(chunk_log2=16, workers=1, documents={"settings": DOCUMENT})
    result = backup(store, one, disk, options=options)
    small.truth.learn(result, {"disk": disk.content})
    small.documented = f"disk@{result.snapshot}"
    small.ages.append(store.objects())
    other = ScriptedSource("other", b"a" * CHUNK + os.urandom(500))
    small.truth.learn(backup(store, two, other), {"other": other.content})
    small.ages.append(store.objects())
    disk = sparse(50 * CHUNK + 77, {0: b"a", 1: b"B", 40: b"c"})
    small.truth.learn(backup(store, one, disk), {"disk": disk.content})
    small.ages.append(store.objects())
    for host in (one, two):
        with Repository.open(store, SECRET, host) as repo:
            assert not verified(repo).findings
    return small


@dataclass(frozen=True)
class Outcome:
    """What came of a changed repository."""

    refused: str
    """Why it did not open; empty if it did."""
    damaged: bool
    failed: frozenset[str]
    """Snapshots whose restore raised, among those still listed."""
    unrestorable: frozenset[str]
    listed: frozenset[str]
    junk: frozenset[str] = frozenset()
    """Objects under commits' names that a note says are none."""

    @property
    def noticed(self) -> bool:
        """Refused, or a finding at level full."""
        return bool(self.refused) or self.damaged


def judge(objects: Objects, host: Host, small: Small, scratch: Path, *, restores: bool = True) -> Outcome:
    """Open, restore and verify a changed repository. Fails on wrong bytes and on errors that are not Lamella's."""
    warm = host.cache_dir.exists()
    try:
        repo = Repository.open(MemoryStore(objects), SECRET, host)
    except LamellaError as error:
        return Outcome(error.message, False, frozenset(), frozenset(), frozenset())
    with repo:
        failed = set()
        shown = {one.text: one for one in select(repo, [])}
        for text, one in shown.items() if restores else ():
            try:
                content = restored(repo, one, scratch / "out.img")
                if one.snapshot.name == small.documented.partition("@")[2]:
                    assert read_document(repo, one, "settings") == DOCUMENT
            except LamellaError:
                failed.add(text)
            else:
                assert content == small.content(one.snapshot.name), f"{text}: WRONG BYTES"
            for left in scratch.glob("out.img*"):
                left.unlink()
        result = verified(repo)
    unrestorable = frozenset(result.unrestorable)
    assert failed <= unrestorable, f"verify did not say that {failed - unrestorable} cannot be restored"
    if restores and not warm:
        # A warm cache may still know where the blobs of a pack with a bad head lie. Nobody else does: verify is right.
        assert unrestorable <= failed, f"verify says {unrestorable - failed} cannot be restored, but it can"
    assert result.damaged or not unrestorable
    notes = [finding.message for finding in result.findings if finding.severity == "note"]
    junk = {note.partition(" is no commit, ")[0] for note in notes if " is no commit, " in note}
    junk |= {name for note in notes for name in note.partition("signed, ignored: ")[2].split(", ") if name}
    junk |= {
        one.obj for one in result.findings if one.severity == "note" and "no pack of this repository" in one.message
    }
    return Outcome("", result.damaged, frozenset(failed), unrestorable, frozenset(shown), frozenset(junk))


Change = tuple[str, int, int]
"""Flip in this object at this offset these bits."""


@dataclass(frozen=True)
class Batch:
    """Work for one process."""

    small: bytes
    changes: Sequence[Change]
    warm: bool
    restores_every: int


def flipped(objects: Objects, change: Change) -> Objects:
    name, offset, bits = change
    content = bytearray(objects[name])
    content[offset] ^= bits
    return {**objects, name: bytes(content)}


def run_batch(batch: Batch) -> tuple[list[str], int]:
    """Complaints, and by how many KiB the process's peak memory grew."""
    small: Small = pickle.loads(batch.small)
    complaints: list[str] = []
    # Every case makes a cache and a state directory and flushes them: in memory that costs next to nothing.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        scratch = Path(name)
        before = 0
        for number, change in enumerate(batch.changes):
            host = a_host(small, scratch, warm=batch.warm)
            try:
                changed = flipped(small.objects, change)
                outcome = judge(changed, host, small, scratch, restores=number % batch.restores_every == 0)
                if not outcome.noticed:
                    complaints.append(f"{change}: nobody noticed")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
                complaints.append(f"{change}: {type(error).__name__}: {error}")
            if number == 20:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return complaints, grown if before else 0


def a_host(small: Small, scratch: Path, *, warm: bool) -> Host:
    """A host that knows nothing, or a copy of one that saw the whole repository."""
    shutil.rmtree(scratch / "host", ignore_errors=True)
    if warm:
        shutil.copytree(small.place / "one", scratch / "host")
        return host_at(scratch / "host")
    return host_at(scratch / "host", "stranger")


def in_processes(
    batches: Sequence[Batch], work: Callable[[Batch], tuple[list[str], int]]
) -> list[tuple[list[str], int]]:
    """Run batches in two processes that share nothing with this one."""
    with get_context("spawn").Pool(2) as pool:
        return pool.map(work, batches, chunksize=1)
