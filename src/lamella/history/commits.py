"""Single commits: from the store or this host's cache, and what an object proves that does not open."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lamella.base.errors import IntegrityError, ObjectNotFound, StoreError, UnknownFormat
from lamella.crypto.derive import Keys
from lamella.format.commit import Head
from lamella.history.history import Commit, History, Unreadable
from lamella.packs.cache import Cache
from lamella.packs.containers import open_commit
from lamella.packs.reach import reinstated, require_alive
from lamella.stores.base import Store

if TYPE_CHECKING:
    from lamella.history.evidence import Evidence

_OPENED_KEPT = 1024


class CommitReader:
    """Reads commits of one repository. A run reads its history several times, and each commit once."""

    def __init__(self, store: Store, keys: Keys, cache: Cache) -> None:
        self._store = store
        self._keys = keys
        self._cache = cache
        self._opened: dict[Head, Commit] = {}
        self._sound: set[Head] = set()
        self.stored = False
        """Only what the store gave in this process counts: a cache shows commits that may be rotten by now."""

    def load(self, history: History, head: Head) -> Commit | None:
        """One commit; None, and a row in `unreadable`, if it does not open."""
        opened = self._remembered(head) or self._read(history, head)
        if opened is not None and len(self._opened) < _OPENED_KEPT:
            self._opened[head] = opened
        return opened

    def ahead(self, heads: Iterable[Head]) -> None:
        """Fetch these commits together, unless they are known or the store is near."""
        if not self._store.abilities.distant:
            return
        from lamella.history.ahead import fetch_ahead

        unknown = (head for head in heads if not self._is_known(head))
        for head, content in fetch_ahead(self._store, unknown):
            self._keep(head, content)

    def remember(self, head: Head, content: bytes) -> None:
        """Keep a commit that this process has published: it need not be fetched."""
        self._cache.remember_commits([(head.name, content)])

    def speaks_of(self, evidence: Evidence, intact: Iterable[Head]) -> bool:
        """Whether what a damaged object proves is one of these sound commits of its writer and number."""
        from lamella.history.evidence import same  # rarely needed

        return any(same(evidence, content) for content in map(self.content, intact) if content is not None)

    def content(self, head: Head) -> bytes | None:
        """The bytes of a commit that opened before; None if they cannot be read now."""
        content = self._cache.commit(head.name)
        if content is None or hashlib.sha256(content).digest() != head.sha256:
            try:
                content = self._store.get(head.name)
            except StoreError as error:
                require_alive(self._store, error)
                return None
        return content

    def _is_known(self, head: Head) -> bool:
        return head in self._sound if self.stored else self._cache.commit(head.name) is not None

    def _remembered(self, head: Head) -> Commit | None:
        """A commit that need not be fetched. With `stored`: one that this process read from the store, hash checked."""
        if self.stored and head not in self._sound:
            return None
        found = self._opened.get(head)
        content = None if found is not None else self._cache.commit(head.name)
        if content is not None:
            try:
                found = Commit(head, open_commit(self._keys, head, content))
            except IntegrityError:
                return None
        return found

    def _read(self, history: History, head: Head) -> Commit | None:
        content: bytes | None = None
        try:
            content = self._store.get(head.name)
            if hashlib.sha256(content).digest() != head.sha256 and reinstated(self._store, head.name):
                content = self._store.get(head.name)
            body = open_commit(self._keys, head, content)
        except (IntegrityError, UnknownFormat, StoreError) as error:
            require_alive(self._store, error)
            evidence = None if content is None else self._evidence(head, content)
            withheld = isinstance(error, StoreError) and not isinstance(error, ObjectNotFound)
            history.unreadable.append(Unreadable(head, error.message, evidence, withheld))
            return None
        self._keep(head, content)
        return Commit(head, body)

    def _evidence(self, head: Head, content: bytes) -> Evidence | None:
        from lamella.history.evidence import evidence_of  # rarely needed

        return evidence_of(self._keys, head, content)

    def _keep(self, head: Head, content: bytes) -> None:
        # Rotten bytes must not take the place of right ones in the cache: a repair takes them from there.
        if hashlib.sha256(content).digest() == head.sha256:
            self._sound.add(head)
            self._cache.remember_commits([(head.name, content)])
