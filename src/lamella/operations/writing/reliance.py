"""What a run relies on without having stored it, looked at again before each of its commits (docs/CONCURRENCY.md).

Only for stores without an exclusive lock (where a lock can be lost with a connection, Repository.publish looks). The
packs that were found instead of storing something must be there and not be condemned, and this must be known from a
listing that is younger than W when the commit goes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from lamella.base.clock import both_clocks, seconds_since
from lamella.base.errors import IntegrityError, StoreError, StoreUnavailable
from lamella.base.names import pack_name
from lamella.format.records import NO_REF
from lamella.format.sessions import SessionVolume
from lamella.packs.building import raw_body
from lamella.packs.containers import open_blob
from lamella.repository.repository import Repository

if TYPE_CHECKING:
    from lamella.operations.writing.session import WritingSession

WINDOW_SECONDS = 3600.0
"""W: how old a listing may be when a commit that rests on it is put."""
_ROUNDS = 5
_AGAIN = "run the command again: it uses what is stored already"


class Reliance:
    """The checks of one run."""

    def __init__(self, repo: Repository, session: WritingSession) -> None:
        self._repo = repo
        self._session = session
        self._stored_again: set[bytes] = set()

    def renew(self) -> None:
        """Look again; what was condemned meanwhile is stored again. Raises StoreUnavailable if that is not possible."""
        for _ in range(_ROUNDS):
            before = both_clocks()
            self._repo.reload()
            self._repo.require_sound_history()
            self._repo.refresh_map(again=True)
            if not self._store_again() and seconds_since(before, both_clocks()) < WINDOW_SECONDS:
                return
        text = "packs are condemned faster than they can be stored again"
        raise StoreUnavailable(text, obj=self._repo.store.url, hint=_AGAIN)

    def require_standing(self, volumes: Sequence[SessionVolume]) -> None:
        """The snapshots a run shares from must stand after it was announced. Raises StoreUnavailable."""
        standing = {snapshot.ref for snapshot in self._repo.catalogue.snapshots}
        if any(row.base != NO_REF and row.base not in standing for row in volumes):
            raise StoreUnavailable("the snapshot this run builds on was removed meanwhile", hint=_AGAIN)

    def _store_again(self) -> bool:
        """Copy what condemned packs hold into new ones; whether there was any need."""
        repo = self._repo
        relied = (repo.blobs.relied | set(self._session.own_packs)) - self._stored_again
        for pack in relied:
            if repo.blobs.length(pack) is None and not self._is_there(pack):
                text = "a pack that this run relies on was deleted meanwhile"
                raise StoreUnavailable(text, obj=pack_name(pack), hint=_AGAIN)
        doomed = relied & repo.blobs.condemned
        for pack in doomed:
            self._copy(pack)
        if doomed:
            self._session.flush()
            self._stored_again |= doomed
        return bool(doomed)

    def _is_there(self, pack: bytes) -> bool:
        """A listing may lag: asked for by its name, it may be there all the same."""
        try:
            return self._repo.store.stat(pack_name(pack)) > 0
        except StoreError:
            return False

    def _copy(self, pack: bytes) -> None:
        repo = self._repo
        directory = repo.blobs.directory(pack)
        if directory is None:
            raise StoreUnavailable("a condemned pack cannot be read", obj=pack_name(pack), hint=_AGAIN)
        domain = repo.keys.domain(directory.domain_id)
        packer = self._session.packer(directory.domain_id)
        for blob in directory.blobs:
            if any(place.domain_id == directory.domain_id for place in repo.blobs.reusable(blob.kind, blob.id)):
                continue
            sealed = repo.store.get(pack_name(pack), blob.offset, blob.sealed_length)
            try:
                body = raw_body(open_blob(domain, directory.header, blob, sealed, pack_name(pack)))
            except IntegrityError as error:
                raise StoreUnavailable(f"a condemned pack is damaged: {error.message}", obj=error.obj) from error
            packer.store_blob(blob.kind, blob.id, blob.content_length, partial(bytes, body))
