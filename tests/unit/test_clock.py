"""Moments as text."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from lamella.base.clock import iso, now_ms, utc_text

LAST_MS = 253_402_300_799_999


def test_texts_of_a_known_moment() -> None:
    assert utc_text(1795373101999) == "20261122T184501Z"
    assert iso(1795373101999) == "2026-11-22T18:45:01.999Z"
    assert iso(0) == "1970-01-01T00:00:00.000Z"


@given(st.integers(0, LAST_MS))
def test_texts_mean_the_moment(ms: int) -> None:
    parsed = datetime.fromisoformat(iso(ms))
    assert round(parsed.timestamp() * 1000) == ms
    assert utc_text(ms) == parsed.strftime("%Y%m%dT%H%M%SZ")


@given(st.integers(min_value=LAST_MS + 1, max_value=1 << 70))
def test_what_no_calendar_has_is_the_end_of_the_year_9999(ms: int) -> None:
    assert iso(ms) == iso(LAST_MS) == "9999-12-31T23:59:59.999Z"
    assert utc_text(ms) == "99991231T235959Z"


@given(st.integers(max_value=-1))
def test_what_was_before_1970_is_1970(ms: int) -> None:
    assert iso(ms) == iso(0)


def test_now_lies_between_two_looks_at_the_clock() -> None:
    before = datetime.now(UTC).timestamp()
    now = now_ms()
    assert int(before * 1000) <= now <= datetime.now(UTC).timestamp() * 1000
