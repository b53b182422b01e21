"""Backing up: plan, then execute."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

from lamella.events import Reporter, silent
from lamella.format import compression
from lamella.operations.backup_plan import (
    BackupOptions,
    FailedRequest,
    Planner,
    Request,
    check_documents,
)
from lamella.operations.backup_result import BackupResult, VolumeResult
from lamella.operations.backup_run import BackupRun
from lamella.operations.session import Session
from lamella.repository.repository import Repository

__all__ = ["BackupOptions", "BackupPlan", "BackupResult", "FailedRequest", "Request", "VolumeResult", "plan_backup"]


def plan_backup(
    repo: Repository, requests: Sequence[Request | FailedRequest], options: BackupOptions | None = None
) -> BackupPlan:
    """Decide what a run would do. Raises UsageError, RolledBack, StoreError."""
    options = options or BackupOptions()
    check_documents(options.documents)
    for request in requests:
        if isinstance(request, Request) and request.documents is not None:
            check_documents(request.documents)
    compression.Encoder(options.compression)
    repo.require_sound_history()
    repo.refresh_map()
    return BackupPlan(repo, list(requests), options)


class BackupPlan:
    """What a run will do; `rows` is for people, `execute` does it."""

    def __init__(self, repo: Repository, requests: list[Request | FailedRequest], options: BackupOptions) -> None:
        self._repo = repo
        self._requests = requests
        self._options = options
        self.rows = Planner(repo, options).rows(requests)
        self.failed = [request for request in requests if isinstance(request, FailedRequest)]

    def execute(self, reporter: Reporter = silent) -> BackupResult:
        """Do it. Sources that fail are left out and reported; a failing destination raises and publishes nothing.

        Raises Locked if a source is being backed up already, StoreError, RolledBack.
        """
        started = time.monotonic()
        with ExitStack() as held:
            for row in self.rows:
                identity = row.request.source.identity
                held.enter_context(self._repo.host.source_lock(identity, self._options.lock_wait))
            # Somebody else may have published while this process waited.
            self._repo.reload()
            self._repo.require_sound_history()
            self._repo.refresh_map()
            self.rows = Planner(self._repo, self._options).rows(self._requests)
            with Session(self._repo) as session:
                run = BackupRun(self._repo, self._options, session, reporter)
                result = run.save(self.rows, self.failed)
        result.seconds = round(time.monotonic() - started, 3)
        return result
