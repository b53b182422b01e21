"""`lamella status`: whether every volume, repository and profile is as it should be, and if not, why."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from lamella.base.clock import now_ms
from lamella.base.errors import UsageError
from lamella.cli.amounts import shown_age
from lamella.cli.arguments import SECRETS
from lamella.cli.context import Context
from lamella.cli.destination import named_destinations
from lamella.cli.everyday.health import BAD, GROWTH_DAYS, OK, WARN
from lamella.cli.everyday.profiles import require_profile
from lamella.cli.everyday.standing import Row, standing
from lamella.cli.everyday.troubles import Reporting
from lamella.cli.local_time import shown_time
from lamella.cli.new_files import write_file
from lamella.cli.output import INCOMPLETE
from lamella.cli.shown import shown_bytes
from lamella.memory.runs import Profiles


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = "exit codes of status: 0 everything is in order, 3 something is not\n\n" + SECRETS
    parser.add_argument(
        "--notify",
        metavar="PROFILE",
        help="send the messages of PROFILE if its last run was broken off or its good snapshots are too old; opens no "
        "repository",
    )
    parser.add_argument(
        "--prometheus",
        type=Path,
        metavar="FILE",
        help="also write FILE for the text file collector of Prometheus' node exporter",
    )


def run(context: Context) -> int:
    """Do it."""
    profiles = Profiles(context.host)
    if context.args.notify is not None:
        return _watch(context, profiles, context.args.notify)
    found = standing(context)
    volumes, repositories, runs = found.volumes, found.repositories, found.profiles
    _print(context, repositories, volumes, runs)
    for row in found.media:
        why = [reason for reason in row["reasons"] if reason not in row["text"].split("; ")]
        context.out.line(f"{_mark(row)} media {row['media']}: {'; '.join([*why, row['text']])}")
    if context.args.prometheus is not None:
        write_file(context.args.prometheus, prometheus(volumes, repositories, runs).encode(), overwrite=True)
        context.args.prometheus.chmod(0o644)
    context.out.document(found.row())
    return 0 if found.state == OK else INCOMPLETE


def _watch(context: Context, profiles: Profiles, name: str) -> int:
    """Tell of a profile that grew stale. What is in the repository does not matter: it may be out of reach."""
    reporting = Reporting(context, name, profiles)
    try:
        profile = require_profile(context.config.profiles, name)
        named = profile.repositories or tuple(named_destinations(context))
    except UsageError as error:
        reporting.unreadable(error)
        raise
    profiles.see(name, now_ms(), profile.messages)
    reporting = Reporting(context, name, profiles, profile)
    broken, stale = reporting.check_broken_off(), reporting.check_stale(named, profile.stale_after)
    for why in [*filter(None, [broken]), *stale.values()]:
        context.out.line(f"{name}: {why}")
    context.out.document({"profile": name, "stale": list(stale.values()), "broken_off": broken})
    return INCOMPLETE if stale or broken else 0


def _print(context: Context, repositories: Iterable[Row], volumes: list[Row], profiles: list[Row]) -> None:
    out = context.out
    if volumes:
        heads = ("", "VOLUME", "REPOSITORY", "NEWEST", "AGE", "SIZE", "CONSISTENT", "VERIFIED", "DRILLED")
        rows = [heads, *((_mark(row), *_cells(row)) for row in volumes)]
        if len({row["repository"] for row in volumes}) == 1:
            rows = [(*row[:2], *row[3:]) for row in rows]
        out.table(rows)
        out.line()
    for (mark, where, why), names in _together(volumes).items():
        out.line(f"{mark} volume{'s' if len(names) > 1 else ''} {', '.join(names)}{where}: {why}")
    for row in repositories:
        why = f": {'; '.join(row['reasons'])}" if row["reasons"] else ""
        also = f" (also {', '.join(row['also'])})" if row["also"] else ""
        out.line(f"{_mark(row)} repository {row['repository']}{also}{_space(row)}{why}")
    for row in profiles:
        why = f": {'; '.join(row['reasons'])}" if row["reasons"] else ""
        last = shown_time(row["last"]) if row["last"] else "never"
        coming = f", next {shown_time(row['next'])}" if row["next"] else ""
        out.line(f"{_mark(row)} profile {row['profile']}, last run {last}{coming}{why}")


def _together(volumes: list[Row]) -> dict[tuple[str, str, str], list[str]]:
    """The names of the volumes that are not in order, by their mark, their repository and the reasons."""
    several = len({row["repository"] for row in volumes}) > 1
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in volumes:
        if row["reasons"]:
            where = f" in {row['repository']}" if several else ""
            found.setdefault((_mark(row), where, "; ".join(row["reasons"])), []).append(row["volume"])
    return found


def _space(row: Row) -> str:
    if not row["stored_bytes"]:
        return ""
    stored, grown = shown_bytes(row["stored_bytes"]), shown_bytes(row["grown_bytes"])
    return f", {stored}, {grown} of it from finished backups of the last {GROWTH_DAYS} days"


def _cells(row: Row) -> tuple[str, ...]:
    """Without the state: volume, repository, and what is known of the newest good snapshot."""
    drilled = row["drilled"]
    return (
        row["volume"],
        row["repository"],
        shown_time(row["newest_time"]) if row["newest"] else "none",
        shown_age(row["age_seconds"]) if row["newest"] else "",
        shown_bytes(row["size"]),
        row["consistency"],
        _verified(row),
        "never" if drilled is None else f"{shown_time(drilled['time'])[:10]} {drilled['verdict']}",
    )


def _verified(row: Row) -> str:
    """The deepest look, and how far the budgets of several runs have come."""
    verified, read = row["verified"], row["read"]
    if verified is None:
        return "never"
    day, level = shown_time(verified["time"])[:10], verified["level"]
    if read is not None and level == "full" and read["runs"] > 1 and read["oldest"] == verified["time"]:
        return f"full over {read['runs']} nights, oldest part {day}"
    if read is not None and level == "sample" and read["total_bytes"]:
        return f"{day} sample, {100 * read['read_bytes'] // read['total_bytes']} % read"
    return f"{day} {level}"


def _mark(row: Row) -> str:
    return {OK: "ok", WARN: "WARN", BAD: "BAD"}[row["state"]]


# -- Prometheus -------------------------------------------------------------------------------------------------------

_METRICS = (
    ("lamella_volume_newest_age_seconds", "Age of the newest good snapshot.", "age_seconds"),
    ("lamella_volume_size_bytes", "Size of the volume in its latest snapshot.", "size"),
    ("lamella_volume_snapshots", "Number of snapshots.", "snapshots"),
)
_SPACE = (
    ("lamella_repository_stored_bytes", "Bytes in the packs that this host knows of.", "stored_bytes"),
    (
        "lamella_repository_grown_bytes",
        f"Of these from finished backups of the last {GROWTH_DAYS} days.",
        "grown_bytes",
    ),
)
_STATES = {OK: 0, WARN: 1, BAD: 2}


def prometheus(volumes: Iterable[Row], repositories: Iterable[Row], profiles: Iterable[Row]) -> str:
    """The text exposition format of Prometheus, version 0.0.4."""
    rows, places = list(volumes), list(repositories)
    lines: list[str] = []

    def metric(name: str, text: str, values: Iterable[tuple[dict[str, str], int]]) -> None:
        lines.extend((f"# HELP {name} {text}", f"# TYPE {name} gauge"))
        lines.extend(f"{name}{{{_labels(labels)}}} {value}" for labels, value in values)

    def of_volumes(key: str) -> Iterable[tuple[dict[str, str], int]]:
        return (
            ({"volume": row["volume"], "repository": row["repository"]}, int(row[key])) for row in rows if row["newest"]
        )

    for name, text, key in _METRICS:
        metric(name, text, of_volumes(key))
    states = (({"volume": row["volume"], "repository": row["repository"]}, _STATES[row["state"]]) for row in rows)
    metric("lamella_volume_state", "0 in order, 1 warning, 2 bad.", states)
    for name, text, key in _SPACE:
        metric(name, text, (({"repository": row["repository"]}, int(row[key])) for row in places))
    of_places = (({"repository": row["repository"]}, _STATES[row["state"]]) for row in places)
    metric("lamella_repository_state", "0 in order, 1 warning, 2 bad.", of_places)
    of_profiles = (({"profile": row["profile"]}, _STATES[row["state"]]) for row in profiles)
    metric("lamella_profile_state", "0 in order, 1 warning, 2 bad.", of_profiles)
    return "\n".join([*lines, ""])


def _labels(labels: dict[str, str]) -> str:
    def escaped(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items())
