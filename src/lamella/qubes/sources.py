"""A qube's volume as a source: the same volume wherever it lies, found and frozen while its qube may start or stop.

A start gives a volume another file or LV to write to, and a shutdown renames it back: a place is good for one look and
is never remembered (layouts as qubesd's storage drivers make them, Qubes OS 4.2 and 4.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lamella.base.errors import CheckpointLost, SourceError
from lamella.base.extents import Extent
from lamella.memory.host import Host
from lamella.qubes.admin import Admin
from lamella.qubes.inventory import HALTED, PAUSED, Pool, Qube, QubeVolume, power_state
from lamella.sources.base import Consistency, FrozenVolume, Keeping, Source
from lamella.sources.driver import Untracked, UntrackedMoment
from lamella.sources.registry import open_kept_source

if TYPE_CHECKING:
    from lamella.base.delta import Delta
    from lamella.sources.kept_bytes import KeptBytes

_TRIES = 5


def volume_identity(owner: str, volume: str) -> bytes:
    """`qubes:OWNER:VOLUME`: neither the qube's name nor where the volume lies is part of it."""
    return f"qubes:{owner}:{volume}".encode("ascii")


class QubeSource:
    """One volume of one qube. `choose` says where it lies in a state of its qube; its identity finds checkpoints."""

    def __init__(
        self, admin: Admin, host: Host, qube: Qube, identity: bytes, choose: Callable[[str], VolumePlace]
    ) -> None:
        self._admin = admin
        self._host = host
        self._qube = qube
        self._place = choose
        self.identity = identity
        """`qubes:OWNER:VOLUME`."""
        self.inner = self._opened(self._place(qube.state))

    @property
    def driver(self) -> str:
        """The driver of the pool's files or LVs."""
        return self.inner.driver

    @property
    def tracks(self) -> bool:
        """As the driver says."""
        return self.inner.tracks

    @property
    def default_name(self) -> str:
        """`QUBE:VOLUME`."""
        return f"{self._qube.name}:{self.identity.decode('ascii').rpartition(':')[2]}"

    @contextmanager
    def freeze(self) -> Iterator[FrozenVolume]:
        """One moment of the volume. Tried again when the qube starts or stops meanwhile. Raises SourceError."""
        for _ in range(_TRIES):
            with ExitStack() as attempt:
                state = power_state(self._admin, self._qube.name)
                place = self._place(state)
                try:
                    self.inner = self._opened(place)
                    frozen = attempt.enter_context(self.inner.freeze())
                except SourceError:
                    if self._unchanged(state, place):
                        raise
                    continue
                if self._unchanged(state, place):
                    self._kind = self._consistency(state, place)
                    yield self.moment(frozen)
                    return
        raise SourceError(f"{self.default_name} was started or stopped {_TRIES} times while it was frozen")

    def moment(self, frozen: FrozenVolume) -> FrozenVolume:
        """What the driver froze, or a clone of that, as the kind of moment that the qube's state made of it."""
        return _QubeMoment(frozen, self._kind)

    def _consistency(self, state: str, place: VolumePlace) -> Consistency:
        if not place.committed:
            return Consistency.QUIESCED if state == PAUSED else Consistency.LIVE
        return Consistency.HALTED if state == HALTED else Consistency.COMMITTED

    def _unchanged(self, state: str, place: VolumePlace) -> bool:
        """Whether nothing was renamed since: the frozen file is the one that the place meant all the time."""
        return power_state(self._admin, self._qube.name) == state and self._place(state) == place

    def _opened(self, place: VolumePlace) -> Source:
        keeping = Keeping(self._host.owner, place.checkpoint_dir, self.identity, self._host.source_records)
        return open_kept_source(place.text, self._host.machine, keeping)

    def keep(self, checkpoint: str) -> None:
        """As the driver does."""
        self.inner.keep(checkpoint)

    def drop(self, checkpoint: str) -> None:
        """As the driver does."""
        self.inner.drop(checkpoint)

    def kept(self) -> list[str]:
        """As the driver says."""
        return self.inner.kept()

    def kept_bytes(self, checkpoint: str) -> AbstractContextManager[KeptBytes]:
        """As the driver does. Raises CheckpointLost where it cannot read what it kept."""
        from lamella.sources.kept_bytes import Remembering  # for differences alone

        if not isinstance(self.inner, Remembering):
            raise CheckpointLost(f"the {self.driver} driver cannot read what it kept")
        return self.inner.kept_bytes(checkpoint)


class _QubeMoment:
    """A frozen volume whose kind of moment is known from the qube's state, unless the driver saw something worse."""

    def __init__(self, frozen: FrozenVolume, consistency: Consistency) -> None:
        self.inner = frozen
        self._consistency = consistency

    @property
    def size(self) -> int:
        """Bytes."""
        return self.inner.size

    @property
    def checkpoint(self) -> str:
        """The driver's."""
        return self.inner.checkpoint

    def consistency(self) -> Consistency:
        """By the qube's state; the driver's word where it could not hold the volume still."""
        seen = self.inner.consistency()
        return seen if seen in (Consistency.UNKNOWN, Consistency.CHANGED) else self._consistency

    def allocated(self) -> Iterator[Extent]:
        """The driver's."""
        return self.inner.allocated()

    def delta_since(self, base: str, grain: int) -> Delta:
        """The driver's."""
        return self.inner.delta_since(base, grain)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """The driver's."""
        self.inner.read_into(offset, buffer)


