"""Options between the words of a command: argparse gives a list of words only the words that stand together.

It takes the first of them for the whole list, and calls the others unknown. Only then is this module loaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lamella.cli.arguments import CommandParser

_Parsed = tuple[argparse.Namespace, list[str]]


def again(parser: CommandParser, words: Sequence[str], found: _Parsed) -> _Parsed:
    """Parse once more with all words of the command at the end, if words were left over; else what was `found`."""
    left = found[1]
    if not ("--" in words or any(_is_word(word) for word in left)):
        return found
    return super(CommandParser, parser).parse_known_args(gathered(parser, words), None)


def _is_word(text: str) -> bool:
    return text == "-" or not text.startswith("-")


def gathered(parser: CommandParser, words: Sequence[str]) -> list[str]:
    """The options first, then `--`, and then every other word; both in the order in which they were given."""
    options: list[str] = []
    rest: list[str] = []
    waiting = list(reversed(words))
    while waiting:
        word = waiting.pop()
        if word == "--":
            rest += reversed(waiting)
            break
        if _is_word(word):
            rest.append(word)
            continue
        options.append(word)
        nargs = _values(parser, word)
        if waiting and (nargs == 1 or (nargs is None and _is_word(waiting[-1]))):
            options.append(waiting.pop())
    return [*options, "--", *rest]


def _values(parser: CommandParser, word: str) -> int | None:
    """How many words an option takes after its own; None for one that may take a word and need not."""
    known = parser._option_string_actions
    if word.startswith("--") and "=" in word:
        return 0
    # Of options of one letter written together, the last one may take a word: -nr REPO.
    whole = word in known or word.startswith("--")
    letters = [known.get(word)] if whole else [known.get(f"-{one}") for one in word[1:]]
    for at, action in enumerate(letters, 1):
        if action is not None and action.nargs != 0:
            is_last = at == len(letters)
            return (1 if action.nargs is None else None) if is_last else 0
    return 0
