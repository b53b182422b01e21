"""A datastore of Proxmox Backup, written by hand as its documentation lays it out; nothing of Lamella is used."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import struct
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CHUNK = 1 << 16


def magic(text: str) -> bytes:
    """The magic numbers are the beginnings of hashes of these texts."""
    return hashlib.sha256(text.encode()).digest()[:8]


@dataclass
class PbsStore:
    """A datastore with one group; with a key everything in it is encrypted."""

    place: Path
    key: bytes | None = None
    group: str = "vm/100"
    compress: bool = True
    snapshots: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def id_key(self) -> bytes:
        return hashlib.pbkdf2_hmac("sha256", self.key or b"", b"_id_key", 10)

    def blob(self, content: bytes, *, plain: bool = False) -> bytes:
        """A blob; it is compressed where that is shorter."""
        body, packed = content, b""
        if self.compress:
            from lamella.format import zstd_provider  # whichever is installed

            provider, module = zstd_provider.load()
            packed = module.ZstdCompressor().compress(content) if provider == "zstandard" else module.compress(content)
        squeezed = bool(packed) and len(packed) < len(content)
        body = packed if squeezed else content
        words = "zstd compressed encrypted" if squeezed else "encrypted"
        if self.key is None or plain:
            words = "zstd compressed" if squeezed else "uncompressed"
            head = b""
        else:
            iv = os.urandom(16)
            sealed = AESGCM(self.key).encrypt(iv, body, b"")
            body, head = sealed[:-16], iv + sealed[-16:]
        return magic(f"Proxmox Backup {words} blob v1.0") + struct.pack("<I", zlib.crc32(body)) + head + body

    def digest(self, content: bytes) -> bytes:
        return hashlib.sha256(content if self.key is None else content + self.id_key).digest()

    def chunk(self, content: bytes) -> bytes:
        """Store a chunk; returns its digest."""
        digest = self.digest(content)
        path = self.place / ".chunks" / digest.hex()[:4] / digest.hex()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(self.blob(content))
        return digest

    def snapshot(self, moment: datetime, disks: dict[str, bytes], small: dict[str, bytes] | None = None) -> str:
        """Store a snapshot; returns its name."""
        name = moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        folder = self.place / self.group / name
        folder.mkdir(parents=True)
        files = []
        mode = "none" if self.key is None else "encrypt"
        for disk, content in disks.items():
            digests = b"".join(self.chunk(content[at : at + CHUNK]) for at in range(0, len(content), CHUNK))
            checksum = hashlib.sha256(digests).digest()
            numbers = struct.pack("<q", int(moment.timestamp())) + checksum + struct.pack("<QQ", len(content), CHUNK)
            header = magic("Proxmox Backup fixed sized chunk index v1.0") + os.urandom(16) + numbers
            (folder / f"{disk}.img.fidx").write_bytes(header.ljust(4096, b"\0") + digests)
            row = {"filename": f"{disk}.img.fidx", "crypt-mode": mode, "size": len(content), "csum": checksum.hex()}
            files.append(row)
        for file, content in (small or {}).items():
            blob = self.blob(content)
            (folder / f"{file}.blob").write_bytes(blob)
            checksum = hashlib.sha256(blob).digest()
            files.append({"filename": f"{file}.blob", "crypt-mode": mode, "size": len(blob), "csum": checksum.hex()})
        kind, _, id_ = self.group.rpartition("/")[0].rpartition("/")[2], "", self.group.rpartition("/")[2]
        manifest: dict[str, object] = {
            "backup-type": kind,
            "backup-id": id_,
            "backup-time": int(moment.timestamp()),
            "files": files,
        }
        self.manifest(folder, manifest)
        self.snapshots[name] = disks
        return name

    def manifest(self, folder: Path, manifest: dict[str, object]) -> None:
        """Write a manifest, and sign it with the key."""
        if self.key is not None:
            text = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
            signature = hmac.digest(self.id_key, text, "sha256").hex()
            fingerprint = self.digest(hashlib.sha256(b"Proxmox Backup Encryption Key Fingerprint").digest()).hex()
            manifest = {**manifest, "unprotected": {"key-fingerprint": fingerprint}, "signature": signature}
        text = json.dumps(manifest, indent=2).encode()
        (folder / "index.json.blob").write_bytes(self.blob(text, plain=True))

    def key_file(self, passphrase: bytes | None = None) -> bytes:
        """The key file, protected by a passphrase or not."""
        assert self.key is not None
        kdf, data = None, self.key
        if passphrase is not None:
            salt, iv = os.urandom(32), os.urandom(16)
            derived = hashlib.scrypt(passphrase, salt=salt, n=1 << 14, r=8, p=1, maxmem=1 << 26, dklen=32)
            sealed = AESGCM(derived).encrypt(iv, self.key, b"")
            kdf = {"Scrypt": {"n": 1 << 14, "r": 8, "p": 1, "salt": base64.b64encode(salt).decode()}}
            data = iv + sealed[-16:] + sealed[:-16]
        digest = self.digest(hashlib.sha256(b"Proxmox Backup Encryption Key Fingerprint").digest()).hex()
        fingerprint = ":".join(digest[at : at + 2] for at in range(0, 64, 2))
        moment = "2025-01-01T00:00:00+00:00"
        made = {"kdf": kdf, "created": moment, "modified": moment, "data": base64.b64encode(data).decode()}
        return json.dumps({**made, "fingerprint": fingerprint}).encode()


def filled(store: PbsStore, *, disks: int = 2) -> PbsStore:
    """Three snapshots an hour apart: a change of one chunk, then a larger and a smaller disk."""
    text = b"".join(bytes([number]) * CHUNK for number in (1, 0, 2, 3, 0, 4)) + os.urandom(CHUNK) + b"end" * 1000
    states = [text]
    states.append(text[: 2 * CHUNK] + b"x" * CHUNK + text[3 * CHUNK :])
    states.append(states[1] + bytes(3 * CHUNK) + b"more")
    for hour, state in enumerate(states):
        whole = {"drive-scsi0": state, "drive-scsi1": state[: (7 - hour) * CHUNK]}
        moment = datetime(2025, 3, 30, hour, 30, tzinfo=UTC)
        store.snapshot(moment, dict(list(whole.items())[:disks]), {"qemu-server.conf": b"cores: %d\n" % hour})
    return store
