"""Directories and patterns among sources: the files that they mean at this moment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from glob import glob, has_magic
from pathlib import Path

from lamella.base.errors import LamellaError, NothingMatched, UsageError
from lamella.cli.sources import may_be_several
from lamella.operations.backup.story import FailedRequest, Request
from lamella.sources.names import name_from, split_name


def files_of(text: str, exclude: Sequence[str]) -> list[str] | None:
    """The files that a pattern or a directory means, in order of name; None for anything else.

    A directory means the files that lie in it, hidden ones and deeper directories left out. A text that is itself the
    path of something is never a pattern. Raises NothingMatched for a pattern or directory without any file, so that
    nobody loses a backup to a changed path; UsageError for a NAME= before it.
    """
    name, place = split_name(text)
    sources = None if re.match(r"[a-z_+]+:", place) else _files(place)
    if sources is None:
        return None
    if name is not None:
        raise UsageError(f"{text}: one name cannot stand for several files", obj=text, hint="leave NAME= out")
    kept = [one for one in sources if not _excluded(one, exclude)]
    if not kept:
        hint = "everything is excluded" if sources else "is the file system mounted?"
        raise NothingMatched(f"there is no file for {text}", obj=text, hint=hint)
    return kept


def _files(place: str) -> list[str] | None:
    """The files that a directory or a pattern means; None for the path of one source."""
    path = Path(place)
    if path.is_dir():
        return sorted(str(one) for one in path.iterdir() if _is_source(one))
    if not has_magic(place) or path.exists():
        return None
    # Path.glob knows no absolute patterns.
    return sorted(one for one in glob(place) if _is_source(Path(one)))  # noqa: PTH207


def _is_source(path: Path) -> bool:
    return not path.name.startswith(".") and (path.is_file() or path.is_block_device())


def _excluded(path: str, patterns: Iterable[str]) -> bool:
    """A pattern without a slash is about the file's name, any other about the whole path."""
    return any(fnmatchcase(path if "/" in one else Path(path).name, one) for one in patterns)


def all_files(
    texts: Sequence[str], exclude: Sequence[str], requests: list[Request | FailedRequest], errors: list[LamellaError]
) -> Iterator[str]:
    """Each source, patterns and directories replaced by the files they mean. One that means none is a failed source."""
    given = {str(Path(split_name(text)[1]).absolute()) for text in texts}
    found: set[str] = set()
    for text in texts:
        if not may_be_several(split_name(text)[1]):
            yield text
            continue
        try:
            files = files_of(text, exclude)
        except NothingMatched as error:
            errors.append(error)
            requests.append(FailedRequest(name_from(text), f"{error.message}; {error.hint}"))
            continue
        if files is None:
            yield text
            continue
        # A file that is named itself may have a name of its own there; two patterns may mean the same file.
        new = {str(Path(one).absolute()): one for one in files}.items()
        yield from (one for path, one in new if path not in given | found)
        found |= {path for path, _ in new}
