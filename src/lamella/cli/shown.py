"""Values as they are shown to people."""

from __future__ import annotations

from lamella.base.errors import shown_bytes as shown_bytes


def shown_seconds(count: float) -> str:
    """A length of time for people: `0.8 s`, `2:05`, `3:00:10`."""
    if count < 60:
        return f"{count:.1f} s"
    minutes, rest = divmod(round(count), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def shown(text: str) -> str:
    """Text that cannot move the cursor, colour a terminal or reorder a line: unprintable characters are escaped.

    Names come from the repository: whoever can write there chooses them.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)
