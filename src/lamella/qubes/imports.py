"""Replacing a qube's volume by qubesd's import: written beside, compared to the last byte, then taken or thrown away.

The old state stays as a revision of the volume. An import that was left open by a killed restore is closed first: some
pools refuse to start the qube until then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamella.base.errors import LamellaError, SourceError
from lamella.base.events import Reporter
from lamella.memory.host import Host, private_directory, write_durably
from lamella.operations.restore.restore import RestoreOptions, RestoreResult, plan_restore
from lamella.operations.shared.selection import Selected
from lamella.qubes.admin import Admin, Refused
from lamella.qubes.names import check_qube, check_volume
from lamella.repository.repository import Repository

_FILE = "qubes-imports.json"


class Imports:
    """The imports of this host. What is open is written down before it is opened."""

    def __init__(self, admin: Admin, host: Host) -> None:
        self._admin = admin
        self._path = host.state_dir / _FILE

    def close_left_open(self) -> list[str]:
        """Close what a killed restore left open; returns `QUBE:VOLUME` of each."""
        left = self._read()
        for name, volume in left:
            self._end(name, volume, b"fail\nthe restore was broken off")
        if left:
            self._write([])
        return [f"{name}:{volume}" for name, volume in left]

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
        self._write([*self._read(), (qube, volume)])
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
        self._write([row for row in self._read() if row != (qube, volume)])

    def _read(self) -> list[tuple[str, str]]:
        try:
            rows = json.loads(self._path.read_text("utf-8"))
            return [(check_qube(name), check_volume(volume)) for name, volume in rows]
        except (OSError, ValueError, TypeError, LamellaError):
            return []

    def _write(self, rows: list[tuple[str, str]]) -> None:
        private_directory(self._path.parent)
        write_durably(self._path, json.dumps(rows).encode("utf-8"))


def _path(answer: bytes, qube: str) -> Path:
    size, _, path = answer.decode("utf-8", "backslashreplace").partition(" ")
    if not size.isdecimal() or not path.startswith("/"):
        raise SourceError("qubesd did not say where to write", obj=qube)
    return Path(path)
