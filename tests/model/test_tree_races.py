"""A tree that others change while it is looked at and read: afterwards, once they rest, a run has everything right."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lamella.sources.tree.image import TreeImage
from lamella.sources.tree.known import KnownTree
from lamella.sources.tree.reader import FileTree, TreeEntry
from lamella.sources.tree.scan import ScannedFolder, Scanner
from lamella.sources.tree.source import TreeSource

LOG2 = 16
SIZES = (0, 10, 3000, 9000, 16000, 16384, 16385, 70000)
"""Small ones, which share a chunk, and large ones."""
REST_SECONDS = 0.07
"""Longer than a change may hide (planning)."""


class Others:
    """Whoever works in the tree."""

    def __init__(self, top: Path, seed: int) -> None:
        self.top = top
        self.chance = random.Random(seed)
        self._number = 0

    def folders(self) -> list[Path]:
        return [self.top, *(Path(above) / name for above, names, _ in os.walk(self.top) for name in names)]

    def files(self) -> list[Path]:
        return [Path(above) / name for above, _, names in os.walk(self.top) for name in names]

    def work(self, most: int, share: float) -> None:
        """Do some things, or nothing."""
        for _ in range(most):
            if self.chance.random() < share:
                with suppress(OSError):
                    self._deed()

    def _deed(self) -> None:
        chance, files, folders = self.chance, self.files(), self.folders()
        self._number += 1
        folder = chance.choice(folders)
        new, file = folder / f"n{self._number}", chance.choice(files) if files else None
        size = chance.choice(SIZES)
        deeds: list[Callable[[], object]] = [
            new.mkdir,
            lambda: new.write_bytes(chance.randbytes(size)),
            lambda: new.symlink_to(f"t{self._number}"),
            lambda: folder.rename(chance.choice(folders) / new.name) if folder != self.top else None,
        ]
        if file is not None:
            deeds += [lambda: os.link(file, new, follow_symlinks=False), lambda: file.rename(new)]
            if chance.random() < 0.1:
                deeds.append(file.unlink)
        if file is not None and not file.is_symlink():
            deeds += [lambda: os.truncate(file, size), lambda: os.setxattr(file, "user.x", chance.randbytes(5))]
            deeds.append(lambda: file.write_bytes(chance.randbytes(size)))
        chance.choice(deeds)()


class Volume:
    """The volume of a tree, snapshot after snapshot."""

    def __init__(self, top: Path) -> None:
        self._source = TreeSource(top, "0" * 16)
        self._known: KnownTree | None = None
        self.content = bytearray()

    def save(self, meanwhile: Callable[[int, float], None]) -> None:
        """One run; others work between its steps."""
        with self._source.freeze() as frozen:
            meanwhile(6, 0.5)
            image = frozen.image(self._known, LOG2)
            self.content = bytearray(self.content[: image.size].ljust(image.size, b"\0"))
            for first, end in (image.plan.freed | image.plan.holes).runs():
                for chunk in range(first, min(end, image.size >> LOG2)):
                    self.content[chunk << LOG2 : chunk + 1 << LOG2] = bytes(1 << LOG2)
            for extent in image.allocated():
                for start in range(extent.start, extent.end, 1 << LOG2):
                    meanwhile(6, 0.3)
                    self._read(image, start, start + (1 << LOG2))
            for first, end in image.stale().runs():
                self._read(image, first << LOG2, end << LOG2)
            self._known = image.known()
            self._known.folders = {folder.path: folder for folder in image.known_folders()}

    def _read(self, image: TreeImage, start: int, end: int) -> None:
        with memoryview(self.content) as view:
            image.read_into(start, view[start : min(end, image.size)])

    def entries(self) -> Iterator[TreeEntry]:
        tree = FileTree(lambda at, length: bytes(self.content[at : at + length]), len(self.content))
        yield from tree.walk(tree.top())


def as_saved(volume: Volume) -> dict[bytes, object]:
    found: dict[bytes, object] = {}
    for entry in volume.entries():
        content = bytes(volume.content[entry.place.address :][: entry.length])
        found[entry.path] = None if entry.is_folder else entry.target or (content, [one for _, one in entry.details])
    return found


def as_it_is(others: Others) -> dict[bytes, object]:
    found: dict[bytes, object] = {os.fsencode(path.relative_to(others.top)): None for path in others.folders()[1:]}
    for path in others.files():
        name = os.fsencode(path.relative_to(others.top))
        if path.is_symlink():
            found[name] = os.fsencode(path.readlink())
            continue
        values = [f"{one}\0".encode() + os.getxattr(path, one) for one in os.listxattr(path) if one == "user.x"]
        found[name] = path.read_bytes(), values
    return {b"": None, **found}


@pytest.mark.parametrize("seed", range(12))
def test_what_was_changed_meanwhile_is_right_afterwards(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    others, volume, busy = Others(tmp_path, seed), Volume(tmp_path), [False]
    entered = Scanner._entered

    def meanwhile(most: int, share: float) -> None:
        if busy[0]:
            others.work(most, share)

    def slowly(self: Scanner, descriptor: int, folder: ScannedFolder, *more: Any) -> object:  # noqa: ANN401 - passed on
        meanwhile(6, 0.3)
        return entered(self, descriptor, folder, *more)

    monkeypatch.setattr(Scanner, "_entered", slowly)
    others.work(60, 1.0)
    for busy[0] in (True, True, False, True, False):
        time.sleep(REST_SECONDS)
        volume.save(meanwhile)
        if not busy[0]:
            assert as_saved(volume) == as_it_is(others)
