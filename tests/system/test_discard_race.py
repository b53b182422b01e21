"""What a guest clears while QEMU looks for holes is no hole of the moment.

QEMU looks at its scratch image first and at the disk afterwards, both when it is asked about blocks and before it
reads. Here the disk lies behind an NBD server, as disks of Ceph and of other hosts do, and the second look is held back
until the guest has cleared the block. (QEMU 7.2 ignores discards while a backup job runs, so the guest writes zeros.)
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from lamella.base.errors import SourceError
from lamella.base.extents import Extent
from lamella.sources.nbd.address import NbdAddress
from lamella.sources.nbd.export import Export
from lamella.sources.nbd.source import FrozenExport
from tests.system.held_nbd import HeldNbd
from tests.system.qemu_storage import SECONDS, Served, StorageDaemon, need_qemu

SIZE = 4 << 20
TRIES = 8
CLEAR_SECONDS = 4


class Race:
    """A disk full of data, at a moment that is held by a backup job with a scratch image."""

    def __init__(self, place: Path, held: ExitStack) -> None:
        image, boot, scratch = place / "disk.img", place / "boot.qcow2", place / "scratch.qcow2"
        self.content = os.urandom(SIZE)
        image.write_bytes(self.content)
        served = Served()
        held.callback(served.end)
        self.proxy = HeldNbd(place / "proxy", served.serve(image, "--discard=unmap", writable=True))
        held.callback(self.proxy.close)
        for name in (boot, scratch):
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(name), str(SIZE)], check=True)
        self.daemon = StorageDaemon(place, boot)
        held.callback(self.daemon.end)
        for command, words in (
            ("blockdev-add", {"driver": "nbd", "node-name": "far", "export": "disk", "discard": "unmap"}
                | {"server": {"type": "unix", "path": str(place / "proxy")}}),
            ("block-export-add", {"type": "nbd", "id": "vm", "node-name": "far", "name": "vm", "writable": True}),
            ("blockdev-add", {"driver": "qcow2", "node-name": "scratch", "backing": "far"}
                | {"file": {"driver": "file", "filename": str(scratch)}}),
            ("blockdev-backup", {"job-id": "moment", "device": "far", "target": "scratch", "sync": "none"}),
            ("block-export-add", {"type": "nbd", "id": "moment", "node-name": "scratch", "name": "moment"}),
        ):  # fmt: skip
            self.daemon.do(command, **words)
        self.address = NbdAddress("moment", socket=str(self.daemon.nbd))
        self.export = Export(self.address, ["base:allocation"])
        held.callback(self.export.close)

    def during(self, look: Callable[[], object]) -> bool:
        """Begin to look; the guest clears everything before the disk is looked at. Whether QEMU looked for holes."""
        self.proxy.hold.set()
        thread, until = threading.Thread(target=_quietly, args=[look]), time.monotonic() + SECONDS
        thread.start()
        while thread.is_alive() and not self.proxy.holds.is_set() and time.monotonic() < until:
            time.sleep(0.01)
        self.proxy.hold.clear()
        self._clear()
        self.proxy.let_go()
        thread.join(SECONDS)
        assert not thread.is_alive()
        return self.proxy.holds.is_set()

    def _clear(self) -> None:
        uri = f"nbd+unix:///vm?socket={self.daemon.nbd}"
        command = ["qemu-io", "-f", "raw", "-c", f"write -z 0 {SIZE}", uri]
        subprocess.run(command, check=True, timeout=CLEAR_SECONDS, capture_output=True)


def _quietly(look: Callable[[], object]) -> None:
    with suppress(SourceError):  # the daemon was ended
        look()


def raced(look: Callable[[Race], object]) -> tuple[Race, bool]:
    """A race while `look` runs, which is over; its daemon is gone. Whether QEMU looked for holes."""
    need_qemu()
    for _ in range(TRIES):
        # QEMU 7.2's own NBD client now and then hangs when an answer overtakes another: the guest then hangs, too.
        with TemporaryDirectory(prefix="dr") as folder, ExitStack() as held, suppress(subprocess.TimeoutExpired):
            race = Race(Path(folder), held)
            return race, race.during(partial(look, race))
    raise AssertionError("the guest hung each time")


def test_blocks_that_are_cleared_between_two_looks_count_as_data() -> None:
    found: list[Extent] = []

    def look(race: Race) -> None:
        found[:] = FrozenExport(race.address, race.export).allocated()

    _, looked = raced(look)
    assert looked, "QEMU did not look at the disk"
    assert sum(one.length for one in found) == SIZE, found


def test_what_is_cleared_while_it_is_read_is_read() -> None:
    buffer = bytearray(SIZE)
    race, _ = raced(lambda race: race.export.read_into(0, memoryview(buffer)))
    assert bytes(buffer) == race.content
