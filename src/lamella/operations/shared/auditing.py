"""Auditing checkpoints, so that the commits before them are needed no more (FORMAT 8, AUDITED).

A checkpoint passes if it repeats everything before it that is in force, adds nothing, and says truly what its commits
had seen. Records missing from a checkpoint still count, because the commits before an unaudited checkpoint are read;
they are reported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field

from lamella.base.errors import IntegrityError, ObjectNotFound, UnknownFormat
from lamella.format.commit import ChainEntry, Head
from lamella.format.deletion import Audited
from lamella.format.known import understood
from lamella.format.records import Ref, Seen
from lamella.history.carried import said_clocks
from lamella.history.chains import HistoryReader
from lamella.history.compaction import (
    COPIES_REMEMBERED_MS,
    Ended,
    InForce,
    begins_of,
    differences,
    differing_clocks,
)
from lamella.history.history import AUDITS_KEPT, Chain, History
from lamella.history.order import Clock
from lamella.memory.pins import Problem
from lamella.packs.catalogue_segments import stored_segment
from lamella.repository.repository import Repository

_AT_ONCE = 64
_MONTH_MS = 30 * 86_400_000


@dataclass(slots=True)
class Audit:
    """The audits of the newest checkpoints of all chains."""

    passed: list[Head] = field(default_factory=list)
    """Commits whose checkpoints say what the commits before them say, and are not named AUDITED yet."""
    problems: list[Problem] = field(default_factory=list)
    """Checkpoints that do not. Nothing that rests on them may be deleted; readers report them (exit code 21)."""
    waiting: list[str] = field(default_factory=list)
    """Why a checkpoint was not judged yet."""


def audit(repo: Repository, remove_delay_ms: int = 0) -> Audit:
    """Judge the newest checkpoint of every chain; reads the whole history if it was not read yet.

    A checkpoint that already lacks a snapshot whose removal this host first saw less than `remove_delay_ms` ago has to
    wait. Raises StoreError.
    """
    if not repo.history.whole:
        repo.reload(whole=True)
    result = Audit()
    for chain in repo.history.chains.values():
        seq, sha256 = chain.checkpoint
        head = Head(chain.writer, seq, sha256)
        if seq == 0 or head == chain.begin:
            continue
        where = f"the checkpoint in commit {seq} of writer {chain.writer.hex()[:8]}"
        trouble = _trouble(repo, chain)
        if trouble:
            result.waiting.append(f"{where}: {trouble}")
            continue
        unreadable, wrong = _unreadable(repo, head), ""
        try:
            wrong = "" if unreadable else _wrong(repo, chain, _ended(repo, frozenset(repo.catalogue.removed)))
        except (IntegrityError, ObjectNotFound) as error:
            unreadable = error.message
        wrong = f"cannot be read: {unreadable}" if unreadable else wrong
        if wrong:
            result.problems.append(Problem(f"checkpoint:{chain.writer.hex()}:{seq}:{sha256.hex()}", f"{where} {wrong}"))
        elif remove_delay_ms and _wrong(repo, chain, _ended(repo, _old_enough(repo, remove_delay_ms))):
            result.waiting.append(f"{where} lacks what was removed only lately")
        else:
            result.passed.append(head)
    return result


def publish_audits(repo: Repository, passed: Collection[Head]) -> None:
    """Say of these checkpoints that chains may begin with them. Needs the prune key. Raises RolledBack, StoreError."""
    if passed:
        repo.publish([Audited(head) for head in sorted(passed)])


def reapable_commits(repo: Repository) -> list[Head]:
    """Commits that no reader needs, in the order in which they are to be deleted: each writer's oldest first.

    These are the ones before the second newest audited checkpoint of a chain that never forked, as far as each is named
    by the one after it. Reads the whole history if it was not read yet. Raises StoreError.
    """
    if not repo.history.whole:
        repo.reload(whole=True)
    found: list[Head] = []
    for chain in repo.history.chains.values():
        audits = [head for head in repo.history.audits.get(chain.writer, []) if chain.begin and head <= chain.begin]
        if chain.forked_at or _trouble(repo, chain) or len(audits) < AUDITS_KEPT:
            continue
        before = _ancestors(repo.log.reader, audits[-AUDITS_KEPT])
        # What stays must tell everybody what goes: also those who know no more than what lies there now.
        if before and not any(_unreadable(repo, head) for head in audits[-AUDITS_KEPT:]):
            found += before
    return found


def _unreadable(repo: Repository, head: Head) -> str:
    """Why a stranger could not read a checkpoint as it is stored now; empty if nothing hinders. Raises StoreError."""
    try:
        if hashlib.sha256(repo.store.get(head.name)).digest() != head.sha256:
            return "its commit is damaged"
        commit = repo.log.reader.load(History(), head)
        if commit is None or commit.checkpoint is None:
            return "it cannot be read"
        for place in commit.checkpoint.segments:
            stored_segment(repo.store, repo.keys, repo.packs, place)
    except (IntegrityError, ObjectNotFound, UnknownFormat) as error:
        return error.message
    return ""


def _ancestors(reader: HistoryReader, head: Head) -> list[Head]:
    """The commits before this one that are listed, each named by the one after it; oldest first. Raises StoreError."""
    names = reader.names(head.writer.hex() + "/").get(head.writer, {})
    found: list[Head] = []
    commit = reader.load(History(), head)
    while commit is not None:
        before = Head(head.writer, commit.head.seq - 1, commit.body.prev)
        if before not in names.get(before.seq, []):
            break
        found.append(before)
        commit = reader.load(History(), before)
    return found[::-1]


def compact_log(repo: Repository, remove_delay_ms: int, *, delete: bool) -> tuple[int, list[Problem]]:
    """Audit, say so, and delete the commits that no reader needs any more if `delete`, which takes the exclusive lock.

    Returns how many commits were deleted, and what is wrong with checkpoints. Raises RolledBack, StoreError.
    """
    found = audit(repo, remove_delay_ms)
    publish_audits(repo, found.passed)
    if found.passed:
        repo.reload(whole=True)
    heads = reapable_commits(repo) if delete else []
    for start in range(0, len(heads), _AT_ONCE):
        for head in heads[start : start + _AT_ONCE]:
            repo.store.delete(head.name)
        # The oldest first and durable in steps: what a power cut leaves is never before a gap.
        repo.store.sync()
    return len(heads), found.problems


def _trouble(repo: Repository, chain: Chain) -> str:
    """Why nothing can be said about a chain now; empty if it is whole and sound."""
    name = chain.writer.hex()
    if chain.forked_at:
        return "its chain forked"
    if chain.lacking:
        return chain.lacking
    if not chain.whole or any(problem.writer == chain.writer for problem in repo.history.problems):
        return "the history before it is not whole"
    if any(obj.startswith(f"w/{name}/") for obj, _ in repo.history.damaged):
        return "a commit of its chain is damaged"
    return ""


def _ended(repo: Repository, removed: frozenset[Ref]) -> Ended:
    """Tombstones of what no chain carries any more may be gone: without them the history says the same."""
    catalogue = repo.catalogue
    buried = frozenset(ref for ref, removal in catalogue.removed.items() if removal.added is None)
    live = frozenset(one.ref for one in catalogue.snapshots)
    forget_ms = repo.clock() - COPIES_REMEMBERED_MS + _MONTH_MS
    return Ended(removed, begins_of(repo.history), live, buried, forget_ms=forget_ms)


def _old_enough(repo: Repository, delay_ms: int) -> frozenset[Ref]:
    now = repo.clock()
    found: set[Ref] = set()
    for ref, removal in repo.catalogue.removed.items():
        sights = [repo.log.sightings.of(*commit) for commit in removal.commits]
        if any(sight is None or sight.first_ms + delay_ms <= now for sight in sights):
            found.add(ref)
    return frozenset(found)


def _wrong(repo: Repository, chain: Chain, ended: Ended) -> str:
    """The fault of the newest checkpoint; empty without one. Raises IntegrityError, ObjectNotFound."""
    seq = chain.checkpoint[0]
    carried: list[ChainEntry] = []
    facts: list[tuple[int, Seen]] = []
    for entry in repo.log.checkpoint_entries(chain):
        if entry.record.type != Seen.TYPE:
            carried.append(entry)
        elif isinstance(fact := understood(entry.record), Seen):
            facts.append((entry.seq, fact))
    every = [entry for entry in chain.entries if entry.seq < seq]
    kept = InForce(chain.writer, every, ended).kept()
    lacking, invented = differences(carried, kept, every)
    if lacking:
        return f"leaves out {lacking} records that are in force"
    if invented:
        return f"has {invented} records that no commit before it has"
    seqs = sorted({entry.seq for entry in carried})
    clocks = repo.history.said_clocks
    said = said_clocks(chain.writer, carried, facts)
    true = {one: _allowing(chain, one, clocks.get((chain.writer, one)), said.get(one)) for one in seqs}
    differ = differing_clocks(seqs, said, true)
    return f"says of {differ} commits that they had seen what they had not" if differ else ""


def _allowing(chain: Chain, seq: int, true: Clock | None, said: Clock | None) -> Clock | None:
    """What a commit had seen; behind a gap that is given up also what its writer says: the missing ones had seen it."""
    if true is None or said is None or not any(gap.last < seq for gap in chain.gaps):
        return true
    return {writer: max(true.get(writer, 0), said.get(writer, 0)) for writer in {*true, *said}}
