"""A server of SFTP that lies, floods, stalls or goes away: an error in bounded time and memory, never a wrong byte."""

from __future__ import annotations

import itertools
import os
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError, ObjectNotFound, StoreError, StoreFull, StoreRefused, StoreUnavailable
from lamella.base.trust import Sealed
from lamella.stores.pipe.link import Route
from lamella.stores.sftp import files
from lamella.stores.sftp.connection import SftpConnection
from lamella.stores.sftp.packets import PacketKind, Status
from lamella.stores.sftp.store import SftpStore
from lamella.stores.wrap.patience import Backoff
from lamella.stores.wrap.retrying import RetryingStore
from lamella_kit.store_reading import listed
from tests.fault.sftp_machine import Lie, SftpMachine

OBJECT, CONTENT = "p/ab/x", b"0123456789" * 10_000
Answers = list[tuple[int, bytes]]


@pytest.fixture
def far(tmp_path: Path) -> Iterator[tuple[SftpMachine, SftpStore]]:
    """A machine with one object, and a store that is connected to it; the machine is honest so far."""
    with ExitStack() as stack:
        machine = stack.enter_context(SftpMachine(tmp_path / "far"))
        store = stack.enter_context(closing(machine.client()))
        store.put("lamella", Sealed(b"marker"))
        store.put(OBJECT, Sealed(CONTENT))
        store.sync()
        yield machine, store


def instead(kind: int, told: Callable[[bytes], Answers]) -> Lie:
    """Answers of one kind are replaced, others are left as they are."""
    return lambda asked, found, fields: told(fields) if found == kind else [(found, fields)]


