"""Blobs of Proxmox Backup: chunks and small files, plain or sealed with AES-256-GCM, perhaps compressed with zstd."""

from __future__ import annotations

import hashlib
import hmac
import zlib
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lamella.base.errors import SourceError
from lamella.imports.foreign_files import unpacked

_PLAIN: Final = bytes((66, 171, 56, 7, 190, 131, 112, 161))
_ZSTD: Final = bytes((49, 185, 88, 66, 111, 182, 163, 127))
_SEALED: Final = bytes((123, 103, 133, 190, 34, 45, 76, 240))
_SEALED_ZSTD: Final = bytes((230, 89, 27, 191, 11, 191, 216, 11))
_HEAD: Final = 12
_IV: Final = 16
OVERHEAD: Final = _HEAD + 2 * _IV
"""Bytes that a blob has beside its content, at most: nothing is compressed that would become longer."""


class PbsKey:
    """The key of encrypted snapshots, and the key made of it by which chunks are known and manifests are signed."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._id_key = hashlib.pbkdf2_hmac("sha256", key, b"_id_key", 10)

    def open(self, sealed: bytes) -> bytes | None:
        """What follows the IV and the tag; None if it is not authentic."""
        iv, tag, content = sealed[:_IV], sealed[_IV : 2 * _IV], sealed[2 * _IV :]
        try:
            return self._cipher.decrypt(iv, content + tag, b"")
        except (InvalidTag, ValueError):
            return None

    def digest(self, content: bytes) -> bytes:
        """The digest of a chunk's content."""
        return hashlib.sha256(content + self._id_key).digest()

    def signature(self, text: bytes) -> bytes:
        """The signature of a manifest."""
        return hmac.digest(self._id_key, text, "sha256")

    @property
    def fingerprint(self) -> bytes:
        """By what the key is known."""
        return self.digest(hashlib.sha256(b"Proxmox Backup Encryption Key Fingerprint").digest())


def blob_content(blob: bytes, key: PbsKey | None, limit: int, name: str, *, encrypted: bool = False) -> bytes:
    """The content of a blob, of at most `limit` bytes. Raises SourceError, also unless it is `encrypted` as it must be.

    What is encrypted is authentic before it is unpacked; of other blobs only a checksum is known.
    """
    magic, body = blob[:8], blob[_HEAD:]
    if magic not in (_PLAIN, _ZSTD, _SEALED, _SEALED_ZSTD) or len(blob) < _HEAD:
        raise SourceError(f"{name} is no blob of Proxmox Backup", obj=name)
    sealed = magic in (_SEALED, _SEALED_ZSTD)
    if encrypted and not sealed:
        raise SourceError(f"{name} is not encrypted, as it must be", obj=name)
    checked = body[2 * _IV :] if sealed else body
    if zlib.crc32(checked) != int.from_bytes(blob[8:_HEAD], "little"):
        raise SourceError(f"{name} is damaged", obj=name)
    if sealed:
        if key is None:
            raise SourceError(f"{name} is encrypted: name its key with --from-keyfile", obj=name)
        opened = key.open(body)
        if opened is None:
            raise SourceError(f"{name} is not authentic, or has another key", obj=name)
        body = opened
    content = unpacked("zstd", body, limit, name) if magic in (_ZSTD, _SEALED_ZSTD) else body
    if len(content) > limit:
        raise SourceError(f"{name} is larger than its kind can be", obj=name)
    return content
