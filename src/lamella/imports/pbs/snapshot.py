"""A snapshot in a datastore: its manifest, its disks as lists of digests, its small files."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lamella.base.errors import SourceError
from lamella.imports.foreign_files import read_foreign
from lamella.imports.history import shown_name
from lamella.imports.pbs.blob import OVERHEAD, PbsKey, blob_content

MANIFEST: Final = "index.json.blob"
_MAGIC: Final = bytes((47, 127, 65, 237, 145, 253, 15, 205))
_HEADER: Final = 4096
_MAX_MANIFEST: Final = 4 << 20
_MAX_INDEX: Final = 1 << 30
_MAX_CHUNK: Final = 16 << 20
_MAX_VOLUME: Final = 1 << 47
_DISK: Final = re.compile(r"[A-Za-z0-9_.-]{1,200}\.fidx")
_SMALL: Final = re.compile(r"[A-Za-z0-9_.-]{1,120}\.blob")
_CHECKSUM: Final = re.compile(r"[0-9a-f]{64}")
DIGEST: Final = 32


@dataclass(frozen=True, slots=True)
class PbsFile:
    """A file of a snapshot, as the manifest names it."""

    name: str
    size: int
    checksum: bytes
    encrypted: bool


@dataclass(frozen=True, slots=True)
class PbsIndex:
    """A disk at a snapshot: the digest of each of its chunks."""

    size: int
    chunk_size: int
    digests: bytes
    encrypted: bool

    @property
    def chunks(self) -> int:
        """How many there are; the last one may be short."""
        return len(self.digests) // DIGEST

    def digest(self, chunk: int) -> bytes:
        """The digest of a chunk."""
        return self.digests[chunk * DIGEST : (chunk + 1) * DIGEST]


def read_manifest(place: Path, key: PbsKey | None) -> tuple[tuple[PbsFile, ...], bool]:
    """The files of a snapshot, and whether the key signed them: with a key, whatever is encrypted must be signed.

    Raises SourceError.
    """
    content = blob_content(read_foreign(place / MANIFEST, _MAX_MANIFEST), None, _MAX_MANIFEST, MANIFEST)
    try:
        found = json.loads(content)
        files = tuple(map(_file, found["files"]))
        signature = found.get("signature")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError("its manifest is not what Proxmox Backup writes", obj=str(place)) from error
    signed = key is not None and (signature is not None or any(one.encrypted for one in files))
    if signed and key is not None:
        right = key.signature(signed_text(found)).hex()
        if not hmac.compare_digest(right.encode(), str(signature).encode("utf-8", "replace")):
            raise SourceError("its manifest is not authentic, or is signed with another key", obj=str(place))
    return files, signed


def signed_text(manifest: dict[str, Any]) -> bytes:
    """What a signature is made of: the manifest in canonical JSON, without the signature and what is not protected."""
    signed = {name: value for name, value in manifest.items() if name not in ("unprotected", "signature")}
    text = json.dumps(signed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def _file(row: Any) -> PbsFile:  # noqa: ANN401  (parsed JSON)
    """Raises ValueError, KeyError, TypeError, AttributeError."""
    name, size, checksum = row["filename"], row["size"], row["csum"]
    if type(size) is not int or not _CHECKSUM.fullmatch(checksum):
        raise ValueError("not a file of a manifest")
    return PbsFile(str(name), size, bytes.fromhex(checksum), row.get("crypt-mode", "none") == "encrypt")


def disks_of(files: tuple[PbsFile, ...]) -> list[PbsFile]:
    """The disks among the files of a snapshot."""
    return [one for one in files if _DISK.fullmatch(one.name)]


def read_index(place: Path, file: PbsFile) -> PbsIndex:
    """The index of a disk, which is as the manifest says. Raises SourceError."""
    content = read_foreign(place / file.name, _MAX_INDEX)
    header, digests = content[:_HEADER], content[_HEADER:]
    size, chunk_size = (int.from_bytes(header[at : at + 8], "little") for at in (64, 72))
    good = len(header) == _HEADER and header[:8] == _MAGIC and size == file.size and size <= _MAX_VOLUME
    good = good and chunk_size.bit_count() == 1 and 1 << 12 <= chunk_size <= _MAX_CHUNK
    if not good or len(digests) != DIGEST * -(-size // chunk_size):
        raise SourceError(f"{shown_name(file.name)} is not what Proxmox Backup writes", obj=file.name)
    checksum = hashlib.sha256(digests).digest()
    if checksum != header[32:64] or not hmac.compare_digest(checksum, file.checksum):
        raise SourceError(f"{shown_name(file.name)} is not what the manifest says of it", obj=file.name)
    return PbsIndex(size, chunk_size, digests, file.encrypted)


def read_small_files(place: Path, files: tuple[PbsFile, ...], key: PbsKey | None, limit: int) -> dict[str, bytes]:
    """The small files of a snapshot, such as the machine's configuration, as far as they fit and can be opened."""
    found: dict[str, bytes] = {}
    for file in files:
        if not _SMALL.fullmatch(file.name) or file.size > limit + OVERHEAD or (file.encrypted and key is None):
            continue
        blob = read_foreign(place / file.name, limit + OVERHEAD)
        if len(blob) != file.size or not hmac.compare_digest(hashlib.sha256(blob).digest(), file.checksum):
            raise SourceError(f"{file.name} is not what the manifest says of it", obj=file.name)
        found[file.name.removesuffix(".blob")] = blob_content(blob, key, limit, file.name, encrypted=file.encrypted)
    return found
