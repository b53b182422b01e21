"""The report: how everything stands and how it came to that, as one page without a script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from typing import Any

from lamella.base.clock import iso
from lamella.cli.amounts import shown_age
from lamella.cli.everyday.health import BAD, DAY_MS, GROWTH_DAYS, OK, UNVERIFIED_DAYS, WARN
from lamella.cli.everyday.standing import Overview
from lamella.cli.local_time import shown_time
from lamella.cli.pages.charts import age_bar, area, bars, calendar, frame
from lamella.cli.pages.markup import EMPTY, Html, html, resource
from lamella.cli.pages.past import Days, days_of, local_day, together
from lamella.cli.shown import shown_bytes

Row = dict[str, Any]
GENERATOR = '<meta name="generator" content="lamella report">'
_WORDS = {OK: "in order", WARN: "look at this", BAD: "bad"}
_RANK = {BAD: 0, WARN: 1, OK: 2}
_YEAR = 365
_CHANGE_DAYS = 90
_FEWEST_DAYS = 14

ICONS = Html(
    '<svg class="icons" aria-hidden="true"><symbol id="ok" viewBox="0 0 16 16"><circle cx="8" cy="8" r="8"></circle>'
    '<path d="M4.2 8.4l2.6 2.7 5-5.6"></path></symbol><symbol id="warn" viewBox="0 0 16 16">'
    '<path class="shape" d="M8 .8L15.8 15H.2z"></path><path d="M8 5.5v4.6M8 12v1.4"></path></symbol>'
    '<symbol id="bad" viewBox="0 0 16 16"><path class="shape" d="M4.7 0h6.6L16 4.7v6.6L11.3 16H4.7L0 11.3V4.7z"></path>'
    '<path d="M5 5l6 6m0-6l-6 6"></path></symbol></svg>'
)
_MARKS = {
    state: Html(
        f'<span class="mark {state}"><svg aria-hidden="true"><use href="#{state}"></use></svg>'
        f'<span class="word">{word}</span></span>'
    )
    for state, word in _WORDS.items()
}


def document(title: str, body: Html) -> str:
    """A whole page that holds all it needs, and may load, run or send nothing."""
    style = resource("report.css")
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'"
    page = html(
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{}\n'
        '<meta http-equiv="Content-Security-Policy" content="{}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" '
        'content="light dark">\n<title>{}</title>\n<style>{}</style>\n</head>\n<body>\n{}\n</body>\n</html>\n',
        Html(GENERATOR),
        policy,
        title,
        Html(style),
        body,
    )
    return page.text


def report(found: Overview, host: str) -> str:
    """The report as a page of its own; `host` is the name of this machine."""
    return document(f"Backups of {host}", html("{}<main>{}</main>", ICONS, report_body(found, host)))


def report_body(found: Overview, host: str) -> Html:
    """What the report says, without the page around it, which has the ICONS."""
    rows = sorted(found.volumes, key=lambda row: (_RANK[row["state"]], row["volume"], row["repository"]))
    days = {(row["repository"], row["volume"]): days_of(row) for row in rows}
    today = local_day(iso(found.time_ms))
    parts = [
        _head(found, host),
        _troubles(found),
        _volumes(rows),
        _repositories(found, days, today),
        _changes(rows, days, today),
        _proofs(rows, found.time_ms),
        _profiles(found.profiles),
        _foot(found.time_ms),
    ]
    return html("{}", parts)


def mark(state: str) -> Html:
    """A state as a shape and a word."""
    return _MARKS[state]


def section(title: str, more: str, content: Html, name: str) -> Html:
    """A part of a page with a heading."""
    note = html('<p class="note">{}</p>', more) if more else EMPTY
    return html('<section class="{}"><h2>{}</h2>{}{}</section>', name, title, note, content)


def _key(text: str, drawing: str) -> str:
    cell = '<rect class="cell" width="17" height="17" rx="3"></rect>'
    return f'<span><svg viewBox="0 0 17 17">{cell}{drawing}</svg>{text}</span>'


_CROSS = '<path class="cross" d="M5 5l7 7m0-7l-7 7"></path>'
_LEGEND = Html(
    '<p class="legend">'
    + _key("all volumes", '<rect class="saved" width="17" height="17" rx="3"></rect>')
    + _key("some of them", '<rect class="saved" y="9" width="17" height="8" rx="3"></rect>')
    + _key("none", "")
    + _key("something failed", '<rect class="wrong" width="17" height="17" rx="3"></rect>' + _CROSS)
    + "</p>"
)


# -- what is wrong ----------------------------------------------------------------------------------------------------


def _head(found: Overview, host: str) -> Html:
    every = [*found.volumes, *found.repositories, *found.profiles]
    counts = {state: sum(row["state"] == state for row in every) for state in (BAD, WARN)}
    if not found.volumes and found.state != BAD:
        verdict = "Nothing is saved yet"
    elif found.state == OK:
        verdict = "Everything is in order"
    else:
        words = [f"{counts[BAD]} bad"] * bool(counts[BAD]) + [f"{counts[WARN]} to look at"] * bool(counts[WARN])
        verdict = ", ".join(words)
    newest = max((row["newest_time"] for row in found.volumes), default="")
    first = min((shown_time(row["history"][0]["time"])[:10] for row in found.volumes if row["history"]), default="")
    stored = sum(row["stored_bytes"] for row in found.repositories)
    figures = [
        ("volumes", str(len({row["volume"] for row in found.volumes})), _places(len(found.repositories))),
        ("snapshots", f"{_moments(found):,}", f"since {first}, of one or more volumes each" if first else ""),
        ("newest", _age(newest, found.time_ms) if newest else "none", shown_time(newest) if newest else ""),
        ("stored", shown_bytes(stored), f"{shown_bytes(sum(row['size'] for row in found.volumes))} of volumes"),
    ]
    tiles = [html("<div><dt>{}</dt><dd>{}</dd><dd>{}</dd></div>", name, value, more) for name, value, more in figures]
    return html(
        '<header class="{}"><p class="host">Backups of {}</p><h1>{}<span>{}</span></h1>'
        '<p class="note">{} ({})</p></header><dl class="tiles">{}</dl>',
        found.state,
        host,
        mark(found.state),
        verdict,
        shown_time(iso(found.time_ms)),
        _zone(found.time_ms),
        tiles,
    )


def _moments(found: Overview) -> int:
    """The snapshots: one of several volumes is one, as in `list`."""
    return len({(row["repository"], one["snapshot"]) for row in found.volumes for one in row["history"]})


def _places(count: int) -> str:
    return "in 1 repository" if count == 1 else f"in {count} repositories"


def _age(text: str, now: int) -> str:
    age = shown_age(max(0, now - _ms(text)) // 1000)
    return age if age == "now" else f"{age} ago"


def _troubles(found: Overview) -> Html:
    every = [
        *((row, "volume", row["volume"], row["repository"]) for row in found.volumes),
        *((row, "repository", row["repository"], "") for row in found.repositories),
        *((row, "profile", row["profile"], "") for row in found.profiles),
    ]
    wrong = sorted((one for one in every if one[0]["state"] != OK), key=lambda one: _RANK[one[0]["state"]])
    if not wrong:
        return EMPTY
    items = [
        html(
            '<li class="{}">{}<div><strong>{}</strong> <span class="kind">{}</span>{}</div></li>',
            row["state"],
            mark(row["state"]),
            name,
            f"{kind} in {place}" if place else kind,
            (html("<p>{}</p>", reason) for reason in row["reasons"]),
        )
        for row, kind, name, place in wrong
    ]
    return section("What needs attention", "", html("<ul>{}</ul>", items), "troubles")


# -- volumes ----------------------------------------------------------------------------------------------------------

_HEADS = ("Volume", "Repository", "Newest", "Age", "Size", "Snapshots", "Consistent", "Verified", "Drilled")
_NUMBERS = frozenset(("Age", "Size", "Snapshots"))


def _volumes(rows: Sequence[Row]) -> Html:
    if not rows:
        text = "No volume has a snapshot. The first one is made with: <code>lamella backup SOURCE</code>"
        return section("Volumes", "", html('<p class="empty">{}</p>', Html(text)), "volumes")
    several = len({row["repository"] for row in rows}) > 1
    heads = [name for name in _HEADS if several or name != "Repository"]
    cells = [dict(zip(_HEADS, _cells(row), strict=True)) for row in rows]
    body = [
        html(
            '<tr class="{}">{}</tr>',
            row["state"],
            (
                html(
                    '<td data-head="{}" class="{}">{}{}</td>',
                    name,
                    "number" if name in _NUMBERS else "name" if name == "Volume" else "",
                    mark(row["state"]) if name == "Volume" else EMPTY,
                    html("<span>{}</span>", one[name]),
                )
                for name in heads
            ),
        )
        for row, one in zip(rows, cells, strict=True)
    ]
    head = (html('<th scope="col" class="{}">{}</th>', "number" * (name in _NUMBERS), name) for name in heads)
    table = html("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>", head, body)
    return section("Volumes", "", table, "volumes")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row["volume"],
        row["repository"],
        shown_time(row["newest_time"]) if row["newest"] else "none",
        shown_age(row["age_seconds"]) if row["newest"] else "",
        shown_bytes(row["size"]),
        f"{row['snapshots']:,}",
        row["consistency"],
        _verified(row),
        "never" if row["drilled"] is None else f"{shown_time(row['drilled']['time'])[:10]} {row['drilled']['verdict']}",
    )


def _verified(row: Row) -> str:
    one = row["verified"]
    return "never here" if one is None else f"{shown_time(one['time'])[:10]} {one['level']}"


# -- repositories -----------------------------------------------------------------------------------------------------


def _repositories(found: Overview, days: dict[tuple[str, str], Days], today: date) -> Html:
    cards = []
    for row in found.repositories:
        mine = {volume: one for (repository, volume), one in days.items() if repository == row["repository"]}
        also = html(' <span class="kind">also {}</span>', ", ".join(row["also"])) if row["also"] else EMPTY
        stored, grown = shown_bytes(row["stored_bytes"]), shown_bytes(row["grown_bytes"])
        lately = f"{stored} stored, {grown} of it from finished backups of the last {GROWTH_DAYS} days"
        text = lately if row["stored_bytes"] else ""
        cards.append(
            html(
                '<article><h3>{}<span>{}</span>{}</h3><p class="note">{}</p>{}</article>',
                mark(row["state"]),
                row["repository"],
                also,
                text,
                _drawn(row, mine, today),
            )
        )
    return section("Repositories", "", html("{}", cards), "repositories")


def _drawn(row: Row, mine: dict[str, Days], today: date) -> Html:
    every = [when for one in mine.values() for when in one if when <= today]
    if not every:
        return html('<p class="empty">Nothing to draw: no snapshot is known here.</p>')
    span = [today - timedelta(back) for back in range(min(_YEAR, max(_FEWEST_DAYS, (today - min(every)).days)), -1, -1)]
    all_days, begins = together(mine.values()), sorted(min(one) for one in mine.values() if one)
    left, stored = row["stored_bytes"], []
    for when in reversed(span):
        stored.append(max(0, left))
        left -= all_days[when].stored_bytes if when in all_days else 0
    stored.reverse()
    total = {when: sum(begin <= when for begin in begins) for when in span}
    space = frame(max(stored) or 1, area(stored), span[0], today, f"Space of {row['repository']}")
    return html(
        '<div class="pair"><figure><figcaption>Space over time: what is stored today, by the day it came'
        "</figcaption>{}</figure><figure><figcaption>Days with snapshots</figcaption>{}{}</figure></div>",
        space,
        calendar(all_days, total, span[0], today),
        _LEGEND,
    )


# -- change per day ---------------------------------------------------------------------------------------------------


def _changes(rows: Sequence[Row], days: dict[tuple[str, str], Days], today: date) -> Html:
    first = min((when for one in days.values() for when in one if when <= today), default=None)
    if first is None:
        return EMPTY
    back = min(_CHANGE_DAYS, max(_FEWEST_DAYS, (today - first).days + 1))
    span = [today - timedelta(number) for number in range(back - 1, -1, -1)]
    several = len({row["repository"] for row in rows}) > 1
    cards = [_change(row, days[row["repository"], row["volume"]], span, several) for row in rows]
    note = f"What the runs of each day added, the last {back} days. A red band marks a day on which something failed."
    most = sorted(cards, key=lambda one: -one[0])
    return section("Change per day", note, html('<div class="cards">{}</div>', (one for _, one in most)), "changes")


def _change(row: Row, days: Days, span: Sequence[date], several: bool) -> tuple[int, Html]:
    """What a volume's days added, in bytes, and their chart. Its first backup does not set the scale."""
    first = min(days, default=span[0])
    shown = [days.get(when) for when in span]
    later = [days[when].stored_bytes for when in span if when in days and when != first]
    total, top = sum(later), max(later, default=0)
    words = f"{shown_bytes(total / max(1, len(later)))} a day with a backup"
    if first in span:
        words = f"{shown_bytes(days[first].stored_bytes)} at first" + (f", then {words}" if later else "")
        top = top or days[first].stored_bytes
    kind = html(' <span class="kind">{}</span>', row["repository"]) if several else EMPTY
    chart = frame(top, bars(shown, top), span[0], span[-1], f"Change per day of {row['volume']}")
    return total, html(
        '<figure><figcaption><strong>{}</strong>{}<span class="note">{}</span></figcaption>{}</figure>',
        row["volume"],
        kind,
        words,
        chart,
    )


