"""Which driver reads a source, to what a volume is restored, and the names volumes may have."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from lamella.base.errors import SourceError, UsageError
from lamella.sources.base import Keeping, PoolLimits, Source

if TYPE_CHECKING:
    from lamella.sources.target import Target

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

    path = path_of(identity, machine)
    if path is not None or not identity.startswith(b"lvm:"):
        return None if path is None else str(path)
    from lamella.sources.lvm import thin  # most sources are files

    return thin.place_of(identity)


def choose_target(
    path: Path, *, overwrite: bool, in_place: bool, pool: str | None = None, limits: PoolLimits | None = None
) -> Target:
    """Return the target that fits what is at `path`, or `lvm:VG/LV`, which may be a new volume in the thin pool `pool`.

    Raises UsageError for a device without `overwrite`, and for a pool where none is needed; SourceError if LVM cannot
    be asked.
    """
    if str(path).startswith("lvm:"):
        from lamella.sources.lvm.target import choose_thin

        return choose_thin(str(path), overwrite=overwrite, in_place=in_place, pool=pool, limits=limits)
    if pool is not None:
        raise UsageError("a pool is for a new thin volume only", obj=pool, hint="write --to lvm:VG/LV")
    from lamella.sources.local_target import BlockDevice, InPlaceFile, NewFile  # for restores only

    if not path.is_block_device():
        return InPlaceFile(path) if in_place else NewFile(path, overwrite=overwrite)
    if not overwrite:
        raise UsageError(f"{path} is a device and would be overwritten", obj=str(path), hint="add --overwrite")
    if not _is_thin(path):
        return BlockDevice(path)
    from lamella.sources.lvm.target import ThinDevice

    return ThinDevice(path)


def split_name(text: str) -> tuple[str | None, str]:
    """Split `NAME=SOURCE`; without a valid NAME before the first `=`, everything is the source."""
    name, equals, source = text.partition("=")
    fault = _fault_in(name) if equals else ""
    if fault and (source.startswith(("/", "lvm:")) or Path(source).exists()) and not Path(text).exists():
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


def _driver_of(text: str, keeping: Keeping) -> str:
    prefix, colon, _ = text.partition(":")
    if colon and prefix in _PREFIXES:
        return _PREFIXES[prefix]
    if not keeping.owner:
        return "file"
    path = Path(text)
    if path.is_block_device():
        return "lvm_thin" if _is_thin(path) else "file"
    from lamella.sources.cloning import driver_for  # what is restored needs none

    return driver_for(path)


def _is_thin(device: Path) -> bool:
    from lamella.sources.lvm import commands  # most volumes are no devices

    try:
        return commands.is_thin(device)
    except SourceError:  # whoever may not ask LVM can still use the device
        return False


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
