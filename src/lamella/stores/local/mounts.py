"""Which file system a directory lies on, asked of the kernel."""

from __future__ import annotations

from pathlib import Path

LOCKING_FILE_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs"})
"""File systems of this kernel alone: flock there excludes every process that can reach the files (FORMAT 13.11)."""


def file_system_of(descriptor: int) -> str:
    """Return the file system type of an open file, such as "ext4"; empty when the kernel does not say.

    The mount is found by its number, not by comparing paths, which bind mounts and mounts over mounts would mislead.
    """
    try:
        mount = _mount_number(Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii"))
        table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
    return file_system_in(table, mount)


def file_system_in(table: str, mount: str) -> str:
    """Return the type of the mount with that number in the text of a mountinfo table; empty when it is not there."""
    for line in table.split("\n"):
        fields, separator, rest = line.partition(" - ")
        if separator and fields.split(" ", 1)[0] == mount:
            return rest.split(" ", 1)[0]
    return ""


def _mount_number(fdinfo: str) -> str:
    for line in fdinfo.split("\n"):
        key, _, value = line.partition(":")
        if key == "mnt_id":
            return value.strip()
    return ""
