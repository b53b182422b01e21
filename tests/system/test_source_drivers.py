"""The drivers against the source contract on real file systems, and what is special about each of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lamella.sources.base import Source
from lamella.sources.checkpoint_files import DIRECTORY
from lamella.sources.registry import open_source
from lamella.testing.source_contract import ReadOnlySourceContract, SourceContract
from tests.system import loop_fs

MACHINE = "0123456789abcdef"
OWNER = "00c0ffee"
_numbers = itertools.count()


class OnFileSystem:
    """Gives the suite a file system for all tests of a class, and each test an image in a directory of its own."""

    kind = ""
    options = ""
    driver: str | None = None

    @pytest.fixture(scope="class")
    @classmethod
    def top(cls) -> Iterator[Path]:
        with loop_fs.make(cls.kind, cls.options) as mount:
            yield mount

    @pytest.fixture(autouse=True)
    def _image(self, top: Path) -> None:
        self.top_directory = top
        self.place = top / f"machine-{next(_numbers)}"
        self.place.mkdir()
        (self.place / "disk.img").write_bytes(b"disk")

    def image(self) -> Path:
        return self.place / "disk.img"

    def make_source(self, image: Path) -> Source:
        return open_source(str(image), machine=MACHINE, owner=OWNER, driver=self.driver)

    def checkpoint_file(self, source: Source, checkpoint: str) -> Path:
        return self.top_directory / DIRECTORY / str(json.loads(checkpoint)["file"])


class TestFile(OnFileSystem, ReadOnlySourceContract):
    kind = "btrfs"
    driver = "file"


class TestBtrfs(OnFileSystem, SourceContract):
    kind = "btrfs"


class TestBtrfsCompressed(OnFileSystem, SourceContract):
    kind = "btrfs"
    options = "compress-force=zstd"

    def most_changed(self, touched: int) -> int:
        return 3 * touched  # a compressed extent holds 128 KiB, and is marked as a whole where it was cut


class TestBtrfsWithoutCopyOnWrite(OnFileSystem, SourceContract):
    kind = "btrfs"
    options = "nodatacow"


class TestBtrfsByExtentMaps(OnFileSystem, SourceContract):
    kind = "btrfs"
    driver = "reflink"


class TestXfs(OnFileSystem, SourceContract):
    kind = "xfs"
