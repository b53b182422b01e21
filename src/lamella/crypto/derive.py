"""Key derivation (FORMAT 3): everything comes from the data root, salted by R."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import NamedTuple

from lamella.base.ids import CATALOGUE, DomainId, VolumeId
from lamella.base.signed import enrolment_message
from lamella.crypto.sign import sign
from lamella.format import marker
from lamella.format.cursor import u8


def prf(key: bytes, message: bytes) -> bytes:
    """HMAC-SHA-256: 32 bytes."""
    return hmac.digest(key, message, "sha256")


def hkdf(key: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """HKDF with SHA-256 (RFC 5869), `length` <= 8160 bytes."""
    extracted = prf(salt, key)
    output = block = b""
    counter = 1
    while len(output) < length:
        block = prf(extracted, block + info + u8(counter))
        output += block
        counter += 1
    return output[:length]


@dataclass(frozen=True, slots=True)
class DomainKeys:
    """The keys that open and name the blobs of one domain."""

    domain_id: DomainId
    root: bytes
    id_alg: int
    enc: bytes
    id_key: bytes


class Lent(NamedTuple):
    """What the key of one domain of another repository gives: its keys, and the one volume that may be made there."""

    keys: DomainKeys
    volume_id: VolumeId


class Bundle(NamedTuple):
    """The content of a key slot: the root of all keys, and the seeds of the repository's two signing keys.

    `prune_seed` is None for a writer, who cannot authorise deletion.
    """

    data_root: bytes
    enrol_seed: bytes
    prune_seed: bytes | None


class Keys:
    """The repository's keys as one secret opened them: derives the keys of domains, enrols writers."""

    def __init__(self, mark: marker.Marker, bundle: Bundle) -> None:
        self.marker = mark
        self.root = mark.root
        self.bundle = bundle
        self.prune_seed = bundle.prune_seed
        self._hdr = self._derive("hdr", b"")
        self._domains: dict[DomainId, DomainKeys] = {}
        self.lent: Lent | None = None
        """Set where the key of another repository's domain opened this one (docs/decisions/0107)."""

    def _derive(self, purpose: str, id_: bytes) -> bytes:
        label = purpose.encode("ascii")
        info = b"lamella/1\0" + u8(len(label)) + label + u8(len(id_)) + id_
        return hkdf(self.bundle.data_root, self.root, info)

    def lend(self, lent: Lent) -> None:
        """Have the domain of another repository here, with its own keys."""
        self.lent, self._domains[lent.keys.domain_id] = lent, lent.keys

    def local_key(self, purpose: str) -> bytes:
        """A key for what a host remembers about this repository; never used for anything that is stored in it."""
        return self._derive("local", purpose.encode("ascii"))

    def domain(self, domain_id: DomainId) -> DomainKeys:
        """The keys of a domain; `CATALOGUE` gives the catalogue's."""
        keys = self._domains.get(domain_id)
        if keys is None:
            id_purpose = "idh" if self.marker.id_alg == marker.HMAC_SHA256 else "idb"
            if domain_id == CATALOGUE:
                enc, id_key = self._derive("cat", b"enc"), self._derive("cat", id_purpose.encode("ascii"))
            else:
                enc, id_key = self._derive("enc", domain_id), self._derive(id_purpose, domain_id)
            keys = DomainKeys(domain_id, self.root, self.marker.id_alg, enc, id_key)
            self._domains[domain_id] = keys
        return keys

    def enrolment(self, public: bytes) -> bytes:
        """The signature that enrols a writer's public key: the prune key's where there is one (FORMAT 8)."""
        return sign(self.prune_seed or self.bundle.enrol_seed, enrolment_message(self.root, public))

    def hint(self, domain_id: DomainId, salt: bytes) -> bytes:
        """The 24 header bytes by which holders of the data root find a container's domain (FORMAT 5)."""
        mask = prf(self._hdr, b"hint" + salt)[:16]
        hidden = bytes(a ^ b for a, b in zip(domain_id, mask, strict=True))
        return hidden + prf(self._hdr, b"mac" + salt + domain_id)[:8]

    def domain_of(self, salt: bytes, hint: bytes) -> DomainId | None:
        """The domain a hint names, None if it was not made with these keys."""
        mask = prf(self._hdr, b"hint" + salt)[:16]
        candidate = DomainId(bytes(a ^ b for a, b in zip(hint[:16], mask, strict=True)))
        matches = hmac.compare_digest(prf(self._hdr, b"mac" + salt + candidate)[:8], hint[16:])
        return candidate if matches else None
