"""Sources whose volume is not there before it is read: streams, and trees of files."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lamella.operations.backup.read import Attempts
    from lamella.operations.backup.stages import Frozen, Read, Way


def read_unfrozen(attempts: Attempts, frozen: Frozen, way: Way) -> Read:
    """Read such a source. Raises SourceError, IntegrityError, StoreError."""
    if frozen.plan.driver == "stream":
        from lamella.operations.backup.stream import read_stream

        return read_stream(attempts, frozen, way)
    from lamella.operations.backup.files import read_files

    return read_files(attempts, frozen, way)
