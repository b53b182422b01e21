"""Pages for a browser: no name of a repository becomes markup, the charts say what the figures say."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import date
from html.parser import HTMLParser
from typing import Any

import pytest

from lamella.base.clock import iso
from lamella.cli.everyday.standing import Overview
from lamella.cli.pages import charts
from lamella.cli.pages.markup import Html, html
from lamella.cli.pages.past import Day, days_of, local_day
from lamella.cli.pages.report import report

DAY = 86_400_000
NOW = 1_795_977_600_000  # 29 November 2026, 18:40 UTC
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></title></svg><script>",
    "<!--",
    "&lt;script&gt;",
    "{}",
    "{0.__class__}",
    "javascript:alert(1)",
    "\u202egnp.exe\u2066",
    "a\x00b\x1b[31m\r\n",
    "\ud800",
    "]]>",
)


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, ...]] = []
        self.values: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.values += [value or "" for _, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}",))

    def handle_comment(self, data: str) -> None:
        self.tags.append(("comment",))

    def handle_decl(self, decl: str) -> None:
        self.tags.append(("declaration", decl))

    def handle_data(self, data: str) -> None:
        self.values.append(data)


def standing(name: str) -> Overview:
    """A bad state in which every text that comes from outside is `name`."""
    verdict = {"level": name, "time": iso(NOW - 40 * DAY)}
    history = [
        {"snapshot": name, "time": iso(NOW - back * DAY), "stored_bytes": back << 20, "good": back != 2}
        for back in range(20, 0, -1)
    ]
    volume: dict[str, Any] = {
        "volume": name, "repository": name, "newest": name, "newest_time": history[-1]["time"], "age_seconds": 86_400,
        "consistency": name, "verified": verdict, "drilled": {"time": iso(NOW), "result": "failed", "verdict": name},
        "size": 1 << 30, "snapshots": 20, "state": "bad", "reasons": [name, name], "history": history,
        "failed": [{"time": iso(NOW), "reason": name}],
    }  # fmt: skip
    repository = {
        "repository": name, "also": [name], "state": "warn", "reasons": [name], "stored_bytes": 300 << 20,
        "grown_bytes": 5,
    }  # fmt: skip
    profile = {"profile": name, "last": iso(NOW), "good": {name: iso(NOW)}, "state": "bad", "reasons": [name]}
    return Overview(NOW, [volume], [repository], [profile])


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_becomes_markup(name: str) -> None:
    harmless, found = Tags(report(standing("name"), "name")), Tags(report(standing(name), name))
    assert found.tags == harmless.tags
    hidden = {"\u202e", "\u2066", "\x00", "\x1b", "\ud800"}
    assert not any(hidden & set(value) for value in found.values)


def test_the_page_loads_and_runs_nothing() -> None:
    page = report(standing("name"), "host")
    found = Tags(page)
    assert not {tag[0] for tag in found.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not {name for tag in found.tags for name in tag[1:]} & {"style", "src", "srcset", "onload", "action"}
    assert not re.search(r"https?:|url\(|@import", page)
    style = page.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [value for value in found.values if value.startswith("default-src 'none'")]
    assert f"style-src 'sha256-{digest}'" in policy


def test_a_template_takes_as_many_values_as_it_has_places() -> None:
    assert html("<b>{}</b>{}", "<", [Html("<i>"), html("{}", 5)]).text == "<b>&lt;</b><i>5"
    for values in ([], ["a", "b"]):
        with pytest.raises(ValueError):
            html("<b>{}</b>", *values)


def test_every_day_is_in_the_calendar_once() -> None:
    first, last = date(2023, 12, 30), date(2025, 1, 2)
    drawn = charts.calendar({}, {}, first, last).text
    titles = re.findall(r"<title>(.*?): ", drawn)
    assert len(titles) == len(set(titles)) == (last - first).days + 1
    assert (titles[0], titles[-1]) == ("30 Dec 2023", "2 Jan 2025") and "29 Feb 2024" in titles


def test_the_calendar_shows_a_failure_even_where_the_rest_was_saved() -> None:
    when = date(2026, 11, 29)
    whole, part, failed = (
        charts.calendar({when: day}, {when: 4}, when, when).text
        for day in (Day(4, 4, 0, 1, 4), Day(2, 2, 0, 1, 2), Day(4, 4, 1, 1, 4))
    )
    assert 'class="saved"' in whole and "4 of 4" in whole and "wrong" not in whole
    assert re.findall(r'class="saved"[^>]*height="(\d+)"', whole + part) == ["17", "8"] and "2 of 4" in part
    assert 'class="wrong"' in failed and "something failed" in failed


def test_the_space_never_ends_elsewhere_than_at_what_is_stored() -> None:
    page = report(standing("name"), "host")
    assert ">300.0 MiB</span>" in page, "the top of the axis"
    line = re.search(r'class="line" d="M0 ([\d.]+)(.*?)"', page)
    assert line is not None
    heights = [float(height) for height in re.findall(r"V([\d.]+)h1", line[2])]
    assert heights == sorted(heights, reverse=True) and heights[-1] == 2.0
    # 209 MiB of days 20 to 1 came in these days, the rest before: none is lost from the drawing.
    assert heights[0] == pytest.approx(100 - 98 * (300 - 210 + 20) / 300, abs=0.1)


@pytest.mark.parametrize("text", ["1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z", iso((1 << 63) - 1)])
def test_times_of_liars_are_drawn(text: str) -> None:
    found = standing("name")
    found.volumes[0]["history"].append({"snapshot": "x", "time": text, "stored_bytes": 1 << 63, "good": True})
    assert local_day(text) in days_of(found.volumes[0])
    assert "</html>" in report(found, "host")
