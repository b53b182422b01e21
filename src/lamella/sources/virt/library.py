"""The optional Python module of libvirt, its errors in our words, and a domain that is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, Final, NamedTuple

from lamella.base.errors import SourceError, printable

BROKEN_CHECKPOINT: Final = 109
"""libvirt's VIR_ERR_CHECKPOINT_INCONSISTENT: a bitmap of a checkpoint is missing or cannot be used."""
NO_DOMAIN: Final = 42
"""libvirt's VIR_ERR_NO_DOMAIN."""
REFUSED: Final = 1
"""libvirt's VIR_ERR_INTERNAL_ERROR: among others, the guest's agent answered with an error."""
NOT_RUNNING: Final = 55
"""libvirt's VIR_ERR_OPERATION_INVALID: nothing was asked of a domain that is halted or paused."""


class LibvirtError(SourceError):
    """libvirt refused; `code` is its number for why (include/libvirt/virterror.h)."""

    def __init__(self, message: str, code: int, obj: str = "") -> None:
        super().__init__(message, obj=obj)
        self.code = code


def library() -> Any:  # noqa: ANN401 - the module has no types
    """The module. Raises SourceError where there is none."""
    try:
        found: Any = import_module("libvirt")
    except ImportError as reason:
        hint = "install python3-libvirt (libvirt-python for a Python that is not the system's)"
        raise SourceError("the Python module of libvirt is not installed", hint=hint) from reason
    found.registerErrorHandler(lambda *_: None, None)  # it would print
    return found


@contextmanager
def told() -> Iterator[None]:
    """Errors of libvirt become LibvirtError."""
    module = library()
    try:
        yield
    except module.libvirtError as reason:
        said = printable(str(reason))[:300]
        raise LibvirtError(f"libvirt: {said}", int(reason.get_error_code() or 0)) from reason


class Connected(NamedTuple):
    """A connection to libvirt, and the domain over it."""

    connection: Any
    domain: Any

    def close(self) -> None:
        """Hang up."""
        with suppress(LibvirtError), told():
            self.connection.close()


def connect(name: str) -> Connected:
    """A domain by its name or UUID. Raises LibvirtError, with NO_DOMAIN if there is none."""
    with told():
        connection = library().open(None)
        try:
            try:
                return Connected(connection, connection.lookupByName(name))
            except library().libvirtError:
                return Connected(connection, connection.lookupByUUIDString(name))
        except library().libvirtError as reason:
            connection.close()
            raise LibvirtError(f"libvirt has no domain {name}", int(reason.get_error_code() or 0), name) from None
