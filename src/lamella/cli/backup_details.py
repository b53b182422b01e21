"""The plan of a backup, and the details of its execution, in lines for people."""

from __future__ import annotations

from collections.abc import Sequence

from lamella.cli.output import Output
from lamella.cli.shown import shown_bytes
from lamella.operations.backup.story import BackupPlan, VolumePlan, VolumeResult
from lamella.sources.base import Consistency

HOW = {
    "full": "everything is read",
    "compare": "everything is read and compared",
    "incremental": "only changes are read",
}


def planned(row: VolumePlan) -> str:
    """The plan for one volume."""
    text = f"{row.volume}: {HOW[row.mode]}" + (f": {row.reason}" if row.reason else "")
    if row.resume is not None:
        done = min(row.resume.done << row.resume.chunk_log2, row.resume.size)
        text += f"; continues after {shown_bytes(done)} of {shown_bytes(row.resume.size)}"
    return text


def details(row: VolumeResult) -> str:
    """Details of a saved volume, for --verbose."""
    state = Consistency(row.consistency).name.lower()
    sample = f", {shown_bytes(row.sampled_bytes)} read as a sample of what did not change" if row.sampled_bytes else ""
    return f"{row.volume}: {HOW[row.mode]} by the {row.driver} driver, consistency {state}{sample}"


def say_plan(out: Output, plan: BackupPlan, rows: Sequence[VolumePlan]) -> None:
    """Say beforehand what a run is going to do."""
    for row in rows:
        out.say(planned(row))
        out.detail(f"{row.volume}: by the {row.driver} driver, from {row.base.name if row.base else 'nothing'}")
    for failed in plan.failed:
        out.say(f"{failed.name}: will be missing, {failed.message}")
    new = [row.volume for row in rows if row.record is not None and row.base is None and not row.record.domain_label]
    if new and len(plan.repo.catalogue.volumes) + len(new) > 1:
        out.say(f"{', '.join(new)}: no data is shared with other volumes; --domain NAME at a first backup changes that")
