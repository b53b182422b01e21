"""The parts of `rbd:POOL/IMAGE` and `rbd:POOL/NAMESPACE/IMAGE`. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lamella.base.errors import UsageError

PREFIX: Final = "rbd:"
_HINT: Final = "write rbd:POOL/IMAGE or rbd:POOL/NAMESPACE/IMAGE, with ?id=USER for another user of Ceph than admin"


@dataclass(frozen=True, slots=True)
class RbdAddress:
    """An image by name, and the user of Ceph who reads it."""

    pool: str
    namespace: str
    image: str
    user: str = ""
    """Without `client.` before it; empty: Ceph's default, `admin`."""

    @property
    def text(self) -> str:
        """As users write it, without the user."""
        return PREFIX + "/".join(filter(None, (self.pool, self.namespace, self.image)))


def parse(text: str) -> RbdAddress:
    """Read an address, with or without `rbd:` before it. Raises UsageError."""
    place, question, user = text.removeprefix(PREFIX).partition("?id=")
    parts = place.split("/")
    # librbd keeps `@` for snapshots and `/` for borders; names beginning with `rbd_` or a dot are not refused by it.
    if len(parts) not in (2, 3) or not all(parts) or "@" in place or (question and not user):
        raise UsageError(f"not an RBD image: {text}", obj=text, hint=_HINT)
    return RbdAddress(parts[0], "/".join(parts[1:-1]), parts[-1], user)
