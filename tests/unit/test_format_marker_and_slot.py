"""Fixed-size clear objects: marker and key slots (FORMAT 2, 3)."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.base.ids import RepoId
from lamella.format import keyslot, marker
from lamella.format.keyslot import KeySlot, Role, SlotType

MARKER = marker.Marker(RepoId(b"r" * 16), b"p" * 32, b"e" * 32, 1)
BY_PASSPHRASE = KeySlot(SlotType.PASSPHRASE, Role.ADMIN, b"s" * 32, b"w" * 96, b"m" * 32, b"x" * 64, 17, 1)
BY_FILE = KeySlot(SlotType.KEYFILE, Role.WRITER, b"s" * 32, b"w" * 96, b"m" * 32, b"x" * 64)


def put(content: bytes, at: int, value: int) -> bytes:
    return content[:at] + bytes([value]) + content[at + 1 :]


def read(content: bytes) -> KeySlot:
    """Under the name that fits, so that only the fields can be refused."""
    return keyslot.decode(content, "keys/" + hashlib.sha256(content).hexdigest()[:8])


@pytest.mark.parametrize("length", [0, 64, 95, 97])
def test_a_marker_has_96_bytes(length: int) -> None:
    with pytest.raises(IntegrityError):
        marker.decode(MARKER.encode().ljust(length, b"\0")[:length])


@pytest.mark.parametrize(
    ("at", "value", "error"),
    [
        (0, 0x6C, IntegrityError),
        (7, 1, IntegrityError),
        (8, 0, UnknownFormat),
        (8, 2, UnknownFormat),
        (10, 0, UnknownFormat),
        (10, 3, UnknownFormat),
        *[(at, 1, IntegrityError) for at in range(11, 16)],
    ],
)
def test_markers_that_are_refused(at: int, value: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        marker.decode(put(MARKER.encode(), at, value))


@pytest.mark.parametrize("minor", [0, 1, 255])
def test_a_higher_minor_is_read_but_not_written_and_r_stays(minor: int) -> None:
    read_back = marker.decode(put(MARKER.encode(), 9, minor))
    assert read_back.writable == (minor == 0)
    assert read_back.root == MARKER.root


def test_every_other_byte_of_the_marker_changes_r() -> None:
    encoded = MARKER.encode()
    roots = {marker.decode(put(encoded, at, encoded[at] ^ 1)).root for at in range(16, 96)}
    assert len(roots | {MARKER.root, replace(MARKER, id_alg=2).root}) == 82


@pytest.mark.parametrize("slot", [BY_PASSPHRASE, BY_FILE])
def test_good_slots(slot: KeySlot) -> None:
    assert read(slot.encode()) == slot
    assert len(slot.encode()) == 240
    assert slot.encode()[:-96] == slot.wrapping


@pytest.mark.parametrize("log_n", [15, 20])
@pytest.mark.parametrize("p", [1, 4])
def test_limits_of_scrypt(log_n: int, p: int) -> None:
    assert read(put(put(BY_PASSPHRASE.encode(), 10, log_n), 12, p)).log_n == log_n


@pytest.mark.parametrize(
    ("slot", "at", "value", "error"),
    [
        (BY_PASSPHRASE, 0, 0, UnknownFormat),
        (BY_PASSPHRASE, 7, 2, UnknownFormat),
        (BY_PASSPHRASE, 8, 0, UnknownFormat),
        (BY_PASSPHRASE, 8, 4, UnknownFormat),
        (BY_PASSPHRASE, 9, 0, UnknownFormat),
        (BY_PASSPHRASE, 9, 3, UnknownFormat),
        (BY_PASSPHRASE, 10, 14, IntegrityError),
        (BY_PASSPHRASE, 10, 21, IntegrityError),
        (BY_PASSPHRASE, 10, 255, IntegrityError),
        (BY_PASSPHRASE, 11, 7, IntegrityError),
        (BY_PASSPHRASE, 11, 9, IntegrityError),
        (BY_PASSPHRASE, 12, 0, IntegrityError),
        (BY_PASSPHRASE, 12, 5, IntegrityError),
        (BY_FILE, 10, 17, IntegrityError),
        (BY_FILE, 11, 8, IntegrityError),
        (BY_FILE, 12, 1, IntegrityError),
        *[(BY_FILE, at, 1, IntegrityError) for at in (13, 14, 15)],
    ],
)
def test_slots_that_are_refused(slot: KeySlot, at: int, value: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        read(put(slot.encode(), at, value))


@pytest.mark.parametrize("length", [0, 176, 239, 241])
def test_a_slot_has_240_bytes(length: int) -> None:
    with pytest.raises(IntegrityError):
        read(BY_FILE.encode().ljust(length, b"\0")[:length])


@pytest.mark.parametrize("at", range(16, 240))
def test_a_slot_under_the_name_of_another(at: int) -> None:
    changed = put(BY_FILE.encode(), at, BY_FILE.encode()[at] ^ 1)
    with pytest.raises(IntegrityError):
        keyslot.decode(changed, BY_FILE.name)
