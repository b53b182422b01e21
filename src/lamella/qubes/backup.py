"""From chosen qubes to a backup run: every volume that persists, and the settings, each under its own qube's key."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from lamella.base.clock import Clock, now_ms
from lamella.base.errors import LamellaError, SourceError
from lamella.base.events import Reporter, Warned, silent
from lamella.memory.host import Host
from lamella.operations.backup.story import BackupOptions, BackupPlan, BackupResult, FailedRequest, Request, plan_backup
from lamella.qubes.admin import Admin
from lamella.qubes.inventory import ADMIN_CLASS, Inventory, Qube, QubeVolume, feature_of
from lamella.qubes.names import owner_of
from lamella.qubes.settings import DOCUMENT, SETTINGS, read_globals, read_settings
from lamella.qubes.sources import QubeSource, SettingsSource, committed_place, live_place, volume_identity
from lamella.repository.repository import Repository
from lamella.sources.registry import open_source

EXCLUDED_FEATURE = "lamella.exclude-volumes"
"""Feature of a qube that names volumes to leave out, separated by spaces."""
GLOBALS = "globals"
CONFIG = "config"
ARCHIVE = "dom0-config.tar"

_TEMPLATE = "TemplateVM"


@dataclass(frozen=True, slots=True)
class QubesOptions:
    """Options for qubes, beyond those of every backup."""

    live: bool = True
    """A running qube as it is now; else the state of its last shutdown."""
    pause: bool = False
    """Hold running qubes still while they are frozen."""
    template_roots: bool = True
    dom0_root: Path = Path("/")
    """Where dom0's own files lie."""
    backup: BackupOptions = field(default_factory=BackupOptions)


