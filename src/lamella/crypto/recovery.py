"""Recovery keys as people write them (FORMAT 3). Loaded where one is made, shown or typed."""

from __future__ import annotations

import base64
import hashlib
import os
import re

from lamella.base.errors import KeyRefused
from lamella.crypto.slots import Secret
from lamella.format.keyslot import SlotType

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_LOOK_ALIKES = str.maketrans("018", "OIB")
_LENGTH = 56
"""Letters of a key without those that check its groups."""
_GROUP = 4
_GROUPS = _LENGTH // _GROUP
_OTHER = f"not a recovery key: it has {_GROUPS} groups of {_GROUP + 1} letters and digits"


def _checksum(key: bytes) -> bytes:
    """The checksum in the written form of a recovery key, to find typing mistakes."""
    return hashlib.sha256(b"lamella recovery" + key).digest()[:3]


def recovery_key(text: str) -> Secret:
    """Read a recovery key as a person typed it, with or without the letters that check its groups.

    Raises KeyRefused when a checksum does not fit; the error names the groups with mistakes.
    """
    groups = _groups(text)
    plain = "".join(groups)
    if len(plain) != _LENGTH:
        wrong = _wrong(groups)
        if len(groups) != _GROUPS or len(wrong) == _GROUPS:
            raise KeyRefused(_OTHER)
        if wrong:
            which = f"group{'s' * (len(wrong) > 1)} {', '.join(map(str, wrong))}"
            raise KeyRefused(f"the recovery key has a typing mistake in {which} of {_GROUPS}")
        plain = "".join(group[:-1] for group in groups)
    try:
        raw = base64.b32decode(plain)
    except ValueError as error:
        raise KeyRefused(_OTHER) from error
    if len(raw) != 35 or raw[32:] != _checksum(raw[:32]):
        raise KeyRefused("the recovery key has a typing mistake: its checksum does not fit")
    return Secret(SlotType.RECOVERY, raw[:32])


def is_nearly_a_key(text: str) -> bool:
    """Whether most groups of a text fit, so that no passphrase is meant."""
    groups = _groups(text)
    return len(groups) == _GROUPS and len(_wrong(groups)) < _GROUPS // 2


def _groups(text: str) -> list[str]:
    """The groups as they are typed; of letters without any space five each."""
    words = text.replace("-", " ").upper().translate(_LOOK_ALIKES).split()
    return words if len(words) == _GROUPS else re.findall(f".{{1,{_GROUP + 1}}}", "".join(words))


def _wrong(groups: list[str]) -> list[int]:
    """The numbers, from 1, of the groups that do not fit."""
    return [
        number
        for number, group in enumerate(groups, 1)
        if len(group) != _GROUP + 1 or not set(group) <= set(_LETTERS) or check_letter(number, group[:-1]) != group[-1]
    ]


def new_recovery_key() -> Secret:
    """A fresh random recovery key."""
    return Secret(SlotType.RECOVERY, os.urandom(32))


def check_letter(number: int, group: str) -> str:
    """The letter that checks group `number`, counted from 1.

    A polynomial over GF(32): one wrong letter, two letters exchanged or a group in another's place never fit.
    """
    check = number
    for letter in group:
        check = _times_x(check) ^ _LETTERS.index(letter)
    return _LETTERS[_times_x(check)]


def _times_x(value: int) -> int:
    """In GF(32) with the polynomial x^5 + x^2 + 1."""
    return value << 1 ^ (0b100101 if value & 16 else 0)


def recovery_text(secret: Secret) -> str:
    """A recovery key as 14 groups of 4 characters, each with a letter that checks it."""
    text = base64.b32encode(secret.value + _checksum(secret.value)).decode("ascii")
    groups = [text[start : start + _GROUP] for start in range(0, _LENGTH, _GROUP)]
    return "-".join(group + check_letter(number, group) for number, group in enumerate(groups, 1))
