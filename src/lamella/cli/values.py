"""Values as users write them on the command line, and as they are shown."""

from __future__ import annotations

import argparse
import re

from lamella.base.errors import LamellaError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgtp])(?:ib|b)?|b)?", re.IGNORECASE)
_POWERS = {"k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
MIN_RATE = 1024
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(text: str) -> int:
    """Bytes from `4096`, `64K`, `1.5GiB`; units are powers of 1024. Raises ArgumentTypeError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"not a size: {text!r}; write for example 64K, 20M or 1.5G")
    return int(float(match[1]) * (1 << _POWERS.get((match[2] or "").lower(), 0)))


def rate(text: str) -> int:
    """Bytes a second from `800K`, `5M` or `5M/s`. Raises ArgumentTypeError."""
    found = size(text.strip().removesuffix("/s"))
    if found < MIN_RATE:
        raise argparse.ArgumentTypeError(f"not a rate: {text!r}; it is at least {MIN_RATE} bytes a second")
    return found


def seconds(text: str) -> float:
    """A time of 0 seconds or more. Raises ArgumentTypeError."""
    found = number(text)
    if not 0 <= found <= 1e9:
        raise argparse.ArgumentTypeError(f"not a number of seconds: {text!r}")
    return found


def fingerprint(text: str) -> str:
    """A head fingerprint in its usual form; case, dashes and blanks do not matter. Raises ArgumentTypeError."""
    digits = re.sub(r"[\s-]", "", text).upper()
    if not re.fullmatch("[A-Z2-7]{16}", digits):
        raise argparse.ArgumentTypeError(f"not a head fingerprint: {text!r}; it has 16 letters and digits")
    return "-".join(digits[start : start + 4] for start in range(0, 16, 4))


def workers(text: str) -> int:
    """A number of threads from 1 to 64. Raises ArgumentTypeError."""
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"not a number of workers: {text!r}; it is 1 to 64")
    return int(text)


def compression(text: str) -> str:
    """How to compress: auto, 1 to 19, off or portable. Raises ArgumentTypeError."""
    from lamella.format.encoder import check_setting

    try:
        return check_setting(text)
    except LamellaError as error:
        raise argparse.ArgumentTypeError(f"{error.message}: {error.hint}") from error


def number(text: str) -> float:
    """A number. Raises ArgumentTypeError."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number: {text!r}") from None


def shown_bytes(count: float) -> str:
    """A number of bytes for people: `512 B`, `1.5 GiB`."""
    for unit in _UNITS[:-1]:
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {_UNITS[-1]}"


def shown_seconds(count: float) -> str:
    """A length of time for people: `0.8 s`, `2:05`, `3:00:10`."""
    if count < 60:
        return f"{count:.1f} s"
    minutes, rest = divmod(round(count), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def shown(text: str) -> str:
    """Text that cannot move the cursor, colour a terminal or reorder a line: unprintable characters are escaped.

    Names come from the repository: whoever can write there chooses them.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)
