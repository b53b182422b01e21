"""Reading the records of chains: decoding them, and telling whether the prune key signed them (FORMAT 8)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from lamella.base.errors import IntegrityError
from lamella.base.ids import WriterId
from lamella.crypto.derive import Keys
from lamella.crypto.sign import verified
from lamella.format.commit import ChainEntry
from lamella.format.known import Known, understood
from lamella.format.records import UNSIGNED, prune_signed_message

_Wanted = TypeVar("_Wanted")


def decoded(entry: ChainEntry) -> Known | None:
    """The record of an entry; None for a malformed record and for one of a later version."""
    try:
        return understood(entry.record)
    except IntegrityError:
        return None


def of_kinds(entries: Iterable[ChainEntry], *kinds: type[_Wanted]) -> Iterator[tuple[ChainEntry, _Wanted]]:
    """The well-formed records of these kinds, each with its entry. `kinds` are record classes with a TYPE."""
    types = {kind.TYPE for kind in kinds}  # type: ignore[attr-defined]
    for entry in entries:
        if entry.record.type in types:
            known = decoded(entry)
            if isinstance(known, kinds):
                yield entry, known


def prune_signed(keys: Keys, writer: WriterId, entry: ChainEntry) -> bool:
    """Whether the prune key signed this record, in this commit of this writer (FORMAT 8, [sig])."""
    value = entry.record.value
    if len(value) < 64 or value[-64:] == UNSIGNED:
        return False
    message = prune_signed_message(keys.root, writer, entry.seq, entry.prev, entry.record)
    return verified(keys.marker.prune_public, value[-64:], message)
