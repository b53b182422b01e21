"""The driver `lvm_thin` against the source contract, on real thin pools."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from lamella.sources.base import Source
from lamella.testing.source_changes import SIZE
from lamella.testing.source_contract import SourceContract
from lamella.testing.source_reading import GRAIN, KIB, MIB
from tests.guest.lvm import EXTENT, Pool, ThinChanges, ThinVolume


class TestThin(SourceContract):
    sizes = (EXTENT, GRAIN, GRAIN + EXTENT, 3 * MIB + 12 * KIB)
    small_sizes = (EXTENT, GRAIN + EXTENT)

    @pytest.fixture(autouse=True)
    def _volume(self, pool: Pool) -> None:
        self.here = pool
        self.mine = pool.volume()

    def volume(self) -> ThinVolume:
        return self.mine

    def make_source(self, image: Path) -> Source:
        return self.here.source(image.name.removeprefix("vg-").replace("--", "-"))

    def changes(self, volume: object, chance: Random) -> ThinChanges:
        assert isinstance(volume, ThinVolume)
        volume.fill(chance.randbytes(SIZE // 2))
        return ThinChanges(volume, chance, SIZE)
