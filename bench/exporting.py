"""What reading from an export costs, beside qemu-nbd on the plain image: one client, requests of 1 MiB and 4 KiB."""

from __future__ import annotations

import os
import random
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.images import Workload
from bench.measure import MIB, BenchError, Sample, Series
from bench.programs import Lamella
from bench.report import Target

_SECONDS = 60
_IN_FLIGHT = 8
_DECODED = 48 * MIB
"""Bytes that fit into the server's cache of decoded chunks."""
_RANDOM_READS = 2000
_REQUEST = struct.Struct(">IHHQQI")


class _Client:
    """Reads by simple replies, which cost a client nothing but the copying."""

    def __init__(self, place: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        until = time.monotonic() + _SECONDS
        while self._socket.connect_ex(str(place)):
            if time.monotonic() > until:
                raise BenchError(f"nobody serves at {place}")
            time.sleep(0.02)
        self._take(18)
        self._socket.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">III", 7, 6, 0) + b"\0\0")
        kind = 0
        while kind != 1:
            _, _, kind, length = struct.unpack(">QIII", self._take(20))
            content = self._take(length)
            if kind == 3 and content[:2] == b"\0\0":
                self.size: int = struct.unpack(">Q", content[2:10])[0]
        self._buffer = memoryview(bytearray(MIB))

    def _take(self, length: int) -> bytes:
        return self._socket.recv(length, socket.MSG_WAITALL) if length else b""

    def read(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Read these ranges in order, some of them asked for in advance."""
        asked = 0
        for number, (_, length) in enumerate(ranges):
            while asked < min(len(ranges), number + _IN_FLIGHT):
                self._socket.sendall(_REQUEST.pack(0x25609513, 0, 0, asked, *ranges[asked]))
                asked += 1
            head = self._take(16)
            if head[4:8] != bytes(4):
                raise BenchError("a read failed")
            if self._socket.recv_into(self._buffer, length, socket.MSG_WAITALL) != length:
                raise BenchError("the server has left")

    def close(self) -> None:
        """Leave."""
        self._socket.close()


def measure(work: Path, load: Workload, repeats: int) -> dict[str, Series]:
    """Back up once; then read everything, what is decoded, and 4 KiB at random. One series for each and server."""
    if shutil.which("qemu-nbd") is None:
        raise BenchError("qemu-nbd is missing")
    lamella = Lamella(work, folder="exporting")
    lamella.init()
    lamella.backup(load.dense)
    place = work / "nbd.sock"
    servers = {
        "qemu-nbd": ["qemu-nbd", "-r", "-t", "-f", "raw", "-k", str(place), str(load.dense)],
        "lamella": lamella.words("export", "disk", "--socket", place),
    }
    series = {f"{step}/{name}": Series() for step in ("all", "decoded", "4 KiB") for name in servers}
    ranges = [(start, MIB) for start in range(0, load.data_bytes - MIB + 1, MIB)]
    for number in range(repeats):
        print(f"  {number + 1}: exports", file=sys.stderr, flush=True)
        for name in servers if number % 2 else reversed(servers):
            with _serving(servers[name], lamella.env, place) as (client, process):
                _repeat(
                    client, process, ranges, {step: series[f"{step}/{name}"] for step in ("all", "decoded", "4 KiB")}
                )
    return series


@contextmanager
def _serving(
    words: Sequence[str], environment: Mapping[str, str], place: Path
) -> Iterator[tuple[_Client, subprocess.Popen[bytes]]]:
    process = subprocess.Popen(words, env=dict(environment), stdout=subprocess.DEVNULL)
    try:
        client = _Client(place)
        yield client, process
        client.close()
    finally:
        process.terminate()
        process.wait(_SECONDS)
        place.unlink(missing_ok=True)


def _repeat(
    client: _Client, process: subprocess.Popen[bytes], ranges: list[tuple[int, int]], series: Mapping[str, Series]
) -> None:
    total = sum(length for _, length in ranges)
    few = ranges[: max(1, _DECODED // MIB)]
    _timed(process, series["all"], total, lambda: client.read(ranges))
    client.read(few)
    times = 10
    _timed(process, series["decoded"], times * sum(length for _, length in few), lambda: client.read(few * times))
    moves, waits = random.Random(1), []

    def at_random() -> None:
        for _ in range(_RANDOM_READS):
            start, _ = moves.choice(ranges)
            before = time.perf_counter()
            client.read([(start + moves.randrange(MIB // 4096) * 4096, 4096)])
            waits.append(time.perf_counter() - before)

    _timed(process, series["4 KiB"], _RANDOM_READS * 4096, at_random)
    waits.sort()
    facts = series["4 KiB"].facts
    facts.setdefault("medians", []).append(statistics.median(waits))
    facts.setdefault("p99s", []).append(waits[len(waits) * 99 // 100])


def _timed(process: subprocess.Popen[bytes], one: Series, size: int, work: object) -> None:
    cpu, wall = _cpu_seconds(process.pid), time.perf_counter()
    assert callable(work)
    work()
    one.samples.append(Sample(time.perf_counter() - wall, _cpu_seconds(process.pid) - cpu, _peak(process.pid)))
    one.facts["bytes"] = size


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def targets(series: Mapping[str, Series]) -> Iterator[Target]:
    """What should hold on a quiet machine: bytes a second, and how long a guest waits for 4 KiB."""
    for step, bound in (("all", 0.8), ("decoded", 2.0)):
        one, plain = series[f"{step}/lamella"], series[f"{step}/qemu-nbd"]
        speed, cpu = one.facts["bytes"] / one.wall / 1e9, one.facts["bytes"] / one.cpu / 1e9
        text = f"{speed:.2f} GB/s, {cpu:.2f} GB for a CPU second of the server, {one.wall / plain.wall:.1f} x qemu-nbd"
        yield Target(f"export, {step}", text, f"{bound} GB/s", speed >= bound)
    facts = series["4 KiB/lamella"].facts
    middle, late = statistics.median(facts["medians"]) * 1e3, statistics.median(facts["p99s"]) * 1e3
    yield Target("export, 4 KiB at random, median", f"{middle:.2f} ms", "0.6 ms", middle < 0.6)
    yield Target("export, 4 KiB at random, 99 of 100", f"{late:.2f} ms", "5 ms", late < 5)
    peak = max(one.memory for key, one in series.items() if key.endswith("/lamella"))
    yield Target("export, peak memory", f"{peak / MIB:.0f} MiB", "200 MiB", peak <= 200 * MIB)