def text(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def status(code: int, said: bytes = b"so it is") -> tuple[int, bytes]:
    return PacketKind.STATUS, struct.pack(">I", code) + text(said) + text(b"")


def named(*names: bytes, mode: int = stat.S_IFREG | 0o600, size: int = 7) -> tuple[int, bytes]:
    rows = b"".join(text(name) + text(b"long") + struct.pack(">IQI", 0x05, size, mode) for name in names)
    return PacketKind.NAME, struct.pack(">I", len(names)) + rows


def endless() -> Lie:
    """Pages without end, in place of the end, too."""
    numbers = itertools.count()

    def more(asked: int, found: int, fields: bytes) -> Answers:
        if found in {PacketKind.NAME, PacketKind.STATUS}:
            return [named(*(b"%08x" % next(numbers) for _ in range(5000)))]
        return [(found, fields)]

    return more


READING = {
    "more bytes than were asked for": instead(
        PacketKind.DATA, lambda fields: [(PacketKind.DATA, text(bytes(1 << 17)))]
    ),
    "no bytes": instead(PacketKind.DATA, lambda fields: [(PacketKind.DATA, text(b""))]),
    "a text that is longer than its packet": instead(PacketKind.DATA, lambda fields: [(PacketKind.DATA, b"\xff" * 8)]),
    "the end, too early": instead(PacketKind.DATA, lambda fields: [status(Status.EOF)]),
    "done, and no bytes": instead(PacketKind.DATA, lambda fields: [status(Status.OK)]),
    "names in place of bytes": instead(PacketKind.DATA, lambda fields: [named(b"x")]),
    "a long handle": instead(PacketKind.HANDLE, lambda fields: [(PacketKind.HANDLE, text(bytes(5000)))]),
    "two answers to one request": instead(PacketKind.DATA, lambda fields: [(PacketKind.DATA, fields)] * 2),
    "an unknown kind": instead(PacketKind.DATA, lambda fields: [(99, fields)]),
    "a huge size": instead(
        PacketKind.ATTRS, lambda fields: [(PacketKind.ATTRS, struct.pack(">IQI", 5, 1 << 60, 0o100600))]
    ),
    "a device": instead(PacketKind.ATTRS, lambda fields: [(PacketKind.ATTRS, struct.pack(">IQI", 5, 10, 0o020600))]),
    "endless attributes": instead(
        PacketKind.ATTRS, lambda fields: [(PacketKind.ATTRS, struct.pack(">II", 1 << 31, 0xFFFFFFFF))]
    ),
}
LISTING = {
    "names without end": endless(),
    "an empty page": instead(PacketKind.NAME, lambda fields: [named()]),
    "a count without rows": instead(PacketKind.NAME, lambda fields: [(PacketKind.NAME, struct.pack(">I", 0xFFFFFFFF))]),
    "a name twice": instead(PacketKind.NAME, lambda fields: [named(b"aa", b"aa")]),
    "no modes": instead(PacketKind.NAME, lambda fields: [named(b"aa", mode=0)]),
    "breaking off": instead(PacketKind.NAME, lambda fields: [status(Status.NO_SUCH_FILE)]),
    "a failure": instead(PacketKind.NAME, lambda fields: [status(Status.FAILURE)]),
    "directories within directories": instead(PacketKind.NAME, lambda fields: [named(b"d", mode=stat.S_IFDIR | 0o700)]),
    "no directory": instead(PacketKind.HANDLE, lambda fields: [status(Status.PERMISSION_DENIED)]),
}


@pytest.mark.parametrize("lie", READING)
def test_a_lie_about_an_object_is_an_error(far: tuple[SftpMachine, SftpStore], lie: str) -> None:
    machine, store = far
    machine.lie = READING[lie]
    with pytest.raises(StoreError) as caught:
        store.get(OBJECT)
    assert not isinstance(caught.value, ObjectNotFound)
    machine.lie = None
    assert store.get(OBJECT) == CONTENT, "over this connection or the next"


@pytest.mark.parametrize("lie", LISTING)
def test_a_lie_in_a_listing_is_an_error(
    far: tuple[SftpMachine, SftpStore], lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_OTHERS", 20_000)
    machine, store = far
    machine.lie = LISTING[lie]
    with pytest.raises(StoreError) as caught:
        listed(store, "p/")
    assert not isinstance(caught.value, ObjectNotFound)


def test_names_that_would_lead_elsewhere_are_no_objects(far: tuple[SftpMachine, SftpStore]) -> None:
    machine, store = far
    odd = (b"../../etc", b"/etc", b"a/b", b"\xff\xfe", b"A", b".x", b"x" * 300, b"\x1b[31m", b"")
    machine.lie = instead(PacketKind.NAME, lambda fields: [named(*odd, b"good")])
    assert listed(store, "p/ab/") == {"p/ab/good": 7}


def test_short_answers_are_asked_for_again(far: tuple[SftpMachine, SftpStore]) -> None:
    machine, store = far
    machine.lie = instead(
        PacketKind.DATA, lambda fields: [(PacketKind.DATA, text(fields[4 : 4 + max(1, len(fields) // 3)]))]
    )
    assert store.get(OBJECT) == CONTENT


def test_a_trickle_ends(far: tuple[SftpMachine, SftpStore], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(files, "SLOWEST_BYTES_PER_SECOND", 1e9)
    machine, store = far
    machine.lie = instead(PacketKind.DATA, lambda fields: [(PacketKind.DATA, text(fields[4:5]))])
    with pytest.raises(StoreUnavailable, match="too slowly"):
        store.get(OBJECT)


@pytest.mark.parametrize(
    "silent", [PacketKind.ATTRS, PacketKind.HANDLE, PacketKind.DATA, PacketKind.STATUS, PacketKind.NAME]
)
def test_a_server_that_does_not_answer_ends_the_call(
    far: tuple[SftpMachine, SftpStore], silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the silence that is stated, and the next call goes over a new connection."""
    machine, store = far
    store._connection._patience = 1.0
    machine.lie = instead(silent, lambda fields: [])
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable, match="no answer for 1 seconds"):
        _everything(store)
    assert time.monotonic() - begun < 20
    machine.lie = None
    assert store.get(OBJECT) == CONTENT
    assert machine.connections == 2


def _everything(store: SftpStore) -> None:
    store.get(OBJECT)
    listed(store)
    store.put("p/ab/new", Sealed(b"new"))
    store.sync()


def test_a_server_that_is_silent_from_the_beginning_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for say in ("sleep 60", "cat >/dev/null"):
        with pytest.raises(StoreUnavailable, match="no answer for"):
            SftpConnection(Route(("/bin/sh", "-c", say), connect_seconds=0.3), "sftp:far")


@pytest.mark.parametrize(
    ("noise", "says"),
    [
        (b"Welcome to the far side\r\n", "Welcome to the far side"),
        (b"\x1b[31mhello there\x07", "hello there"),
        (b"\xff" * 4000, "does not answer as a server of SFTP"),
        (struct.pack(">IBI", 5, PacketKind.VERSION, 2), "does not keep to the protocol"),
        (struct.pack(">IBI", 5, PacketKind.STATUS, 3), "does not keep to the protocol"),
        (struct.pack(">IBII", 9, PacketKind.VERSION, 3, 0xFFFF), "does not keep to the protocol"),
        (b"", "ended"),
    ],
)
def test_what_is_no_server_is_one_short_line(tmp_path: Path, noise: bytes, says: str) -> None:
    (tmp_path / "noise").write_bytes(noise)
    wait = "sleep 5" if noise else "true"
    with pytest.raises(LamellaError) as caught:
        SftpConnection(Route(("/bin/sh", "-c", f"cat {tmp_path}/noise; {wait}"), connect_seconds=20), "sftp:far")
    said = str(caught.value)
    assert says in said and said.isprintable() and len(said) < 300


def test_a_link_that_breaks_is_made_anew_and_nothing_is_lost(far: tuple[SftpMachine, SftpStore]) -> None:
    machine, store = far
    retrying = RetryingStore(store, Backoff(attempts=5, first_seconds=0))
    numbers = itertools.count()

    def now_and_then(asked: int, kind: int, fields: bytes) -> Answers:
        if next(numbers) % 23 == 22:
            for served in machine._live:
                served.end()
            return []
        return [(kind, fields)]

    machine.lie = now_and_then
    wanted = {f"p/{number:02x}/{number:04x}": Sealed(os.urandom(70_000)) for number in range(40)}
    for name, content in wanted.items():
        retrying.put(name, content)
    machine.lie = None
    retrying.sync()
    assert machine.connections > 5
    assert {name: store.get(name) for name in listed(store, "p/") if name != OBJECT} == wanted


def test_what_a_restarted_machine_forgot_is_told_at_the_next_sync(far: tuple[SftpMachine, SftpStore]) -> None:
    machine, store = far
    store.put("p/cd/y", Sealed(b"y"))
    for served in machine._live:
        served.end()
    (machine.root / "p/cd/y").unlink()
    with pytest.raises(StoreError, match="before the connection broke"):
        RetryingStore(store, Backoff(attempts=5, first_seconds=0)).sync()


def test_a_disk_that_is_no_longer_there_never_looks_empty(far: tuple[SftpMachine, SftpStore]) -> None:
    """As after an umount: the path leads to a directory that holds nothing."""
    machine, store = far
    machine.root.rename(machine.root.with_name("disk"))
    machine.root.mkdir()
    for call in (
        lambda: listed(store),
        lambda: listed(store, "w/"),
        lambda: store.put("p/ab/z", Sealed(b"z")),
        lambda: store.delete(OBJECT),
    ):
        with pytest.raises(StoreUnavailable, match="not there any more"):
            call()
    assert list(machine.root.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (Status.FAILURE, StoreFull),
        (Status.NO_SPACE, StoreFull),
        (Status.QUOTA_EXCEEDED, StoreFull),
        (Status.PERMISSION_DENIED, StoreRefused),
    ],
)
def test_a_write_that_is_refused_leaves_nothing_and_says_why(
    far: tuple[SftpMachine, SftpStore], code: int, error: type[StoreError]
) -> None:
    machine, store = far
    machine.lie = lambda asked, kind, fields: [status(code, b"no!") if asked == PacketKind.WRITE else (kind, fields)]
    with pytest.raises(error, match="no!"):
        store.put("p/ab/new", Sealed(b"new"))
    machine.lie = None
    assert "p/ab/new" not in listed(store)
    store.put("p/ab/new", Sealed(b"new"))
    store.sync()
    assert list((machine.root / "tmp").iterdir()) == []


def test_a_server_that_says_yes_and_does_nothing_is_not_believed(far: tuple[SftpMachine, SftpStore]) -> None:
    """As rclone's server does for hard links: the object would be gone with its unfinished file."""
    machine, store = far
    machine.ignored = {PacketKind.EXTENDED}
    store._connection.extensions = frozenset({"hardlink@openssh.com"})
    store.put("p/ab/new", Sealed(b"new"))
    assert store.get("p/ab/new") == b"new"
    machine.ignored = {PacketKind.RENAME}
    with pytest.raises(StoreRefused, match="it has none"):
        store.put("p/ab/newer", Sealed(b"newer"))
    assert "p/ab/newer" not in listed(store)


def test_what_killed_writers_left_goes_after_a_week_and_not_before(far: tuple[SftpMachine, SftpStore]) -> None:
    machine, _ = far
    old, young, other = (machine.root / "tmp" / name for name in ("a" * 32, "b" * 32, "reserve"))
    for path, days in ((old, 8), (young, 6), (other, 99)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - days * 86400,) * 2)
    with closing(machine.client(create=False)) as later:
        later.put("p/ab/later", Sealed(b"later"))
        later.sync()
        later.get("lamella")
    assert not old.exists() and young.exists() and other.exists()


def test_a_local_store_reads_what_was_written_and_the_other_way_round(far: tuple[SftpMachine, SftpStore]) -> None:
    from lamella.stores.local.store import LocalStore

    machine, store = far
    with closing(LocalStore.open(machine.root)) as local:
        assert listed(local) == listed(store) and local.get(OBJECT) == CONTENT
        local.put("p/ab/local", Sealed(b"local"))
        local.sync()
        assert store.get("p/ab/local") == b"local" and listed(local) == listed(store)


def test_the_program_here_is_not_left_behind() -> None:
    begun = SftpConnection(Route((sys.executable, "-c", VERSION), connect_seconds=20), "sftp:far")
    begun.close()
    with pytest.raises(ProcessLookupError):
        os.kill(begun._child.pid, 0)


VERSION = "import os; os.read(0, 99); os.write(1, bytes([0, 0, 0, 5, 2, 0, 0, 0, 3])); os.read(0, 99)"
