"""The far side: makes the disk that dom0 serves a block device of a disposable qube, by the NBD client of its kernel.

It runs there as root, sent along by dom0 as one text (`stores/pipe/bundle.py`), and ends when its input does. It uses
the standard library of Python 3.8 alone. Source: doc/proto.md of the nbd project; linux/nbd.h.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

from lamella.base.nbd import GREETING, OPTION_MAGIC, Handshake, Option
from lamella.run.beside import Beside

DEVICE = Path("/dev/nbd0")
_SECONDS = 20.0
"""So long the kernel may take to load the client, which the other program that dom0 runs here asks for."""
_SECTOR = 512
_PIECE = 1 << 18
_SET_SOCK, _SET_BLKSIZE, _DO_IT, _CLEAR_SOCK = 0xAB00, 0xAB01, 0xAB03, 0xAB04
_SET_SIZE_BLOCKS, _SET_FLAGS = 0xAB07, 0xAB0A


def main(source: int = 0, sink: int = 1) -> None:
    """Attach the disk that is served on two descriptors, until either side is gone. Raises EOFError, OSError."""
    size, flags = chosen(source, sink)
    late = time.monotonic() + _SECONDS
    while not DEVICE.is_block_device():
        if time.monotonic() > late:
            raise FileNotFoundError("the kernel of this qube has no module nbd")
        time.sleep(0.1)
    kernel, ours = socket.socketpair()

    def moved(first: int, second: int) -> None:
        with suppress(OSError):
            while piece := os.read(first, _PIECE):
                _write(second, piece)
        with suppress(OSError):  # whatever ends first ends all of it: the kernel gives the device up
            ours.shutdown(socket.SHUT_RDWR)

    Beside(lambda: moved(source, ours.fileno()), "there")
    Beside(lambda: moved(ours.fileno(), sink), "back")
    device = os.open(DEVICE, os.O_RDWR)
    for request, value in (
        (_CLEAR_SOCK, 0),
        (_SET_BLKSIZE, _SECTOR),
        (_SET_SIZE_BLOCKS, size // _SECTOR),
        (_SET_FLAGS, flags),
        (_SET_SOCK, kernel.fileno()),
        (_DO_IT, 0),  # returns when the disk is no longer served
    ):
        fcntl.ioctl(device, request, value)


def chosen(source: int, sink: int) -> tuple[int, int]:
    """Choose the only export; returns its size in bytes and the flags of its transmission. Raises EOFError, OSError."""
    greeting, magic, offered = struct.unpack(">8s8sH", _exactly(source, 18))
    if (greeting, magic) != (GREETING, OPTION_MAGIC) or not offered & Handshake.NO_ZEROES:
        raise OSError("what is served is no disk")
    wanted = Handshake.FIXED_NEWSTYLE | Handshake.NO_ZEROES
    _write(sink, struct.pack(">I8sII", wanted, OPTION_MAGIC, Option.EXPORT_NAME, 0))
    size, flags = struct.unpack(">QH", _exactly(source, 10))
    return size, flags


def _exactly(source: int, count: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = os.read(source, count - len(found))
        if not piece:
            raise EOFError("the disk is not served")
        found += piece
    return found


def _write(sink: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(sink, left) :]
