"""Random histories of a directory, saved as a tree after every few changes: what the volume holds is what was there.

The volume is kept as bytes, and changed only where the driver says that it changed. So whatever stays must have stayed
where it was, and what is new must not lie on what is still needed.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from lamella.sources.tree.image import TreeImage
from lamella.sources.tree.known import KnownTree, rebuilt
from lamella.sources.tree.layout import ContentPlace
from lamella.sources.tree.reader import FileTree, TreeEntry
from lamella.sources.tree.source import TreeSource

LOG2 = 16
CHUNK = 1 << LOG2
NAMES = [b"a", b"b", b"c.txt", b"\xff\xfe not text", "ü".encode(), b" space", b"new\nline", b"[x]", b"z" * 255]


class Volume:
    """The bytes of a volume, and what the last run knew of it."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.known: KnownTree | None = None

    def reader(self) -> FileTree:
        return FileTree(lambda at, length: bytes(self.content[at : at + length]), len(self.content))

    def save(self, top: Path) -> TreeImage:
        """One run: only what the driver calls changed is read."""
        with TreeSource(top, "0" * 16).freeze() as frozen:
            image = frozen.image(self.known, LOG2)
            size = len(self.content)
            assert image.plan.base_size == size
            self.content[image.size :] = bytes(max(0, image.size - size))
            delta = image.delta()
            for first, end in delta.zeroed.runs():
                self.content[first * CHUNK : min(end * CHUNK, image.size)] = bytes(
                    max(0, min(end * CHUNK, image.size) - first * CHUNK)
                )
            todo = delta.changed
            while todo:
                for first, end in todo.runs():
                    part = memoryview(self.content)[first * CHUNK : min(end * CHUNK, image.size)]
                    image.read_into(first * CHUNK, part)
                    part.release()
                todo = image.stale()
            self.known = image.known()
            self.known.folders = {folder.path: folder for folder in image.known_folders()}
        return image

    def rebuilt(self) -> KnownTree:
        """What the volume itself says."""
        tree = self.reader()
        first = tree.superblock()
        place = ContentPlace(first.owners_address, first.owners_length, 0)
        return rebuilt(LOG2, tree.folders(), place, tree.owners_raw())


def seen(top: Path) -> dict[bytes, tuple[Any, ...]]:
    """Everything in a directory, as the system says it."""
    found: dict[bytes, tuple[Any, ...]] = {}
    base = os.fsencode(top)
    for above, folders, files in os.walk(base):
        for name in [*folders, *files]:
            path = os.path.join(above, name)
            status = os.lstat(path)
            content: object = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            key = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)
            links = status.st_nlink if stat.S_ISREG(status.st_mode) else 1
            found[os.path.relpath(path, base)] = (*key, links, content)
    return found


def told(tree: FileTree) -> dict[bytes, tuple[Any, ...]]:
    """The same, as a tree says it."""
    found: dict[bytes, tuple[Any, ...]] = {}
    for entry in tree.walk(tree.top()):
        if entry.path:
            status = entry.status
            content: object = None
            if stat.S_ISLNK(status.mode):
                content = entry.target
            elif entry.is_file:
                content = read(tree, entry)
            key = (status.mode, status.uid, status.gid, status.mtime_ns)
            found[entry.path] = (*key, status.links if entry.is_file else 1, content)
    return found


def read(tree: FileTree, entry: TreeEntry) -> bytes:
    content = bytearray(entry.length)
    for at, piece in tree.content(entry):
        content[at : at + len(piece)] = piece
    return bytes(content)


