"""Names and heads of packs: many heads read at once (docs/FORMAT.md 1, 5)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lamella.base.errors import IntegrityError, ObjectCold, ObjectNotFound, StoreError, UnknownFormat
from lamella.base.ids import CATALOGUE
from lamella.base.names import pack_name
from lamella.crypto.derive import Keys
from lamella.format import container
from lamella.format.container import Kind
from lamella.packs.containers import PackHead, open_head
from lamella.packs.reach import reinstated, require_alive
from lamella.run.pipeline import default_workers, ordered_map
from lamella.stores.base import Store


def read_head(store: Store, keys: Keys, name: str, size: int) -> PackHead:
    """Fetch and open the head of the container `name` of `size` bytes; its kinds must fit its place.

    Raises IntegrityError.
    """
    if not container.HEADER_SIZE < size <= container.MAX_OBJECT:
        raise IntegrityError("a container of impossible size", obj=name)
    head = store.get(name, 0, min(size, container.FIRST_READ))
    header = container.decode_header(head[: container.HEADER_SIZE], name)
    wanted = container.HEADER_SIZE + header.directory_length
    if wanted > size:
        raise IntegrityError("a container shorter than its directory", obj=name)
    if wanted > len(head):
        head += store.get(name, len(head), wanted - len(head))
    opened = open_head(keys, name, head)
    if container.object_length(opened.blobs) != size:
        raise IntegrityError("a container of the wrong length", obj=name)
    allowed = {Kind.SEGMENT} if opened.domain_id == CATALOGUE else {Kind.CHUNK, Kind.LEAF, Kind.INNER, Kind.DOCUMENT}
    if any(blob.kind not in allowed for blob in opened.blobs):
        raise IntegrityError("a pack with a kind of blob that does not belong there", obj=name)
    return opened


def genuine_head(store: Store, keys: Keys, name: str, size: int | None = None) -> PackHead:
    """The head of a pack of this listed size (None: ask), of an older version if the newest one is not genuine.

    Raises IntegrityError, UnknownFormat, StoreError.
    """
    try:
        return read_head(store, keys, name, store.stat(name) if size is None else size)
    except (IntegrityError, UnknownFormat):
        if not reinstated(store, name):
            raise
        return read_head(store, keys, name, store.stat(name))


def read_heads(
    store: Store, keys: Keys, packs: Iterable[tuple[bytes, int]]
) -> Iterator[tuple[bytes, int, PackHead | ObjectCold | str | None]]:
    """Read heads of packs, given as hash and listed size. With each come its head, or why that does not open, or None.

    None: the pack is gone. ObjectCold: it must be thawed first. Raises StoreUnavailable when the store as a whole is
    out of reach.
    """

    def read(row: tuple[bytes, int]) -> tuple[bytes, int, PackHead | ObjectCold | str | None]:
        name = pack_name(row[0])
        try:
            return row[0], row[1], genuine_head(store, keys, name, row[1])
        except ObjectNotFound:
            return row[0], row[1], None
        except ObjectCold as error:
            return row[0], row[1], error
        except (IntegrityError, UnknownFormat, StoreError) as error:
            require_alive(store, error)
            return row[0], row[1], error.message

    return ordered_map(read, packs, workers=default_workers(), ahead=4)
