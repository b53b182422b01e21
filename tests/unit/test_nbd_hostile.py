"""An NBD server that lies, floods or falls silent is one clear error, soon, and costs no memory."""

from __future__ import annotations

import os
import socket
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from lamella.base.errors import SourceError
from lamella.base.nbd import ALLOCATION_CONTEXT, Answer, Chunk, Command, Handshake, Info, Option, Transmission
from lamella.sources.nbd import wire
from lamella.sources.nbd.address import NbdAddress
from lamella.sources.nbd.export import Export
from lamella_kit.source_reading import MIB

SIZE = 64 * MIB
Send = Callable[[bytes], None]
MOST_MEMORY = 40 * MIB


def option_reply(option: int, kind: int, content: bytes = b"", length: int | None = None) -> bytes:
    length = len(content) if length is None else length
    return struct.pack(">QIII", 0x0003E889045565A9, option, kind, length) + content


def chunk(kind: int, cookie: int, content: bytes = b"", flags: int = 1, length: int | None = None) -> bytes:
    length = len(content) if length is None else length
    return struct.pack(">IHHQI", 0x668E33EF, flags, kind, cookie, length) + content


def data(cookie: int, offset: int, content: bytes, flags: int = 1) -> bytes:
    return chunk(Chunk.OFFSET_DATA, cookie, struct.pack(">Q", offset) + content, flags)


def status(cookie: int, *stretches: tuple[int, int], context: int = 1, flags: int = 1) -> bytes:
    body = b"".join(struct.pack(">II", *one) for one in stretches)
    return chunk(Chunk.BLOCK_STATUS, cookie, struct.pack(">I", context) + body, flags)


class Server:
    """A server that behaves, unless one of its methods is overridden. One thread a client."""

    greeting = b"NBDMAGICIHAVEOPT" + struct.pack(">H", Handshake.FIXED_NEWSTYLE | Handshake.NO_ZEROES)

    def __init__(self, place: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(place))
        self._listener.listen()
        self._clients: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def end(self) -> None:
        for one in [self._listener, *self._clients]:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._clients.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, ValueError, struct.error), client.makefile("rb") as stream:
            client.sendall(self.greeting)
            stream.read(4)
            while True:
                _, option, length = struct.unpack(">8sII", stream.read(16))
                stream.read(length)
                self.option(option, client.sendall)
                if option == Option.GO:
                    break
            while True:
                _, _, command, cookie, offset, length = struct.unpack(">IHHQQI", stream.read(28))
                if command == Command.READ:
                    self.read(cookie, offset, length, client.sendall)
                elif command == Command.BLOCK_STATUS:
                    self.status(cookie, offset, length, client.sendall)

    def option(self, option: int, send: Send) -> None:
        if option == Option.SET_META_CONTEXT:
            send(option_reply(option, Answer.META_CONTEXT, struct.pack(">I", 1) + ALLOCATION_CONTEXT.encode()))
        if option == Option.GO:
            flags = Transmission.HAS_FLAGS | Transmission.READ_ONLY
            send(option_reply(option, Answer.INFO, struct.pack(">HQH", Info.EXPORT, SIZE, flags)))
        send(option_reply(option, Answer.ACK))

    def read(self, cookie: int, offset: int, length: int, send: Send) -> None:
        send(data(cookie, offset, b"d" * length))

    def status(self, cookie: int, offset: int, length: int, send: Send) -> None:
        send(status(cookie, (length, 0)))


HOSTILE: dict[str, type[Server]] = {}


def hostile(kind: type[Server]) -> type[Server]:
    HOSTILE[kind.__name__] = kind
    return kind


@hostile
class Garbage(Server):
    greeting = os.urandom(4096)


@hostile
class Silent(Server):
    greeting = b""


@hostile
class OldStyle(Server):
    greeting = b"NBDMAGIC" + struct.pack(">QQI", 0x00420281861253, SIZE, 0) + bytes(124)


