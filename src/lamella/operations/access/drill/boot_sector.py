"""Whether a disk can boot by itself, from fixed places in its first two sectors; nothing else of it is read here."""

from __future__ import annotations

from enum import Enum

HEAD_BYTES = 1024
_SECTOR = 512
_CODE = 440
_ENTRIES = range(446, 510, 16)
_ACTIVE = 0x80
_FILE_SYSTEMS = ((3, b"NTFS    "), (3, b"EXFAT   "), (54, b"FAT"), (82, b"FAT32"))


class Firmware(Enum):
    """The firmware that starts a disk."""

    NONE = "none"
    """It has no boot code, or is one file system without partitions."""
    BIOS = "bios"
    UEFI = "uefi"


def firmware_for(head: bytes) -> Firmware:
    """The firmware for a disk that begins with these bytes (UEFI 2.10, 5.2 and 5.3: the MBR and the GPT header)."""
    if head[510:512] != b"\x55\xaa":
        return Firmware.NONE
    if any(head[at : at + len(name)] == name for at, name in _FILE_SYSTEMS):
        return Firmware.NONE
    has_code = any(head[:_CODE])
    if has_code and (b"GRUB" in head[:_CODE] or any(head[at] == _ACTIVE for at in _ENTRIES)):
        return Firmware.BIOS
    if head[_SECTOR : _SECTOR + 8] == b"EFI PART":
        return Firmware.BIOS if has_code else Firmware.UEFI
    return Firmware.NONE
