"""Volumes that runs did not save: for each volume that a run ever intended, the word of the newest such run."""

from __future__ import annotations

from collections.abc import Iterable

from lamella.format.records import Run, RunVolume


def newest_runs(runs: Iterable[Run]) -> list[tuple[Run, RunVolume]]:
    """For each volume a run ever intended, the newest run that did. Names of runs begin with their time."""
    newest: dict[str, tuple[Run, RunVolume]] = {}
    for run in sorted(runs, key=lambda run: run.name):
        for row in run.volumes:
            newest[row.name] = (run, row)
    return [newest[name] for name in sorted(newest)]


def not_saved(run: Run, row: RunVolume) -> str:
    """That the newest run that should have saved a volume did not, and why."""
    return f"the last run that should have saved it, {run.name}, did not" + (f": {row.reason}" if row.reason else "")


def is_wanted(run: Run, row: RunVolume, saved: Iterable[str], last: str) -> bool:
    """Whether a failure matters: a name never saved, that later runs leave out, was a mistake, or is wanted no more.

    `saved` are the names of volumes with snapshots, `last` is the newest run of all.
    """
    return row.name in saved or run.name == last
