"""Where an NBD server listens: a socket file, an address of this machine, or a socket that was handed over."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from lamella.base.errors import LamellaError, UsageError

_BACKLOG = 128
_LONGEST_PATH = 107
"""Bytes of a path in sockaddr_un, from linux/un.h."""


@contextmanager
def at_path(path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket file that only its owner can connect to, and its URI; removed at the end.

    A file that a killed server left is replaced. Raises UsageError for any other file, LamellaError.
    """
    if len(os.fsencode(path)) > _LONGEST_PATH:
        hint = f"a socket's path has at most {_LONGEST_PATH} bytes"
        raise UsageError(f"the path of the socket is too long: {path}", obj=str(path), hint=hint)
    _remove_stale(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        with _told(str(path)):
            listener.bind(os.fsencode(path))
            mine = path.stat().st_ino
        try:
            # Nobody can connect before it listens, so nobody can connect with other rights.
            path.chmod(0o600)
            listener.listen(_BACKLOG)
            yield listener, f"nbd+unix:///?socket={quote(os.fsencode(path.absolute()))}"
        finally:
            with suppress(OSError):
                if path.stat().st_ino == mine:
                    path.unlink()


@contextmanager
def at_address(text: str, *, from_anywhere: bool = False) -> Iterator[tuple[socket.socket, str]]:
    """A TCP socket at `ADDRESS:PORT`, port 0 for any, and its URI. Raises UsageError, LamellaError.

    Raises UsageError for an address that other machines can reach, unless `from_anywhere`.
    """
    host, port = _split(text)
    if not (host.is_loopback or from_anywhere):
        hint = "whoever can reach it could read the volume: use 127.0.0.1, or allow that with --allow-network"
        raise UsageError(f"{host} can be reached from other machines", obj=text, hint=hint)
    family = socket.AF_INET6 if host.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with _told(text):
            listener.bind((str(host), port))
            listener.listen(_BACKLOG)
        bound = listener.getsockname()[1]
        shown = f"[{host}]" if host.version == 6 else str(host)
        yield listener, f"nbd://{shown}:{bound}"


@contextmanager
def handed_over(descriptor: int) -> Iterator[tuple[socket.socket, str]]:
    """A socket that whoever started this process has bound, and its URI. Raises UsageError."""
    try:
        listener = socket.socket(fileno=descriptor)
        name = listener.getsockname()
        listener.listen(_BACKLOG)
    except OSError as error:
        raise UsageError(f"descriptor {descriptor} is no socket that listens: {error.strerror}") from error
    with listener:
        if listener.family == socket.AF_UNIX:
            yield listener, f"nbd+unix:///?socket={quote(os.fsencode(name))}"
        else:
            shown = f"[{name[0]}]" if listener.family == socket.AF_INET6 else name[0]
            yield listener, f"nbd://{shown}:{name[1]}"


def _split(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    host, colon, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]") if host != "localhost" else "127.0.0.1")
        number = int(port)
    except ValueError:
        number = -1
    if not colon or not 0 <= number <= 65535:
        hint = "write ADDRESS:PORT, for example 127.0.0.1:10809 or [::1]:10809"
        raise UsageError(f"not an address to listen at: {text}", obj=text, hint=hint)
    return address, number


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens at. Raises UsageError for everything else that is there."""
    if not (path.is_symlink() or path.exists()):
        return
    if not path.is_socket():
        raise UsageError(f"{path} exists and is not a socket", obj=str(path), hint="name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fsencode(path))
        except ConnectionRefusedError:
            with _told(str(path)):
                path.unlink()
            return
        except OSError:
            pass
    raise UsageError(
        f"another server listens at {path}", obj=str(path), hint="end that server first, or name another path"
    )


@contextmanager
def _told(place: str) -> Iterator[None]:
    """A socket that cannot be had as one line."""
    try:
        yield
    except OSError as error:
        raise LamellaError(f"cannot listen at {place}: {error.strerror}", obj=place) from error
