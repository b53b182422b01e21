"""Instant restores that are killed or lose the power at any operation of the file system.

What the user fears: that what the guest wrote is lost, that a chunk of the repository falls over what the guest wrote,
and that a disk which is half a mixture passes for whole. Every write to the target and to the journal is recorded; a
power cut is any prefix of these, with each sector that was not synchronised kept or lost at random.
"""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lamella.base.errors import IntegrityError, Locked, UsageError
from lamella.base.events import Event, Warned, silent
from lamella.operations.access import kept_file, listening
from lamella.operations.access.instant import journal as journal_module
from lamella.operations.access.instant.arrival import Arrival
from lamella.operations.access.instant.journal import owner_of
from lamella.operations.access.instant.restore import (
    InstantOptions,
    InstantRestore,
    clear_up,
    instant_restore,
    journal_beside,
)
from lamella.operations.access.nbd_server import NbdServer, Served
from lamella.operations.access.view import Reading
from lamella.operations.shared.selection import Selected, select
from lamella.operations.shared.streaming import ChunkBatch, VolumeStream
from lamella.packs.tree import SlotRun
from lamella.sources import local_target, served_target
from lamella.sources import target as target_module
from lamella.sources.served_target import unfinished
from lamella.sources.zeroing import Zeroing, zero_range
from tests.unit.nbd_client import FUA, NbdClient
from tests.unit.small_repository import CHUNK, Small, image

LETTERS = "ab.cd0e.fghi"
TAIL = 1000
SECTOR = 512
HISTORIES, CUTS, KILLS = 20, 6, 60
BOOT, LATER = "first boot", "second boot"


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Step:
    """One change of a file: where and what; or, without content, that everything before `covers` is durable."""

    file: str
    offset: int = 0
    content: bytes | None = None
    covers: int = 0


