"""The common part of drivers: reading an open volume, naming a checkpoint, and sources that keep none."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from lamella.base.errors import CheckpointLost, SourceError

if TYPE_CHECKING:
    from lamella.base.delta import Delta
    from lamella.sources.page_cache import PageCache

_VERSION = 1
_LONGEST_TEXT = 1024


class OpenVolume:
    """`size` bytes behind a descriptor; `path` is for messages. Reads name their offset: many threads may read."""

    def __init__(self, path: Path, fd: int, size: int) -> None:
        self.path = path
        self._fd = fd
        self._size = size
        self._cache: PageCache | None = None
        self._cache_asked = False
        self._asking = Lock()

    @property
    def descriptor(self) -> int:
        """What is open."""
        return self._fd

    @property
    def size(self) -> int:
        """Bytes of the volume when it was frozen."""
        return self._size

    def closed(self) -> None:
        """Forget the descriptor: a late read must fail, not read whatever file gets its number next."""
        self._fd = -1
        if self._cache is not None:
            self._cache.close()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`, and leave the page cache as it was.

        Raises SourceError if the volume ends before, or cannot be read there.
        """
        if offset < 0 or offset + len(buffer) > self._size:
            raise SourceError(f"{self.path}: nothing to read beyond its end", obj=str(self.path))
        cache = self._page_cache()
        before = cache.look(offset, len(buffer)) if cache is not None else None
        self._fill(offset, buffer)
        if cache is not None and before is not None:
            cache.give_back(before)

    def _page_cache(self) -> PageCache | None:
        with self._asking:  # one for all threads: each remembers what it saw
            if not self._cache_asked and self._size:
                from lamella.sources.page_cache import page_cache  # only for reading

                self._cache, self._cache_asked = page_cache(self._fd, self._size), True
            return self._cache

    def _fill(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = self._read_some(offset + done, buffer[done:])
            except OSError as reason:
                raise read_failed(self.path, reason, f" at offset {offset + done}") from reason
            if count == 0:
                raise SourceError(
                    f"{self.path} became shorter while it was read: it ends at or before offset {offset + done}",
                    obj=str(self.path),
                )
            done += count

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        return os.preadv(self._fd, [buffer], offset)


def read_failed(path: Path, reason: OSError, where: str = "") -> SourceError:
    """The error that says a volume cannot be read, in the system's words."""
    return SourceError(f"cannot read {path}{where}: {reason.strerror or reason}", obj=str(path))


class Untracked:
    """The keeping side of a source that keeps nothing."""

    @property
    def tracks(self) -> bool:
        """No moment is ever kept."""
        return False

    def keep(self, checkpoint: str) -> None:
        """Nothing to keep."""

    def drop(self, checkpoint: str) -> None:
        """Nothing to drop."""

    def kept(self) -> list[str]:
        """Nothing is ever kept."""
        return []


class UntrackedMoment:
    """The comparing side of a frozen volume that cannot be kept; `why_untracked` says why, for whoever asks for a
    delta.
    """

    why_untracked = "this driver keeps no record of changes"

    @property
    def checkpoint(self) -> str:
        """No moment that could be named."""
        return ""

    def delta_since(self, base: str, grain: int) -> Delta:
        """Always CheckpointLost."""
        raise CheckpointLost(self.why_untracked)


@dataclass(frozen=True, slots=True)
class MomentToken:
    """Identifies a checkpoint by numbers and texts. Any difference means another moment."""

    @property
    def text(self) -> str:
        """As the ledger keeps it; equal tokens give equal texts."""
        return json.dumps({"version": _VERSION, **asdict(self)}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a text again. Raises CheckpointLost if it is none of this kind."""
        lost = CheckpointLost("the record of the checkpoint cannot be read")
        if len(text) > _LONGEST_TEXT:
            raise lost
        try:
            found: Any = json.loads(text)
        except (ValueError, RecursionError):
            raise lost from None
        if not isinstance(found, dict) or found.pop("version", None) != _VERSION:
            raise lost
        kinds = {field.name: int if field.type == "int" else str for field in fields(cls)}
        if set(found) != set(kinds) or any(type(found[name]) is not kinds[name] for name in kinds):
            raise lost
        return cls(**found)
