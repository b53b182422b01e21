"""Directories and patterns among sources: the files that they mean at this moment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from glob import glob, has_magic
from pathlib import Path

from lamella.base.errors import NothingMatched, UsageError
from lamella.sources.names import split_name


def files_of(text: str, exclude: Sequence[str]) -> list[str] | None:
    """The files that a pattern or a directory means, in order of name; None for anything else.

    A directory means the files that lie in it, hidden ones and deeper directories left out. A text that is itself the
    path of something is never a pattern. Raises NothingMatched for a pattern or directory without any file, so that
    nobody loses a backup to a changed path; UsageError for a NAME= before it.
    """
    name, place = split_name(text)
    sources = None if re.match(r"[a-z_]+:", place) else _files(place)
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
