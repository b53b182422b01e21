"""A snapshot as a disk that a guest of this host may write to: what the guest writes is thrown away at the end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamella.base.errors import LamellaError
from lamella.base.events import Reporter
from lamella.operations.access import listening
from lamella.operations.access.disk import Disk
from lamella.operations.access.nbd_server import NbdServer, Served
from lamella.operations.access.overlay import thrown_away
from lamella.operations.access.view import Reading
from lamella.operations.shared.selection import Selected
from lamella.run.beside import Beside


@contextmanager
def exported(reading: Reading, selected: Selected, place: Path, reporter: Reporter) -> Iterator[str]:
    """The snapshot over NBD, with an unnamed overlay in the directory `place`; its URI. Raises LamellaError."""
    try:
        overlay = thrown_away(reading.view(selected), place)
    except OSError as error:
        raise LamellaError(f"cannot keep a guest's writes in {place}: {error.strerror}") from error
    try:
        with at_an_address(overlay, selected.text, reporter) as uri:
            yield uri
    finally:
        overlay.close()


@contextmanager
def at_an_address(disk: Disk, text: str, reporter: Reporter) -> Iterator[str]:
    """A disk over NBD, for as long as the block runs; its URI. `text` is how people call it. Raises LamellaError."""
    with (
        tempfile.TemporaryDirectory(prefix="lamella-nbd-") as folder,
        listening.at_path(Path(folder) / "disk") as (listener, uri),
    ):
        server = NbdServer(listener, Served(disk, "", text), reporter)
        thread = Beside(server.run, "lamella-nbd-listen")
        try:
            yield uri
        finally:
            server.stop()
            thread.join(5.0)
            server.close()
