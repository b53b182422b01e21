"""Judging the history that one place of a repository shows (docs/decisions/0029)."""

from __future__ import annotations

from lamella.base.ids import WriterId
from lamella.format.commit import Head
from lamella.history.history import History
from lamella.memory.pins import KnownPlace, Problem


def judge(place: KnownPlace, history: History) -> tuple[list[Problem], list[Problem]]:
    """Two lists: the problems of the history at a place, and those that only say that a mirror is older.

    `history` was compared with the pins, which know every place. A mirror may lack commits that this host or a writer
    saw elsewhere, but none that this host saw at the mirror or brought there.
    """
    problems: list[Problem] = []
    older: list[Problem] = []
    told: set[WriterId] = set()
    for problem in history.problems:
        told |= {problem.writer} if problem.kind in ("back", "gone") else set()
        lags = place.mirror and problem.kind in ("back", "gone", "seen")
        merely = lags and _lacking(place, history, problem.writer) is None
        (older if merely else problems).append(problem)
    for writer in sorted(place.heads):
        found = _lacking(place, history, writer)
        if found is not None and writer not in told:
            problems.append(found)
    return problems, older


def _lacking(place: KnownPlace, history: History, writer: WriterId) -> Problem | None:
    """The problem of a place that shows less of a chain than it did before; None without one."""
    seq, sha256 = place.heads.get(writer, (0, b""))
    newest = history.newest(writer)
    waited = seq
    for row in reversed(history.forgone.get(writer, [])):
        waited = row.base[0] if row.base[0] < waited <= row.head.seq else waited
    if newest >= waited:
        return None
    text = f"writer {writer.hex()[:8]}: the newest commit is {newest}, but {seq} was at this place before"
    return Problem(f"back:{writer.hex()}:{seq}:{sha256.hex()}:{newest}", text, Head(writer, seq, sha256))
