"""Values as users write them on the command line."""

from __future__ import annotations

import argparse
import re

from lamella.base.errors import LamellaError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgtp])(?:ib|b)?|b)?", re.IGNORECASE)
_POWERS = {"k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
MIN_RATE = 1024


def size(text: str) -> int:
    """Bytes from `4096`, `64K`, `1.5GiB`; units are powers of 1024. Raises ArgumentTypeError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"not a size: {text!r}; write for example 64K, 20M or 1.5G")
    return int(float(match[1]) * (1 << _POWERS.get((match[2] or "").lower(), 0)))


def chunk_log2(text: str) -> int:
    """The binary logarithm of a chunk size from 64K to 4M. Raises ArgumentTypeError."""
    found = size(text)
    if found.bit_count() != 1 or not 1 << 16 <= found <= 1 << 22:
        raise argparse.ArgumentTypeError(f"not a chunk size: {text!r}; it is a power of two from 64K to 4M")
    return found.bit_length() - 1


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


def days(text: str) -> int:
    """A number of days from 1 to 36500. Raises ArgumentTypeError."""
    if not text.isdecimal() or not 1 <= int(text[:6]) <= 36500:
        raise argparse.ArgumentTypeError(f"not a number of days: {text!r}")
    return int(text)


def workers(text: str) -> int:
    """A number of threads from 1 to 64. Raises ArgumentTypeError."""
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"not a number of workers: {text!r}; it is 1 to 64")
    return int(text)


def compression(text: str) -> str:
    """A compression setting: auto, 1 to 19, off or portable. Raises ArgumentTypeError."""
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
