"""Appending commits to this host's own chain (FORMAT 8), under the host's lock.

The own head is always read from the repository, never from memory: an old state directory, a commit whose reply was
lost and another process of this host are then all the same case. Where a later own commit is known than the one that
can be read, this host goes on under a new id: a number that was used may come back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lamella.base.clock import Clock
from lamella.base.errors import RepositoryError, RolledBack
from lamella.base.signed import enrolled_by
from lamella.crypto.derive import Keys
from lamella.crypto.sign import public_of, sign, verified
from lamella.format.commit import CHECKPOINT_EVERY, MAX_SEEN, Body, Head
from lamella.format.records import Checkpoint, RawRecord, Signed, Writer, prune_signed_message, raw
from lamella.history.chains import HistoryReader
from lamella.history.history import Chain, History
from lamella.memory.host import HostMemory, WriterKey
from lamella.memory.pins import Pins
from lamella.packs.building import build_commit
from lamella.stores.base import Store, put_durable

if TYPE_CHECKING:
    from lamella.history.compaction import Ended
    from lamella.history.log import Log
    from lamella.memory.pins import Problem


@dataclass(frozen=True, slots=True)
class Published:
    """A commit that is durable."""

    head: Head
    stored_bytes: int


class Publisher:
    """Publishes for one host. Use `publish` with the store's shared lock held."""

    def __init__(self, store: Store, keys: Keys, memory: HostMemory, pins: Pins, reader: HistoryReader) -> None:
        self._store = store
        self._keys = keys
        self._memory = memory
        self._pins = pins
        self._reader = reader

    def publish(
        self,
        history: History,
        records: Sequence[RawRecord | Signed],
        clock: Clock,
        ended: Callable[[], Ended],
        *,
        despite: Collection[str] = (),
    ) -> Published:
        """Append one commit carrying `records` to the own chain; durable when this returns.

        `Signed` values are signed with the prune key if the secret had it. `ended` says what a checkpoint may leave out
        and is asked only when one is due. Problems with the keys `despite` are no obstacle. Raises RolledBack if the
        own chain turns out to be forked or to have gone backwards, StoreError.
        """
        with self._memory.lock():
            key, chain, news = self._own_chain(history, {*despite, *self._pins.accepted})
            key = self._enrolled(key, chain, history)
            head = chain.head
            seq, prev = (head.seq + 1, head.sha256) if head is not None else (1, bytes(32))
            now = clock()
            rows = [*news, *(self._signed(record, key, seq, prev) for record in records)]
            stored = 0
            if seq - chain.checkpoint[0] >= CHECKPOINT_EVERY:
                from lamella.history.checkpoints import make_checkpoint  # due at one commit of many

                checkpoint, stored = make_checkpoint(self._store, self._keys, chain, ended())
                rows += [] if checkpoint is None else [raw(checkpoint)]
            seen = self._seen(history, chain, complete=head is None or any(row.type == Checkpoint.TYPE for row in rows))
            body = Body(key.id, seq, prev, now, chain.checkpoint, seen, tuple(rows))
            content = build_commit(self._keys, key.seed, key.enrolment, body)
            made = Head(key.id, seq, hashlib.sha256(content).digest())
            put_durable(self._store, made.name, content)
            self._reader.remember(made, content)
            self._check_alone(made)
            self._pins.remember([made])
        return Published(made, stored + len(content))

    def _own_chain(self, history: History, accepted: Collection[str]) -> tuple[WriterKey, Chain, list[RawRecord]]:
        """This host's key, its chain as it is now, and the records a chain must begin with."""
        key = self._memory.writer_key()
        known = None if key is None else history.chains.get(key.id)
        if key is not None and not (known is not None and known.forked_at):
            chain, fresh = self._reader.read_own(key.id, self._pins, history)
            if chain.forked_at or any(problem.key not in accepted for problem in fresh.problems):
                raise RolledBack("this host's own history changed while it was used", hint="run: lamella check")
            newest = 0 if chain.head is None else chain.head.seq
            if newest >= max(history.known.get(key.id, 0), fresh.known.get(key.id, 0)):
                history.chains[key.id] = chain
                return key, chain, [] if chain.heads else self._first_records(key)
        key = self._memory.new_writer_key()
        chain = Chain(key.id)
        history.chains[key.id] = chain
        return key, chain, self._first_records(key)

    def _enrolled(self, key: WriterKey, chain: Chain, history: History) -> WriterKey:
        """The key with its enrolment: the prune key's, if this secret, an earlier one or an admin's word gives that.

        Raises RepositoryError for a host that is not admitted where enrolment is closed.
        """
        keys, public = self._keys, key.public
        if keys.prune_seed is None and history.admission is not None:
            from lamella.history.admission import own_enrolment

            enrolment = own_enrolment(keys, key, history.admission, chain.head and self._reader.content(chain.head))
        elif keys.prune_seed is None and enrolled_by(keys.marker.signers, public, key.enrolment, verified):
            enrolment = key.enrolment
        else:
            enrolment = keys.enrolment(public)
        return key if enrolment == key.enrolment else self._memory.enrolled(key, enrolment)

    def _first_records(self, key: WriterKey) -> list[RawRecord]:
        """Who this is, and that it owns what this host's earlier writers own."""
        from lamella.format.owners import Succeeds, succession_message  # once in the life of a writer

        host = self._memory.host
        rows = [raw(Writer(host.label.encode("utf-8")[:200].decode("utf-8", "ignore"), host.machine))]
        message = succession_message(self._keys.root, key.id)
        return rows + [raw(Succeeds(public_of(seed), sign(seed, message))) for seed in key.before]

    def _signed(self, record: RawRecord | Signed, key: WriterKey, seq: int, prev: bytes) -> RawRecord:
        if isinstance(record, RawRecord):
            return record
        plain = raw(record)
        if self._keys.prune_seed is None:
            return plain
        message = prune_signed_message(self._keys.root, key.id, seq, prev, plain)
        return RawRecord(plain.type, plain.value[:-64] + sign(self._keys.prune_seed, message))

    def _seen(self, history: History, own: Chain, *, complete: bool) -> tuple[Head, ...]:
        """Heads of other chains: all of them, or those that changed since the own previous commit."""
        clock = own.clocks.get(own.head.sha256, {}) if own.head is not None else {}
        others = (head for head in history.heads if head.writer != own.writer)
        return tuple(sorted(head for head in others if complete or head.seq > clock.get(head.writer, 0))[:MAX_SEEN])

    def _check_alone(self, made: Head) -> None:
        """Nobody else may have published the same number: that would be a copy of this host's state."""
        same = self._reader.names(made.writer.hex() + "/").get(made.writer, {}).get(made.seq, [])
        if made not in same:
            raise RolledBack("the commit just published is not listed", obj=made.name)
        if any(self._reader.load(History(), head) for head in same if head != made):
            self._pins.remember([made])
            raise RolledBack(
                "the state directory of this host is in use in another place: the history has forked",
                obj=made.name,
                hint="both snapshots are kept; accept with: lamella check --accept-rollback",
            )


