"""Ceph through its own Python bindings (Debian and Fedora: python3-rbd), and everything it says made ours.

The bindings belong to the system's Python and are no package of PyPI. A virtual environment does not see the system's
packages; these two modules alone are loaded from there, for the same version of Python (docs/decisions/0056). Which
cluster, and with which key, says Ceph's own configuration: CEPH_CONF or /etc/ceph/ceph.conf.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from typing import Any, Final

from lamella.base.errors import SourceError
from lamella.sources.rbd.address import RbdAddress

PACKAGE: Final = "python3-rbd"

_VERSION: Final = f"python{sys.version_info[0]}.{sys.version_info[1]}"
_PLACES: Final = (
    "/usr/lib/python3/dist-packages",
    f"/usr/lib64/{_VERSION}/site-packages",
    f"/usr/lib/{_VERSION}/site-packages",
)
_WAITS: Final = {
    "client_mount_timeout": ("300", "30"),
    "rados_mon_op_timeout": ("0", "120"),
    "rados_osd_op_timeout": ("0", "300"),
}
"""Option -> Ceph's default, and the seconds used instead: by default a cluster that does not answer is waited for for
ever, and a thread that waits in librados hears no Ctrl-C."""


@dataclass(frozen=True, slots=True)
class RbdPool:
    """A connection to a pool of a cluster. `rbd` is the module of that name; `io` its handle of the pool."""

    rbd: Any
    io: Any
    fsid: str
    number: int
    size_bytes: int
    free_bytes: int
    """Of the whole cluster, as its manager last counted; both are 0 where no manager runs."""

    @contextmanager
    def image(self, name: str = "", *, id: str = "", snapshot: str = "", read_only: bool = True) -> Iterator[Any]:
        """Open an image by its name, or by its id whatever it is called now."""
        where = {"image_id": id} if id else {"name": name}
        with closing(self.rbd.Image(self.io, snapshot=snapshot or None, read_only=read_only, **where)) as image:
            yield image


@contextmanager
def opened(address: RbdAddress) -> Iterator[RbdPool]:
    """A pool. Raises SourceError for everything that Ceph's bindings raise until the block is left."""
    _, rbd = bindings()
    with connected(address) as cluster, closing(cluster.open_ioctx(address.pool)) as io:
        io.set_namespace(address.namespace)
        number = cluster.pool_lookup(address.pool)
        figures = cluster.get_cluster_stats()
        yield RbdPool(rbd, io, cluster.get_fsid(), number, figures["kb"] << 10, figures["kb_avail"] << 10)


@contextmanager
def connected(address: RbdAddress) -> Iterator[Any]:
    """A cluster, with the errors of `opened`."""
    rados, _ = bindings()
    with translated(address), ExitStack() as undone:
        cluster = rados.Rados(conffile="", rados_id=address.user or None)
        undone.callback(cluster.shutdown)
        for option, (default, seconds) in _WAITS.items():
            if float(cluster.conf_get(option).rstrip("s")) == float(default):
                cluster.conf_set(option, seconds)
        # Every read must come from the cluster: what is compared after a restore is what it holds.
        cluster.conf_set("rbd_cache", "false")
        cluster.connect()
        yield cluster


@contextmanager
def translated(address: RbdAddress, error: type[SourceError] = SourceError) -> Iterator[None]:
    """Raise `error` for what Ceph's bindings raise."""
    rados, rbd = bindings()
    try:
        yield
    except (rados.Error, rbd.Error) as reason:
        said = str(reason).removeprefix(f"[errno {getattr(reason, 'errno', 0)}] ").partition(" (error opening")[0]
        said = said or type(reason).__name__
        raise error(f"{address.text}: {said}", obj=address.text, hint=_hint(rados, rbd, reason)) from reason


def _hint(rados: Any, rbd: Any, reason: Exception) -> str:  # noqa: ANN401 - the bindings have no types
    if isinstance(reason, rados.ObjectNotFound) and "calling conf_read_file" in str(reason):
        return "tell Ceph's programs where the cluster is: CEPH_CONF names its ceph.conf"
    if isinstance(reason, (rados.PermissionDeniedError, rados.PermissionError, rbd.PermissionError)):
        return "the user of Ceph needs profile rbd for the pool; ?id=USER names another user"
    if isinstance(reason, (rbd.ImageNotFound, rados.ObjectNotFound)):
        return "`rbd ls POOL` lists the images of a pool"
    return ""


@cache
def bindings() -> tuple[Any, Any]:
    """The modules `rados` and `rbd`. Raises SourceError that names the package."""
    try:
        return _loaded("rados"), _loaded("rbd")
    except ImportError as reason:
        raise SourceError(
            f"reading RBD images needs {PACKAGE} for {_VERSION}: {reason}",
            hint=f"install {PACKAGE}; it is the system's, so Lamella must run with the same version of Python",
        ) from reason


def _loaded(name: str) -> Any:  # noqa: ANN401
    """A module of this Python or of the system's. Nothing else of the system's packages becomes visible."""
    if name in sys.modules:
        return sys.modules[name]
    spec = PathFinder.find_spec(name) or PathFinder.find_spec(name, list(_PLACES))
    if spec is None or spec.loader is None:
        raise ImportError(f"there is no module {name}")
    module = module_from_spec(spec)
    sys.modules[name] = module  # rbd imports rados
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
