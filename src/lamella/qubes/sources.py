"""A qube's volume as a source: the same volume wherever it lies, found and frozen while its qube may start or stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from lamella.base.delta import Delta
from lamella.base.errors import SourceError
from lamella.base.extents import Extent
from lamella.memory.host import Host
from lamella.qubes.admin import Admin
from lamella.qubes.inventory import HALTED, PAUSED, Qube, power_state
from lamella.qubes.places import Place
from lamella.sources.base import Consistency, FrozenVolume, Keeping, Source
from lamella.sources.driver import Untracked, UntrackedMoment
from lamella.sources.registry import open_kept_source

_TRIES = 5


def volume_identity(owner: str, volume: str) -> bytes:
    """`qubes:OWNER:VOLUME`: neither the qube's name nor where the volume lies is part of it."""
    return f"qubes:{owner}:{volume}".encode("ascii")


class QubeVolume:
    """One volume of one qube. `choose` says where it lies right now; kept moments are found by the identity."""

    def __init__(self, admin: Admin, host: Host, qube: Qube, identity: bytes, choose: Callable[[], Place]) -> None:
        self._admin = admin
        self._host = host
        self._qube = qube
        self._place = choose
        self.identity = identity
        """`qubes:OWNER:VOLUME`."""
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
    def default_name(self) -> str:
        """`QUBE:VOLUME`."""
        return f"{self._qube.name}:{self.identity.decode('ascii').rpartition(':')[2]}"

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

    def _opened(self, place: Place) -> Source:
        keeping = Keeping(self._host.owner, place.checkpoint_dir, self.identity, self._host.source_records)
        return open_kept_source(place.text, self._host.machine, keeping)

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