def append(log: Log, records: Sequence[RawRecord | Signed], despite: Collection[str] = ()) -> Published:
    """Append one durable commit to a log, despite the problems with these keys.

    Raises RolledBack, StoreError; RepositoryError for a host that is not admitted where enrolment is closed, also if
    that happened while its first commit was being made: the commit is there then.
    """

    def ended_now() -> Ended:
        from lamella.history.checkpoints import ended

        return ended(log.store, log.reader, log.history, log.catalogue, log.own_writer, log.clock())

    if log.own_writer in log.catalogue.retired:
        # Whoever retired this host took its silence for the end: it comes back as another writer.
        with log.memory.lock():
            log.memory.new_writer_key()
    publisher = Publisher(log.store, log.keys, log.memory, log.pins, log.reader)
    published = publisher.publish(log.history, records, log.clock, ended_now, despite=despite)
    with log.memory.may_fail():
        log.places.wrote_there(log.store.url, [published.head])
    if published.head.seq == 1 and log.keys.prune_seed is None:
        from lamella.history.admission import require_still_open  # a host begins once

        require_still_open(log)
    return published


def require_may_publish(log: Log, problems: Sequence[Problem]) -> None:
    """Raises RepositoryError, RolledBack for one of these problems, Locked at a mirror."""
    newer = log.catalogue.read_only or log.own_writer in log.catalogue.unread
    if newer or not log.keys.marker.writable:
        raise RepositoryError("a newer version of lamella wrote here: this version may only read", obj=log.store.url)
    if log.own_writer in log.catalogue.expelled:
        hint = "an admin takes it back with: lamella check --readmit"
        raise RepositoryError("an admin expelled this host: its commits no longer count", obj=log.store.url, hint=hint)
    log.require_none(problems)
    log.require_writable()
    if log.own_writer not in log.history.chains:
        from lamella.history.crowding import require_room  # a host begins once

        require_room(log)
