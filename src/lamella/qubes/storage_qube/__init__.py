"""Files that a storage qube and dom0 need to serve a destination, as they are installed there.

It is trusted with nothing. dom0 sends it the name of a destination; where that lies, and what may be done there, is
written down in the storage qube.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Final

from lamella.base.errors import SourceError, UsageError
from lamella.base.events import Reporter
from lamella.qubes.admin import Admin
from lamella.qubes.inventory import ADMIN_CLASS, Inventory, Qube
from lamella.qubes.names import check_word
from lamella.qubes.storage import warn_of_idle
from lamella.run.spawn import run

SERVICE: Final = "/usr/local/etc/qubes-rpc/lamella.Repo"
MAPPING: Final = "/rw/config/lamella/repos/"

_NOT_KEPT: Final = frozenset({"DispVM", "TemplateVM"})
# The path is one of two known ones; the content comes on standard input, so that nothing in it is read by the shell.
_INSTALL: Final = 'set -e; mkdir -p "{folder}"; cat >"{path}.new"; chmod {mode} "{path}.new"; mv "{path}.new" "{path}"'


@dataclass(frozen=True, slots=True)
class StorageFile:
    """A file of the storage qube: its path, mode and content."""

    path: str
    mode: str
    content: str

    @property
    def script(self) -> str:
        """The shell command, run there as root, that installs what it reads."""
        return _INSTALL.format(folder=self.path.rpartition("/")[0], path=self.path, mode=self.mode)


def storage_files(name: str, place: str, options: list[str]) -> list[StorageFile]:
    """The service, and the destination `name` at `place` with these options of `lamella serve`. Raises UsageError."""
    if any("\n" in word for word in (place, *options)) or not place or place.startswith(("-", "#")):
        raise UsageError("not a place in the storage qube", obj=ascii(place))
    lines = "".join(f"{line}\n" for line in (place, *options))
    return [
        StorageFile(SERVICE, "0755", _shipped("lamella.Repo")),
        StorageFile(MAPPING + check_word(name), "0644", lines),
    ]


def example_policy() -> str:
    """A policy for qubes other than dom0; dom0's own calls need none."""
    return _shipped("30-lamella.policy")


def check_storage(admin: Admin, inventory: Inventory, name: str, reporter: Reporter) -> Qube:
    """The qube that is to store. Raises NothingMatched; UsageError if what it stores would not last."""
    qube = inventory.qube(name)
    if qube.klass == ADMIN_CLASS:
        raise UsageError("dom0 stores in a directory: give its path as the repository", obj=name)
    if qube.klass in _NOT_KEPT:
        raise UsageError(f"{name} is a {qube.klass}: what is stored in it would not last", obj=name)
    warn_of_idle(admin, name, reporter)
    return qube


def install(qube: Qube, files: list[StorageFile]) -> None:
    """Write the files in the qube, which is started if need be. Raises SourceError."""
    for file in files:
        argv = ("qvm-run", "--user=root", "--pass-io", "--no-gui", "--", qube.name, file.script)
        run(argv, input=file.content.encode("utf-8"), timeout_seconds=300, error=SourceError)


def _shipped(name: str) -> str:
    return resources.files("lamella.qubes.storage_qube").joinpath(name).read_text("utf-8")
