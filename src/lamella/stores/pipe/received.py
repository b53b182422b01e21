"""What a server checks of an object before it stores it, without any key (FORMAT 1, 3 and 8).

A name is an address and an accident check, never a proof: whoever may write may write any bytes under their own hash.
The signature of a commit is more: nobody else can append to a writer's chain.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from lamella.base.errors import ObjectNotFound, StoreRefused

if TYPE_CHECKING:
    from lamella.stores.base import Store

MARKER = "lamella"
_MARKER_SIZE = 64
_TRAILER = 144
_CONTAINER = b"LMLPACK\x01"
_HASHED = re.compile(r"(?:p/([0-9a-f]{2})/(?=\1)|i/|w/([0-9a-f]{32})/([0-9a-f]{16})-)([0-9a-f]{64})")
_SLOT = re.compile(r"keys/([0-9a-f]{8})")
_HASHED_PLACES = ("p", "i", "w", "keys")


class Received:
    """Checks objects for one repository; reads its marker when first needed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._root: bytes | None = None

    def check(self, name: str, content: bytes | memoryview) -> None:
        """Raises StoreRefused for an object whose bytes do not belong under its name; StoreError."""
        if name.split("/", 1)[0] not in _HASHED_PLACES:
            return
        digest = hashlib.sha256(content).hexdigest()
        slot = _SLOT.fullmatch(name)
        hashed = _HASHED.fullmatch(name)
        if slot is None and hashed is None:
            raise StoreRefused("no object has a name like this at this place", obj=name)
        if digest[:8] != slot[1] if slot is not None else hashed is not None and digest != hashed[4]:
            raise StoreRefused("the object's bytes do not hash to its name", obj=name)
        if hashed is not None and hashed[2]:
            self._check_commit(name, bytes(content), bytes.fromhex(hashed[2]), int(hashed[3], 16))

    def _check_commit(self, name: str, content: bytes, writer: bytes, seq: int) -> None:
        public, container, signature = content[-_TRAILER:-112], content[-96:-64], content[-64:]
        short = len(content) <= _TRAILER or not content.startswith(_CONTAINER)
        if short or seq < 1 or hashlib.sha256(public).digest()[:16] != writer:
            raise StoreRefused("not a commit of the writer in whose place it was put", obj=name)
        if hashlib.sha256(content[:-_TRAILER]).digest() != container:
            raise StoreRefused("a commit whose trailer is another one's", obj=name)
        root = self._repository_root()
        if root is None:  # the marker is written last: until then there is nothing to protect
            return
        message = b"lamella/1 commit\0" + root + writer + seq.to_bytes(8, "little") + container
        if not _signed(public, signature, message):
            raise StoreRefused("a commit that its writer has not signed", obj=name)

    def _repository_root(self) -> bytes | None:
        if self._root is None:
            try:
                marker = self._store.get(MARKER, 0, _MARKER_SIZE)
            except ObjectNotFound:
                return None
            self._root = hashlib.sha256(marker[:9] + b"\0" + marker[10:]).digest()
        return self._root


def _signed(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the signature holds, or nothing here can tell (`can_verify`)."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        return True
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def can_verify() -> bool:
    """Whether signatures of commits are checked here; a bare Python checks their structure and hash only."""
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401
    except ImportError:
        return False
    return True
