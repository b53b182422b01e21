"""What an object under a commit's name proves although it does not open (FORMAT 8, "What cannot be read").

Only an enrolled writer can make its trailer, only a holder of the data key a directory that opens. One flipped bit
cannot break both, and neither holds under the name of another writer or number.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.base.ids import CATALOGUE
from lamella.base.signed import TRAILER_SIZE, trailer_fault, trailer_of
from lamella.crypto.derive import Keys
from lamella.crypto.sign import verified
from lamella.crypto.unseal import PackOpener
from lamella.format.commit import Head, bound
from lamella.format.container import HEADER_SIZE, Kind, decode_directory, decode_header
from lamella.history.admission import is_admitted


@dataclass(frozen=True, slots=True)
class Evidence:
    """A commit of this writer and number was made; where it is not there intact, history is missing.

    `container` is the SHA-256 of its container if the trailer verifies, `directory` its salt and directory id if the
    directory opens; at least one of the two is there.
    """

    container: bytes | None
    directory: bytes | None
    admitted: bool = False
    """The prune key enrolled the writer in that trailer."""


def evidence_of(keys: Keys, head: Head, content: bytes) -> Evidence | None:
    """What an object proves that does not open: `content`, under the name of `head`. None if nothing. Never raises."""
    container, directory = _signed_container(keys, head, content), _opened_directory(keys, head, content)
    if container is None and directory is None:
        return None
    trailer = trailer_of(content)
    admitted = container is not None and is_admitted(keys, trailer.public, trailer.enrolment)
    return Evidence(container, directory, admitted)


def same(evidence: Evidence, content: bytes) -> bool:
    """Whether the sound commit `content`, of the same writer and number, is the one that the evidence speaks of."""
    container = hashlib.sha256(content[:-TRAILER_SIZE]).digest()
    return evidence.container == container or evidence.directory == _identity(content)


def _identity(content: bytes) -> bytes:
    """Salt and directory id: one pack key and one directory."""
    return content[16:48] + content[HEADER_SIZE : HEADER_SIZE + 24]


def _signed_container(keys: Keys, head: Head, content: bytes) -> bytes | None:
    trailer = trailer_of(content)
    fault = trailer_fault(keys.marker.signers, head.writer, head.seq, trailer, verified)
    return None if fault else trailer.container


def _opened_directory(keys: Keys, head: Head, content: bytes) -> bytes | None:
    # The hint is not asked: it may be what is damaged.
    try:
        header = decode_header(content[:HEADER_SIZE], head.name)
        opener = PackOpener(keys.domain(CATALOGUE), header, head.name, bound(head.writer, head.seq))
        blobs = decode_directory(opener.directory(content, header), header, head.name)
    except (IntegrityError, UnknownFormat):
        return None
    return _identity(content) if all(blob.kind == Kind.COMMIT for blob in blobs) else None