@hostile
class NotFixed(Server):
    greeting = b"NBDMAGICIHAVEOPT" + bytes(2)


@hostile
class HugeAnswer(Server):
    def option(self, option: int, send: Send) -> None:
        send(option_reply(option, Answer.INFO, length=(1 << 32) - 1))


@hostile
class EndlessAnswers(Server):
    def option(self, option: int, send: Send) -> None:
        while True:
            send(option_reply(option, Answer.INFO, struct.pack(">H", Info.NAME) + b"x" * 1000))


@hostile
class AnotherAnswer(Server):
    def option(self, option: int, send: Send) -> None:
        send(option_reply(option + 1, Answer.ACK))


@hostile
class Refusing(Server):
    def option(self, option: int, send: Send) -> None:
        send(option_reply(option, Answer.UNKNOWN if option == Option.GO else Answer.UNSUPPORTED, b"no\x1b[31m\n"))


@hostile
class SaysNothingOfTheExport(Server):
    def option(self, option: int, send: Send) -> None:
        send(option_reply(option, Answer.ACK))


@hostile
class HugeExport(Server):
    def option(self, option: int, send: Send) -> None:
        if option == Option.GO:
            send(option_reply(option, Answer.INFO, struct.pack(">HQH", Info.EXPORT, (1 << 64) - 1, 1)))
        super().option(option, send) if option != Option.GO else send(option_reply(option, Answer.ACK))


@hostile
class OddBlocks(Server):
    def option(self, option: int, send: Send) -> None:
        if option == Option.GO:
            send(option_reply(option, Answer.INFO, struct.pack(">HIII", Info.BLOCK_SIZE, 0, 0, 0)))
        super().option(option, send)


@hostile
class OneNumberForAll(Server):
    def option(self, option: int, send: Send) -> None:
        if option == Option.SET_META_CONTEXT:
            send(option_reply(option, Answer.META_CONTEXT, struct.pack(">I", 1) + b"qemu:dirty-bitmap:b"))
        super().option(option, send)


@hostile
class AnotherCookie(Server):
    def read(self, cookie: int, offset: int, length: int, send: Send) -> None:
        send(data(cookie + 99, offset, b"d" * length))


@hostile
class TooMuch(Server):
    def read(self, cookie: int, offset: int, length: int, send: Send) -> None:
        send(data(cookie, offset, b"d" * (length + 1)))


@hostile
class ElseWhere(Server):
    def read(self, cookie: int, offset: int, length: int, send: Send) -> None:
        send(data(cookie, offset + 1, b"d" * length))


@hostile
class TooLittle(Server):
    def read(self, cookie: int, offset: int, length: int, send: Send) -> None:
        send(data(cookie, offset, b"d" * (length - 1)))


