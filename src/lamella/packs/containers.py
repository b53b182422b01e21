"""Opening containers: their heads, their blobs, and commits (FORMAT 5, 8). `building` makes them."""

from __future__ import annotations

from dataclasses import dataclass

from lamella.base.errors import IntegrityError
from lamella.base.ids import CATALOGUE, DomainId
from lamella.base.signed import trailer_fault
from lamella.base.trust import Opened
from lamella.crypto.chunk_id import identifier
from lamella.crypto.derive import DomainKeys, Keys
from lamella.crypto.sign import verified
from lamella.crypto.unseal import PackOpener
from lamella.format import commit, compression, container
from lamella.format.container import Blob, Header, Kind


@dataclass(frozen=True, slots=True)
class PackHead:
    """The opened head of a container."""

    name: str
    domain_id: DomainId
    header: Header
    blobs: list[Blob]


def open_head(keys: Keys, name: str, head: bytes, bound: bytes = b"") -> PackHead:
    """Open the head of a container from its first bytes (header and directory must be inside).

    Raises IntegrityError.
    """
    header = container.decode_header(head[: container.HEADER_SIZE], name)
    domain_id = keys.domain_of(header.salt, header.hint)
    if domain_id is None:
        raise IntegrityError("a container that does not belong to this repository", obj=name)
    content = PackOpener(keys.domain(domain_id), header, name, bound).directory(head, header)
    return PackHead(name, domain_id, header, container.decode_directory(content, header, name))


class BlobOpener:
    """Opens the blobs of one pack. Unless it `checks` ids, the caller recomputes them."""

    def __init__(self, keys: DomainKeys, header: Header, name: str, bound: bytes = b"", checks: bool = True) -> None:
        self._keys, self._name, self._checks = keys, name, checks
        self._opener = PackOpener(keys, header, name, bound)

    def open(self, blob: Blob, sealed: bytes | memoryview) -> Opened:
        """The content of a blob: authenticated, decoded within bounds, its id recomputed (FORMAT 4).

        Raises IntegrityError.
        """
        content = compression.decode(self._opener.body(blob, sealed), blob.content_length, self._name)
        if self._checks and identifier(self._keys, blob.kind)(content) != blob.id:
            raise IntegrityError("a blob whose content is not what its id says", obj=self._name)
        return content


def open_blob(domain: DomainKeys, header: Header, blob: Blob, sealed: bytes, name: str) -> Opened:
    """The content of a pack's blob. Raises IntegrityError."""
    return BlobOpener(domain, header, name).open(blob, sealed)


def open_whole(keys: Keys, name: str, content: bytes, bound: bytes = b"") -> tuple[PackHead, list[Opened]]:
    """Open a complete container held in memory, padding included, and all its blobs. For commits and index segments:
    what a pack holds may be too much to hold at once. Raises IntegrityError.
    """
    head = open_head(keys, name, content, bound)
    container.check_padding(content, head.header, head.blobs, name)
    container.check_total(head.blobs, name)
    opener = BlobOpener(keys.domain(head.domain_id), head.header, name, bound)
    return head, [opener.open(blob, content[blob.offset : blob.offset + blob.sealed_length]) for blob in head.blobs]


def open_commit(keys: Keys, head: commit.Head, content: bytes) -> commit.Body:
    """Open a commit object: hash, trailer, container, body. Raises IntegrityError, UnknownFormat."""
    sealed, trailer = commit.split_trailer(content, head)
    fault = trailer_fault(keys.marker.signers, head.writer, head.seq, trailer, verified)
    if fault:
        raise IntegrityError(fault, obj=head.name)
    opened, contents = open_whole(keys, head.name, sealed, commit.bound(head.writer, head.seq))
    if opened.domain_id != CATALOGUE or any(blob.kind != Kind.COMMIT for blob in opened.blobs):
        raise IntegrityError("a commit made of the wrong kinds", obj=head.name)
    return commit.decode_body(b"".join(contents), head)
