"""Backing up: plan, then execute; to one repository, or from the same moment to several."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from lamella.base.errors import LamellaError
from lamella.base.events import Reporter, silent
from lamella.format.encoder import Encoder
from lamella.memory.host import Host
from lamella.operations.backup.plan import (
    BackupOptions,
    FailedRequest,
    Planner,
    Request,
    check_documents,
)
from lamella.operations.backup.result import BackupResult, VolumeResult
from lamella.operations.backup.run import BackupRun
from lamella.operations.moments.freezing import Hooks, clean, frozen_sources
from lamella.repository.repository import Repository
from lamella.sources.base import Source
from lamella.stores.wrap.limited import TokenBucket

__all__ = [
    "BackupOptions",
    "BackupPlan",
    "BackupResult",
    "FailedRequest",
    "Outcome",
    "Request",
    "VolumeResult",
    "execute_together",
    "plan_backup",
]


def plan_backup(
    repo: Repository, requests: Sequence[Request | FailedRequest], options: BackupOptions | None = None
) -> BackupPlan:
    """Decide what a run would do. Raises UsageError, RolledBack, StoreError."""
    options = options or BackupOptions()
    check_documents(options.documents)
    for request in requests:
        if isinstance(request, Request) and request.documents is not None:
            check_documents(request.documents)
    Encoder(options.compression)
    repo.require_sound_history()
    repo.refresh_map()
    repo.contents.keeps_nodes = repo.store.abilities.distant
    return BackupPlan(repo, list(requests), options)


class BackupPlan:
    """What a run will do; `rows` is for people, `execute` does it."""

    def __init__(self, repo: Repository, requests: list[Request | FailedRequest], options: BackupOptions) -> None:
        self.repo = repo
        self.options = options
        self._requests = requests
        self.rows = Planner(repo, options).rows(requests)
        self.failed = [request for request in requests if isinstance(request, FailedRequest)]

    def execute(self, reporter: Reporter = silent) -> BackupResult:
        """Do it. Sources that fail are left out and reported; a failing destination raises and publishes nothing.

        Raises Locked if a source is being backed up already, StoreError, RolledBack.
        """
        (outcome,) = execute_together([self], reporter)
        if outcome.error is not None:
            raise outcome.error
        assert outcome.result is not None
        return outcome.result

    def renew(self) -> None:
        """Plan again: somebody else may have published meanwhile. Raises UsageError, RolledBack, StoreError."""
        self.repo.reload()
        self.repo.require_sound_history()
        self.repo.refresh_map()
        self.rows = Planner(self.repo, self.options).rows(self._requests)

    @property
    def sources(self) -> list[Source]:
        """What is to be read."""
        return [request.source for request in self._requests if isinstance(request, Request)]


@dataclass(slots=True)
class Outcome:
    """What became of one plan: a result, or the error that ended it."""

    plan: BackupPlan
    result: BackupResult | None = None
    error: LamellaError | None = None


def execute_together(plans: Sequence[BackupPlan], reporter: Reporter = silent) -> list[Outcome]:
    """Execute plans for the same sources and host, to different repositories, from one frozen moment (decisions/0017).

    Each plan has an outcome of its own: one that fails does not stop the others. Raises Locked if a source is being
    backed up already, LamellaError if the command before the freeze fails.
    """
    first = plans[0]
    host, options = first.repo.host, first.options
    sources = list({source.identity: source for plan in plans for source in plan.sources}.values())
    outcomes = [Outcome(plan) for plan in plans]
    started = time.monotonic()
    with _locked(host, sources, options.lock_wait):
        runs = [(outcome, BackupRun(outcome.plan.repo, outcome.plan.options, reporter)) for outcome in outcomes]
        for outcome, run in runs:
            with _outcome(outcome):
                outcome.plan.renew()
                run.prepare(outcome.plan.rows)
        runs = [(outcome, run) for outcome, run in runs if outcome.error is None]
        if not runs:
            return outcomes
        warn = runs[0][1].warn
        clean(host, sources, warn)
        hooks = Hooks(options.before, options.after, options.hook_seconds, options.around)
        bucket = None if options.read_rate is None else TokenBucket(options.read_rate)
        with frozen_sources(sources, hooks, first.repo.clock, warn, bucket=bucket) as moments:
            for outcome, run in runs:
                with _outcome(outcome):
                    outcome.result = run.save(outcome.plan.rows, outcome.plan.failed, moments)
                    outcome.result.seconds = round(time.monotonic() - started, 3)
                started = time.monotonic()
    return outcomes


@contextmanager
def _locked(host: Host, sources: Sequence[Source], wait_seconds: float) -> Iterator[None]:
    with ExitStack() as held:
        for source in sources:
            held.enter_context(host.source_lock(source.identity, wait_seconds))
        yield


@contextmanager
def _outcome(outcome: Outcome) -> Iterator[None]:
    try:
        yield
    except LamellaError as error:
        outcome.error = error