@hostile
class Twice(Server):
    def read(self, cookie: int, offset: int, length: int, send: Send) -> None:
        send(data(cookie, offset, b"d" * (length // 2), flags=0))
        send(data(cookie, offset, b"d" * (length // 2)))


@hostile
class HugeHole(Server):
    def read(self, cookie: int, offset: int, length: int, send: Send) -> None:
        send(chunk(Chunk.OFFSET_HOLE, cookie, struct.pack(">QI", offset, (1 << 32) - 1)))


@hostile
class HugeChunk(Server):
    def read(self, cookie: int, offset: int, length: int, send: Send) -> None:
        send(chunk(Chunk.OFFSET_DATA, cookie, struct.pack(">Q", offset), length=(1 << 32) - 1))


@hostile
class Crumbs(Server):
    def read(self, cookie: int, offset: int, length: int, send: Send) -> None:
        for at in range(length):
            send(data(cookie, offset + at, b"d", flags=at == length - 1))


@hostile
class EndlessNothing(Server):
    def read(self, cookie: int, offset: int, length: int, send: Send) -> None:
        while True:
            send(chunk(Chunk.NONE, cookie, flags=0))


@hostile
class SimpleAfterStructured(Server):
    def read(self, cookie: int, offset: int, length: int, send: Send) -> None:
        send(struct.pack(">IIQ", 0x67446698, 0, cookie) + b"d" * length)


@hostile
class FallsSilent(Server):
    def read(self, cookie: int, offset: int, length: int, send: Send) -> None:
        send(data(cookie, offset, b"d" * length)[: length // 2])


@hostile
class Trickles(Server):
    def read(self, cookie: int, offset: int, length: int, send: Send) -> None:
        for one in data(cookie, offset, b"d" * length):
            send(bytes([one]))
            threading.Event().wait(0.05)


@hostile
class Refuses(Server):
    def read(self, cookie: int, offset: int, length: int, send: Send) -> None:
        send(chunk(Chunk.ERRORS + 1, cookie, struct.pack(">IH", 5, 3) + b"bad"))


@hostile
class HugeRefusal(Server):
    def read(self, cookie: int, offset: int, length: int, send: Send) -> None:
        send(chunk(Chunk.ERRORS + 1, cookie, length=(1 << 32) - 1))


@hostile
class NoLength(Server):
    def status(self, cookie: int, offset: int, length: int, send: Send) -> None:
        send(status(cookie, (0, 0)))


@hostile
class NoBlocks(Server):
    def status(self, cookie: int, offset: int, length: int, send: Send) -> None:
        send(chunk(Chunk.NONE, cookie))


@hostile
class TinyStretches(Server):
    def status(self, cookie: int, offset: int, length: int, send: Send) -> None:
        send(status(cookie, (1, 0)))


@hostile
class HugeStatus(Server):
    def status(self, cookie: int, offset: int, length: int, send: Send) -> None:
        send(chunk(Chunk.BLOCK_STATUS, cookie, length=(1 << 32) - 4))


@hostile
class OddStatus(Server):
    def status(self, cookie: int, offset: int, length: int, send: Send) -> None:
        send(chunk(Chunk.BLOCK_STATUS, cookie, bytes(15)))


@hostile
class AnotherContext(Server):
    def status(self, cookie: int, offset: int, length: int, send: Send) -> None:
        send(status(cookie, (length, 0), context=9))


@hostile
class EndlessStatus(Server):
    def status(self, cookie: int, offset: int, length: int, send: Send) -> None:
        while True:
            send(chunk(Chunk.NONE, cookie, flags=0))


@contextmanager
def served(kind: type[Server]) -> Iterator[NbdAddress]:
    with TemporaryDirectory(prefix="nbd") as folder:
        place = Path(folder, "s")
        server = kind(place)
        try:
            yield NbdAddress("disk", str(place))
        finally:
            server.end()


def use(address: NbdAddress) -> bytes:
    """What a backup does with an export."""
    export = Export(address, [ALLOCATION_CONTEXT, "qemu:dirty-bitmap:b"])
    try:
        if ALLOCATION_CONTEXT in export.contexts:
            assert sum(1 for _ in export.stretches(ALLOCATION_CONTEXT)) < 1 << 20
        content = bytearray(4 * MIB)
        export.read_into(0, memoryview(content))
        return bytes(content)
    finally:
        export.close()


def test_a_server_that_behaves_is_read() -> None:
    with served(Server) as address:
        assert use(address) == b"d" * 4 * MIB


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_server_is_one_clear_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HANDSHAKE_SECONDS", 1.0)
    monkeypatch.setattr(wire, "REPLY_SECONDS", 1.0)
    with served(HOSTILE[name]) as address:
        tracemalloc.start()
        try:
            with pytest.raises(SourceError) as caught:
                use(address)
            assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
        finally:
            tracemalloc.stop()
        assert caught.value.message.isprintable() and address.socket in caught.value.message
        print(caught.value.message)
