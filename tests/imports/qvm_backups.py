"""Makes files as qvm-backup does, format 4, after its documentation; with a scrypt that is cheap."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import hmac
import io
import lzma
import os
import struct
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

PASSPHRASE = b"a passphrase"
UUID = "9204481c-7e37-42a6-8a66-b4cc63d65f11"
RULE = '<property name="action">accept</property><property name="proto">tcp</property>'
PART = 1 << 20
"""The real one cuts after 100 MiB."""


def sealed(content: bytes, passphrase: bytes, log2: int = 4) -> bytes:
    """As `scrypt enc` writes it."""
    head = b"scrypt\0" + struct.pack(">BII", log2, 8, 1) + os.urandom(32)
    head += hashlib.sha256(head).digest()[:16]
    key = hashlib.scrypt(passphrase, salt=head[16:48], n=1 << log2, r=8, p=1, dklen=64)
    head += hmac.digest(key[32:], head, "sha256")
    cipher = Cipher(AES(key[:32]), CTR(bytes(16))).encryptor()
    whole = head + cipher.update(content)
    return whole + hmac.digest(key[32:], whole, "sha256")


def compressed(content: bytes, how: str) -> bytes:
    """By the filter of the header."""
    if how == "zstd":
        return subprocess.run(["zstd", "-q", "-c"], input=content, capture_output=True, check=True).stdout
    match how:
        case "gzip":
            return gzip.compress(content)
        case "bzip2":
            return bz2.compress(content)
        case "xz":
            return lzma.compress(content)
    return content


def inner_tar(path: Path, name: str) -> bytes:
    """A file as GNU tar writes it, holes left out."""
    words: list[str | Path] = [
        "tar",
        "-Pc",
        "--sparse",
        "-C",
        path.parent,
        f"--xform=s:^{path.name}:{name}:",
        path.name,
    ]
    return subprocess.run(words, capture_output=True, check=True).stdout


def qubes_xml(qubes: Mapping[str, tuple[str, int, Mapping[str, int]]]) -> bytes:
    """Name -> UUID, number, and the volumes that persist with their sizes."""
    domains = ""
    for name, (uuid, number, volumes) in qubes.items():
        kept = "".join(
            f'<volume name="{one}" pool="vm-pool" rw="True" save_on_stop="True" size="{size}" vid="{name}/{one}"/>'
            for one, size in volumes.items()
        )
        domains += f"""<domain id="domain-{number}" class="AppVM"><properties>
        <property name="label">green</property><property name="name">{name}</property>
        <property name="qid">{number}</property><property name="uuid">{uuid}</property>
        <property name="template">debian-12</property><property name="netvm"></property>
        <property name="memory">800</property><property name="debug">True</property></properties>
        <features><feature name="backup-content">1</feature><feature name="backup-path">vm{number}/</feature>
        <feature name="backup-size">1</feature><feature name="gui">1</feature></features>
        <devices class="pci"/><tags><tag name="created-by-dom0"/></tags><volume-config>
        <volume name="root" pool="vm-pool" snap_on_start="True" source="debian-12/root" size="9" vid="{name}/root"/>
        {kept}</volume-config></domain>"""
    return f"""<?xml version='1.0' encoding='UTF-8'?><qubes><labels><label id="label-4" color="0x73d216">green</label>
    </labels><domains><domain id="domain-0" class="AdminVM"><properties/><features/></domain>{domains}</domains>
    </qubes>""".encode()


def write_backup(
    place: Path, files: Mapping[str, bytes], *, id_: str, filter_: str = "gzip", time: int = 1_700_000_000
) -> Path:
    """A backup of inner tars by name, `qubes.xml` first."""
    header = f"version=4\nhmac-algorithm=scrypt\nencrypted=True\ncompressed={bool(filter_)}\n"
    header += f"compression-filter={filter_}\n" * bool(filter_) + f"backup-id={id_}\n"
    members = {"backup-header": header.encode()}
    members["backup-header.hmac"] = sealed(header.encode(), b"backup-header!" + PASSPHRASE)
    for name, content in files.items():
        packed = compressed(content, filter_)
        for number, start in enumerate(range(0, len(packed), PART)):
            part = f"{name}.{number:03}"
            members[f"{part}.enc"] = sealed(packed[start : start + PART], f"{id_}!{part}!".encode() + PASSPHRASE)
    with place.open("wb") as file:
        for name, content in members.items():  # each is a tar of its own, as the real one makes them
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as outer:
                info = tarfile.TarInfo(name)
                info.size, info.mtime, info.mode = len(content), time, 0o600
                info.pax_headers = {"atime": f"{time}.5"}  # as `tar --posix` does
                outer.addfile(info, io.BytesIO(content))
    return place


def files_of(folder: Path, private: Path, size: int = 8 << 20) -> dict[str, bytes]:
    """The files of a backup of the qube `work`."""
    (folder / "qubes.xml").write_bytes(qubes_xml({"work": (UUID, 20, {"private": size})}))
    rules = f"<rule><properties>{RULE}</properties></rule>"
    (folder / "firewall.xml").write_text(f'<firewall version="2"><rules>{rules}</rules></firewall>')
    (folder / "notes.txt").write_text("a note")
    return {
        "qubes.xml": inner_tar(folder / "qubes.xml", "qubes.xml"),
        "vm20/private.img": inner_tar(private, "vm20/private.img"),
        "vm20/firewall.xml": inner_tar(folder / "firewall.xml", "vm20/firewall.xml"),
        "vm20/notes.txt": inner_tar(folder / "notes.txt", "vm20/notes.txt"),
        "dom0-home/user": b"",
    }


def dated_backups(folder: Path, size: int = 8 << 20) -> dict[str, tuple[Path, bytes]]:
    """Two backups of a qube, the newer one first: session -> file and content of the private volume."""
    private, found = folder / "private.img", {}
    private.write_bytes(os.urandom(size // 8) + bytes(size - size // 8))
    for number in range(2):
        with private.open("r+b") as file:
            file.seek(number * 5000)
            file.write(os.urandom(3000))
        id_ = f"2026010{number}T000000-1234"
        path = write_backup(
            folder / f"backup{number}", files_of(folder, private, size), id_=id_, time=1_700_000_000 + number
        )
        found[id_] = path, private.read_bytes()
    return dict(reversed(found.items()))
