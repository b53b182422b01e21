"""The `libvirt` driver: a disk of a domain, held still together with all others that this process asks for."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost, NothingMatched, SourceError, UsageError
from lamella.base.nbd import ALLOCATION_CONTEXT, DIRTY_BITMAP
from lamella.sources.base import Consistency, Keeping
from lamella.sources.nbd.export import Export
from lamella.sources.nbd.source import FrozenExport
from lamella.sources.qmp import scratch
from lamella.sources.qmp.leftovers import prefix_of
from lamella.sources.together import Together, alone
from lamella.sources.virt import domain_xml
from lamella.sources.virt.agent import DomainGuest
from lamella.sources.virt.domain_xml import DomainFacts
from lamella.sources.virt.guardian import Guardian
from lamella.sources.virt.library import Connected, connect, told
from lamella.sources.virt.moments import (
    HaltedMoment,
    RunningMoment,
    ShownDisk,
    StartedCheckpoint,
    delete_checkpoint,
    leftovers_ended,
)

PREFIX: Final = "libvirt:"
DRIVER: Final = "libvirt"
_TOPOLOGICAL: Final = 2
"""libvirt's VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL: the oldest first."""
_INACTIVE: Final = 2
"""libvirt's VIR_DOMAIN_XML_INACTIVE: the definition, and not what the running domain became of it."""
_MOST_DOCUMENT: Final = 1 << 20
_TPM: Final = Path("/var/lib/libvirt/swtpm")
_READY_SECONDS: Final = 20.0


def open_libvirt(text: str, machine: str, keeping: Keeping) -> LibvirtSource:
    """The one disk that `libvirt:DOMAIN#DISK` means. Raises UsageError if that is several, SourceError."""
    domain = _domain(text, keeping)
    names = domain.fitting(text)
    if len(names) > 1:
        raise UsageError(f"{text} means several disks: {', '.join(names)}", obj=text, hint=f"write {text}#{names[0]}")
    return LibvirtSource(domain, names[0], machine, keeping.known_as)


def disks_at(text: str, keeping: Keeping) -> list[str]:
    """An address for each disk that an address means. Raises UsageError, NothingMatched, SourceError."""
    name = text.removeprefix(PREFIX).partition("#")[0]
    return [f"{PREFIX}{name}#{disk}" for disk in _domain(text, keeping).fitting(text)]


