"""Telling people: one message when a trouble begins, one when it is over (docs/guide/everyday.md)."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from lamella.base.clock import iso
from lamella.base.errors import LamellaError
from lamella.cli.everyday.profiles import Hooks, Notify
from lamella.cli.output import SCHEMA
from lamella.run.spawn import run, shell_words

_SECONDS = 60.0
_PING_SECONDS = 20.0
SENDMAIL = ("/usr/sbin/sendmail", "/usr/lib/sendmail")


@dataclass(frozen=True, slots=True)
class Message:
    """One event of a profile. `event`: before, after, success, failure, stale, over. `about` names the troubles."""

    event: str
    profile: str
    host: str
    time_ms: int
    text: str
    about: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def document(self) -> bytes:
        """The event as JSON, for commands."""
        fields = asdict(self)
        fields["time"] = iso(fields.pop("time_ms"))
        return json.dumps({"schema": SCHEMA, **fields}, indent=1).encode() + b"\n"

    @property
    def title(self) -> str:
        """One line for a letter's subject or a notification."""
        word = {"failure": "FAILED", "stale": "NO BACKUP", "over": "well again", "success": "done"}
        return f"Lamella {self.profile} on {self.host}: {word.get(self.event, self.event)}"


def run_hook(hooks: Hooks, message: Message) -> None:
    """Run the user's command for an event, if there is one. Raises LamellaError if it fails."""
    command = getattr(hooks, message.event, None)
    if command:
        run(shell_words(command), input=message.document, timeout_seconds=3600.0)


def notify(notices: Notify, message: Message, failed: Callable[[str], None]) -> bool:
    """Tell everybody who is to be told. Returns whether at least one of them was; `failed` hears about the others."""
    told = False
    for tell in _ways(notices, message):
        try:
            tell()
            told = True
        except LamellaError as error:
            failed(f"the message could not be delivered: {error.message}")
    return told


def _ways(notices: Notify, message: Message) -> Iterable[Callable[[], object]]:
    if notices.command is not None:
        words = shell_words(notices.command)
        yield lambda: run(words, input=message.document, timeout_seconds=_SECONDS)
    if notices.mail is not None:
        address = notices.mail
        yield lambda: _mail(address, message)
    if notices.desktop:
        yield lambda: _desktop(message)
    for place in notices.apprise:
        yield partial(_apprise, place, message)


def _apprise(place: str, message: Message) -> None:
    """Tell one of apprise's many services. Raises LamellaError without the address, which may hold a secret."""
    kind = place.partition("://")[0]
    if find_spec("apprise") is None:
        raise LamellaError("apprise is not installed: pip install apprise")
    try:
        apprise = import_module("apprise")  # half a second, and only where a message is to be sent by it
    except Exception as reason:  # half installed: whatever that raises, the run has a result to tell
        raise LamellaError(f"apprise cannot be loaded: {reason}; pip install --force-reinstall apprise") from reason
    receivers = apprise.Apprise()
    if not receivers.add(place):
        raise LamellaError(f"apprise does not understand an address that begins with {kind}://")
    with apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as said:
        sent = receivers.notify(title=message.title, body=message.text)
        lines = said.getvalue().splitlines()
    if not sent:
        raise LamellaError(f"apprise did not deliver to {kind}://: {lines[-1] if lines else 'it gave no reason'}")


def sendmail() -> str | None:
    """The program that takes letters here; None if there is none."""
    return next((path for path in SENDMAIL if shutil.which(path)), None) or shutil.which("sendmail")


def unheard(hooks: Hooks, notices: Notify) -> str:
    """Why nobody would hear of trouble; empty if somebody would, or nobody wants to."""
    lacks = []
    if notices.mail is not None and sendmail() is None:
        lacks.append(f"no mail reaches {notices.mail}: there is no sendmail on this machine")
    if notices.desktop and shutil.which("notify-send") is None:
        lacks.append("nothing is shown on the desktop: there is no notify-send on this machine")
    if notices.apprise and find_spec("apprise") is None:
        lacks.append("apprise is not installed: pip install apprise")
    some = [notices.desktop or None, notices.apprise or None]
    ways = [notices.command, notices.ping, hooks.failure, notices.mail, *some]
    if notices.nobody or sum(way is not None for way in ways) > len(lacks):
        return ""
    return "; ".join(["nobody is told of trouble", *lacks])


def _mail(address: str, message: Message) -> None:
    from email.message import EmailMessage  # a quarter of the time a command takes to start

    program = sendmail()
    if program is None:
        raise LamellaError("no mail can be sent: there is no sendmail on this machine")
    letter = EmailMessage()
    letter["To"], letter["Subject"] = address, " ".join(message.title.split())
    letter.set_content(f"{message.text}\n\n{message.document.decode()}")
    run([program, "-i", "-t"], input=letter.as_bytes(), timeout_seconds=_SECONDS)


def _desktop(message: Message) -> None:
    urgency = "critical" if message.event in {"failure", "stale"} else "normal"
    words = ["notify-send", "--app-name=Lamella", f"--urgency={urgency}", message.title, message.text]
    run(words, timeout_seconds=_SECONDS)


def ping(notices: Notify, result: str, failed: Callable[[str], None], body: bytes = b"") -> None:
    """Tell a monitor that a run began ("start"), ended well ("") or failed ("fail"), as healthchecks.io understands it.

    Whoever watches the pings notices also a machine that is switched off.
    """
    if notices.ping is None:
        return
    from urllib.error import URLError  # only where a monitor is configured
    from urllib.request import Request, urlopen

    address = notices.ping.rstrip("/") + (f"/{result}" if result else "")
    try:
        request = Request(address, data=body or None, headers={"User-Agent": "lamella"})
        with urlopen(request, timeout=_PING_SECONDS) as answer:
            answer.read(1024)
    except (URLError, OSError, ValueError) as error:
        failed(f"the monitor at {notices.ping} was not reached: {getattr(error, 'reason', error)}")
