"""The sshd of the kit, for tests: where there is none, the test is skipped, or fails if it is required."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lamella_kit import ssh_server as kit
from lamella_kit.ssh_server import SshServer
from tests.features import require

__all__ = ["SshServer", "ssh_server"]


@contextmanager
def ssh_server(
    *, address: str = "127.0.0.1", prefix: tuple[str, ...] = (), port: int = 0, reuse: bool = False
) -> Iterator[SshServer]:
    """A running server that lets its own key in; `reuse` leaves the reuse of connections to the program under test."""
    require("sshd", not kit.missing(), kit.missing())
    with kit.ssh_server(address=address, prefix=prefix, port=port, reuse=reuse) as server:
        yield server
