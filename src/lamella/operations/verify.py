"""Proving that a restore would work, and naming what would not.

Levels: `structure` follows every reference without reading data; `sample` also opens some of the chunks; `full` reads
every pack to the last byte; `source` compares with the live source. Nothing is ever written.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lamella.errors import (
    IntegrityError,
    LamellaError,
    SourceError,
    StoreError,
    StoreUnavailable,
    UnknownFormat,
    UsageError,
)
from lamella.events import Progress, Reporter, silent
from lamella.format.container import Kind
from lamella.format.node import Shape
from lamella.ids import ChunkId
from lamella.operations.findings import DAMAGE, NOTE, Finding, VerifyResult
from lamella.operations.selection import Selected
from lamella.operations.verify_objects import (
    BadBlobs,
    check_checkpoints,
    check_files,
    check_heads,
    check_history,
    check_names,
    check_packs,
    check_stored_commits,
)
from lamella.operations.verify_source import compare_with_source
from lamella.pipeline import default_workers, ordered_map
from lamella.repository.repository import Repository
from lamella.repository.tree import Run, Tree
from lamella.sources.base import Source

__all__ = ["DAMAGE", "LEVELS", "NOTE", "Finding", "VerifyOptions", "VerifyResult", "verify"]

LEVELS = ("structure", "sample", "full", "source")
_BATCH = 64


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """What to check. `percent` of the chunks is opened at level "sample", at most `budget` bytes of them."""

    level: str = "sample"
    percent: float = 10.0
    budget: int | None = None
    source: Source | None = None
    workers: int | None = None


def verify(
    repo: Repository, selected: Sequence[Selected], options: VerifyOptions | None = None, reporter: Reporter = silent
) -> VerifyResult:
    """Check the repository's objects and the selected snapshots. Damage becomes findings; a store that fails raises."""
    options = options or VerifyOptions()
    if options.level not in LEVELS or not 0 < options.percent <= 100:
        raise UsageError(f"levels are {', '.join(LEVELS)}; a percentage is above 0 and at most 100")
    started = time.monotonic()
    result = VerifyResult()
    if not repo.history.whole:
        repo.reload(whole=True)
    check_history(repo, result)
    check_checkpoints(repo, result)
    check_files(repo, result)
    check_names(repo, result)
    try:
        repo.refresh_map()
    except IntegrityError as error:
        result.damage("pack", error.obj, error.message)
    check_heads(repo, result)
    bad: BadBlobs = {}
    workers = options.workers or default_workers()
    if options.level == "full":
        everything = len(selected) == len(repo.catalogue.snapshots)
        domains = None if everything else {one.snapshot.added.domain_id for one in selected}
        check_stored_commits(repo, result)
        bad = check_packs(repo, domains, result, reporter, workers)
    walk = _Walk(repo, options, bad, result, reporter, workers)
    for one in selected:
        walk.snapshot(one)
    if options.level == "source":
        compared = [compare_with_source(repo, one, options.source, result, reporter, workers) for one in selected]
        if not any(compared):
            raise SourceError("no source could be compared: " + "; ".join(one.message for one in result.findings[-3:]))
    result.seconds = round(time.monotonic() - started, 3)
    return result


