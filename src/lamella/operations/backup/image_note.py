"""Notes about volumes that are disk images of a special format: that they are, and which other files they need."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lamella.base.errors import SourceError, printable
from lamella.format.cursor import clipped
from lamella.format.image import Holds, ImageNote
from lamella.format.records import RawRecord
from lamella.operations.backup.stages import Frozen
from lamella.repository.repository import Repository
from lamella.sources.file import path_of
from lamella.sources.qcow2.chain import read_header

if TYPE_CHECKING:
    from lamella.sources.qcow2.header import Qcow2Header
    from lamella.sources.qcow2.source import FrozenImage


def image_note(
    repo: Repository, frozen: Frozen, sources: frozenset[bytes], warn: Callable[[str], None]
) -> tuple[RawRecord, ...]:
    """The note on a disk that was read out of its image, or on an image that is saved as the file it is.

    Warns of a file that such an image needs, and that is neither among the `sources` of this run, by their identities,
    nor in the repository.
    """
    if frozen.plan.driver == "qcow2":
        files = [clipped(os.fsdecode(one)) for link in cast("FrozenImage", frozen.volume).links for one in link.files]
        return (ImageNote(Holds.DISK, frozen.shape.size, "qcow2", tuple(files)).encode(),)
    return _note_of_file(repo, frozen, sources, warn)


def _note_of_file(
    repo: Repository, frozen: Frozen, sources: frozenset[bytes], warn: Callable[[str], None]
) -> tuple[RawRecord, ...]:
    machine = repo.host.machine
    path = path_of(frozen.source.identity, machine)
    try:
        header = None if path is None else read_header(path)
    except SourceError:
        return ()  # it only begins like an image
    if header is None or path is None:
        return ()
    names = [name for name in (header.backing, header.data_file) if name]
    saved = sources.union(one.identity for one in repo.catalogue.volumes.values() if one.snapshots)
    missing = [name for name in names if _identity(path, name, machine) not in saved]
    if missing:
        warn(_warning(frozen.plan.volume, path, header, missing))
    return (ImageNote(Holds.FILE, header.size, "qcow2", tuple(map(clipped, (path.name, *names)))).encode(),)


def _identity(path: Path, name: str, machine: str) -> bytes:
    place = (path.parent / name).resolve() if "\0" not in name else path
    return b"file:" + machine.encode() + b":" + os.fsencode(place)


def _warning(volume: str, path: Path, header: Qcow2Header, missing: list[str]) -> str:
    files = " and ".join(printable(name) for name in missing)
    return (
        f"{volume} is a qcow2 image that cannot be used without {files}, which no volume holds: save that file, too, "
        f"or what a guest sees of the disk: {volume}=qcow2:{path}"
    )
