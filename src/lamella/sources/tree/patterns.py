"""Which files are left out of a tree: patterns of the user, those of directories themselves, and tagged caches."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

CACHE_TAG: Final = "CACHEDIR.TAG"
_TAG_CONTENT: Final = b"Signature: 8a477f597d28d172789f06886806bc55"
"""The first bytes of the tag (Cache Directory Tagging Specification 0.6)."""
_NEVER: Final = re.compile(r"(?!)")
INSIDE_MOST: Final = 64 << 10
"""Bytes of the patterns that a directory has for itself."""


@dataclass(frozen=True, slots=True)
class Patterns:
    """Patterns as fnmatch(3) knows them: without a slash about a name, with one about the path below the top.

    A slash at the end means directories alone; an absolute pattern is about the path on this host.
    """

    names: re.Pattern[str]
    folder_names: re.Pattern[str]
    paths: re.Pattern[str]
    folder_paths: re.Pattern[str]
    caches: bool = False
    """Leave out what is in a directory with a cache's tag, the tag excepted."""

    @classmethod
    def of(cls, patterns: Iterable[str], top: str, *, caches: bool = False) -> Patterns:
        """The patterns for the directory whose absolute path is `top`."""
        kinds: list[list[str]] = [[], [], [], []]
        for pattern in patterns:
            plain = pattern.rstrip("/")
            is_path = "/" in plain
            if plain.startswith("/"):
                below = plain.removeprefix(top if top == "/" else top + "/")
                plain = below if below != plain else plain[1:]
            kinds[2 * is_path + (plain != pattern and pattern.endswith("/"))].append(plain)
        names, folder_names, paths, folder_paths = map(_compiled, kinds)
        return cls(names, folder_names, paths, folder_paths, caches)

    def leave_out(self, above: str, name: str, is_folder: bool) -> bool:
        """Whether an entry of the directory `above` (a path from the top, empty for the top) is left out."""
        path = f"{above}/{name}" if above else name
        return bool(
            self.names.match(name)
            or self.paths.match(path)
            or (is_folder and (self.folder_names.match(name) or self.folder_paths.match(path)))
        )

    @property
    def any(self) -> bool:
        """Whether there is a pattern at all."""
        return any(one is not _NEVER for one in (self.names, self.folder_names, self.paths, self.folder_paths))


def lines_of(content: bytes) -> list[str]:
    """The patterns in a file: one a line; empty lines, and lines that begin with #, are none."""
    lines = (os.fsdecode(line.removesuffix(b"\r")) for line in content.split(b"\n"))
    return [line for line in lines if line and not line.startswith("#")]


def patterns_inside(folder: int, name: str) -> Patterns | None:
    """The patterns that an open directory has for what is below it, in its file `name`; None without such a file.

    A slash at the beginning of a pattern is this directory. Raises OSError, and ValueError with the reason for a file
    that is not read.
    """
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    with os.fdopen(file, "rb", buffering=0) as opened:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ValueError("no regular file")
        content = opened.read(INSIDE_MOST + 1)
    if len(content) > INSIDE_MOST:
        raise ValueError(f"more than {INSIDE_MOST >> 10} KiB of patterns")
    return Patterns.of(lines_of(content), "/")


def is_cache(folder: int) -> bool:
    """Whether an open directory, in which there is a tag, is a cache."""
    try:
        tag = os.open(CACHE_TAG, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    try:
        return os.read(tag, len(_TAG_CONTENT)) == _TAG_CONTENT
    except OSError:
        return False
    finally:
        os.close(tag)


def _compiled(patterns: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, patterns))) if patterns else _NEVER
