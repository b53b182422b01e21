"""Wrapping and unwrapping keys (FORMAT 3)."""

from __future__ import annotations

import base64
import hashlib
import string
from dataclasses import replace

import pytest

from lamella.base.errors import IntegrityError, KeyRefused, UnknownFormat, UsageError
from lamella.base.ids import RepoId
from lamella.base.signed import slot_message
from lamella.crypto import new_slots, recovery, slots
from lamella.crypto.derive import Bundle, hkdf, prf
from lamella.crypto.sign import public_of, sign
from lamella.crypto.slots import Secret
from lamella.format import keyslot
from lamella.format.keyslot import KeySlot, Role, SlotType
from lamella.format.marker import Marker

DATA_ROOT, PRUNE_SEED, ENROL_SEED = b"k" * 32, b"p" * 32, b"e" * 32
MARKER = Marker(RepoId(b"r" * 16), public_of(PRUNE_SEED), public_of(ENROL_SEED), 1)
BUNDLE = Bundle(DATA_ROOT, ENROL_SEED, PRUNE_SEED)
RECOVERY = Secret(SlotType.RECOVERY, b"1" * 32)
FILE = slots.key_file(b"f" * 40)
PHRASE = slots.passphrase("correct horse")
LOG_N = 15
"""The least that is read: quick."""


def wrap(secret: Secret, *, admin: bool = True) -> KeySlot:
    return new_slots.wrap(MARKER, secret, BUNDLE, admin=admin, log_n=LOG_N)


SLOTS = {secret.type: wrap(secret) for secret in (PHRASE, RECOVERY, FILE)}


@pytest.mark.parametrize("secret", [PHRASE, RECOVERY, FILE], ids=lambda secret: secret.type.name)
@pytest.mark.parametrize("admin", [True, False], ids=["admin", "writer"])
def test_a_slot_opens_with_its_secret(secret: Secret, admin: bool) -> None:
    made = wrap(secret, admin=admin)
    assert made.role == (Role.ADMIN if admin else Role.WRITER)
    read = keyslot.decode(made.encode(), made.name)
    assert slots.is_signed(MARKER, read)
    assert slots.unwrap(MARKER, secret, read) == (DATA_ROOT, ENROL_SEED, PRUNE_SEED if admin else None)


def test_a_writer_makes_no_slot() -> None:
    with pytest.raises(UsageError, match="admin's secret"):
        new_slots.wrap(MARKER, RECOVERY, BUNDLE._replace(prune_seed=None), admin=False)


@pytest.mark.parametrize("by", [ENROL_SEED, b"o" * 32])
def test_another_key_signs_no_slot(by: bytes) -> None:
    slot = SLOTS[SlotType.RECOVERY]
    assert slots.is_signed(MARKER, slot)
    message = slot_message(MARKER.root, slot.encode())
    assert slots.is_signed(MARKER, replace(slot, signature=sign(PRUNE_SEED, message)))
    assert not slots.is_signed(MARKER, replace(slot, signature=sign(by, message)))


def test_a_slot_of_another_repository_with_the_same_keys_does_not_count() -> None:
    other = replace(MARKER, repo_id=RepoId(b"R" * 16))
    made = new_slots.wrap(other, RECOVERY, BUNDLE, admin=True)
    assert slots.is_signed(other, made) and not slots.is_signed(MARKER, made)


@pytest.mark.parametrize("context", [b"lamella/1 prune\0", b"lamella/1 enrol\0", b"lamella/1 commit\0", b""])
def test_a_signature_of_another_kind_makes_no_slot(context: bytes) -> None:
    slot = SLOTS[SlotType.RECOVERY]
    other = sign(PRUNE_SEED, context + MARKER.root + slot.encode()[:-64])
    assert not slots.is_signed(MARKER, replace(slot, signature=other))


WRONG = [
    slots.passphrase("correct horse "),
    slots.passphrase("Correct horse"),
    Secret(SlotType.RECOVERY, b"2" * 32),
    slots.key_file(b"f" * 41),
    # Right bytes under the wrong type.
    Secret(SlotType.RECOVERY, FILE.value),
    Secret(SlotType.KEYFILE, RECOVERY.value),
    Secret(SlotType.PASSPHRASE, RECOVERY.value),
]


@pytest.mark.parametrize("secret", WRONG, ids=range(len(WRONG)))
def test_other_secrets_open_nothing(secret: Secret) -> None:
    assert [slots.unwrap(MARKER, secret, slot) for slot in SLOTS.values()] == [None] * 3


def test_each_slot_has_its_own_salt() -> None:
    made = [wrap(RECOVERY) for _ in range(20)]
    assert len({slot.salt for slot in made}) == len({slot.wrapped for slot in made}) == 20


