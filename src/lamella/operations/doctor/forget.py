"""A host that leaves: its checkpoints are removed, and then everything that it remembers.

What lies in the state and cache directories and is not known to be Lamella's stays, at any depth: somebody may have
chosen a directory that holds other things, even a repository.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from lamella.memory.host import Host
from lamella.memory.writing import held_file
from lamella.operations.doctor.checkpoints import CheckpointExamination, CleanUp
from lamella.operations.doctor.lvm import PoolExamination

# By their whole paths below the directory: `repo` and `sources` are names that others give to folders, too.
_TABLE = r"[a-z_-]+\.json(\.damaged)?"
_WRITING = r"(\.[0-9]+\.tmp)?"
"""Ends the name of a file that a killed process was writing."""
_REPOSITORY = r"[0-9a-f]{32}(-[0-9a-f]+)?"
_STATE = re.compile(
    rf"(?:machine|guest-without-kvm|mount\.log|(profiles|qubes-imports|qubes-disposables)\.json(\.damaged)?"
    rf"|tables\.lock|profiles/[^/]+\.lock|sources/([0-9a-f]{{32}}\.lock|(libvirt|qmp|reserved)-[^/]+)"
    rf"|repo/{_REPOSITORY}/({_TABLE}|lock|tables\.lock)"
    rf"|intervals/(key|tables\.lock|[0-9a-f]{{16}}/[0-9a-f]{{32}}\.json)){_WRITING}"
)
_FOLDERS = re.compile(
    rf"repo|intervals|sources|profiles|names|guest-kernel|(repo/)?{_REPOSITORY}|intervals/[0-9a-f]{{16}}"
)
_CACHE = re.compile(
    rf"(?:{_REPOSITORY}/cache\.sqlite(-wal|-shm|-journal)?|names/[0-9a-f]{{32}}\.json|guest-kernel/[0-9a-f]{{64}}"
    rf"|dom0-(config|restored)\.tar){_WRITING}"
)


def remembered(host: Host) -> list[Path]:
    """The files of Lamella in the state and cache directories, by path: a folder if all of it is Lamella's."""
    return [path for top, names in _places(host) for path in _known(top, top, names)[0]]


def forget_host(host: Host, files: CheckpointExamination, pools: PoolExamination, lock_wait: float) -> CleanUp:
    """Remove the moments of this host; what it remembers goes only if all of them went, for it says where they are.

    Raises Locked while a backup runs, SourceError, OSError.
    """
    in_files, in_pools = files.remove_all_owned(lock_wait), pools.remove_all_owned(lock_wait)
    done = CleanUp(in_files.removed + in_pools.removed, in_files.failed + in_pools.failed)
    if done.failed:
        return done
    with ExitStack() as held:
        for path in sorted([*host.source_records.glob("*.lock"), *(host.state_dir / "profiles").glob("*.lock")]):
            held.enter_context(held_file(path, lock_wait, "a backup of this host is running"))
        for top, names in _places(host):
            for path in _known(top, top, names)[0]:
                _remove(top, path, names)
            if not top.is_symlink():
                _remove_empty(top)
    return done


def _places(host: Host) -> tuple[tuple[Path, re.Pattern[str]], ...]:
    return (host.state_dir, _STATE), (host.cache_dir, _CACHE)


def _known(folder: Path, top: Path, names: re.Pattern[str]) -> tuple[list[Path], bool]:
    """The files below a folder of `top` that have these names, a folder in the place of all in it; whether that is all
    that the folder holds."""
    found: list[Path] = []
    whole = True
    for path in _in(folder):
        name = path.relative_to(top).as_posix()
        inside: list[Path] = []
        if path.is_symlink() or not path.is_dir():
            ours = names.fullmatch(name) is not None
        elif ours := _FOLDERS.fullmatch(name) is not None:
            inside, ours = _known(path, top, names)
        found += [path] if ours else inside
        whole = whole and ours
    return found, whole


def _in(folder: Path) -> Iterator[Path]:
    if folder.is_dir() and not folder.is_symlink():
        yield from sorted(folder.iterdir())


def _remove(top: Path, path: Path, names: re.Pattern[str]) -> None:
    """Remove a file, or a folder with all in it that has these names: not with what came into it meanwhile."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for one in _known(path, top, names)[0]:
        _remove(top, one, names)
    _remove_empty(path)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # something came into it, or it is a mount point
        folder.rmdir()