@dataclass(slots=True)
class QubesPlan:
    """The plan of a run over qubes; `backup` is the plan of its volumes."""

    backup: BackupPlan
    qubes: list[Qube]
    excluded: list[str]
    """Volumes left out on request, as `QUBE:VOLUME`."""
    admin: Admin
    host: Host
    clock: Clock

    def execute(self, reporter: Reporter = silent) -> BackupResult:
        """Do it, and let qubesd know which qubes were saved whole. Raises as BackupPlan.execute."""
        try:
            result = self.backup.execute(reporter)
        finally:
            (self.host.cache_dir / ARCHIVE).unlink(missing_ok=True)
        if result.snapshot:
            failed = {row.volume.partition(":")[0] for row in result.volumes if row.result == "failed"}
            for qube in self.qubes:
                if qube.name not in failed and qube.klass != ADMIN_CLASS:
                    self._stamp(qube, reporter)
        return result

    def _stamp(self, qube: Qube, reporter: Reporter) -> None:
        seconds = str(self.clock() // 1000).encode("ascii")
        try:
            self.admin.call("admin.vm.property.Set", qube.name, "backup_timestamp", seconds)
        except LamellaError as error:
            reporter(Warned(f"the time of the backup was not noted: {error.message}", qube.name))


def plan_qubes(
    repo: Repository,
    admin: Admin,
    inventory: Inventory,
    qubes: Sequence[Qube],
    options: QubesOptions,
    gone: Sequence[str] = (),
) -> QubesPlan:
    """Decide what to do with these qubes; those that are `gone` fail. Raises as plan_backup."""
    maker = _Requests(admin, inventory, repo.host, options)
    requests: list[Request | FailedRequest] = [
        FailedRequest(f"{name}:{SETTINGS}", f"there is no qube called {name}") for name in gone
    ]
    requests += [request for qube in qubes for request in maker.of_qube(qube)]
    running = [qube for qube in qubes if qube.state == "Running"] if options.pause else []
    backup = replace(options.backup, around=_pausing(admin, running))
    return QubesPlan(plan_backup(repo, requests, backup), list(qubes), maker.excluded, admin, repo.host, now_ms)


class _Requests:
    """Makes the requests of one run."""

    def __init__(self, admin: Admin, inventory: Inventory, host: Host, options: QubesOptions) -> None:
        self._admin = admin
        self._inventory = inventory
        self._host = host
        self._options = options
        self.excluded: list[str] = []

    def of_qube(self, qube: Qube) -> Iterator[Request | FailedRequest]:
        """The settings of a qube, and each of its volumes that outlives a shutdown."""
        try:
            settings = read_settings(self._admin, self._inventory, qube)
            volumes = [volume for volume in self._inventory.volumes(qube) if self._is_wanted(qube, volume)]
        except SourceError as error:
            yield FailedRequest(f"{qube.name}:{SETTINGS}", error.message)
            return
        yield self._settings(qube, SETTINGS, settings.encode())
        if qube.klass == ADMIN_CLASS:
            yield self._settings(qube, GLOBALS, read_globals(self._admin).encode())
            yield self._config(qube)
        for volume in volumes:
            yield self._volume(qube, volume)
        for name, why in self._inventory.undescribed(qube).items():
            if name not in self._left_out(qube):
                yield FailedRequest(f"{qube.name}:{name}", why)

    def _settings(self, qube: Qube, what: str, content: bytes) -> Request:
        name = f"{qube.name}:{what}"
        source = SettingsSource(volume_identity(self._owner(qube), what), name)
        return Request(name, source, self._domain(qube), {DOCUMENT: content}, follows=True)

    def _config(self, qube: Qube) -> Request | FailedRequest:
        """dom0's own files, as one archive made again for this run."""
        from lamella.qubes.dom0 import write_archive  # dom0 is rarely among the qubes

        name = f"{qube.name}:{CONFIG}"
        try:
            path = write_archive(self._host.cache_dir / ARCHIVE, self._options.dom0_root)
        except LamellaError as error:
            return FailedRequest(name, error.message)
        identity = volume_identity(self._owner(qube), CONFIG)
        source = open_source(str(path), machine=self._host.machine, driver="file", known_as=identity)
        return Request(name, source, self._domain(qube), {}, follows=True)

    def _volume(self, qube: Qube, volume: QubeVolume) -> Request | FailedRequest:
        name = f"{qube.name}:{volume.name}"
        try:
            pool = self._inventory.pool(volume.pool)
            choose = live_place if self._options.live else committed_place
            identity = volume_identity(self._owner(qube), volume.name)
            source = QubeSource(self._admin, self._host, qube, identity, partial(choose, pool, volume))
        except LamellaError as error:
            return FailedRequest(name, error.message)
        return Request(name, source, self._domain(qube), {}, follows=True)

    def _owner(self, qube: Qube) -> str:
        return owner_of(self._admin, qube, self._host.machine)

    def _domain(self, qube: Qube) -> str:
        """The key domain of a qube: its own, whatever it is called."""
        return f"qube {self._owner(qube)}"

    def _is_wanted(self, qube: Qube, volume: QubeVolume) -> bool:
        if not volume.save_on_stop:
            return False
        no_root = qube.klass == _TEMPLATE and volume.name == "root" and not self._options.template_roots
        if no_root or volume.name in self._left_out(qube):
            self.excluded.append(f"{qube.name}:{volume.name}")
            return False
        return True

    def _left_out(self, qube: Qube) -> list[str]:
        return (feature_of(self._admin, qube.name, EXCLUDED_FEATURE) or "").split()


def _pausing(admin: Admin, qubes: Sequence[Qube]) -> Callable[[], AbstractContextManager[None]]:
    return lambda: _paused(admin, qubes)


@contextmanager
def _paused(admin: Admin, qubes: Sequence[Qube]) -> Iterator[None]:
    """Hold these qubes still, each for as long as this lasts. One that cannot be paused is taken as it runs."""
    with ExitStack() as held:
        for qube in qubes:
            try:
                admin.call("admin.vm.Pause", qube.name)
            except SourceError:
                continue
            held.callback(_unpause, admin, qube.name)
        yield


def _unpause(admin: Admin, name: str) -> None:
    # A qube that stays paused is worse than a second try: qubesd may have been busy.
    for attempt in range(3):
        try:
            admin.call("admin.vm.Unpause", name)
        except SourceError:
            if attempt == 2:
                raise
            time.sleep(0.2)
        else:
            return
