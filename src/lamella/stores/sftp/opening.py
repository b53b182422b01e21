"""`sftp://[user@]host[:port]/path`: a directory of a host that offers file transfer alone, by the system's ssh."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lamella.stores.pipe.link import Route, Stuck
from lamella.stores.pipe.ssh import parse, route_to
from lamella.stores.sftp.connection import SftpConnection
from lamella.stores.sftp.store import SftpStore

_SUBSYSTEM = "sftp"
_HOME = "/~"


def open_sftp(place: str, /, *, create: bool, read_only: bool, environment: Mapping[str, str]) -> SftpStore:
    """Open the store at `//[user@]host[:port]/path`, by `ssh -s` or the command in LAMELLA_SSH_COMMAND.

    Raises UsageError, NoRepository when there is no such directory, StoreRefused when ssh is not let in,
    StoreUnavailable when the host cannot be reached.
    """
    url = f"sftp:{place}"
    host, path = parse(place, "sftp")
    connect = _connecting(route_to(host, environment, _SUBSYSTEM, "-s"), url)
    return SftpStore(url, _directory(path).encode(), connect, create=create, read_only=read_only)


def _directory(path: str) -> str:
    """The directory as the server is told: it begins in the home directory."""
    if path == _HOME or path.startswith(f"{_HOME}/"):
        return path.removeprefix(_HOME).strip("/") or "."
    return path.rstrip("/") or "/"


def _connecting(route: Route, url: str) -> Callable[[], SftpConnection]:
    """Makes connections: all but the first use nothing that an earlier one may have left behind."""
    routes = [route]

    def connect() -> SftpConnection:
        try:
            return SftpConnection(routes[-1], url)
        except Stuck:
            return SftpConnection(route.anew(), url)
        finally:
            routes.append(route.anew())

    return connect
