"""A directory that holds every snapshot of a repository as files, for people who go to another program.

`VOLUME/SNAPSHOT.img` (or `.qcow2`, `.tar`), `VOLUME/SNAPSHOT.documents/NAME`; SHA256SUMS names every file with its
checksum, for sha256sum -c, and snapshots.json says what each file is. A file's checksum is durable before the file has
its name: whatever has a name and a checksum is whole, and a run that was killed leaves nothing else behind.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from lamella.base.durable import sync_directory, write_durably
from lamella.base.errors import LamellaError, Locked, UsageError, shown_bytes
from lamella.base.events import Progress, Reporter
from lamella.operations.access.image_file import CannotWrite, write_image
from lamella.operations.access.images import Image
from lamella.operations.access.shown import safe_name
from lamella.operations.access.view import PIECE, Part

SUMS, INDEX = "SHA256SUMS", "snapshots.json"
_SUM = re.compile(r"([0-9a-f]{64})  ([^\\\n]+)")
_UNPORTABLE = re.compile(r'[\\:*?"<>|\x7f]|[. ]+$')
"""What Windows, FAT and exFAT refuse in a name."""
_LONGEST_NAME = 180
"""Bytes of a cleaned name, so that a suffix fits into NAME_MAX."""
_ZEROS = memoryview(bytes(PIECE))
_SIZE, _WRITTEN = "file_bytes", "file_mtime_ns"
"""Keys of a file in snapshots.json."""


class RunningSum(Protocol):
    """A running SHA-256."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Add bytes."""

    def digest(self) -> bytes:
        """Of all that was added."""

    def hexdigest(self) -> str:
        """The same in hexadecimal."""


class ImageFolder:
    """The directory. Everything may raise CannotWrite."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._sums = _read_sums(folder / SUMS)
        self._index = _read_index(folder / INDEX)
        self._unsaved = 0
        """Rows that snapshots.json does not have yet."""

    def name_volumes(self, volumes: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Id -> directory, for the ids and names of volumes: the one that an earlier run chose, else a new one."""
        known = self._index["folders"]
        taken = {folder.casefold() for folder in known.values()}
        for id_, name in volumes:
            if id_ not in known:
                known[id_] = _free(name, id_, taken)
                taken.add(known[id_].casefold())
        self.write_index()
        return known

    def is_there(self, name: str) -> bool:
        """Whether this file is listed, and exists with the listed content.

        A file that has the size and the time that snapshots.json recorded is not read; of any other file the checksum
        is. Raises UsageError for a file that is something else.
        """
        digest, path = self._sums.get(name), self.path / name
        if digest is None or not path.is_file():
            return False
        try:
            found, known = path.stat(), self._index["files"].get(name, {})
            size = known.get(_SIZE, found.st_size)
            if (size, known.get(_WRITTEN)) != (found.st_size, found.st_mtime_ns):
                self._require(path, digest, size)
        except OSError as error:
            raise CannotWrite(f"cannot read {path}: {error.strerror}", obj=str(path)) from error
        return True

    def _require(self, path: Path, digest: str, size: int) -> None:
        """Raises UsageError for a file of another size, or with another checksum; OSError."""
        grown = path.stat().st_size - size
        if grown:
            said = f"it is {shown_bytes(abs(grown))} {'longer' if grown > 0 else 'shorter'} than it was written"
        elif _sum(path).hexdigest() != digest:
            said = f"its checksum is not the one in {SUMS}"
        else:
            return
        hint = "move it away, and run the command again"
        raise UsageError(f"{path} was changed: {said}", obj=str(path), hint=hint)

    def add(self, name: str, image: Image, volume: str, reporter: Reporter) -> bool:
        """Write a file, `name` relative to the directory; False where it was there before, with these very bytes.

        Raises UsageError where something else is there, and what reading the image raises.
        """
        path, digest = self.path / name, hashlib.sha256()
        hashed = Image(image.length, _hashed(image.parts, digest))
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.path.lexists(path):
                write_image(path, hashed, volume, reporter, lambda: self._list(name, digest.hexdigest()))
                return True
            self._compare(path, hashed, volume, reporter, digest)
            self._list(name, digest.hexdigest())
        except OSError as error:
            raise CannotWrite(f"cannot write {path}: {error.strerror}", obj=str(path)) from error
        return False

    def sum_of(self, name: str) -> str:
        """The SHA-256 of a listed file in hexadecimal."""
        return self._sums[name]

    def describe(self, key: str, row: Mapping[str, Any]) -> None:
        """Say in snapshots.json what a file is, with the size and the time by which it is known. Raises CannotWrite."""
        path, files = self.path / key, self._index["files"]
        try:
            found = path.stat()
        except OSError as error:
            raise CannotWrite(f"cannot read {path}: {error.strerror}", obj=str(path)) from error
        files[key] = {**row, _SIZE: found.st_size, _WRITTEN: found.st_mtime_ns}
        # Now and then, so that a run that is killed leaves few files of which the next one has to read the checksum.
        self._unsaved += 1
        if self._unsaved > len(files) // 16:
            self.write_index()

    def write_index(self) -> None:
        """Write snapshots.json."""
        self._unsaved = 0
        try:
            write_durably(self.path / INDEX, json.dumps(self._index, indent=1).encode("ascii") + b"\n")
        except OSError as error:
            raise CannotWrite(f"cannot write {self.path / INDEX}: {error.strerror}", obj=str(self.path)) from error

    def _compare(self, path: Path, image: Image, volume: str, reporter: Reporter, digest: RunningSum) -> None:
        """Compare a file that no checksum speaks for. Raises UsageError, OSError."""
        done = 0
        for part in image.parts:
            done += part if isinstance(part, int) else len(part)
            reporter(Progress("export", volume, min(done, image.length), image.length))
        if path.is_symlink() or _sum(path).digest() != digest.digest():
            hint = f"move it away; nothing of {SUMS} names it"
            raise UsageError(f"{path} exists already, and is something else", obj=str(path), hint=hint)

    def _list(self, name: str, digest: str) -> None:
        """Add a line to SHA256SUMS, durably. Raises OSError."""
        before = self._sums.get(name)
        self._sums[name] = digest
        if before == digest:
            return
        place = self.path / SUMS
        if before is not None or not place.exists():
            lines = [f"{one}  {path}\n" for path, one in self._sums.items()]
            write_durably(place, "".join(lines).encode("utf-8"))
            return
        descriptor = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        with os.fdopen(descriptor, "wb") as file:
            file.write(f"{digest}  {name}\n".encode())
            file.flush()
            os.fsync(descriptor)


