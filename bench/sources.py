"""Reading volumes: NBD beside nbdcopy, and the page cache before and after a backup.

`python -m bench.sources URI` reads an export to its end.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.measure import MIB, BenchError, Series, run
from bench.report import Target
from lamella.sources.page_cache import PageCache
from lamella.sources.registry import open_source

_PIECE = 4 * MIB
_BOUND_NBD = 0.9
_OTHERS = 64 * MIB


def read_all(uri: str) -> None:
    """Read all of a source with one thread for each processor this process may use; prints the seconds."""
    workers = len(os.sched_getaffinity(0))
    source = open_source(uri, machine="0" * 16)
    started = time.perf_counter()
    with source.freeze() as frozen, ThreadPoolExecutor(workers) as pool:

        def share(number: int) -> None:
            view = memoryview(bytearray(_PIECE))
            for offset in range(number * _PIECE, frozen.size, workers * _PIECE):
                frozen.read_into(offset, view[: min(_PIECE, frozen.size - offset)])

        list(pool.map(share, range(workers)))
    print(time.perf_counter() - started)


def measure(work: Path, repeats: int, size: int) -> dict[str, Series]:
    """Both figures, for an image of `size` bytes that nothing can compress. Raises BenchError."""
    image = work / "image"
    with image.open("wb") as file:
        for _ in range(-(-size // _PIECE)):
            file.write(random.randbytes(_PIECE))
        os.fsync(file.fileno())
    series = {"nbd/nbdcopy": Series(), "nbd/lamella": Series(), "cache/lamella": Series()}
    with _served(image, work / "nbd.sock") as uri:
        for _ in range(repeats):
            series["nbd/nbdcopy"].samples.append(run(["nbdcopy", uri, "null:"]))
            read = run([sys.executable, "-m", "bench.sources", uri])
            # The start of the interpreter and of Lamella is measured elsewhere.
            series["nbd/lamella"].samples.append(replace(read, wall=float(read.output)))
    for number in range(repeats):
        _cache(work, image, series["cache/lamella"], number)
    return series


def _cache(work: Path, image: Path, series: Series, number: int) -> None:
    """A backup of an image of which nothing is in memory, beside another file that is."""
    others, key, repo = work / "others", work / "key", work / f"repo{number}"
    key.write_bytes(bytes(32))
    key.chmod(0o600)
    others.write_bytes(random.randbytes(_OTHERS))
    command: list[str | Path] = [sys.executable, "-m", "lamella", "-q", "-r", repo, "--keyfile", key]
    run([*command, "init"])
    with image.open("rb") as file, others.open("rb") as other:
        os.fsync(other.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = _resident(other.fileno()), _resident(file.fileno())
        series.samples.append(run([*command, "backup", image]))
        after = _resident(other.fileno()), _resident(file.fileno())
    series.facts = {"others": f"{before[0] / MIB:.0f} to {after[0] / MIB:.0f} MiB", "image": after[1] - before[1]}


def _resident(fd: int) -> int:
    """Bytes of a file that are in memory."""
    size = os.fstat(fd).st_size
    cache = PageCache(fd, size)
    found = sum(page & 1 for page in cache.resident(0, size)) * os.sysconf("SC_PAGESIZE")
    cache.close()
    return found


@contextmanager
def _served(image: Path, place: Path) -> Iterator[str]:
    command = ["qemu-nbd", "--read-only", "--persistent", "--shared=0", "-f", "raw", "-x", "disk", "-k", place, image]
    try:
        server = subprocess.Popen([str(word) for word in command])
    except OSError as reason:
        raise BenchError(f"cannot run qemu-nbd: {reason.strerror}") from reason
    try:
        while not place.exists() and server.poll() is None:
            time.sleep(0.05)
        yield f"nbd+unix:///disk?socket={place}"
    finally:
        server.kill()
        server.wait()


def targets(series: Mapping[str, Series]) -> Iterator[Target]:
    """What this machine shows of the bounds."""
    speed = series["nbd/nbdcopy"].wall / series["nbd/lamella"].wall
    yield Target("reading NBD, x nbdcopy to null:", f"{speed:.2f}", f"at least {_BOUND_NBD}", speed >= _BOUND_NBD)
    facts = series["cache/lamella"].facts
    first, _, last = str(facts["others"]).partition(" MiB")[0].partition(" to ")
    yield Target("cached bytes of another file", str(facts["others"]), "the same", first == last)
    yield Target("bytes of the image left in the cache", str(facts["image"]), "0", facts["image"] == 0)


if __name__ == "__main__":
    read_all(sys.argv[1])
