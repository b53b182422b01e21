"""The key of a passphrase, kept for a while by the kernel: `lamella key cache`. Nothing is kept unless asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from lamella.base.errors import KeyRefused, UsageError
from lamella.cli.context import Context
from lamella.cli.destination import OtherContext
from lamella.cli.secret import FIRST
from lamella.crypto.slots import Secret
from lamella.format.keyslot import KeySlot, SlotType
from lamella.run import keyring

Opened = TypeVar("Opened")


@dataclass(frozen=True, slots=True)
class KeptSecret(Secret):
    """The key that a passphrase gave for one slot: it opens that slot at once, and no other slot."""

    def kek(self, root: bytes, slot: KeySlot) -> bytes:
        """Nothing to derive: the mac of another slot refuses it."""
        return self.value


def opened_by_kept(place: str, opens: Callable[[Secret], Opened]) -> Opened | None:
    """The result of `opens` with the key that is kept for a repository; None if no kept key opens it."""
    kept = keyring.kept(_name(place))
    if kept is None:
        return None
    try:
        return opens(KeptSecret(SlotType.PASSPHRASE, kept))
    except KeyRefused:  # the passphrase was changed, or another repository lies there now
        keyring.forget(_name(place))
        return None


class _Keeping(OtherContext):
    """The same repository; remembers the secret that opened it."""

    used: Secret

    def secret(self) -> Secret:
        self.used = super().secret()
        return self.used


def cache(context: Context) -> int:
    """`lamella key cache`: ask for the passphrase, and keep its key for a while. Raises UsageError, LamellaError."""
    name, out, minutes = _name(context.place), context.out, context.args.minutes
    forgotten = keyring.forget(name)
    if context.args.forget:
        out.line("forgotten" if forgotten else "nothing was kept")
        out.document({"kept": False, "forgotten": forgotten})
        return 0
    keyring.require_own()  # before a person is asked for a passphrase
    keeping = _Keeping(context, context.named(), FIRST)
    with keeping.repository() as repository:
        slot = repository.unlocked.slot
        if slot.type != SlotType.PASSPHRASE:
            raise UsageError("only the key of a passphrase is kept: a key file opens a repository at once")
        keyring.keep(name, keeping.used.kek(repository.keys.marker.root, slot), minutes * 60)
    out.line(f"the key of {context.place} is kept for {minutes} minutes, for this login; --forget ends that")
    out.document({"kept": True, "minutes": minutes})
    return 0


def _name(place: str) -> bytes:
    where = place if ":" in place else os.path.realpath(place)
    return b"lamella:" + hashlib.sha256(os.fsencode(where)).hexdigest()[:32].encode("ascii")
