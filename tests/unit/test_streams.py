"""A stream's tree is the one that a volume of its size has, whatever came before; what failed is no volume.

What a user fears: the end of a dump lost because nobody knew its size, and an unchanged dump stored again every night.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from lamella.base.errors import SourceError
from lamella.base.events import Event, Progress
from lamella.operations.access.view import Reading
from lamella.operations.backup.story import BackupResult, Request, plan_backup
from lamella.operations.shared.selection import select
from lamella.operations.verify.verify import VerifyOptions, verify
from lamella.sources.stream import StreamSource
from tests.unit.small_repository import CHUNK, OPTIONS, Small

MIB = 1 << 20
LEAF = 64 * CHUNK
"""So many bytes have a tree of one node."""
# A whole leaf is a piece that is read at once, too; each size follows one that is larger or smaller by a node or more.
SIZES = [1, CHUNK, LEAF, LEAF + 1, CHUNK - 1, 3 * LEAF, LEAF - 1, 2 * LEAF + CHUNK + 1, CHUNK + 1, LEAF, 5 * LEAF, 7]


def streamed(small: Small, path: Path, size: int | None = None, command: str = "cat") -> BackupResult:
    """Back up what the command writes as volume `dump`."""
    source = StreamSource("dump", small.host().machine, f"{command} '{path}'", size=size)
    with small.opened() as repo:
        return plan_backup(repo, [Request("dump", source)], OPTIONS).execute()


def newest(small: Small) -> tuple[bytes, bytes]:
    """The root of the volume's newest snapshot, and its content."""
    with small.opened() as repo:
        selected = select(repo, ["dump"])[0]
        reading = Reading(repo)
        try:
            content = reading.view(selected).read(0, selected.snapshot.added.size)
        finally:
            reading.close()
        return selected.snapshot.added.root, content


def test_a_tree_of_three_levels_and_back(tmp_path: Path) -> None:
    small, path = Small.make(tmp_path), tmp_path / "content"
    for size, at in ((1, 0), (64 * LEAF + 1, 64 * LEAF), (64 * LEAF, 64 * LEAF - 1)):
        with path.open("wb") as file:
            file.truncate(size)
            file.seek(at)
            file.write(b"x")
        assert streamed(small, path).complete
        root, content = newest(small)
        assert content == path.read_bytes(), size
        assert streamed(small, path, size=size).complete
        assert newest(small)[0] == root, size


def packs(small: Small) -> int:
    """How many packs there are: an unchanged volume needs no further one."""
    return sum(name.startswith("p/") for name, _ in small.store.list("p/"))


