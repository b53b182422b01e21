"""What the first file out of a snapshot costs: `python -m bench.single_files --kernel .guest/vmlinuz`.

An ext4 image of 4 GiB with files of this machine is backed up. Timed are a list and one file, each with a guest of its
own, and beside them a guest that mounts an empty file system of 16 MiB: what is more than that is Lamella's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.images import real_files
from bench.programs import lamella_command, module_path

_GIB, _MIB = 1 << 30, 1 << 20
_TARGET_SECONDS = 6.0
"""For the first file, without KVM, on a quiet machine."""


def timed(environment: dict[str, str], *words: str) -> tuple[float, float]:
    """Run Lamella's command; seconds by the clock, and of the processors, the guest's among them."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    env = {**os.environ, **module_path(), **environment}
    subprocess.run([*lamella_command(), *words], env=env, check=True, capture_output=True)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def image(place: Path, size: int, data_bytes: int) -> None:
    """An ext4 file system with this much of real files."""
    folder = place.with_suffix(".files")
    folder.mkdir()
    (folder / "letter").write_text("dear")
    if data_bytes:
        for number, (source, _) in enumerate(real_files(data_bytes)):
            (folder / f"file-{number:06}").write_bytes(source.read_bytes())
    with place.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", folder, place], check=True)


def measure(place: Path, kernel: str, repeats: int, *, kvm: bool) -> None:
    """Print the figures."""
    (place / "key").write_bytes(os.urandom(32))
    (place / "key").chmod(0o600)
    environment = {
        "LAMELLA_REPO": str(place / "repository"),
        "LAMELLA_STATE_DIR": str(place / "state"),
        "LAMELLA_CACHE_DIR": str(place / "cache"),
        "LAMELLA_CONFIG": str(place / "none"),
    }
    options = ("--keyfile", str(place / "key"), "-q")
    image(place / "large.img", 4 * _GIB, 600 * _MIB)
    image(place / "small.img", 16 * _MIB, 0)
    timed(environment, *options, "init")
    timed(environment, *options, "backup", str(place / "large.img"), str(place / "small.img"))
    (place / "state").mkdir(exist_ok=True)
    if not kvm:
        (place / "state" / "guest-without-kvm").touch()
    words = {
        "list_of_small": ("files", "list", "small", "--kernel", kernel),
        "list": ("files", "list", "large", "--kernel", kernel),
        "first_file": ("files", "get", "large", "letter", "--kernel", kernel, "--to"),
    }
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in words}
    timed(environment, *options, *words["list_of_small"])  # keeps the uncompressed kernel
    for number in range(repeats):
        for name, command in words.items():
            target = (str(place / f"out-{number}"),) if command[-1] == "--to" else ()
            figures[name].append(timed(environment, *options, *command, *target))
    shown = {
        name: {"seconds": round(statistics.median(s for s, _ in rows), 2),
               "cpu_seconds": round(statistics.median(c for _, c in rows), 2)}
        for name, rows in figures.items()
    }  # fmt: skip
    ratio = shown["first_file"]["cpu_seconds"] / shown["list_of_small"]["cpu_seconds"]
    print(json.dumps({**shown, "first_file_ratio_to_small": round(ratio, 2)}, indent=2))
    print(f"first file: {shown['first_file']['seconds']} s, target {_TARGET_SECONDS} s without KVM on a quiet machine")


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.single_files", description=__doc__)
    parser.add_argument("--kernel", required=True, help="the guest's kernel, with lib/modules beside it")
    parser.add_argument("-n", "--repeats", type=int, default=3)
    parser.add_argument("--kvm", action="store_true", help="with KVM, if it answers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir="/var/tmp") as folder:
        measure(Path(folder), args.kernel, args.repeats, kvm=args.kvm)
    return 0


if __name__ == "__main__":
    sys.exit(main())
