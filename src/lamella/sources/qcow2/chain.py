"""Which files a qcow2 image is made of, and whether they may be opened (docs/decisions/0058).

A header may name any file of the host, and QEMU would open it: /etc/shadow, a device, a URL, or `json:` with any driver
of QEMU. Whoever can write a header could have another machine's disk saved as a part of its own. So no name is followed
that is not a plain path, below the directory of the image or below one that the administrator allowed; every format is
the one that is written down, none is guessed; and QEMU is told the whole chain, so that it follows no header either.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lamella.base.errors import SourceError, printable
from lamella.sources.qcow2.header import MOST_BYTES, Qcow2Header, is_qcow2, parse_header

MOST_LINKS: Final = 64
PROTOCOL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True, slots=True)
class ChainLink:
    """One file of a chain, by its path without links; `header` is None for a raw one."""

    path: Path
    header: Qcow2Header | None
    data_file: Path | None = None
    """Where its clusters lie, if not in itself."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it is made of."""
        return (self.path,) if self.data_file is None else (self.path, self.data_file)


def read_header(path: Path) -> Qcow2Header | None:
    """The header of an image; None for a file that does not begin as one. Raises SourceError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            if not (stat.S_ISREG(os.fstat(fd).st_mode) or stat.S_ISBLK(os.fstat(fd).st_mode)):
                raise SourceError(f"{path} is neither a file nor a block device", obj=str(path))
            start = os.pread(fd, MOST_BYTES, 0)
        finally:
            os.close(fd)
    except OSError as reason:
        raise SourceError(f"cannot read {path}: {reason.strerror}", obj=str(path)) from reason
    return parse_header(start, str(path)) if is_qcow2(start) else None


def read_chain(path: Path, allowed: Sequence[Path]) -> list[ChainLink]:
    """The image at `path` and what lies below it, the image first.

    Other files must lie below the directory of the image or below one of `allowed`, links followed. Raises SourceError.
    """
    # A link leads from where the administrator put it; QEMU takes relative names from there, too.
    roots = [path.absolute().parent.resolve(), path.resolve().parent, *(one.resolve() for one in allowed)]
    links: list[ChainLink] = []
    place, form = path.absolute(), "qcow2"
    while True:
        link = _link(place, form, roots)
        links.append(link)
        header = link.header
        if header is None or not header.backing:
            return links
        if len(links) >= MOST_LINKS:
            raise SourceError(f"{path}: more than {MOST_LINKS} images lie below each other", obj=str(path))
        if header.backing_format not in ("raw", "qcow2"):
            said = f"is {printable(header.backing_format)}" if header.backing_format else "is not written in it"
            help_ = "qemu-img rebase -u -b FILE -F FORMAT IMAGE writes it down"
            raise SourceError(
                f"{place}: the format of its backing file {said}, and Lamella does not guess; {help_}", obj=str(place)
            )
        place, form = _other(place, header.backing, roots), header.backing_format
        if any(place.resolve() in one.files for one in links):
            raise SourceError(f"{path}: its backing files form a circle", obj=str(path))


def _link(place: Path, form: str, roots: Sequence[Path]) -> ChainLink:
    if form == "raw":
        _require_volume(place)
        return ChainLink(place.resolve(), None)
    header = read_header(place)
    if header is None:
        raise SourceError(f"{place} is no qcow2 image", obj=str(place))
    for wrong in _faults(header):
        raise SourceError(f"{place} {wrong}", obj=str(place))
    if not header.external_data:
        return ChainLink(place.resolve(), header)
    data = _other(place, header.data_file, roots)
    _require_volume(data)
    return ChainLink(place.resolve(), header, data.resolve())


def _faults(header: Qcow2Header) -> list[str]:
    faults = []
    if header.encryption:
        faults.append(f"is encrypted ({header.encryption}): save the file as it is")
    if header.corrupt:
        faults.append("is marked as corrupt; see: qemu-img check")
    if header.unknown_features:
        faults.append(f"uses features that are not known here (bits {header.unknown_features:#x})")
    if header.external_data and not header.data_file:
        faults.append("does not say which file its data lie in")
    return faults


def _other(image: Path, name: str, roots: Sequence[Path]) -> Path:
    """Another file that an image names, as QEMU finds it, if it may be opened."""
    shown = printable(name)
    if PROTOCOL.match(name) or not name:
        raise SourceError(f"{image} needs {shown!r}, which is no plain path: it is not opened", obj=str(image))
    place = image.parent / name
    if not any(place.resolve().is_relative_to(root) for root in roots):
        folder = printable(str(place.resolve().parent))
        allow = f'if it is meant to be, write backing_dirs = ["{folder}"] below [backup]'
        raise SourceError(f"{image} needs {shown}, which lies elsewhere: it is not opened; {allow}", obj=str(image))
    return place


def _require_volume(place: Path) -> None:
    try:
        mode = place.stat().st_mode
    except OSError as reason:
        raise SourceError(f"cannot read {place}: {reason.strerror}", obj=str(place)) from reason
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise SourceError(f"{place} is neither a file nor a block device", obj=str(place))


def block_device(links: Sequence[ChainLink]) -> dict[str, Any]:
    """The chain as QEMU's block layer takes it: with every file, every format, and an end (QAPI: BlockdevOptions)."""
    node: dict[str, Any] | None = None
    for link in reversed(links):
        if link.header is None:
            node = {"driver": "raw", "file": _file(link.path)}
            continue
        node = {"driver": "qcow2", "file": _file(link.path), "backing": node}
        if link.data_file is not None:
            node["data-file"] = {"driver": "raw", "file": _file(link.data_file)}
    assert node is not None
    return node


def _file(path: Path) -> dict[str, Any]:
    return {"driver": "host_device" if path.is_block_device() else "file", "filename": os.fspath(path)}
