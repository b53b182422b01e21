"""Where the bytes of a qube's volume lie right now, by the driver of its pool.

A start gives a volume another file or LV to write to, and a shutdown renames it back: a place is good for one look and
is never remembered (layouts as qubesd's storage drivers make them, Qubes OS 4.2 and 4.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lamella.base.errors import SourceError
from lamella.qubes.inventory import Pool, Volume

CHECKPOINTS: Final = ".lamella"
"""Directory of kept moments at the top of a file pool: beside the qube's own files they would go when it is removed."""


@dataclass(frozen=True, slots=True)
class Place:
    """What to read: `text` for the source registry, `committed` if it is the state of the last orderly shutdown."""

    text: str
    committed: bool
    checkpoint_dir: Path | None = None


def live_place(pool: Pool, volume: Volume) -> Place:
    """What a running qube writes to, or what a halted one left. Raises SourceError."""
    return _driver(pool)(pool, volume, True)


def committed_place(pool: Pool, volume: Volume) -> Place:
    """The state of the last shutdown. Raises SourceError where the pool keeps none while the qube runs."""
    return _driver(pool)(pool, volume, False)


def _reflink(pool: Pool, volume: Volume, live: bool) -> Place:
    directory = Path(pool.config["dir_path"])
    base = str(directory / volume.vid)
    kept = directory / CHECKPOINTS
    dirty, clean = Path(base + "-dirty.img"), Path(base + ".img")
    if live and dirty.exists():
        return Place(str(dirty), False, kept)
    if clean.exists():
        return Place(str(clean), True, kept)
    if dirty.exists():
        raise SourceError(f"{volume.vid} keeps no state of its last shutdown while it runs", obj=volume.vid)
    raise SourceError(f"{clean} does not exist", obj=str(clean))


def _file(pool: Pool, volume: Volume, live: bool) -> Place:
    # The copy-on-write file beside the image holds what was overwritten: the image itself is what the qube writes to.
    image = Path(pool.config["dir_path"]) / f"{volume.vid}.img"
    running = Path(f"{image.with_suffix('')}-cow.img").exists()
    if running and not live:
        raise SourceError(
            f"{volume.vid} keeps no state of its last shutdown that can be read while it runs", obj=str(image)
        )
    return Place(str(image), not running, Path(pool.config["dir_path"]) / CHECKPOINTS)


def _lvm_thin(pool: Pool, volume: Volume, live: bool) -> Place:
    device = Path("/dev") / volume.vid
    snap = Path(f"{device}-snap")
    if live and snap.exists():
        return Place(f"lvm:{volume.vid}-snap", False)
    if device.exists():
        return Place(f"lvm:{volume.vid}", True)
    # While a shutdown commits, the old state has its new name already and the new state not yet.
    backs = sorted(device.parent.glob(f"{device.name}-*-back"), key=lambda path: _epoch(path.name))
    if not backs:
        raise SourceError(f"there is no LV {volume.vid}", obj=volume.vid)
    return Place(f"lvm:{device.parent.name}/{backs[-1].name}", True)


def _zfs(pool: Pool, volume: Volume, live: bool) -> Place:
    return Place(f"/dev/zvol/{volume.vid}", False)


def _epoch(name: str) -> int:
    digits = name.removesuffix("-back").rpartition("-")[2]
    return int(digits) if digits.isdecimal() else 0


_DRIVERS: Final[dict[str, Callable[[Pool, Volume, bool], Place]]] = {
    "file-reflink": _reflink,
    "file": _file,
    "lvm_thin": _lvm_thin,
    "zfs": _zfs,
}


def _driver(pool: Pool) -> Callable[[Pool, Volume, bool], Place]:
    found = _DRIVERS.get(pool.driver)
    if found is None:
        raise SourceError(f"pool {pool.name} has the driver {pool.driver!r}, which lamella cannot read", obj=pool.name)
    return found
