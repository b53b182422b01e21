"""ZFS as its commands report it, and the commands that change it (zfs(8), zpool(8)). Needs root, or `zfs allow`."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lamella.base.errors import SourceError, UsageError
from lamella.run.spawn import run

QUERY_SECONDS: Final = 120.0
CHANGE_SECONDS: Final = 600.0

_MAX_LIST: Final = 64 << 20
_MAX_NAME: Final = 256
_BLKZNAME: Final = 2 << 30 | _MAX_NAME << 16 | 0x12 << 8 | 125  # OpenZFS, include/sys/fs/zfs.h
_DEVICE_SECONDS: Final = 60.0
_BUSY_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class ZfsMoment:
    """A snapshot or a bookmark. Its bookmark has the GUID and the transaction group of a snapshot."""

    mark: str
    """`@` or `#`."""
    name: str
    """The text after the mark."""
    guid: int
    created: int
    """Transaction group of the pool."""


def parsed(text: str) -> str:
    """The name of a volume from `zfs:POOL/VOL`. Raises UsageError."""
    name = text.removeprefix("zfs:")
    parts = name.split("/")
    if len(parts) < 2 or not all(parts) or set(name) & set("@#% \t\n") or name.startswith("-"):
        raise UsageError(f"not a volume of ZFS: {text}", obj=text, hint="write zfs:POOL/VOL")
    return name


def facts(name: str, *properties: str) -> dict[str, str]:
    """Properties of a dataset or snapshot; `-` where it has none. Raises SourceError."""
    return _table("zfs", name, properties)


def pool_facts(pool: str, *properties: str) -> dict[str, str]:
    """Properties of a pool. Raises SourceError."""
    return _table("zpool", pool, properties)


def pools() -> dict[str, str]:
    """GUID -> name of every pool that is imported. Raises SourceError."""
    lines = _lines("zpool", "list", "-H", "-o", "guid,name")
    return dict(line for line in lines if len(line) == 2)


def volumes(pool: str) -> dict[str, str]:
    """Every volume of a pool, with the snapshot that it is a clone of, `-` for none. Raises SourceError."""
    lines = _lines("zfs", "list", "-H", "-t", "volume", "-o", "name,origin", "-r", pool)
    return dict(line for line in lines if len(line) == 2)


def moments(volume: str) -> list[ZfsMoment]:
    """Snapshots and bookmarks of a volume, oldest first. Raises SourceError."""
    options = ["-H", "-p", "-t", "snapshot,bookmark", "-d", "1", "-s", "createtxg", "-o", "name,guid,createtxg"]
    found = []
    for name, guid, created in _lines("zfs", "list", *options, volume):
        mark = name[len(volume) : len(volume) + 1]
        if mark in ("@", "#"):
            found.append(ZfsMoment(mark, name[len(volume) + 1 :], int(guid), int(created)))
    return found


def change(*words: str) -> None:
    """Run a `zfs` command that changes something. Raises SourceError."""
    run(["zfs", *words], timeout_seconds=CHANGE_SECONDS, error=SourceError)


def destroy(name: str) -> None:
    """Destroy one dataset, snapshot or bookmark, and nothing that depends on it. Raises SourceError.

    A device that udev still looks at is busy for a moment.
    """
    end = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return change("destroy", name)
        except SourceError as error:
            if "busy" not in error.message or time.monotonic() > end:
                raise
        time.sleep(0.2)


def opened(volume: str) -> int:
    """A descriptor of the device of a volume, for reading. Raises SourceError if none appears.

    The kernel says which device it is: the links in /dev/zvol are made by udev, later or never.
    """
    end = time.monotonic() + _DEVICE_SECONDS
    while True:
        for path in (Path("/dev/zvol") / volume, *Path("/dev").glob("zd*")):
            fd = _if_device_of(path, volume)
            if fd >= 0:
                return fd
        if time.monotonic() > end:
            raise SourceError(f"no device appeared for {volume}", obj=volume, hint="is udev running?")
        time.sleep(0.1)


def _if_device_of(path: Path, volume: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    with suppress(OSError):
        found = fcntl.ioctl(fd, _BLKZNAME, bytes(_MAX_NAME))
        if found.partition(b"\0")[0] == os.fsencode(volume):
            return fd
    os.close(fd)
    return -1


def _table(command: str, name: str, properties: tuple[str, ...]) -> dict[str, str]:
    lines = _lines(command, "get", "-H", "-p", "-o", "property,value", ",".join(properties), name)
    found = dict(line for line in lines if len(line) == 2)
    if set(found) != set(properties):
        raise SourceError(f"{command} does not tell {', '.join(set(properties) - set(found))} of {name}", obj=name)
    return found


def _lines(*words: str) -> list[list[str]]:
    said = run(words, timeout_seconds=QUERY_SECONDS, max_output=_MAX_LIST, error=SourceError)
    return [line.split("\t") for line in said.decode("utf-8", "surrogateescape").splitlines()]
