"""The numbers of the NBD protocol, for clients and servers alike.

Source: "The NBD protocol" (doc/proto.md of the nbd project). Everything is big-endian.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

GREETING: Final = b"NBDMAGIC"
OPTION_MAGIC: Final = b"IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
CHUNK_MAGIC: Final = 0x668E33EF

MAX_NAME: Final = 4096
"""Bytes of an export's or a context's name."""
MAX_PAYLOAD: Final = 32 * 1024 * 1024
"""Bytes that a client may ask for, or send, in one request."""

ALLOCATION_CONTEXT: Final = "base:allocation"
DIRTY_BITMAP: Final = "qemu:dirty-bitmap:"
"""The prefix of a bitmap's name in the name of its context."""


class Handshake(IntFlag):
    """Flags of the server's greeting, and of the client's answer to it."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(IntEnum):
    """Requests of a client before it chooses an export."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Answer(IntEnum):
    """Kinds of replies to options; those above `ERROR` say why not."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERROR = 1 << 31
    UNSUPPORTED = (1 << 31) + 1
    POLICY = (1 << 31) + 2
    INVALID = (1 << 31) + 3
    TLS_REQUIRED = (1 << 31) + 5
    UNKNOWN = (1 << 31) + 6
    TOO_BIG = (1 << 31) + 9


class Info(IntEnum):
    """The description that a server gives of an export."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Transmission(IntFlag):
    """Abilities of an export."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10


class Command(IntEnum):
    """Requests of a client to an export."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


WHOLE: Final = 1 << 2
"""A flag of READ, where the export has SEND_DF: one answer with all data, and no word about holes."""


class Chunk(IntEnum):
    """Kinds of the chunks of a structured reply; those above `ERRORS` say that the request failed."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERRORS = 1 << 15
    ERROR = (1 << 15) + 1
    ERROR_OFFSET = (1 << 15) + 2


DONE: Final = 1
"""The flag of the last chunk of a structured reply."""


class Allocation(IntFlag):
    """States of a stretch in the context base:allocation."""

    HOLE = 1
    ZERO = 2
