"""Packs whose head does not open: damage, or junk that whoever may add objects can place beside what is sound."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from lamella.base.errors import IntegrityError, LamellaError, StoreError, UnknownFormat, shown_bytes
from lamella.base.names import pack_hash, pack_name
from lamella.format.container import MAX_OBJECT
from lamella.format.lost import Address
from lamella.operations.shared.findings import VerifyResult
from lamella.packs import census
from lamella.packs.heads import genuine_head
from lamella.packs.reach import require_alive
from lamella.repository.repository import Repository
from lamella.run.pipeline import default_workers, ordered_map


@dataclass(frozen=True, slots=True)
class Unopened:
    """One such pack. `was_read`: the store gave its bytes, which are no head; `lasting`: another try would not help."""

    pack: bytes
    reason: str
    was_read: bool = False
    lasting: bool = False


def unopened_packs(repo: Repository) -> list[Unopened]:
    """The listed packs whose head does not open, each read once more. Raises StoreUnavailable."""

    def look(row: tuple[str, str]) -> Unopened:
        name, reason = row
        pack = pack_hash(name) or b""
        try:
            genuine_head(repo.store, repo.keys, name)
        except (IntegrityError, UnknownFormat) as error:
            return Unopened(pack, error.message, was_read=True, lasting=True)
        except StoreError as error:
            require_alive(repo.store, error)
            return Unopened(pack, error.message, lasting=not error.retryable)
        return Unopened(pack, reason)

    return list(ordered_map(look, census.troubled(repo.blobs), workers=default_workers()))


def tell_cold(repo: Repository, result: VerifyResult) -> None:
    """Say how many packs must be thawed before anybody can read them: neither damaged nor proven."""
    for pack, size in repo.blobs.cold.items():
        result.must_thaw(pack_name(pack), size)
    for name in result.cold:
        result.must_thaw(name, repo.blobs.length(pack_hash(name) or b"") or 0)
    if result.cold:
        text = f"packs that must be thawed before anybody can read them: {len(result.cold)}"
        result.note("cold", "p/", f"{text}, {shown_bytes(sum(result.cold.values()))}; they were not read")


def tell_unopened(repo: Repository, result: VerifyResult, packs: Sequence[Unopened], *, all_whole: bool) -> None:
    """Say of each whether it is damage. `all_whole`: every snapshot was followed, and nothing else is damaged.

    Junk is never named by a record or an index segment. It does no harm where every snapshot has all that it needs
    elsewhere; otherwise it is known by its name, which is that of its bytes: what rot made of a pack has another one.
    Raises StoreUnavailable.
    """
    named = _named(repo, {one.pack for one in packs})
    for one in packs:
        name = pack_name(one.pack)
        if one.was_read and one.pack not in named and (all_whole or _is_as_named(repo, one.pack)):
            result.note("pack", name, f"{one.reason}: no pack of this repository, and nothing needs it")
            continue
        result.damage("pack", name, one.reason)
        if one.lasting:
            result.bad.add(Address.head(one.pack))


def _named(repo: Repository, packs: set[bytes]) -> set[bytes]:
    """Those of these packs that snapshots, unfinished runs or the index segments that this host read name."""
    named = census.covered(repo.blobs, packs)
    for snapshot in repo.catalogue.snapshots:
        named |= packs.intersection(snapshot.added.packs)
    for session in repo.catalogue.sessions:
        named |= packs.intersection(session.packs)
    return named


def _is_as_named(repo: Repository, pack: bytes) -> bool:
    """Whether the object's bytes are those that its name says: it is as it was when somebody stored it."""
    name = pack_name(pack)
    try:
        return repo.store.stat(name) <= MAX_OBJECT and hashlib.sha256(repo.store.get(name)).digest() == pack
    except LamellaError as error:
        if isinstance(error, StoreError):
            require_alive(repo.store, error)
        return False