def made(seed: int, size: int, like: bytes) -> bytes:
    """Content of a size: mostly that of another one, some of it new, some of it zeros."""
    chance = random.Random(seed)
    content = bytearray(like[:size] + chance.randbytes(max(0, size - len(like))))
    for _ in range(3):
        at = chance.randrange(size)
        content[at : at + 1000] = chance.randbytes(len(content[at : at + 1000]))
    first = chance.randrange(1 + size // CHUNK) * CHUNK
    content[first : first + 5 * CHUNK] = bytes(len(content[first : first + 5 * CHUNK]))
    return bytes(content)


def test_any_size_after_any_other(tmp_path: Path) -> None:
    small, path, content = Small.make(tmp_path), tmp_path / "content", b""
    for seed, size in enumerate([*SIZES, *SIZES[6:2:-1]]):
        content = made(seed, size, content)
        path.write_bytes(content)
        (row,) = streamed(small, path).volumes
        assert (row.result, row.source_bytes, row.read_bytes) == ("complete", size, size), (size, row)
        root, found = newest(small)
        assert found == content, size
        before = packs(small)
        known = streamed(small, path, size=size)
        assert newest(small)[0] == root, f"{size}: another tree than that of a volume of known size"
        again = streamed(small, path)
        assert newest(small)[0] == root, size
        for result in (known, again):
            row = result.volumes[0]
            assert (row.changed_chunks, row.new_chunks, row.stored_bytes) == (0, 0, 0), (size, row)
        # Not one node more: this must not depend on whether the size is known.
        assert packs(small) == before, size
    with small.opened(whole=True) as repo:
        found_bad = verify(repo, select(repo, []), VerifyOptions("full"))
        assert not found_bad.findings, found_bad.findings[:3]


@pytest.mark.parametrize("size", [1, CHUNK, LEAF, 2 * LEAF + 1])
def test_nothing_but_zeros(tmp_path: Path, size: int) -> None:
    small, path = Small.make(tmp_path), tmp_path / "content"
    path.write_bytes(bytes(size))
    root = None
    for known in (None, size, None):
        assert streamed(small, path, size=known).volumes[0].stored_bytes == 0
        assert root in (None, newest(small)[0])
        root, content = newest(small)
        assert content == bytes(size)


def test_a_change_costs_its_chunk(tmp_path: Path) -> None:
    small, path = Small.make(tmp_path), tmp_path / "content"
    content = bytearray(random.Random(1).randbytes(5 * MIB + 17))
    path.write_bytes(content)
    streamed(small, path)
    content[3 * MIB] ^= 1
    path.write_bytes(content)
    (row,) = streamed(small, path).volumes
    assert (row.mode, row.driver) == ("compare", "stream")
    assert (row.changed_chunks, row.new_chunks) == (1, 1) and row.stored_bytes < CHUNK + 1000, row


@pytest.mark.parametrize("command", ["false;", "head -c 100000", "head -c 100000 <", "kill -9 $$; cat", "exit 3; cat"])
def test_what_fails_is_not_published(tmp_path: Path, command: str) -> None:
    small, path = Small.make(tmp_path), tmp_path / "content"
    path.write_bytes(bytes(range(250)) * 4000)
    size = 1_000_000 if command.startswith("head") else None
    result = streamed(small, path, size=size, command=command)
    assert not result.snapshot and result.volumes[0].result == "failed", result


def test_a_piece_is_read_once_and_in_order(tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(bytes(3 * CHUNK + 1))
    source = StreamSource("dump", "0" * 16, f"cat '{tmp_path}/content'")
    with source.freeze() as frozen:
        pieces = frozen.pieces(CHUNK)
        first, second = next(pieces), next(pieces)
        buffer = memoryview(bytearray(CHUNK))
        frozen.read_into(second.start, buffer)
        frozen.read_into(first.start, buffer)
        with pytest.raises(SourceError):
            frozen.read_into(first.start, buffer)
        assert [(one.start, one.end) for one in pieces] == [(2 * CHUNK, 3 * CHUNK), (3 * CHUNK, 3 * CHUNK + 1)]
        assert frozen.ended and frozen.size == 3 * CHUNK + 1
        assert [one.end for one in frozen.pieces(CHUNK)][-1] == 3 * CHUNK + 1, "a command can be run again"


@pytest.mark.parametrize("known", [False, True])
def test_progress_says_what_came_and_no_sum_that_nobody_knows(tmp_path: Path, known: bool) -> None:
    small, path = Small.make(tmp_path), tmp_path / "content"
    size = 9 * MIB + 1
    path.write_bytes(random.Random(2).randbytes(size))
    source = StreamSource("dump", small.host().machine, f"cat '{path}'", size=size if known else None)
    seen: list[Event] = []

    def see(event: Event) -> None:
        seen.append(event)

    with small.opened() as repo:
        plan_backup(repo, [Request("dump", source)], OPTIONS).execute(see)
    told = [(one.done_bytes, one.total_bytes) for one in seen if isinstance(one, Progress)]
    assert {total for _, total in told} == {size if known else 0}
    assert [done for done, _ in told] == sorted(done for done, _ in told) and told[-1][0] == size


def test_a_stream_too_long_for_any_volume_of_its_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamella.operations.backup.stream._TOO_LARGE", 4 * MIB)
    small, path = Small.make(tmp_path), tmp_path / "content"
    path.write_bytes(bytes(4 * MIB + 1))
    (row,) = streamed(small, path).volumes
    assert row.result == "failed" and "--size" in row.error, row
    path.write_bytes(bytes(4 * MIB))
    assert streamed(small, path).complete


def test_points_of_a_long_stream_pin_its_packs(tmp_path: Path) -> None:
    """Every record on the way names the packs; nothing is ever said of how far the tree came."""
    small, path = Small.make(tmp_path), tmp_path / "content"
    path.write_bytes(random.Random(3).randbytes(40 * MIB))
    command = f"cat '{path}'; exit 1"
    source = StreamSource("dump", small.host().machine, command)
    options = replace(OPTIONS, pace=replace(OPTIONS.pace, bytes=4 * MIB, least_bytes=1))
    with small.opened() as repo:
        assert not plan_backup(repo, [Request("dump", source)], options).execute().snapshot
    with small.opened() as repo:
        (session,) = repo.catalogue.sessions
        assert session.packs and not session.partial_roots
    (row,) = streamed(small, path).volumes
    assert row.result == "complete" and row.stored_bytes < 20 * MIB, "what the broken run stored is used"
