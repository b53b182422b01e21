"""The driver `lvm_thin` against the source contract, on real thin pools."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest
from _pytest.mark.structures import ParameterSet

from lamella.sources.base import Source
from lamella_kit.source_changes import CHANGES, SIZE
from lamella_kit.source_contract import SourceContract
from lamella_kit.source_reading import GRAIN, KIB, MIB
from tests.guest.lvm import EXTENT, Pool, ThinChanges, ThinVolume

TELLING = (
    "nothing",
    "one byte",
    "all of it with the same bytes",
    "shrunk within a chunk",
    "grown by data after a hole",
    "shrunk then filled again",
    "made anew under its name",
    "replaced by zeros",
)


def some(*names: str) -> list[ParameterSet]:
    """All changes as parameters; those not named are for the long run."""
    assert set(names) <= set(CHANGES)
    return [pytest.param(name, marks=[] if name in names else [pytest.mark.long]) for name in CHANGES]


class TestThin(SourceContract):
    sizes = (EXTENT, GRAIN, GRAIN + EXTENT, 3 * MIB + 12 * KIB)
    small_sizes = (EXTENT, GRAIN + EXTENT)

    @pytest.fixture(autouse=True)
    def _volume(self, pool: Pool) -> None:
        self.here = pool
        self.mine = pool.volume()

    # The names that are left to the long run do to a thin volume what others do already.
    @pytest.mark.parametrize("name", some("all of it", "shrunk to nothing", "made anew under its name"))
    def test_a_frozen_volume_does_not_change(self, name: str) -> None:
        super().test_a_frozen_volume_does_not_change(name)

    @pytest.mark.parametrize("name", some(*TELLING))
    def test_nothing_outside_a_delta_changed(self, name: str) -> None:
        super().test_nothing_outside_a_delta_changed(name)

    @pytest.mark.parametrize(
        "seed", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)]
    )
    def test_random_changes(self, seed: int) -> None:
        super().test_random_changes(seed)

    def bytes_read(self) -> int:
        """From the pool's data. What processes read counts for whoever started them, and LVM reads its own records."""
        device = Path("/dev/mapper/vg-pool_tdata").stat().st_rdev
        stat = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text("ascii")
        return int(stat.split()[2]) * 512  # Linux: block/stat.rst, sectors read

    def volume(self) -> ThinVolume:
        return self.mine

    def make_source(self, image: Path) -> Source:
        return self.here.source(image.name.removeprefix("vg-").replace("--", "-"))

    def changes(self, volume: object, chance: Random) -> ThinChanges:
        assert isinstance(volume, ThinVolume)
        volume.fill(chance.randbytes(SIZE // 2))
        return ThinChanges(volume, chance, SIZE)
