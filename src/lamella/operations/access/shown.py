"""The content of a mounted repository: volumes, their snapshots, and in each the volume and its documents.

`VOLUME/SNAPSHOT/disk.img`; `VOLUME/latest` and `VOLUME/^TAG` are links to snapshots. Everything below a folder is found
when the folder is first looked into, in the history alone: thousands of snapshots cost nothing that is stored.
"""

from __future__ import annotations

import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from lamella.base.errors import LamellaError, NothingMatched
from lamella.base.events import Reporter, Warned
from lamella.format.records import Document
from lamella.history.catalogue import Snapshot, VolumeState
from lamella.operations.shared.newest import newest
from lamella.operations.shared.selection import LATEST, TAG, Selected
from lamella.repository.repository import Repository

IMAGE = "disk.img"
MAX_NAME = 255
"""Bytes of a name in a directory (NAME_MAX of linux/limits.h)."""


@dataclass(frozen=True, slots=True)
class ShownImage:
    """A volume at one moment. The time is that of the snapshot, in ms since 1970, UTC."""

    selected: Selected
    time_ms: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.selected.snapshot.added.size


@dataclass(frozen=True, slots=True)
class ShownDocument:
    """A document of a snapshot."""

    selected: Selected
    document: Document
    time_ms: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.document.size


@dataclass(frozen=True, slots=True)
class ShownLink:
    """Another name of a snapshot of the same volume."""

    target: str
    time_ms: int


class ShownFolder:
    """A directory, whose entries are found at the first look."""

    def __init__(self, time_ms: int, find: Callable[[], Mapping[str, Entry]]) -> None:
        self.time_ms = time_ms
        self._find = find
        self._entries: Mapping[str, Entry] | None = None

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Name -> what bears it."""
        if self._entries is None:
            self._entries = self._find()
        return self._entries


Entry = ShownFolder | ShownLink | ShownImage | ShownDocument


class Shown:
    """The whole tree, as the history was when this was made. Thread-safe."""

    def __init__(self, repo: Repository, reporter: Reporter) -> None:
        self._repo = repo
        self._reporter = reporter
        self._names = repo.catalogue.shown_names()
        self._volumes = sorted(repo.catalogue.volumes.values(), key=lambda one: self._names[one.volume_id])
        self._lock = threading.Lock()
        self._root = ShownFolder(_newest_ms(repo.catalogue.snapshots), self._volume_folders)

    @property
    def counts(self) -> tuple[int, int]:
        """The numbers of volumes and snapshots."""
        return len(self._volumes), sum(len(volume.snapshots) for volume in self._volumes)

    def entry(self, path: str) -> Entry | None:
        """The entry at an absolute path; None without one. Links are not followed."""
        found: Entry | None = self._root
        for name in path.split("/"):
            if name:
                found = self.entries(found).get(name) if isinstance(found, ShownFolder) else None
        return found

    def entries(self, folder: ShownFolder) -> Mapping[str, Entry]:
        """The entries of a folder."""
        with self._lock:  # to find the latest snapshot, the history may have to be read again
            return folder.entries

    def _volume_folders(self) -> dict[str, Entry]:
        names = distinct((self._names[one.volume_id], one.volume_id.hex()) for one in self._volumes)
        return {name: self._volume(volume) for name, volume in zip(names, self._volumes, strict=True)}

    def _volume(self, volume: VolumeState) -> ShownFolder:
        return ShownFolder(_newest_ms(volume.snapshots), lambda: self._snapshots(volume))

    def _snapshots(self, volume: VolumeState) -> dict[str, Entry]:
        # What others added comes last: it never takes a name from what counts.
        rows = sorted(volume.snapshots, key=lambda one: not one.counts)
        names = distinct((one.name, one.ref.snap_id.hex()) for one in rows)
        found: dict[str, Entry] = {name: self._snapshot(volume, one) for name, one in zip(names, rows, strict=True)}
        places = {one.ref: name for name, one in zip(names, rows, strict=True)}
        for link, snapshot in self._links(volume):
            if snapshot.ref in places and link not in found:
                found[link] = ShownLink(places[snapshot.ref], snapshot.added.time_ms)
        return found

    def _links(self, volume: VolumeState) -> list[tuple[str, Snapshot]]:
        counting = [one for one in volume.snapshots if one.counts]
        times = Counter(tag for one in counting for tag in one.tags)
        # A tag on several snapshots selects none of them, here as in a selection.
        links = [(safe_name(TAG + tag), one) for one in counting for tag in one.tags if times[tag] == 1]
        try:
            links.insert(0, (LATEST, newest(self._repo, volume)))
        except NothingMatched:
            pass
        except LamellaError as error:
            self._reporter(Warned(f"the latest snapshot of {volume.name} is not known: {error.message}", error.obj))
        return links

    def _snapshot(self, volume: VolumeState, snapshot: Snapshot) -> ShownFolder:
        selected = Selected(self._names[volume.volume_id], volume, snapshot)
        return ShownFolder(snapshot.added.time_ms, lambda: _contents(selected))


def _contents(selected: Selected) -> dict[str, Entry]:
    added = selected.snapshot.added
    if not added.usable:  # written by a later version
        return {}
    found: dict[str, Entry] = {IMAGE: ShownImage(selected, added.time_ms)}
    for document in added.documents:
        name = safe_name(document.name)
        while name in found:
            name = f"{name}.document"
        found[name] = ShownDocument(selected, document, added.time_ms)
    return found


def _newest_ms(snapshots: Iterable[Snapshot]) -> int:
    return max((one.added.time_ms for one in snapshots), default=0)


def distinct(names: Iterable[tuple[str, str]]) -> list[str]:
    """A name in a directory for each pair of a name and an id; the id where another pair has the name already."""
    taken: dict[str, None] = {}
    for name, id_ in names:
        safe = safe_name(name)
        taken[id_ if safe in taken or safe == LATEST else safe] = None
    return list(taken)


def safe_name(text: str) -> str:
    """The name in a directory for a name in the repository, where whoever can publish chooses names.

    Valid names of volumes stay what they are. `/`, NUL and other control characters become `_`, and so does a first
    `.` of `.` and `..`; what is too long is cut.
    """
    clean = "".join("_" if one == "/" or unicodedata.category(one) in ("Cc", "Cs") else one for one in text)
    if clean in ("", ".", ".."):
        clean = f"_{clean[1:]}"
    return clean.encode()[:MAX_NAME].decode("utf-8", "ignore")
