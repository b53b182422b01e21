"""Directories, patterns and virtual machines among sources: the files and disks that they mean at this moment."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple

from lamella.base.errors import LamellaError, NothingMatched, SourceError, UsageError
from lamella.cli.sources import may_be_several
from lamella.operations.backup.story import FailedRequest, Request
from lamella.sources.base import Keeping
from lamella.sources.names import name_from, split_name


def files_of(text: str, exclude: Sequence[str], say: Callable[[str], None]) -> list[str] | None:
    """The files that a pattern or a directory means, in order of name; None for anything else.

    A directory means the files that lie in it, hidden ones and deeper directories left out; `say` hears how many
    directories. After `qcow2:` the disks in these files are meant. A text that is itself the path of something is never
    a pattern. Raises NothingMatched for a pattern or directory without any file, so that nobody loses a backup to a
    changed path; UsageError for a NAME= before it.
    """
    name, place = split_name(text)
    driver = _DISKS if place.startswith(_DISKS) else ""
    place = place.removeprefix(driver)
    found = None if re.match(r"[a-z_+]+:", place) else _found(place)
    if found is None:
        return None
    if name is not None:
        raise UsageError(f"{text}: one name cannot stand for several files", obj=text, hint="leave NAME= out")
    kept = [one for one in found if not _excluded(one, exclude)]
    folders = sum(Path(one).is_dir() for one in kept)
    kept = [one for one in kept if _is_source(Path(one))]
    below = str(Path(place) / "*")
    whole = f"; with everything in it as one volume: lamella files backup {place}" if Path(place).is_dir() else ""
    if not kept:
        hint = "everything is excluded" if found else "is the file system mounted?"
        hint = f"it holds only directories; for the files in these write '{below}/*'{whole}" if folders else hint
        raise NothingMatched(f"there is no file for {text}", obj=text, hint=hint)
    if folders:
        what = "1 directory in it is" if folders == 1 else f"{folders} directories in it are"
        say(f"{text}: {what} left out; for the files in these add '{below}/*'{whole}")
    return [driver + one for one in kept]


def _disks_of(text: str, keeping: Keeping) -> list[str]:
    """A source for each disk of a virtual machine; any other source is itself. Raises NothingMatched, SourceError."""
    name, place = split_name(text)
    if place.startswith("qmp:"):
        from lamella.sources.qmp.source import disks_at  # most sources are files
    elif place.startswith("libvirt:"):
        from lamella.sources.virt.source import disks_at
    else:
        return [text]
    disks = disks_at(place, keeping)
    if name is None:
        return disks
    if len(disks) > 1:
        hint = f"leave NAME= out, or name one disk: {name}={disks[0]}"
        raise UsageError(f"{text}: one name cannot stand for several disks", obj=text, hint=hint)
    return [f"{name}={disks[0]}"]


def _found(place: str) -> list[str] | None:
    """The files in a directory, or those that fit a pattern, unless hidden; None for the path of one source."""
    path = Path(place)
    if path.is_dir():
        found = [str(one) for one in path.iterdir()]
    elif not has_magic(place) or path.exists():
        return None
    else:
        found = glob(place)  # noqa: PTH207 - Path.glob knows no absolute patterns
    return sorted(one for one in found if not Path(one).name.startswith("."))


def _is_source(path: Path) -> bool:
    return path.is_file() or path.is_block_device()


def _excluded(path: str, patterns: Iterable[str]) -> bool:
    """A pattern without a slash is about the file's name, any other about the whole path."""
    return any(fnmatchcase(path if "/" in one else Path(path).name, one) for one in patterns)


_DISKS = "qcow2:"


class Found(NamedTuple):
    """A source as `backup` opens it; `names` are what its volume may be called, for a file that a pattern meant."""

    text: str
    names: tuple[str, ...] = ()


def all_files(
    texts: Sequence[str],
    exclude: Sequence[str],
    requests: list[Request | FailedRequest],
    errors: list[LamellaError],
    say: Callable[[str], None],
    keeping: Keeping,
) -> list[Found]:
    """Each source; patterns, directories and machines replaced by what they mean. One that means none failed."""
    given = {str(Path(split_name(text)[1]).resolve()) for text in texts}
    found: dict[str, str | None] = {}
    """For each file of a pattern what to open, by its path without links; for any other source nothing, by its text."""
    for text in texts:
        files, disks = None, [text]
        if may_be_several(split_name(text)[1]):
            try:
                files = files_of(text, exclude, say)
                disks = _disks_of(text, keeping)
            except (NothingMatched, SourceError) as error:
                errors.append(error)
                requests.append(FailedRequest(name_from(text), f"{error.message}; {error.hint}".removesuffix("; ")))
                continue
        if files is None:
            found.update(dict.fromkeys(disks, None))
            continue
        # A file that is named itself may have a name of its own there; two patterns, or a link, may mean the same file.
        for one in sorted(files, key=os.path.islink):
            path = str(Path(one).resolve())
            if path not in given:
                found.setdefault(path, one)
    names = _distinct_names([one for one in found.values() if one is not None], _names_given(found))
    return [Found(text) if one is None else Found(one, names[one]) for text, one in found.items()]


def _names_given(found: Mapping[str, str | None]) -> list[str]:
    """The names of the sources that are no files of a pattern, as far as their texts tell."""
    split = [split_name(text) for text, opened in found.items() if opened is None]
    return [name or name_from(Path(place).stem) for name, place in split]


def _distinct_names(paths: Sequence[str], others: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """For each path the names that it alone could have, best first: what the path says, and no more of it than needed.

    They depend on nothing but the paths, so a volume that is not in the repository yet has the same name in every run.
    """
    possible = {path: tuple(dict.fromkeys(_possible_names(Path(path).absolute()))) for path in paths}
    counts = Counter(others)
    counts.update(name for names in possible.values() for name in names)
    return {path: tuple(name for name in names if counts[name] == 1) for path, names in possible.items()}


def _possible_names(path: Path) -> Iterator[str]:
    """`disk`, `web_disk`, `disk.img`, `vms_web_disk`, `web_disk.img` and so on; at last with a hash of the path."""
    folders = path.parts[1:-1]
    yield name_from(path.stem)
    for length in range(1, len(folders) + 1):
        yield name_from("_".join((*folders[-length:], path.stem)))
        yield name_from("_".join((*folders[len(folders) - length + 1 :], path.name)))
    yield name_from(f"{path.stem[:32]}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}")