def opens(content: bytes, secret: Secret) -> bool:
    """Under the name that fits, so that the name does not give the change away."""
    try:
        slot = keyslot.decode(content, "keys/" + hashlib.sha256(content).hexdigest()[:8])
    except (IntegrityError, UnknownFormat):
        return False
    return slots.is_signed(MARKER, slot) and slots.unwrap(MARKER, secret, slot) is not None


@pytest.mark.parametrize("secret", [RECOVERY, FILE], ids=lambda secret: secret.type.name)
def test_any_bit_changed_closes_the_slot(secret: Secret) -> None:
    content = SLOTS[secret.type].encode()
    assert opens(content, secret)
    for at in range(keyslot.SIZE):
        for bit in range(8):
            assert not opens(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :], secret), (at, bit)


@pytest.mark.parametrize("at", [*range(16), *range(16, keyslot.SIZE, 12), keyslot.SIZE - 1])
def test_a_byte_changed_closes_a_passphrase_slot(at: int) -> None:
    content = SLOTS[SlotType.PASSPHRASE].encode()
    assert not opens(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :], PHRASE)


def test_a_changed_marker_opens_nothing() -> None:
    for marker in (replace(MARKER, repo_id=RepoId(b"R" * 16)), replace(MARKER, id_alg=2)):
        assert slots.unwrap(marker, RECOVERY, SLOTS[SlotType.RECOVERY]) is None
    assert slots.unwrap(replace(MARKER, prune_public=public_of(b"q" * 32)), RECOVERY, SLOTS[SlotType.RECOVERY]) is None
    assert slots.unwrap(replace(MARKER, minor=9), RECOVERY, SLOTS[SlotType.RECOVERY]) == BUNDLE


def forged(role: Role, bundle: bytes) -> KeySlot:
    """A slot whose mac is right, made by someone who knows the recovery key."""
    empty = KeySlot(SlotType.RECOVERY, role, b"s" * 32, bytes(96), bytes(32), bytes(64))
    kek = hkdf(RECOVERY.value, empty.salt, b"lamella/1 kek\0" + MARKER.root + empty.wrapping[:16])
    mask = hkdf(kek, MARKER.root, b"wrap", 96)
    filled = replace(empty, wrapped=bytes(a ^ b for a, b in zip(bundle, mask, strict=True)))
    return replace(filled, mac=prf(hkdf(kek, MARKER.root, b"mac"), filled.wrapping))


@pytest.mark.parametrize(
    ("role", "bundle"),
    [
        (Role.ADMIN, DATA_ROOT + b"q" * 32 + ENROL_SEED),
        (Role.ADMIN, DATA_ROOT + bytes(32) + ENROL_SEED),
        (Role.ADMIN, DATA_ROOT + PRUNE_SEED + bytes(32)),
        (Role.ADMIN, DATA_ROOT + PRUNE_SEED + PRUNE_SEED),
        (Role.WRITER, DATA_ROOT + PRUNE_SEED + ENROL_SEED),
        (Role.WRITER, DATA_ROOT + bytes(32) + b"\x01" + bytes(31)),
    ],
)
def test_slots_that_open_but_contradict_themselves(role: Role, bundle: bytes) -> None:
    with pytest.raises(KeyRefused) as caught:
        slots.unwrap(MARKER, RECOVERY, forged(role, bundle))
    assert caught.value.obj.startswith("keys/")


def test_forged_slots_are_otherwise_right() -> None:
    good = forged(Role.ADMIN, DATA_ROOT + PRUNE_SEED + ENROL_SEED)
    assert slots.unwrap(MARKER, RECOVERY, good) == BUNDLE


# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "same"), [("e\u0301", "\u00e9"), ("\u212b", "\u00c5"), ("\u1112\u1161\u11ab", "\ud55c")]
)
def test_passphrases_are_nfc(typed: str, same: str) -> None:
    assert slots.passphrase(typed) == slots.passphrase(same)
    assert slots.passphrase(typed).value == same.encode("utf-8")


@pytest.mark.parametrize("text", ["\ufb01", "\u00b2", " a", "a ", "A"])
def test_passphrases_are_otherwise_left_alone(text: str) -> None:
    assert slots.passphrase(text).value == text.encode("utf-8")


@pytest.mark.parametrize("text", ["", "\udc80", "a\ud800"])
def test_what_is_no_passphrase(text: str) -> None:
    with pytest.raises(UsageError):
        slots.passphrase(text)


