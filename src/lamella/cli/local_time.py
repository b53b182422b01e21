"""Moments as they are shown to people."""

from __future__ import annotations

from datetime import datetime


def shown_time(text: str) -> str:
    """A moment, given as ISO 8601 in UTC, in this machine's zone: `2026-11-22 19:45`; the last day lies in no other."""
    return f"{datetime.fromisoformat(min(text, '9999-12-31T09:00:00Z')).astimezone():%Y-%m-%d %H:%M}"
