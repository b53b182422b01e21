"""Bad addresses in a verification: those that are known are read again, those that are new are published as BAD.

A BAD is a place to look at again, never a verdict (docs/decisions/0036): a false alarm dies with the next reading.
"""

from __future__ import annotations

from lamella.base.errors import LamellaError
from lamella.base.names import pack_hash, pack_name
from lamella.format.container import Kind
from lamella.format.lost import MAX_BAD, Address, Bad
from lamella.format.records import raw
from lamella.operations.shared.findings import VerifyResult
from lamella.operations.shared.rereading import reread
from lamella.repository.repository import Repository

_MOST_RECORDS = 16
"""In one commit; the next verification publishes what is beyond."""


def read_known_again(repo: Repository, result: VerifyResult) -> None:
    """Read what records or this host call bad and is listed. Raises StoreUnavailable."""
    troubled = {name for name, _ in repo.blobs.troubled()}
    packs = {one.pack for one in repo.catalogue.bad}
    listed = {pack for pack in packs if pack_name(pack) in troubled or repo.blobs.length(pack) is not None}
    known = {one for one in repo.catalogue.bad if one.pack in listed}
    for pack in repo.suspects.packs():
        known |= {Address(pack, blob.kind, blob.id) for blob in repo.suspects.blobs(pack)}
    found = reread(repo, known)
    for one in sorted(found.bad):
        _report(result, one, found.reasons[one])
    for one in sorted(found.unread):
        _report(result, one, "was found bad before, and cannot be read for the moment")
    result.bad |= found.bad


def read_heads_again(repo: Repository, result: VerifyResult) -> None:
    """Read the heads that did not open: what cannot be read for the moment is not bad. Raises StoreUnavailable."""
    packs = [pack for name, _ in repo.blobs.troubled() if (pack := pack_hash(name)) is not None]
    result.bad |= reread(repo, map(Address.head, packs)).bad


def publish_bad(repo: Repository, result: VerifyResult) -> None:
    """Publish, in one commit, the bad addresses that no record names yet. Where that fails, a note says so."""
    news = sorted((result.bad | repo.contents.bad) - repo.catalogue.bad)[: _MOST_RECORDS * MAX_BAD]
    if not news:
        return
    try:
        if not repo.store.abilities.write:
            result.note("record", repo.store.url, "what is bad is not recorded for other hosts: this is read-only")
            return
        parts = [tuple(news[start : start + MAX_BAD]) for start in range(0, len(news), MAX_BAD)]
        repo.publish([raw(Bad(part)) for part in parts])
    except LamellaError as error:
        text = f"what is bad could not be recorded for other hosts: {error.message}"
        result.note("record", repo.store.url, text)
        return
    result.recorded = len(news)
    repo.suspects.apply(news, repo.blobs)


def _report(result: VerifyResult, one: Address, reason: str) -> None:
    if one.kind == Kind.DIRECTORY:
        result.damage("pack", pack_name(one.pack), reason)
    else:
        result.damage("blob", pack_name(one.pack), f"{one.kind.name.lower()} {one.id.hex()[:16]}: {reason}")
