"""The `files` driver: a directory with everything below it, as a volume that is made while it is read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.resources import files as resources
from pathlib import Path
from typing import Final

from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost, SourceError, printable
from lamella.base.extents import Extent
from lamella.sources.base import Consistency
from lamella.sources.driver import read_failed
from lamella.sources.tree import DOCUMENT
from lamella.sources.tree.folders import FOLDER_FLAGS, Folders
from lamella.sources.tree.image import TreeImage
from lamella.sources.tree.known import KnownTree
from lamella.sources.tree.patterns import Patterns
from lamella.sources.tree.planning import TreePlan
from lamella.sources.tree.scan import Scanner

DRIVER: Final = "files"
UNPACKER: Final = "unpack.py"
"""The document that holds a program which unpacks such a volume without Lamella."""
_READ: Final = "read"
"""The moment of a tree that was read to its end: the snapshot itself holds all that the next run needs."""


@dataclass(slots=True)
class TreeSource:
    """A directory on the machine whose hash is `machine` (16 hexadecimal digits)."""

    path: Path
    machine: str
    exclude: tuple[str, ...] = ()
    exclude_caches: bool = False
    one_file_system: bool = False
    exclude_inside: str = ""
    """The name of files in which directories have patterns of their own; empty: there are none."""
    driver: str = DRIVER
    documents: Mapping[str, bytes] = field(default_factory=dict)
    """What goes with the snapshot; known when the tree was read."""
    missing: int = 0
    """Files and directories that the last run could not read."""

    @property
    def tracks(self) -> bool:
        """The last snapshot says what every file was, so that only what changed is read."""
        return True

    @property
    def identity(self) -> bytes:
        """`files:MACHINE:PATH`, the path absolute and without links."""
        return f"{DRIVER}:{self.machine}:".encode() + os.fsencode(self.path.resolve())

    @property
    def default_name(self) -> str:
        """The last name of the path; not yet made a valid volume name."""
        return self.path.resolve().name or "root"

    @contextmanager
    def freeze(self) -> Iterator[FrozenTree]:
        """Look at the tree. Nothing is held still. Raises SourceError if the directory cannot be read."""
        patterns = Patterns.of(self.exclude, str(self.path.resolve()), caches=self.exclude_caches)
        try:
            root = os.open(self.path.resolve(), FOLDER_FLAGS)
        except OSError as error:
            raise read_failed(self.path, error) from error
        folders = Folders(root)
        try:
            scanner = Scanner(patterns, one_file_system=self.one_file_system, inside=self.exclude_inside)
            yield FrozenTree(self, scanner, folders, root)
        finally:
            folders.close()
            os.close(root)

    def keep(self, checkpoint: str) -> None:
        """Nothing to keep: the snapshot holds it."""

    def drop(self, checkpoint: str) -> None:
        """Nothing to drop."""

    def kept(self) -> list[str]:
        """Nothing is ever kept."""
        return []


class FrozenTree:
    """A tree as it was looked at. Its volume is made by `image`, for each repository its own."""

    def __init__(self, source: TreeSource, scanner: Scanner, folders: Folders, root: int) -> None:
        self.source = source
        self._folders = folders
        self._is_read = False
        try:
            self.scan = scanner.scan(root)
        except OSError as error:
            raise read_failed(source.path, error) from error
        self.size = self.scan.bytes
        """Bytes of the files, and of the volume once that was read."""

    @property
    def checkpoint(self) -> str:
        """Text that says that the tree was read to its end; empty until then."""
        return _READ if self._is_read else ""

    def consistency(self) -> Consistency:
        """UNKNOWN: each file has a moment of its own."""
        return Consistency.UNKNOWN

    def allocated(self) -> Iterator[Extent]:
        """Nothing: the volume is that of `image`."""
        return iter(())

    def delta_since(self, base: str, grain: int) -> Delta:
        """Always CheckpointLost: what changed is known for a whole snapshot only."""
        raise CheckpointLost("of a tree that was not read to its end nothing is known")

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Always SourceError: the volume is that of `image`."""
        raise SourceError("a tree has no bytes before its volume is made", obj=str(self.source.path))

    def image(self, known: KnownTree | None, log2: int) -> TreeImage:
        """The volume, in chunks of `2 ** log2` bytes, built on what the last snapshot has.

        Raises IntegrityError if what is `known` is damaged.
        """
        return TreeImage(TreePlan(self.scan, self._folders, known, log2))

    def finished(self, image: TreeImage) -> None:
        """The volume was read: make the documents that go with it."""
        self.size, self._is_read = image.size, True
        unreadable = [*self.scan.unreadable.lines, *image.plan.unreadable.lines, *image.unreadable.lines]
        skipped = [*self.scan.skipped.lines, *image.gone.lines]
        missing = self.scan.unreadable.count + image.plan.unreadable.count + image.unreadable.count
        self.source.missing = max(self.source.missing, missing)  # of several repositories, the worst
        said = {
            "format": "lamella-tree/1",
            "path": printable(str(self.source.path.resolve())),
            "excluded": [printable(pattern) for pattern in self.source.exclude],
            "exclude_inside": printable(self.source.exclude_inside),
            "changed": image.changed.lines,
            "unreadable": unreadable,
            "skipped": skipped,
        }
        self.source.documents = {DOCUMENT: json.dumps(said, indent=1).encode("ascii")}
        with suppress(OSError):
            program = resources("lamella").joinpath(UNPACKER).read_bytes()
            self.source.documents = {**self.source.documents, UNPACKER: program}

    def warnings(self, image: TreeImage) -> Iterator[str]:
        """What is to be said of the tree and of single files."""
        if image.plan.is_emptied:
            yield f"nothing is in {self.source.path} any more: is its file system mounted?"
        for told in (self.scan.unreadable, image.plan.unreadable, image.unreadable):
            yield from (f"cannot read {line}" for line in told.all_lines())
        yield from (f"changed while it was read: {line}" for line in image.changed.all_lines())
        for told in (self.scan.skipped, image.gone):
            yield from (f"left out: {line}" for line in told.all_lines())
