"""What runs intended, compared with what is there: a volume that failed must not be reported fine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lamella.format.records import Run, RunVolume
from lamella.history.catalogue import Snapshot
from lamella.operations.shared.findings import VerifyResult
from lamella.operations.shared.selection import Selected
from lamella.repository.repository import Repository


def check_runs(repo: Repository, selected: Sequence[Selected], result: VerifyResult) -> list[str]:
    """Add what the newest run of each volume did not save; returns the names of those volumes.

    Where snapshots are named, only their volumes are looked at; their names may be the ones shown, `NAME~<4 hex>`.
    """
    everything = len(selected) == len(repo.catalogue.snapshots)
    names = None if everything else {one.volume.name for one in selected} | {one.volume_name for one in selected}
    lacking: list[str] = []
    last = max(repo.catalogue.runs, default="")
    saved = {volume.name for volume in repo.catalogue.volumes.values() if volume.snapshots}
    for run, row in _newest(repo.catalogue.runs.values()):
        if names is not None and row.name not in names:
            continue
        if row.failed:
            reason = f": {row.reason}" if row.reason else ""
            text = f"the last run that should have saved it, {run.name}, did not{reason}"
            # A name that was never saved and that later runs left out was a mistake, or is not wanted any more.
            if row.name in saved or run.name == last:
                result.not_saved(row.name, text)
                lacking.append(row.name)
            else:
                result.note("run", row.name, text)
        elif not _is_there(repo, run, row):
            result.damage("run", f"{row.name}@{run.name}", "a run says that it saved this, and it is not listed")
    return lacking


def _is_audited(repo: Repository, snapshot: Snapshot) -> bool:
    chain = repo.history.chains.get(snapshot.ref.writer)
    return chain is not None and chain.begin is not None and snapshot.ref.seq < chain.begin.seq


def _newest(runs: Iterable[Run]) -> list[tuple[Run, RunVolume]]:
    """For each volume a run ever intended, the newest run that did. Names of runs begin with their UTC second."""
    newest: dict[str, tuple[Run, RunVolume]] = {}
    for run in sorted(runs, key=lambda run: run.name):
        for row in run.volumes:
            newest[row.name] = (run, row)
    return [newest[name] for name in sorted(newest)]


def _is_there(repo: Repository, run: Run, row: RunVolume) -> bool:
    """Whether the snapshot a run says it saved is listed, or was removed on purpose."""
    if not repo.history.whole:
        return True  # what was removed long ago is in no checkpoint any more
    if any(_is_audited(repo, one) for one in repo.catalogue.snapshots if one.name == run.name):
        return True  # nor in the audited checkpoint with which the chain begins
    removed = [one.added for one in repo.catalogue.removed.values() if one.added is not None]
    known = {(added.volume_id, added.name) for added in removed}
    known |= {(one.added.volume_id, one.name) for one in repo.catalogue.snapshots}
    return not any(row.volume_id) or (row.volume_id, run.name) in known
