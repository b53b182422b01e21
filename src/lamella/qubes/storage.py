"""The storage qube: what it needs to serve a destination, and how long it runs.

It is trusted with nothing. dom0 sends it the name of a destination; where that lies, and what may be done there, is
written down in the storage qube.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Final

from lamella.base.errors import SourceError, UsageError
from lamella.base.events import Reporter, Warned
from lamella.qubes.admin import Admin
from lamella.qubes.inventory import ADMIN_CLASS, HALTED, Inventory, Qube, feature_of, power_state
from lamella.qubes.names import check_word
from lamella.run.spawn import run

SERVICE: Final = "/usr/local/etc/qubes-rpc/lamella.Repo"
MAPPING: Final = "/rw/config/lamella/repos/"

_IDLE: Final = "service.shutdown-idle"
_NOT_KEPT: Final = frozenset({"DispVM", "TemplateVM"})
_SCHEMES: Final = ("qubes:", "qubes-ssh:")
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
    _warn_of_idle(admin, name, reporter)
    return qube


def install(qube: Qube, files: list[StorageFile]) -> None:
    """Write the files in the qube, which is started if need be. Raises SourceError."""
    for file in files:
        argv = ("qvm-run", "--user=root", "--pass-io", "--no-gui", "--", qube.name, file.script)
        run(argv, input=file.content.encode("utf-8"), timeout_seconds=300, error=SourceError)


@contextmanager
def kept_running(admin: Admin, place: str, reporter: Reporter) -> Iterator[None]:
    """While a repository in a qube is used: start that qube if it is halted, and only then shut it down afterwards."""
    name = _qube_of(place)
    if not name or name not in Inventory(admin).qubes:
        yield
        return
    _warn_of_idle(admin, name, reporter)
    started = power_state(admin, name) == HALTED
    if started:
        admin.call("admin.vm.Start", name)
    try:
        yield
    finally:
        if started:
            _shut_down(admin, name, reporter)


def _shut_down(admin: Admin, name: str, reporter: Reporter) -> None:
    try:
        admin.call("admin.vm.Shutdown", name)
    except SourceError as error:
        reporter(Warned(f"it was started for this and could not be shut down: {error.message}", name))


def _warn_of_idle(admin: Admin, name: str, reporter: Reporter) -> None:
    if feature_of(admin, name, _IDLE) == "1":
        hint = f"switch that off: qvm-service --disable {name} shutdown-idle"
        reporter(Warned(f"{name} shuts down when it seems idle, also in the middle of a backup; {hint}", name))


def _qube_of(place: str) -> str:
    scheme = next((scheme for scheme in _SCHEMES if place.startswith(f"{scheme}//")), "")
    rest = place.removeprefix(f"{scheme}//")
    return rest.partition(":" if scheme == "qubes-ssh:" else "/")[0].partition("/")[0] if scheme else ""


def _shipped(name: str) -> str:
    return resources.files("lamella.qubes.storage_qube").joinpath(name).read_text("utf-8")
