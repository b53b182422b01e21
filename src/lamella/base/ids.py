"""Identifiers as distinct types: bytes inside, hexadecimal text only at the edges."""

from __future__ import annotations

from typing import NewType

RepoId = NewType("RepoId", bytes)
"""16 random bytes naming a repository (FORMAT 1)."""

DomainId = NewType("DomainId", bytes)
"""16 bytes naming a set of volumes that share keys; 16 zero bytes are the catalogue (FORMAT 2)."""

VolumeId = NewType("VolumeId", bytes)
"""16 random bytes naming a volume for ever (FORMAT 6)."""

SnapId = NewType("SnapId", bytes)
"""16 random bytes naming one volume's committed moment (FORMAT 6)."""

WriterId = NewType("WriterId", bytes)
"""16 bytes: the start of SHA-256 of a writer's public key (FORMAT 6)."""

ChunkId = NewType("ChunkId", bytes)
"""24 bytes: keyed hash of a content (FORMAT 2); also names nodes, documents and segments."""

CATALOGUE = DomainId(bytes(16))
"""The domain of commits and catalogue segments."""

NO_CHUNK = ChunkId(bytes(24))
"""Placeholder in records whose chunk id is absent."""
