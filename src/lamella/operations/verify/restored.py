"""Restoring without a target: every byte of a volume is fetched as a restore fetches it, and compared.

Each chunk is opened and its id recomputed; from the ids the manifest is built anew, and its root must be the one of the
snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from lamella.base.errors import IntegrityError, LamellaError, StoreUnavailable, UnknownFormat
from lamella.base.events import Progress, Reporter
from lamella.base.ids import ChunkId
from lamella.crypto.chunk_id import identifier
from lamella.format.container import Kind
from lamella.operations.shared.findings import VerifyResult
from lamella.operations.shared.selection import Selected
from lamella.operations.shared.streaming import Piece, VolumeStream, identify_chunk, read_document
from lamella.packs.tree import Run
from lamella.packs.tree_writer import TreeWriter
from lamella.repository.repository import Repository
from lamella.run.pipeline import ordered_map


@dataclass(slots=True)
class _Fetched:
    """A piece as it came back: runs with the ids of what was read, and what could not be read."""

    runs: list[Run]
    read_bytes: int = 0
    troubles: list[str] = field(default_factory=list)


def compare_restore(repo: Repository, one: Selected, result: VerifyResult, reporter: Reporter, workers: int) -> None:
    """Fetch and compare one snapshot of a volume with its documents. Raises StoreUnavailable."""
    comparing = _Comparing(repo, one, result, reporter)
    troubles: list[tuple[str, str]] = []
    try:
        comparing.volume(workers)
    except StoreUnavailable:
        raise
    except (IntegrityError, UnknownFormat) as error:
        troubles.append(("tree", error.message))
    troubles += [("chunk", text) for text in comparing.troubles]
    for document in one.snapshot.added.documents:
        try:
            result.checked_bytes += len(read_document(repo, one, document.name))
        except StoreUnavailable:
            raise
        except LamellaError as error:
            troubles.append(("document", f"document {document.name} cannot be read: {error.message}"))
    for kind, message in troubles:
        result.damage(kind, one.text, message)
    if troubles:
        result.cannot_restore(one.text)


class _Comparing:
    def __init__(self, repo: Repository, one: Selected, result: VerifyResult, reporter: Reporter) -> None:
        self._repo = repo
        self._one = one
        self._result = result
        self._reporter = reporter
        self._stream = VolumeStream(repo, one)
        self._identify = identify_chunk(repo, one)
        self.troubles: list[str] = []

    def volume(self, workers: int) -> None:
        """Raises IntegrityError if the manifest cannot be read, or is not the one its chunks make."""
        reader = self._repo.tree_reader(self._stream.domain_id)
        built = TreeWriter(reader, self._node_id).update(self._stream.shape, None, self._runs(workers))
        if not self.troubles and built != self._stream.tree.root:
            raise IntegrityError("the manifest is not the one that its chunks make", obj=self._one.text)

    def _node_id(self, kind: Kind, content: bytes) -> ChunkId:
        return identifier(self._repo.keys.domain(self._stream.domain_id), kind)(content)

    def _runs(self, workers: int) -> Iterator[Run]:
        for fetched in ordered_map(self._fetch, self._stream.pieces(), workers=workers):
            self.troubles += fetched.troubles
            self._result.checked_bytes += fetched.read_bytes
            yield from fetched.runs
            self._result.checked_chunks += sum(isinstance(run.slot, bytes) for run in fetched.runs)
            _, end = self._stream.span(0, fetched.runs[-1].end)
            self._reporter(Progress("verify", self._one.volume_name, end, self._stream.shape.size))

    def _fetch(self, piece: Piece | Run) -> _Fetched:
        if isinstance(piece, Run):
            return _Fetched([piece])
        contents: dict[ChunkId, bytes] = {}
        fetched = _Fetched([Run(chunk, chunk + 1, id_) for chunk, id_ in piece.chunks])
        try:
            contents |= self._stream.fetch(piece)
        except StoreUnavailable:
            raise
        except LamellaError:
            fetched.troubles = self._one_by_one(piece, contents)
        # Not the id that was asked for but the one of what came: the comparison is with the root.
        known = {id_: self._identify(content) for id_, content in contents.items()}
        fetched.runs = [Run(chunk, chunk + 1, known.get(id_, id_)) for chunk, id_ in piece.chunks]
        fetched.read_bytes = sum(map(len, contents.values()))
        return fetched

    def _one_by_one(self, piece: Piece, contents: dict[ChunkId, bytes]) -> list[str]:
        """Fetch what can be had of a piece; what cannot, by its bytes."""
        troubles: list[str] = []
        for chunk, id_ in piece.chunks:
            start, end = self._stream.span(chunk, chunk + 1)
            try:
                contents |= self._stream.fetch(Piece(((chunk, id_),)))
            except StoreUnavailable:
                raise
            except LamellaError as error:
                troubles.append(f"bytes {start} to {end}: {error.message}")
        return troubles
