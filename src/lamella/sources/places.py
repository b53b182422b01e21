"""Where a source is on this machine, by its identity."""

from __future__ import annotations

from lamella.sources.file import path_of


def place_of(identity: bytes, machine: str) -> str | None:
    """The text that `open_source` takes for the source with this identity; None if it is not on this machine.

    Raises SourceError if LVM cannot be asked.
    """
    if identity.startswith(exports := f"nbd:{machine}:".encode("ascii")):
        return identity.removeprefix(exports).decode("utf-8", "surrogateescape")
    path = path_of(identity, machine)
    if path is not None or not identity.startswith(b"lvm:"):
        return None if path is None else str(path)
    from lamella.sources.lvm import thin  # most sources are files

    return thin.place_of(identity)
