"""One moment of several disks of a QEMU, and the export that shows it.

One transaction does for each disk: start a new bitmap; from now on copy what the guest is about to overwrite into a
scratch image whose backing file is the disk (`blockdev-backup` with `sync=none`); copy our older bitmaps to the
scratch image. QEMU does these in this order and writes nothing to the disk between the last two, so each bitmap holds
what it must, or more (docs/decisions/0054). The scratch image is then exported with the copies: no bitmap that goes on
recording is read, and an older bitmap stays good when this run fails.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from lamella.base.errors import SourceError
from lamella.run.beside import Beside
from lamella.sources.qmp import scratch
from lamella.sources.qmp.agent import frozen
from lamella.sources.qmp.disks import GRANULARITY, QemuDisk, StartedBitmap
from lamella.sources.qmp.leftovers import clean
from lamella.sources.qmp.wire import Qmp, QmpRefused

_WATCH_SECONDS: Final = 0.25
_JOIN_SECONDS: Final = 90.0
_CREATE_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.002
_ALIVE: Final = frozenset({"running", "paused", "ready", "standby"})
_NO_ROOM: Final = "its scratch space is full, so the moment was given up"
_POLICY: Final = "on-cbw-error"
_LOOSE: Final = {"discard": "unmap", "cache": {"no-flush": True}}
"""A scratch image is worth nothing after a crash. QEMU flushes what it closes, and its guest stands still meanwhile."""


class HeldDisk:
    """One disk within the moment."""

    def __init__(self, disk: QemuDisk, name: str, older: Sequence[str]) -> None:
        self.disk = disk
        self.older = tuple(older)
        """The bitmaps that the export shows as they were at the moment."""
        self.bitmap = ""
        """The bitmap that was started at the moment."""
        self.kept = False
        self.scratch, self.file, self.job, self.export = (name + letter for letter in "sfje")

    @property
    def token(self) -> StartedBitmap:
        """The bitmap that was started at the moment, as the ledger names it."""
        return StartedBitmap(self.bitmap, GRANULARITY, self.disk.size)


def _usable(disk: QemuDisk, prefix: str) -> list[str]:
    return [one.name for one in disk.named(prefix) if not one.fault and one.granularity == GRANULARITY]


class Moment:
    """Disks held still until `end`. Raises SourceError, and nothing is left then."""

    def __init__(
        self, qmp: Qmp, prefix: str, disks: Sequence[QemuDisk], place: Path, agent: tuple[str, Path | None]
    ) -> None:
        self._qmp = qmp
        self._prefix = prefix
        self.quiesced = False
        """Whether the guest's file systems were frozen at the moment."""
        self._broken = ""
        self._server = False
        self._held = ExitStack()
        self._scratches: list[int] = []
        self._stop = threading.Event()
        self._watch: Beside | None = None
        run = os.urandom(3).hex()
        self.parts = {
            disk.name: HeldDisk(disk, f"{prefix}{run}{number:02x}", _usable(disk, prefix))
            for number, disk in enumerate(disks)
        }
        try:
            self._begin(place, agent)
        except BaseException:
            self.end()
            raise
        self._watch = Beside(self._watched, "lamella-scratch")

    def _begin(self, place: Path, agent: tuple[str, Path | None]) -> None:
        for part in self.parts.values():
            self._make_scratch(part, place)
        self._serve()
        for part in self.parts.values():
            part.bitmap = self._prefix + os.urandom(8).hex()
        with frozen(*agent) as held:
            self._transact()
        self.quiesced = bool(held and held[0])
        for part in self.parts.values():
            export = {"type": "nbd", "id": part.export, "node-name": part.scratch, "name": part.disk.name}
            self._qmp.do("block-export-add", {**export, "bitmaps": list(part.older)})

    def _make_scratch(self, part: HeldDisk, place: Path) -> None:
        handle = scratch.open_scratch(place)
        self._scratches.append(handle)
        try:
            number = self._qmp.do("add-fd", {"opaque": part.file}, handle)["fdset-id"]
        except QmpRefused as error:
            hint = "export its disks and name them as nbd+unix:///EXPORT?socket=PATH"
            raise SourceError(f"{error.message}: it takes no descriptors", obj=error.obj, hint=hint) from error
        file = {"node-name": part.file, "driver": "file", "filename": f"/dev/fdset/{int(number)}"}
        self._qmp.do("blockdev-add", {**file, **_LOOSE})
        options = {"driver": "qcow2", "file": part.file, "size": part.disk.size}
        self._qmp.do("blockdev-create", {"job-id": part.job, "options": options})
        self._created(part.job)
        node = {"node-name": part.scratch, "driver": "qcow2", "file": part.file, "backing": part.disk.node}
        self._qmp.do("blockdev-add", {**node, **_LOOSE})

    def _created(self, job: str) -> None:
        until = time.monotonic() + _CREATE_SECONDS
        while True:
            row = next((row for row in self._qmp.rows("query-jobs") if row.get("id") == job), {})
            if row.get("status") == "concluded":
                break
            if time.monotonic() > until:
                raise SourceError("QEMU does not come to an end making a scratch image")
            time.sleep(_LOOK_SECONDS)
        self._qmp.do("job-dismiss", {"id": job})
        if row.get("error"):
            raise SourceError(f"QEMU cannot make a scratch image: {row['error']}")

    def _serve(self) -> None:
        """Let QEMU serve NBD on a socket that we made: no path has to be open to QEMU's user."""
        folder = self._held.enter_context(tempfile.TemporaryDirectory(prefix="lamella-"))
        self.socket = f"{folder}/nbd"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(self.socket)
            listener.listen(64)
            name = f"{self._prefix}nbd"
            self._qmp.do("getfd", {"fdname": name}, listener.fileno())
        try:
            address = {"type": "fd", "data": {"str": name}}
            self._qmp.do("nbd-server-start", {"addr": address, "max-connections": 0})
        except QmpRefused as error:
            hint = "another backup may be at work; QEMU serves NBD for one program at a time"
            raise SourceError(error.message, obj=error.obj, hint=hint) from error
        self._server = True

    def _transact(self) -> None:
        try:
            self._qmp.do("transaction", {"actions": self._actions({_POLICY: "break-snapshot"})})
        except QmpRefused as error:
            if _POLICY not in error.message:
                raise
            # QEMU before 10.1 fails the guest's write if the scratch is full: `_watched` gives the moment up before.
            self._qmp.do("transaction", {"actions": self._actions({})})

    def _actions(self, policy: dict[str, str]) -> list[dict[str, object]]:
        actions: list[dict[str, object]] = []

        def add(kind: str, **data: object) -> None:
            named = {key.replace("_", "-"): value for key, value in data.items()}
            actions.append({"type": kind, "data": named})

        for part in self.parts.values():
            disk, grid = part.disk, GRANULARITY
            start = "block-dirty-bitmap-add"
            add(start, node=disk.node, name=part.bitmap, granularity=grid, persistent=disk.lasting)
            job = {"job-id": part.job, "device": disk.node, "target": part.scratch, "filter-node-name": part.job}
            actions.append({"type": "blockdev-backup", "data": {**job, "sync": "none", **policy}})
            for name in part.older:
                add(start, node=part.scratch, name=name, granularity=grid, disabled=True)
                source = [{"node": disk.node, "name": name}]
                add("block-dirty-bitmap-merge", node=part.scratch, target=name, bitmaps=source)
        return actions

    # -- while it is read ---------------------------------------------------------------------------------------------

    def check(self, part: HeldDisk) -> None:
        """Raises SourceError unless the disk has been held still until now."""
        rows = {row.get("id"): row for row in self._qmp.rows("query-jobs")}
        row = rows.get(part.job, {})
        if self._broken or row.get("status") not in _ALIVE or row.get("error"):
            why = self._broken or row.get("error") or "somebody ended the job that holds it still"
            raise SourceError(f"the disk {part.disk.name} moved while it was read: {why}", obj=part.disk.name)

    def _watched(self) -> None:
        """Give the moment up before its scratch space is full."""
        while not self._stop.wait(_WATCH_SECONDS):
            if scratch.scarce(self._scratches[0]):
                self._broken = _NO_ROOM
                with suppress(SourceError):
                    clean(self._qmp, self._prefix)
                    self._empty()
                return

    def _empty(self) -> None:
        for handle in self._scratches:
            with suppress(OSError):
                os.ftruncate(handle, 0)

    # -- the end ------------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Leave nothing behind but the bitmaps that are kept; what QEMU does not let go of, the next run removes."""
        self._stop.set()
        if self._watch is not None:
            self._watch.join(_JOIN_SECONDS)
        with self._held:
            with suppress(SourceError):
                self._drop_unkept()
                clean(self._qmp, self._prefix, self._server)
                self._empty()  # QEMU closes its copy late if the machine is paused
            for handle in self._scratches:
                os.close(handle)

    def _drop_unkept(self) -> None:
        for part in self.parts.values():
            if part.bitmap and not part.kept:
                with suppress(QmpRefused):
                    self._qmp.do("block-dirty-bitmap-remove", {"node": part.disk.node, "name": part.bitmap})
