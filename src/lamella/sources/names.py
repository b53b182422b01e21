"""The names that volumes may have."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Final

from lamella.base.errors import UsageError

MAX_NAME_BYTES: Final = 128
"""Longest volume name, in bytes of UTF-8."""

_NOT_INSIDE: Final = frozenset("@=/")
_NOT_FIRST: Final = ".-^"
_UNNAMED: Final = "volume"
_SOURCES: Final = ("/", "libvirt:", "lvm:", "nbd", "qmp:", "rbd:", "zfs:", "qcow2:", "!")


def split_name(text: str) -> tuple[str | None, str]:
    """Split `NAME=SOURCE`; without a valid NAME before the first `=`, everything is the source."""
    if text.startswith(("nbd://", "nbd+unix://", "libvirt:", "qmp:", "rbd:")):
        return None, text
    name, equals, source = text.partition("=")
    fault = _fault_in(name) if equals else ""
    if fault and (source.startswith(_SOURCES) or Path(source).exists()) and not Path(text).exists():
        raise UsageError(f"not a volume name: {fault}", obj=name, hint="write NAME=SOURCE, or ./ before a path with =")
    return (name, source) if equals and not fault else (None, text)


def check_name(name: str) -> str:
    """Return `name` if a volume may be called so; raise UsageError saying why not."""
    fault = _fault_in(name)
    if fault:
        raise UsageError(f"not a volume name: {fault}", obj=name.encode("utf-8", "backslashreplace").decode())
    return name


def name_from(text: str) -> str:
    """Return the valid volume name nearest to `text`: `text` itself if it is one."""
    clean = "".join("_" if _forbidden(character) else character for character in text).lstrip(_NOT_FIRST)
    return clean.encode()[:MAX_NAME_BYTES].decode("utf-8", "ignore") or _UNNAMED


def _fault_in(name: str) -> str:
    """Why `name` is no volume name, or nothing."""
    if not name:
        return "it is empty"
    if name[0] in _NOT_FIRST:
        return f"it starts with {name[0]!r}"
    for character in name:
        if _forbidden(character):
            return f"it contains {character!r}"
    return "" if len(name.encode()) <= MAX_NAME_BYTES else f"it is longer than {MAX_NAME_BYTES} bytes"


def _forbidden(character: str) -> bool:
    # Cc: control characters. Cs: lone surrogates, Python's form of bytes that are not UTF-8; they cannot be encoded.
    return character in _NOT_INSIDE or unicodedata.category(character) in {"Cc", "Cs"}
