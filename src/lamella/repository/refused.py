"""The error for a secret that opens nothing."""

from __future__ import annotations

from lamella.base.errors import KeyRefused
from lamella.crypto.slots import Secret
from lamella.format.keyslot import SlotType
from lamella.repository.slots import Slots


def refused(place: str, secret: Secret, slots: Slots, tried: int) -> KeyRefused:
    """Make the error, with a hint that helps. `tried`: the number of slots that the secret was tried on."""
    word = {SlotType.PASSPHRASE: "passphrase", SlotType.RECOVERY: "recovery key", SlotType.KEYFILE: "key file"}
    text = f"wrong {word[secret.type]}" if tried else f"no {word[secret.type]} opens this repository"
    text += f"; keys/ holds {len(slots.ignored)} that no admin signed" if slots.ignored else ""
    kinds = " or ".join(sorted({word[slot.type] for slot in slots.signed if slot.type != secret.type}))
    hint = f"a {kinds} opens it; " if kinds else ""
    if secret.type == SlotType.PASSPHRASE and secret.value != secret.value.strip():
        hint += "it begins or ends with white space; "
    altered = "if the secret is right, the marker was altered" if tried else "see: lamella key list"
    return KeyRefused(text, obj=place, hint=hint + altered)
