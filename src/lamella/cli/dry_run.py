"""The plan of a backup, for --dry-run: in lines for people and as the JSON document."""

from __future__ import annotations

from lamella.cli.backup_details import planned
from lamella.cli.output import Output
from lamella.operations.backup.story import BackupPlan


def plan_shown(out: Output, plan: BackupPlan) -> dict[str, object]:
    """The document of a dry run, which is also said in lines."""
    rows = plan.rows
    for row in rows:
        out.line(f"would be backed up: {planned(row)}")
    for failed in plan.failed:
        out.line(f"{failed.name}: would fail: {failed.message}")
    documents: list[dict[str, object]] = [
        {
            "volume": row.volume,
            "driver": row.driver,
            "mode": row.mode,
            "reason": row.reason,
            "source_bytes": 0,
            "result": "planned",
        }
        for row in rows
    ]
    documents += [{"volume": one.name, "result": "failed", "error": one.message} for one in plan.failed]
    return {"dry_run": True, "volumes": documents}