class Changes:
    """Random changes of a directory."""

    def __init__(self, top: Path, seed: int) -> None:
        self.top = top
        self.random = random.Random(seed)

    def once(self) -> None:
        kinds = [self.write, self.write, self.write, self.append, self.cut, self.remove, self.move, self.link]
        kinds += [self.folder, self.symlink, self.mode, self.sparse, self.fifo, self.overwrite]
        self.random.choice(kinds)()

    def _folders(self) -> list[bytes]:
        return [os.fsencode(self.top), *(one for one in self._all() if os.path.isdir(one) and not os.path.islink(one))]

    def _files(self) -> list[bytes]:
        return [one for one in self._all() if os.path.isfile(one) and not os.path.islink(one)]

    def _all(self) -> list[bytes]:
        walked = os.walk(os.fsencode(self.top))
        return [os.path.join(above, name) for above, folders, files in walked for name in sorted([*folders, *files])]

    def _new(self) -> bytes:
        return os.path.join(self.random.choice(self._folders()), self.random.choice(NAMES))

    def _bytes(self) -> bytes:
        length = self.random.choice([0, 1, 100, 5000, CHUNK // 4, CHUNK // 4 + 1, CHUNK, 3 * CHUNK + 7])
        return self.random.randbytes(length)

    def write(self) -> None:
        path = self._new()
        if not os.path.lexists(path):
            Path(os.fsdecode(path)).write_bytes(self._bytes())

    def overwrite(self) -> None:
        for path in self._files()[:1]:
            with Path(os.fsdecode(path)).open("r+b") as file:
                file.seek(self.random.randrange(1 + os.path.getsize(path)))
                file.write(b"changed in the middle")

    def append(self) -> None:
        if files := self._files():
            with Path(os.fsdecode(self.random.choice(files))).open("ab") as file:
                file.write(self._bytes())

    def cut(self) -> None:
        if files := self._files():
            path = self.random.choice(files)
            os.truncate(path, self.random.randrange(1 + os.path.getsize(path)))

    def remove(self) -> None:
        if paths := self._all():
            path = self.random.choice(paths)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)

    def move(self) -> None:
        if paths := self._all():
            path, target = self.random.choice(paths), self._new()
            if not os.path.lexists(target) and not target.startswith(path + b"/"):
                os.rename(path, target)

    def link(self) -> None:
        target = self._new()
        if (files := self._files()) and not os.path.lexists(target):
            os.link(self.random.choice(files), target)

    def folder(self) -> None:
        path = self._new()
        if not os.path.lexists(path):
            os.mkdir(path)

    def symlink(self) -> None:
        path = self._new()
        if not os.path.lexists(path):
            os.symlink(self.random.choice([b"a", b"../b", b"/nowhere", b"\xff"]), path)

    def mode(self) -> None:
        if paths := [one for one in self._all() if not os.path.islink(one)]:
            os.chmod(self.random.choice(paths), self.random.choice([0o700, 0o755, 0o4750]))

    def sparse(self) -> None:
        path = self._new()
        if not os.path.lexists(path):
            with Path(os.fsdecode(path)).open("wb") as file:
                file.truncate(self.random.choice([CHUNK, 9 * CHUNK, 40 * CHUNK]))
                file.seek(self.random.randrange(8 * CHUNK))
                file.write(self._bytes())

    def fifo(self) -> None:
        path = self._new()
        if not os.path.lexists(path):
            os.mkfifo(path)


@pytest.mark.parametrize("seed", range(12))
def test_what_the_volume_holds_is_what_was_there(tmp_path: Path, seed: int) -> None:
    top = tmp_path / "top"
    top.mkdir()
    changes, volume = Changes(top, seed), Volume()
    for _ in range(25):
        for _ in range(changes.random.choice([0, 1, 1, 4, 15])):
            changes.once()
        if changes.random.random() < 0.2 and volume.known is not None:
            volume.known = None if changes.random.random() < 0.3 else volume.rebuilt()
            if volume.known is None:
                volume.content.clear()
        volume.save(top)
        assert told(volume.reader()) == seen(top)
        known, again = volume.known, volume.rebuilt()
        assert known is not None
        assert (known.space.shared, known.space.large) == (again.space.shared, again.space.large)
        used = known.space.used()
        unused = [chunk for chunk in range(len(volume.content) // CHUNK) if chunk not in used]
        assert all(volume.content.count(0, chunk * CHUNK, (chunk + 1) * CHUNK) == CHUNK for chunk in unused)
        assert {path: one.address for path, one in known.folders.items()} == {
            path: one.address for path, one in again.folders.items()
        }
