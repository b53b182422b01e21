"""Names of volumes that a pattern or a directory meant: nobody chose one, so another one will do."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def free_name(names: Sequence[str], taken: Collection[str], notes: list[str]) -> str:
    """The first of `names` that no volume has; the first of all if each is taken. A note says which one was taken."""
    best = names[0]
    name = next((name for name in names if name not in taken), best)
    if name != best:
        notes.append(f"{best} is the name of another source; to go on with that volume, name this one with --adopt")
    return name
