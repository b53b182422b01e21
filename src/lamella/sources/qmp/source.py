"""The `qmp` driver: a disk of a running QEMU, held still together with all others that this process asks for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost, NothingMatched, SourceError, UsageError
from lamella.base.nbd import ALLOCATION_CONTEXT, DIRTY_BITMAP
from lamella.sources.base import Consistency, Keeping
from lamella.sources.nbd.address import NbdAddress
from lamella.sources.nbd.export import Export
from lamella.sources.nbd.source import FrozenExport
from lamella.sources.qmp import scratch
from lamella.sources.qmp.address import QmpAddress, parse
from lamella.sources.qmp.disks import Machine, StartedBitmap, machine_of
from lamella.sources.qmp.guardian import guarded
from lamella.sources.qmp.leftovers import clean, prefix_of
from lamella.sources.qmp.moment import HeldDisk, Moment
from lamella.sources.qmp.wire import Qmp, QmpRefused
from lamella.sources.together import Together, alone

DRIVER: Final = "qmp"


def open_qmp(text: str, machine: str, keeping: Keeping) -> QmpSource:
    """The one disk that an address means. Raises UsageError if it means several, SourceError without an answer."""
    address = parse(text)
    monitor = _monitor(address, keeping)
    fitting = monitor.fitting(address)
    if len(fitting) > 1:
        several = ", ".join(fitting)
        raise UsageError(
            f"{text} means several disks: {several}", obj=text, hint=f"write {address.of(fitting[0]).text}"
        )
    return QmpSource(monitor, fitting[0], machine, keeping.known_as)


def disks_at(text: str, keeping: Keeping) -> list[str]:
    """An address for each disk that one address means. Raises UsageError, NothingMatched, SourceError."""
    address = parse(text)
    return [address.of(name).text for name in _monitor(address, keeping).fitting(address)]


class Monitor(Together[Moment, Qmp]):
    """The monitor of one virtual machine."""

    def __init__(self, address: QmpAddress, keeping: Keeping) -> None:
        super().__init__()
        self.address = address
        self._keeping = keeping
        self._prefix = prefix_of(keeping.owner)
        self.machine: Machine
        self.look()

    def _connect(self) -> Qmp:
        return Qmp(self.address.socket)

    def _disconnect(self, connection: Qmp) -> None:
        connection.close()

    def _alone(self) -> AbstractContextManager[None]:
        place = f"the virtual machine of {self.address.socket}"
        return nullcontext() if self._keeping.records is None else alone(self._record("lock"), place)

    def _record(self, kind: str) -> Path:
        assert self._keeping.records is not None
        name = hashlib.sha256(os.fsencode(self.address.socket)).hexdigest()[:32]
        return self._keeping.records / f"qmp-{name}.{kind}"

    def look(self) -> Machine:
        """The machine as it is now. What a killed run left there is removed first. Raises SourceError."""
        with self._lock, self._connected() as qmp:
            if self._moment is not None:
                return self.machine
            with self._alone():
                clean(qmp, self._prefix)
            self.machine = machine_of(qmp)
            return self.machine

    def fitting(self, address: QmpAddress) -> list[str]:
        """The names of the disks that an address means. Raises NothingMatched."""
        found = [name for name in self.machine.disks if address.fits(name)]
        if not found:
            names = ", ".join(self.machine.disks)
            hint = f"there are: {names}" if names else "only disks that can be written to, and stay in, are backed up"
            raise NothingMatched(f"QEMU has no disk {address.disk}".rstrip(), obj=address.text, hint=hint)
        return found

    # -- bitmaps ------------------------------------------------------------------------------------------------------

    def kept(self, name: str) -> list[str]:
        """Our bitmaps on a disk, as the ledger names them; unusable ones as well."""
        disk = self.look().disks.get(name)
        if disk is None:
            return []
        part = None if self._moment is None else self._moment.parts.get(name)
        tokens = {bitmap.name: disk.token(bitmap).text for bitmap in disk.named(self._prefix)}
        if part is not None:
            tokens[part.bitmap] = part.token.text
        return list(tokens.values())

    def drop(self, name: str, checkpoint: str) -> None:
        """Remove a bitmap of ours. Raises SourceError."""
        with suppress(CheckpointLost), self._connected() as qmp:
            disk, token = self.machine.disks.get(name), StartedBitmap.parse(checkpoint)
            if disk is not None and token.bitmap.startswith(self._prefix):
                with suppress(QmpRefused):
                    qmp.do("block-dirty-bitmap-remove", {"node": disk.node, "name": token.bitmap})

    def keep(self, name: str, checkpoint: str) -> None:
        """Let a bitmap outlive the moment that started it."""
        part = None if self._moment is None else self._moment.parts.get(name)
        if part is not None and part.token.text == checkpoint:
            part.kept = True

    # -- the moment ---------------------------------------------------------------------------------------------------

    def _begin(self, names: set[str], connection: Qmp, held: ExitStack) -> Moment:
        held.enter_context(self._alone())
        clean(connection, self._prefix)
        self.machine = machine_of(connection)
        disks = [disk for name, disk in self.machine.disks.items() if name in names]
        if not disks:
            raise SourceError(f"{self.address.socket}: QEMU no longer has these disks", obj=self.address.socket)
        note, place = None, self._keeping.directory or scratch.PLACE
        if self._keeping.records is not None:
            note = self._record("frozen")
            socket, agent = self.address.socket, self.address.agent
            held.enter_context(guarded(socket, self._prefix, agent, self._record("lock"), note))
        moment = Moment(connection, self._prefix, disks, place, (self.address.agent, note))
        held.callback(moment.end)
        return moment


_MONITORS: WeakValueDictionary[tuple[QmpAddress, Keeping], Monitor] = WeakValueDictionary()


def _monitor(address: QmpAddress, keeping: Keeping) -> Monitor:
    """The monitor that all sources of this process at the same address share. Raises UsageError, SourceError."""
    if not keeping.owner:
        raise UsageError(f"the {DRIVER} driver starts bitmaps, and their owner is not named", obj=address.text)
    key = address.of(""), keeping
    found = _MONITORS.get(key)
    if found is None:
        found = _MONITORS[key] = Monitor(address.of(""), keeping)
    return found


class QmpSource:
    """One disk of a running QEMU."""

    driver = DRIVER
    tracks = True

    def __init__(self, monitor: Monitor, disk: str, machine: str, known_as: bytes) -> None:
        self._monitor = monitor
        self.disk = disk
        uuid = monitor.machine.uuid or monitor.address.socket
        self._identity = known_as or f"qmp:{machine}:{uuid}:{disk}".encode("utf-8", "surrogateescape")
        monitor.opened.add(self)

    @property
    def identity(self) -> bytes:
        """`qmp:MACHINE:UUID:DISK`; the socket's path instead of the UUID of a virtual machine that has none."""
        return self._identity

    @property
    def default_name(self) -> str:
        """`MACHINE:DISK`, by the names that QEMU knows; not yet made a valid volume name."""
        return f"{self._monitor.machine.name or Path(self._monitor.address.socket).stem}:{self.disk}"

    @contextmanager
    def freeze(self) -> Iterator[FrozenDisk]:
        """Hold all disks of the machine that are open still, and show this one. Raises SourceError, SourceAtRisk."""
        with self._monitor.moment(self.disk) as moment:
            part = moment.parts.get(self.disk)
            if part is None:
                raise SourceError(f"QEMU no longer has the disk {self.disk}", obj=self.disk)
            address = NbdAddress(part.disk.name, moment.socket)
            export = Export(address, [ALLOCATION_CONTEXT, *(DIRTY_BITMAP + name for name in part.older)])
            try:
                yield FrozenDisk(address, export, moment, part)
            finally:
                export.close()

    def keep(self, checkpoint: str) -> None:
        """Let the bitmap keep recording."""
        self._monitor.keep(self.disk, checkpoint)

    def drop(self, checkpoint: str) -> None:
        """Remove a bitmap, if it is ours. Raises SourceError."""
        self._monitor.drop(self.disk, checkpoint)

    def kept(self) -> list[str]:
        """Every bitmap of ours on this disk."""
        return self._monitor.kept(self.disk)


class FrozenDisk(FrozenExport):
    """A disk at the moment it was held still."""

    def __init__(self, address: NbdAddress, export: Export, moment: Moment, part: HeldDisk) -> None:
        super().__init__(address, export)
        self._moment = moment
        self._part = part

    @property
    def checkpoint(self) -> str:
        """The bitmap that was started at this moment."""
        return self._part.token.text

    def consistency(self) -> Consistency:
        """LIVE, or QUIESCED if the agent froze the file systems. Raises SourceError if it moved nevertheless."""
        self._moment.check(self._part)
        seen = super().consistency()
        self._moment.check(self._part)
        if seen == Consistency.CHANGED:
            return seen
        return Consistency.QUIESCED if self._moment.quiesced else Consistency.LIVE

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`. Raises SourceError, which says why where the moment was given up."""
        try:
            super().read_into(offset, buffer)
        except SourceError:
            self._moment.check(self._part)
            raise

    def delta_since(self, base: str, grain: int) -> Delta:
        """The content of the bitmap that `base` names at the moment. Raises CheckpointLost if it cannot be believed."""
        return self._dirty(self._part.disk.believed(base), grain)
