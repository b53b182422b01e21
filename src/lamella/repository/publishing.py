"""Publishing in a repository, under a lock that may have been lost for a while."""

from __future__ import annotations

from collections.abc import Sequence

from lamella.base.errors import StoreError
from lamella.format.commit import Head
from lamella.format.records import RawRecord, Signed
from lamella.history.publish import Published, append, require_may_publish
from lamella.repository.repository import Repository


def publish(repo: Repository, records: Sequence[RawRecord | Signed]) -> Published:
    """Append one durable commit. Raises RolledBack, Locked at a mirror, RepositoryError, StoreError."""
    require_may_publish(repo.log, repo.problems)
    _require_lock(repo)
    return append(repo.log, records)


def give_up(repo: Repository, heads: Sequence[Head]) -> Published:
    """Publish that nobody waits any more for these commits, and for those missing right before each of them.

    They are excused for every host. Needs the prune key, and a history that was read whole. Other commits may be
    missing, too. Raises RolledBack for any other problem, and as `publish`.
    """
    from lamella.format.deletion import Forgo  # rarely needed

    require_may_publish(repo.log, [problem for problem in repo.problems if problem.lacks is None])
    _require_lock(repo)
    despite = {problem.key for problem in repo.log.found if problem.lacks is not None}
    return append(repo.log, [Forgo(head, _left_before(repo, head)) for head in heads], despite)


def _left_before(repo: Repository, head: Head) -> tuple[int, bytes]:
    """The newest commit before this one in its chain that can be read; 0 and zeros without one."""
    chain = repo.history.chains.get(head.writer)
    left = [] if chain is None else [one.head for one in chain.commits if one.head.seq < head.seq]
    return max(left)[1:] if left else (0, bytes(32))


def _require_lock(repo: Repository) -> None:
    """Go on after the lock was lost for a while, if nothing was removed meanwhile. Raises StoreError otherwise."""
    lock = repo.lock
    while lock is not None and lock.lost:
        losses, before = lock.losses, repo.blobs.vanished
        repo.blobs.refresh()
        if repo.exclusive or repo.blobs.vanished != before:
            raise StoreError(
                "the connection broke, and others changed the repository before it was back",
                obj=repo.store.url,
                hint="run the command again: it uses what is stored already",
            )
        lock.renew(losses)
