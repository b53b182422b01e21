"""One NBD client, from the greeting to the end, answered in order in a thread of its own.

A reply is made and sent in pieces, so that a client costs about a piece of memory, whatever it asks for and however
slowly it reads. Requests that wait behind the present one are announced to the disk, which fetches several at once.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from lamella.base.errors import LamellaError
from lamella.operations.access import nbd_protocol as nbd
from lamella.operations.access.channel import Channel, ClientGone
from lamella.operations.access.disk import Disk, WritableDisk
from lamella.operations.access.nbd_options import MAX_OPTION_DATA, ExportInfo, Haggling
from lamella.operations.access.nbd_protocol import Allocation, Command, Malformed, NbdRequest, RequestFlag
from lamella.operations.access.view import PIECE, Part

HANDSHAKE_SECONDS = 30.0
"""From the connection to the choice of an export."""
_MOST_STRETCHES = 1024
_ZEROS = memoryview(bytes(PIECE))
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_WRITES = {Command.WRITE, Command.TRIM, Command.WRITE_ZEROES}

Tell = Callable[[Exception], None]
"""Hears of every request that failed for what the disk holds."""


class _Refused(Exception):
    """A request that is answered with an error of the protocol."""

    def __init__(self, error: int) -> None:
        super().__init__(error)
        self.error = error


class NbdConnection:
    """Serves one disk to one client."""

    def __init__(self, channel: Channel, name: str, description: str, disk: Disk, tell: Tell) -> None:
        self._channel = channel
        self._disk = disk
        self._writable = disk if isinstance(disk, WritableDisk) else None
        self._export = ExportInfo(name, description, disk.size, self._writable is not None)
        self._tell = tell
        self._structured = self._allocation = False
        self._announced = 0
        """Bytes at hand that were looked through for requests."""

    def run(self) -> None:
        """Until the client leaves. Raises Malformed if it does not speak the protocol, ClientGone if it just went."""
        haggling = self._haggle()
        if not haggling.chosen:
            return
        self._structured, self._allocation = haggling.structured, haggling.allocation
        while True:
            self._channel.idle()
            request = nbd.decode_request(self._channel.take(nbd.REQUEST_SIZE))
            if request.command == Command.DISC:
                return
            self._announced = max(0, self._announced - nbd.REQUEST_SIZE)
            self._announce()
            self._serve(request)

    # -- before the first request -------------------------------------------------------------------------------------

    def _haggle(self) -> Haggling:
        channel, until = self._channel, time.monotonic() + HANDSHAKE_SECONDS
        channel.send([nbd.greeting()])
        haggling = Haggling(self._export, int.from_bytes(channel.take(4, until), "big"))
        while not (haggling.chosen or haggling.aborted):
            option, length = nbd.decode_option(channel.take(nbd.OPTION_SIZE, until))
            if length <= MAX_OPTION_DATA:
                reply = haggling.answer(option, channel.take(length, until))
            else:
                reply = haggling.too_big(option)
                self._skip(length, until)
            if haggling.aborted:
                with suppress(ClientGone):  # many do not wait for the answer
                    channel.send([reply])
            else:
                channel.send([reply])
        return haggling

    def _skip(self, length: int, until: float | None = None) -> None:
        while length:
            step = min(length, 1 << 15)
            self._channel.take(step, until)
            length -= step

    # -- requests -----------------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        """Tell the disk of the reads that wait behind this request, up to the first request of another kind."""
        waiting = self._channel.at_hand()
        while len(waiting) - self._announced >= nbd.REQUEST_SIZE:
            head = waiting[self._announced : self._announced + nbd.REQUEST_SIZE]
            with suppress(Malformed):
                request = nbd.decode_request(head)
                if request.command == Command.READ and self._inside(request) and request.length <= PIECE:
                    self._disk.expect(request.offset, request.length)
                    self._announced += nbd.REQUEST_SIZE
                    continue
            return

    def _serve(self, request: NbdRequest) -> None:
        try:
            self._check(request)
            self._answers[request.command](self, request)
        except _Refused as refused:
            self._fail(request, refused.error)
        except (LamellaError, OSError) as error:
            self._tell(error)
            full = isinstance(error, OSError) and error.errno in _NO_ROOM
            self._fail(request, errno.ENOSPC if full else errno.EIO)

    def _check(self, request: NbdRequest) -> None:
        """Raises _Refused, after the payload of the request was skipped; Malformed if there is too much of that."""
        error = self._fault(request)
        if request.command == Command.WRITE:
            if request.length > nbd.MAX_PAYLOAD:
                raise Malformed("a payload that is too long")
            if error:
                self._skip(request.length)
        if error:
            raise _Refused(error)

    def _fault(self, request: NbdRequest) -> int:
        if request.command not in self._answers or request.flags & ~int(nbd.ALLOWED[Command(request.command)]):
            return errno.EINVAL
        if request.command in _WRITES and self._writable is None:
            return errno.EPERM
        if request.command == Command.FLUSH:
            return 0
        if not self._inside(request):
            return errno.ENOSPC if request.command in _WRITES else errno.EINVAL
        if request.command == Command.READ and request.length > nbd.MAX_PAYLOAD:
            return errno.EINVAL
        if request.command == Command.BLOCK_STATUS and not (self._allocation and request.length):
            return errno.EINVAL
        return 0

    def _inside(self, request: NbdRequest) -> bool:
        return request.offset + request.length <= self._disk.size

    def _fail(self, request: NbdRequest, error: int) -> None:
        if self._structured and request.command in (Command.READ, Command.BLOCK_STATUS):
            self._channel.send([nbd.error_chunk(request.cookie, error)])
        else:
            self._channel.send([nbd.simple_reply(request.cookie, error)])

    def _read(self, request: NbdRequest) -> None:
        if not self._structured:
            self._read_simple(request)
        elif request.flags & RequestFlag.DF:
            self._read_whole(request)
        else:
            self._read_in_chunks(request)

    def _pieces(self, request: NbdRequest) -> Iterator[tuple[int, int]]:
        """Offset and length of each piece of a read, cut on the grid of pieces."""
        start, end = request.offset, request.offset + request.length
        while start < end:
            stop = min(end, start - start % PIECE + PIECE)
            yield start, stop - start
            start = stop

    def _read_in_chunks(self, request: NbdRequest) -> None:
        """Data and holes as they are. Where a piece cannot be read the reply ends with that offset."""
        cookie, end = request.cookie, request.offset + request.length
        if not request.length:
            self._channel.send([nbd.done_chunk(cookie)])
        for start, length in self._pieces(request):
            try:
                parts = list(self._disk.parts(start, length))
            except (LamellaError, OSError) as error:
                self._tell(error)
                self._channel.send([nbd.error_chunk(cookie, errno.EIO, start)])
                return
            self._channel.send(_chunks(cookie, start, parts, nbd.DONE if start + length == end else 0))

    def _read_whole(self, request: NbdRequest) -> None:
        """One chunk for everything: what cannot be read is sent as zeros, and then told."""
        cookie = request.cookie
        if request.length:
            self._channel.send([nbd.data_chunk(cookie, request.offset, request.length)])
        failed: int | None = None
        for start, length in self._pieces(request):
            parts: list[Part] = [length]
            if failed is None:
                try:
                    parts = list(self._disk.parts(start, length))
                except (LamellaError, OSError) as error:
                    self._tell(error)
                    failed = start
            self._channel.send(_plain(parts))
        last = nbd.done_chunk(cookie) if failed is None else nbd.error_chunk(cookie, errno.EIO, failed)
        self._channel.send([last])

    def _read_simple(self, request: NbdRequest) -> None:
        """The head says that everything could be read, so everything is read before; a long read once more after."""
        pieces = list(self._pieces(request))
        parts: list[Part] = []
        for start, length in pieces:
            parts = list(self._disk.parts(start, length))
        head = nbd.simple_reply(request.cookie)
        if len(pieces) <= 1:
            self._channel.send([head, *_plain(parts)])
            return
        del parts
        self._channel.send([head])
        for start, length in pieces:
            try:
                again = _plain(list(self._disk.parts(start, length)))
            except (LamellaError, OSError) as error:
                self._tell(error)
                raise ClientGone from error  # the protocol knows no other way now
            self._channel.send(again)

    def _write(self, request: NbdRequest) -> None:
        """The payload in pieces, all of which is taken, whatever happens to a piece."""
        offset, left = request.offset, request.length
        buffer = memoryview(bytearray(min(left, PIECE)))
        trouble: LamellaError | OSError | None = None
        while left:
            piece = buffer[: min(left, PIECE)]
            self._channel.take_into(piece)
            if trouble is None:
                try:
                    self._disk_to_write.write(offset, piece)
                except (LamellaError, OSError) as error:
                    trouble = error
            offset += len(piece)
            left -= len(piece)
        if trouble is not None:
            raise trouble
        self._written(request)

    def _trim(self, request: NbdRequest) -> None:
        self._disk_to_write.trim(request.offset, request.length)
        self._written(request)

    def _write_zeroes(self, request: NbdRequest) -> None:
        allocate = bool(request.flags & RequestFlag.NO_HOLE)
        self._disk_to_write.zero(request.offset, request.length, allocate=allocate)
        self._written(request)

    def _written(self, request: NbdRequest) -> None:
        if request.flags & RequestFlag.FUA:
            self._disk_to_write.flush()
        self._channel.send([nbd.simple_reply(request.cookie)])

    def _flush(self, request: NbdRequest) -> None:
        if self._writable is not None:
            self._writable.flush()
        self._channel.send([nbd.simple_reply(request.cookie)])

    def _cache(self, request: NbdRequest) -> None:
        self._disk.expect(request.offset, request.length)
        self._channel.send([nbd.simple_reply(request.cookie)])

    def _block_status(self, request: NbdRequest) -> None:
        most = 1 if request.flags & RequestFlag.REQ_ONE else _MOST_STRETCHES
        stretches = [
            (length, (Allocation.HOLE if hole else Allocation(0)) | (Allocation.ZERO if zero else Allocation(0)))
            for length, hole, zero in self._disk.extents(request.offset, request.length, most)
        ]
        self._channel.send([nbd.status_chunk(request.cookie, stretches)])

    @property
    def _disk_to_write(self) -> WritableDisk:
        if self._writable is None:
            raise _Refused(errno.EPERM)
        return self._writable

    _answers: dict[int, Callable[[NbdConnection, NbdRequest], None]] = {  # noqa: RUF012 - never changed
        Command.READ: _read,
        Command.WRITE: _write,
        Command.FLUSH: _flush,
        Command.TRIM: _trim,
        Command.CACHE: _cache,
        Command.WRITE_ZEROES: _write_zeroes,
        Command.BLOCK_STATUS: _block_status,
    }


def _plain(parts: list[Part]) -> list[bytes | memoryview]:
    return [_ZEROS[:part] if isinstance(part, int) else part for part in parts]


def _chunks(cookie: int, offset: int, parts: list[Part], last: int) -> list[bytes | memoryview]:
    """A chunk for each run of data and each run of zeros; the last chunk has the flags `last`."""
    runs: list[tuple[bool, int, list[bytes | memoryview]]] = []
    for part in parts:
        zero = isinstance(part, int)
        length = part if isinstance(part, int) else len(part)
        content = [] if isinstance(part, int) else [part]
        if runs and runs[-1][0] == zero:
            runs[-1] = (zero, runs[-1][1] + length, runs[-1][2] + content)
        else:
            runs.append((zero, length, content))
    buffers: list[bytes | memoryview] = []
    for number, (zero, length, content) in enumerate(runs, 1):
        flags = last if number == len(runs) else 0
        make = nbd.hole_chunk if zero else nbd.data_chunk
        buffers += [make(cookie, offset, length, flags), *content]
        offset += length
    return buffers
