"""A file that is read to see whether a restore is needed at all. Nothing is written."""

from __future__ import annotations

import os
from typing import NoReturn

from lamella.base.errors import UsageError
from lamella.sources.local_target import existing_file, resolved
from lamella.sources.target import OpenTarget


class StandingFile(OpenTarget):
    """The file at the target of a restore, opened for reading. Writing to the file is a programming error."""

    holds = True

    def prepare(self, size: int, needed_bytes: int = 0) -> None:
        """Open it, to be read from its disk. Raises UsageError if it is no file; SourceError."""
        with self._opening():
            self.path = self.working_path = resolved(self._given)
            if existing_file(self.path) is None:
                raise UsageError(f"{self.path} does not exist", obj=str(self.path))
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            self.size = os.fstat(self._fd).st_size
            self._begin(size)

    def write(self, offset: int, content: object) -> NoReturn:
        """Never."""
        raise ValueError("a file that is only looked at is not written")

    def finish(self) -> NoReturn:
        """Never."""
        raise ValueError("a file that is only looked at is not finished")
