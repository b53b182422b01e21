"""What any program has to do at least, as programs of their own: `python -m bench.plain WORK FILE`, see WORK.

One thread for each processor this process may use takes pieces of 4 MiB; nothing is kept. The hash programs make one
keyed digest for each 128 KiB, as a backup that compares chunks must.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_PIECE = 4 << 20
_CHUNK = 128 << 10
_KEY = bytes(32)


def _nothing(content: memoryview) -> None:
    pass


def _sha256(content: memoryview) -> None:
    for start in range(0, len(content), _CHUNK):
        hmac.digest(_KEY, content[start : start + _CHUNK], "sha256")


def _blake2b(content: memoryview) -> None:
    for start in range(0, len(content), _CHUNK):
        hashlib.blake2b(content[start : start + _CHUNK], key=_KEY, digest_size=24).digest()


WORK: dict[str, Callable[[memoryview], None]] = {"read": _nothing, "hash-sha256": _sha256, "hash-blake2b": _blake2b}


def run(work: Callable[[memoryview], None], path: Path) -> None:
    """Read all of a file and do `work` on each piece."""
    workers = len(os.sched_getaffinity(0))
    descriptor = os.open(path, os.O_RDONLY)
    size = os.fstat(descriptor).st_size

    def share(number: int) -> None:
        view = memoryview(bytearray(_PIECE))
        for offset in range(number * _PIECE, size, workers * _PIECE):
            work(view[: os.preadv(descriptor, [view], offset)])

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(share, range(workers)))
    os.close(descriptor)


if __name__ == "__main__":
    run(WORK[sys.argv[1]], Path(sys.argv[2]))
