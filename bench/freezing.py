"""How long a running guest's disk stands still when a backup begins: `python -m bench.freezing --kernel KERNEL`.

Linux in QEMU, without KVM, writes blocks of 4 KiB past its cache, one after the other, and notes the longest gap
between two completed writes in each tenth of a second, by its own clock. The gap at a moment that Lamella makes is
shown beside the longest gap while nothing happens: what the processor of such a guest, a program among others, does
alone. No agent is asked. KERNEL and the initrd beside it are those of tools/guest_kernel.py.
"""

from __future__ import annotations

import argparse
import gzip
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.measure import MIB
from lamella.sources.base import Keeping
from lamella.sources.registry import open_kept_source

PROGRAM = "qemu-system-x86_64"
_TARGET_MS = 50.0
_OWNER = "0be0c400"
_ROOM_SECONDS = 0.4
"""Before and behind a moment: the gap lies in one of these tenths of a second."""
_WAIT_SECONDS = 120.0

_WRITER = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}
int main(int argc, char **argv) {
    int ends[2], fd = open("/dev/vda", O_RDWR | O_DIRECT);
    long blocks = atol(argv[1]) / 4096;
    char *block;
    if (fd < 0 || pipe(ends) || posix_memalign((void **)&block, 4096, 4096)) return 1;
    if (!fork()) {  /* the console is slow: another process waits for it */
        char text[4096];
        ssize_t count;
        while ((count = read(ends[0], text, sizeof text)) > 0) if (write(1, text, count) < 0) return 1;
        return 0;
    }
    fcntl(ends[1], F_SETFL, O_NONBLOCK);
    double last = now(), begun = last, longest = 0;
    for (unsigned long n = 1;; n++) {
        block[0] = n;
        if (pwrite(fd, block, 4096, (off_t)(n * 7919 % blocks) * 4096) != 4096) return 1;
        double t = now();
        if (t - last > longest) longest = t - last;
        last = t;
        if (t - begun >= 100) {
            char line[64];
            int length = snprintf(line, sizeof line, "GAP %.2f %lu.\n", longest, n);
            if (write(ends[1], line, length) < 0) {}
            begun = t, longest = 0;
        }
    }
}
"""

_INIT = """#!/bin/sh
B=/bin/busybox
$B mount -t devtmpfs dev /dev; $B mount -t proc proc /proc
for m in $($B cat /order); do $B insmod /modules/$m; done
exec /writer {size}
"""


def initrd(place: Path, kernel: Path, size: int) -> Path:
    """The initrd beside the kernel, with the writer instead of its own beginning."""
    tree = place / "tree"
    tree.mkdir()
    (place / "writer.c").write_text(_WRITER)
    subprocess.run(["gcc", "-O1", "-static", "-o", tree / "writer", place / "writer.c"], check=True)
    (tree / "init").write_text(_INIT.format(size=size))
    (tree / "init").chmod(0o755)
    done = subprocess.run(
        ["cpio", "-o", "-H", "newc"], cwd=tree, input=b"init\nwriter\n", capture_output=True, check=True
    )
    made = place / "initrd"
    made.write_bytes(kernel.with_name("initrd").read_bytes() + gzip.compress(done.stdout))
    return made


class Console:
    """What the guest has said."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def gaps(self) -> list[float]:
        """Milliseconds, one number for each tenth of a second."""
        text = self._path.read_text(errors="replace") if self._path.exists() else ""
        return [float(one) for one in re.findall(r"GAP ([0-9.]+) [0-9]+\.", text)]

    def wait_for(self, count: int) -> None:
        """Wait for so many of them."""
        until = time.monotonic() + _WAIT_SECONDS
        while len(self.gaps()) < count:
            if time.monotonic() > until:
                raise SystemExit(f"the guest does not write: {self._path.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)


def measure(place: Path, kernel: Path, moments: int, size: int) -> None:
    """Print the gaps at so many moments, and as many where nothing happens."""
    disk, qmp, console = place / "disk.qcow2", place / "qmp", Console(place / "console")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=full", disk, str(size)], check=True)
    words = [PROGRAM, "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "256", "-nodefaults"]
    words += ["-display", "none", "-kernel", str(kernel), "-initrd", str(initrd(place, kernel, size))]
    words += ["-append", "console=ttyS0 quiet panic=-1 mitigations=off", "-serial", f"file:{place / 'console'}"]
    words += ["-qmp", f"unix:{qmp},server=on,wait=off"]
    words += ["-blockdev", f"driver=qcow2,node-name=disk,file.driver=file,file.filename={disk}"]
    process = subprocess.Popen([*words, "-device", "virtio-blk-pci,drive=disk,id=root"], stdout=subprocess.DEVNULL)
    try:
        console.wait_for(50)
        quiet, frozen, taken = [], [], []
        for _ in range(moments):
            quiet.append(_longest(console, lambda: time.sleep(_ROOM_SECONDS)))
            started = time.perf_counter()
            frozen.append(_longest(console, lambda: _moment(place, qmp)))
            taken.append(time.perf_counter() - started)
    finally:
        process.kill()
        process.wait()
    for name, gaps in (("nothing happens", quiet), ("a moment is made", frozen)):
        print(f"{name}: longest gap {max(gaps):.1f} ms, median {statistics.median(gaps):.1f} ms of {moments}")
    more = statistics.median(frozen) - statistics.median(quiet)
    met = "met" if max(frozen) < _TARGET_MS else "missed"
    print(f"more by the moment, medians: {more:.1f} ms; longest {max(frozen):.1f} ms (target {_TARGET_MS:g} ms): {met}")


def _longest(console: Console, during: Callable[[], None]) -> float:
    """The longest gap while something is done, and in the time before and behind."""
    time.sleep(_ROOM_SECONDS)
    first = len(console.gaps())
    during()
    time.sleep(_ROOM_SECONDS)
    last = len(console.gaps())
    console.wait_for(last + 1)
    return max(console.gaps()[first : last + 1])


def _moment(place: Path, qmp: Path) -> None:
    """Hold a moment and read nothing."""
    keeping = Keeping(_OWNER, records=place / "records")
    with open_kept_source(f"qmp:{qmp}", "0" * 16, keeping).freeze():
        time.sleep(_ROOM_SECONDS)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", type=Path, required=True, help="vmlinuz that tools/guest_kernel.py made")
    parser.add_argument("-n", "--moments", type=int, default=20, help="moments (default 20)")
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="size of the disk (default 256)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lamella-freeze-") as folder:
        measure(Path(folder), args.kernel.absolute(), args.moments, args.size * MIB)


if __name__ == "__main__":
    main()
