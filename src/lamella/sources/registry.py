"""Which driver reads a source."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Final, cast

from lamella.base.errors import UsageError
from lamella.sources.base import Keeping, Source

DRIVERS: Final = {
    "btrfs": "lamella.sources.reflink.btrfs:open_btrfs",
    "file": "lamella.sources.file:open_file",
    "libvirt": "lamella.sources.virt.source:open_libvirt",
    "lvm_thin": "lamella.sources.lvm.thin:open_lvm_thin",
    "nbd": "lamella.sources.nbd.source:open_nbd",
    "qcow2": "lamella.sources.qcow2.source:open_qcow2",
    "qmp": "lamella.sources.qmp.source:open_qmp",
    "rbd": "lamella.sources.rbd.source:open_rbd",
    "reflink": "lamella.sources.reflink.reflink:open_reflink",
    "zfs": "lamella.sources.zfs.source:open_zfs",
}
"""Driver name -> `module:factory`, imported on use; a factory takes the text, the machine's hash, a Keeping."""

_PREFIXES = {"lvm": "lvm_thin", "nbd+unix": "nbd"} | {k: k for k in ("libvirt", "nbd", "qcow2", "qmp", "rbd", "zfs")}
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
    """Like `open_source`, with everything there is to say about checkpoints."""
    if not text or "\0" in text:
        raise UsageError("a source is a path, and not an empty one", obj=text)
    name = driver if driver is not None else _driver_of(text, keeping)
    if (place := DRIVERS.get(name)) is None:
        hint = f"drivers: {', '.join(sorted(DRIVERS))}; write ./{text} for a file of that name"
        raise UsageError(f"this version has no source driver {name!r}", obj=text, hint=hint)
    module, _, factory = place.partition(":")
    return cast(_Factory, getattr(import_module(module), factory))(text, machine, keeping)


def _driver_of(text: str, keeping: Keeping) -> str:
    prefix, colon, _ = text.partition(":")
    if colon and prefix in _PREFIXES:
        return _PREFIXES[prefix]
    if not keeping.owner:
        return "file"
    if (path := Path(text)).is_block_device():
        from lamella.sources.lvm.commands import may_be_thin  # most volumes are no devices

        return "lvm_thin" if may_be_thin(path) else "file"
    from lamella.sources.cloning import driver_for  # what is restored needs none

    return driver_for(path)
