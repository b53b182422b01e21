"""Importing a history: what is here already is left out, every other session becomes a snapshot.

A run that was broken off is begun again by the same command: sessions that are here are known by their origin, and the
session that was being read goes on from the last point of its run (docs/decisions/0016).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import groupby
from math import inf
from typing import Final

from lamella.base.events import Reporter, Warned, silent
from lamella.format.inner import claim_of_time, claimed_ms
from lamella.history.catalogue import Snapshot
from lamella.imports.choosing import names_of
from lamella.imports.history import (
    ORIGIN_DOCUMENT,
    ForeignHistory,
    ForeignOrigin,
    ForeignSession,
    ForeignVolume,
    origin_key,
    volume_sources,
)
from lamella.operations.backup.story import BackupOptions, BackupResult, Request, plan_backup
from lamella.operations.labels import MAX_TAG, label_records
from lamella.operations.shared.selection import Selected
from lamella.operations.shared.streaming import read_document
from lamella.repository.repository import Repository

_NOT_IN_TAGS: Final = str.maketrans("@^,", "___")


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How to import. With `trusts_times` a snapshot has the time that the archive claims, and rules of retention count
    by that; without, the snapshot has the time of the import, and is pinned: the rules would take a whole history for
    the work of one day.
    """

    backup: BackupOptions = field(default_factory=BackupOptions)
    trusts_times: bool = False


class ImportState(Enum):
    """What becomes of a volume of a session."""

    WANTED = "imported"
    PRESENT = "present"
    LATE = "left out"
    """A later session is here already: an older one, stored now, would be taken for the latest."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ImportRow:
    """A volume of a session."""

    session: ForeignSession
    foreign: ForeignVolume
    volume: str
    """The name of the volume in the repository."""
    standing: ImportState
    snapshot: str = ""
    """The snapshot that it is."""
    error: str = ""
    read_bytes: int = 0
    stored_bytes: int = 0
    sampled_bytes: int = 0
    """Of the bytes that were read those that the archive says are as before."""


@dataclass(frozen=True, slots=True)
class ImportResult:
    """The outcome: a row for each volume of each session."""

    rows: list[ImportRow]
    lacks: tuple[str, ...]
    metadata_bytes: int = 0
    stored_bytes: int = 0

    @property
    def complete(self) -> bool:
        """Whether everything that was chosen is in the repository, as far as anybody knows."""
        return not self.lacks and all(row.standing in (ImportState.WANTED, ImportState.PRESENT) for row in self.rows)


Began = Callable[[ForeignSession], Reporter]
"""Hears of each session before it is read; gives what hears of its progress."""


def _unsaid(session: ForeignSession) -> Reporter:
    return silent


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """What an import would do now."""

    repo: Repository
    history: ForeignHistory
    options: ImportOptions
    rows: list[ImportRow]
    unlabelled: list[Selected]
    """Snapshots that a broken run may have left without their labels."""
    tags: tuple[str, ...] = ()

    def execute(self, began: Began = _unsaid) -> ImportResult:
        """Import every session that is wanted, one snapshot each; `began` hears of each session.

        A volume that cannot be read is left out of its session. Raises UsageError, Locked, StoreError, RolledBack;
        then everything that was imported is safe.
        """
        if self.unlabelled:
            self._label(self.unlabelled, self.tags)
        done: list[ImportRow] = []
        metadata = stored = 0
        for session, found in groupby(self.rows, key=lambda row: row.session):
            rows = list(found)
            wanted = [row for row in rows if row.standing is ImportState.WANTED]
            done += [row for row in rows if row.standing is not ImportState.WANTED]
            if not wanted:
                continue
            result = self._session(session, wanted, began(session))
            metadata, stored = metadata + result.metadata_bytes, stored + result.stored_bytes
            done += _outcome(session, wanted, result)
        return ImportResult(done, self.history.lacks, metadata, stored)

    def _session(self, session: ForeignSession, rows: Sequence[ImportRow], reporter: Reporter) -> BackupResult:
        known = {volume.identity for volume in self.repo.catalogue.own_volumes()}
        requests = [self._request(session, row, row.foreign.source.identity in known) for row in rows]
        result = plan_backup(self.repo, requests, self.options.backup).execute(reporter)
        if result.snapshot:
            shown = self.repo.catalogue.shown_names()
            chosen = [
                Selected(shown[volume.volume_id], volume, snapshot)
                for volume in self.repo.catalogue.volumes.values()
                for snapshot in volume.snapshots
                if snapshot.name == result.snapshot and snapshot.ref.writer == self.repo.own_writer
            ]
            self._label(chosen, wanted_tags(session, reporter))
        return result

    def _request(self, session: ForeignSession, row: ImportRow, known: bool) -> Request:
        claim, foreign = session.claimed_ms, row.foreign
        origin = ForeignOrigin.made(self.history, session, foreign).encode()
        return Request(
            None if known else row.volume,
            foreign.source,
            foreign.domain,
            documents={**foreign.documents, ORIGIN_DOCUMENT: origin},
            notes=() if claim is None else (claim_of_time(claim),),
            time_ms=claim if self.options.trusts_times else None,
        )

    def _label(self, chosen: Sequence[Selected], tags: Sequence[str]) -> None:
        pin = None if self.options.trusts_times else f"imported from {self.history.kind}"
        records = label_records(chosen, tags, (), pin, unpin=False)
        if records:
            self.repo.publish(records)
            self.repo.reload()


def plan_import(
    repo: Repository, history: ForeignHistory, names: dict[str, str], options: ImportOptions | None = None
) -> ImportPlan:
    """The plan of an import; `names` are those that the user gave, by the other tool's names.

    Raises UsageError for a name that another source's volume has, RolledBack, IntegrityError, StoreError.
    """
    repo.require_sound_history()
    here = _imported(repo, history)
    own = repo.catalogue.own_volumes()
    shown = repo.catalogue.shown_names()
    identities = {volume.identity: shown[volume.volume_id] for volume in own}
    standings = _standings(history, here, _newest(repo, here))
    new = {key[0] for key, standing in standings.items() if standing is ImportState.WANTED} - set(identities)
    called = _names(history, names, new, {volume.name for volume in own if volume.identity not in new})
    rows: list[ImportRow] = []
    for session, volume in volume_sources(history):
        identity = volume.source.identity
        found = here.get((identity, session.id))
        standing = standings[identity, session.id]
        name = found.volume_name if found is not None else identities.get(identity) or called.get(identity, volume.name)
        rows.append(ImportRow(session, volume, name, standing, found.snapshot.name if found is not None else ""))
    unlabelled, tags = _unlabelled(history, here)
    return ImportPlan(repo, history, options or ImportOptions(), rows, unlabelled, tags)


_Here = dict[tuple[bytes, str], Selected]
"""By a source's identity and a session: the snapshot that it is."""


