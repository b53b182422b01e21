"""What starts a disk, by its first two sectors."""

from __future__ import annotations

import pytest

from lamella.operations.access.drill.boot_sector import HEAD_BYTES, Firmware, firmware_for


def head(code: bytes = b"", *, active: bool = False, gpt: bool = False, at: int = 0, signed: bool = True) -> bytes:
    """The first sectors of a disk."""
    sectors = bytearray(HEAD_BYTES)
    sectors[at : at + len(code)] = code
    if active:
        sectors[446 + 16] = 0x80
    if gpt:
        sectors[512:520] = b"EFI PART"
    if signed:
        sectors[510:512] = b"\x55\xaa"
    return bytes(sectors)


@pytest.mark.parametrize(
    ("content", "firmware"),
    [
        (head(b"\xfa\x33\xc0", active=True), Firmware.BIOS),
        (head(b"\xeb\x63GRUB"), Firmware.BIOS),
        (head(b"\xeb\x63GRUB", gpt=True), Firmware.BIOS),
        (head(b"\xfa\x33\xc0", gpt=True), Firmware.BIOS),
        (head(gpt=True), Firmware.UEFI),
        (head(), Firmware.NONE),
        (head(active=True), Firmware.NONE),
        (head(b"\xfa\x33\xc0"), Firmware.NONE),
        (head(b"\xfa\x33\xc0", active=True, signed=False), Firmware.NONE),
        (head(b"NTFS    ", at=3, active=True), Firmware.NONE),
        (head(b"FAT32   ", at=82, active=True), Firmware.NONE),
        (b"", Firmware.NONE),
        (bytes(100), Firmware.NONE),
    ],
)
def test_a_disk_boots_if_something_in_it_says_so(content: bytes, firmware: Firmware) -> None:
    assert firmware_for(content) is firmware
