"""Stores in another qube, reached through qrexec (Qubes OS).

`qubes://VM/NAME` calls the service `lamella.Repo+NAME` that is installed in the qube; `qubes://VM//abs/path` brings the
server along, through `qubes.VMExec`, without a shell and without a file. `qubes-ssh://VM:[user@]host[:port]/path` does
the same with ssh started inside the qube: its keys and its network are the qube's.
"""

from __future__ import annotations

import re

from lamella.base.errors import UsageError
from lamella.stores.pipe import bundle, ssh
from lamella.stores.pipe.calling import call_service, run_in
from lamella.stores.pipe.client import PipeStore
from lamella.stores.pipe.frames import Hello
from lamella.stores.pipe.link import Route

_QUBE = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,30}")
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,48}")
SERVICE = "lamella.Repo"
_FORM = "write qubes://VM/NAME or qubes://VM//absolute/path"
_SSH_FORM = "write qubes-ssh://VM:[user@]host[:port]/absolute/path, or qubes-ssh://VM/NAME"
_REFUSALS = ("Request refused", "Permission denied", "Host key verification failed", "denied by policy")


def open_qubes(place: str, /, *, create: bool, read_only: bool) -> PipeStore:
    """Open `//VM/NAME` or `//VM//abs/path`. Raises UsageError, NoRepository, StoreRefused, StoreUnavailable."""
    qube, path = _split(place, "qubes", _FORM)
    hello = Hello(path, create, read_only, True)
    if path.startswith("/"):
        return PipeStore(f"qubes:{place}", Route(run_in(qube, bundle.ARGV), bundle.boot(), False, _REFUSALS), hello)
    if not _NAME.fullmatch(path):
        raise UsageError("not a name of a service", obj=f"qubes:{place}", hint=_FORM)
    return PipeStore(f"qubes:{place}", Route(call_service(qube, f"{SERVICE}+{path}"), b"", False, _REFUSALS), hello)


def open_qubes_ssh(place: str, /, *, create: bool, read_only: bool) -> PipeStore:
    """Open `//VM:[user@]host[:port]/path`. Raises UsageError, NoRepository, StoreRefused, StoreUnavailable."""
    qube, colon, where = place.removeprefix("//").partition(":")
    if not colon:
        return open_qubes(place, create=create, read_only=read_only)
    url = f"qubes-ssh:{place}"
    if not place.startswith("//") or not _QUBE.fullmatch(qube):
        raise UsageError("not a place behind a qube", obj=url, hint=_SSH_FORM)
    host, path = ssh.parse(f"//{where}", "ssh")
    options = (word for name, value in ssh.OPTIONS.items() for word in ("-o", f"{name}={value}"))
    argv = ("ssh", "-T", "-x", "-a", "-o", "BatchMode=yes", *options, *host.words(), bundle.COMMAND)
    refusals = (*ssh.REFUSALS, *_REFUSALS)
    route = Route(run_in(qube, argv), bundle.boot(), False, refusals, ssh.CONNECT_SECONDS, distant=True)
    return PipeStore(url, route, Hello(path, create, read_only, True))


def _split(place: str, scheme: str, form: str) -> tuple[str, str]:
    qube, slash, path = place.removeprefix("//").partition("/")
    if not place.startswith("//") or not _QUBE.fullmatch(qube) or not slash or not path:
        raise UsageError("not a place in a qube", obj=f"{scheme}:{place}", hint=form)
    return qube, path
