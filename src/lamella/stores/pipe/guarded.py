"""Limits of a server for its client: adding only, a quota, and only objects whose bytes match their names."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING

from lamella.base import names, signed
from lamella.base.errors import ObjectNotFound, StoreFull, StoreRefused
from lamella.stores.base import Abilities, checked_name
from lamella.stores.pipe import frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from lamella.base.trust import Clear, Sealed
    from lamella.stores.base import Entry, Store
    from lamella.stores.held import Held

_RECOUNT_AFTER = 512


class GuardedStore:
    """The store inside, within limits.

    `append_only`: nothing is deleted, no key slot is added, and the exclusive lock is not given, except while there is
    no repository. `quota_bytes` bounds all objects together; servers that run side by side count each for itself and
    look again now and then. `checked`: contents must belong under their names (`Received`); always so with
    `append_only` and `admitted`. `admitted`: commits are taken only of writers that an admin enrolled.
    """

    def __init__(
        self,
        inner: Store,
        *,
        append_only: bool = False,
        quota_bytes: int | None = None,
        checked: bool = True,
        admitted: bool = False,
    ) -> None:
        self._inner = inner
        self._append_only = append_only
        self._quota_bytes = quota_bytes
        self._received = Received(inner, admitted=admitted) if checked or append_only or admitted else None
        self._counting = threading.Lock()
        self._used_bytes = 0
        self._puts = 0

    @property
    def url(self) -> str:
        """Where the store inside is."""
        return self._inner.url

    @property
    def abilities(self) -> Abilities:
        """Those of the store inside, without `delete` where only adding is allowed."""
        inner = self._inner.abilities
        if not self._append_only:
            return inner
        return Abilities(inner.exclusive_lock, delete=False, write=inner.write, immutable=True)

    def put(self, name: str, content: Sealed | Clear) -> None:
        """Store an object. Raises StoreRefused where it does not belong under its name, StoreFull over the quota."""
        self._put(name, content, lambda: self._inner.put(name, content))

    def put_view(self, name: str, content: memoryview) -> None:
        """`put` of what was just received; without a copy of it, where the store inside can do that."""
        put_view = getattr(self._inner, "put_view", None)
        if put_view is None:
            self.put(name, frames.as_sealed(content))
        else:
            self._put(name, content, lambda: put_view(name, content))

    def _put(self, name: str, content: bytes | memoryview, put: Callable[[], None]) -> None:
        checked_name(name)
        if self._append_only and names.part_of(name) is None and name != names.PROBE:
            raise StoreRefused("a repository has no object of this name, and what is put here stays for ever", obj=name)
        if self._append_only and name.startswith(names.KEYS) and self._has(names.MARKER):
            raise StoreRefused("no key slots can be added here: its owner adds them at the place itself", obj=name)
        if self._received is not None and self._inner.abilities.write:
            self._received.check(name, content)
        if self._quota_bytes is None:
            put()
        else:
            self._put_counted(name, len(content), put)

    def _put_counted(self, name: str, size: int, put: Callable[[], None]) -> None:
        with self._counting:
            if self._puts % _RECOUNT_AFTER == 0:
                self._used_bytes = sum(entry.size for entry in self._inner.list(""))
            self._puts += 1
            more = 0 if self._has(name) else size
            if more and self._quota_bytes is not None and self._used_bytes + more > self._quota_bytes:
                hint = "make room there, then run the command again"
                raise StoreFull("no space left: the quota of this destination is used up", obj=name, hint=hint)
            self._used_bytes += more
        try:
            put()
        except BaseException:
            with self._counting:
                self._used_bytes -= more
            raise

    def _has(self, name: str) -> bool:
        try:
            self._inner.stat(name)
        except ObjectNotFound:
            return False
        return True

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly the bytes asked for."""
        return self._inner.get(name, offset, length)

    def stat(self, name: str) -> int:
        """Return the object's size in bytes."""
        return self._inner.stat(name)

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix`."""
        return self._inner.list(prefix)

    def delete(self, name: str) -> None:
        """Remove an object. Raises StoreRefused where only adding is allowed."""
        if self._append_only:
            raise StoreRefused("objects can only be added here, never removed", obj=checked_name(name))
        if self._quota_bytes is not None:
            with self._counting:
                self._puts = 0  # counted again at the next put
        self._inner.delete(name)

    def include_in_sync(self, name: str) -> None:
        """Make the next `sync` cover an object that another connection put, where the store inside needs to be told."""
        include = getattr(self._inner, "include_in_sync", None)
        if include is not None:
            include(name)

    def sync(self) -> None:
        """Return when every earlier put and delete is durable."""
        self._inner.sync()

    def lock(self, *, exclusive: bool, wait_seconds: float = 0.0) -> AbstractContextManager[Held | None]:
        """Hold the lock of the store inside. Raises StoreRefused for the exclusive one where only adding is allowed."""
        if exclusive and self._append_only and self._has(names.MARKER):
            raise StoreRefused("objects can only be added here: the exclusive lock is not given", obj=names.MARKER)
        return self._inner.lock(exclusive=exclusive, wait_seconds=wait_seconds)

    def close(self) -> None:
        """Close the store inside."""
        self._inner.close()


class Received:
    """Checks objects before a server stores them, without any key; reads the repository's marker when first needed.

    A name is an address and an accident check, never a proof: whoever may write may write any bytes under their own
    hash. The trailer of a commit is more: it takes a secret of the repository to enrol a writer, and nobody else can
    append to a writer's chain.
    """

    def __init__(self, store: Store, *, admitted: bool = False) -> None:
        """`admitted`: only the prune key enrols."""
        self._store = store
        self._admitted = admitted
        self._signers: signed.Signers | None = None

    def check(self, name: str, content: bytes | memoryview) -> None:
        """Raises StoreRefused for an object whose bytes do not belong under its name; StoreError."""
        if not names.is_hashed(name):
            return
        named = names.hash_in(name)
        if named is None:
            raise StoreRefused("no object has a name like this at this place", obj=name)
        if not hashlib.sha256(content).digest().startswith(named):
            raise StoreRefused("the object's bytes do not hash to its name", obj=name)
        commit = names.commit_of(name)
        if commit is not None:
            self._check_commit(name, bytes(content), commit)

    def _check_commit(self, name: str, content: bytes, commit: names.CommitName) -> None:
        inside, trailer = content[: -signed.TRAILER_SIZE], signed.trailer_of(content)
        sound = inside.startswith(names.CONTAINER_MAGIC) and commit.seq >= 1
        if not sound or signed.writer_of(trailer.public) != commit.writer:
            raise StoreRefused("not a commit of the writer in whose place it was put", obj=name)
        if hashlib.sha256(inside).digest() != trailer.container:
            raise StoreRefused("a commit whose trailer is another one's", obj=name)
        signers = self._repository_signers()
        if signers is None:  # the marker is written last: until then there is nothing to protect
            return
        fault = signed.trailer_fault(signers, commit.writer, commit.seq, trailer, _verified)
        if fault:
            raise StoreRefused(fault, obj=name)
        by = signed.enrolled_by(signers, trailer.public, trailer.enrolment, _verified) if self._admitted else None
        if self._admitted and by != signers.prune:
            text = "only writers that an admin enrolled may write here"
            raise StoreRefused(f"{text}; an admin runs: lamella check --admit KEY (lamella info shows KEY)", obj=name)

    def _repository_signers(self) -> signed.Signers | None:
        if self._signers is None:
            try:
                self._signers = signed.signers_of(self._store.get(names.MARKER, 0, names.MARKER_SIZE))
            except ObjectNotFound:
                return None
        return self._signers


def _verified(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the signature holds. True where nothing can tell: a bare Python checks structure and hash only."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        return True
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