@pytest.mark.parametrize(
    ("length", "fits"), [(31, False), (32, True), (1 << 20, True), ((1 << 20) + 1, False), (0, False)]
)
def test_sizes_of_key_files(length: int, fits: bool) -> None:
    if fits:
        assert slots.key_file(bytes(length)).value == bytes(length)
        return
    with pytest.raises(UsageError):
        slots.key_file(bytes(length))


def test_recovery_keys_are_fresh() -> None:
    made = {recovery.new_recovery_key().value for _ in range(20)}
    assert len(made) == 20 and {len(value) for value in made} == {32}


ALPHABET = string.ascii_uppercase + "234567"
TEXT = recovery.recovery_text(Secret(SlotType.RECOVERY, hashlib.sha256(b"a key").digest()))


def test_shape_of_the_recovery_text() -> None:
    groups = TEXT.split("-")
    assert len(groups) == 14 and {len(group) for group in groups} == {5}
    assert set(TEXT) <= set(ALPHABET + "-")


def test_every_single_wrong_character_is_noticed() -> None:
    for at, right in enumerate(TEXT):
        if right == "-":
            continue
        for wrong in {*ALPHABET, "9", "\u00e9"} - {right}:
            assert refused(TEXT[:at] + wrong + TEXT[at + 1 :]) == f"group {at // 6 + 1} of 14"


def refused(typed: str) -> str:
    """Where the mistake is, as the error says."""
    with pytest.raises(KeyRefused) as caught:
        recovery.recovery_key(typed)
    assert recovery.is_nearly_a_key(typed)
    return caught.value.message.rpartition(" in ")[2]


def test_letters_exchanged_anywhere_name_their_groups() -> None:
    plain = TEXT.replace("-", "")
    for at in range(70):
        for other in range(at + 1, 70):
            if plain[at] == plain[other]:
                continue
            letters = list(plain)
            letters[at], letters[other] = letters[other], letters[at]
            wrong = sorted({at // 5 + 1, other // 5 + 1})
            assert refused("".join(letters)) == f"group{'s' * (len(wrong) > 1)} {', '.join(map(str, wrong))} of 14"


def test_groups_exchanged_are_named() -> None:
    for one in range(14):
        for other in range(one + 1, 14):
            groups = TEXT.split("-")
            groups[one], groups[other] = groups[other], groups[one]
            assert refused(" ".join(groups)) == f"groups {one + 1}, {other + 1} of 14"


def test_missing_and_extra_characters_name_their_group() -> None:
    for at, letter in enumerate(TEXT):
        if letter != "-":
            for typed in (TEXT[:at] + TEXT[at + 1 :], TEXT[:at] + "A" + TEXT[at:]):
                assert refused(typed) == f"group {at // 6 + 1} of 14"
            plain = TEXT.replace("-", "")
            with pytest.raises(KeyRefused):
                recovery.recovery_key(plain[: at - TEXT[:at].count("-")] + plain[at - TEXT[:at].count("-") + 1 :])


def test_a_passphrase_of_words_is_no_recovery_key() -> None:
    assert not recovery.is_nearly_a_key(
        "grape-apple-peach-lemon-mango-berry-melon-guava-olive-plums-dates-limes-kiwis-pears"
    )


def test_the_plain_form_is_taken_and_its_mistakes_are_noticed() -> None:
    plain = "".join(group[:-1] for group in TEXT.split("-"))
    assert recovery.recovery_key(plain) == recovery.recovery_key(TEXT)
    for at in range(55):
        for typed in (plain[:at] + plain[at + 1] + plain[at] + plain[at + 2 :], plain[:at] + plain[at + 1 :]):
            if typed != plain:
                with pytest.raises(KeyRefused):
                    recovery.recovery_key(typed)


@pytest.mark.parametrize(
    "typed", ["", "-", "9" * 56, "=" * 56, TEXT + "=", TEXT + "A" * 8, "\u00e9" * 56, "\u0131" * 56, "\udc80"]
)
def test_what_is_no_recovery_key(typed: str) -> None:
    with pytest.raises(KeyRefused):
        recovery.recovery_key(typed)


def test_digits_that_look_like_letters() -> None:
    # Found by counting up: a key whose text has each of the three letters.
    for number in range(1000):
        secret = Secret(SlotType.RECOVERY, hashlib.sha256(number.to_bytes(2, "little")).digest())
        text = recovery.recovery_text(secret)
        if {"O", "I", "B"} <= set(text):
            break
    typed = text.replace("O", "0").replace("I", "1").replace("B", "8")
    assert typed != text
    assert recovery.recovery_key(typed) == secret


def test_padding_is_not_accepted_in_place_of_letters() -> None:
    padded = base64.b32encode(bytes(33)).decode()
    assert padded.endswith("=") and len(padded) == 56
    with pytest.raises(KeyRefused):
        recovery.recovery_key(padded)
