"""LVM as its commands report it, and the commands that change it (lvm(8), lvmreport(7), dmsetup(8)).

Queries may be killed at their deadline. Changes may not: an LVM command that is interrupted can leave a device
suspended, and whoever uses it hanging. Needs root, like LVM.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lamella.base.errors import SourceError, UsageError
from lamella.run.spawn import run, run_unbroken

QUERY_SECONDS: Final = 120.0
CHANGE_SECONDS: Final = 600.0

_SYS: Final = Path("/sys/dev/block")
_NAME: Final = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,126}")
_MAX_REPORT: Final = 64 << 20
_COLUMNS: Final = (
    "vg_name,vg_uuid,vg_free,vg_extent_size,lv_name,lv_uuid,lv_size,lv_attr,segtype,pool_lv,pool_lv_uuid,thin_id,transaction_id,"
    "data_percent,discards,lv_tags,lv_suspended,lv_time"
)


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """One row of `lvs`. Sizes in bytes; UUIDs as LVM writes them, with dashes."""

    vg: str
    vg_uuid: str
    vg_free: int
    extent: int
    name: str
    uuid: str
    size: int
    attributes: str
    kind: str
    """Type of its segments: `thin`, `thin-pool`, `linear` and so on."""
    pool: str
    pool_uuid: str
    thin_id: int
    """Within its pool; -1 for what is no thin volume."""
    transaction: int
    """Of the pool when the thin volume was made, or now, for a pool; -1 for everything else."""
    data_percent: float
    """Share of it that is mapped, as far as it is active; 0 else."""
    discards: str
    tags: frozenset[str]
    suspended: bool
    made_ms: int

    @property
    def text(self) -> str:
        """`VG/LV`."""
        return f"{self.vg}/{self.name}"

    @property
    def mapped_bytes(self) -> int:
        """About how much of it is mapped, as far as it is active."""
        return int(self.size * self.data_percent / 100)

    @property
    def writable(self) -> bool:
        """Whether its permission is to write (lvs(8), lv_attr: second character)."""
        return self.attributes[1:2] != "r"

    @property
    def open(self) -> bool:
        """Whether anything has its device open."""
        return self.attributes[5:6] == "o"


def report(vg: str | None = None) -> list[LogicalVolume]:
    """All logical volumes that are not internal, of one volume group or of all. Raises SourceError."""
    command = ["lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "--config", 'report/time_format="%s"']
    command += ["--options", _COLUMNS, *([] if vg is None else [vg])]
    found = run(command, timeout_seconds=QUERY_SECONDS, max_output=_MAX_REPORT, error=SourceError)
    try:
        rows = json.loads(found)["report"][0]["lv"]
        return [_row(row) for row in rows]
    except (ValueError, KeyError, IndexError, TypeError) as reason:
        raise SourceError(f"lvs wrote a report that cannot be read: {reason}", obj=vg or "") from reason


def _row(row: dict[str, Any]) -> LogicalVolume:
    return LogicalVolume(
        vg=row["vg_name"],
        vg_uuid=row["vg_uuid"],
        vg_free=int(row["vg_free"]),
        extent=int(row["vg_extent_size"]),
        name=row["lv_name"],
        uuid=row["lv_uuid"],
        size=int(row["lv_size"]),
        attributes=row["lv_attr"],
        kind=row["segtype"],
        pool=row["pool_lv"],
        pool_uuid=row["pool_lv_uuid"],
        thin_id=int(row["thin_id"] or -1),
        transaction=int(row["transaction_id"] or -1),
        data_percent=float(row["data_percent"] or 0),
        discards=row["discards"],
        tags=frozenset(filter(None, row["lv_tags"].split(","))),
        suspended=row["lv_suspended"] == "suspended",
        made_ms=1000 * int(row["lv_time"] or 0),
    )


def volume_named(rows: Sequence[LogicalVolume], name: str) -> LogicalVolume | None:
    """The logical volume of that name among those of one volume group."""
    return next((row for row in rows if row.name == name), None)


def change(*words: str, error: type[SourceError] = SourceError) -> None:
    """Run an LVM command that changes something; it is never interrupted. Raises `error`."""
    command, *rest = words
    run_unbroken([command, "--quiet", *rest], timeout_seconds=CHANGE_SECONDS, error=error)


def message(device: str, text: str) -> None:
    """Send a message to a device-mapper device; never interrupted. Raises SourceError."""
    run_unbroken(["dmsetup", "message", device, "0", text], timeout_seconds=CHANGE_SECONDS, error=SourceError)


def table_of(device: str) -> list[str]:
    """The words of a device's only table line. Raises SourceError if there is not exactly one."""
    found = run(["dmsetup", "table", device], timeout_seconds=QUERY_SECONDS, error=SourceError)
    lines = found.decode("ascii", "replace").splitlines()
    if len(lines) != 1:
        raise SourceError(f"the device {device} has {len(lines)} tables instead of one", obj=device)
    return lines[0].split()


