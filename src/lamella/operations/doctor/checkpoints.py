"""Checkpoint files on this host: which are needed, which a killed run left, which belong to somebody else.

Files that are not named like checkpoints are neither listed nor touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lamella.base.errors import CheckpointLost, LamellaError
from lamella.memory.host import Host
from lamella.memory.intervals import Intervals
from lamella.memory.ledger import needed_checkpoints, tracked_identities
from lamella.operations.doctor.doctor import Check
from lamella.sources.checkpoint_files import ListedFile, Token, list_near, remove_listed, source_name
from lamella.sources.file import FileSource, path_of

NEEDED, LEFTOVER, UNKNOWN, FOREIGN = "needed", "leftover", "unknown source", "other owner"


@dataclass(frozen=True, slots=True)
class FoundCheckpoint:
    """A checkpoint file and what is known of it; `image` is empty if no known source made it."""

    file: ListedFile
    state: str
    image: str = ""


def needed_moments(host: Host, identity: bytes, name: Callable[[str], str]) -> set[str]:
    """What some ledger's base of a source is, or what the intervals from it lead to, by the name in its token."""
    names: set[str] = set()
    for base in needed_checkpoints(host, identity):
        moment = base
        with suppress(CheckpointLost):
            for link in Intervals(host, identity).walk(base):
                moment = link.end
        with suppress(CheckpointLost):
            names.add(name(moment))
    return names


class CleanUp(NamedTuple):
    """The removed checkpoints, and the failures."""

    removed: list[FoundCheckpoint]
    failed: list[Check]

    @contextmanager
    def attempt(self, check: str, what: object) -> Iterator[None]:
        """An error inside becomes a failed check of this name."""
        try:
            yield
        except LamellaError as error:
            self.failed.append(Check(check, False, f"{what}: {error.message}"))


class CheckpointExamination:
    """Looks at the directories of the sources that this host's ledgers know, and of some more images."""

    def __init__(self, host: Host, more: list[Path], checkpoint_dir: Path | None) -> None:
        self._host = host
        self._checkpoint_dir = checkpoint_dir
        identities = {*tracked_identities(host), *(FileSource(path, host.machine).identity for path in more)}
        self._images: dict[bytes, Path] = {}
        for identity in sorted(identities):
            path = path_of(identity, host.machine)
            if path is not None:
                self._images[identity] = path

    def judged(self) -> list[FoundCheckpoint]:
        """Every checkpoint file, by path. Raises SourceError."""
        files = {file.path: file for image in self._images.values() for file in list_near(image, self._checkpoint_dir)}
        known = {source_name(identity): identity for identity in self._images}
        needed = {
            identity: needed_moments(self._host, identity, lambda text: Token.parse(text).file)
            for identity in self._images
        }
        return [self._judge(files[path], known, needed) for path in sorted(files)]

    def _judge(self, file: ListedFile, known: Mapping[str, bytes], needed: Mapping[bytes, set[str]]) -> FoundCheckpoint:
        identity = known.get(file.source)
        image = "" if identity is None else str(self._images[identity])
        if file.owner != self._host.owner:
            return FoundCheckpoint(file, FOREIGN, image)
        if identity is None:
            return FoundCheckpoint(file, UNKNOWN)
        return FoundCheckpoint(file, NEEDED if file.path.name in needed[identity] else LEFTOVER, image)

    def remove_leftovers(self, lock_wait: float) -> CleanUp:
        """Remove what killed runs of this host left, each source's under its lock."""
        done = CleanUp([], [])
        for identity, image in self._images.items():
            with done.attempt("checkpoints", image), self._host.source_lock(identity, lock_wait):
                # What was a leftover before the lock was had may be needed now.
                for one in self.judged():
                    ours = one.state == LEFTOVER and one.file.source == source_name(identity)
                    if ours and remove_listed(one.file):
                        done.removed.append(one)
        return done

    def remove_owned_by(self, owner: str) -> CleanUp:
        """Remove an owner's checkpoints, but none that a ledger of this host needs."""
        done = CleanUp([], [])
        for one in self.judged():
            with done.attempt("checkpoints", one.file.path):
                if one.file.owner == owner and one.state != NEEDED and remove_listed(one.file):
                    done.removed.append(one)
        return done

    def remove_all_owned(self, lock_wait: float) -> CleanUp:
        """Remove every checkpoint of this host, needed or not: the next backup of each volume compares all of it."""
        done = CleanUp([], [])
        identities = {source_name(identity): identity for identity in self._images}
        for one in self.judged():
            if one.file.owner == self._host.owner:
                identity = identities.get(one.file.source)
                lock = nullcontext() if identity is None else self._host.source_lock(identity, lock_wait)
                with done.attempt("checkpoints", one.file.path), lock:
                    if remove_listed(one.file):
                        done.removed.append(one)
        return done

    def check(self) -> Check:
        """In one line. Raises SourceError."""
        states = [one.state for one in self.judged()]
        if not states:
            return Check("checkpoints", True, "none beside the sources that this host knows")
        counts = [f"{states.count(state)} {state}" for state in (NEEDED, LEFTOVER, UNKNOWN, FOREIGN) if state in states]
        fixable = LEFTOVER in states
        text = ", ".join(counts) + ("; leftovers are removed by the next backup, or by --fix" if fixable else "")
        return Check("checkpoints", not fixable, text)
