"""Every snapshot over every other one, in every mode: grown, shrunk, with holes and zeros, all identical to the byte.

What the user fears: something of the old state shines through. Thin volumes: tests/guest/test_commands.py.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.base.extents import Extent
from lamella.operations.restore.restore import RestoreOptions, plan_restore
from lamella.operations.shared.selection import Selected, select
from lamella.repository.repository import Repository
from lamella.sources import target as target_module
from lamella.stores.memory import MemoryStore
from lamella_kit.image_files import loop_device
from lamella_kit.scripted_source import ScriptedSource
from tests.fault.world import CHUNK, SECRET, backup, host_at, init
from tests.unit.real_devices import need_devices

DEVICE_CHUNKS = 160
MODES = {
    "new": RestoreOptions(workers=2),
    "overwrite": RestoreOptions(workers=2, overwrite=True),
    "in place": RestoreOptions(workers=2, in_place=True),
    "device": RestoreOptions(workers=2, overwrite=True),
}


def states() -> dict[str, tuple[bytes, list[Extent]]]:
    """The volume's history: what it held, and where its storage had data."""
    noise = random.Random(20)
    first = noise.randbytes(70 * CHUNK)  # more than one range and one leaf
    holes = bytearray(first)
    holes[3 * CHUNK : 9 * CHUNK] = bytes(6 * CHUNK)
    holes[40 * CHUNK : 41 * CHUNK + 100] = bytes(CHUNK + 100)
    holes[66 * CHUNK :] = bytes(4 * CHUNK)
    zeros = bytes(33 * CHUNK)
    found = {
        "first": (first, [Extent(0, len(first))]),
        "holes": (bytes(holes), [Extent(0, 3 * CHUNK), Extent(9 * CHUNK, 66 * CHUNK)]),
        "zeros": (bytes(holes), [Extent(0, len(holes))]),
        "grown": (bytes(holes) + noise.randbytes(65 * CHUNK + 777), []),
        "shrunk": (first[: 20 * CHUNK + 5], [Extent(0, 20 * CHUNK + 5)]),
        "a little": (first[:9] + b"x" + first[10 : 20 * CHUNK + 4096], [Extent(0, 20 * CHUNK + 4096)]),
        "all zeros": (zeros, [Extent(0, len(zeros))]),
        "all hole": (zeros + b"\0", []),
        "a byte": (b"1", [Extent(0, 1)]),
    }
    grown = found["grown"][0]
    found["grown"] = (grown, [Extent(0, 3 * CHUNK), Extent(9 * CHUNK, len(grown))])
    return found


class World:
    """A repository with a snapshot of each state."""

    def __init__(self, place: Path) -> None:
        self.states = states()
        store, host = MemoryStore(), host_at(place / "host")
        init(store, host)
        for content, extents in self.states.values():
            backup(store, host, ScriptedSource("disk", content, extents))
        self.repo = Repository.open(store, SECRET, host)
        self.snapshots: dict[str, Selected] = dict(zip(self.states, select(self.repo, []), strict=True))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    found = World(tmp_path_factory.mktemp("matrix"))
    yield found
    found.repo.close()


@pytest.mark.parametrize(
    ("mode", "way"),
    [("new", "direct"), *((mode, way) for mode in ("overwrite", "in place", "device") for way in ("direct", "cached"))],
)
def test_any_snapshot_over_any_other(
    world: World, tmp_path: Path, mode: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "cached":
        monkeypatch.setattr(target_module, "reopened", lambda fd: -1)
    path = tmp_path / "disk.img"
    if mode != "device":
        every_pair(world, mode, path)
        return
    path.write_bytes(bytes(DEVICE_CHUNKS * CHUNK))
    with need_devices(), loop_device(path) as device:
        every_pair(world, mode, device)


def every_pair(world: World, mode: str, target: Path) -> None:
    for old, (before, _) in world.states.items():
        for new, (wanted, extents) in world.states.items():
            held = put(target, mode, before)
            done = plan_restore(world.repo, world.snapshots[new], target, MODES[mode]).execute()
            found = target.read_bytes()
            assert found == wanted + held[len(wanted) :], f"{new} over {old}"
            assert mode != "device" or done.tail_bytes == len(held) - len(wanted)
            if mode != "device":
                most = sum(-(-one.end // CHUNK) - one.start // CHUNK for one in extents) * CHUNK
                most = most if "zero" not in new else len(wanted)  # space for zeros may be kept, or not
                assert target.stat().st_blocks * 512 <= most + 8192, f"{new} over {old}: holes stay holes"


def put(target: Path, mode: str, content: bytes) -> bytes:
    """Let the target hold a state; returns what lies there that a volume may leave as it is."""
    if mode == "device":
        tail = os.urandom(16) * ((DEVICE_CHUNKS * CHUNK - len(content)) // 16 + 1)
        held = (content + tail)[: DEVICE_CHUNKS * CHUNK]
        with target.open("r+b", buffering=0) as device:
            device.write(held)
            os.fsync(device.fileno())
        return held
    target.unlink(missing_ok=True)
    if mode != "new":
        target.write_bytes(content)
    return b""
