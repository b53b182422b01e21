"""Which driver reads a source, and the names volumes may have."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Final, cast

from lamella.base.errors import SourceError, UsageError
from lamella.sources._cloning import driver_for
from lamella.sources.base import Source
from lamella.sources.keeping import Keeping

MAX_NAME_BYTES: Final = 128
"""Longest volume name, in bytes of UTF-8."""

DRIVERS: Final = {
    "btrfs": "lamella.sources.reflink.btrfs:open_btrfs",
    "file": "lamella.sources.file:open_file",
    "lvm_thin": "lamella.sources.lvm.thin:open_lvm_thin",
    "reflink": "lamella.sources.reflink.reflink:open_reflink",
}
"""Driver name -> `module:factory`, imported on use; a factory takes the text, the machine's hash, a Keeping."""

_PREFIXES: Final = {"lvm": "lvm_thin", "zfs": "zfs"}
_NOT_INSIDE: Final = frozenset("@=/")
_NOT_FIRST: Final = ".-^"
_UNNAMED: Final = "volume"

_Factory = Callable[[str, str, Keeping], Source]


def open_source(
    text: str,
    *,
    machine: str,
    owner: str = "",
    driver: str | None = None,
    checkpoint_dir: Path | None = None,
    known_as: bytes = b"",
) -> Source:
    """Return the source that `text` means: a path, or `driver:place`; `driver` forces one and takes all of `text`.

    `machine` is the machine's hash, 16 hexadecimal digits; `owner` names whose checkpoints are whose, 8 hexadecimal
    digits, and without one the volume is read in place; `checkpoint_dir` says where checkpoint files go, instead of the
    top of the image's subvolume or mount; `known_as` is the identity of a volume that stays itself when its place
    changes. A path like `lvm:x` is written `./lvm:x`. Raises UsageError for an unknown driver or one that cannot read
    this, SourceError when there is nothing to read there.
    """
    return open_kept_source(text, machine, Keeping(owner, checkpoint_dir, known_as), driver)


def open_kept_source(text: str, machine: str, keeping: Keeping, driver: str | None = None) -> Source:
    """Like `open_source`, with everything there is to say about kept moments."""
    if not text or "\0" in text:
        raise UsageError("a source is a path, and not an empty one", obj=text)
    name = driver if driver is not None else _driver_of(text, keeping)
    place = DRIVERS.get(name)
    if place is None:
        raise UsageError(
            f"this version has no source driver {name!r}",
            obj=text,
            hint=f"drivers: {', '.join(sorted(DRIVERS))}; write ./{text} for a file of that name",
        )
    module, _, factory = place.partition(":")
    return cast(_Factory, getattr(import_module(module), factory))(text, machine, keeping)


def place_of(identity: bytes, machine: str) -> str | None:
    """The text that `open_source` takes for the source with this identity; None if it is not on this machine.

    Raises SourceError if LVM cannot be asked.
    """
    from lamella.sources.file import path_of
    from lamella.sources.lvm import thin as lvm_thin

    path = path_of(identity, machine)
    return lvm_thin.place_of(identity) if path is None else str(path)


def split_name(text: str) -> tuple[str | None, str]:
    """Split `NAME=SOURCE`; without a valid NAME before the first `=`, everything is the source."""
    name, equals, source = text.partition("=")
    return (name, source) if equals and not _fault_in(name) else (None, text)


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


def _driver_of(text: str, keeping: Keeping) -> str:
    prefix, colon, _ = text.partition(":")
    if colon and prefix in _PREFIXES:
        return _PREFIXES[prefix]
    if not keeping.owner:
        return "file"
    path = Path(text)
    return _device_driver(path) if path.is_block_device() else driver_for(path)


def _device_driver(path: Path) -> str:
    from lamella.sources.lvm import _lvm  # most sources are no devices

    try:
        return "lvm_thin" if _lvm.is_thin(path) else "file"
    except SourceError:  # whoever may not ask LVM can still read the device
        return "file"


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
