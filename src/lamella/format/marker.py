"""The marker object `lamella` (FORMAT 2)."""

from __future__ import annotations

from dataclasses import dataclass

from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.base.ids import RepoId
from lamella.base.names import MARKER, MARKER_SIZE
from lamella.base.signed import Signers, signers_of
from lamella.base.trust import Clear
from lamella.format.cursor import Cursor, u8

NAME = MARKER
SIZE = MARKER_SIZE
MAGIC = b"LAMELLA\0"
MAJOR, MINOR = 1, 0
HMAC_SHA256, BLAKE2B = 1, 2


@dataclass(frozen=True, slots=True)
class Marker:
    """What a repository says of itself in clear."""

    repo_id: RepoId
    prune_public: bytes
    enrol_public: bytes
    id_alg: int
    minor: int = MINOR

    def encode(self) -> Clear:
        """The 96 bytes of the object."""
        head = MAGIC + u8(MAJOR) + u8(self.minor) + u8(self.id_alg) + bytes(5)
        return Clear(head + self.repo_id + self.prune_public + self.enrol_public)

    @property
    def root(self) -> bytes:
        """R: the 32 bytes that salt every derivation, and are in every signature."""
        return self.signers.root

    @property
    def signers(self) -> Signers:
        """Whose signatures count."""
        return signers_of(self.encode())

    @property
    def writable(self) -> bool:
        """False when a newer minor version wrote it: read yes, write no."""
        return self.minor <= MINOR


def decode(content: bytes) -> Marker:
    """Read the marker; it is not authenticated here but through R, which salts every key.

    Raises IntegrityError, UnknownFormat.
    """
    if len(content) != SIZE:
        raise IntegrityError(f"the marker has {len(content)} bytes instead of {SIZE}", obj=NAME)
    cursor = Cursor(content, NAME)
    if cursor.take(8) != MAGIC:
        raise IntegrityError("the marker does not begin with LAMELLA", obj=NAME)
    major, minor, id_alg = cursor.uint(1), cursor.uint(1), cursor.uint(1)
    if major != MAJOR:
        raise UnknownFormat(f"repository format {major} is not known to this version", obj=NAME)
    if id_alg not in (HMAC_SHA256, BLAKE2B):
        raise UnknownFormat(f"id algorithm {id_alg} is not known to this version", obj=NAME)
    cursor.zeros(5)
    return Marker(RepoId(cursor.take(16)), cursor.take(32), cursor.take(32), id_alg, minor)
