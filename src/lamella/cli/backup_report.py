"""The result of a backup, in lines for people and as parts of the JSON document."""

from __future__ import annotations

from itertools import count

from lamella.base.events import Finished, Reporter
from lamella.cli.output import Output
from lamella.cli.shown import shown_bytes, shown_seconds
from lamella.operations.backup.story import BackupResult, VolumeResult
from lamella.sources.base import Consistency


def reporting(out: Output) -> Reporter:
    """A reporter that says how each volume ended as soon as that is known: nobody sees a bar in a journal."""

    ended = count(1)
    return lambda event: _ended(out, next(ended), event) if isinstance(event, Finished) else out.report(event)


def _ended(out: Output, number: int, event: Finished) -> None:
    row, volumes = event.result, event.count * out.rounds
    if out.as_events:
        out.event("volume", {"number": number, "count": volumes, **_row(row)})
    name = f"{row.volume} ({number} of {volumes})" if volumes > 1 else row.volume
    if row.result == "failed":
        out.line(f"{name}: NOT SAVED: {row.error}")
        return
    resumed = f" and {shown_bytes(row.resumed_bytes)} by the previous run" if row.resumed_bytes else ""
    figures = f"{shown_bytes(row.source_bytes)}, {shown_bytes(row.read_bytes)} read{resumed}"
    figures += f", {shown_bytes(row.changed_bytes)} changed" if row.mode != "full" else ""
    out.line(f"{name}: {figures}, {shown_bytes(row.stored_bytes)} stored")
    if out.verbose:
        from lamella.cli.backup_details import details

        out.detail(details(row))


def result_shown(out: Output, result: BackupResult) -> dict[str, object]:
    """The document of a result, which is also said in lines."""
    rows, good = result.volumes, [row for row in result.volumes if row.result != "failed"]
    for row in rows:
        if row.result == "failed":
            out.warn(f"{row.volume} was not saved: {row.error}")
    if result.snapshot:
        state = "complete" if result.complete else f"INCOMPLETE, {len(good)} of {len(rows)} volumes"
        state = "CHANGED while it was read" if result.word == "changed" else state
        amount = f"{shown_bytes(sum(row.source_bytes for row in good))} saved"
        amount += f", {shown_bytes(result.stored_bytes + result.metadata_bytes)} stored"
        out.line(f"snapshot {result.snapshot}: {state}, {amount} in {shown_seconds(result.seconds)}")
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
    return {name: getattr(row, name) for name in VolumeResult.__slots__} | {
        "consistency": Consistency(row.consistency).name.lower()
    }
