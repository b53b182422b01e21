"""Stores in another qube, reached through qrexec (Qubes OS).

`qubes://VM/NAME` calls the service `lamella.Repo+NAME` that is installed in the qube; `qubes://VM//abs/path` brings the
server along, through `qubes.VMExec`, without a shell and without a file. `qubes-ssh://VM:[user@]host[:port]/path` does
the same with ssh started inside the qube: its keys and its network are the qube's.
"""

from __future__ import annotations

import re
import shutil

from lamella.base.errors import StoreRefused, StoreUnavailable, UsageError
from lamella.run import spawn
from lamella.stores.pipe import bundle, ssh
from lamella.stores.pipe.client import PipeStore
from lamella.stores.pipe.frames import Hello
from lamella.stores.pipe.link import Route

_QUBE = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,30}")
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,48}")
SERVICE = "lamella.Repo"
_EXEC = "qubes.VMExec"
_START_SECONDS = 300.0
_FORM = "write qubes://VM/NAME or qubes://VM//absolute/path"
_SSH_FORM = "write qubes-ssh://VM:[user@]host[:port]/absolute/path, or qubes-ssh://VM/NAME"
_REFUSALS = ("Request refused", "Permission denied", "Host key verification failed", "denied by policy")


def open_qubes(place: str, /, *, create: bool, read_only: bool) -> PipeStore:
    """Open `//VM/NAME` or `//VM//abs/path`. Raises UsageError, NoRepository, StoreRefused, StoreUnavailable."""
    qube, path = _split(place, "qubes", _FORM)
    hello = Hello(path, create, read_only, True)
    if path.startswith("/"):
        return PipeStore(
            f"qubes:{place}", Route(_call(qube, _words(bundle.ARGV)), bundle.boot(), False, _REFUSALS), hello
        )
    if not _NAME.fullmatch(path):
        raise UsageError("not a name of a service", obj=f"qubes:{place}", hint=_FORM)
    return PipeStore(f"qubes:{place}", Route(_call(qube, f"{SERVICE}+{path}"), b"", False, _REFUSALS), hello)


def open_qubes_ssh(place: str, /, *, create: bool, read_only: bool) -> PipeStore:
    """Open `//VM:[user@]host[:port]/path`. Raises UsageError, NoRepository, StoreRefused, StoreUnavailable."""
    qube, colon, where = place.removeprefix("//").partition(":")
    if not colon:
        return open_qubes(place, create=create, read_only=read_only)
    url = f"qubes-ssh:{place}"
    if not place.startswith("//") or not _QUBE.fullmatch(qube):
        raise UsageError("not a place behind a qube", obj=url, hint=_SSH_FORM)
    host, path = ssh.parse(f"//{where}")
    options = (word for name, value in ssh.OPTIONS.items() for word in ("-o", f"{name}={value}"))
    argv = ("ssh", "-T", "-x", "-a", "-o", "BatchMode=yes", *options, *host.words(), bundle.COMMAND)
    refusals = (*ssh.REFUSALS, *_REFUSALS)
    route = Route(_call(qube, _words(argv)), bundle.boot(), False, refusals, ssh.CONNECT_SECONDS, distant=True)
    return PipeStore(url, route, Hello(path, create, read_only, True))


def _split(place: str, scheme: str, form: str) -> tuple[str, str]:
    qube, slash, path = place.removeprefix("//").partition("/")
    if not place.startswith("//") or not _QUBE.fullmatch(qube) or not slash or not path:
        raise UsageError("not a place in a qube", obj=f"{scheme}:{place}", hint=form)
    return qube, path


def _call(qube: str, service: str) -> tuple[str, ...]:
    """The program that calls a service: dom0's own, or that of a qube, whose calls dom0's policy decides on."""
    dom0 = _program("qrexec-client")
    if dom0 is not None:
        _start(qube)
        return (dom0, "-d", qube, f"DEFAULT:QUBESRPC {service} dom0")
    client = _program("qrexec-client-vm")
    if client is not None:
        return (client, "--", qube, service)
    raise StoreRefused("this is not a qube: there is neither qrexec-client nor qrexec-client-vm", obj=qube)


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/lib/qubes")


def _start(qube: str) -> None:
    """dom0's qrexec-client reaches only qubes that run. Raises StoreUnavailable."""
    starter = _program("qvm-start")
    if starter is not None:
        argv = (starter, "--skip-if-running", "--", qube)
        spawn.run(argv, timeout_seconds=_START_SECONDS, error=StoreUnavailable)


def _words(argv: tuple[str, ...]) -> str:
    """The call of a program in a qube: its words, in the letters that qubes.VMExec takes."""
    return f"{_EXEC}+" + "+".join(_encoded(word) for word in argv)


def _encoded(word: str) -> str:
    encoded = (c if c.isascii() and (c.isalnum() or c in "._") else "--" if c == "-" else _hex(c) for c in word)
    return "".join(encoded)


def _hex(character: str) -> str:
    return "".join(f"-{byte:02X}" for byte in character.encode("utf-8"))
