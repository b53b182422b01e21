"""Errors for who named no command that exists, or no repository: with what may have been meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from lamella.base.errors import UsageError
from lamella.cli.arguments import COMMANDS
from lamella.cli.configuration import Configuration
from lamella.cli.output import Output

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


_UNKNOWN = "argument COMMAND: invalid choice: "


def misunderstood(message: str, program: str) -> UsageError:
    """The error for what argparse says; for a command that does not exist with the nearest one."""
    if not message.startswith(_UNKNOWN):
        return UsageError(message, hint=f"see: {program} --help")
    word = message.removeprefix(_UNKNOWN).rpartition(" (choose")[0].strip("'\"")
    near = _ELSEWHERE.get(word) or next(iter(get_close_matches(word, COMMANDS, 1, 0.7)), "")
    hint = f"did you mean: {program} {near}?" if near else f"see: {program} --help"
    return UsageError(f"there is no command {word}", hint=hint)


def no_repository(env: Mapping[str, str], config: Configuration) -> UsageError:
    """The error where no repository is named, with those that are configured."""
    hint = "give -r REPO, set LAMELLA_REPO, or configure one (lamella init --save-as NAME)"
    hint += "; sudo drops LAMELLA_REPO: sudo -E keeps it" if env.get("SUDO_USER") else ""
    several = ", ".join(config.repositories)
    return UsageError("no repository is named" + (f"; configured are {several}" if several else ""), hint=hint)


def failed_before_parsing(argv: Sequence[str], error: UsageError) -> int:
    """Report an error in the arguments, in the form that the arguments ask for. Returns the exit code."""
    options = argv[: argv.index("--")] if "--" in argv else argv
    command = next((word for word in options if word in COMMANDS), "")
    out = Output(command, as_json="--json" in options, as_events="--json-lines" in options)
    return out.failure(error, error.exit_code)
