"""How a pool lays the volumes of qubes out, at rest, running and while they are imported into."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Refusal(Exception):
    """An exception of qubesd's: its class name and text go to the client."""

    def __init__(self, type_: str, text: str) -> None:
        super().__init__(text)
        self.type = type_


@dataclass
class FakeVolume:
    name: str
    pool: str
    vid: str
    size: int
    save_on_stop: bool
    revisions_to_keep: int = 1
    rw: bool = True
    revisions: int = 0


class Layout(Protocol):
    """A pool. Volumes are known by their `vid`; `save_on_stop` tells those that outlive a shutdown."""

    driver: str

    def config(self) -> dict[str, str]:
        """What the pool is made of, as `admin.pool.Info` tells it."""

    def vid(self, kind: str, qube: str, volume: str) -> str: ...

    def path(self, vid: str, suffix: str = "") -> Path:
        """The committed state, or what stands beside it."""

    def live(self, vid: str) -> Path:
        """What a running qube writes to, or a halted one left."""

    def create(self, volume: FakeVolume) -> None: ...

    def start(self, volume: FakeVolume) -> None: ...

    def stop(self, volume: FakeVolume) -> None: ...

    def remove(self, volume: FakeVolume) -> None: ...

    def resize(self, volume: FakeVolume, size: int) -> None: ...

    def take(self, volume: FakeVolume, other: Layout, vid: str) -> None:
        """Have everything of a volume that lies in another pool, or here under another vid."""

    def import_begin(self, volume: FakeVolume, size: int) -> Path: ...

    def import_end(self, volume: FakeVolume, *, success: bool) -> None: ...


class Files:
    """Files in a directory, as file-reflink has them; with or without a file system that has reflinks."""

    driver = "file-reflink"

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def config(self) -> dict[str, str]:
        return {"dir_path": str(self.directory)}

    def vid(self, kind: str, qube: str, volume: str) -> str:
        return f"{kind}/{qube}/{volume}"

    def path(self, vid: str, suffix: str = "") -> Path:
        return self.directory / f"{vid}{suffix}.img"

    def live(self, vid: str) -> Path:
        dirty = self.path(vid, "-dirty")
        return dirty if dirty.exists() else self.path(vid)

    def create(self, volume: FakeVolume) -> None:
        path = self.path(volume.vid)
        path.parent.mkdir(parents=True, exist_ok=True)
        if volume.save_on_stop:
            with path.open("wb") as file:
                file.truncate(volume.size)

    def start(self, volume: FakeVolume) -> None:
        if volume.save_on_stop and volume.revisions_to_keep < 0:
            self.path(volume.vid).rename(self.path(volume.vid, "-dirty"))
        elif volume.save_on_stop:
            self.path(volume.vid, "-import").unlink(missing_ok=True)
            precache = self.path(volume.vid, "-precache")
            if not precache.exists():
                _clone(self.path(volume.vid), precache)
            precache.rename(self.path(volume.vid, "-dirty"))
        elif volume.name == "volatile":
            self.path(volume.vid, "-dirty").write_bytes(b"")

    def stop(self, volume: FakeVolume) -> None:
        dirty = self.path(volume.vid, "-dirty")
        if volume.save_on_stop and dirty.exists():
            self._commit(volume, dirty)
        else:
            dirty.unlink(missing_ok=True)

    def remove(self, volume: FakeVolume) -> None:
        shutil.rmtree((self.directory / volume.vid).parent, ignore_errors=True)

    def resize(self, volume: FakeVolume, size: int) -> None:
        for path in {self.live(volume.vid), self.path(volume.vid)}:
            os.truncate(path, size)

    def take(self, volume: FakeVolume, other: Layout, vid: str) -> None:
        target = (self.directory / volume.vid).parent
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(other.path(vid).parent.glob(f"{volume.name}*")):
            shutil.copyfile(path, target / path.name)
            path.unlink()

    def import_begin(self, volume: FakeVolume, size: int) -> Path:
        path = self.path(volume.vid, "-import")
        with path.open("wb") as file:
            file.truncate(size)
        return path

    def import_end(self, volume: FakeVolume, *, success: bool) -> None:
        path = self.path(volume.vid, "-import")
        if not success:
            path.unlink(missing_ok=True)
            return
        volume.size = path.stat().st_size
        self._commit(volume, path)
        self.path(volume.vid, "-precache").unlink(missing_ok=True)

    def _commit(self, volume: FakeVolume, dirty: Path) -> None:
        clean = self.path(volume.vid)
        if volume.revisions_to_keep > 0 and clean.exists():
            volume.revisions += 1
            clean.rename(clean.with_name(f"{clean.name}.{volume.revisions}@2026-01-01T00:00:00Z"))
        dirty.rename(clean)


class InPlaceFiles(Files):
    """As the driver `file` has them: a qube writes to the image; beside it goes what was there before."""

    driver = "file"

    def live(self, vid: str) -> Path:
        return self.path(vid)

    def start(self, volume: FakeVolume) -> None:
        if volume.save_on_stop and volume.revisions_to_keep >= 0:
            self.path(volume.vid, "-cow").write_bytes(b"")

    def stop(self, volume: FakeVolume) -> None:
        self.path(volume.vid, "-cow").unlink(missing_ok=True)


def _clone(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", source, target], check=True)
