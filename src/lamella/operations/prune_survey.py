"""Looking at the whole: what is needed, what every pack holds of it, and which packs are to go."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lamella.errors import IntegrityError
from lamella.events import Reporter
from lamella.format.records import Ref
from lamella.operations.prune_options import PruneOptions
from lamella.operations.prune_view import SESSION_KEPT_MS, FirstSeen, View, history_troubles, lost_chunks, mark
from lamella.repository.marking import LiveIds
from lamella.repository.open_sessions import OpenSession
from lamella.repository.repository import Repository
from lamella.repository.usage import PackUse, Usage


@dataclass(slots=True)
class Choice:
    """The packs of the closed domains. Bytes are those of blobs."""

    dead: list[PackUse] = field(default_factory=list)
    """Nothing in them is needed."""
    wasteful: list[PackUse] = field(default_factory=list)
    """Worth rewriting, most wasteful first."""
    live_bytes: int = 0
    unused_bytes: int = 0
    """Not needed, in packs that hold something needed."""


class Surveyor:
    """Looks at one repository for a prune."""

    def __init__(self, repo: Repository, options: PruneOptions, reporter: Reporter) -> None:
        self._repo = repo
        self._options = options
        self._reporter = reporter
        self.first_seen = FirstSeen(repo.memory, repo.clock)

    def reread(self) -> list[IntegrityError]:
        """Read the whole history again; why it may not be relied on. Raises StoreError."""
        self._repo.reload(whole=True)
        return list(history_troubles(self._repo))

    @contextmanager
    def view(self) -> Iterator[tuple[View, Usage]]:
        """Mark everything that is needed, and count every pack against it. Raises StoreError."""
        repo = self._repo
        repo.refresh_map(again=not repo.exclusive)
        place = repo.cache.path.parent if repo.cache.path is not None else None
        with LiveIds(place) as live:
            view = View(live)
            mark(repo, view, self.sessions(), self._delayed(view), self._reporter)
            usage = Usage(repo.cache, live)
            if usage.missing:
                lost_chunks(repo, view, usage.missing)
            repo.blobs.keep_complete(root for roots in view.roots.values() for root in roots)
            yield view, usage

    def sessions(self) -> list[OpenSession]:
        """Unfinished runs that still hold what they rely on."""
        found = self._repo.catalogue.sessions
        kept = [one for one in found if self.first_seen.age_ms("sessions", one.key) < SESSION_KEPT_MS]
        self.first_seen.save("sessions", [one.key for one in found])
        return kept

    def _delayed(self, view: View) -> list[Ref]:
        """Snapshots whose removal this host has not known for long enough."""
        delay, removed = self._options.remove_delay_ms, self._repo.catalogue.removed
        if not delay:
            return []
        young = [ref for ref in removed if self.first_seen.age_ms("removals", ref.encode()) < delay]
        self.first_seen.save("removals", [ref.encode() for ref in removed])
        if young:
            view.notes.append(f"{len(young)} removed snapshots are kept until their removal is old enough")
        return young

    def choose(self, view: View, usage: Usage, without: Collection[bytes] = (), *, twins: bool = True) -> Choice:
        """Which packs are to go, but none of `without`. With `twins` what a twin holds is not needed a second time."""
        choice = Choice()
        partly: list[tuple[float, PackUse]] = []
        for use in usage.packs():
            if use.pack in without:
                continue
            needed = use.needed if twins else use.held
            if use.domain_id not in view.closed or use.pack in view.pinned:
                choice.live_bytes += needed
            elif not use.held:
                choice.dead.append(use)
            else:
                choice.live_bytes += needed
                choice.unused_bytes += use.blobs - needed
                if needed < use.blobs:
                    partly.append((needed / use.blobs, use if twins else use._replace(needed=needed, twins=())))
        partly.sort(key=lambda pair: (pair[0], pair[1].pack))
        unused = choice.unused_bytes
        for share, use in partly:
            enough = unused * 100 <= self._options.max_unused * choice.live_bytes
            if share * 100 >= self._options.repack_below and enough:
                break
            choice.wasteful.append(use)
            unused -= use.blobs - use.needed
        return choice


def batches(packs: Collection[PackUse], most_bytes: int) -> Iterator[list[PackUse]]:
    """Packs in their order, so many at once that at most `most_bytes` of them are needed."""
    batch: list[PackUse] = []
    size = 0
    for use in packs:
        if batch and size + use.held > most_bytes:
            yield batch
            batch, size = [], 0
        batch.append(use)
        size += use.held
    if batch:
        yield batch