class Domain(Together["RunningMoment | HaltedMoment", Connected]):
    """A domain of libvirt. Raises SourceError if there is none of this name or UUID."""

    def __init__(self, name: str, keeping: Keeping) -> None:
        super().__init__()
        self._name = name
        self._keeping = keeping
        self._prefix = prefix_of(keeping.owner)
        self._dropped: dict[str, set[str]] = {}
        self.recorded: dict[str, list[str]] = {}
        """For each disk the checkpoints that recorded it at the moment, the oldest first."""
        with self._connected() as found, told():
            self.facts: DomainFacts = domain_xml.parsed(found.domain.XMLDesc(0))
            self.definition: str = found.domain.XMLDesc(_INACTIVE if found.domain.isPersistent() else 0)

    def _connect(self) -> Connected:
        return connect(self._name)

    def _disconnect(self, connection: Connected) -> None:
        connection.close()

    def fitting(self, text: str) -> list[str]:
        """The names of the disks that an address means. Raises NothingMatched."""
        _, _, disk = text.partition("#")
        found = [name for name in self.facts.disks if not disk or disk == name]
        if not found:
            names = ", ".join(self.facts.disks)
            raise NothingMatched(f"the domain has no disk {disk}".rstrip(), obj=text, hint=f"there are: {names}")
        return found

    def documents(self) -> dict[str, bytes]:
        """The parts of the domain beside its disks: its definition, UEFI variables, and the state of its TPM."""
        found = {"domain.xml": self.definition.encode()}
        places = [("nvram", Path(self.facts.nvram))] if self.facts.nvram else []
        if self.facts.has_tpm:
            places += [(path.name, path) for path in sorted((_TPM / self.facts.uuid / "tpm2").glob("*.permall"))]
        for name, path in places:
            with suppress(OSError):
                if path.stat().st_size <= _MOST_DOCUMENT:
                    found[name] = path.read_bytes()
        return found

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _checkpoints(self, domain: Any) -> dict[str, set[str]]:  # noqa: ANN401 - libvirt has no types
        """Our checkpoints, the oldest first, and the disks that each records."""
        with told():
            rows = [(row.getName(), row.getXMLDesc(0)) for row in domain.listAllCheckpoints(_TOPOLOGICAL)]
        ours = [(name, text) for name, text in rows if name.startswith(self._prefix)]
        return {name: domain_xml.disks_of_checkpoint(text) for name, text in ours}

    def kept(self, disk: str) -> list[str]:
        """Our checkpoints of a disk, as the ledger names them."""
        with self._connected() as found:
            size = self._size(found.domain, disk)
            rows = self._checkpoints(found.domain)
        return [StartedCheckpoint(name, size).text for name, disks in rows.items() if disk in disks]

    @staticmethod
    def _size(domain: Any, disk: str) -> int:  # noqa: ANN401
        with told():
            return int(domain.blockInfo(disk, 0)[0])

    def drop(self, disk: str, text: str) -> None:
        """A checkpoint is deleted when none of its disks that are still there needs it. Raises SourceError."""
        try:
            name = StartedCheckpoint.parse(text).checkpoint
        except CheckpointLost:
            return
        with self._connected() as found:
            disks = self._checkpoints(found.domain).get(name)
            if disks is None:
                return
            dropped = self._dropped.setdefault(name, set())
            dropped.add(disk)
            if not (disks & set(self.facts.disks)) - dropped:
                delete_checkpoint(found.domain, name)

    # -- the moment ---------------------------------------------------------------------------------------------------

    def _begin(self, names: set[str], connection: Connected, held: ExitStack) -> RunningMoment | HaltedMoment:
        held.enter_context(self._alone())
        domain, place = connection.domain, self._keeping.directory or scratch.PLACE
        run = f"{self._prefix}{self.facts.uuid[:8]}"
        with told():
            self.facts = domain_xml.parsed(domain.XMLDesc(0))
            active = domain.isActive()
        disks = {name: disk for name, disk in self.facts.disks.items() if name in names}
        rows = self._checkpoints(domain).items()
        self.recorded = {disk: [name for name, recorded in rows if disk in recorded] for disk in disks}
        found = {disk: names for disk, names in self.recorded.items() if names}
        if not active:
            halted = HaltedMoment(domain)
            held.callback(halted.end)
            halted.begin(disks, {disk: names[-1] for disk, names in found.items()})
            return halted
        guardian = self._guardian(place, run, held)
        if not leftovers_ended(domain, place, run):
            raise SourceError(f"another program is backing up the domain {self.facts.name}", obj=self.facts.name)
        oldest = {disk: names[0] for disk, names in found.items()}
        moment = RunningMoment(domain, self._prefix, f"{run}-{os.urandom(4).hex()}", place)
        held.callback(moment.end)
        asked = guardian if self.facts.has_agent else None
        moment.begin(disks, [name for name in self.facts.disks if name not in disks], oldest, asked)
        return moment

    def _guardian(self, place: Path, run: str, held: ExitStack) -> Guardian | None:
        """A guardian, which thaws first what a killed run left frozen; None where nothing is written down."""
        if self._keeping.records is None:
            return None
        guest = DomainGuest(self.facts.uuid, self._record("frozen"))
        guardian = Guardian(guest, place, run, self._record("lock"))
        held.callback(guardian.end)
        if guest.note.exists():
            guardian.thaw()
        return guardian

    def _record(self, kind: str) -> Path:
        assert self._keeping.records is not None
        return self._keeping.records / f"libvirt-{self.facts.uuid}.{kind}"

    def _alone(self) -> AbstractContextManager[None]:
        name = f"the domain {self.facts.name}"
        return nullcontext() if self._keeping.records is None else alone(self._record("lock"), name)

    def keep(self, text: str) -> None:
        """Let the checkpoint of this moment outlive it."""
        moment = self._moment
        if moment is not None and any(shown.started in text for shown in moment.disks.values() if shown.started):
            moment.kept = True


_DOMAINS: WeakValueDictionary[tuple[str, Keeping], Domain] = WeakValueDictionary()


