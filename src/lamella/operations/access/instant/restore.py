"""An instant restore from the opening of its target and journal to the moment when the target stands alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lamella.base.errors import LamellaError
from lamella.base.events import Reporter
from lamella.operations.access.instant.arrival import Arrival, Telling
from lamella.operations.access.instant.disk import InstantDisk
from lamella.operations.access.instant.journal import Journal, open_journal, owner_of, require_own
from lamella.operations.access.kept_file import Owner
from lamella.operations.access.nbd_server import NbdServer
from lamella.operations.access.view import Reading
from lamella.operations.shared.selection import Selected
from lamella.operations.shared.streaming import VolumeStream, identify_chunk
from lamella.run.beside import Beside
from lamella.sources.served_target import ServedTarget, choose_served, disk_number, unfinished

JOURNAL_SUFFIX = ".journal"
END_SECONDS = 20.0
"""Seconds that the end waits for chunks that are on their way."""


def journal_beside(target: Path) -> Path:
    """The journal of a file that is restored and used."""
    path = unfinished(target)
    return path.with_name(path.name + JOURNAL_SUFFIX)


def owner_for(reading: Reading, selected: Selected) -> Owner:
    """The words of a journal about its snapshot."""
    snapshot = selected.snapshot
    return Owner(reading.repo.repo_id, snapshot.added.volume_id, snapshot.ref.snap_id, selected.text)


def clear_up(target: Path, journal: Path) -> Owner | None:
    """Remove what a restore left that was killed after its volume had its name; whose that was.

    None if there is no such restore; what is no longer what the journal says, or never was, is left to the next run.
    Raises UsageError, IntegrityError, LamellaError.
    """
    known = owner_of(journal)
    if known is None or not known.is_complete or not target.is_file() or target.stat().st_ino != known.inode:
        return None
    partial = unfinished(target)
    if partial.exists():
        if not target.samefile(partial):
            return None  # it has no name yet
        partial.unlink()
    journal.unlink()
    return known.owner


@dataclass(frozen=True, slots=True)
class InstantOptions:
    """Options of a restore: the journal, the kernel's id of this boot, whether the present content may be replaced."""

    journal: Path
    boot: str
    overwrite: bool = False
    workers: int | None = None
    data_bytes: int = 0
    """The number of data bytes of the snapshot, at most."""


class InstantRestore:
    """One volume that is restored and used. Made by `instant_restore`."""

    def __init__(
        self, disk: InstantDisk, target: ServedTarget, journal: Journal, arrival: Arrival, *, is_resumed: bool
    ) -> None:
        self.disk = disk
        self.target = target
        self.arrival = arrival
        self.is_complete = False
        """The volume has its name, is proven, and needs nothing of ours."""
        self.is_resumed = is_resumed
        self._journal = journal
        self._named = False

    def serve(self, server: NbdServer) -> None:
        """Serve the volume while the rest arrives. Returns when it is complete and no client is connected, or when
        the server is stopped; raises KeyboardInterrupt as it comes. Raises LamellaError for what could not be kept."""

        def bring() -> None:
            self.arrival.run(self.complete)
            if self.is_complete:
                server.end_with_clients()

        beside = Beside(bring, "lamella-arrival")
        try:
            server.run()
        finally:
            server.close()
            self._flush()
            self.arrival.stop()
            beside.join(END_SECONDS)
            self._flush()

    def complete(self) -> None:
        """Raises LamellaError, OSError; may then be called again."""
        self._journal.complete(self.target.sync, self.target.inode)
        if not self._named:
            self._journal.synced(self.target.take_name)
            self._named = True
        self._journal.remove()
        self.is_complete = True

    def _flush(self) -> None:
        try:
            self.disk.flush()
        except OSError as error:
            where = str(self.target.working_path)
            raise LamellaError(
                f"what was written last may be missing in {where}: {error.strerror}", obj=where
            ) from error


@contextmanager
def instant_restore(
    reading: Reading, selected: Selected, path: Path, options: InstantOptions, reporter: Reporter
) -> Iterator[InstantRestore]:
    """Open or continue the restore of a snapshot to a file or device.

    Raises UsageError or SourceError for the target or the journal, Locked, IntegrityError, StoreError, OSError.
    """
    view = reading.view(selected)
    stream = VolumeStream(reading.repo, selected)
    target = choose_served(path, overwrite=options.overwrite)
    owner, chunk_size = owner_for(reading, selected), stream.shape.chunk_size
    is_resumed = require_own(options.journal, owner, target)
    target.prepare(view.size, options.data_bytes)
    journal: Journal | None = None
    try:
        moment = _moment(options.boot, target.working_path, options.journal.absolute().parent)
        journal = open_journal(options.journal, owner, view.size, chunk_size, moment, target)
        disk = InstantDisk(view, target, journal, chunk_size)
        telling = Telling(reporter, selected.volume_name, options.data_bytes, options.workers)
        arrival = Arrival(disk, stream, identify_chunk(reading.repo, selected), target, telling)
        if is_resumed:
            arrival.require_same_target()
        yield InstantRestore(disk, target, journal, arrival, is_resumed=is_resumed)
    finally:
        if journal is not None:
            journal.close()
        target.abandon()


def _moment(boot: str, *disks: Path) -> bytes:
    """The same as long as neither the machine nor a disk has lost its power."""
    text = "\n".join((boot, *map(disk_number, disks)))
    return hashlib.sha256(text.encode()).digest()[:16]
