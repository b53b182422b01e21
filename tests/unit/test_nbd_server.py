"""The NBD server and its clients: what good ones get, and that bad ones harm nobody else."""

from __future__ import annotations

import errno
import itertools
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from lamella.base.errors import StoreUnavailable
from lamella.base.events import Event, Warned
from lamella.base.names import pack_name
from lamella.base.trust import Sealed
from lamella.format.container import Kind
from lamella.operations.access import channel, listening, nbd_connection, nbd_server
from lamella.operations.access.disk import Disk
from lamella.operations.access.nbd_server import NbdServer, Served
from lamella.operations.access.overlay import thrown_away
from lamella.operations.access.view import Reading, SnapshotView
from lamella.operations.shared.selection import select
from lamella.stores.base import Store
from lamella.stores.memory import MemoryStore
from lamella.stores.wrap.patience import Backoff
from lamella.stores.wrap.retrying import RetryingStore
from tests.unit.nbd_client import (
    BLOCK_STATUS,
    CACHE,
    DF,
    DISC,
    FLUSH,
    FUA,
    READ,
    REQ_ONE,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    NbdClient,
    Refused,
)
from tests.unit.small_repository import CHUNK, Small, image

LETTERS = "ab..c0d" + "." * 70 + "efg0" + "h" * 40
NAME = "disk@now"
SECONDS = 30
_numbers = itertools.count()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    small = Small.make(tmp_path_factory.mktemp("nbd"))
    small.backup(image(small.place / "disk.img", LETTERS, tail=1000))
    return small


@pytest.fixture(scope="module")
def content(small: Small) -> bytes:
    return (small.place / "disk.img").read_bytes()


