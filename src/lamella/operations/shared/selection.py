"""Finding volumes and snapshots by what users write: `VOLUME[@SNAPSHOT]`, SNAPSHOT a name, `^tag` or date."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lamella.base.errors import IntegrityError, NothingMatched, UsageError
from lamella.base.ids import VolumeId, WriterId
from lamella.format.known import understood
from lamella.format.records import AddSnap, Volume
from lamella.history.catalogue import Snapshot, VolumeState
from lamella.history.records import prune_signed
from lamella.memory.pins import Problem
from lamella.operations.shared.newest import newest
from lamella.repository.repository import Repository

LATEST = "latest"
TAG = "^"


@dataclass(frozen=True, slots=True)
class Selected:
    """One snapshot of one volume, with the name under which the volume is shown."""

    volume_name: str
    volume: VolumeState
    snapshot: Snapshot

    @property
    def text(self) -> str:
        """`VOLUME@SNAPSHOT`."""
        return f"{self.volume_name}@{self.snapshot.name}"


def split_selector(text: str) -> tuple[str, str | None]:
    """`VOLUME@SNAPSHOT` -> both, `VOLUME` -> (VOLUME, None). Raises UsageError for an empty part."""
    volume, at, snapshot = text.partition("@")
    if not volume or (at and not snapshot):
        raise UsageError(f"not a selection: {text!r}", hint="write VOLUME or VOLUME@SNAPSHOT")
    return volume, snapshot if at else None


def find_volume(repo: Repository, text: str) -> VolumeState:
    """The volume shown as `text`, or with this full name `NAME~<4 hex>` or 32-digit id.

    Raises NothingMatched, also when several volumes share the name.
    """
    shown = repo.catalogue.shown_names()
    found = [repo.catalogue.volumes[id_] for id_, name in shown.items() if text in (name, id_.hex())]
    # The full name means the same on every host, also where the plain one would do.
    found = found or [one for one in repo.catalogue.volumes.values() if text == f"{one.name}~{one.volume_id.hex()[:4]}"]
    if len(found) == 1:
        return found[0]
    from lamella.operations.shared.unmatched import no_volume  # rarely needed

    raise no_volume(repo, found, text)


def find_snapshot(repo: Repository, volume: VolumeState, text: str | None) -> Snapshot:
    """The snapshot with this unique name prefix or `^tag`, the newest at or before a date; `latest` or None for the
    latest. Raises NothingMatched.

    What others added to the volume is found by its whole name, if nothing else has that, and by its id.
    """
    if text is None or text == LATEST:
        return newest(repo, volume)
    counting = [snapshot for snapshot in volume.snapshots if snapshot.counts]
    if text.startswith(TAG):
        return _tagged(volume, counting, text)
    exact = [snapshot for snapshot in counting if text == snapshot.name]
    exact = exact or [one for one in volume.snapshots if text in (one.name, one.ref.snap_id.hex())]
    found = exact or [snapshot for snapshot in counting if snapshot.name.startswith(text)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(sorted({one.ref.snap_id.hex() if exact else one.name for one in found})[:10])
        raise NothingMatched(f"{text} fits several snapshots of {volume.name}", obj=text, hint=f"choose: {names}")
    from lamella.operations.shared.dates import newest_until  # only where no name fits

    return newest_until(repo, volume, counting, text)


def _tagged(volume: VolumeState, counting: Sequence[Snapshot], text: str) -> Snapshot:
    found = [snapshot for snapshot in counting if text.removeprefix(TAG) in snapshot.tags]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(snapshot.name for snapshot in found[-10:])
        raise NothingMatched(f"{text} is on several snapshots of {volume.name}", obj=text, hint=f"choose: {names}")
    raise NothingMatched(f"no snapshot of volume {volume.name} has {text}", obj=text, hint="see: lamella list")


def select(repo: Repository, selectors: Sequence[str]) -> list[Selected]:
    """The snapshots of the selectors; without any, every snapshot of every volume, by volume and oldest first.

    `VOLUME` alone means its latest snapshot. Raises NothingMatched, UsageError.
    """
    if not selectors:
        shown = repo.catalogue.shown_names()
        volumes = sorted(repo.catalogue.volumes.values(), key=lambda volume: shown[volume.volume_id])
        return [Selected(shown[volume.volume_id], volume, one) for volume in volumes for one in volume.snapshots]
    chosen: list[Selected] = []
    for selector in selectors:
        name, snapshot_text = split_selector(selector)
        volume = find_volume(repo, name)
        snapshot = find_snapshot(repo, volume, snapshot_text)
        chosen.append(Selected(repo.catalogue.shown_names()[volume.volume_id], volume, snapshot))
    return chosen


def doubts(repo: Repository, volume: VolumeState) -> list[Problem]:
    """The problems with the history because of which it may not be known which snapshots a volume has.

    Where a part is missing of the chain of a writer that never touched the volume, nothing of the volume is missing.
    """
    id_ = volume.volume_id
    return [one for one in repo.problems if not one.is_lack or _may_own(repo, one.writer, id_)]


def _may_own(repo: Repository, writer: WriterId, volume_id: VolumeId) -> bool:
    """Whether a writer published anything of the volume, or anything with the prune key, as far as that is known."""
    chain = repo.history.chains.get(writer)
    if chain is None:
        return True
    for entry in chain.entries:
        try:
            known = understood(entry.record) if entry.record.type in (Volume.TYPE, AddSnap.TYPE) else None
        except IntegrityError:
            return True
        of_it = isinstance(known, Volume | AddSnap) and known.volume_id == volume_id
        if of_it or prune_signed(repo.keys, writer, entry):
            return True
    return False
