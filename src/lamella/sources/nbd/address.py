"""NBD addresses: `nbd+unix:///EXPORT?socket=PATH` and `nbd://HOST:PORT/EXPORT`, with the names of bitmaps. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from lamella.base.errors import UsageError
from lamella.base.nbd import DIRTY_BITMAP, MAX_NAME

_PORT: Final = 10809
_UNIX, _TCP = "nbd+unix", "nbd"
_PARTS: Final = {_UNIX: {"socket", "bitmap", "next"}, _TCP: {"bitmap", "next"}}


@dataclass(frozen=True, slots=True)
class NbdAddress:
    """Where an export is, and which bitmaps concern it."""

    export: str
    socket: str = ""
    """The absolute path of a unix socket; empty for TCP."""
    host: str = ""
    port: int = 0
    bitmap: str = ""
    """The bitmap of the changes since the snapshot before; empty without one."""
    next: str = ""
    """The bitmap of the changes from this export's moment on; empty without one."""

    @property
    def text(self) -> str:
        """The address without bitmaps: what stays the same from one backup to the next."""
        export = quote(self.export, safe="")
        if self.socket:
            return f"{_UNIX}:///{export}?socket={quote(self.socket)}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{_TCP}://{host}:{self.port}/{export}"


def parse(text: str) -> NbdAddress:
    """Raises UsageError, saying what is wrong."""
    try:
        found = urlsplit(text)
        port, pairs = found.port, parse_qsl(found.query, keep_blank_values=True, strict_parsing=bool(found.query))
    except ValueError as reason:
        raise _wrong(text, str(reason)) from None
    given = dict(pairs)
    unknown = sorted(given.keys() - _PARTS.get(found.scheme, set()))
    if found.scheme not in _PARTS or found.fragment or found.username is not None:
        raise _wrong(text, "it does not have the form of an NBD address")
    if unknown or len(given) != len(pairs):
        raise _wrong(text, f"{unknown[0] if unknown else 'one thing'} may not be there, or not twice")
    address = NbdAddress(
        unquote(found.path.removeprefix("/")),
        given.get("socket", ""),
        found.hostname or "",
        (port or _PORT) if found.scheme == _TCP else 0,
        given.get("bitmap", ""),
        given.get("next", ""),
    )
    fault = _fault(found.scheme, address, given)
    if fault:
        raise _wrong(text, fault)
    return address


def _fault(scheme: str, address: NbdAddress, given: dict[str, str]) -> str:
    names = (address.export, DIRTY_BITMAP + address.bitmap, DIRTY_BITMAP + address.next)
    if any(not value for value in given.values()):
        return "a value is empty"
    if scheme == _UNIX and (address.host or not address.socket.startswith("/")):
        return "it needs no host, but socket= with an absolute path"
    if scheme == _TCP and not address.host:
        return "it names no host"
    if any(len(name.encode("utf-8", "surrogateescape")) > MAX_NAME for name in names) or "\0" in "".join(names):
        return "a name is too long, or has a zero in it"
    return "bitmap and next are the same" if address.bitmap and address.bitmap == address.next else ""


def _wrong(text: str, why: str) -> UsageError:
    hint = "write nbd+unix:///EXPORT?socket=PATH or nbd://HOST:PORT/EXPORT, with &bitmap=NAME or ?bitmap=NAME if wanted"
    return UsageError(f"not an NBD address: {text}: {why}", obj=text, hint=hint)
