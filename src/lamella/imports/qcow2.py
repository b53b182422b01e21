"""The states that a qcow2 image keeps, as a history: those of the images below it, its own snapshots, and its present.

QEMU's own programs read it, told every file and format as for `qcow2:FILE` (docs/decisions/0058); its snapshots are
listed by qemu-img.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from lamella.base.clock import iso
from lamella.base.errors import SourceError
from lamella.imports.foreign_files import require_there
from lamella.imports.history import ForeignHistory, ForeignSession, ForeignVolume, claimed
from lamella.imports.programs import MOST_BYTES, decoded, text_of
from lamella.run.spawn import run
from lamella.sources.qcow2.chain import ChainLink, block_device, read_chain
from lamella.sources.qcow2.source import Qcow2Source

KIND: Final = "qcow2"
_LIST_MOST: Final = 32 << 20
_LIST_SECONDS: Final = 600.0
_SNAPSHOTS_MOST: Final = 65_536
_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""Ids that QEMU gives are numbers; an option of its programs can hold nothing more than this."""


def qcow2_history(path: Path, machine: str, backing_dirs: Sequence[Path] = ()) -> ForeignHistory:
    """The states of the disk in an image, the oldest first. Raises SourceError, NoRepository where no image is."""
    require_there(path, "image")
    links = read_chain(path, backing_dirs)
    place = path.resolve()
    identity = b"qcow2-history:" + machine.encode() + b":" + os.fsencode(place)
    warnings: list[str] = []
    sessions: list[ForeignSession] = []
    for number in reversed(range(len(links))):
        below = links[number:]
        name = below[0].path.name
        if below[0].header is None:
            warnings.append(f"{name} is raw, and no state by itself: what lies over it shows it")
            continue
        layers = [*_snapshots(below, warnings), _present(below[0], is_top=not number)]
        for layer, claim, snapshot, size in layers:
            source = Qcow2Source(below[0].path, machine, _allowed(below, backing_dirs), identity, snapshot=snapshot)
            volume = ForeignVolume(path.stem, source, size)
            sessions.append(ForeignSession(f"{name}@{layer}", (volume,), claim, _tags(layer)))
    return ForeignHistory(KIND, str(place), tuple(_numbered(sessions)), tuple(warnings))


_Layer = tuple[str, int | None, str, int]
"""A name, the claimed time, the id of the snapshot (empty for the present state), and the size of the disk."""


def _allowed(links: Sequence[ChainLink], backing_dirs: Sequence[Path]) -> tuple[Path, ...]:
    """Directories of files that were found to be allowed from the top: an image below may lie elsewhere."""
    return (*backing_dirs, *(one.parent for link in links for one in link.files))


def _present(link: ChainLink, *, is_top: bool) -> _Layer:
    """The state of an image as it is: of the top one as of its last change, for it may change again."""
    assert link.header is not None
    try:
        seconds = link.path.stat().st_mtime
    except OSError as error:
        raise SourceError(f"cannot read {link.path}: {error.strerror}", obj=str(link.path)) from error
    time = claimed(seconds)
    return (f"state of {iso(time or 0)}" if is_top else "base", time, "", link.header.size)


def _snapshots(links: Sequence[ChainLink], warnings: list[str]) -> Iterator[_Layer]:
    """The snapshots in the uppermost of these images, by their times."""
    image, header = links[0].path, links[0].header
    if header is None or not header.snapshots:
        return
    if header.snapshots > _SNAPSHOTS_MOST:
        raise SourceError(f"{image} has more snapshots than QEMU makes", obj=str(image))
    disk = "json:" + json.dumps(block_device(links[:1]))  # what lies below is not opened for a list
    words = ["qemu-img", "info", "--output=json", disk]
    told = decoded(run(words, timeout_seconds=_LIST_SECONDS, max_output=_LIST_MOST, error=SourceError), "qemu-img")
    rows = told.get("snapshots") if isinstance(told, dict) else None
    found: list[dict[str, Any]] = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    seen: set[str] = set()
    for row in sorted(found, key=lambda row: (_number(row, "date-sec"), _number(row, "date-nsec"))):
        id_ = text_of(row, "id")
        if not _ID.fullmatch(id_) or id_ in seen:
            warnings.append(f"{image.name}: a snapshot is left out: its id is {id_!a}")
            continue
        seen.add(id_)
        name = text_of(row, "name") or id_
        if _number(row, "vm-state-size"):
            warnings.append(f"{image.name}: the memory in snapshot {name!a} is not imported, only the disk")
        yield name, claimed(_number(row, "date-sec")), id_, header.size


def _number(row: dict[str, Any], key: str) -> int:
    found = row.get(key)
    return found if type(found) is int and 0 <= found <= MOST_BYTES else 0


def _tags(layer: str) -> tuple[str, ...]:
    return () if layer == "base" or layer.startswith("state of ") else (layer,)


def _numbered(sessions: Sequence[ForeignSession]) -> Iterator[ForeignSession]:
    """Two snapshots of an image may have one name."""
    seen: dict[str, int] = {}
    for session in sessions:
        seen[session.id] = count = seen.get(session.id, 0) + 1
        if count == 1:
            yield session
        else:
            yield ForeignSession(f"{session.id}~{count}", session.volumes, session.claimed_ms, session.tags)
