"""Objects that are put again: a name that is taken must stand for the same bytes."""

from __future__ import annotations

import os

from lamella.base.errors import ObjectNotFound, StoreRefused
from lamella.stores.local.directory import is_link, opened_file, read_range

_COMPARED_AT_ONCE = 1 << 20


def check_equal(target: tuple[int, str], name: str, content: bytes | memoryview) -> None:
    """Make sure that a name in a directory stands for `content`, durably. Raises StoreRefused, OSError."""
    directory, leaf = target
    if is_link(directory, leaf):
        raise StoreRefused("a symbolic link has this name", obj=name)
    try:
        with opened_file(directory, leaf, name) as (descriptor, size):
            if not _holds_exactly(descriptor, size, content):
                raise StoreRefused("the store holds other bytes under this name", obj=name)
            os.fsync(descriptor)  # it may have been copied here by something that did not
    except ObjectNotFound as error:
        raise StoreRefused("a directory has this name", obj=name) from error


def _holds_exactly(descriptor: int, size: int, content: bytes | memoryview) -> bool:
    """Whether a file of `size` bytes holds `content`, compared a mebibyte at a time. Raises OSError."""
    if size != len(content):
        return False
    for offset in range(0, size, _COMPARED_AT_ONCE):
        expected = content[offset : offset + _COMPARED_AT_ONCE]
        if read_range(descriptor, offset, len(expected), "") != expected:
            return False
    return True