class Recorder:
    """Does what it is asked for on the real files, and keeps what that was. `between` is called before each step.

    Nothing has to reach a disk: the recorded steps say what would have.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.between: Callable[[str], None] = _nothing
        self.syncing = ""
        """The file that was synchronised last."""

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def pwrite(self, fd: int, content: memoryview, offset: int) -> int:
        self.between("write")
        count = os.pwrite(fd, content, offset)
        self.steps.append(Step(_name(fd), offset, bytes(content[:count])))
        return count

    def fdatasync(self, fd: int) -> None:
        covers, self.syncing = len(self.steps), _name(fd)
        self.between("sync")
        self.steps.append(Step(_name(fd), covers=covers))

    fsync = fdatasync

    def kill_at(self, number: int) -> None:
        """Raise Killed before the step of this number from now on."""
        left = number

        def between(what: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        self.between = between

    def zero_range(self, fd: int, start: int, end: int, how: Zeroing) -> None:
        self.between("write")
        zero_range(fd, start, end, how)
        self.steps.append(Step(_name(fd), start, bytes(end - start)))


def _name(fd: int) -> str:
    return Path(f"/proc/self/fd/{fd}").readlink().name


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    for module in (kept_file, journal_module, served_target, local_target, target_module):
        monkeypatch.setattr(module, "os", found)
    monkeypatch.setattr(served_target, "zero_range", found.zero_range)
    for module in (journal_module, local_target):
        monkeypatch.setattr(module, "sync_directory", _nothing_durable)
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    small = Small.make(tmp_path_factory.mktemp("instant"))
    small.backup(image(small.place / "disk.img", LETTERS, tail=TAIL))
    return small


@pytest.fixture(scope="module")
def content(small: Small) -> bytes:
    return (small.place / "disk.img").read_bytes()


@pytest.fixture
def reading(small: Small) -> Iterator[Reading]:
    with small.opened() as repo:
        reading = Reading(repo)
        yield reading
        reading.close()


@dataclass
class World:
    """One target, the restores that go on with it, and what they told."""

    reading: Reading
    target: Path
    told: list[str] = field(default_factory=list)

    @property
    def selected(self) -> Selected:
        return select(self.reading.repo, ["disk"])[0]

    @contextmanager
    def opened(self, boot: str = BOOT, overwrite: bool = False) -> Iterator[InstantRestore]:
        chosen = InstantOptions(journal_beside(self.target), boot, overwrite)
        with instant_restore(self.reading, self.selected, self.target, chosen, self._report) as restore:
            yield restore

    def completed(self, restore: InstantRestore) -> None:
        restore.arrival.run(restore.complete)
        assert restore.is_complete, (restore.arrival.trouble, self.told)

    def _report(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.told.append(event.message)


@dataclass
class Written:
    """What a guest wrote into each sector, with the steps between which each write was made."""

    content: bytes
    writes: list[tuple[int, int | None, int, bytes]] = field(default_factory=list)
    """First step, step after the reply (None: there was none), offset, content."""
    flushes: list[tuple[int, int]] = field(default_factory=list)

    def allowed(self, cut: int, *, power: bool) -> list[set[bytes]]:
        """What each sector may hold after a cut before the step `cut`: what was flushed (after a kill: answered), and
        all that came later."""
        flushed = max((start for start, end in self.flushes if end <= cut), default=0) if power else cut
        sectors = [{self.content[at : at + SECTOR]} for at in range(0, len(self.content), SECTOR)]
        for start, end, offset, content in self.writes:
            if start >= cut:
                continue
            safe = end is not None and end <= flushed
            for at in range(offset, offset + len(content), SECTOR):
                piece = content[at - offset : at - offset + SECTOR]
                sectors[at // SECTOR] = {piece} if safe else {*sectors[at // SECTOR], piece}
        return sectors


class History:
    """A guest and an arrival that take turns at random, also within each other's flushes."""

    def __init__(
        self,
        restore: InstantRestore,
        arrival: Arrival,
        pieces: list[ChunkBatch | SlotRun],
        recorder: Recorder,
        seed: int,
    ) -> None:
        self.moves = random.Random(seed)
        self.restore, self._arrival, self._pieces, self._recorder = restore, arrival, pieces, recorder
        self.written = Written(b"")
        self.meanwhile = False

    @property
    def now(self) -> int:
        return len(self._recorder.steps)

    def move(self, *, nested: bool = False) -> None:
        kind = self.moves.randrange(10 if not nested else 7)
        if kind < 3:
            self._write()
        elif kind < 4:
            self._zero()
        elif kind < 7:
            self._arrival.bring(self.moves.choice(self._pieces))
        else:
            self._flush()

    def within_flush(self, what: str) -> None:
        """What others do while a flush waits for the disk."""
        if what == "sync" and self.moves.random() < 0.7:
            between, self._recorder.between = self._recorder.between, _nothing
            try:
                self.move(nested=True)
            finally:
                self._recorder.between = between

    def _write(self) -> None:
        disk, size = self.restore.disk, self.restore.disk.size
        length = self.moves.choice([SECTOR, SECTOR, SECTOR, 4096, CHUNK, CHUNK + SECTOR, 2 * CHUNK])
        fresh = [low for low, high in disk.untouched(0, len(LETTERS)) if not disk.missing(low, high)]
        offset = self.moves.randrange(size // SECTOR) * SECTOR
        if fresh and self.moves.random() < 0.7:  # what has arrived and could pass for the repository's
            offset = self.moves.choice(fresh) * CHUNK + self.moves.randrange(CHUNK // SECTOR) * SECTOR
        length = min(length, size // SECTOR * SECTOR - offset)
        new = self.moves.randbytes(length)
        with self._noted(offset, new):
            disk.write(offset, memoryview(new))

    def _zero(self) -> None:
        disk = self.restore.disk
        first = self.moves.randrange(len(LETTERS))
        length = self.moves.choice([CHUNK, 2 * CHUNK, CHUNK // 2])
        offset = first * CHUNK
        length = min(length, len(LETTERS) * CHUNK - offset)
        if length % CHUNK == 0 and self.moves.random() < 0.5:
            with self._noted(offset, bytes(length)):
                disk.trim(offset, length)
        else:
            with self._noted(offset, bytes(length)):
                disk.zero(offset, length, allocate=self.moves.random() < 0.5)

    def _flush(self) -> None:
        start, before = self.now, self._recorder.between
        if self.meanwhile:
            self._recorder.between = self.within_flush
        self.restore.disk.flush()
        self._recorder.between = before
        self.written.flushes.append((start, self.now))

    @contextmanager
    def _noted(self, offset: int, new: bytes) -> Iterator[None]:
        row = len(self.written.writes)
        self.written.writes.append((self.now, None, offset, new))
        yield
        start, _, _, _ = self.written.writes[row]
        self.written.writes[row] = (start, self.now, offset, new)


def after_power_cut(steps: list[Step], name: str, size: int, moves: random.Random, keeps: float) -> bytearray:
    """A file of `size` bytes after these steps and a power cut: what was not synchronised is kept or lost."""
    disk = bytearray(size)
    synced = max((step.covers for step in steps if step.file == name and step.content is None), default=0)
    for number, step in enumerate(steps):
        if step.file != name or step.content is None:
            continue
        for at in range(0, len(step.content), SECTOR):
            # The parts of sectors belong together: a sector is written or not.
            if number < synced or moves.random() < keeps:
                piece = step.content[at : at + SECTOR]
                disk[step.offset + at : step.offset + at + len(piece)] = piece
    return disk


def holds(restore: InstantRestore, allowed: list[set[bytes]]) -> bytes:
    """What the disk reads, each sector of which must be one of those allowed."""
    found = b"".join(bytes(p) if isinstance(p, int) else p for p in restore.disk.parts(0, restore.disk.size))
    for number, values in enumerate(allowed):
        assert found[number * SECTOR : (number + 1) * SECTOR] in values, f"sector {number}"
    return found


@pytest.mark.parametrize("seed", range(HISTORIES))
def test_a_power_cut_at_any_operation_keeps_what_was_flushed(
    reading: Reading, content: bytes, tmp_path: Path, recorder: Recorder, seed: int
) -> None:
    """One restore that is killed twice at any operation, also while it is taken up again; then the power goes."""
    world, moves = World(reading, tmp_path / "disk"), random.Random(seed)
    pieces = single(VolumeStream(reading.repo, world.selected))
    names = [unfinished(world.target).name, journal_beside(world.target).name]
    written = Written(content)
    with world.opened():
        begun = len(recorder.steps)
    for is_killed in (True, True, False):
        if is_killed:
            recorder.kill_at(moves.randrange(1, 60))
        with suppress(Killed), world.opened() as restore:
            holds(restore, written.allowed(len(recorder.steps) + 1, power=False))
            history = History(restore, restore.arrival, pieces, recorder, moves.randrange(1 << 32))
            history.written, history.meanwhile = written, not is_killed
            for _ in range(15):
                history.move()
        recorder.between = _nothing
    sizes = [(world.target.parent / name).stat().st_size for name in names]
    steps = list(recorder.steps)
    # Most is on its way just before something is synchronised.
    syncs = [number for number, step in enumerate(steps) if step.content is None and number >= begun]
    for cut in {*moves.sample(syncs, min(CUTS, len(syncs))), moves.randrange(begun, len(steps) + 1)}:
        later = World(reading, tmp_path / f"cut-{cut}" / "disk")
        later.target.parent.mkdir()
        keeps = moves.choice([0.0, 0.5, 1.0])
        for name, size in zip(names, sizes, strict=True):
            (later.target.parent / name).write_bytes(after_power_cut(steps[:cut], name, size, moves, keeps))
        recorder.kill_at(moves.randrange(1, 10))
        with suppress(Killed), later.opened(LATER):
            pass
        recorder.between = _nothing
        with later.opened(LATER) as restore:
            found = holds(restore, written.allowed(cut, power=True))
            later.completed(restore)
        assert not later.told
        assert later.target.read_bytes() == found
        assert [path.name for path in later.target.parent.iterdir()] == ["disk"]


class ShortHistory:
    """One chunk: `a` it arrives, `w` the guest writes into it, `z` clears it, `f` flushes; in brackets: while the next
    flush waits for the target's disk."""

    def __init__(self, piece: ChunkBatch | SlotRun, recorder: Recorder, content: bytes) -> None:
        self._piece, self._recorder = piece, recorder
        self.written = Written(content)

    def play(self, restore: InstantRestore, script: str) -> None:
        self._restore = restore
        for place, letter in enumerate(script):
            if letter == "(":
                self._meanwhile(script[place + 1])
            elif letter != ")" and script[place - 1 : place] != "(":
                self._do(letter)

    def _meanwhile(self, letter: str) -> None:
        def between(what: str) -> None:
            if what == "sync":
                self._recorder.between = _nothing
                self._do(letter)

        self._recorder.between = between

    def _do(self, letter: str) -> None:
        disk, written, start = self._restore.disk, self.written, len(self._recorder.steps)
        new = bytes([len(written.writes) + 1]) * SECTOR
        if letter == "f":
            disk.flush()
            written.flushes.append((start, len(self._recorder.steps)))
        elif letter == "a":
            self._restore.arrival.bring(self._piece)
        elif letter == "w":
            disk.write(SECTOR, memoryview(new))
            written.writes.append((start, len(self._recorder.steps), SECTOR, new))
        else:
            disk.zero(0, CHUNK, allocate=False)
            written.writes.append((start, len(self._recorder.steps), 0, bytes(CHUNK)))


SCRIPTS = ["afw", "wf", "afwf", "wfaf", "a(w)f", "aw(w)f", "w(a)f", "a(z)f", "afz", "af(w)fw"]
KILLED = ["ak", "wk", "awk", "akw", "wka", "afkw", "afwk"]


@pytest.mark.parametrize("script", [*SCRIPTS, *KILLED])
def test_every_outcome_of_a_power_cut_in_a_short_history(
    reading: Reading, content: bytes, tmp_path: Path, recorder: Recorder, script: str
) -> None:
    """Every prefix, and of what is not synchronised every part kept or lost. `k`: killed, and taken up again."""
    world = World(reading, tmp_path / "disk")
    names = [unfinished(world.target).name, journal_beside(world.target).name]
    history = ShortHistory(single(VolumeStream(reading.repo, world.selected))[0], recorder, content)
    begun = 0
    for part in script.split("k"):
        with world.opened() as restore:
            begun = begun or len(recorder.steps)
            history.play(restore, part)
    sizes = [(world.target.parent / name).stat().st_size for name in names]
    later = World(reading, tmp_path / "cut" / "disk")
    later.target.parent.mkdir()
    for cut in range(begun, len(recorder.steps) + 1):
        steps, allowed = recorder.steps[:cut], history.written.allowed(cut, power=True)
        for lost in _subsets(pending(steps)):
            kept = [step for number, step in enumerate(steps) if number not in lost]
            for name, size in zip(names, sizes, strict=True):
                (later.target.parent / name).write_bytes(after_power_cut(kept, name, size, random.Random(0), 1.0))
            with later.opened(LATER) as restore:
                found = holds(restore, allowed)
                later.completed(restore)
            assert not later.told, (cut, lost)
            assert later.target.read_bytes() == found
            later.target.unlink()


def _nothing_durable(directory: Path) -> None:
    """Which names are there after a power cut is not asked here."""


def _nothing(what: str) -> None:
    """Nobody does anything meanwhile."""


def pending(steps: list[Step]) -> list[int]:
    """The steps that a power cut may keep or lose."""
    return [
        number
        for number, step in enumerate(steps)
        if step.content is not None
        and not any(later.content is None and later.file == step.file and number < later.covers for later in steps)
    ]


def _subsets(numbers: list[int]) -> Iterator[set[int]]:
    for chosen in range(1 << len(numbers)):
        yield {number for place, number in enumerate(numbers) if chosen >> place & 1}


def single(stream: VolumeStream) -> list[ChunkBatch | SlotRun]:
    """Pieces of one chunk each, so that the target is filled in any order; and all that reads as zeros."""
    pieces = list(stream.pieces())
    rows = [row for piece in pieces if isinstance(piece, ChunkBatch) for row in piece.chunks]
    return [*(ChunkBatch((row,)) for row in rows), *(piece for piece in pieces if isinstance(piece, SlotRun))]


@pytest.mark.parametrize("seed", range(4))
def test_a_kill_at_any_operation_keeps_what_was_answered(
    reading: Reading, content: bytes, tmp_path: Path, recorder: Recorder, seed: int
) -> None:
    """One target through thirty kills, each at an operation of the file system, then complete."""
    moves = random.Random(seed)
    world = World(reading, tmp_path / "disk")
    pieces = single(VolumeStream(reading.repo, world.selected))
    allowed = [{content[at : at + SECTOR]} for at in range(0, len(content), SECTOR)]
    for number in range(KILLS // 4):
        with suppress(Killed), world.opened() as restore:
            found = holds(restore, allowed)
            history = History(restore, restore.arrival, pieces, recorder, moves.randrange(1 << 32))
            history.written = Written(found)
            recorder.steps.clear()
            recorder.kill_at(moves.randrange(1, 60))
            while True:
                history.move()
        recorder.between = _nothing
        allowed = history.written.allowed(len(recorder.steps) + 1, power=False)
        assert not world.target.exists(), number
    with world.opened() as restore:
        found = holds(restore, allowed)
        world.completed(restore)
        assert (
            bytes(b"".join(bytes(p) if isinstance(p, int) else p for p in restore.disk.parts(0, len(content)))) == found
        )
    assert world.target.read_bytes() == found and not world.told


class FailingSync:
    """The synchronising with this number fails; before each earlier one the guest writes another sector."""

    def __init__(self, restore: InstantRestore, recorder: Recorder, failing: int, error: OSError) -> None:
        self.lost = ""
        """The file of which that was."""
        self.guests: list[int] = []
        self._restore, self._recorder, self._left, self._error = restore, recorder, failing, error

    def between(self, what: str) -> None:
        if what != "sync" or self.lost:
            return
        self._left -= 1
        if self._left == 0:
            self.lost = self._recorder.syncing
            self._restore.arrival.stop()
            raise self._error
        self.guests.append(CHUNK + (len(self.guests) + 1) * SECTOR)
        self._recorder.between = _nothing
        self._restore.disk.write(self.guests[-1], memoryview(b"g" * SECTOR))
        self._recorder.between = self.between


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("failing", range(1, 8))
def test_what_a_failed_flush_lost_is_not_believed(
    reading: Reading, content: bytes, tmp_path: Path, recorder: Recorder, failing: int, number: int
) -> None:
    """The kernel drops what it could not write, and says so once: at the next synchronising, whosever that is. No later
    flush may succeed, and the next process must not take for restored what was lost: here everything of the target
    that was not synchronised."""
    world = World(reading, tmp_path / "disk")
    pieces = single(VolumeStream(reading.repo, world.selected))
    with world.opened() as restore:
        history = ShortHistory(pieces[0], recorder, content)
        history.play(restore, "af")
        restore.arrival.bring(pieces[1])
        history.play(restore, "w")
        fault = FailingSync(restore, recorder, failing, OSError(number, os.strerror(number)))
        recorder.between = fault.between
        restore.arrival.run(restore.complete)
        recorder.between = _nothing
        if restore.is_complete:
            assert not fault.lost and failing > 5
            return
        with pytest.raises(OSError, match=os.strerror(number)):
            restore.disk.flush()
    partial = unfinished(world.target)
    if fault.lost == partial.name:
        left = after_power_cut(recorder.steps, fault.lost, partial.stat().st_size, random.Random(0), 0.0)
        partial.write_bytes(left)
    history.written.writes += [(0, None, offset, b"g" * SECTOR) for offset in fault.guests]
    with world.opened() as restore:
        found = holds(restore, history.written.allowed(len(recorder.steps), power=True))
        world.completed(restore)
    assert world.target.read_bytes() == found


@pytest.mark.parametrize("script", ["aw", "afw", "wa", "wf"])
@pytest.mark.parametrize("failing", range(1, 4))
def test_what_was_lost_before_a_restore_is_taken_up_again_is_not_believed(
    reading: Reading, content: bytes, tmp_path: Path, recorder: Recorder, failing: int, script: str
) -> None:
    """Killed; then the kernel cannot write what it still had of one file, and says so to the next process only."""
    world = World(reading, tmp_path / "disk")
    history = ShortHistory(single(VolumeStream(reading.repo, world.selected))[0], recorder, content)
    with world.opened() as restore:
        history.play(restore, script)
    left = failing

    def between(what: str) -> None:
        nonlocal left
        left -= what == "sync"
        if left == 0:
            recorder.between = _nothing
            path = tmp_path / recorder.syncing
            path.write_bytes(after_power_cut(recorder.steps, path.name, path.stat().st_size, random.Random(0), 0.0))
            raise OSError(errno.EIO, "lost")

    recorder.between = between
    with pytest.raises(OSError, match="lost"), world.opened():
        pass
    with world.opened() as restore:
        found = holds(restore, history.written.allowed(len(recorder.steps), power=True))
        world.completed(restore)
    assert world.target.read_bytes() == found and not world.told


@pytest.mark.parametrize("seed", range(6))
def test_clients_that_write_while_the_rest_arrives_lose_nothing(
    reading: Reading, content: bytes, tmp_path: Path, seed: int
) -> None:
    """Three clients of the real server write sectors of their own into the chunks that are just arriving."""
    world = World(reading, tmp_path / "disk")
    model = bytearray(content)
    with world.opened() as restore, listening.at_path(tmp_path / "s") as (listener, _):
        server = NbdServer(listener, Served(restore.disk, "disk", ""), silent)
        errors: list[BaseException] = []

        def client(number: int) -> None:
            moves = random.Random(seed * 10 + number)
            try:
                with NbdClient(str(tmp_path / "s")).go() as nbd:
                    for _ in range(60):
                        sector = moves.randrange(len(content) // SECTOR // 3) * 3 + number
                        new = moves.randbytes(SECTOR)
                        nbd.write(sector * SECTOR, new, FUA if moves.random() < 0.1 else 0)
                        model[sector * SECTOR : (sector + 1) * SECTOR] = new
                        assert nbd.read(sector * SECTOR, SECTOR) == new
                        time.sleep(moves.random() * 0.001)
            except BaseException as error:  # noqa: BLE001 - told by the test
                errors.append(error)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        restore.serve(server)  # until all is in and all have left
        for thread in threads:
            thread.join()
        assert not errors and restore.is_complete
    assert world.target.read_bytes() == model


def test_the_target_has_its_name_only_when_everything_was_compared(
    reading: Reading, content: bytes, tmp_path: Path
) -> None:
    world = World(reading, tmp_path / "disk")
    with world.opened() as restore:
        restore.disk.write(CHUNK, memoryview(b"g" * SECTOR))
        for piece in single(VolumeStream(reading.repo, world.selected)):
            restore.arrival.bring(piece)
        assert not world.target.exists()
        # The disk loses a chunk that nobody wrote to, and one that the guest did.
        with unfinished(world.target).open("r+b") as file:
            file.write(b"?" * SECTOR)
            file.seek(CHUNK)
            file.write(b"h" * SECTOR)
        world.completed(restore)
        assert any("was written again" in line for line in world.told), world.told
        restore.disk.write(0, memoryview(b"later" * 100))
        restore.disk.flush()
    expected = bytearray(content)
    expected[CHUNK : CHUNK + SECTOR] = b"h" * SECTOR
    expected[:500] = b"later" * 100
    assert world.target.read_bytes() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]


def test_what_arrives_late_does_not_fall_over_what_the_guest_wrote(
    reading: Reading, content: bytes, tmp_path: Path
) -> None:
    world = World(reading, tmp_path / "disk")
    with world.opened() as restore:
        restore.disk.write(SECTOR, memoryview(b"g" * SECTOR))
        restore.disk.arrive([(0, content[:CHUNK])])  # it was fetched before the guest wrote
        assert b"".join(map(bytes, restore.disk.parts(SECTOR, SECTOR))) == b"g" * SECTOR


@pytest.mark.parametrize("offset", [0, SECTOR])
def test_a_kill_within_a_write_leaves_the_old_chunk_or_the_new(
    reading: Reading, content: bytes, tmp_path: Path, recorder: Recorder, offset: int
) -> None:
    """A write of a whole chunk, and of two in part, neither of which has arrived, killed before each of its steps."""
    new = b"n" * CHUNK
    for left in range(1, 8):
        world = World(reading, tmp_path / str(left) / "disk")
        world.target.parent.mkdir()
        with suppress(Killed), world.opened() as restore:
            recorder.kill_at(left)
            restore.disk.write(offset, memoryview(new))
        recorder.between = _nothing
        allowed = [{content[at : at + SECTOR]} for at in range(0, len(content), SECTOR)]
        for number in range(offset // SECTOR, (offset + CHUNK) // SECTOR):
            allowed[number].add(new[:SECTOR])
        with world.opened() as restore:
            holds(restore, allowed)
            for chunk in restore.disk.missing(0, len(LETTERS)):
                assert restore.disk.untouched(chunk, chunk + 1), "what will arrive would not be compared"


def test_a_journal_goes_with_its_own_snapshot_and_target_only(reading: Reading, small: Small, tmp_path: Path) -> None:
    world = World(reading, tmp_path / "disk")
    with world.opened() as restore:
        for piece in single(VolumeStream(reading.repo, world.selected)):
            restore.arrival.bring(piece)
        restore.disk.flush()
        with pytest.raises(Locked), world.opened():
            pass
    journal, partial = journal_beside(world.target), unfinished(world.target)
    whole = partial.read_bytes()
    # Another disk of the same size.
    partial.write_bytes(os.urandom(len(whole)))
    with pytest.raises(IntegrityError, match="does not hold what its journal says"), world.opened():
        pass
    partial.write_bytes(whole)
    kept = journal.read_bytes()
    journal.write_bytes(kept[:8] + b"\1" + kept[9:])
    with pytest.raises(IntegrityError, match="damaged"), world.opened():
        pass
    journal.unlink()
    with pytest.raises(UsageError, match="is missing"), world.opened():
        pass
    assert partial.read_bytes() == whole
    journal.write_bytes(kept)
    small.backup(image(tmp_path / "other.img", "zz"))
    with small.opened() as repo:
        other = Reading(repo)
        chosen = InstantOptions(journal, BOOT)
        another = select(repo, ["other"])[0]
        with (
            pytest.raises(UsageError, match="belongs to another restore"),
            instant_restore(other, another, world.target, chosen, silent),
        ):
            pass
        other.close()
    with world.opened() as restore:
        world.completed(restore)
    assert world.target.read_bytes() == whole


@pytest.mark.parametrize("state", ["not named", "named twice", "named"])
def test_a_restore_that_ends_while_it_takes_its_name_is_found_complete(
    reading: Reading, content: bytes, tmp_path: Path, state: str
) -> None:
    world = World(reading, tmp_path / "disk")
    journal, partial = journal_beside(world.target), unfinished(world.target)
    with world.opened() as restore, pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore.target, "take_name", _killed)
        with suppress(Killed):
            restore.arrival.run(restore.complete)
    if state == "named twice":
        world.target.hardlink_to(partial)
    elif state != "not named":
        partial.rename(world.target)
    known = owner_of(journal)
    assert known is not None and known[1]
    cleared = clear_up(world.target, journal)
    assert (cleared is None) == (state == "not named")
    if cleared is None:
        with world.opened() as restore:
            world.completed(restore)
    assert world.target.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]


def _killed() -> None:
    raise Killed


@pytest.mark.parametrize("what", ["moved away", "another file", "unfinished file gone"])
def test_a_complete_journal_speaks_of_its_own_file_only(
    reading: Reading, content: bytes, tmp_path: Path, what: str
) -> None:
    """Killed after the journal says complete: "complete already" must not be said of nothing, or of another file."""
    world = World(reading, tmp_path / "disk")
    journal, partial = journal_beside(world.target), unfinished(world.target)
    if what == "unfinished file gone":
        world.target.write_bytes(b"old" * 5000)  # to be replaced: the restore was given --overwrite
    with world.opened(overwrite=True) as restore, pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore.target, "take_name", _killed)
        with suppress(Killed):
            restore.arrival.run(restore.complete)
    if what == "unfinished file gone":
        partial.unlink()
    else:
        partial.rename(tmp_path / "moved")
    if what == "another file":
        world.target.write_bytes(b"new" * 5000)
    assert clear_up(world.target, journal) is None
    with pytest.raises(UsageError, match="is missing"), world.opened(overwrite=True):
        pass
    assert journal.exists() and not partial.exists()


@pytest.mark.parametrize("what", ["gone", "linked"])
def test_a_journal_is_not_used_with_an_empty_file_in_the_place_of_its_own(
    reading: Reading, tmp_path: Path, what: str
) -> None:
    """Where the guest wrote to every chunk nothing is the repository's, so that nothing could be compared."""
    world = World(reading, tmp_path / "disk")
    partial = unfinished(world.target)
    with world.opened() as restore:
        mine = random.Random(0).randbytes(restore.disk.size)
        restore.disk.write(0, memoryview(mine))
        restore.disk.flush()
    if what == "gone":
        partial.unlink()
    else:
        (tmp_path / "other name").hardlink_to(partial)
    with pytest.raises(UsageError, match=r"is missing|has 2 names"), world.opened():
        pass
    assert journal_beside(world.target).exists()
    if what == "linked":
        assert partial.read_bytes() == mine
        (tmp_path / "other name").unlink()
        with world.opened() as restore:
            world.completed(restore)
        assert world.target.read_bytes() == mine