class Running:
    """A server in a thread, with what it reported."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.told: list[str] = []
        self.thread = threading.current_thread()

    def report(self, event: Event) -> None:
        assert isinstance(event, Warned)
        self.told.append(event.message)

    def client(self, *, structured: bool = True) -> NbdClient:
        return NbdClient(self.place).go(structured=structured)


@contextmanager
def serving(
    small: Small,
    folder: Path,
    wrap: Callable[[SnapshotView], Disk] = lambda view: view,
    *,
    once: bool = False,
    store: Store | None = None,
) -> Iterator[Running]:
    place = folder / f"s{next(_numbers)}"
    with ExitStack() as held:
        repo = held.enter_context(small.opened(store=store))
        reading = Reading(repo)
        held.callback(reading.close)
        listener, _ = held.enter_context(listening.at_path(place))
        running = Running(str(place))
        disk = wrap(reading.view(select(repo, ["disk"])[0]))
        server = NbdServer(listener, Served(disk, NAME, "a line"), running.report, once=once)
        running.thread = thread = threading.Thread(target=server.run)
        thread.start()
        held.callback(server.close)
        held.callback(thread.join, SECONDS)
        held.callback(server.stop)
        yield running


@pytest.fixture
def server(small: Small, tmp_path: Path) -> Iterator[Running]:
    with serving(small, tmp_path) as running:
        yield running


@pytest.fixture
def writable(small: Small, tmp_path: Path) -> Iterator[Running]:
    with serving(small, tmp_path, lambda view: thrown_away(view, tmp_path)) as running:
        yield running


def refusal(call: Callable[[], object]) -> int:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value.number


# -- good clients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structured", [True, False])
def test_every_read_is_what_the_source_holds(server: Running, content: bytes, structured: bool) -> None:
    moves = random.Random(3)
    with server.client(structured=structured) as client:
        assert client.size == len(content)
        for _ in range(200):
            offset = moves.randrange(len(content))
            length = min(moves.choice([1, 512, 4096, CHUNK, 5 * CHUNK, 3 << 20]), len(content) - offset)
            flags = DF if structured and moves.random() < 0.3 else 0
            assert client.read(offset, length, flags) == content[offset : offset + length]
        assert client.read(5, 0) == b""
        client.send(DISC)
        with pytest.raises(EOFError):
            client.take(1)


def test_many_requests_on_their_way_are_answered_in_order(server: Running, content: bytes) -> None:
    with server.client(structured=False) as client:
        offsets = [random.Random(4).randrange(len(content) - 4096) for _ in range(500)]
        head = struct.Struct(">IHHQQI")
        client.socket.sendall(b"".join(head.pack(0x25609513, 0, READ, n, at, 4096) for n, at in enumerate(offsets)))
        for number, at in enumerate(offsets):
            assert client.take(16) == struct.pack(">IIQ", 0x67446698, 0, number)
            assert client.take(4096) == content[at : at + 4096]


def test_holes_are_sent_as_holes_and_the_status_is_that_of_the_source(server: Running) -> None:
    with server.client() as client:
        client.send(READ, 0, 7 * CHUNK)
        kinds = [(kind, struct.unpack(">Q", body[:8])[0] // CHUNK) for kind, body in client.chunks()]
        assert kinds == [(1, 0), (2, 2), (1, 4), (2, 5), (1, 6)]
        states = [state for length, state in client.extents(0, client.size) for _ in range(-(-length // CHUNK))]
        assert states == [{".": 3, "0": 2}.get(letter, 0) for letter in LETTERS + "~"]
        assert client.extents(3 * CHUNK + 5, 2 * CHUNK, REQ_ONE) == [(CHUNK - 5, 3)]


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
def test_the_old_way_to_choose_an_export(server: Running, content: bytes, flags: int) -> None:
    with NbdClient(server.place) as client:
        assert client.greet(flags) == 3
        client.socket.sendall(b"IHAVEOPT" + struct.pack(">II", 1, len(NAME)) + NAME.encode())
        size, _ = struct.unpack(">QH", client.take(10))
        assert size == len(content)
        if not flags & 2:
            assert client.take(124) == bytes(124)
        assert client.read(10, 10) == content[10:20]


def test_options_say_what_there_is(server: Running, content: bytes) -> None:
    with NbdClient(server.place) as client:
        client.greet()
        listed = client.option(3)
        assert listed == [(2, struct.pack(">I", len(NAME)) + NAME.encode() + b"a line"), (1, b"")]
        unknown = client.option(6, struct.pack(">I", 3) + b"abc" + struct.pack(">H", 0))
        assert unknown[0][0] == (1 << 31) + 6
        assert client.option(5)[0][0] == (1 << 31) + 1, "no TLS"
        assert client.option(10, struct.pack(">II", 0, 0))[0][0] == (1 << 31) + 3, "contexts come after structure"
        infos = client.option(6, struct.pack(">IHHH", 0, 2, 1, 3))
        kinds = {body[:2]: body[2:] for kind, body in infos if kind == 3}
        assert set(kinds) == {b"\0\0", b"\0\1", b"\0\3"}
        assert kinds[b"\0\1"] == NAME.encode()
        client.option(8)
        everything = client.option(9, struct.pack(">II", 0, 0))
        assert everything == [(4, b"\0\0\0\0base:allocation"), (1, b"")]
        lying = client.option(10, struct.pack(">III", 0, 1 << 31, 1))
        assert lying[0][0] == (1 << 31) + 3
        assert client.option(2) == [(1, b"")]
        with pytest.raises(EOFError):
            client.take(1)


def test_a_reader_cannot_write(server: Running, content: bytes) -> None:
    with server.client() as client:
        assert client.flags & 2 and not client.flags & 0b1101100
        for call in (
            lambda: client.write(0, b"x" * 5000),
            lambda: client.do(TRIM, 0, 4096),
            lambda: client.do(WRITE_ZEROES, 0, 4096),
        ):
            assert refusal(call) == errno.EPERM
        client.do(FLUSH)
        client.do(CACHE, 0, 4096)
        assert client.read(0, 5000) == content[:5000]


def test_requests_that_make_no_sense_fail_alone(writable: Running, content: bytes) -> None:
    with writable.client() as client:
        size = client.size
        assert refusal(lambda: client.read(size - 1, 2)) == errno.EINVAL
        assert refusal(lambda: client.read(1 << 63, 1)) == errno.EINVAL
        assert refusal(lambda: client.read(0, 1 << 31)) == errno.EINVAL
        assert refusal(lambda: client.write(size - 1, b"ab")) == errno.ENOSPC
        assert refusal(lambda: client.do(WRITE_ZEROES, size, 1)) == errno.ENOSPC
        assert refusal(lambda: client.extents(0, 0)) == errno.EINVAL
        assert refusal(lambda: client.extents(size, 1)) == errno.EINVAL
        assert refusal(lambda: client.do(99, 0, 1)) == errno.EINVAL
        assert refusal(lambda: client.do(TRIM, 0, 1, 1 << 9)) == errno.EINVAL
        assert client.read(0, 100) == content[:100]
    with NbdClient(writable.place).go(status=False) as client:
        client.send(BLOCK_STATUS, 0, 100)
        with pytest.raises(Refused):
            client.chunks()


def test_what_is_written_through_one_connection_is_read_through_another(writable: Running, content: bytes) -> None:
    expected = bytearray(content)
    moves = random.Random(6)
    with writable.client() as one, writable.client() as other:
        assert one.flags & 0b101101101 == 0b101101101
        for _ in range(300):
            offset = moves.randrange(len(content))
            length = min(moves.choice([1, 512, 4096, 5000, CHUNK, 2 << 20]), len(content) - offset)
            writer, reader = moves.sample([one, other], 2)
            if moves.random() < 0.6:
                data = moves.randbytes(length)
                writer.write(offset, data, moves.choice([0, FUA]))
                expected[offset : offset + length] = data
            elif moves.random() < 0.7:
                writer.do(WRITE_ZEROES, offset, length, moves.choice([0, 2]))
                expected[offset : offset + length] = bytes(length)
            else:
                writer.do(TRIM, offset, length)
                found = reader.read(offset, length)
                assert all(a in (b, 0) for a, b in zip(found, expected[offset : offset + length], strict=True))
                expected[offset : offset + length] = found
            writer.do(FLUSH)
            low = max(0, offset - 5000)
            assert reader.read(low, min(len(content) - low, length + 9000)) == expected[low : low + length + 9000]
        covered = sum(length for length, _ in one.extents(0, one.size))
        assert covered == one.size


def test_a_damaged_chunk_is_an_error_for_its_range_alone_and_is_named_once(
    small: Small, tmp_path: Path, content: bytes
) -> None:
    damaged = Small(small.place, MemoryStore(small.store.objects()))
    with damaged.opened() as repo:
        repo.refresh_map()
        selected = select(repo, ["disk"])[0]
        runs = repo.tree_reader(selected.snapshot.added.domain_id).runs(repo.tree(selected.snapshot))
        id_ = next(run.slot for run in runs if run.first == 4)
        assert isinstance(id_, bytes)
        place = repo.blobs.find(Kind.CHUNK, id_)[0]
        whole = bytearray(damaged.store.get(pack_name(place.pack)))
        whole[place.blob.offset + 5] ^= 1
        damaged.store.delete(pack_name(place.pack))
        damaged.store.put(pack_name(place.pack), Sealed(bytes(whole)))
    with serving(damaged, tmp_path) as server:
        for structured in (True, False):
            with server.client(structured=structured) as client:
                for _ in range(2):
                    assert refusal(lambda: client.read(4 * CHUNK + 10, 20)) == errno.EIO
                    assert refusal(lambda: client.read(0, client.size)) == errno.EIO
                    assert client.read(3 * CHUNK, CHUNK) == content[3 * CHUNK : 4 * CHUNK]
                    assert client.read(5 * CHUNK, 3 * CHUNK) == content[5 * CHUNK : 8 * CHUNK]
        with server.client() as client:
            assert refusal(lambda: client.read(0, 3 << 20, DF)) == errno.EIO
            assert client.read(0, CHUNK) == content[:CHUNK], "the connection goes on after a fragment that failed"
        assert len([line for line in server.told if id_.hex()[:16] in line]) == 1, server.told


class Vanishing(MemoryStore):
    """A store that can be out of reach."""

    away = False

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if self.away:
            raise StoreUnavailable("out of reach", obj=name)
        return super().get(name, offset, length)

    def stat(self, name: str) -> int:
        if self.away:
            raise StoreUnavailable("out of reach", obj=name)
        return super().stat(name)


def test_reads_wait_for_a_repository_that_vanished_and_fail_when_the_wait_is_over(
    small: Small, tmp_path: Path, content: bytes
) -> None:
    vanishing = Vanishing(small.store.objects())
    said: list[str] = []
    patience = Backoff(attempts=5, first_seconds=0.1, longest_seconds=0.2)
    store = RetryingStore(vanishing, patience, tell=said.append)
    with serving(small, tmp_path, store=store) as server, server.client() as client, server.client() as other:
        assert client.read(0, 10) == content[:10]
        vanishing.away = True
        assert client.read(0, CHUNK) == content[:CHUNK], "what is decoded can still be read"
        before = time.monotonic()
        assert refusal(lambda: client.read(80 * CHUNK, 10)) == errno.EIO
        assert time.monotonic() - before > 0.2
        assert any("trying again for up to" in line for line in said)
        back = threading.Timer(0.15, lambda: setattr(vanishing, "away", False))
        back.start()
        assert other.read(81 * CHUNK, 10) == content[81 * CHUNK : 81 * CHUNK + 10]
        back.join(SECONDS)
        assert client.read(80 * CHUNK, 10) == content[80 * CHUNK : 80 * CHUNK + 10]


def test_with_once_the_server_ends_with_its_last_client(small: Small, tmp_path: Path) -> None:
    with serving(small, tmp_path, once=True) as server:
        one, other = server.client(), server.client()
        one.socket.close()
        other.read(0, 10)
        other.socket.close()
        server.thread.join(SECONDS)
        assert not server.thread.is_alive()


# -- bad clients ----------------------------------------------------------------------------------------------------


def served_as_ever(server: Running, content: bytes) -> None:
    with server.client() as client:
        assert client.read(CHUNK - 100, 4000) == content[CHUNK - 100 : CHUNK + 3900]


def disconnected(client: NbdClient) -> bool:
    """Whether the server ends the connection within a second or so, whatever it says before."""
    client.socket.settimeout(SECONDS)
    with suppress(ConnectionError):
        while client.socket.recv(1 << 16):
            pass
    return True


def test_garbage_ends_its_connection_alone(server: Running, content: bytes) -> None:
    with server.client() as witness:
        for rubbish in (b"GET / HTTP/1.1\r\n\r\n" * 5, bytes(100), b"\xff" * 100, b"IHAVEOPT" * 30):
            with NbdClient(server.place) as client:
                client.take(18)
                client.socket.sendall(rubbish)
                assert disconnected(client)
            with server.client() as client:
                client.socket.sendall(rubbish)
                assert disconnected(client)
            assert witness.read(0, 100) == content[:100]
    served_as_ever(server, content)


@pytest.mark.parametrize("flags", [4, 1 << 16, 1 << 31])
def test_handshake_flags_that_were_not_offered_end_the_connection(server: Running, flags: int) -> None:
    with NbdClient(server.place) as client:
        client.greet(flags)
        with pytest.raises((EOFError, ConnectionError)):
            client.option(3)


def test_endless_options_come_to_an_end(server: Running, content: bytes) -> None:
    with NbdClient(server.place) as client:
        client.greet()
        with pytest.raises(EOFError):
            for _ in range(1000):
                client.option(3)
    with NbdClient(server.place) as client:
        client.greet()
        with pytest.raises((EOFError, ConnectionError)):
            for _ in range(1000):
                client.option(77, bytes(100_000))
    served_as_ever(server, content)


def test_a_payload_that_is_too_long_ends_its_connection(writable: Running, content: bytes) -> None:
    with writable.client() as client:
        client.send(WRITE, 0, (32 << 20) + 1)
        assert disconnected(client)
    served_as_ever(writable, content)


def test_whoever_does_not_finish_the_handshake_is_cut_off(
    server: Running, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd_connection, "HANDSHAKE_SECONDS", 0.5)
    monkeypatch.setattr(channel, "_TICK", 1)
    with NbdClient(server.place) as silent, NbdClient(server.place) as slow:
        slow.take(18)
        for octet in b"\0\0\0\1IHAVEOPT":
            with suppress(ConnectionError):
                slow.socket.sendall(bytes([octet]))
            time.sleep(0.1)
        assert disconnected(silent) and disconnected(slow)
    monkeypatch.undo()
    served_as_ever(server, content)


def test_whoever_stops_in_the_middle_of_a_message_or_never_reads_is_cut_off_and_hinders_nobody(
    writable: Running, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "STALL_SECONDS", 2.0)
    monkeypatch.setattr(channel, "_TICK", 1)
    with writable.client() as half, writable.client() as deaf, writable.client() as stuck, writable.client() as idle:
        half.socket.sendall(struct.pack(">IHHQ", 0x25609513, 0, READ, 1))
        stuck.send(WRITE, 0, 4096)
        deaf.socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                deaf.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, READ, 1, 0, 4 << 20))
        deaf.socket.settimeout(SECONDS)
        served_as_ever(writable, content)
        assert disconnected(half) and disconnected(stuck)
        time.sleep(3)
        assert disconnected(deaf)
        assert idle.read(0, 10) == content[:10], "an idle client is no stalled client"


def test_of_200_connections_some_are_served_and_the_others_refused(
    server: Running, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    with server.client() as witness, ExitStack() as held:
        refused = 0
        for _ in range(200):
            client = held.enter_context(NbdClient(server.place))
            try:
                client.take(18)
            except EOFError:
                refused += 1
        assert refused >= 200 - nbd_server.MAX_CLIENTS
        assert threading.active_count() <= before + nbd_server.MAX_CLIENTS + 8
        assert witness.read(0, 100) == content[:100]
    assert [line for line in server.told if "further connections" in line]
    until = time.monotonic() + SECONDS
    while threading.active_count() > before + 8 and time.monotonic() < until:
        time.sleep(0.05)
    served_as_ever(server, content)


def exchanges(seed: int) -> Iterator[bytes]:
    """What a sound client would send, piece by piece, spoiled somewhere."""
    moves = random.Random(seed)
    messages = [
        struct.pack(">I", moves.choice([3, 3, 3, moves.getrandbits(32)])),
        *(
            b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data
            for option, data in moves.sample(
                [
                    (8, b""),
                    (3, b""),
                    (10, struct.pack(">III", 0, 1, 15) + b"base:allocation"),
                    (9, struct.pack(">II", 0, moves.choice([0, 1, 1 << 31]))),
                    (6, struct.pack(">IHH", 0, 1, 3)),
                    (moves.getrandbits(4), moves.randbytes(moves.randrange(50))),
                ],
                moves.randrange(6),
            )
        ),
        b"IHAVEOPT" + struct.pack(">III", 7, 6, 0) + b"\0\0",
    ]
    for number in range(moves.randrange(12)):
        command = moves.choice([READ, WRITE, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, moves.getrandbits(16)])
        flags = moves.choice([0, 0, 0, FUA, DF, REQ_ONE, moves.getrandbits(16)])
        offset = moves.choice([0, 4096, CHUNK * 3, moves.getrandbits(24), moves.getrandbits(64)])
        length = moves.choice([0, 1, 512, 70_000, moves.getrandbits(22), moves.getrandbits(32)])
        payload = moves.randbytes(min(length, 100_000)) if command == WRITE else b""
        messages.append(struct.pack(">IHHQQI", 0x25609513, flags, command, number, offset, length) + payload)
    for message in messages:
        spoiled = bytearray(message)
        if spoiled and moves.random() < 0.1:
            spoiled[moves.randrange(len(spoiled))] = moves.getrandbits(8)
        yield bytes(spoiled[: moves.randrange(len(spoiled) + 1)] if moves.random() < 0.03 else spoiled)


def attack(place: str, seed: int) -> None:
    """Send one spoiled exchange, read some of the answers, and leave in some way."""
    moves = random.Random(seed)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(0.05)
        with suppress(OSError):
            client.connect(place)
            for message in exchanges(seed):
                client.sendall(message)
                if moves.random() < 0.5:
                    client.recv(moves.choice([1, 1000, 1 << 20]))
            client.recv(1 << 20)


@pytest.mark.parametrize("rounds", [250, pytest.param(20_000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_no_exchange_however_spoiled_harms_the_server_or_its_other_clients(
    writable: Running, content: bytes, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    thrown: list[object] = []
    monkeypatch.setattr(threading, "excepthook", thrown.append)
    with writable.client() as witness:
        for seed in range(rounds):
            attack(writable.place, seed)
            if seed % 50 == 0:
                assert len(witness.read(0, 1000)) == 1000
    assert not thrown, thrown
    with writable.client() as client:
        assert client.size == len(content)