# -- verification -----------------------------------------------------------------------------------------------------


def _proofs(rows: Sequence[Row], now: int) -> Html:
    """Ages of verifications and drills, what was never done first."""
    if not rows:
        return EMPTY
    ages = {id(row): [_days_ago(row[key], now) for key in ("verified", "drilled")] for row in rows}
    known = [age for pair in ages.values() for age in pair if age is not None]
    most = max([2.0 * UNVERIFIED_DAYS, *(min(age, 2 * _YEAR) for age in known)])
    ordered = sorted(rows, key=lambda row: -1e9 if ages[id(row)][0] is None else -(ages[id(row)][0] or 0.0))
    several = len({row["repository"] for row in rows}) > 1
    body = [
        html(
            '<tr><td class="name">{}{}</td><td data-head="Verified">{}</td><td data-head="Drilled">{}</td></tr>',
            html("<span>{}</span>", row["volume"]),
            html(' <span class="kind">{}</span>', row["repository"]) if several else EMPTY,
            _proof(ages[id(row)][0], most, row["verified"] and row["verified"]["level"], "never on this host"),
            _proof(ages[id(row)][1], most, row["drilled"] and row["drilled"]["verdict"], "never"),
        )
        for row in ordered
    ]
    note = f"How long ago, up to {most:.0f} days; the line stands at {UNVERIFIED_DAYS} days."
    head = (
        '<thead><tr><th scope="col">Volume</th><th scope="col">Verified</th><th scope="col">Drilled</th></tr></thead>'
    )
    return section(
        "Verification and drills", note, html("<table>{}<tbody>{}</tbody></table>", Html(head), body), "proofs"
    )


