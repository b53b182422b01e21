"""The cipher of a container, and opening its directory and blobs (FORMAT 4, 5). `seal` seals them."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from lamella.base.errors import IntegrityError
from lamella.base.trust import Opened, Sealed
from lamella.crypto.derive import DomainKeys, prf
from lamella.format.container import HEADER_SIZE, Blob, Header, Kind
from lamella.format.cursor import u8, u32

AES_256_GCM, CHACHA20_POLY1305 = 1, 2
_CIPHERS: dict[int, type[AESGCM] | type[ChaCha20Poly1305]] = {AES_256_GCM: AESGCM, CHACHA20_POLY1305: ChaCha20Poly1305}
_NONCE = bytes(12)


class Cipher:
    """Keys and additional data of one container."""

    __slots__ = ("_aad", "_aead", "_key")

    def __init__(self, keys: DomainKeys, header: Header, bound: bytes) -> None:
        self._aead = _CIPHERS[header.aead]
        self._key = prf(keys.enc, b"pack" + u8(header.aead) + header.salt)
        self._aad = header.bound_part + keys.root + keys.domain_id + bound

    def seal(self, kind: Kind, id_: bytes, body: bytes) -> Sealed:
        """For `crypto.seal` alone: never twice for one kind and id."""
        return Sealed(self._aead(prf(self._key, u8(kind) + id_)).encrypt(_NONCE, body, self._aad))

    def open(self, kind: Kind, id_: bytes, sealed: bytes | memoryview, name: str) -> Opened:
        """Authenticate and decrypt. Raises IntegrityError."""
        try:
            return Opened(self._aead(prf(self._key, u8(kind) + id_)).decrypt(_NONCE, sealed, self._aad))
        except InvalidTag as error:
            raise IntegrityError("an object that does not authenticate", obj=name) from error

    def directory_id(self, content: bytes) -> bytes:
        """The id under which a directory is sealed."""
        return prf(self._key, b"dir" + content)[:24]


class PackOpener:
    """Opens the directory and blobs of one container, made with the same `bound`."""

    __slots__ = ("_cipher", "_name")

    def __init__(self, keys: DomainKeys, header: Header, name: str, bound: bytes = b"") -> None:
        self._cipher = Cipher(keys, header, bound)
        self._name = name

    def directory(self, head: bytes, header: Header) -> Opened:
        """The content of the directory that follows the header in `head`. Raises IntegrityError."""
        stored = head[HEADER_SIZE : HEADER_SIZE + header.directory_length]
        if len(stored) != header.directory_length:
            raise IntegrityError("an object that ends within its directory", obj=self._name)
        body = self._cipher.open(Kind.DIRECTORY, stored[:24], stored[24:], self._name)
        content = Opened(body[5:])
        if body[:5] != u8(0) + u32(len(content)) or self._cipher.directory_id(content) != stored[:24]:
            raise IntegrityError("an object whose directory is not in the right form", obj=self._name)
        return content

    def body(self, blob: Blob, sealed: bytes | memoryview) -> Opened:
        """The body of a blob, authenticated but not decoded. Raises IntegrityError."""
        return self._cipher.open(blob.kind, blob.id, sealed, self._name)
