"""`ssh://[user@]host[:port]/path`: a pipe through the system's own ssh, with the user's configuration, keys and agents.

The far side's shell sees one fixed command; the path travels in the greeting. Where the key is bound to a command
(`lamella serve`), that runs instead and skips the agent that was sent along.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from lamella.base.errors import LamellaError, UsageError
from lamella.run.spawn import run, shell_words
from lamella.stores.pipe import bundle
from lamella.stores.pipe.client import PipeStore
from lamella.stores.pipe.frames import Hello
from lamella.stores.pipe.link import Route, Stuck

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?\]")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+$-]*")
_MAX_PORT = 65535
_FORM = "write {}://[user@]host[:port]/absolute/path, or /~/path below the home directory"
REFUSALS = ("Permission denied", "Host key verification failed", "HOST IDENTIFICATION HAS CHANGED", "Bad owner")
"""The words of ssh where trying again makes no sense."""
CONNECT_SECONDS = 180.0
"""A person may have to type a password meanwhile; that a host is not there ssh itself finds out earlier."""
OPTIONS = {
    "Ciphers": "^aes128-gcm@openssh.com,aes256-gcm@openssh.com",
    "ConnectTimeout": "30",
    "Compression": "no",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "3",
}
"""Only where the user's configuration says nothing: sealed bytes do not compress, and AES-GCM is the fastest cipher,
and a connection over which nothing comes any more, because a machine slept or changed its network, ends in a minute."""
_ALONE = ("-o", "ControlMaster=no", "-o", "ControlPath=none")
"""A connection that does not use another one, and that no other one uses."""
_CHECK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class SshHost:
    """Where ssh is to go."""

    name: str
    user: str = ""
    port: int = 0

    def words(self) -> tuple[str, ...]:
        """As arguments of ssh, which cannot be taken for options."""
        port = ("-p", str(self.port)) if self.port else ()
        user = ("-l", self.user) if self.user else ()
        return (*port, *user, "--", self.name)


def open_ssh(place: str, /, *, create: bool, read_only: bool, environment: Mapping[str, str]) -> PipeStore:
    """Open the store at `//[user@]host[:port]/path`, by `ssh` or the command in LAMELLA_SSH_COMMAND.

    Raises UsageError, NoRepository when there is no such directory, StoreRefused when ssh is not let in,
    StoreUnavailable when the host cannot be reached.
    """
    host, path = parse(place, "ssh")
    # The last argument is what the login shell there sees: one fixed line, nothing of the user's.
    route = route_to(host, environment, bundle.COMMAND, boot=bundle.boot())
    hello = Hello(path, create, read_only, True)
    try:
        return PipeStore(f"ssh:{place}", route, hello)
    except Stuck:
        return PipeStore(f"ssh:{place}", route.anew(), hello)


def route_to(host: SshHost, environment: Mapping[str, str], far: str, *options: str, boot: bytes = b"") -> Route:
    """The way to what `far` names at a host, by `ssh` with more options. Raises UsageError."""
    ssh = shell_words(environment.get("LAMELLA_SSH_COMMAND") or "ssh")
    way = (*_configuration(), *host.words())
    begin = (*ssh, "-T", "-x", "-a", *options)
    return Route(
        (*begin, *way, far),
        boot,
        True,
        REFUSALS,
        CONNECT_SECONDS,
        distant=True,
        again=(*begin, *_ALONE, *way, far),
        shares=lambda: _has_master((*ssh, "-O", "check", *way)),
    )


def _has_master(check: tuple[str, ...]) -> bool:
    """Whether a program on this machine keeps a connection that ssh uses; that program answers, not the far side."""
    try:
        run(check, timeout_seconds=_CHECK_SECONDS)
    except LamellaError:
        return False
    return True


def parse(place: str, scheme: str) -> tuple[SshHost, str]:
    """Host and path of `//[user@]host[:port]/path`. Raises UsageError."""
    repo, form = f"{scheme}:{place}", _FORM.format(scheme)
    if not place.startswith("//") or any(not c.isprintable() for c in place):
        raise UsageError("not a place behind ssh", obj=repo, hint=form)
    where, slash, rest = place[2:].partition("/")
    if not slash or not rest:
        raise UsageError(f"{scheme}: names no path", obj=repo, hint=form)
    return parse_host(where, repo, form), unquote("/" + rest)


def parse_host(where: str, obj: str, form: str = _FORM.format("ssh")) -> SshHost:
    """`[user@]host[:port]`. Raises UsageError."""
    user, at, rest = where.rpartition("@")
    name, colon, port = rest.rpartition(":") if not rest.endswith("]") else (rest, "", "")
    if not colon:
        name, port = rest, ""
    user = unquote(user)
    if (at and not _USER.fullmatch(user)) or not _HOST.fullmatch(name) or (colon and not _valid_port(port)):
        raise UsageError("not a host that ssh could reach", obj=obj, hint=form)
    return SshHost(name.strip("[]"), user, int(port or 0))


def _valid_port(port: str) -> bool:
    return port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) <= _MAX_PORT


def _configuration() -> tuple[str, ...]:
    """The lines to add to the user's configuration, without changing anything that it says.

    ssh takes the first value it meets, on the command line before any in a file: preferences must therefore come last,
    in a file that includes the user's and the system's first. Without a private place for it, they are left out.
    """
    runtime = _runtime_directory()
    if runtime is None:
        return ()
    lines = ["Include ~/.ssh/config", "Include /etc/ssh/ssh_config", "Host *"]
    lines += [f"{name} {value}" for name, value in OPTIONS.items()]
    lines += ["ControlMaster auto", f"ControlPath {runtime}/%C", "ControlPersist 60"]
    config = runtime / "ssh_config"
    temporary = runtime / f"ssh_config.{os.getpid()}"
    try:
        temporary.write_text("\n".join(lines) + "\n", "utf-8")
        temporary.replace(config)
    except OSError:
        return ()
    return ("-F", str(config))


def _runtime_directory() -> Path | None:
    """A directory that is ours alone and gone after a restart: for the socket of a connection that is used again."""
    user = os.geteuid()
    above = Path("/run") if user == 0 else Path(f"/run/user/{user}")
    place = above / "lamella"
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        status = place.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(status.st_mode) and status.st_uid == user and not status.st_mode & 0o077
    return place if private else None