def _days_ago(one: Row | None, now: int) -> float | None:
    return None if one is None else max(0.0, (now - _ms(one["time"])) / DAY_MS)


def _proof(age: float | None, most: float, word: str | None, never: str) -> Html:
    if age is None:
        return html('<div class="proof none"><span>{}</span></div>', never)
    kind = "old" if age > UNVERIFIED_DAYS or word == "failed" else "fresh"
    return html(
        '<div class="proof">{}<span class="number">{} d</span><span>{}</span></div>',
        age_bar(age, most, UNVERIFIED_DAYS, kind),
        f"{age:.0f}",
        word or "",
    )


# -- profiles, words --------------------------------------------------------------------------------------------------


def _profiles(rows: Iterable[Row]) -> Html:
    body = [
        html(
            '<tr class="{}"><td class="name">{}<span>{}</span></td><td data-head="Last run">{}</td>'
            '<td data-head="Last good run">{}</td></tr>',
            row["state"],
            mark(row["state"]),
            row["profile"],
            html("<span>{}</span>", shown_time(row["last"]) if row["last"] else "never"),
            html("<span>{}</span>", ", ".join(f"{name} {shown_time(time)}" for name, time in row["good"].items())),
        )
        for row in rows
    ]
    if not body:
        return EMPTY
    head = "<thead><tr><th>Profile</th><th>Last run</th><th>Last good run</th></tr></thead>"
    return section("Profiles", "", html("<table>{}<tbody>{}</tbody></table>", Html(head), body), "profiles")


def _foot(now: int) -> Html:
    return html(
        "<footer><p>Times are local ({}). Stored is what the packs take that this host knows of; snapshots that were "
        "removed are not drawn. Verifications and drills are those of this host.</p></footer>",
        _zone(now),
    )


def _ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def _zone(now: int) -> str:
    return datetime.fromtimestamp(now / 1000).astimezone().tzname() or "local time"
