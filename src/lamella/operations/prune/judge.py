"""What a pack holds that is needed, told by its own directory, read and opened now: caches decide nothing here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lamella.base.errors import IntegrityError, ObjectNotFound, StoreError, UnknownFormat
from lamella.base.ids import CATALOGUE
from lamella.base.names import pack_name
from lamella.format import document
from lamella.format.container import Blob, Kind
from lamella.operations.prune.usage import PackUse
from lamella.operations.prune.view import View
from lamella.packs.blobmap import Place
from lamella.packs.containers import Head, read_head
from lamella.packs.reach import require_alive
from lamella.repository.repository import Repository
from lamella.run.pipeline import default_workers, ordered_map

_NOTE_MOST = 512
"""No tree note is longer."""


@dataclass(slots=True)
class Judged:
    """A pack, its directory as it stands in the store, and the blobs of it that are needed."""

    use: PackUse
    head: Head
    needed: list[Blob]


def judge(repo: Repository, view: View, packs: Sequence[PackUse]) -> list[Judged]:
    """Read the heads of these packs and hold them against the mark.

    Packs that do not open, lie in a domain that is not closed, or are pinned by an unfinished run, are left out: they
    stay. Packs that are gone already are left out, too.
    """
    workers = default_workers()
    chosen = [use for use in packs if use.pack not in view.pinned and use.domain_id in view.closed]
    found = [(use, head) for use, head in ordered_map(lambda use: (use, _head(repo, use)), chosen, workers=workers)]
    opened = [(use, head) for use, head in found if head is not None and head.domain_id == use.domain_id]
    live = view.live.among(blob.id for _, head in opened for blob in head.blobs)
    judged: list[Judged] = []
    for use, head in opened:
        needed = [blob for blob in head.blobs if blob.id in live]
        notes = [blob for blob in head.blobs if blob.id not in live and _may_be_note(blob)]
        needed += [blob for blob in notes if head.domain_id != CATALOGUE and _is_note(repo, view, use, head, blob)]
        judged.append(Judged(use, head, needed))
    return judged


def _head(repo: Repository, use: PackUse) -> Head | None:
    try:
        return read_head(repo.store, repo.keys, pack_name(use.pack), use.length)
    except (IntegrityError, UnknownFormat, ObjectNotFound):
        return None
    except StoreError as error:
        require_alive(repo.store, error)
        return None


def _may_be_note(blob: Blob) -> bool:
    return blob.kind == Kind.DOCUMENT and blob.content_length <= _NOTE_MOST


def _is_note(repo: Repository, view: View, use: PackUse, head: Head, blob: Blob) -> bool:
    """Whether it is the tree note of a snapshot that stays; what cannot be read is no help to anybody."""
    try:
        content = repo.contents.open_at(Place(use.pack, head.header, head.domain_id, blob, own=False))
    except IntegrityError:
        return False
    return document.note_root(content) in view.roots.get(head.domain_id, set())
