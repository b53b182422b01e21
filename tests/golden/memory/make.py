"""Makes the golden state directory: `python -m tests.golden.memory.make`, from the top of the sources.

It goes with a repository, whose packs are left out. Like a golden repository it is never made again once a release has
written its format: later versions must read exactly these files.
"""

from __future__ import annotations

import io
import lzma
import tarfile
import tempfile
from pathlib import Path

from lamella.base.trust import Clear
from lamella.stores.local.store import LocalStore
from tests.fault.resuming import World, small_steps
from tests.property.test_memory import live

GOLDEN = Path(__file__).parent / "state.tar.xz"


def write_repository(world: World, place: Path) -> None:
    """All objects but packs, in a directory."""
    store, source = LocalStore.open(place, create=True), world.memory.connect()
    for entry in source.list(""):
        if not entry.name.startswith("p/"):
            store.put(entry.name, Clear(source.get(entry.name)))
    store.sync()
    store.close()


def _lasting(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.name.startswith(("repository/tmp/", "repository/restore.py")) else member


def main() -> None:
    """Make the archive anew."""
    with tempfile.TemporaryDirectory() as name, small_steps():
        place = Path(name)
        world = live(place)
        write_repository(world, place / "repository")
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as archive:
            archive.add(world.host.state_dir, "state")
            archive.add(place / "repository", "repository", filter=_lasting)
        GOLDEN.write_bytes(lzma.compress(content.getvalue()))


if __name__ == "__main__":
    main()
