"""QEMU's answers about its disks and the dirty bitmaps on them, and which bitmap may be believed.

A bitmap is believed if the ledger names it, it is on the disk's own node, QEMU records in it and has done so since it
was added, nobody else uses it, and disk and grid have the sizes they had. Any other bitmap is as good as none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lamella.base.errors import CheckpointLost, SourceError
from lamella.sources.driver import MomentToken
from lamella.sources.qmp.wire import Qmp

GRANULARITY: Final = 64 * 1024
"""Bytes that one bit stands for: the smallest chunk there is."""

_DEVICE: Final = re.compile(r"/machine/(?:peripheral|unattached)/([^/\[\]]+)(?:/.*)?|([^/\[\]]+)")
_MOST_DISKS: Final = 256
_LONGEST_NAME: Final = 200
_NO_UUID: Final = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True, slots=True)
class StartedBitmap(MomentToken):
    """A bitmap that records what changes from a moment on; its grid and the size of the disk at that moment."""

    bitmap: str
    granularity: int
    size: int


@dataclass(frozen=True, slots=True)
class DirtyBitmap:
    """A dirty bitmap as QEMU describes it."""

    name: str
    granularity: int
    fault: str
    """Why it does not hold all changes since it was added; empty if it does."""


@dataclass(frozen=True, slots=True)
class QemuDisk:
    """A disk of the machine. Its size is in bytes."""

    name: str
    node: str
    size: int
    lasting: bool
    """Whether bitmaps can be kept in the image, and outlive QEMU."""
    bitmaps: tuple[DirtyBitmap, ...]

    def named(self, prefix: str) -> list[DirtyBitmap]:
        """Its bitmaps whose names begin so."""
        return [bitmap for bitmap in self.bitmaps if bitmap.name.startswith(prefix)]

    def token(self, bitmap: DirtyBitmap) -> StartedBitmap:
        """The ledger's memory of a bitmap."""
        return StartedBitmap(bitmap.name, bitmap.granularity, self.size)

    def believed(self, text: str) -> str:
        """The name of the bitmap that a text of the ledger names. Raises CheckpointLost at any doubt."""
        token = StartedBitmap.parse(text)
        bitmap = next((one for one in self.bitmaps if one.name == token.bitmap), None)
        if bitmap is None:
            raise CheckpointLost("QEMU no longer has the bitmap that was started at the last backup")
        if bitmap.fault:
            raise CheckpointLost(f"the bitmap that was started at the last backup {bitmap.fault}")
        if token.size != self.size:
            raise CheckpointLost("the disk had another size when the bitmap was started")
        if token != self.token(bitmap):
            raise CheckpointLost("the bitmap has another granularity than the one that was started at the last backup")
        return bitmap.name


@dataclass(frozen=True, slots=True)
class Machine:
    """A virtual machine and its disks, by name."""

    uuid: str
    """Empty if it has none."""
    name: str
    disks: Mapping[str, QemuDisk]


def machine_of(qmp: Qmp) -> Machine:
    """Ask QEMU. Raises SourceError."""
    nodes = {row.get("node-name"): row for row in qmp.rows("query-named-block-nodes")}
    disks: dict[str, QemuDisk] = {}
    for row in qmp.rows("query-block"):
        inserted = row.get("inserted")
        if not isinstance(inserted, dict) or inserted.get("ro") or row.get("removable"):
            continue
        node = inserted.get("node-name")
        if isinstance(node, str) and node in nodes:
            disk = _disk(_name(row, node), node, nodes[node])
            disks[disk.name if disk.name not in disks else node] = disk
    if len(disks) > _MOST_DISKS:
        raise SourceError(f"this QEMU says that it has {len(disks)} disks")
    uuid, name = qmp.do("query-uuid").get("UUID"), qmp.do("query-name").get("name")
    uuid = uuid if isinstance(uuid, str) and uuid != _NO_UUID else ""
    return Machine(uuid[:_LONGEST_NAME], str(name or "")[:_LONGEST_NAME], disks)


def _disk(name: str, node: str, row: Mapping[str, Any]) -> QemuDisk:
    image = row.get("image")
    size = image.get("virtual-size") if isinstance(image, dict) else None
    if not isinstance(size, int) or not 0 <= size < 1 << 63:
        raise SourceError(f"QEMU does not say how large its disk {name} is")
    return QemuDisk(name, node, size, _lasting(row), tuple(_bitmaps(row)))


def _name(row: Mapping[str, Any], node: str) -> str:
    """The name that lasts longest: of the drive, else of the device, else of the node."""
    drive, device = row.get("device"), row.get("qdev")
    found = _DEVICE.fullmatch(device) if isinstance(device, str) else None
    name = drive if isinstance(drive, str) and drive else (found[1] or found[2]) if found else node
    return name[:_LONGEST_NAME]


def _lasting(row: Mapping[str, Any]) -> bool:
    """Whether the image is a qcow2 of the version that can hold bitmaps."""
    specific = row["image"].get("format-specific")
    data = specific.get("data") if isinstance(specific, dict) else None
    return row.get("drv") == "qcow2" and isinstance(data, dict) and data.get("compat") != "0.10"


def _bitmaps(row: Mapping[str, Any]) -> Iterator[DirtyBitmap]:
    rows = row.get("dirty-bitmaps")
    for one in rows if isinstance(rows, list) else []:
        name, granularity = (one.get("name"), one.get("granularity")) if isinstance(one, dict) else (None, None)
        if isinstance(name, str) and isinstance(granularity, int):
            yield DirtyBitmap(name, granularity, _fault(one))


def _fault(row: Mapping[str, Any]) -> str:
    if row.get("inconsistent"):
        return "was in use when QEMU was killed"
    if row.get("recording") is not True:
        return "is disabled"
    return "is used by another program" if row.get("busy") is not False else ""
