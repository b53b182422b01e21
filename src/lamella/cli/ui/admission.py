"""Who may speak to the page: one person with the token that the terminal showed, through no other site's page.

The token opens one session and is gone; a few wrong ones kill it. Comparisons take the same time whatever they find.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from threading import Lock

_TRIES = 5
_BYTES = 32


class PageAdmission:
    """The token, the session it opens, and the seal on the forms of that session."""

    def __init__(self, hosts: Iterable[str], cookie: str) -> None:
        self.token = secrets.token_urlsafe(_BYTES)
        self.cookie = cookie
        self.form_seal = secrets.token_urlsafe(_BYTES)
        """In every form: another site cannot read it."""
        self._hosts = frozenset(hosts)
        self._session = secrets.token_urlsafe(_BYTES)
        self._tries = _TRIES
        self._lock = Lock()

    def admit(self, token: str) -> str | None:
        """The session's secret for the token, once. None for anything else; after a few of these always."""
        with self._lock:
            if self._tries <= 0:
                return None
            if same(token, self.token):
                self._tries = 0
                return self._session
            self._tries -= 1
            return None

    @property
    def token_is_dead(self) -> bool:
        """Whether the token opens nothing any more."""
        return self._tries <= 0

    def knows_host(self, host: str) -> bool:
        """Whether the browser believes to speak to this server: a name that was turned to this address is another."""
        return host in self._hosts if self._hosts else _is_local(host)

    def knows_session(self, cookies: str) -> bool:
        """Whether a Cookie header holds the session's secret."""
        found = [one.strip().partition("=") for one in cookies.split(";")]
        return any(name == self.cookie and same(value, self._session) for name, _, value in found)


def same(one: str, other: str) -> bool:
    """Whether two texts are equal, in constant time."""
    return hmac.compare_digest(one.encode("utf-8", "surrogateescape"), other.encode())


def _is_local(host: str) -> bool:
    """Behind a socket file a tunnel chooses the port."""
    name, colon, port = host.rpartition(":")
    return (name if colon else host) in ("localhost", "127.0.0.1") and (not colon or port.isdecimal())
