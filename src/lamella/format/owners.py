"""Records about who owns volumes (FORMAT 8, Owners): they only grow, and hold wherever they stand."""

from __future__ import annotations

from dataclasses import dataclass

from lamella.base.ids import VolumeId, WriterId
from lamella.format.commit import HEAD, Head
from lamella.format.layout import FLAG, HASH, ID, SIGNATURE, many, pair
from lamella.format.records import UNSIGNED, Record, Signed


@dataclass(frozen=True, slots=True)
class Succeeds(Record):
    """SUCCEEDS: this writer owns what the writer with this public key owns; that writer's key signed.

    In the first commit of a chain: after a fork, at a second place, or when a writer was retired.
    """

    TYPE = 0x000D
    LAYOUT = (HASH, SIGNATURE)
    public: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Join(Signed):
    """JOIN: one writer owns what another one owns. Counts only with the prune key's signature."""

    TYPE = 0x0019
    LAYOUT = (ID, ID, SIGNATURE)
    new: WriterId
    old: WriterId
    signature: bytes = UNSIGNED


@dataclass(frozen=True, slots=True)
class Give(Signed):
    """GIVE: a writer owns this volume, too. Counts only with the prune key's signature."""

    TYPE = 0x001A
    LAYOUT = (ID, ID, SIGNATURE)
    volume_id: VolumeId
    writer: WriterId
    signature: bytes = UNSIGNED


@dataclass(frozen=True, slots=True)
class Expel(Signed):
    """EXPEL: what a writer published after this commit, and on other branches, counts for nothing but its data.

    So does all of the writers that succeeded it, but for those that `stay`. Counts only with the prune key's signature.
    """

    TYPE = 0x001B
    LAYOUT = (ID, HEAD, many(2, ID), SIGNATURE)
    expel_id: bytes
    head: Head
    stay: tuple[WriterId, ...] = ()
    signature: bytes = UNSIGNED


@dataclass(frozen=True, slots=True)
class Readmit(Signed):
    """READMIT: that EXPEL is undone. Counts only with the prune key's signature."""

    TYPE = 0x001C
    LAYOUT = (ID, SIGNATURE)
    expel_id: bytes
    signature: bytes = UNSIGNED


@dataclass(frozen=True, slots=True)
class Admit(Signed):
    """ADMIT: these writers are admitted, each a public key with its enrolment by the prune key.

    If one `closes`, enrolment is closed for ever: only admitted writers count. Counts only with the prune key's
    signature.
    """

    TYPE = 0x001D
    LAYOUT = (FLAG, many(4, pair(HASH, SIGNATURE)), SIGNATURE)
    closes: bool
    writers: tuple[tuple[bytes, bytes], ...]
    signature: bytes = UNSIGNED


def succession_message(root: bytes, new: WriterId) -> bytes:
    """What the old writer key signs: the repository and the writer that goes on."""
    return b"lamella/1 succeeds\0" + root + new