class SettingsSource(Untracked):
    """A volume without bytes, to which the documents of a qube or of the system are attached."""

    driver = "settings"

    def __init__(self, identity: bytes, name: str) -> None:
        self.identity = identity
        self.default_name = name

    @contextmanager
    def freeze(self) -> Iterator[FrozenVolume]:
        """Nothing to hold still."""
        yield _NoBytes()


class _NoBytes(UntrackedMoment):
    size = 0

    def consistency(self) -> Consistency:
        """The answers of qubesd are one consistent state."""
        return Consistency.COMMITTED

    def allocated(self) -> Iterator[Extent]:
        """Nothing."""
        return iter(())

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Raises SourceError: there is nothing to read."""
        raise SourceError("settings have no bytes")


CHECKPOINTS: Final = ".lamella"
"""Directory of checkpoints at the top of a file pool: beside the qube's own files they would go when it is removed."""


@dataclass(frozen=True, slots=True)
class VolumePlace:
    """The place to read: `text` for the source registry, `committed` if an orderly shutdown left the volume so."""

    text: str
    committed: bool
    checkpoint_dir: Path | None = None


def live_place(pool: Pool, volume: QubeVolume, state: str) -> VolumePlace:
    """The volume that a qube in this state writes to, or that it left when it halted. Raises SourceError."""
    place = _driver(pool)(pool, volume, True)
    return replace(place, committed=place.committed and state == HALTED)


def committed_place(pool: Pool, volume: QubeVolume, state: str) -> VolumePlace:
    """The state of the last shutdown. Raises SourceError where none is kept while the qube runs.

    A pool may attach the volume itself and no snapshot of it (revisions_to_keep = -1, and always in a zfs pool): what a
    running qube writes to is never the state of its last shutdown, whatever it is called.
    """
    find = _driver(pool)
    place = find(pool, volume, False)
    if place.committed and (state == HALTED or find(pool, volume, True) != place):
        return place
    why = " (revisions_to_keep is -1)" if volume.facts.get("revisions_to_keep") == "-1" else ""
    hint = "shut the qube down, or leave --committed out"
    raise SourceError(
        f"{volume.vid} keeps no state of its last shutdown while its qube runs{why}: {hint}", obj=volume.vid
    )


def _reflink(pool: Pool, volume: QubeVolume, live: bool) -> VolumePlace:
    directory = Path(pool.config["dir_path"])
    base = str(directory / volume.vid)
    kept = directory / CHECKPOINTS
    dirty, clean = Path(base + "-dirty.img"), Path(base + ".img")
    if dirty.exists() and (live or not clean.exists()):
        return VolumePlace(str(dirty), False, kept)
    if clean.exists():
        return VolumePlace(str(clean), True, kept)
    raise SourceError(f"{clean} does not exist", obj=str(clean))


def _file(pool: Pool, volume: QubeVolume, live: bool) -> VolumePlace:
    # The copy-on-write file beside the image holds what was overwritten: the image itself is what the qube writes to.
    image = Path(pool.config["dir_path"]) / f"{volume.vid}.img"
    running = Path(f"{image.with_suffix('')}-cow.img").exists()
    return VolumePlace(str(image), not running, Path(pool.config["dir_path"]) / CHECKPOINTS)


def _lvm_thin(pool: Pool, volume: QubeVolume, live: bool) -> VolumePlace:
    device = Path("/dev") / volume.vid
    snap = Path(f"{device}-snap")
    if live and snap.exists():
        return VolumePlace(f"lvm:{volume.vid}-snap", False)
    if device.exists():
        return VolumePlace(f"lvm:{volume.vid}", True)
    # While a shutdown commits, the old state has its new name already and the new state not yet.
    backs = sorted(device.parent.glob(f"{device.name}-*-back"), key=lambda path: _epoch(path.name))
    if not backs:
        raise SourceError(f"there is no LV {volume.vid}", obj=volume.vid)
    return VolumePlace(f"lvm:{device.parent.name}/{backs[-1].name}", True)


def _zfs(pool: Pool, volume: QubeVolume, live: bool) -> VolumePlace:
    return VolumePlace(f"zfs:{volume.vid}", True)


def _epoch(name: str) -> int:
    digits = name.removesuffix("-back").rpartition("-")[2]
    return int(digits) if digits.isdecimal() else 0


_DRIVERS: Final[dict[str, Callable[[Pool, QubeVolume, bool], VolumePlace]]] = {
    "file-reflink": _reflink,
    "file": _file,
    "lvm_thin": _lvm_thin,
    "zfs": _zfs,
}


def _driver(pool: Pool) -> Callable[[Pool, QubeVolume, bool], VolumePlace]:
    found = _DRIVERS.get(pool.driver)
    if found is None:
        raise SourceError(f"pool {pool.name} has the driver {pool.driver!r}, which lamella cannot read", obj=pool.name)
    return found
