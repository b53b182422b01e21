"""Commands below a command, as in `lamella key add`, and options that have become commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from lamella.base.errors import UsageError
from lamella.cli.arguments import CommandParser, add_global


class _Moved(argparse.Action):
    """An option that has become a command; naming that command is all it does."""

    def __call__(self, *given: object) -> None:
        raise UsageError(f"{self.option_strings[0]} is a command of its own", hint=f"write: {self.const}")


def add_moved(parser: argparse.ArgumentParser, option: str, command: str) -> None:
    """An option that now only names the command that took its place."""
    parser.add_argument(option, action=_Moved, nargs=0, const=command, help=argparse.SUPPRESS)


def add_actions(parser: argparse.ArgumentParser, name: str) -> Callable[..., argparse.ArgumentParser]:
    """A second level of commands, as in `lamella key add`; returns a function (name, help) that adds one."""
    actions = parser.add_subparsers(dest=name, metavar="ACTION", required=True, parser_class=CommandParser)

    def add(action: str, text: str) -> argparse.ArgumentParser:
        made = actions.add_parser(action, help=text, description=f"{text[0].upper()}{text[1:]}.")
        add_global(made)
        return made

    return add
