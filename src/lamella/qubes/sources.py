"""A qube's volume as a source: the same volume wherever it lies, found and frozen while its qube may start or stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lamella.delta import Delta
from lamella.errors import SourceError
from lamella.extents import Extent
from lamella.qubes.admin import Admin
from lamella.qubes.inventory import ADMIN_CLASS, HALTED, PAUSED, Pool, Qube, Volume, power_state
from lamella.qubes.places import Place, committed_place, live_place
from lamella.repository.host import Host
from lamella.sources.base import Consistency, FrozenVolume, Source
from lamella.sources.registry import open_source
from lamella.sources.untracked import Untracked, UntrackedMoment

_TRIES = 5


def owner_of(qube: Qube, machine: str) -> str:
    """What names a qube for ever: its UUID. dom0 has the same one everywhere, so there it is the machine's hash."""
    return f"dom0-{machine}" if qube.klass == ADMIN_CLASS else qube.uuid


def volume_identity(owner: str, volume: str) -> bytes:
    """`qubes:UUID:VOLUME`: neither the qube's name nor where the volume lies is part of it."""
    return f"qubes:{owner}:{volume}".encode("ascii")


class QubeVolume:
    """One volume of one qube. Where it lies is found anew for each freeze; kept moments are found by the identity."""

    def __init__(self, admin: Admin, host: Host, qube: Qube, volume: Volume, pool: Pool, *, live: bool) -> None:
        self._admin = admin
        self._host = host
        self._qube = qube
        self._volume = volume
        self._pool = pool
        self._live = live
        self._inner = self._opened(self._place())

    @property
    def driver(self) -> str:
        """That of the pool's files or LVs."""
        return self._inner.driver

    @property
    def tracks(self) -> bool:
        """As the driver says."""
        return self._inner.tracks

    @property
    def identity(self) -> bytes:
        """`qubes:UUID:VOLUME`."""
        return volume_identity(owner_of(self._qube, self._host.machine), self._volume.name)

    @property
    def default_name(self) -> str:
        """`QUBE:VOLUME`."""
        return f"{self._qube.name}:{self._volume.name}"

    @contextmanager
    def freeze(self) -> Iterator[FrozenVolume]:
        """One moment of the volume. Tried again when the qube starts or stops meanwhile. Raises SourceError."""
        for _ in range(_TRIES):
            with ExitStack() as attempt:
                state, place = power_state(self._admin, self._qube.name), self._place()
                try:
                    self._inner = self._opened(place)
                    frozen = attempt.enter_context(self._inner.freeze())
                except SourceError:
                    if self._unchanged(state, place):
                        raise
                    continue
                if self._unchanged(state, place):
                    yield _Moment(frozen, self._consistency(state, place))
                    return
        raise SourceError(f"{self.default_name} was started or stopped {_TRIES} times while it was frozen")

    def _consistency(self, state: str, place: Place) -> Consistency:
        if not place.committed:
            return Consistency.QUIESCED if state == PAUSED else Consistency.LIVE
        return Consistency.HALTED if state == HALTED else Consistency.COMMITTED

    def _unchanged(self, state: str, place: Place) -> bool:
        """Whether nothing was renamed since: the frozen file is the one that the place meant all the time."""
        return power_state(self._admin, self._qube.name) == state and self._place() == place

    def _place(self) -> Place:
        choose = live_place if self._live else committed_place
        return choose(self._pool, self._volume)

    def _opened(self, place: Place) -> Source:
        return open_source(
            place.text,
            machine=self._host.machine,
            owner=self._host.owner,
            checkpoint_dir=place.checkpoint_dir,
            known_as=self.identity,
        )

    def keep(self, checkpoint: str) -> None:
        """As the driver does."""
        self._inner.keep(checkpoint)

    def drop(self, checkpoint: str) -> None:
        """As the driver does."""
        self._inner.drop(checkpoint)

    def kept(self) -> list[str]:
        """As the driver says."""
        return self._inner.kept()


class _Moment:
    """A frozen volume whose kind of moment is known from the qube's state, unless the driver saw something worse."""

    def __init__(self, frozen: FrozenVolume, consistency: Consistency) -> None:
        self._frozen = frozen
        self._consistency = consistency

    @property
    def size(self) -> int:
        """Bytes."""
        return self._frozen.size

    @property
    def checkpoint(self) -> str:
        """The driver's."""
        return self._frozen.checkpoint

    def consistency(self) -> Consistency:
        """By the qube's state; UNKNOWN where the driver could not hold the volume still and it changed."""
        seen = self._frozen.consistency()
        return seen if seen == Consistency.UNKNOWN else self._consistency

    def allocated(self) -> Iterator[Extent]:
        """The driver's."""
        return self._frozen.allocated()

    def delta_since(self, base: str, grain: int) -> Delta:
        """The driver's."""
        return self._frozen.delta_since(base, grain)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """The driver's."""
        self._frozen.read_into(offset, buffer)


class SettingsSource(Untracked):
    """A volume without bytes, to which the documents of a qube or of the system are attached."""

    driver = "settings"

    def __init__(self, identity: bytes, name: str) -> None:
        self.identity = identity
        self.default_name = name

    @contextmanager
    def freeze(self) -> Iterator[FrozenVolume]:
        """Nothing to hold still."""
        yield _Nothing()


class _Nothing(UntrackedMoment):
    size = 0

    def consistency(self) -> Consistency:
        """What qubesd said is one consistent state."""
        return Consistency.COMMITTED

    def allocated(self) -> Iterator[Extent]:
        """Nothing."""
        return iter(())

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Raises SourceError: there is nothing to read."""
        raise SourceError("settings have no bytes")
