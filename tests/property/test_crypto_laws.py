"""Laws of hints, ids, sealing and recovery texts."""

from __future__ import annotations

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.base.errors import IntegrityError, KeyRefused
from lamella.base.ids import ChunkId, DomainId, RepoId
from lamella.crypto import chunk_id, recovery, slots
from lamella.crypto.derive import Bundle, Keys
from lamella.crypto.seal import PackSealer
from lamella.crypto.unseal import PackOpener
from lamella.format.container import Blob, Header, Kind
from lamella.format.keyslot import SlotType
from lamella.format.marker import Marker

KEYS = [
    Keys(Marker(RepoId(b"r" * 16), b"p" * 32, b"e" * 32, alg), Bundle(b"k" * 32, b"e" * 32, None)) for alg in (1, 2)
]
SALTS = st.binary(min_size=32, max_size=32)
DOMAINS = st.binary(min_size=16, max_size=16).map(DomainId)
RECOVERY = st.binary(min_size=32, max_size=32).map(lambda key: slots.Secret(SlotType.RECOVERY, key))


@given(DOMAINS, SALTS, st.integers(0, 191))
def test_a_hint_leads_back_and_a_changed_one_nowhere(domain: DomainId, salt: bytes, bit: int) -> None:
    hint = KEYS[0].hint(domain, salt)
    assert KEYS[0].domain_of(salt, hint) == domain
    at = bit // 8
    changed = hint[:at] + bytes([hint[at] ^ 1 << bit % 8]) + hint[at + 1 :]
    assert KEYS[0].domain_of(salt, changed) is None


@given(st.binary(min_size=24, max_size=24), SALTS)
def test_a_random_hint_leads_nowhere(hint: bytes, salt: bytes) -> None:
    assert KEYS[0].domain_of(salt, hint) is None


@given(st.sampled_from(KEYS), DOMAINS, st.sampled_from(Kind), st.binary(max_size=300), st.binary(max_size=300))
def test_ids_are_equal_exactly_for_equal_contents(
    keys: Keys, domain: DomainId, kind: Kind, left: bytes, right: bytes
) -> None:
    identify = chunk_id.identifier(keys.domain(domain), kind)
    assert (identify(left) == identify(right)) == (left == right)
    assert len(identify(left)) == 24
    assert identify(memoryview(left)) == identify(left)


IDS = st.binary(min_size=24, max_size=24).map(ChunkId)


@given(st.sampled_from([1, 2]), DOMAINS, SALTS, st.sampled_from(Kind), IDS, st.binary(), st.data())
def test_sealed_blobs_open_only_unchanged(
    aead: int, domain: DomainId, salt: bytes, kind: Kind, id_: ChunkId, body: bytes, data: st.DataObject
) -> None:
    keys = KEYS[0].domain(domain)
    sealed = PackSealer(keys, salt, aead).seal(kind, id_, body)
    opener = PackOpener(keys, Header(aead, 0, salt, bytes(24)), "p")
    place = Blob(kind, id_, 0, len(sealed), 0)
    assert opener.body(place, sealed) == body
    other = data.draw(st.binary(max_size=len(sealed) + 8).filter(lambda raw: raw != sealed))
    try:
        opener.body(place, other)
    except IntegrityError:
        return
    raise AssertionError("other bytes authenticate")


@given(RECOVERY)
def test_recovery_texts_survive_how_people_type(secret: slots.Secret) -> None:
    text = recovery.recovery_text(secret)
    for typed in (text, text.lower(), text.replace("-", ""), text.replace("-", " "), f"  {text}\n", text.title()):
        assert recovery.recovery_key(typed) == secret
    look_alikes = text.replace("O", "0").replace("I", "1").replace("B", "8")
    assert recovery.recovery_key(look_alikes) == secret
    assert recovery.recovery_key("\t".join(text)) == secret


@given(st.text(max_size=80) | st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567=- 018", min_size=50, max_size=84))
def test_any_text_is_a_key_or_refused(typed: str) -> None:
    try:
        secret = recovery.recovery_key(typed)
    except KeyRefused:
        return
    assert recovery.recovery_key(recovery.recovery_text(secret)) == secret


@settings(max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_normalising_a_passphrase_twice_changes_nothing(text: str) -> None:
    once = slots.passphrase(text)
    assert slots.passphrase(once.value.decode("utf-8")) == once


@given(RECOVERY)
def test_the_checksum_is_in_the_last_letters(secret: slots.Secret) -> None:
    digest = hashlib.sha256(b"lamella recovery" + secret.value).digest()
    tail = int.from_bytes(secret.value[-2:] + digest[:3], "big")
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    expected = "".join(letters[tail >> 5 * (7 - at) & 31] for at in range(8))
    assert "".join(group[:-1] for group in recovery.recovery_text(secret).split("-"))[-8:] == expected
