"""A snapshot of a tree of files as one tar (POSIX.1-2001 pax), with everything that the tree knows of them."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator

from lamella.operations.access.images import Image
from lamella.operations.access.view import Part
from lamella.sources.tree.layout import Extra, OwnerNames
from lamella.sources.tree.reader import FileTree, TreeEntry

_BLOCK = 512
_DEVICE_MOST = 0o7777777
"""The largest number of a device: seven octal digits."""
_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}
Hard = dict[tuple[int, int], TreeEntry]


def tree_tar(tree: FileTree, left_out: list[str]) -> Image:
    """The tree below `.`; `left_out` receives what no tar can hold, or what could not be read when it was saved.

    Its length is not known before: that of the volume stands for it. Reading may raise IntegrityError.
    """
    return Image(tree.size, _parts(tree, left_out))


def _parts(tree: FileTree, left_out: list[str]) -> Iterator[Part]:
    owners, links = tree.owners(), Hard()
    for entry in tree.walk(tree.top()):
        kind = _KINDS.get(stat.S_IFMT(entry.status.mode))
        why = _why_not(entry, kind)
        if kind is None or why:
            left_out.append(f"{os.fsdecode(entry.path)}: {why}")
            continue
        first = links.setdefault((entry.status.device, entry.status.inode), entry) if entry.is_file else entry
        is_link = first is not entry and (first.status, first.length) == (entry.status, entry.length)
        yield _head(entry, kind, owners, first if is_link else None, left_out)
        if entry.is_file and not is_link:
            yield from _content(tree, entry)
    yield bytes(2 * _BLOCK)


def _why_not(entry: TreeEntry, kind: bytes | None) -> str:
    """Why an entry has no place in a tar; empty if it has."""
    if kind is None:
        return "a socket"
    if any(number > _DEVICE_MOST for what, value in entry.details if what == Extra.DEVICE for number in _device(value)):
        return "a device of a number that no tar can hold"
    return "it could not be read when it was saved" if entry.is_absent and not entry.is_folder else ""


def _content(tree: FileTree, entry: TreeEntry) -> Iterator[Part]:
    at = 0
    for offset, piece in tree.content(entry):
        if offset > at:
            yield offset - at
        yield piece
        at = offset + len(piece)
    if entry.length > at:
        yield entry.length - at
    yield bytes(-entry.length % _BLOCK)


def _head(entry: TreeEntry, kind: bytes, owners: OwnerNames, first: TreeEntry | None, left_out: list[str]) -> bytes:
    status = entry.status
    info = tarfile.TarInfo(_name(entry))
    info.type, info.mode = kind, stat.S_IMODE(status.mode)
    info.uid, info.gid = status.uid, status.gid
    info.uname, info.gname = owners.users.get(status.uid, ""), owners.groups.get(status.gid, "")
    seconds, nanoseconds = divmod(status.mtime_ns, 1_000_000_000)
    info.mtime = seconds
    info.pax_headers = {"mtime": f"{seconds}.{nanoseconds:09}"} if seconds >= 0 else {}
    info.linkname = os.fsdecode(entry.target)
    if first is not None:
        info.type, info.linkname = tarfile.LNKTYPE, _name(first)
    elif entry.is_file:
        info.size = entry.length
    for what, value in entry.details:
        if what == Extra.ATTRIBUTE:
            name, _, content = value.partition(b"\0")
            if _is_keyword(name):
                info.pax_headers[f"SCHILY.xattr.{name.decode()}"] = content.decode("utf-8", "surrogateescape")
            else:
                left_out.append(f"{os.fsdecode(entry.path)}: its attribute {os.fsdecode(name)}: a name for no tar")
        elif what == Extra.DEVICE:
            info.devmajor, info.devminor = _device(value)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _is_keyword(name: bytes) -> bool:
    """Whether a name can be part of a pax keyword: UTF-8, and what comes after `=` would be taken for the value."""
    try:
        return "=" not in name.decode("utf-8")
    except UnicodeDecodeError:
        return False


def _device(value: bytes) -> tuple[int, int]:
    return int.from_bytes(value[:4], "little"), int.from_bytes(value[4:], "little")


def _name(entry: TreeEntry) -> str:
    return f"./{os.fsdecode(entry.path)}" if entry.path else "."
