"""What somebody meant who typed a command that does not exist."""

from __future__ import annotations

from difflib import get_close_matches

from lamella.base.errors import UsageError
from lamella.cli.arguments import COMMANDS

_ELSEWHERE = {
    "help": "--help",
    "snapshots": "list",
    "ls": "list",
    "show": "info",
    "forget": "prune",
    "expire": "prune",
    "rm": "delete",
    "remove": "delete",
    "send": "backup",
    "create": "backup",
    "receive": "restore",
    "extract": "restore",
    "unlock": "doctor",
    "passwd": "key change",
}
"""Words of other programs for the same."""


def unknown_command(word: str, program: str) -> UsageError:
    """The error for a command that does not exist, with the nearest one."""
    near = _ELSEWHERE.get(word) or next(iter(get_close_matches(word, COMMANDS, 1, 0.7)), "")
    hint = f"did you mean: {program} {near}?" if near else f"see: {program} --help"
    return UsageError(f"there is no command {word}", hint=hint)
