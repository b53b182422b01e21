"""Notes about what is in a repository and does not count: writers that are not admitted, objects without evidence."""

from __future__ import annotations

from lamella.cli.output import Output
from lamella.history.history import History


def note_unexplained(history: History, out: Output) -> None:
    """Say which writers count for nothing, and which objects may be commits of which everything else is lost."""
    for writer in sorted(history.strangers)[:5]:
        id_ = writer.hex()[:8]
        text = f"writer {id_} is not admitted: what it published counts for nothing"
        out.say(f"note: {text}; if it is a host of yours, an admin admits it with: lamella check --admit {id_}")
    names = history.unexplained
    if names:
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        hint = "if it was a commit, its host restores it with: lamella repair"
        out.say(f"note: {names[0]}{more} is no commit, and nothing shows that it ever was one; {hint}")
