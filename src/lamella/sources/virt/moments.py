"""One moment of several disks of a domain: of a running one by a backup job of libvirt, of a halted one as it lies."""

from __future__ import annotations

import os
import stat
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lamella.base.errors import SourceAtRisk, SourceError
from lamella.run.beside import Beside
from lamella.run.spawn import Child
from lamella.sources.base import Consistency
from lamella.sources.driver import MomentToken
from lamella.sources.in_place import sectors_written
from lamella.sources.nbd.address import NbdAddress
from lamella.sources.opened_files import opened_files
from lamella.sources.qmp.scratch import scarce
from lamella.sources.virt import domain_xml
from lamella.sources.virt.domain_xml import DomainDisk
from lamella.sources.virt.library import BROKEN_CHECKPOINT, LibvirtError, told

if TYPE_CHECKING:
    from lamella.sources.virt.guardian import Guardian

_END_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.05
_WATCH_SECONDS: Final = 0.25
_START_SECONDS: Final = 20.0
_TRIES: Final = 4


@dataclass(frozen=True, slots=True)
class StartedCheckpoint(MomentToken):
    """A checkpoint of libvirt that records what changes on a disk from a moment on, and the size of the disk then."""

    checkpoint: str
    size: int


@dataclass(frozen=True, slots=True)
class ShownDisk:
    """A disk as the moment shows it."""

    address: NbdAddress
    bitmap: str
    """The name under which the export has the bitmap; empty: none is to be had."""
    started: str
    """The checkpoint that was started at the moment, or before it if the domain is halted; empty: there is none."""


class RunningMoment:
    """A backup job in pull mode. Raises SourceError, and nothing is left then."""

    def __init__(self, domain: Any, prefix: str, run: str, place: Path) -> None:  # noqa: ANN401 - libvirt has no types
        self._domain = domain
        self._checkpoint = prefix + os.urandom(8).hex()
        self._base = place / run
        self._socket = f"{self._base}.sock"
        self._broken = ""
        self._stop = threading.Event()
        self._watch: Beside | None = None
        self.quiesced = False
        """Whether the guest's file systems were frozen at the moment."""
        self.kept = False
        """Whether the checkpoint outlives the moment."""
        self.disks: dict[str, ShownDisk] = {}

    def begin(
        self, disks: Mapping[str, DomainDisk], others: Iterable[str], bases: dict[str, str], guardian: Guardian | None
    ) -> None:
        """Start the job. `bases` says from which checkpoint the bitmap of a disk is wanted; a guardian freezes."""
        if _scarce(self._base.parent):
            raise SourceAtRisk(f"too little room for scratch files in {self._base.parent}", obj=str(self._base.parent))
        scratch = {name: f"{self._base}-{name}.qcow2" for name in disks}
        tracked = [name for name, disk in disks.items() if disk.tracked]
        rest = [*others]
        untracked = [*rest, *(name for name in disks if name not in tracked)]
        checkpoint = domain_xml.checkpoint(self._checkpoint, tracked, untracked) if tracked else None
        for attempt in range(_TRIES):
            try:
                with self._settled(guardian), told():
                    self._domain.backupBegin(domain_xml.backup(self._socket, scratch, bases, rest), checkpoint, 0)
                break
            except LibvirtError as error:
                if error.code != BROKEN_CHECKPOINT or not bases or attempt + 1 == _TRIES:
                    raise
                # Its message names the disk; whoever is not named may be believed.
                named = [name for name in bases if f"'{name}'" in error.message]
                for name in named or list(bases):
                    del bases[name]
        for name, disk in disks.items():
            started = self._checkpoint if disk.tracked else ""
            self.disks[name] = ShownDisk(NbdAddress(name, self._socket), bases.get(name, ""), started)
        self._watch = Beside(self._watched, "lamella-scratch")

    @contextmanager
    def _settled(self, guardian: Guardian | None) -> Iterator[None]:
        """Ask the guest to write what it holds back, and to wait; it goes on whatever happens."""
        self.quiesced = False
        if guardian is None:
            yield
            return
        frozen = thawed = 0
        try:
            frozen = guardian.freeze()
            yield
        finally:
            thawed = guardian.thaw()
        self.quiesced = 0 < frozen <= thawed

    def consistency(self, name: str) -> Consistency:
        """Raises SourceError if the job has ended: then the disk has moved."""
        if self._ours() and not self._broken:
            return Consistency.QUIESCED if self.quiesced else Consistency.LIVE
        why = self._broken or "the backup job of libvirt has ended"
        raise SourceError(f"the disk {name} moved while it was read: {why}", obj=name)

    def _ours(self) -> bool:
        """Whether the backup that is under way is this one: nobody else's may be ended."""
        with suppress(LibvirtError), told():
            return domain_xml.server_of_backup(self._domain.backupGetXMLDesc(0)) == self._socket
        return False

    def _end_ours(self) -> None:
        with suppress(SourceError):
            if self._ours():
                end_job(self._domain)

    def _write_out(self) -> None:
        """QEMU flushes a scratch image that it closes, and its guest stands still meanwhile: leave it little to do."""
        for path in self._base.parent.glob(f"{self._base.name}-*.qcow2"):
            with suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fdatasync(fd)
                finally:
                    os.close(fd)

    def _watched(self) -> None:
        while not self._stop.wait(_WATCH_SECONDS):
            if _scarce(self._base.parent):
                self._broken = "its scratch space is full, so the moment was given up"
                self._end_ours()
                return

    def end(self) -> None:
        """End the job; what cannot be removed now, the next run removes."""
        self._stop.set()
        if self._watch is not None:
            self._watch.join(_END_SECONDS)
        self._write_out()
        self._end_ours()
        if not self.kept:
            with suppress(SourceError):
                delete_checkpoint(self._domain, self._checkpoint)
        remove_files(self._base.parent, self._base.name)