class _Walk:
    """Follows trees from snapshot to snapshot: only what differs from the one before is looked at again."""

    def __init__(
        self,
        repo: Repository,
        options: VerifyOptions,
        bad: BadBlobs,
        result: VerifyResult,
        reporter: Reporter,
        workers: int,
    ) -> None:
        self._repo = repo
        self._options = options
        self._bad = bad
        self._result = result
        self._reporter = reporter
        self._workers = workers
        self._before: tuple[Selected, Tree] | None = None
        self._random = random.SystemRandom()
        self._spent = 0

    def snapshot(self, one: Selected) -> None:
        """Check one snapshot's tree, chunks and documents."""
        tree = self._repo.tree(one.snapshot)
        troubles = self._documents(one)
        try:
            for batch in ordered_map(
                lambda chunks: self._check(one, chunks), self._batches(one, tree), workers=self._workers
            ):
                troubles += batch[0]
                self._result.checked_chunks += batch[1]
                self._result.checked_bytes += batch[2]
                self._reporter(Progress("verify", one.volume_name, self._result.checked_bytes, 0))
        except StoreUnavailable:
            raise
        except (IntegrityError, UnknownFormat) as error:
            troubles.append(("tree", error.message))
        for kind, message in troubles:
            self._result.damage(kind, one.text, message)
        if troubles:
            self._result.cannot_restore(one.text)
        # A damaged tree is no base: what the next snapshot shares with it must be reported there, too.
        self._before = None if troubles else (one, tree)

    def _documents(self, one: Selected) -> list[tuple[str, str]]:
        added = one.snapshot.added
        troubles: list[tuple[str, str]] = []
        for document in added.documents:
            for part in document.parts:
                try:
                    if self._is_bad(Kind.DOCUMENT, part):
                        raise IntegrityError("a part is damaged")
                    self._repo.contents.get(added.domain_id, Kind.DOCUMENT, part)
                except StoreUnavailable:
                    raise
                except (IntegrityError, StoreError) as error:
                    troubles.append(("document", f"document {document.name} cannot be read: {error.message}"))
        return troubles

    def _batches(self, one: Selected, tree: Tree) -> Iterator[list[tuple[int, int, ChunkId]]]:
        batch: list[tuple[int, int, ChunkId]] = []
        for offset, length, id_ in _data(tree.shape, self._runs(one, tree)):
            batch.append((offset, length, id_))
            if len(batch) == _BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    def _runs(self, one: Selected, tree: Tree) -> Iterator[Run]:
        reader = self._repo.tree_reader(one.snapshot.added.domain_id)
        if self._before is not None and self._comparable(self._before[0], one):
            for run, _ in reader.changes(self._before[1], tree):
                yield run
        else:
            yield from reader.runs(tree)

    def _comparable(self, before: Selected, one: Selected) -> bool:
        a, b = before.snapshot.added, one.snapshot.added
        return (a.volume_id, a.domain_id, a.chunk_log2) == (b.volume_id, b.domain_id, b.chunk_log2)

    def _is_bad(self, kind: Kind, id_: ChunkId) -> bool:
        """Whether reading the packs whole showed that no copy of a blob opens."""
        packs = self._bad.get((kind, id_))
        return packs is not None and all(place.pack in packs for place in self._repo.blobs.find(kind, id_))

    def _check(self, one: Selected, chunks: list[tuple[int, int, ChunkId]]) -> tuple[list[tuple[str, str]], int, int]:
        """(troubles, chunks checked, bytes read)."""
        domain_id = one.snapshot.added.domain_id
        places = self._repo.blobs.find_many(Kind.CHUNK, [id_ for _, _, id_ in chunks])
        troubles: list[tuple[str, str]] = []
        present: list[tuple[int, int, ChunkId]] = []
        for offset, length, id_ in chunks:
            found = [
                place
                for place in places.get(id_, [])
                if place.domain_id == domain_id and place.blob.content_length == length
            ]
            if not found:
                troubles.append(("chunk", f"bytes {offset} to {offset + length}: no pack holds them"))
            elif self._is_bad(Kind.CHUNK, id_):
                troubles.append(("chunk", f"bytes {offset} to {offset + length}: damaged"))
            else:
                present.append((offset, length, id_))
        if self._options.level != "sample":
            return troubles, len(present) if self._options.level != "full" else 0, 0
        return self._open_some(one, present, troubles)

    def _open_some(
        self, one: Selected, present: list[tuple[int, int, ChunkId]], troubles: list[tuple[str, str]]
    ) -> tuple[list[tuple[str, str]], int, int]:
        read = 0
        for offset, length, id_ in present:
            if self._random.random() * 100 >= self._options.percent or not self._may_spend(length):
                continue
            read += length
            try:
                self._repo.contents.get(one.snapshot.added.domain_id, Kind.CHUNK, id_, length)
            except StoreUnavailable:
                raise
            except LamellaError as error:
                troubles.append(("chunk", f"bytes {offset} to {offset + length}: {error.message}"))
        return troubles, len(present), read

    def _may_spend(self, length: int) -> bool:
        budget = self._options.budget
        if budget is not None and self._spent + length > budget:
            return False
        self._spent += length
        return True


def _data(shape: Shape, runs: Iterator[Run]) -> Iterator[tuple[int, int, ChunkId]]:
    """(offset, length, id) of the DATA chunks among runs."""
    for run in runs:
        if isinstance(run.slot, bytes):
            yield run.first << shape.chunk_log2, shape.chunk_length(run.first), run.slot
