"""Charts as inline SVG. Words stand beside the drawing, as text of the page: they keep their size on every screen.

A drawing has classes and no colours: the style sheet chooses these for light, dark and paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta

from lamella.cli.pages.markup import EMPTY, Html, html
from lamella.cli.pages.past import Day, Days
from lamella.cli.shown import shown_bytes

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_HEIGHT = 100
_CELL = 20
_LABEL = 96


def day_text(day: date) -> str:
    """`29 Nov 2026`."""
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def short_day(day: date) -> str:
    """`29 Nov`."""
    return f"{day.day} {MONTHS[day.month - 1]}"


def frame(top: int, drawing: Html, first: date, last: date, label: str) -> Html:
    """A drawing with the sizes 0 to `top` bytes on the left, and days below."""
    ends = [first + (last - first) * part / 4 for part in range(5)]
    text = day_text if (last - first).days > 300 else short_day
    return html(
        '<div class="plot"><div class="ys"><span>{}</span><span>{}</span><span>0</span></div>'
        '<svg class="drawing" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">{}{}</svg>'
        '<div class="xs">{}</div></div>',
        shown_bytes(top),
        shown_bytes(top / 2),
        max(1, (last - first).days + 1),
        _HEIGHT,
        label,
        html('<path class="grid" d="M0 .5H4000M0 50H4000M0 99.5H4000"></path>'),
        drawing,
        (html("<span>{}</span>", text(end)) for end in ends),
    )


def area(values: Sequence[int]) -> Html:
    """Steps, one a day, the ground below them filled; the largest reaches the top."""
    steps = "".join(f"V{_height(value, max(values))}h1" for value in values)
    ground = html('<path class="ground" d="M0 {}{}V{}z"></path>', _HEIGHT, steps, _HEIGHT)
    return ground + html('<path class="line" d="M0 {}{}"></path>', _height(values[0], max(values)), steps)


def bars(days: Sequence[Day | None], top: int) -> Html:
    """A bar for what each day added, a tick for a snapshot that added nothing, a band over a day of failures."""
    added, failed = [], []
    for number, day in enumerate(days):
        if day is not None and day.snapshots:
            added.append(f"M{number}.1 {_HEIGHT}V{min(_height(day.stored_bytes, top), _HEIGHT - 3)}h.8V{_HEIGHT}z")
        if day is not None and (day.failed or day.good < day.snapshots):
            failed.append(f"M{number} {_HEIGHT}V0h1V{_HEIGHT}z")
    drawn = html('<path class="failed" d="{}"></path>', "".join(failed)) if failed else EMPTY
    return drawn + html('<path class="bars" d="{}"></path>', "".join(added))


def _height(value: int, top: int) -> float:
    return round(_HEIGHT - min(value, top) * (_HEIGHT - 2) / (top or 1), 1)


def calendar(days: Days, total: Mapping[date, int], first: date, last: date) -> Html:
    """A row a month and a cell a day, filled as far as the volumes there were on that day (`total`) were saved."""
    months = _months(first, last)
    cells = [
        _cell(date(year, month, number), row, days, total)
        for row, (year, month) in enumerate(months)
        for number in range(1, 32)
        if _exists(year, month, number) and first <= date(year, month, number) <= last
    ]
    heads = [
        html('<text x="{}" y="14" class="head">{}</text>', _LABEL + (number - 1) * _CELL + _CELL // 2, number)
        for number in (1, 5, 10, 15, 20, 25, 30)
    ]
    names = [
        html('<text x="0" y="{}">{} {}</text>', (row + 1) * _CELL + 16, MONTHS[month - 1], year)
        for row, (year, month) in enumerate(months)
    ]
    width, height = _LABEL + 31 * _CELL, (len(months) + 1) * _CELL
    return html(
        '<svg class="calendar" viewBox="0 0 {} {}" role="img" aria-label="Days with snapshots">{}{}{}</svg>',
        width,
        height + 2,
        heads,
        names,
        cells,
    )


def _months(first: date, last: date) -> list[tuple[int, int]]:
    count = (last.year - first.year) * 12 + last.month - first.month + 1
    months = [divmod(first.year * 12 + first.month - 1 + step, 12) for step in range(count)]
    return [(year, month + 1) for year, month in months]


def _exists(year: int, month: int, number: int) -> bool:
    return number <= 28 or (date(year, month, 28) + timedelta(number - 28)).month == month


def _cell(when: date, row: int, days: Days, total: Mapping[date, int]) -> Html:
    day, volumes = days.get(when, Day()), total.get(when, 0)
    left, top = _LABEL + (when.day - 1) * _CELL, (row + 1) * _CELL + 1
    side = _CELL - 3
    filled = round(side * min(1.0, day.volumes / volumes)) if volumes else 0
    bad = day.failed or day.good < day.snapshots
    text = f"{day_text(when)}: {day.volumes} of {volumes} volumes" + (", something failed" if bad else "")
    drawn = [html('<rect class="cell" x="{}" y="{}" width="{}" height="{}" rx="3"></rect>', left, top, side, side)]
    if bad:
        drawn = [html('<rect class="wrong" x="{}" y="{}" width="{}" height="{}" rx="3"></rect>', left, top, side, side)]
        drawn.append(html('<path class="cross" d="M{} {}l7 7m0-7l-7 7"></path>', left + 5, top + 5))
    elif filled:
        place = (left, top + side - filled, side, filled)
        drawn.append(html('<rect class="saved" x="{}" y="{}" width="{}" height="{}" rx="3"></rect>', *place))
    return html("<g><title>{}</title>{}</g>", text, drawn)


def age_bar(days: float, most: float, limit: float, kind: str) -> Html:
    """An age as a bar on a scale that ends at `most` days, with a line where it is too old. `kind`: fresh or old."""
    return html(
        '<svg class="age" viewBox="0 0 1000 12" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" x="0" y="4" width="1000" height="4"></rect>'
        '<rect class="{}" x="0" y="2" width="{}" height="8"></rect>'
        '<path class="limit" d="M{} 0V12"></path></svg>',
        kind,
        max(6, round(1000 * min(days, most) / most)),
        round(1000 * limit / most),
    )
