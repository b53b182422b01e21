"""The fleet as a page: what needs attention, every host in a row, and what all of them added, day by day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from lamella.base.clock import iso
from lamella.cli.amounts import shown_age
from lamella.cli.everyday.health import BAD, GROWTH_DAYS, OK, WARN, worst
from lamella.cli.local_time import shown_time
from lamella.cli.pages.charts import area, bars, frame
from lamella.cli.pages.markup import EMPTY, Html, html
from lamella.cli.pages.past import Day
from lamella.cli.pages.report import ICONS, document, mark, section
from lamella.cli.shown import shown_bytes

Row = dict[str, Any]
DayRow = tuple[int, ...]
_RANK = {BAD: 0, WARN: 1, OK: 2}
_EPOCH = date(1970, 1, 1)
_SPAN_DAYS = 365
_FEWEST_DAYS = 14
_MOST_TROUBLES = 200
_HEADS = ("Host", "Newest", "Age", "Volumes", "Stored", f"{GROWTH_DAYS} days", "Verified", "Looked at")
_NUMBERS = frozenset(("Age", "Volumes", "Stored", f"{GROWTH_DAYS} days"))


def fleet_page(rows: Sequence[Row], days: Mapping[int, Sequence[DayRow]], now: int) -> str:
    """A page of its own."""
    return document("Backups of the fleet", html("{}<main>{}</main>", ICONS, fleet_body(rows, days, now)))


def fleet_body(rows: Sequence[Row], days: Mapping[int, Sequence[DayRow]], now: int) -> Html:
    """What the page says, without the page around it, which has the ICONS."""
    ordered = sorted(rows, key=lambda row: (_RANK[row["state"]], row["host"]))
    return html("{}", [_head(rows, now), _troubles(ordered), _hosts(ordered), _added(days, now)])


def _head(rows: Sequence[Row], now: int) -> Html:
    state = worst(row["state"] for row in rows)
    counts = {one: sum(row["state"] == one for row in rows) for one in (BAD, WARN)}
    words = [f"{counts[BAD]} bad"] * bool(counts[BAD]) + [f"{counts[WARN]} to look at"] * bool(counts[WARN])
    figures = (
        ("hosts", f"{len(rows):,}", f"{sum(row['keys'] for row in rows):,} with a key here"),
        ("volumes", f"{sum(row['volumes'] for row in rows):,}", f"{sum(row['snapshots'] for row in rows):,} snapshots"),
        ("stored", shown_bytes(sum(row["stored_bytes"] for row in rows)), ""),
        ("added", shown_bytes(sum(row["grown_bytes"] for row in rows)), f"in {GROWTH_DAYS} days"),
    )
    tiles = [html("<div><dt>{}</dt><dd>{}</dd><dd>{}</dd></div>", *one) for one in figures]
    return html(
        '<header class="{}"><p class="host">Backups of the fleet</p><h1>{}<span>{}</span></h1>'
        '<p class="note">{}</p></header><dl class="tiles">{}</dl>',
        state,
        mark(state),
        ", ".join(words) or "Every host is in order",
        shown_time(iso(now)),
        tiles,
    )


def _troubles(rows: Sequence[Row]) -> Html:
    wrong = [row for row in rows if row["state"] != OK]
    if not wrong:
        return EMPTY
    items = [
        html(
            '<li class="{}">{}<div><strong>{}</strong>{}</div></li>',
            row["state"],
            mark(row["state"]),
            row["host"],
            (html("<p>{}</p>", reason) for reason in row["reasons"]),
        )
        for row in wrong[:_MOST_TROUBLES]
    ]
    more = f"{len(wrong) - _MOST_TROUBLES:,} more are marked below" if len(wrong) > _MOST_TROUBLES else ""
    return section("What needs attention", more, html("<ul>{}</ul>", items), "troubles")


def _hosts(rows: Sequence[Row]) -> Html:
    body = [
        html(
            '<tr class="{}">{}</tr>',
            row["state"],
            (
                html(
                    '<td data-head="{}" class="{}">{}{}</td>',
                    head,
                    "number" if head in _NUMBERS else "name" if head == "Host" else "",
                    mark(row["state"]) if head == "Host" else EMPTY,
                    html("<span>{}</span>", cell),
                )
                for head, cell in zip(_HEADS, _cells(row), strict=True)
            ),
        )
        for row in rows
    ]
    heads = (html('<th scope="col" class="{}">{}</th>', "number" * (name in _NUMBERS), name) for name in _HEADS)
    return section(
        "Hosts", "", html("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>", heads, body), "volumes"
    )


def _cells(row: Row) -> tuple[str, ...]:
    quota = f" of {shown_bytes(row['quota_bytes'])}" if row["quota_bytes"] else ""
    return (
        row["host"],
        shown_time(row["newest_time"]) if row["newest_time"] else "none",
        "" if row["age_seconds"] is None else shown_age(row["age_seconds"]),
        f"{row['volumes']:,}" if row["keys"] else "no key",
        shown_bytes(row["stored_bytes"]) + quota,
        shown_bytes(row["grown_bytes"]) if row["keys"] else "",
        shown_time(row["verified"])[:10] if row["verified"] else "never here",
        shown_time(row["looked"]) if row["looked"] else "never",
    )


def _added(days: Mapping[int, Sequence[DayRow]], now: int) -> Html:
    """What all hosts added each day, and what all of it comes to; days are those of UTC."""
    today = datetime.fromtimestamp(now / 1000, UTC).date()
    every: dict[date, Day] = {}
    for rows in days.values():
        for number, snapshots, good, failed, stored in rows:
            when = _EPOCH + timedelta(number) if 0 <= number < 2_900_000 else date.max
            day = every.setdefault(when, Day())
            day.snapshots += snapshots
            day.good += good
            day.failed += failed
            day.stored_bytes += stored
    known = [when for when in every if when <= today]
    if not known:
        return EMPTY
    back = min(_SPAN_DAYS, max(_FEWEST_DAYS, (today - min(known)).days))
    span = [today - timedelta(number) for number in range(back, -1, -1)]
    shown = [every.get(when) for when in span]
    top = max((day.stored_bytes for day in shown if day is not None), default=0) or 1
    total, sums = sum(every[when].stored_bytes for when in known if when < span[0]), []
    for one in shown:
        total += 0 if one is None else one.stored_bytes
        sums.append(total)
    drawn = html(
        '<div class="pair"><figure><figcaption>Added by snapshots that are there, in all</figcaption>{}</figure>'
        "<figure><figcaption>Each day; a red band marks a day on which something failed</figcaption>{}</figure></div>",
        frame(max(sums) or 1, area(sums), span[0], today, "Bytes added in all"),
        frame(top, bars(shown, top), span[0], today, "Bytes added each day"),
    )
    return section("Growth", "", html("<article>{}</article>", drawn), "repositories")
