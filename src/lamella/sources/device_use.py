"""Who uses a block device, or the file behind a loop device: nothing that is in use is written to."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
SYS: Final = Path("/sys")
_OCTAL = re.compile(r"\\([0-7]{3})")


def uses_of_device(rdev: int, *, proc: Path = PROC, sys: Path = SYS) -> list[str]:
    """Return why the device with number `rdev` must not be written, one line each; empty if nobody uses it.

    Looks at the device, its partitions, and the devices built on any of them: mounts of this mount namespace, swap, and
    holders such as LVM, RAID and encryption. Other namespaces are seen by opening the device exclusively only.
    """
    numbers, found = _devices_on(_number(rdev), sys)
    found += [f"mounted at {where}" for number, where in _mounts(proc) if number in numbers]
    found += [f"used as swap: {where}" for number, where in _swaps(proc) if number in numbers]
    return list(dict.fromkeys(found))


def uses_of_file(path: Path, *, sys: Path = SYS) -> list[str]:
    """Return the loop devices that show the file at `path`, one line each."""
    # drivers/block/loop.c: the attribute holds the path as it was when the loop device was set up.
    found = []
    for attribute in sorted((sys / "block").glob("loop*/loop/backing_file")):
        try:
            same = path.samefile(attribute.read_text(errors="surrogateescape").removesuffix("\n"))
        except OSError:
            continue
        if same:
            found.append(f"shown as /dev/{attribute.parts[-3]}")
    return found


def _devices_on(number: str, sys: Path) -> tuple[set[str], list[str]]:
    """The numbers of the device and all that is built on it, and a line for each holder."""
    seen: set[str] = set()
    lines = []
    waiting = [number]
    while waiting:
        number = waiting.pop()
        if number in seen:
            continue
        seen.add(number)
        place = sys / "dev" / "block" / number
        partitions = [entry.parent for entry in place.glob("*/partition")]
        holders = list(place.glob("holders/*"))
        lines += [f"held by /dev/{holder.name}" for holder in holders]
        waiting += [(entry / "dev").read_text().strip() for entry in partitions + holders if (entry / "dev").exists()]
    return seen, lines


def _mounts(proc: Path) -> Iterator[tuple[str, str]]:
    """Yield (device number, mount point) for every mount (proc(5), mountinfo)."""
    for line in (proc / "self" / "mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        where = _unescaped(fields[4])
        yield fields[2], where
        # btrfs and others show a number of their own there; then only the source tells the device.
        source = _unescaped(fields[fields.index("-", 6) + 2])
        if source.startswith("/") and (number := _number_at(source)):
            yield number, where


def _swaps(proc: Path) -> Iterator[tuple[str, str]]:
    for line in (proc / "swaps").read_text(errors="surrogateescape").splitlines()[1:]:
        where = _unescaped(line.split()[0])
        if number := _number_at(where):
            yield number, where


def _number_at(path: str) -> str:
    """The device number of the block device at `path`; empty if there is none."""
    try:
        found = Path(path).stat()
    except OSError:
        return ""
    return _number(found.st_rdev) if stat.S_ISBLK(found.st_mode) else ""


def _number(rdev: int) -> str:
    return f"{os.major(rdev)}:{os.minor(rdev)}"


def _unescaped(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
