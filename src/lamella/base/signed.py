"""Proofs that need the marker alone and no secret: which key slots and commits count (FORMAT 2, 3, 8).

The far side of a pipe uses this module as well: it runs on Python 3.8. Whoever calls brings the check of a signature.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    Verify = Callable[[bytes, bytes, bytes], bool]
    """Whether the holder of the public key (first) made the signature (second) of the message (third)."""

TRAILER_SIZE = 192


class Signers(NamedTuple):
    """Whose signatures count in a repository: R, the prune key and the enrolment key, from its marker."""

    root: bytes
    prune: bytes
    enrol: bytes


class Trailer(NamedTuple):
    """The 192 bytes after a commit's container; `container` is the container's SHA-256."""

    public: bytes
    enrolment: bytes
    container: bytes
    signature: bytes


def signers_of(marker: bytes) -> Signers:
    """R and the two keys, from the marker's bytes."""
    return Signers(hashlib.sha256(marker[:9] + b"\0" + marker[10:]).digest(), marker[32:64], marker[64:])


def writer_of(public: bytes) -> bytes:
    """The id that belongs to a writer's public key."""
    return hashlib.sha256(public).digest()[:16]


def trailer_of(content: bytes) -> Trailer:
    """The commit's trailer at the end of an object; nothing of it is checked."""
    end = content[-TRAILER_SIZE:]
    return Trailer(end[:32], end[32:96], end[96:128], end[128:])


def slot_message(root: bytes, slot: bytes) -> bytes:
    """The message that the signature at the end of a key slot covers."""
    return b"lamella/1 slot\0" + root + slot[:-64]


def enrolment_message(root: bytes, public: bytes) -> bytes:
    """The message that the enrolment of a writer's public key covers."""
    return b"lamella/1 enrol\0" + root + public


def commit_message(root: bytes, writer: bytes, seq: int, trailer: Trailer) -> bytes:
    """The message that a commit's signature covers: its place, and everything before the signature in the trailer."""
    place = root + writer + seq.to_bytes(8, "little")
    return b"lamella/1 commit\0" + place + trailer.public + trailer.enrolment + trailer.container


@lru_cache(maxsize=256)
def enrolled_by(signers: Signers, public: bytes, enrolment: bytes, verified: Verify) -> bytes | None:
    """Which of the repository's two keys enrolled this writer: the public key; None if neither did."""
    message = enrolment_message(signers.root, public)
    return next((key for key in (signers.enrol, signers.prune) if verified(key, enrolment, message)), None)


def trailer_fault(signers: Signers, writer: bytes, seq: int, trailer: Trailer, verified: Verify) -> str:
    """Why the trailer shows no commit `seq` of this writer; empty if it does. The container is not looked at."""
    if writer_of(trailer.public) != writer or trailer.public in (signers.prune, signers.enrol):
        return "a commit with another writer's key"
    if enrolled_by(signers, trailer.public, trailer.enrolment, verified) is None:
        return "a commit of a writer that nobody enrolled"
    signed = verified(trailer.public, trailer.signature, commit_message(signers.root, writer, seq, trailer))
    return "" if signed else "a commit whose signature does not verify"