def _imported(repo: Repository, history: ForeignHistory) -> _Here:
    """The sessions that are here already, in volumes of this host: nobody else can say that something is here."""
    wanted = {
        ForeignOrigin.made(history, session, volume).key: (session, volume)
        for session, volume in volume_sources(history)
    }
    claims = {session.claimed_ms for session in history.sessions}
    shown, found = repo.catalogue.shown_names(), _Here()
    for volume in repo.catalogue.own_volumes():
        for snapshot in volume.snapshots:
            if not _may_be_imported(snapshot, claims):
                continue
            selected = Selected(shown[volume.volume_id], volume, snapshot)
            key = origin_key(read_document(repo, selected, ORIGIN_DOCUMENT))
            if key in wanted:
                session, foreign = wanted[key]
                found[foreign.source.identity, session.id] = selected
    return found


def _may_be_imported(snapshot: Snapshot, claims: set[int | None]) -> bool:
    named = any(row.name == ORIGIN_DOCUMENT for row in snapshot.added.documents)
    return named and snapshot.counts and claimed_ms(snapshot.added) in claims


def _newest(repo: Repository, here: _Here) -> dict[bytes, float]:
    """By identity: the latest moment of what is here and not in this history; infinite if it was saved here itself."""
    listed = {selected.snapshot.ref for selected in here.values()}
    found: dict[bytes, float] = {}
    for volume in repo.catalogue.own_volumes():
        for snapshot in volume.snapshots:
            if snapshot.counts and snapshot.ref not in listed:
                was_imported = any(row.name == ORIGIN_DOCUMENT for row in snapshot.added.documents)
                moment = claimed_ms(snapshot.added) or 0 if was_imported else inf
                found[volume.identity] = max(moment, found.get(volume.identity, 0))
    return found


def _standings(
    history: ForeignHistory, here: _Here, newest: Mapping[bytes, float]
) -> dict[tuple[bytes, str], ImportState]:
    """What becomes of each session: in the archive's order, and not before what is here of other archives."""
    found: dict[tuple[bytes, str], ImportState] = {}
    later = {identity for identity, moment in newest.items() if moment == inf}
    for session in reversed(history.sessions):
        for volume in session.volumes:
            key = volume.source.identity, session.id
            if key in here:
                later.add(key[0])
                found[key] = ImportState.PRESENT
            else:
                is_late = key[0] in later or (session.claimed_ms or inf) < newest.get(key[0], 0)
                found[key] = ImportState.LATE if is_late else ImportState.WANTED
    return found


def _names(history: ForeignHistory, given: dict[str, str], new: set[bytes], taken: set[str]) -> dict[bytes, str]:
    sessions = tuple(
        ForeignSession(session.id, tuple(one for one in session.volumes if one.source.identity in new))
        for session in history.sessions
    )
    return names_of(sessions, given, taken)


def _unlabelled(history: ForeignHistory, here: _Here) -> tuple[list[Selected], tuple[str, ...]]:
    """The last session that is here, if it has no label at all: a run may have ended before it was labelled."""
    for session in reversed(history.sessions):
        found = [here[key] for volume in session.volumes if (key := (volume.source.identity, session.id)) in here]
        if found:
            bare = [one for one in found if not one.snapshot.tags and one.snapshot.pinned is None]
            return bare, wanted_tags(session)
    return [], ()


def wanted_tags(session: ForeignSession, reporter: Reporter = silent) -> tuple[str, ...]:
    """The tags of a session as tags may be written here; the user hears of those that had to be changed."""
    found: list[str] = []
    for tag in session.tags:
        clean = "".join(c if c.isprintable() else "_" for c in tag).translate(_NOT_IN_TAGS)
        clean = clean.encode("utf-8", "replace")[:MAX_TAG].decode("utf-8", "ignore").strip()
        if clean != tag:
            reporter(Warned(f"session {session.id}: a tag becomes {clean!r}, as tags may be written here"))
        if clean:
            found.append(clean)
    return tuple(found)


def _outcome(session: ForeignSession, wanted: Sequence[ImportRow], result: BackupResult) -> list[ImportRow]:
    """Rows of a session that was read. The results are in the order of the requests."""
    made: list[ImportRow] = []
    for row, volume in zip(wanted, result.volumes, strict=True):
        failed = volume.result == "failed"
        standing = ImportState.FAILED if failed else ImportState.WANTED
        figures = volume.error, volume.read_bytes, volume.stored_bytes, volume.sampled_bytes
        snapshot = "" if failed else result.snapshot
        made.append(ImportRow(session, row.foreign, volume.volume, standing, snapshot, *figures))
    return made