@contextmanager
def image_folder(path: Path) -> Iterator[ImageFolder]:
    """The directory, held by one export at a time. Raises UsageError, Locked, CannotWrite."""
    if not path.is_dir():
        raise UsageError(f"{path} is not a directory", obj=str(path), hint="make it first")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise CannotWrite(f"cannot open {path}: {error.strerror}", obj=str(path)) from error
    try:
        _lock(descriptor, path)
        yield ImageFolder(path)
        sync_directory(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Locked(f"another export is writing into {path}", obj=str(path)) from None
    except OSError:  # some network file systems lock no directories: each file is locked while it is written
        pass


def portable(text: str) -> str:
    """A name for any file system: no `/`, nothing that Windows refuses, and short enough for a suffix."""
    clean = _UNPORTABLE.sub("_", safe_name(text)).encode()[:_LONGEST_NAME].decode("utf-8", "ignore")
    return f"_{clean[1:]}" if clean.startswith((".", "-")) else clean


def _sum(path: Path) -> RunningSum:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def _free(name: str, id_: str, taken: set[str]) -> str:
    clean = portable(name)
    # Two names that were cleaned, or differ in case alone, must not meet on any file system.
    if clean == name and clean.casefold() not in {*taken, SUMS.casefold(), INDEX}:
        return clean
    return next(one for digits in (4, 32) if (one := f"{clean}~{id_[:digits]}").casefold() not in taken)


def _hashed(parts: Iterator[Part], digest: RunningSum) -> Iterator[Part]:
    for part in parts:
        if isinstance(part, int):
            for start in range(0, part, PIECE):
                digest.update(_ZEROS[: min(PIECE, part - start)])
        else:
            digest.update(part)
        yield part


def _read_sums(place: Path) -> dict[str, str]:
    """The lines of an earlier run; a line that a power cut tore is taken out. Raises CannotWrite."""
    try:
        text = place.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CannotWrite(f"cannot read {place}: {error.strerror}", obj=str(place)) from error
    found = {match[2]: match[1] for line in text.split("\n")[:-1] if (match := _SUM.fullmatch(line))}
    whole = "".join(f"{digest}  {name}\n" for name, digest in found.items())
    if whole != text:
        try:
            write_durably(place, whole.encode("utf-8"))
        except OSError as error:
            raise CannotWrite(f"cannot write {place}: {error.strerror}", obj=str(place)) from error
    return found


def _read_index(place: Path) -> dict[str, dict[str, Any]]:
    """What an earlier run wrote; nothing of a file that cannot be understood."""
    empty: dict[str, dict[str, Any]] = {"folders": {}, "files": {}}
    try:
        found = json.loads(place.read_bytes())
        folders = {id_: name for id_, name in found["folders"].items() if _is_folder(name)}
        files = {name: row for name, row in found["files"].items() if isinstance(row, dict)}
        return {"folders": folders, "files": files}
    except FileNotFoundError:
        return empty
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise LamellaError(f"{place} cannot be understood", obj=str(place), hint="move it away") from None


def _is_folder(name: object) -> bool:
    return isinstance(name, str) and portable(name) == name
