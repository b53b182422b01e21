"""Where a source is on this machine, by its identity."""

from __future__ import annotations

import os
from importlib import import_module

from lamella.sources.file import path_of


def place_of(identity: bytes, machine: str) -> str | None:
    """The text that `open_source` takes for the source with this identity; None if it is not on this machine.

    Raises SourceError if LVM, Ceph or ZFS cannot be asked.
    """
    if identity.startswith(exports := f"nbd:{machine}:".encode("ascii")):
        return identity.removeprefix(exports).decode("utf-8", "surrogateescape")
    if identity.startswith(images := f"qcow2:{machine}:".encode("ascii")):
        return "qcow2:" + os.fsdecode(identity.removeprefix(images))
    path = path_of(identity, machine)
    module = {b"lvm": "lvm.thin", b"rbd": "rbd.place", b"zfs": "zfs.place"}.get(identity.partition(b":")[0])
    if path is not None or module is None:
        return None if path is None else str(path)
    return import_module(f"lamella.sources.{module}").place_of(identity)  # type: ignore[no-any-return]
