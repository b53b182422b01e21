"""Make the wyng archives of tests/imports/wyng with the real wyng, and what wyng restores from each session.

    python -m tests.imports.make_wyng_archives WYNG OUT

as root, with mkfs.btrfs, and with a Python that has `Cryptodome` and `zstd`. WYNG is the program of wyng-backup 0.8
(made with tag v0.8rc4); it is no part of this project. OUT gets one `.tar.xz` an archive, and `expected.json`: the
SHA-256 and the size of every volume of every session as `wyng receive --save-to` wrote it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNK = 1 << 16
PASSPHRASE = "a wyng passphrase"


def write(path: Path, seed: int, size: int) -> None:
    """Make a volume, or change some of it: chunks of a word with a random end, zeros, and holes that stay."""
    numbers, new = random.Random(seed), not path.exists()
    with path.open("w+b" if new else "r+b") as file:
        file.truncate(size)
        for start in range(0, size, CHUNK):
            if numbers.random() > (0.5 if new else 0.25):
                continue
            length = min(CHUNK, size - start)
            word, end = b"%016x" % numbers.getrandbits(64), numbers.randbytes(24)
            content = bytes(length) if numbers.random() < 0.15 else (word * (CHUNK // 16) + end)[-length:]
            file.seek(start)
            file.write(content)


class Wyng:
    """The program, with an archive and a Btrfs subvolume of volumes. Each run is a second after the one before."""

    def __init__(self, program: Path, place: Path, name: str) -> None:
        self.archive, self.volumes, self._place, self._program = place / name, place / "mnt" / name, place, program
        subprocess.run(["btrfs", "-q", "subvolume", "create", self.volumes], check=True)

    def run(self, action: str, *words: str, zone: str = "UTC0", may_fail: bool = False) -> str:
        """Run an action; the empty text if it `may_fail` and does."""
        time.sleep(1.1)
        program = [self._program] if os.access(self._program, os.X_OK) else [sys.executable, self._program]
        command = [*map(str, program), action, *words, f"--dest=file:{self.archive}", "-u"]
        options = [f"--local={self.volumes}", f"--meta-dir={self._place}/meta", f"--passcmd=printf '%s' '{PASSPHRASE}'"]
        env = {**os.environ, "TZ": zone, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run([*command, *options, "--authmin=0"], env=env, capture_output=True, text=True, check=False)
        if done.returncode and may_fail:
            return ""
        if done.returncode:
            raise SystemExit(f"wyng {action} {words}: {done.stdout} {done.stderr}")
        return str(done.stdout)

    def volume(self, name: str, seed: int, size: int) -> None:
        """Make or change a volume."""
        (self.volumes / name).parent.mkdir(exist_ok=True)
        write(self.volumes / name, seed, size)

    def restored(self) -> dict[str, dict[str, list[object]]]:
        """SHA-256 and size of what wyng restores, by volume and session."""
        listed = self.run("list", "--json")
        volumes = json.loads(listed[listed.index("{") :])["volumes"]
        found: dict[str, dict[str, list[object]]] = {}
        for name, volume in volumes.items():
            found[name] = {}
            for session in volume["sessions"]:
                target = self._place / "restored"
                done = self.run("receive", name, f"--session={session[2:]}", f"--save-to={target}", may_fail=True)
                # Of a volume that grew from within a chunk, wyng 0.8rc4 does not always save that chunk again.
                sha256 = hashlib.sha256(target.read_bytes()).hexdigest() if done else None
                found[name][session] = [sha256, volume["sessions"][session]["volsize"]]
                target.unlink()
        return found


@contextmanager
def file_system(size: int = 512 << 20) -> Iterator[Path]:
    """A directory with a Btrfs of `size` bytes below `mnt`."""
    with tempfile.TemporaryDirectory(prefix="wyng-") as folder:
        place = Path(folder)
        (place / "mnt").mkdir()
        (place / "meta").mkdir()
        with (place / "fs.img").open("wb") as image:
            image.truncate(max(size, 512 << 20))
        subprocess.run(["mkfs.btrfs", "-q", place / "fs.img"], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", place / "fs.img", place / "mnt"], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", place / "mnt"], check=True)


def plain(wyng: Wyng) -> None:
    """Deduplicated, resized in both directions, pruned, renamed, tagged, and with the hour that comes twice a year."""
    wyng.run("arch-init", "--encrypt=off", "--chunk-factor=1")
    wyng.volume("disk.img", 1, 1_000_000)
    wyng.volume("home/data.img", 2, 400_000)
    wyng.run("send", "disk.img", "home/data.img", "--tag=first,the first one", zone="EAST-2")
    wyng.volume("disk.img", 3, 1_000_000)
    wyng.run("send", "disk.img", "home/data.img", zone="EAST-1")  # an hour earlier by its name
    wyng.volume("disk.img", 4, 1_500_001)
    wyng.volume("home/data.img", 5, 400_000)
    wyng.run("send", "disk.img", "home/data.img", "--dedup")
    wyng.volume("disk.img", 6, 700_000)
    (wyng.volumes / "copy.img").write_bytes((wyng.volumes / "disk.img").read_bytes())
    wyng.run("send", "disk.img", "copy.img", "--dedup", "--tag=copied")
    wyng.volume("disk.img", 7, 1_200_000)
    wyng.run("send", "disk.img", "home/data.img", "--send-unchanged")
    wyng.volume("disk.img", 8, 1_200_000)
    wyng.run("send", "disk.img")
    listed = wyng.run("list", "--json")
    sessions = list(json.loads(listed[listed.index("{") :])["volumes"]["disk.img"]["sessions"])
    wyng.run("prune", "disk.img", f"--session={sessions[2][2:]}", "--force")
    (wyng.volumes / "home/data.img").rename(wyng.volumes / "home/kept.img")
    wyng.run("rename", "home/data.img", "home/kept.img")
    wyng.run("arch-deduplicate")


def grown(wyng: Wyng) -> None:
    """A volume that grows within its last block: wyng keeps the last chunk, and cannot restore what needs it longer."""
    wyng.run("arch-init", "--encrypt=off", "--chunk-factor=1")
    for seed in (1, 2, 3):
        wyng.volume("disk.img", seed, 300_000 + 1000 * seed)
        wyng.run("send", "disk.img")


def sealed(cipher: str, compression: str) -> Callable[[Wyng], None]:
    """Encrypted, with two sessions."""

    def make(wyng: Wyng) -> None:
        wyng.run("arch-init", f"--encrypt={cipher}", f"--compression={compression}", "--chunk-factor=1")
        for seed in (1, 2):
            wyng.volume("disk.img", seed, (4 + seed) * CHUNK)
            wyng.run("send", "disk.img")

    return make


ARCHIVES: dict[str, Callable[[Wyng], None]] = {
    "plain": plain,
    "grown": grown,
    "dgr": sealed("xchacha20-dgr", "zstd:3"),
    "msr": sealed("xchacha20-msr", "zlib:6"),
    "ct": sealed("xchacha20-ct", "bz2:9"),
}


def main(program: Path, out: Path) -> None:
    """Make them all."""
    expected = {}
    with file_system() as place:
        for name, make in ARCHIVES.items():
            wyng = Wyng(program, place, name)
            make(wyng)
            expected[name] = wyng.restored()
            with tarfile.open(out / f"{name}.tar.xz", "w:xz") as tar:
                tar.add(wyng.archive, name)
    (out / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
