"""A lock that can be lost: only stores behind a connection have one."""

from __future__ import annotations


class Held:
    """A lock that a holder behind a connection can lose together with the connection.

    Another client may have held the exclusive lock meanwhile. The holder then reads again everything it relies on:
    `seen = held.losses`, read, `held.renew(seen)`; after a further loss in between, the lock still counts as lost.
    """

    def __init__(self) -> None:
        self._losses = 0
        self._renewed = 0

    @property
    def losses(self) -> int:
        """The number of times that the lock was lost so far."""
        return self._losses

    @property
    def lost(self) -> bool:
        """Whether the lock was lost and the holder has not renewed it since."""
        return self._losses != self._renewed

    def lose(self) -> None:
        """Record a loss; the store calls this."""
        self._losses += 1

    def renew(self, losses: int) -> None:
        """Record that the holder read everything again after `losses` had this value."""
        self._renewed = losses
