"""The commands that mend or accept a problem of the history (FORMAT 9)."""

from __future__ import annotations

from lamella.memory.pins import Problem


def remedy(problem: Problem) -> str:
    """The command that mends or accepts the problem."""
    accept = "lamella check --accept-rollback"
    if problem.lacks is None:
        return "look with: lamella check" if problem.is_lack else f"accept with: {accept}"
    give_up = f"lamella check --give-up {problem.lacks.name}"
    end = give_up if problem.is_lack else f"{give_up}, or for this host alone: {accept}"
    return f"mend it with: lamella repair; if nobody has that commit any more: {end}"
