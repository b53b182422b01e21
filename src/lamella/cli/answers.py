"""Answers of commands that only look: what this host kept of the last look, as long as nothing changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lamella.cli.context import Context
from lamella.history.answers import KeptAnswer
from lamella.repository.repository import Repository


@contextmanager
def answered(
    context: Context, question: str, make: Callable[[Repository], Any], apart: str = ""
) -> Iterator[tuple[Any, Repository]]:
    """The answer that `make` gives, a JSON value that depends on nothing else but `apart`; and the repository.

    Where the answer was kept, nothing of the history was read: it was sound, and so it has no problems now. Raises as
    `Context.repository` and `make` do.
    """
    # These options are about the history itself, not about what it adds up to.
    answer = None if context.args.expect or context.out.verbose else KeptAnswer(question, apart)
    with context.repository(answer=answer) as repository:
        if answer is None:
            yield make(repository), repository
            return
        if answer.value is None:
            answer.keep(repository.log, repository.cache, make(repository))
        yield answer.value, repository
