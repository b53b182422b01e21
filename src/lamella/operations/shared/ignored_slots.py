"""A note about the objects in keys/ that no admin signed: no secret is ever tried on them (FORMAT 3)."""

from __future__ import annotations

from lamella.repository.slots import Slots

_MOST_NAMED = 5


def ignored_text(slots: Slots) -> str:
    """One line about what lies in keys/ and counts for nothing; empty if there is nothing."""
    count, more = len(slots.ignored), ", ..." if len(slots.ignored) > _MOST_NAMED else ""
    what = f"{count} object{'' if count == 1 else 's'} in keys/ that no admin signed, ignored"
    return f"{what}: {', '.join(slots.ignored[:_MOST_NAMED])}{more}" if count else ""
