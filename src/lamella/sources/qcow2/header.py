"""The header of a qcow2 image (QEMU: docs/interop/qcow2.txt). Pure; whoever made the image may be hostile."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from lamella.base.errors import SourceError

MAGIC: Final = b"QFI\xfb"
MOST_BYTES: Final = 1 << 21
"""The largest cluster: everything that is read here lies in the first one."""

_HEAD: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_HEAD_3: Final = struct.Struct(">QQQII")
_MOST_NAME: Final = 1023
_BACKING_FORMAT, _DATA_FILE, _BITMAPS = 0xE2792ACA, 0x44415441, 0x23852875
_CRYPT: Final = ("", "AES", "LUKS")

_DIRTY, _CORRUPT, _EXTERNAL_DATA, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN: Final = _DIRTY | _CORRUPT | _EXTERNAL_DATA | _COMPRESSION | _EXTENDED_L2


@dataclass(frozen=True, slots=True)
class Qcow2Header:
    """One image. Names are as they are written in it, relative to its directory, or whatever QEMU would take."""

    version: int
    size: int
    """Bytes of the disk that the image holds."""
    backing: str = ""
    """The file with everything that the image does not hold itself; empty without one."""
    backing_format: str = ""
    """Empty: QEMU would guess the format from the first bytes of the backing file."""
    data_file: str = ""
    """The file that the clusters lie in; empty: in the image itself."""
    external_data: bool = False
    """The clusters lie in another file, whether its name is written here or not."""
    encryption: str = ""
    """`AES`, `LUKS`, or empty."""
    snapshots: int = 0
    bitmaps: int = 0
    corrupt: bool = False
    unknown_features: int = 0
    """Feature bits without which the image cannot be read, and which nobody knows here."""


def is_qcow2(start: bytes) -> bool:
    """Whether a file that begins so is a qcow2 image."""
    return start[:4] == MAGIC


def parse_header(content: bytes, name: str) -> Qcow2Header:
    """Read the header at the start of an image. `content` is its first cluster, or the whole file if that is shorter.

    Raises SourceError with `name` for anything that is no sound header.
    """
    try:
        return _parsed(content)
    except (ValueError, struct.error) as reason:
        raise SourceError(f"{name} is no sound qcow2 image: {reason}", obj=name) from reason


def _parsed(content: bytes) -> Qcow2Header:
    magic, version, name_at, name_length, cluster_bits, size, crypt, *_, snapshots, _ = _HEAD.unpack_from(content)
    if magic != MAGIC or version not in (2, 3):
        raise ValueError(f"its version is {version}" if magic == MAGIC else "it does not begin as such")
    if not 9 <= cluster_bits <= 21 or size >= 1 << 63 or crypt >= len(_CRYPT):
        raise ValueError("its size of clusters, its size or its encryption cannot be")
    incompatible, length = 0, _HEAD.size
    if version == 3:
        incompatible, _, _, _, length = _HEAD_3.unpack_from(content, _HEAD.size)
        if length < _HEAD.size + _HEAD_3.size or length % 8:
            raise ValueError(f"its header has {length} bytes")
    backing, end = "", 1 << cluster_bits
    if name_at:
        if name_length > _MOST_NAME or not length <= name_at <= end - name_length:
            raise ValueError("the name of its backing file lies elsewhere")
        backing, end = _text(content[name_at : name_at + name_length], name_length), name_at
    extensions = _extensions(content, length, end)
    return Qcow2Header(
        version,
        size,
        backing,
        _text(extensions.get(_BACKING_FORMAT, b"")),
        _text(extensions.get(_DATA_FILE, b"")),
        bool(incompatible & _EXTERNAL_DATA),
        _CRYPT[crypt],
        snapshots,
        int.from_bytes(extensions.get(_BITMAPS, b"")[:4], "big"),
        bool(incompatible & _CORRUPT),
        incompatible & ~_KNOWN,
    )


def _extensions(content: bytes, at: int, end: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while at + 8 <= end:
        kind, length = struct.unpack_from(">II", content, at)
        if not kind:
            break
        if length > end - at - 8 or len(content) < at + 8 + length:
            raise ValueError("an extension of its header is longer than the header")
        if kind in found:
            raise ValueError("an extension of its header is there twice")
        found[kind] = content[at + 8 : at + 8 + length]
        at += 8 + -(-length // 8) * 8
    return found


def _text(raw: bytes, length: int | None = None) -> str:
    if b"\0" in raw or (length is not None and len(raw) != length):
        raise ValueError("a name in its header is cut off, or has a zero in it")
    return raw.decode("utf-8", "surrogateescape")
