"""What an incremental of 1 % costs where QEMU's dirty bitmap names it, read over NBD, beside the Btrfs driver.

The same image, and the same changes to it: through a device of QEMU, and in a file on Btrfs.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.measure import BenchError, Series
from bench.programs import Lamella, document
from bench.report import Target
from bench.waiting import ELSEWHERE, Monitor, fill, machine
from lamella_kit import loop_fs

_STRETCH = 64 * 1024
_BTRFS, _NBD = "1 %/Btrfs", "1 %/NBD"
_BOUND = 1.3


def measure(work: Path, repeats: int, size: int) -> dict[str, Series]:
    """A full backup each, then so many changes of 1 % and their backups. Raises BenchError."""
    series, chance = {_BTRFS: Series(), _NBD: Series()}, random.Random(1)
    with loop_fs.make("btrfs", size=2 * size + (1 << 30)) as pool, tempfile.TemporaryDirectory(dir=ELSEWHERE) as place:
        image = pool / "root.raw"
        fill(image, size)
        with machine(work, image) as monitor:
            lines = [
                (_BTRFS, Lamella(Path(place), folder="btrfs"), str(image)),
                (_NBD, Lamella(Path(place), folder="nbd"), f"qmp:{work / 'qmp'}"),
            ]
            for _, lamella, volume in lines:
                lamella.init()
                lamella.call("backup", volume)
            for _ in range(repeats):
                _change(monitor, image, Path(place) / "piece", chance)
                for key, lamella, volume in lines:
                    series[key].samples.append(sample := lamella.call("backup", volume))
                    row = document(sample)["volumes"][0]
                    if row["mode"] != "incremental":
                        raise BenchError(f"{key}: everything was read, {row}")
                    series[key].facts.setdefault("read", []).append(row["read_bytes"])
    return series


def _change(monitor: Monitor, image: Path, piece: Path, chance: random.Random) -> None:
    """Overwrite 1 % of both in stretches of 64 KiB."""
    blocks = image.stat().st_size // _STRETCH
    with image.open("r+b") as file:
        for block in chance.sample(range(blocks), max(1, blocks // 100)):
            content = os.urandom(_STRETCH)
            piece.write_bytes(content)
            command = f"write -s {piece} {block * _STRETCH} 64k"
            words = f'qemu-io -d /machine/peripheral/root/virtio-backend "{command}"'
            monitor.do("human-monitor-command", command_line=words)
            os.pwrite(file.fileno(), content, block * _STRETCH)
        os.fsync(file.fileno())


def targets(series: dict[str, Series]) -> Iterator[Target]:
    """CPU seconds of whole commands."""
    plain, ours = series[_BTRFS].cpu, series[_NBD].cpu
    text = f"{ours / plain:.2f} x ({ours:.2f} and {plain:.2f} s)"
    yield Target("an incremental of 1 % over NBD, CPU beside Btrfs", text, f"{_BOUND} x", ours <= _BOUND * plain)
