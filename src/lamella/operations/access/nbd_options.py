"""Haggling: what a client and this server agree on before the first request. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lamella.operations.access import nbd_protocol as nbd
from lamella.operations.access.nbd_protocol import Answer, Info, Malformed, Option, Transmission

MAX_OPTIONS = 64
"""A client that has not chosen an export after so many options never will."""
MAX_OPTION_DATA = 2 * nbd.MAX_NAME
PREFERRED_BLOCK = 4096


class ExportInfo(NamedTuple):
    """The description of an export. The empty name means the same export."""

    name: str
    description: str
    size: int
    writable: bool


class Haggling:
    """The options of one client, in their order. `chosen` once the client may send requests."""

    def __init__(self, export: ExportInfo, client_flags: int) -> None:
        """Raises Malformed for flags that were not offered."""
        # As a number: the inverse of flags has only the flags that have names.
        known = int(nbd.Handshake.FIXED_NEWSTYLE | nbd.Handshake.NO_ZEROES)
        if client_flags & ~known:
            raise Malformed("handshake flags that were not offered")
        self._export = export
        self._no_zeroes = bool(client_flags & nbd.Handshake.NO_ZEROES)
        self._names = {b"", export.name.encode("utf-8")}
        self._asked = 0
        self.structured = False
        """Replies are structured."""
        self.allocation = False
        """The client may ask for the block status."""
        self.chosen = False
        self.aborted = False

    def answer(self, option: int, data: bytes) -> bytes:
        """The reply to an option. Raises Malformed where the connection must end."""
        self._asked += 1
        if self._asked > MAX_OPTIONS:
            raise Malformed("endless options")
        answers: dict[int, Callable[[int, bytes], bytes]] = {
            Option.EXPORT_NAME: self._export_name,
            Option.ABORT: self._abort,
            Option.LIST: self._list,
            Option.INFO: self._info,
            Option.GO: self._info,
            Option.STRUCTURED_REPLY: self._structured_reply,
            Option.LIST_META_CONTEXT: self._contexts,
            Option.SET_META_CONTEXT: self._contexts,
        }
        known = answers.get(option)
        if known is None:
            return nbd.option_reply(option, Answer.UNSUPPORTED)
        try:
            return known(option, data)
        except ValueError as error:
            return nbd.option_reply(option, Answer.INVALID, str(error).encode("utf-8"))

    def too_big(self, option: int) -> bytes:
        """The reply to an option whose data is longer than any that makes sense."""
        self._asked += 1
        if option == Option.EXPORT_NAME or self._asked > MAX_OPTIONS:
            raise Malformed("a name that is too long")
        return nbd.option_reply(option, Answer.TOO_BIG)

    @property
    def flags(self) -> Transmission:
        """The abilities of the export for this client."""
        flags = Transmission.HAS_FLAGS | Transmission.CAN_MULTI_CONN | Transmission.SEND_CACHE
        if self.structured:
            flags |= Transmission.SEND_DF
        if not self._export.writable:
            return flags | Transmission.READ_ONLY
        writing = Transmission.SEND_FLUSH | Transmission.SEND_FUA
        return flags | writing | Transmission.SEND_TRIM | Transmission.SEND_WRITE_ZEROES

    def _export_name(self, option: int, data: bytes) -> bytes:
        if data not in self._names:
            raise Malformed("an export that does not exist")
        self.chosen = True
        return nbd.export_info(self._export.size, self.flags) + (b"" if self._no_zeroes else bytes(124))

    def _abort(self, option: int, data: bytes) -> bytes:
        self.aborted = True
        return nbd.option_reply(option, Answer.ACK)

    def _list(self, option: int, data: bytes) -> bytes:
        _require_nothing(data)
        server = nbd.named(self._export.name.encode("utf-8"), self._export.description.encode("utf-8"))
        return nbd.option_reply(option, Answer.SERVER, server) + nbd.option_reply(option, Answer.ACK)

    def _structured_reply(self, option: int, data: bytes) -> bytes:
        _require_nothing(data)
        self.structured = True
        return nbd.option_reply(option, Answer.ACK)

    def _info(self, option: int, data: bytes) -> bytes:
        name, wanted = nbd.decode_go(data)
        if name not in self._names:
            return nbd.option_reply(option, Answer.UNKNOWN, b"no such export")
        contents = {
            Info.EXPORT: nbd.export_info(self._export.size, self.flags),
            Info.NAME: self._export.name.encode("utf-8"),
            Info.DESCRIPTION: self._export.description.encode("utf-8"),
            Info.BLOCK_SIZE: nbd.block_sizes(1, PREFERRED_BLOCK, nbd.MAX_PAYLOAD),
        }
        told = [kind for kind in Info if kind == Info.EXPORT or kind in wanted]
        replies = [nbd.option_reply(option, Answer.INFO, nbd.info(kind, contents[kind])) for kind in told]
        self.chosen = option == Option.GO
        return b"".join(replies) + nbd.option_reply(option, Answer.ACK)

    def _contexts(self, option: int, data: bytes) -> bytes:
        name, queries = nbd.decode_contexts(data)
        sets = option == Option.SET_META_CONTEXT
        if sets:
            self.allocation = False
        if not self.structured:
            return nbd.option_reply(option, Answer.INVALID, b"structured replies come first")
        if name not in self._names:
            return nbd.option_reply(option, Answer.UNKNOWN, b"no such export")
        found = nbd.ALLOCATION_NAME in queries or (not sets and (not queries or b"base:" in queries))
        self.allocation = self.allocation or (sets and found)
        context = nbd.meta_context(nbd.ALLOCATION_ID if sets else 0)
        replies = nbd.option_reply(option, Answer.META_CONTEXT, context) if found else b""
        return replies + nbd.option_reply(option, Answer.ACK)


def _require_nothing(data: bytes) -> None:
    if data:
        raise ValueError("this option has no data")
