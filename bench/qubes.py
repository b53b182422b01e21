"""A qube of the shape qvm-backup was measured on: 4 GiB apparent, 512 MiB held, half of it random; `lamella qubes`.

python -m bench.qubes FOLDER

On a Btrfs of its own on a loop device below FOLDER (root), with a bench that speaks qubesd's protocol and keeps real
images. Beside it `gzip -6` of the same data, the lower bound of what qvm-backup does each time (tar, gzip, scrypt).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from pathlib import Path

from bench.measure import MIB, BenchError, Sample, run, settle
from bench.programs import lamella_command, module_path, tree_size
from lamella_kit import loop_fs
from lamella_kit.fake_qubesd import FakeQubesd

_SIZE = 4 << 30
_HELD = 512
_WORDS = [random.Random(3).randbytes(6).hex() for _ in range(5000)]


def _image(chance: random.Random) -> bytes:
    text = " ".join(chance.choices(_WORDS, k=_HELD // 2 * MIB // 13 + 1000)).encode()
    return text[: _HELD // 2 * MIB] + b"".join(chance.randbytes(MIB) for _ in range(_HELD // 2))


class Journey:
    """Runs `lamella qubes` as dom0 would."""

    def __init__(self, place: Path, system: FakeQubesd) -> None:
        place.mkdir()
        self._place = place
        key = place / "key"
        key.write_bytes(os.urandom(32))
        self._start = [*lamella_command(), "--keyfile", str(key), "--json"]
        self._env = {
            **os.environ,
            **module_path(),
            "LAMELLA_REPO": str(place / "repository"),
            "LAMELLA_QUBESD_SOCKET": str(system.place),
            "LAMELLA_STATE_DIR": str(place / "state"),
            "LAMELLA_CACHE_DIR": str(place / "cache"),
        }

    def run(self, *words: str) -> Sample:
        """One command."""
        settle()
        return run([*self._start, *words], self._env)

    def size(self) -> int:
        """Bytes of the repository."""
        return tree_size(self._place / "repository")[0]


def main(folder: Path) -> None:
    """Measure, and print a line for each step."""
    chance = random.Random(4)
    with (
        loop_fs.make("btrfs", size=8 << 30) as pool,
        FakeQubesd(folder / "run", {"varlibqubes": pool}, volume_size=_SIZE) as system,
    ):
        system.add("tpl", "TemplateVM", label="black")
        system.add("work", template="tpl", label="red")
        data = _image(chance)
        system.write("work", data, offset=MIB)
        os.sync()
        dense = folder / "dense"
        dense.write_bytes(data)
        zipped = run(["gzip", "-6", "-c", str(dense)])
        print(f"gzip -6 of the {_HELD} MiB: {zipped.wall:.1f} s, {zipped.cpu:.1f} CPU s")
        _steps(Journey(folder / "dom0", system), system, chance, zipped)


def _steps(journey: Journey, system: FakeQubesd, chance: random.Random, zipped: Sample) -> None:
    journey.run("init")
    before = journey.size()
    for number, step in enumerate(("full", "after a 4 MiB change", "running, 4 MiB newer", "no change")):
        if number in (1, 2):
            system.write("work", chance.randbytes(4 * MIB), offset=(100 + 50 * number) * MIB)
        if number == 1:
            system.start("work")
            system.stop("work")
        sample = journey.run("qubes", "backup", "work")
        said = json.loads(sample.output)
        row = next(one for one in said["volumes"] if one["volume"] == "work:private")
        after = journey.size()
        print(
            f"{step:22}{sample.wall:7.2f} s {sample.cpu:7.2f} CPU s,"
            f" {row['mode']}, {row['read_bytes'] / MIB:.1f} MiB read, {(after - before) / 1e6:.2f} MB written,"
            f" 1/{zipped.wall / sample.wall:.1f} of gzip's time"
        )
        before = after
        if number == 1:
            system.start("work")
    kept = _digest(system)
    system.stop("work")
    sample = journey.run("qubes", "restore", "work", "--overwrite")
    if _digest(system) != kept:
        raise BenchError("what was restored is not what was saved")
    print(f"{'restore and compare':22}{sample.wall:7.2f} s {sample.cpu:7.2f} CPU s")


def _digest(system: FakeQubesd) -> bytes:
    with system.live("work", "private").open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