class HaltedMoment:
    """A halted domain: its images are read where they lie. Raises SourceError."""

    kept = False

    def __init__(self, domain: Any) -> None:  # noqa: ANN401
        self._domain = domain
        self._held = ExitStack()
        self._stamps: dict[str, dict[str, tuple[int, ...]]] = {}
        """For each disk its files, those below it as well, as they were."""
        self.disks: dict[str, ShownDisk] = {}

    def begin(self, disks: Mapping[str, DomainDisk], newest: Mapping[str, str]) -> None:
        """Serve the images. `newest` is the last checkpoint of each disk: it holds all changes from now on, too."""
        folder = self._held.enter_context(tempfile.TemporaryDirectory(prefix="lamella-"))
        for number, (name, disk) in enumerate(disks.items()):
            if not disk.path:
                raise SourceError(
                    f"the disk {name} lies in no file or device; start the domain to back it up", obj=name
                )
            stamps = self._stamps[name] = {disk.path: _stamps(disk.path)}
            socket = f"{folder}/{number}"
            # A domain may be started while we read: then the moment is lost, and not the start.
            image = f"driver={disk.form},force-share=on,read-only=on,file.locking=auto,{_file(disk.path)}"
            command = [
                "qemu-nbd",
                "--read-only",
                "--persistent",
                "--shared=8",
                "-x",
                name,
                "-k",
                socket,
                "--image-opts",
            ]
            child = Child([*command, image], error=SourceError)
            self._held.callback(_ended, child)
            _wait_for(child, Path(socket), name)
            stamps |= {str(path): _stamps(str(path)) for path in opened_files(child.pid) - {Path(disk.path).resolve()}}
            self.disks[name] = ShownDisk(NbdAddress(name, socket), "", newest.get(name, ""))

    def consistency(self, name: str) -> Consistency:
        """Raises SourceError if the domain was started, or the image changed."""
        stamps = self._stamps[name]
        with told():
            active = self._domain.isActive()
        if active or any(_stamps(path) != before for path, before in stamps.items()):
            raise SourceError(
                f"the disk {name} moved while it was read: the domain was started, or written to", obj=name
            )
        return Consistency.HALTED

    def end(self) -> None:
        """Serve no more."""
        self._held.close()


def end_job(domain: Any) -> None:  # noqa: ANN401
    """End the backup job of a domain, if there is any, and wait until it has ended. Raises SourceError."""
    until = time.monotonic() + _END_SECONDS
    while True:
        with suppress(LibvirtError), told():
            domain.abortJob()
        try:
            with told():
                domain.backupGetXMLDesc(0)
        except LibvirtError:
            return
        if time.monotonic() > until:
            raise SourceError("libvirt does not end the backup job")
        time.sleep(_LOOK_SECONDS)


def leftovers_ended(domain: Any, place: Path, run: str) -> bool:  # noqa: ANN401
    """End what a killed run left; False if the backup that is under way is another program's. Raises SourceError."""
    try:
        with told():
            text = domain.backupGetXMLDesc(0)
    except LibvirtError:
        pass  # there is none
    else:
        if not Path(domain_xml.server_of_backup(text)).name.startswith(run):
            return False
        end_job(domain)
    remove_files(place, run)
    return True


def delete_checkpoint(domain: Any, name: str) -> None:  # noqa: ANN401
    """Delete a checkpoint and its bitmaps; only what libvirt knows of it, if a bitmap is lost. Raises LibvirtError."""
    with told():
        found = domain.checkpointLookupByName(name, 0)
        try:
            with told():
                found.delete(0)
        except LibvirtError:
            found.delete(2)  # VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY


def remove_files(place: Path, start: str) -> None:
    """Remove the scratch files and sockets whose names begin so."""
    for path in place.glob(f"{start}*"):
        with suppress(OSError):
            path.unlink()


def _scarce(place: Path) -> bool:
    fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return scarce(fd)
    finally:
        os.close(fd)


def _file(path: str) -> str:
    kind = "host_device" if Path(path).is_block_device() else "file"
    return f"file.driver={kind},file.filename={path.replace(',', ',,')}"


def _stamps(path: str) -> tuple[int, ...]:
    try:
        now = Path(path).stat()
    except OSError as reason:
        raise SourceError(f"cannot read {path}: {reason.strerror}", obj=path) from reason
    # The inode of a device need not change with what is written: libvirt gives each QEMU nodes of its own.
    written = sectors_written(now.st_rdev) if stat.S_ISBLK(now.st_mode) else None
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns, *(written or ())


def _wait_for(child: Child, socket: Path, name: str) -> None:
    until = time.monotonic() + _START_SECONDS
    while not socket.exists():
        status = child.wait(_LOOK_SECONDS)
        if status is not None or time.monotonic() > until:
            child.drain_stderr()
            raise SourceError(f"qemu-nbd cannot read the disk {name}: {child.said()}", obj=name)


def _ended(child: Child) -> None:
    child.terminate()
    child.end(5.0)
