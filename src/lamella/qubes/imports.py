"""Replacing a qube's volume by qubesd's import: written beside, compared to the last byte, then taken or thrown away.

The old state stays as a revision of the volume. An import that was left open by a killed restore is closed first: some
pools refuse to start the qube until then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lamella.base.errors import LamellaError, SourceError
from lamella.base.events import Reporter
from lamella.memory.host import Host, HostMemory, Table
from lamella.operations.restore.restore import RestoreOptions, RestoreResult, plan_restore
from lamella.operations.shared.selection import Selected
from lamella.qubes.admin import Admin, Refused
from lamella.qubes.names import check_qube, check_volume
from lamella.repository.repository import Repository


class OpenImport(NamedTuple):
    """An import that was begun and not ended."""

    qube: str
    volume: str


class Imports:
    """The imports of this host. What is open is written down before it is opened."""

    def __init__(self, admin: Admin, host: Host) -> None:
        self._admin = admin
        self._open = Table(HostMemory(host, host.state_dir), "qubes-imports.json", tuple[OpenImport, ...])

    def close_left_open(self) -> list[str]:
        """Close what a killed restore left open; returns `QUBE:VOLUME` of each."""
        left = self._open.read()
        for qube, volume in left:
            try:
                check_qube(qube), check_volume(volume)
            except LamellaError:
                continue  # no such name was written by us
            self._end(qube, volume, b"fail\nthe restore was broken off")
        if left:
            self._open.change(lambda _: ())
        return [f"{qube}:{volume}" for qube, volume in left]

    def restore(
        self, repo: Repository, selected: Selected, qube: str, volume: str, reporter: Reporter, workers: int | None
    ) -> RestoreResult:
        """Write one volume. Until it was compared, nothing of the old state changes. Raises LamellaError."""
        plan_size = selected.snapshot.added.size
        with self._opened(qube, volume, plan_size) as path:
            device = path.is_block_device()
            options = RestoreOptions(workers, overwrite=device, in_place=not device)
            return plan_restore(repo, selected, path, options).execute(reporter)

    @contextmanager
    def _opened(self, qube: str, volume: str, size: int) -> Iterator[Path]:
        self._open.change(lambda rows: (*rows, OpenImport(qube, volume)))
        try:
            answer = self._admin.internal("internal.vm.volume.ImportBegin", qube, volume, str(size).encode("ascii"))
            yield _path(answer, qube)
        except BaseException:
            self._end(qube, volume, b"fail\nthe restore failed")
            self._forget(qube, volume)
            raise
        self._admin.internal("internal.vm.volume.ImportEnd", qube, volume, b"ok")
        self._forget(qube, volume)

    def _end(self, qube: str, volume: str, how: bytes) -> None:
        try:
            self._admin.internal("internal.vm.volume.ImportEnd", qube, volume, how)
        except (Refused, SourceError):
            return  # that the import failed is reported as an error: it is what was asked for

    def _forget(self, qube: str, volume: str) -> None:
        self._open.change(lambda rows: tuple(row for row in rows if row != (qube, volume)))


def _path(answer: bytes, qube: str) -> Path:
    size, _, path = answer.decode("utf-8", "backslashreplace").partition(" ")
    if not size.isdecimal() or not path.startswith("/"):
        raise SourceError("qubesd did not say where to write", obj=qube)
    return Path(path)
