"""What a caller asks of a store, checked: byte ranges and listing prefixes. Pure; the same answer for every store."""

from __future__ import annotations

from lamella.base.errors import StoreError, StoreRefused
from lamella.stores.base import checked_name


def range_end(name: str, size: int, offset: int, length: int | None) -> int:
    """Return the offset one past the last byte asked for, in an object of `size` bytes.

    Raises StoreError when the range is negative or does not lie wholly inside the object.
    """
    if offset < 0 or (length is not None and length < 0):
        raise StoreError(f"not a byte range: offset {offset}, length {length}", obj=name)
    end = size if length is None else offset + length
    if offset > size or end > size:
        raise StoreError(f"object ends at byte {size}, before the range asked for ({offset}+{length})", obj=name)
    return end


def checked_prefix(prefix: str) -> str:
    """Return `prefix` if it is empty or a valid name followed by `/`; raise StoreRefused otherwise."""
    if prefix:
        if not prefix.endswith("/"):
            raise StoreRefused(f"a listing prefix ends in '/': {prefix[:300]!r}", obj=prefix[:300])
        checked_name(prefix[:-1])
    return prefix
