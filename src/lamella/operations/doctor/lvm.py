"""Thin pools on this host: how full they are, what of Lamella is in them, what killed runs left there.

Only what Lamella made is ever changed: volumes with its name and tags, and reservations that it wrote down.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Final

from lamella.base.errors import CheckpointLost, SourceError
from lamella.memory.host import Host
from lamella.memory.ledger import tracked_identities
from lamella.operations.doctor.checkpoints import (
    FOREIGN,
    LEFTOVER,
    NEEDED,
    UNKNOWN,
    CleanUp,
    FoundCheckpoint,
    needed_moments,
)
from lamella.operations.doctor.doctor import Check
from lamella.sources.base import Keeping
from lamella.sources.checkpoint_files import ListedFile, source_name
from lamella.sources.lvm import commands
from lamella.sources.lvm import thin as lvm_thin
from lamella.sources.lvm.commands import LogicalVolume
from lamella.sources.lvm.pools import pool_status, refuse_at_risk
from lamella.sources.lvm.reservation import Reservations
from lamella.sources.lvm.target import PARTIAL_ENDING, PARTIAL_TAG
from lamella.sources.lvm.thin import ThinToken

REMOVED: Final = "volume removed"
PARTIAL: Final = "restore not ended"
_FIXABLE: Final = (LEFTOVER, REMOVED, PARTIAL)


class PoolExamination:
    """Looks at all volume groups. Where there is no LVM, or no right to ask it, there is nothing to say."""

    def __init__(self, host: Host, keeping: Keeping) -> None:
        self._host = host
        self._keeping = keeping
        self._identities = {source_name(identity): identity for identity in tracked_identities(host)}

    def checks(self) -> Iterator[Check]:
        """One line a pool, and what else is wrong. Raises SourceError."""
        rows = self._rows()
        judged = self._judged(rows)
        for pool in (row for row in rows if row.kind == "thin-pool"):
            yield self._pool(pool)
            yield from self._reservation(pool)
        fixable = [one for one in judged if one.state in _FIXABLE]
        if judged:
            states = [one.state for one in judged]
            text = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
            yield Check("snapshots", not fixable, text + ("; --fix removes what nothing needs" if fixable else ""))
        for row in rows:
            if row.suspended:
                hint = f"if no LVM command is running: dmsetup resume {commands.device_name(row.vg, row.name)}"
                yield Check("suspended", False, f"{row.text} is suspended, and whoever uses it waits; {hint}")

    def judged(self) -> list[FoundCheckpoint]:
        """Every snapshot and every restored volume that is not complete, by name. Raises SourceError."""
        return self._judged(self._rows())

    def mend(self, lock_wait: float) -> CleanUp:
        """Remove what nothing needs, and release what was reserved."""
        done = CleanUp([], [])
        for pool in (row for row in self._rows() if row.kind == "thin-pool"):
            with done.attempt("reservation", pool.text):
                Reservations(pool, self._keeping.records).mend()
        for one in self.judged():
            if one.state in _FIXABLE:
                self._remove(one, _FIXABLE, lock_wait, done)
        return done

    def remove_owned_by(self, owner: str, lock_wait: float) -> CleanUp:
        """Remove an owner's snapshots, but none that a ledger of this host needs."""
        done = CleanUp([], [])
        for one in self.judged():
            if one.file.owner == owner and one.state not in (NEEDED, PARTIAL):
                self._remove(one, (one.state,), lock_wait, done)
        return done

    def remove_all_owned(self, lock_wait: float) -> CleanUp:
        """Remove every snapshot of this host, needed or not, and release what it reserved."""
        done = self.mend(lock_wait)
        for one in self.judged():
            if one.file.owner == self._host.owner and one.state != PARTIAL:
                self._remove(one, (one.state,), lock_wait, done)
        return done

    def _remove(self, one: FoundCheckpoint, states: tuple[str, ...], lock_wait: float, done: CleanUp) -> None:
        """Remove it if it is still there and in one of these states when its source's lock is held."""
        identity = self._identities.get(one.file.source)
        lock = nullcontext() if identity is None else self._host.source_lock(identity, lock_wait)
        with done.attempt("snapshots", one.file.path), lock:
            rows = self._rows()
            again = {found.file.path: found for found in self._judged(rows)}.get(one.file.path)
            row = next((row for row in rows if _path(row) == one.file.path), None)
            if again is not None and again.state in states and row is not None and not row.open:
                lvm_thin.remove(row)
                done.removed.append(one)

    def _rows(self) -> list[LogicalVolume]:
        fit = os.geteuid() == 0 and Path("/dev/mapper/control").exists() and shutil.which("lvs")
        return commands.report() if fit else []

    def _pool(self, pool: LogicalVolume) -> Check:
        try:
            status = pool_status(pool)
            full = f"data {status.data_percent:.1f} %, metadata {status.metadata_percent:.1f} % full"
            refuse_at_risk(pool, status, self._keeping.limits)
        except SourceError as error:
            return Check("thin pool", False, f"{error.message}" + (f"; {error.hint}" if error.hint else ""))
        return Check("thin pool", True, f"{pool.text}: {full}")

    def _reservation(self, pool: LogicalVolume) -> Iterator[Check]:
        with suppress(SourceError):  # the check of the pool itself reports that it is inactive
            try:
                ours = Reservations(pool, self._keeping.records).stale()
            except CheckpointLost:
                return  # a backup is running
            if ours:
                yield Check(
                    "reservation", False, f"{pool.text}: left by a killed run; the next one, or --fix, releases it"
                )
            elif pool_status(pool).held is not None:
                release = f"dmsetup message {commands.device_name(pool.vg, pool.name)}-tpool 0 release_metadata_snap"
                text = "another program holds the metadata snapshot; if none is running, it is left over"
                yield Check("reservation", False, f"{pool.text}: {text}: {release}")

    def _judged(self, rows: list[LogicalVolume]) -> list[FoundCheckpoint]:
        needed = {
            source: needed_moments(self._host, identity, lambda text: ThinToken.parse(text).volume)
            for source, identity in self._identities.items()
        }
        found: list[FoundCheckpoint] = []
        for row in sorted(rows, key=lambda row: row.text):
            state = self._state(row, rows, needed)
            if state:
                owner, source = lvm_thin.owner_in(row), lvm_thin.source_in(row)
                file = ListedFile(_path(row), source, owner, row.mapped_bytes, row.made_ms, row.thin_id)
                found.append(FoundCheckpoint(file, state, self._place(row)))
        return found

    def _state(self, row: LogicalVolume, rows: list[LogicalVolume], needed: Mapping[str, set[str]]) -> str:
        """The state of a volume in a word; empty for volumes that are not Lamella's."""
        if PARTIAL_TAG in row.tags and row.name.endswith(PARTIAL_ENDING):
            return "" if row.open else PARTIAL
        owner, source = lvm_thin.owner_in(row), lvm_thin.source_in(row)
        if not owner:
            return ""
        if owner != self._host.owner:
            return FOREIGN
        if not _has_volume(row, rows):
            return REMOVED
        if source not in self._identities:
            return UNKNOWN
        return NEEDED if row.uuid in needed[source] else LEFTOVER

    def _place(self, row: LogicalVolume) -> str:
        named = lvm_thin.named_by(self._identities.get(lvm_thin.source_in(row), b""))
        return "" if named is None else f"lvm:{row.vg}/{named[1]}"


def _path(row: LogicalVolume) -> Path:
    return Path("/dev") / row.vg / row.name


def _has_volume(snapshot: LogicalVolume, rows: list[LogicalVolume]) -> bool:
    """Whether the volume group holds anything that the snapshot may have been made of, under whatever ending."""
    start = lvm_thin.volume_in(snapshot).removesuffix("-snap")
    others = (row.name for row in rows if row.vg_uuid == snapshot.vg_uuid and not lvm_thin.owner_in(row))
    return any(name.startswith(start) and not name.endswith(PARTIAL_ENDING) for name in others)
