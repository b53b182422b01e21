"""The layout of a qube's volumes in a thin pool, as the driver lvm_thin of Qubes OS 4.2 and 4.3 makes it."""

from __future__ import annotations

import re
import time
from pathlib import Path

from lamella_kit.qubes_layouts import FakeVolume, Layout, Refusal
from tests.guest.lvm import Pool, run


class ThinVolumes:
    """LVs of real device-mapper. A start makes `-snap`, which a shutdown puts in place of the volume, now `-back`."""

    driver = "lvm_thin"

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._epoch = int(time.time())

    def config(self) -> dict[str, str]:
        return {"volume_group": self._pool.vg, "thin_pool": self._pool.name}

    def vid(self, kind: str, qube: str, volume: str) -> str:
        return f"{self._pool.vg}/vm-{qube}-{volume}"

    def path(self, vid: str, suffix: str = "") -> Path:
        return Path("/dev") / f"{vid}{suffix}"

    def live(self, vid: str) -> Path:
        snap = self.path(vid, "-snap")
        return snap if snap.exists() else self.path(vid)

    def create(self, volume: FakeVolume) -> None:
        if volume.save_on_stop:
            self._make(volume.vid, volume.size)

    def start(self, volume: FakeVolume) -> None:
        if volume.save_on_stop:
            if self.path(volume.vid, "-import").exists():
                raise Refusal("StoragePoolException", "Import operation in progress")
            if volume.revisions_to_keep < 0:
                return  # the qube gets the volume itself
            run("lvcreate", "-q", "-kn", "-ay", "-s", "-n", f"{_leaf(volume.vid)}-snap", volume.vid)
        elif volume.name == "volatile":
            self._make(volume.vid, volume.size)

    def stop(self, volume: FakeVolume) -> None:
        if self.path(volume.vid, "-snap").exists():
            self._commit(volume, "-snap")
        elif not volume.save_on_stop and self.path(volume.vid).exists():
            run("lvremove", "-q", "-f", volume.vid)

    def remove(self, volume: FakeVolume) -> None:
        found = [f"{self._pool.vg}/{name}" for name in self._names(volume.vid)]
        if found:
            run("lvremove", "-q", "-f", *found)

    def resize(self, volume: FakeVolume, size: int) -> None:
        for path in {self.live(volume.vid), self.path(volume.vid)}:
            run("lvextend", "-q", "-L", f"{size}b", f"{self._pool.vg}/{path.name}")

    def take(self, volume: FakeVolume, other: Layout, vid: str) -> None:
        assert other is self, "there is one thin pool"
        for name in self._names(vid):
            run("lvrename", "-q", self._pool.vg, name, name.replace(_leaf(vid), _leaf(volume.vid), 1))

    def import_begin(self, volume: FakeVolume, size: int) -> Path:
        self._make(f"{volume.vid}-import", size)
        return self.path(volume.vid, "-import")

    def import_end(self, volume: FakeVolume, *, success: bool) -> None:
        if not success:
            run("lvremove", "-q", "-f", f"{volume.vid}-import")
            return
        size = run("lvs", "--noheadings", "--nosuffix", "--units", "b", "-o", "lv_size", f"{volume.vid}-import")
        volume.size = int(size)
        self._commit(volume, "-import")

    def _make(self, vid: str, size: int) -> None:
        words = ["--type", "thin", "-V", f"{size}b", "-n", _leaf(vid), "--thinpool", self._pool.text]
        run("lvcreate", "-q", *words)

    def _commit(self, volume: FakeVolume, suffix: str) -> None:
        vg, leaf = self._pool.vg, _leaf(volume.vid)
        if volume.revisions_to_keep > 0:
            self._epoch += 1
            for old in [name for name in self._names(volume.vid) if name.endswith("-back")]:
                run("lvremove", "-q", "-f", f"{vg}/{old}")
            run("lvrename", "-q", vg, leaf, f"{leaf}-{self._epoch}-back")
        else:
            run("lvremove", "-q", "-f", volume.vid)
        run("lvrename", "-q", vg, f"{leaf}{suffix}", leaf)

    def _names(self, vid: str) -> list[str]:
        """Of a volume, its revisions and what stands beside it; what others keep in the pool is not the driver's."""
        own = re.compile(re.escape(_leaf(vid)) + r"(-snap|-import|-[0-9]+-back)?")
        return [name for name in self._pool.volumes() if own.fullmatch(name)]


def _leaf(vid: str) -> str:
    return vid.partition("/")[2]