def _domain(text: str, keeping: Keeping) -> Domain:
    name = text.removeprefix(PREFIX).partition("#")[0]
    if not name or not keeping.owner:
        raise UsageError(f"not the address of a domain: {text}", obj=text, hint="write libvirt:DOMAIN")
    found = _DOMAINS.get((name, keeping))
    if found is None:
        found = _DOMAINS[name, keeping] = Domain(name, keeping)
    return found


class LibvirtSource:
    """One disk of a domain."""

    driver = DRIVER

    def __init__(self, domain: Domain, disk: str, machine: str, known_as: bytes) -> None:
        self._domain = domain
        self.disk = disk
        self._identity = known_as or f"libvirt:{machine}:{domain.facts.uuid}:{disk}".encode()
        domain.opened.add(self)

    @property
    def tracks(self) -> bool:
        """Whether the image can hold the bitmap of a checkpoint."""
        return self._domain.facts.disks[self.disk].tracked

    @property
    def identity(self) -> bytes:
        """`libvirt:MACHINE:UUID:DISK`."""
        return self._identity

    @property
    def default_name(self) -> str:
        """`DOMAIN:DISK`; not yet made a valid volume name."""
        return f"{self._domain.facts.name}:{self.disk}"

    @property
    def documents(self) -> Mapping[str, bytes]:
        """The documents of the snapshot: the domain's definition, UEFI variables, TPM."""
        return self._domain.documents()

    @contextmanager
    def freeze(self) -> Iterator[FrozenDomainDisk]:
        """Hold all disks of the domain that are open still, and show this one. Raises SourceError, SourceAtRisk."""
        with self._domain.moment(self.disk) as moment:
            shown = moment.disks.get(self.disk)
            if shown is None:
                raise SourceError(f"the domain no longer has the disk {self.disk}", obj=self.disk)
            contexts = [ALLOCATION_CONTEXT, *([DIRTY_BITMAP + shown.bitmap] if shown.bitmap else [])]
            export = _exported(shown, contexts)
            try:
                yield FrozenDomainDisk(self.disk, export, moment, self._domain.recorded.get(self.disk, ()))
            finally:
                export.close()

    def keep(self, checkpoint: str) -> None:
        """Let the checkpoint keep recording."""
        self._domain.keep(checkpoint)

    def drop(self, checkpoint: str) -> None:
        """Delete a checkpoint of ours, once no disk needs it. Raises SourceError."""
        self._domain.drop(self.disk, checkpoint)

    def kept(self) -> list[str]:
        """Every checkpoint of ours that records this disk."""
        return self._domain.kept(self.disk)


def _exported(shown: ShownDisk, contexts: list[str]) -> Export:
    """The export, as soon as its server answers. Raises SourceError."""
    until = time.monotonic() + _READY_SECONDS
    while True:
        try:
            return Export(shown.address, contexts)
        except SourceError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


class FrozenDomainDisk(FrozenExport):
    """A disk at the moment it was held still."""

    def __init__(self, name: str, export: Export, moment: RunningMoment | HaltedMoment, since: Collection[str]) -> None:
        shown = moment.disks[name]
        super().__init__(shown.address, export)
        self._name = name
        self._moment = moment
        self._shown = shown
        self._shown_since = since

    @property
    def checkpoint(self) -> str:
        """The checkpoint that was started at this moment, or before it if the domain is halted."""
        return StartedCheckpoint(self._shown.started, self.size).text if self._shown.started else ""

    def consistency(self) -> Consistency:
        """LIVE, QUIESCED or HALTED. Raises SourceError if the disk moved nevertheless."""
        seen = super().consistency()
        said = self._moment.consistency(self._name)
        return seen if seen == Consistency.CHANGED else said

    def delta_since(self, base: str, grain: int) -> Delta:
        """The ranges that changed since our oldest checkpoint, and so since each later one. Raises CheckpointLost."""
        token = StartedCheckpoint.parse(base)
        if not self._shown.bitmap:
            raise CheckpointLost("the domain is halted, or its bitmap was lost")
        if token.size != self.size:
            raise CheckpointLost("the disk had another size at the last backup")
        if token.checkpoint not in self._shown_since:
            raise CheckpointLost("libvirt no longer has the checkpoint of the last backup")
        return self._dirty(self._shown.bitmap, grain)
