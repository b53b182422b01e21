"""Who has heard of a CONDEMN: every writer that may still write, and every run that is not over."""

from __future__ import annotations

from collections.abc import Callable

from lamella.base.clock import iso
from lamella.base.errors import RepositoryError
from lamella.base.ids import WriterId
from lamella.format.deletion import Retire
from lamella.history.condemned import Batch
from lamella.history.history import Chain
from lamella.operations.prune.options import DAY_MS, PruneOptions
from lamella.operations.prune.survey import Surveyor
from lamella.repository.repository import Repository

IDLE_MS = 30 * DAY_MS
"""How long a writer must have been silent before it may be retired."""


class Acknowledgements:
    """What the chains, as they were last read, say of each batch."""

    def __init__(self, repo: Repository, surveyor: Surveyor, options: PruneOptions) -> None:
        self._repo = repo
        self._surveyor = surveyor
        self._options = options

    def retire(self) -> None:
        """Publish RETIRE for the writers that the user gave up. Raises RepositoryError for one that is not silent."""
        first_seen = self._surveyor.first_seen
        heads = self._repo.history.heads
        silent = {head: first_seen.age_ms("heads", head.sha256) for head in heads}
        first_seen.save("heads", [head.sha256 for head in heads])
        for writer in self._options.retire:
            chain = self._repo.history.chains.get(writer)
            if chain is None or chain.head is None:
                raise RepositoryError("there is no such writer", obj=writer.hex())
            if min(silent[head] for head in chain.heads) < IDLE_MS:
                text = f"writer {self._name(writer)} was heard of within 30 days: it is not retired"
                raise RepositoryError(text, obj=writer.hex())
            if not self._retired(chain):
                self._repo.publish([Retire(chain.head)])
        if self._options.retire:
            self._repo.reload(whole=True)

    def acknowledge(self, publish: Callable[[], None]) -> None:
        """Say in a commit that this host, too, knows what others condemned, if it has not said so yet."""
        repo = self._repo
        own = repo.own_writer
        chain = None if own is None else repo.history.chains.get(own)
        waiting = [batch for batch in repo.log.condemned.batches.values() if batch.waiting and batch.writer != own]
        if any(chain is None or not _knows(chain, batch) for batch in waiting):
            publish()

    def lacking(self, batch: Batch) -> list[str]:
        """Why the packs of a batch may not be deleted yet; empty if they may."""
        reasons: list[str] = []
        repo = self._repo
        age = self._surveyor.first_seen.age_ms("condemned", batch.batch)
        if age < self._options.grace_ms:
            until = iso(repo.clock() + self._options.grace_ms - age)
            reasons.append(f"condemned packs stay until {until}")
        for writer, chain in sorted(repo.history.chains.items()):
            if writer != batch.writer and not self._retired(chain) and not _knows(chain, batch):
                hint = f"after 30 days it can be given up with --retire {writer.hex()}"
                reasons.append(f"{self._name(writer)} has not written since packs were condemned; {hint}")
        reasons += self._open_sessions(batch)
        return reasons

    def _open_sessions(self, batch: Batch) -> list[str]:
        """Runs that were begun before the CONDEMN and may rely on its packs."""
        reasons: list[str] = []
        for session in self._surveyor.sessions():
            if session.session_id in self._repo.log.condemned.batches:
                continue  # what a collector copied
            if session.writer == batch.writer:
                knows = session.seq > batch.seq
            else:
                clock = self._repo.history.clocks.get((session.writer, session.seq), {})
                knows = clock.get(batch.writer, 0) >= batch.seq
            if not knows:
                reasons.append(f"a run of {self._name(session.writer)} that began before packs were condemned is open")
        return reasons

    def _retired(self, chain: Chain) -> bool:
        """Whether RETIRE names its end; a writer that went on is not retired."""
        head = self._repo.catalogue.retired.get(chain.writer)
        return head is not None and chain.head is not None and chain.head.seq <= head.seq

    def _name(self, writer: WriterId) -> str:
        known = self._repo.catalogue.writers.get(writer)
        return f"writer {writer.hex()[:8]}" + (f" ({known.label})" if known is not None and known.label else "")


def _knows(chain: Chain, batch: Batch) -> bool:
    """Whether every branch of a chain had seen the CONDEMN."""
    if chain.writer == batch.writer:
        return True
    return bool(chain.heads) and all(
        chain.clocks.get(head.sha256, {}).get(batch.writer, 0) >= batch.seq for head in chain.heads
    )
