"""The names of a repository's objects, and what they say of its bytes (FORMAT 1).

The far side of a pipe uses this module as well: it runs on Python 3.8.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

MARKER, README, RESCUE = "lamella", "readme.txt", "restore.py"
KEYS, PACKS, COMMITS, SEGMENTS = "keys/", "p/", "w/", "i/"
QUARANTINE = "quarantine/"
"""Where a repair keeps the bytes of bad objects."""
PROBE = "doctor-probe"
"""The object by which `doctor` tries what a destination allows."""

CONTAINER_MAGIC = b"LMLPACK\x01"
MARKER_SIZE, SLOT_SIZE = 96, 240


class Part(Enum):
    """Which part of a repository an object belongs to."""

    MARKER = "marker"
    TEXT = "text"
    KEY = "key"
    PACK = "pack"
    COMMIT = "commit"
    SEGMENT = "segment"


_HASH = "(?P<hash>[0-9a-f]{64})"
_PATTERNS = {
    PACKS: (Part.PACK, re.compile(rf"p/([0-9a-f]{{2}})/(?=\1){_HASH}")),
    COMMITS: (Part.COMMIT, re.compile(rf"w/(?P<writer>[0-9a-f]{{32}})/(?P<seq>[0-9a-f]{{16}})-{_HASH}")),
    SEGMENTS: (Part.SEGMENT, re.compile(rf"i/{_HASH}")),
    KEYS: (Part.KEY, re.compile(r"keys/(?P<hash>[0-9a-f]{8})")),
}
_WHOLE_NAMES = {MARKER: Part.MARKER, README: Part.TEXT, RESCUE: Part.TEXT}


class CommitName(NamedTuple):
    """The parts of a commit's name: its writer, its number, the SHA-256 of its bytes."""

    writer: bytes
    seq: int
    sha256: bytes


def _match(name: str) -> tuple[Part, re.Match[str]] | None:
    pattern = _PATTERNS.get(f"{name.partition('/')[0]}/")
    match = None if pattern is None else pattern[1].fullmatch(name)
    return None if pattern is None or match is None else (pattern[0], match)


def part_of(name: str) -> Part | None:
    """The part that an object belongs to by its name; None: a repository has no such object."""
    found = _match(name)
    return _WHOLE_NAMES.get(name) if found is None else found[0]


def is_hashed(name: str) -> bool:
    """Whether the name lies where every object is named by the hash of its bytes."""
    return f"{name.partition('/')[0]}/" in _PATTERNS


def hash_in(name: str, part: Part | None = None) -> bytes | None:
    """The SHA-256 in a name of `part` (None: any), four bytes of it in the name of a key slot; None for other names."""
    found = _match(name)
    return bytes.fromhex(found[1]["hash"]) if found is not None and part in (None, found[0]) else None


def pack_name(sha256: bytes) -> str:
    """The name of a pack."""
    text = sha256.hex()
    return f"{PACKS}{text[:2]}/{text}"


def pack_hash(name: str) -> bytes | None:
    """The hash in a pack's name, None if it is not a pack's."""
    return hash_in(name, Part.PACK)


def commit_name(writer: bytes, seq: int, sha256: bytes) -> str:
    """The name of a commit."""
    return f"{COMMITS}{writer.hex()}/{seq:016x}-{sha256.hex()}"


def commit_of(name: str) -> CommitName | None:
    """The parts of a commit's name; None for any other name."""
    found = _match(name)
    if found is None or found[0] != Part.COMMIT:
        return None
    match = found[1]
    return CommitName(bytes.fromhex(match["writer"]), int(match["seq"], 16), bytes.fromhex(match["hash"]))
