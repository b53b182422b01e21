"""What the source contract does to a volume between two moments, whatever kind of volume it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol


class ChangingVolume(Protocol):
    """A volume under test. It may round sizes up; what is behind the content it was given reads as zero."""

    @property
    def path(self) -> Path:
        """Where it can be opened, and what its source is made of."""

    def fill(self, content: bytes) -> None:
        """Give it this content and nothing else, whether it exists or not."""

    def write(self, offset: int, content: bytes) -> None:
        """Write into it, as a guest would. May make it longer, if that is how such volumes behave."""

    def resize(self, size: int) -> None:
        """Cut it, or let it grow by zeros."""

    def content(self) -> bytes:
        """All of it, as it is now."""

    def remove(self) -> None:
        """Remove it; `fill` makes another one of its name."""

    def replace(self, content: bytes) -> None:
        """Let another volume with this content take its name."""

    def sibling(self) -> ChangingVolume:
        """Another volume in the same place; it does not exist yet."""


class FileVolume:
    """An image file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self, content: bytes) -> None:
        self.path.write_bytes(content)

    def write(self, offset: int, content: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(content)

    def resize(self, size: int) -> None:
        os.truncate(self.path, size)

    def content(self) -> bytes:
        return self.path.read_bytes()

    def remove(self) -> None:
        self.path.unlink()

    def replace(self, content: bytes) -> None:
        new = self.path.with_name("new")
        new.write_bytes(content)
        new.rename(self.path)

    def sibling(self) -> FileVolume:
        return FileVolume(self.path.with_name("other.img"))
