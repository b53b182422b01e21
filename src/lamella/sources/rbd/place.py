"""Where an image is now, by its identity."""

from __future__ import annotations

from typing import Final

from lamella.sources.rbd.address import PREFIX, RbdAddress
from lamella.sources.rbd.cluster import bindings, connected, translated

_PARTS: Final = 4


def place_of(identity: bytes) -> str | None:
    """`rbd:POOL/IMAGE` for the identity of an image in the cluster that is configured here; None for any other.

    Raises SourceError if Ceph cannot be asked.
    """
    parts = identity.decode("utf-8", "surrogateescape").split(":")
    if len(parts) != _PARTS:
        return None
    _, fsid, pool, image = parts
    number, _, namespace = pool.partition("/")
    rados, rbd = bindings()
    with connected(RbdAddress("", "", "")) as cluster:
        if cluster.get_fsid() != fsid:
            return None
        try:
            name = cluster.pool_reverse_lookup(int(number))
        except (rados.ObjectNotFound, ValueError):
            return None
        address = RbdAddress(name, namespace, image)
        with translated(address), cluster.open_ioctx(name) as io:
            io.set_namespace(namespace)
            found = (one["name"] for one in rbd.RBD().list2(io) if one["id"] == image)
            found_name = next(found, None)
    return None if found_name is None else PREFIX + "/".join(filter(None, (name, namespace, found_name)))
