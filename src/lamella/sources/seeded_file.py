"""Restoring to a new file that begins as a clone of a checkpoint: only what differs has to be written.

The unfinished file shares the moment's blocks from the beginning. To whoever comes later it is what any attempt leaves:
contents that may be right, each of which is looked at.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from lamella.base.errors import CheckpointLost
from lamella.sources.checkpoint_files import CheckpointFiles
from lamella.sources.cloning import FS_NOCOW_FL, clone, inode_flags
from lamella.sources.local_target import PARTIAL_SUFFIX, NewFile, existing_file, open_partial, resolved
from lamella.sources.used_target import InPlaceFile


class SeededFile(NewFile):
    """A new file that begins as the checkpoint `checkpoint`, where the file system can do that."""

    def __init__(
        self, path: Path, *, overwrite: bool, files: CheckpointFiles, checkpoint: str, differing_bytes: int
    ) -> None:
        super().__init__(path, overwrite=overwrite)
        self._files = files
        self._checkpoint = checkpoint
        self._differing_bytes = differing_bytes
        self.why_not = ""
        """Why the file does not begin as the moment; empty if it does."""

    def prepare(self, size: int, needed_bytes: int) -> None:
        with self._opening():
            final = resolved(self._given)
            partial = final.with_name(final.name + PARTIAL_SUFFIX)
            self.why_not = self._seed(partial, final)
        try:
            # What is shared is no space to which a changed block could be written.
            shared = 0 if self.why_not else partial.stat().st_blocks * 512
            super().prepare(size, needed_bytes if self.why_not else shared + self._differing_bytes)
        except BaseException:
            if not self.why_not:
                with suppress(OSError):
                    partial.unlink()
            raise

    def _seed(self, partial: Path, final: Path) -> str:
        """Make the unfinished file a clone; returns why that cannot be. Raises SourceError; UsageError for no file."""
        begun = existing_file(partial)
        if begun is not None and begun.st_size and begun.st_nlink == 1:
            return "an earlier attempt left a part"
        replaced = existing_file(final) is not None
        if replaced and not self._overwrite:
            return "the target exists"  # which is refused
        try:
            with self._files.opened(self._checkpoint) as (moment, _):
                if replaced and _nocow(final) != bool(inode_flags(moment) & FS_NOCOW_FL):
                    return "the file that is replaced is laid out otherwise (chattr +C)"
                return _cloned(moment, partial)
        except CheckpointLost as error:
            return error.message


class SeededInPlace(InPlaceFile):
    """An empty file that somebody made for the restore, begun as the checkpoint `checkpoint` where that can be."""

    def __init__(self, path: Path, files: CheckpointFiles, checkpoint: str, differing_bytes: int) -> None:
        super().__init__(path)
        self._files = files
        self._checkpoint = checkpoint
        self._differing_bytes = differing_bytes
        self.why_not = ""
        """Why the file does not begin as the moment; empty if it does."""

    def prepare(self, size: int, needed_bytes: int) -> None:
        with self._opening():
            self.why_not = self._seed()
            shared = self._given.stat().st_blocks * 512
        super().prepare(size, needed_bytes if self.why_not else shared + self._differing_bytes)

    def _seed(self) -> str:
        fd = os.open(self._given, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if os.fstat(fd).st_blocks:
                return "the file is not empty"
            with self._files.opened(self._checkpoint) as (moment, _):
                return clone(moment, fd)
        except CheckpointLost as error:
            return error.message
        finally:
            os.close(fd)


Seeded = SeededFile | SeededInPlace


def _cloned(moment: int, partial: Path) -> str:
    fd = open_partial(partial, [])
    try:
        why = clone(moment, fd)
        return why or ("" if os.fstat(fd).st_size else "the checkpoint is empty")
    finally:
        os.close(fd)


def _nocow(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return bool(inode_flags(fd) & FS_NOCOW_FL)
    finally:
        os.close(fd)
