"""One connection to an NBD server nobody trusts: every wait has an end, and memory holds only what was asked for."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from lamella.base import nbd
from lamella.base.nbd import Answer, Chunk, Command, Handshake, Info, Option, Transmission
from lamella.sources.nbd.address import NbdAddress

HANDSHAKE_SECONDS: Final = 20.0
REPLY_SECONDS: Final = 120.0
"""All replies to what was asked at once must have come by then."""

_MOST_REPLIES: Final = 64
"""To one option."""
_LONGEST_ANSWER: Final = 64 * 1024
_MOST_STATUS: Final = 8 * 1024 * 1024
"""Bytes of one description of blocks; QEMU sends at most 1 MiB."""
_LEAST_PIECE: Final = 512
"""Bytes; a reply in smaller pieces on average is taken for an attack."""

_OPTION = struct.Struct(">8sII")
_OPTION_REPLY = struct.Struct(">QIII")
_REQUEST = struct.Struct(">IHHQQI")
_SIMPLE = struct.Struct(">IIQ")
_CHUNK = struct.Struct(">HHQI")
_U16, _U32, _U64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")
_FIXED: Final[dict[int, int]] = {Chunk.NONE: 0, Chunk.OFFSET_HOLE: 12}


class ServerError(Exception):
    """The server refused, broke the protocol, went away or did not answer; the text says which."""


@dataclass(slots=True)
class _Wanted:
    """A request for bytes, and which of them have come."""

    offset: int
    target: memoryview
    came: list[tuple[int, int]] = field(default_factory=list)

    def part(self, offset: int, length: int) -> memoryview:
        """Where bytes of the volume go. Raises ServerError if they were not asked for."""
        start = offset - self.offset
        if length <= 0 or start < 0 or start + length > len(self.target):
            raise ServerError("it sent bytes that were not requested")
        if len(self.came) > len(self.target) // _LEAST_PIECE + 8:
            raise ServerError("it sent too many small pieces")
        self.came.append((start, start + length))
        return self.target[start : start + length]

    def check_whole(self) -> None:
        """Raises ServerError unless every byte came exactly once."""
        end = 0
        for start, stop in sorted(self.came):
            if start != end:
                raise ServerError("it sent some bytes twice, or not at all")
            end = stop
        if end != len(self.target):
            raise ServerError("it did not send all bytes")


class Connection:
    """An export, opened for reading. For one thread at a time; `shut` may be called by any.

    Raises ServerError if the server cannot be had, or has no such export.
    """

    def __init__(self, address: NbdAddress, contexts: tuple[str, ...] = (), seconds: float | None = None) -> None:
        self.size = 0
        self.flags = 0
        self.block = 1
        """Bytes; offsets and lengths must be multiples of this."""
        self.most = nbd.MAX_PAYLOAD
        """Bytes that may be asked for at once."""
        self.contexts: dict[str, int] = {}
        """Those of the contexts that the server has, and their numbers."""
        self._structured = False
        self._cookie = self._last_cookie = 0
        seconds = HANDSHAKE_SECONDS if seconds is None else seconds
        self._until = time.monotonic() + seconds
        self._socket = _connected(address, seconds)
        try:
            self._negotiate(address.export.encode("utf-8", "surrogateescape"), contexts)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Say good-bye, as far as that is possible, and close."""
        with suppress(OSError, ServerError):
            self._until = time.monotonic() + 1
            self._send(_REQUEST.pack(nbd.REQUEST_MAGIC, 0, Command.DISC, 0, 0, 0))
        self._socket.close()

    def shut(self) -> None:
        """End the connection: whoever waits for the server gets a ServerError."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    # -- transmission -------------------------------------------------------------------------------------------------

    def read(self, offset: int, target: memoryview, piece: int, at_once: int) -> None:
        """Fill `target` with requests of `piece` bytes, of which `at_once` are open. Raises ServerError."""
        self._until = time.monotonic() + REPLY_SECONDS
        asked: dict[int, _Wanted] = {}
        # QEMU looks for holes before it reads: what a guest discards between the two is one (decision 0066).
        whole = nbd.WHOLE if self._structured and self.flags & Transmission.SEND_DF else 0
        for start in range(0, len(target), piece):
            while len(asked) >= at_once:
                self._reply(asked)
            self._cookie += 1
            part = target[start : start + piece]
            asked[self._cookie] = _Wanted(offset + start, part)
            self._send(self._request(Command.READ, offset + start, len(part), whole))
        while asked:
            self._reply(asked)

    def status(self, offset: int, length: int) -> dict[int, list[tuple[int, int]]]:
        """Per context its stretches from `offset` on, as (length, state), which may end early or late.

        Raises ServerError.
        """
        self._until = time.monotonic() + REPLY_SECONDS
        self._cookie += 1
        self._send(self._request(Command.BLOCK_STATUS, offset, length))
        found: dict[int, list[tuple[int, int]]] = {}
        for _ in range(2 * len(self.contexts) + 2):
            if self._number(_U32) != nbd.CHUNK_MAGIC:
                raise ServerError("it described blocks in an unknown form")
            flags, kind, length_now = self._chunk_head(self._cookie)
            if kind >= Chunk.ERRORS:
                raise self._refusal(length_now)
            if kind == Chunk.BLOCK_STATUS:
                self._stretches(length_now, found)
            elif kind != Chunk.NONE or length_now:
                raise ServerError("it did not describe the blocks that were asked about")
            if flags & nbd.DONE:
                return found
        raise ServerError("its description of blocks does not end")

    def _stretches(self, length: int, found: dict[int, list[tuple[int, int]]]) -> None:
        if length > _MOST_STATUS or length < 12 or length % 8 != 4:
            raise ServerError("it describes blocks with a wrong length")
        content = self._take(length)
        context = _U32.unpack_from(content)[0]
        if context not in self.contexts.values() or context in found:
            raise ServerError("it describes blocks in a context that was not asked for")
        found[context] = list(struct.iter_unpack(">II", content[4:]))
        if not all(stretch for stretch, _ in found[context]):
            raise ServerError("it describes blocks of no length")

    def _request(self, command: Command, offset: int, length: int, flags: int = 0) -> bytes:
        return _REQUEST.pack(nbd.REQUEST_MAGIC, flags, command, self._cookie, offset, length)

    def _reply(self, asked: dict[int, _Wanted]) -> None:
        """One simple reply, or one chunk of a structured reply."""
        magic = self._number(_U32)
        if magic == nbd.SIMPLE_REPLY_MAGIC and not self._structured:
            self._simple_reply(asked)
        elif magic == nbd.CHUNK_MAGIC and self._structured:
            self._chunk(asked)
        else:
            raise ServerError("it sent no valid reply")

    def _simple_reply(self, asked: dict[int, _Wanted]) -> None:
        error, cookie = struct.unpack(">IQ", self._take(12))
        reading = asked.pop(cookie, None)
        if reading is None:
            raise ServerError("it answered without a request")
        if error:
            raise ServerError(f"it cannot read there (error {error})")
        self._take_into(reading.target)

    def _chunk(self, asked: dict[int, _Wanted]) -> None:
        flags, kind, length = self._chunk_head(None)
        cookie = self._last_cookie
        reading = asked.get(cookie)
        if reading is None:
            raise ServerError("it answered without a request")
        if kind >= Chunk.ERRORS:
            raise self._refusal(length)
        if kind not in (Chunk.NONE, Chunk.OFFSET_DATA, Chunk.OFFSET_HOLE) or length != _FIXED.get(kind, length):
            raise ServerError("it sent a piece of an unknown kind, or of a wrong length")
        if kind == Chunk.OFFSET_DATA:
            offset = self._number(_U64) if length > 8 else -1
            self._take_into(reading.part(offset, length - 8))
        elif kind == Chunk.OFFSET_HOLE:
            offset, hole = self._number(_U64), self._number(_U32)
            part = reading.part(offset, hole)
            part[:] = bytes(len(part))
        elif not flags & nbd.DONE:
            raise ServerError("it sent an empty piece")
        if flags & nbd.DONE:
            reading.check_whole()
            del asked[cookie]

    def _chunk_head(self, cookie: int | None) -> tuple[int, int, int]:
        flags, kind, self._last_cookie, length = _CHUNK.unpack(self._take(_CHUNK.size))
        if cookie is not None and cookie != self._last_cookie:
            raise ServerError("it answered without a request")
        return flags, kind, length

    def _refusal(self, length: int) -> ServerError:
        """The error that a chunk is about."""
        if not 6 <= length <= _LONGEST_ANSWER:
            return ServerError("it reports an error in an unknown form")
        content = self._take(length)
        error, said = struct.unpack_from(">IH", content)
        text = _plain(content[6 : 6 + said])
        return ServerError(f"it cannot read there (error {error}{': ' if text else ''}{text})")

    # -- negotiation --------------------------------------------------------------------------------------------------

    def _negotiate(self, export: bytes, contexts: tuple[str, ...]) -> None:
        if self._take(16) != nbd.GREETING + nbd.OPTION_MAGIC:
            raise ServerError("it does not speak the NBD protocol, or only its oldest form")
        offered = self._number(_U16)
        if not offered & Handshake.FIXED_NEWSTYLE:
            raise ServerError("it speaks too old a form of the NBD protocol")
        self._send(_U32.pack(Handshake.FIXED_NEWSTYLE | offered & Handshake.NO_ZEROES))
        self._structured = self._option(Option.STRUCTURED_REPLY, b"") is None
        name = _U32.pack(len(export)) + export
        if contexts and self._structured:
            queries = [_named(context.encode("utf-8", "surrogateescape")) for context in contexts]
            self._option(Option.SET_META_CONTEXT, name + _U32.pack(len(queries)) + b"".join(queries), self._context)
            self.contexts = {text: number for text, number in self.contexts.items() if text in contexts}
            if len(set(self.contexts.values())) != len(self.contexts):
                raise ServerError("it gives two contexts the same number")
        refused = self._option(Option.GO, name + struct.pack(">HH", 1, Info.BLOCK_SIZE), self._info)
        if refused is not None:
            raise ServerError(refused)
        if not self.flags & Transmission.HAS_FLAGS or self.size >= 1 << 63:
            raise ServerError("it does not describe the export, or impossibly")

    def _option(self, option: Option, content: bytes, answer: Callable[[int, bytes], None] | None = None) -> str | None:
        """Ask, and hand over the answers; returns why it was refused, None if it was not."""
        self._send(_OPTION.pack(nbd.OPTION_MAGIC, option, len(content)) + content)
        for _ in range(_MOST_REPLIES):
            magic, about, kind, length = _OPTION_REPLY.unpack(self._take(_OPTION_REPLY.size))
            if magic != nbd.OPTION_REPLY_MAGIC or about != option or length > _LONGEST_ANSWER:
                raise ServerError("its answer does not fit the request")
            said = self._take(length)
            if kind == Answer.ACK:
                return None
            if kind >= Answer.ERROR:
                return _reason(kind, said)
            if answer is not None:
                answer(kind, said)
        raise ServerError("its answers do not end")

    def _info(self, kind: int, content: bytes) -> None:
        if kind != Answer.INFO or len(content) < 2:
            raise ServerError("it describes the export in an unknown form")
        about = _U16.unpack_from(content)[0]
        if about == Info.EXPORT and len(content) == 12:
            self.size, self.flags = struct.unpack_from(">QH", content, 2)
        elif about == Info.BLOCK_SIZE and len(content) == 14:
            least, _, most = struct.unpack_from(">III", content, 2)
            if least.bit_count() != 1 or least > 65536 or most < least:
                raise ServerError("it names sizes of blocks that are not possible")
            self.block, self.most = least, min(nbd.MAX_PAYLOAD, most - most % least)

    def _context(self, kind: int, content: bytes) -> None:
        if kind != Answer.META_CONTEXT or len(content) < 4:
            raise ServerError("it describes a context in an unknown form")
        self.contexts[content[4:].decode("utf-8", "surrogateescape")] = _U32.unpack_from(content)[0]

    # -- bytes --------------------------------------------------------------------------------------------------------

    def _number(self, form: struct.Struct) -> int:
        return int(form.unpack(self._take(form.size))[0])

    def _take(self, length: int) -> bytes:
        content = bytearray(length)
        self._take_into(memoryview(content))
        return bytes(content)

    def _take_into(self, target: memoryview) -> None:
        while len(target):
            try:
                self._wait_no_longer()
                received = self._socket.recv_into(target)
            except OSError as reason:
                raise _broken(reason) from reason
            if not received:
                raise ServerError("it closed the connection")
            target = target[received:]

    def _send(self, content: bytes) -> None:
        try:
            self._wait_no_longer()
            self._socket.sendall(content)
        except OSError as reason:
            raise _broken(reason) from reason

    def _wait_no_longer(self) -> None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)


def _connected(address: NbdAddress, seconds: float) -> socket.socket:
    try:
        if not address.socket:
            found = socket.create_connection((address.host, address.port), seconds)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return found
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            found.settimeout(seconds)
            found.connect(address.socket)
        except BaseException:
            found.close()
            raise
    except (OSError, ValueError) as reason:
        raise ServerError(str(getattr(reason, "strerror", None) or reason)) from reason
    return found


def _broken(reason: OSError) -> ServerError:
    if isinstance(reason, TimeoutError):
        return ServerError("it does not answer")
    return ServerError(reason.strerror or str(reason))


def _named(name: bytes) -> bytes:
    return _U32.pack(len(name)) + name


def _plain(content: bytes) -> str:
    text = content[:200].decode("utf-8", "replace")
    return "".join(one if one.isprintable() else "?" for one in text)


def _reason(kind: int, said: bytes) -> str:
    reasons = {
        Answer.UNKNOWN: "it has no such export",
        Answer.TLS_REQUIRED: "it wants TLS, which is not supported here",
        Answer.POLICY: "it does not allow that",
    }
    text = _plain(said)
    return reasons.get(Answer(kind) if kind in set(Answer) else Answer.ERROR, "it refused") + (
        f": {text}" if text else ""
    )
