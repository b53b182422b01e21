"""How long a guest's writes wait while its disk is backed up: beside the same moment with nobody reading.

A machine of QEMU that stands still has one disk; writes of 4 KiB go through its device, one at a time, as a guest's
would. QEMU copies each block before it is overwritten, whoever reads: what counts is what a backup to a slow
destination adds to that.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.measure import MIB, BenchError, Sample, Series, run
from bench.programs import Lamella
from bench.report import Target
from lamella.sources.base import Keeping
from lamella.sources.registry import open_kept_source

PROGRAM = "qemu-system-x86_64"
_RATE = 10 * 1000 * 1000
"""Bytes a second that the destination takes."""
ELSEWHERE = "/dev/shm"
"""For a repository, which is not on the disk of the guest."""
_WRITES_A_SECOND = 100
_SECONDS = 60
_OWNER = "0be0c400"
_IDLE, _BACKUP, _AT_LEISURE = "waits/nobody reads", "waits/backup", "waits/backup, chrt -i 0"
_WAYS: Mapping[str, tuple[str, ...]] = {_BACKUP: (), _AT_LEISURE: ("chrt", "-i", "0")}
"""What stands before the command: sched(7), SCHED_IDLE, under which others never wait for its turn to end."""
_P99, _WORST = 1.3, 0.5


class Monitor:
    """A QMP client of our own, beside that of Lamella."""

    def __init__(self, place: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        until = time.monotonic() + _SECONDS
        while self._socket.connect_ex(str(place)):
            if time.monotonic() > until:
                raise BenchError("QEMU does not answer")
            time.sleep(0.02)
        self._lines = self._socket.makefile("rwb")
        self._lines.readline()
        self.do("qmp_capabilities")

    def do(self, command: str, **arguments: str) -> Any:  # noqa: ANN401 - whatever QMP gives
        words = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._lines.write(json.dumps({"execute": command, "arguments": words}).encode() + b"\n")
        self._lines.flush()
        while True:
            answer = json.loads(self._lines.readline())
            if "error" in answer:
                raise BenchError(f"QEMU: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]


class _Guest:
    """Writes until `stop`, and notes how long each write took."""

    def __init__(self, monitor: Monitor, size: int) -> None:
        self._monitor, self._blocks = monitor, size // 4096
        self._stop = threading.Event()
        self.waits: list[float] = []
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        chance, pause = random.Random(1), 1 / _WRITES_A_SECOND
        while not self._stop.wait(pause):
            offset = chance.randrange(self._blocks) * 4096
            command = (
                f'qemu-io -d /machine/peripheral/root/virtio-backend "write -P {chance.randrange(1, 255)} {offset} 4k"'
            )
            before = time.perf_counter()
            self._monitor.do("human-monitor-command", command_line=command)
            self.waits.append(time.perf_counter() - before)

    def stop(self) -> list[float]:
        self._stop.set()
        self._thread.join(_SECONDS)
        return self.waits


def fill(raw: Path, size: int) -> None:
    """Make a file of random bytes."""
    with raw.open("wb") as file:
        for _ in range(-(-size // MIB)):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())


@contextmanager
def machine(place: Path, raw: Path) -> Iterator[Monitor]:
    """QEMU with one disk, its device `root`, which holds at first what `raw` does; `qmp` in `place` is for Lamella.

    Raises BenchError.
    """
    if shutil.which(PROGRAM) is None:
        raise BenchError(f"{PROGRAM} is missing")
    image = place / "root.qcow2"
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image])
    words = [PROGRAM, "-M", "q35", "-accel", "tcg", "-S", "-m", "64", "-nodefaults", "-display", "none"]
    for name in ("qmp", "own"):
        words += ["-qmp", f"unix:{place / name},server=on,wait=off"]
    node = f"driver=qcow2,node-name=node,file.driver=file,file.filename={image},file.cache.direct=on,cache.direct=on"
    process = subprocess.Popen(
        [*words, "-blockdev", node, "-device", "virtio-blk-pci,drive=node,id=root"], stdout=subprocess.DEVNULL
    )
    try:
        yield Monitor(place / "own")
    finally:
        process.kill()
        process.wait()


def measure(work: Path, repeats: int, size: int) -> dict[str, Series]:
    """In turns: a moment that nobody reads, and a backup; a disk of `size` bytes. Raises BenchError."""
    series = {key: Series() for key in (_IDLE, *_WAYS)}
    fill(work / "root.raw", size)
    with machine(work, work / "root.raw") as monitor:
        for number in range(repeats):
            print(f"  {number + 1}: a guest's writes", file=sys.stderr, flush=True)
            # The destination is another machine's disk, and not that of the guest.
            with tempfile.TemporaryDirectory(dir=ELSEWHERE) as elsewhere:
                lamella = Lamella(Path(elsewhere), folder="waiting")
                for key in [*series][:: 1 if number % 2 else -1]:
                    if key in _WAYS:
                        lamella.init()
                    guest, started = _Guest(monitor, size), time.perf_counter()
                    if key in _WAYS:
                        _backup(lamella, work, _WAYS[key])
                    else:
                        _moment(work, size / _RATE)
                    _note(series[key], guest.stop(), time.perf_counter() - started)
    return series


def _backup(lamella: Lamella, work: Path, before: tuple[str, ...]) -> None:
    words = (*before, *lamella.words("backup", "--limit-rate", str(_RATE), f"qmp:{work / 'qmp'}"))
    if before and shutil.which(before[0]) is None:
        raise BenchError(f"{before[0]} is missing")
    if subprocess.run(words, env=dict(lamella.env), stdout=subprocess.DEVNULL, check=False).returncode:
        raise BenchError("the backup failed")


def _moment(work: Path, seconds: float) -> None:
    """Hold a moment and read nothing."""
    keeping = Keeping(_OWNER, records=work / "records")
    with open_kept_source(f"qmp:{work / 'qmp'}", "0" * 16, keeping).freeze():
        time.sleep(seconds)


def _note(series: Series, waits: list[float], wall: float) -> None:
    waits.sort()
    series.samples.append(Sample(wall, 0.0, 0))
    series.facts.setdefault("p99", []).append(waits[len(waits) * 99 // 100])
    series.facts.setdefault("worst", []).append(waits[-1])
    series.facts.setdefault("median", []).append(statistics.median(waits))


def targets(series: Mapping[str, Series]) -> Iterator[Target]:
    """What a guest may lose by a slow destination."""
    idle, backup = (series[key].facts for key in (_IDLE, _BACKUP))
    plain = statistics.median(idle["p99"])
    for key, words in _WAYS.items():
        slow = statistics.median(series[key].facts["p99"])
        said = f"{slow * 1e3:.1f} ms, {slow / plain:.2f} x that with nobody reading"
        name = " ".join((*words, "a guest's write during a backup to 10 MB/s, p99"))
        yield Target(name, said, f"{_P99} x", slow <= _P99 * plain)
    worst, other = max(backup["worst"]), max(idle["worst"])
    said = f"{worst * 1e3:.0f} ms ({other * 1e3:.0f} ms with nobody reading)"
    yield Target("the longest wait of such a write, beginning of the moment included", said, "500 ms", worst <= _WORST)
