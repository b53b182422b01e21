"""What the tests of copies share: a repository with a history, another to copy to, and the judge of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lamella.format.node import Slot
from lamella.memory.host import Host
from lamella.operations.copy.copy import CopyOptions, CopyResult, plan_copy
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from lamella.stores.base import Store
from lamella.stores.memory import MemoryStore
from tests.fault.world import CHUNK, SECRET, Truth, backup, host_at, init, volume

OPTIONS = CopyOptions(workers=1)


def letters(text: str) -> bytes:
    """A volume of whole chunks: `0` zeros, any other letter a chunk of its own."""
    return b"".join(bytes(CHUNK) if letter == "0" else (letter * 8).encode() * (CHUNK // 8) for letter in text)


def copy(
    source: Store, target: Store, host: Host, *selectors: str, options: CopyOptions = OPTIONS, there: Host | None = None
) -> CopyResult:
    """Copy snapshots from one store to another."""
    with Repository.open(source, SECRET, host) as one, Repository.open(target, SECRET, there or host) as other:
        one.require_sound_history()
        other.require_sound_history()
        return plan_copy(one, other, selectors, options).execute()


@dataclass
class Pair:
    """A repository with a history, one to copy to, and what must come back."""

    place: Path
    source: MemoryStore = field(default_factory=MemoryStore)
    target: MemoryStore = field(default_factory=MemoryStore)
    truth: Truth = field(default_factory=Truth)

    @classmethod
    def make(cls, place: Path, *contents: str, ids: tuple[int, int] = (1, 2)) -> Pair:
        """Both repositories, with other keys and ids; the first backed up once for each of `contents`."""
        pair = cls(place)
        init(pair.source, pair.host, id_alg=ids[0])
        init(pair.target, pair.host, id_alg=ids[1])
        for content in contents:
            pair.save(letters(content))
        return pair

    @property
    def host(self) -> Host:
        return host_at(self.place)

    def save(self, content: bytes, name: str = "disk") -> str:
        """Back a volume up to the source; returns the snapshot's name."""
        result = backup(self.source, self.host, volume(content, name))
        self.truth.learn(result, {name: content})
        return result.snapshot

    def copy(self, *selectors: str, options: CopyOptions = OPTIONS) -> CopyResult:
        """Copy from the first to the second."""
        return copy(self.source, self.target, self.host, *selectors, options=options)


def same_trees(source: Store, target: Store, host: Host, texts: Sequence[str]) -> None:
    """The same chunks are data, zeros and holes in both, and everything the records say is the same."""
    with Repository.open(source, SECRET, host) as one, Repository.open(target, SECRET, host) as other:
        one.refresh_map()
        other.refresh_map()
        for here, there in zip(select(one, texts), select(other, texts), strict=True):
            a, b = here.snapshot.added, there.snapshot.added
            assert (a.size, a.time_ms, a.name, a.consistency, a.chunk_log2) == (
                b.size,
                b.time_ms,
                b.name,
                b.consistency,
                b.chunk_log2,
            )
            assert (here.volume.name, here.volume.identity) == (there.volume.name, there.volume.identity)
            assert a.root != b.root
            kinds = []
            for repo, snapshot in ((one, here.snapshot), (other, there.snapshot)):
                runs = repo.tree_reader(snapshot.added.domain_id).runs(repo.tree(snapshot))
                kinds.append(
                    [(run.first, run.end, Slot.DATA if isinstance(run.slot, bytes) else run.slot) for run in runs]
                )
            assert kinds[0] == kinds[1]
