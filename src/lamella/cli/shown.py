"""Values as they are shown to people."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def shown_bytes(count: float) -> str:
    """A number of bytes for people: `512 B`, `1.5 GiB`."""
    for unit in _UNITS[:-1]:
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {_UNITS[-1]}"


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
