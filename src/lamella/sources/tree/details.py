"""What only some entries of a directory have: targets of links, extended attributes, numbers of devices."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import itemgetter

from lamella.sources.tree.layout import TARGET_MOST, Extra, FileStatus, extra

_ATTRIBUTES = ("security.capability", "system.posix_acl_access", "system.posix_acl_default")
_NONE = (errno.ENOTSUP, errno.ENODATA)
"""No attributes there."""
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EINVAL)
"""The file went away, or something else has its name: whoever reads its content says so."""

Trouble = Callable[[bytes, str], None]
"""Receives a name and what of its details could not be read."""


def is_kept(name: str) -> bool:
    """Whether an extended attribute belongs to a file wherever it is: others are their host's own."""
    return name.startswith("user.") or name in _ATTRIBUTES


@dataclass(slots=True)
class Details:
    """The details of one directory's entries."""

    trouble: Trouble
    _parts: list[tuple[int, bytes]] = field(default_factory=list)
    """Each with the number of its entry."""

    def keep(self, entry: int, details: Iterable[tuple[int, bytes]]) -> None:
        """Take an entry's details as the last snapshot has them."""
        self._parts += [(entry, extra(entry, Extra(kind), value)) for kind, value in details]

    def read(self, folder: int, entry: int, name: bytes, status: FileStatus) -> bool:
        """Read an entry's details in the open directory `folder`. Returns whether all there are were read."""
        kind = stat.S_IFMT(status.mode)
        try:
            if kind == stat.S_IFLNK:
                target = os.readlink(name, dir_fd=folder)
                if len(target) <= TARGET_MOST:
                    self._parts.append((entry, extra(entry, Extra.TARGET, target)))
            elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                number = os.stat(name, dir_fd=folder, follow_symlinks=False).st_rdev
                value = os.major(number).to_bytes(4, "little") + os.minor(number).to_bytes(4, "little")
                self._parts.append((entry, extra(entry, Extra.DEVICE, value)))
            self._attributes(folder, entry, name)
        except OSError as error:
            if error.errno in _NONE:
                return True
            if error.errno not in _GONE:
                self.trouble(name, error.strerror or str(error))
            return False
        return True

    def _attributes(self, folder: int, entry: int, name: bytes) -> None:
        """Raises OSError."""
        path = b"/proc/self/fd/%d/%s" % (folder, name)
        for attribute in sorted(os.listxattr(path, follow_symlinks=False)):
            if is_kept(attribute):
                value = os.getxattr(path, attribute, follow_symlinks=False)
                self._parts.append((entry, extra(entry, Extra.ATTRIBUTE, os.fsencode(attribute) + b"\0" + value)))

    def encoded(self) -> bytes:
        """The column of a listing: in the order of the entries."""
        return b"".join(part for _, part in sorted(self._parts, key=itemgetter(0)))
