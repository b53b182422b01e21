"""What a backup is going to do and what became of it, in lines for people and as parts of the JSON document."""

from __future__ import annotations

from collections.abc import Sequence

from lamella.cli.output import Output
from lamella.cli.shown import shown_bytes, shown_seconds
from lamella.operations.backup.story import BackupPlan, BackupResult, VolumePlan, VolumeResult
from lamella.sources.base import Consistency


def planned(row: VolumePlan) -> str:
    """What a run will do with one volume."""
    text = f"{row.volume}: {row.mode}, {row.reason}" if row.reason else f"{row.volume}: {row.mode} ({row.driver})"
    if row.resume is not None:
        done = min(row.resume.done << row.resume.chunk_log2, row.resume.size)
        text += f"; goes on after {shown_bytes(done)} of {shown_bytes(row.resume.size)}"
    return text


def say_plan(out: Output, plan: BackupPlan, rows: Sequence[VolumePlan]) -> None:
    """Say beforehand what a run is going to do."""
    for row in rows:
        out.say(planned(row))
        base = f"from {row.base.name}" if row.base is not None else "without a base"
        out.detail(f"{row.volume}: {row.driver} driver, {base}, volume {row.volume_id.hex()}")
    for failed in plan.failed:
        out.say(f"{failed.name}: will be missing, {failed.message}")
    new = [row.volume for row in rows if row.record is not None and row.base is None and not row.record.domain_label]
    if new and len(plan.repo.catalogue.volumes) + len(new) > 1:
        out.say(f"{', '.join(new)}: shares no data with other volumes; --domain NAME at a first backup changes that")


def result_shown(out: Output, result: BackupResult) -> dict[str, object]:
    """The document of a result, which is also said in lines."""
    for row in result.volumes:
        if row.result == "failed":
            out.warn(f"{row.volume} was not saved: {row.error}")
        else:
            figures = f"{shown_bytes(row.source_bytes)}, read {shown_bytes(row.read_bytes)}"
            figures += f" ({shown_bytes(row.sampled_bytes)} as a sample)" if row.sampled_bytes else ""
            figures += f", {shown_bytes(row.resumed_bytes)} from the run before" if row.resumed_bytes else ""
            changed = f"{row.changed_chunks} chunks changed, stored {shown_bytes(row.stored_bytes)}"
            out.line(f"{row.volume}: {row.mode}: {figures}, {changed}")
            state = Consistency(row.consistency).name.lower()
            out.detail(f"{row.volume}: {row.driver} driver, {row.new_chunks} new chunks, consistency {state}")
    written = f"stored {shown_bytes(result.stored_bytes)} and {shown_bytes(result.metadata_bytes)} of metadata"
    state = result.word if result.word == "complete" else result.word.upper()
    if result.snapshot:
        out.line(f"snapshot {result.snapshot}: {state}, {written} in {shown_seconds(result.seconds)}")
    else:
        out.line("nothing was saved, so there is no snapshot")
    out.line(f"fingerprint {result.fingerprint}")
    return {
        "snapshot": result.snapshot,
        "result": result.word,
        "seconds": result.seconds,
        "metadata_bytes": result.metadata_bytes,
        "stored_bytes": result.stored_bytes,
        "fingerprint": result.fingerprint,
        "warnings": result.warnings,
        "volumes": [_row(row) for row in result.volumes],
    }


def _row(row: VolumeResult) -> dict[str, object]:
    word = Consistency(row.consistency).name.lower()
    return {**{name: getattr(row, name) for name in VolumeResult.__slots__}, "consistency": word}