def device_name(vg: str, lv: str) -> str:
    """The name by which device-mapper knows a logical volume: dashes doubled, one dash between (lvm(8))."""
    return "-".join(part.replace("-", "--") for part in (vg, lv))


def node_of(vg: str, lv: str) -> Path:
    """The device node of an active logical volume."""
    return Path("/dev/mapper") / device_name(vg, lv)


def kernel_uuid(rdev: int) -> str:
    """The UUID that device-mapper gives the device with this number; empty for other devices."""
    return _of_device(rdev, "uuid")


def kernel_name(rdev: int) -> str:
    """The name that device-mapper gives the device with this number; empty for other devices."""
    return _of_device(rdev, "name")


def _of_device(rdev: int, what: str) -> str:
    try:
        return (_SYS / f"{os.major(rdev)}:{os.minor(rdev)}" / "dm" / what).read_text("utf-8").strip()
    except (OSError, ValueError):
        return ""


def is_device_of(volume: LogicalVolume, rdev: int) -> bool:
    """Whether the device with this number is the logical volume itself, not one of its layers."""
    return kernel_uuid(rdev) == "LVM-" + (volume.vg_uuid + volume.uuid).replace("-", "")


def names_at(path: Path) -> tuple[str, str] | None:
    """Volume group and name of the logical volume whose device is at a path, as the kernel says; None for others."""
    try:
        rdev = path.stat().st_rdev if path.is_block_device() else 0
    except OSError:
        return None
    if not kernel_uuid(rdev).startswith("LVM-"):
        return None
    # A single dash is the border; no name begins or ends with one that is not doubled.
    parts = re.split(r"(?<!-)-(?!-)", kernel_name(rdev).replace("--", "\0"))
    if len(parts) != 2:
        return None
    vg, lv = (part.replace("\0", "-") for part in parts)
    return vg, lv


def is_thin(path: Path) -> bool:
    """Whether the device at a path is a thin volume. Raises SourceError if LVM cannot be asked."""
    names = names_at(path)
    volume = None if names is None else volume_named(report(names[0]), names[1])
    return volume is not None and volume.kind == "thin" and is_device_of(volume, path.stat().st_rdev)


def may_be_thin(path: Path) -> bool:
    """Whether the device at a path is a thin volume, as far as this process may ask LVM."""
    try:
        return is_thin(path)
    except SourceError:  # whoever may not ask LVM can still use the device
        return False


def parsed(text: str) -> tuple[str, str]:
    """Volume group and name from `VG/LV`, with or without `/dev/` before it. Raises UsageError."""
    vg, _, lv = text.removeprefix("/dev/").partition("/")
    if not (_NAME.fullmatch(vg) and _NAME.fullmatch(lv)) or {vg, lv} & {".", ".."}:
        raise UsageError(f"not a logical volume: {text}", obj=text, hint="write lvm:VG/LV")
    return vg, lv
