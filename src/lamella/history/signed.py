"""Whether a record carries the prune key's signature (FORMAT 8, [sig])."""

from __future__ import annotations

from lamella.base.ids import WriterId
from lamella.crypto.derive import Keys
from lamella.crypto.sign import verified
from lamella.format.commit import Entry
from lamella.format.records import UNSIGNED, prune_signed_message


def prune_signed(keys: Keys, writer: WriterId, entry: Entry) -> bool:
    """Whether the prune key signed this record, in this commit of this writer."""
    value = entry.record.value
    if len(value) < 64 or value[-64:] == UNSIGNED:
        return False
    message = prune_signed_message(keys.root, writer, entry.seq, entry.prev, entry.record)
    return verified(keys.marker.prune_public, value[-64:], message)
