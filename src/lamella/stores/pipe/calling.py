"""Calling a service of another qube through qrexec: the program that does it, from dom0 or from a qube (Qubes OS)."""

from __future__ import annotations

import shutil

from lamella.base.errors import StoreRefused, StoreUnavailable
from lamella.run import spawn

_EXEC = "qubes.VMExec"
_START_SECONDS = 300.0


def run_in(qube: str, argv: tuple[str, ...], user: str = "DEFAULT") -> tuple[str, ...]:
    """The program that runs another one in a qube, without a shell and without a file. Raises StoreRefused.

    Only dom0 chooses the `user` there; for other qubes its policy does.
    """
    return call_service(qube, _words(argv), user)


def call_service(qube: str, service: str, user: str = "DEFAULT") -> tuple[str, ...]:
    """The program that calls a service: dom0's own, or that of a qube, whose calls dom0's policy decides on."""
    dom0 = _program("qrexec-client")
    if dom0 is not None:
        _start(qube)
        return (dom0, "-d", qube, f"{user}:QUBESRPC {service} dom0")
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
