"""Disks whose file systems are spoilt on purpose, read by the guest of `lamella files`: what may that do to the host?

    python -m tests.fuzz.hostile_disks --cases 1000 --seed 1

Each case is a file system in use (its journal not empty), made worse: cut, bytes changed in what describes it, blocks
put in the places of others so that directories and extents lead in circles. Checksums are made right again, or the
kernel would look no further. A boot serves twenty disks; a disk on which the guest ends or hangs costs one more boot.

Whatever the disk, the host must come back with an answer or with an error of one line, in time, with bounded memory,
and with nothing outside of the target.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import secrets
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from lamella.base.errors import LamellaError
from lamella.operations.access.guest import Guest, started
from lamella.operations.access.guest_answers import Aid, GuestAnswer, GuestConversation, ending, take_rows
from lamella.operations.access.guest_kernel import GuestKernel, find_kernel
from lamella.operations.access.guest_start import GuestRequest, What
from lamella.operations.access.guest_supply import supplied
from lamella.operations.access.guest_tar import TreeSink, stays_inside, take_archive
from tests.fat import OLD, fat16

KERNEL = Path(__file__).resolve().parents[2] / ".guest" / "vmlinuz"
AT_ONCE = 20
"""Disks of a boot."""
SECONDS = 60.0
"""For a disk; a guest without KVM beside other work."""
BOOT_SECONDS = 120.0
MEMORY_MOST_MIB = 150
"""By which the reader may grow, whatever a guest sends."""
FILES_MOST_BYTES = 64 << 20
BLOCK = 4096
MIB = 1 << 20
MAKERS = {
    "ext4": (24 * MIB, ["mkfs.ext4", "-q", "-F", "-b", "1024", "-O", "^metadata_csum"]),
    "xfs": (320 * MIB, ["mkfs.xfs", "-q", "-f"]),
    "btrfs": (128 * MIB, ["mkfs.btrfs", "-q", "-f", "-m", "single"]),
}
_SUPER = {"ext4": (1024, 1024), "xfs": (0, 264), "btrfs": (65536, 4096), "vfat": (0, 90)}

# XFS: magic number -> where the checksum is, and how many bytes it covers (Linux: fs/xfs/libxfs/xfs_format.h).
_XFS_SUMS = {
    b"XFSB": (224, 512),
    b"XAGF": (216, 512),
    b"XAGI": (312, 512),
    b"XDB3": (4, BLOCK),
    b"XDD3": (4, BLOCK),
    b"AB3B": (52, BLOCK),
    b"AB3C": (52, BLOCK),
    b"IAB3": (52, BLOCK),
    b"FIB3": (52, BLOCK),
}
_XFS_INODE, _XFS_INODE_SUM, _XFS_INODE_BYTES = b"IN", 100, 512
_BTRFS_NODE, _BTRFS_SUPER = 16384, 65536


@dataclass(frozen=True)
class Base:
    """A good file system in use: its blocks that are not zero, by number."""

    kind: str
    size: int
    blocks: dict[int, bytes]


def bases(folder: Path) -> list[Base]:
    """One of each kind that this machine can make and mount; needs root."""
    return [*(base(folder, kind) for kind in MAKERS if shutil.which(MAKERS[kind][1][0])), _fat(folder / "vfat.base")]


def _fat(disk: Path) -> Base:
    names = {f"{'a/b/c/'[: number % 4 * 2]}file-{number:03}": number for number in range(60)}
    disk.write_bytes(fat16({name: (bytes([number + 1]) * (700 * number), OLD) for name, number in names.items()}))
    return Base("vfat", disk.stat().st_size, _blocks(disk))


def base(folder: Path, kind: str) -> Base:
    """A file system with files in directories, copied while it is in use. Raises CalledProcessError."""
    size, maker = MAKERS[kind]
    disk, place = folder / f"{kind}.base", folder / f"{kind}.mounted"
    with disk.open("wb") as file:
        file.truncate(size)
    _run(*maker, disk)
    place.mkdir()
    _run("mount", "-o", "loop", "-t", kind, disk, place)
    try:
        deep = place / "a" / "b" / "c"
        deep.mkdir(parents=True)
        for number in range(60):
            (deep.parents[number % 3] / f"file-{number:03}").write_bytes(bytes([number + 1]) * (700 * number))
        (deep / "up").symlink_to("../../a")
        os.link(place / "file-002", deep / "same")
        os.sync()
        with (deep / "late").open("wb") as file:
            file.write(b"late" * 1000)
            file.flush()
            os.fsync(file.fileno())
        blocks = _blocks(disk)
    finally:
        _run("umount", place)
    return Base(kind, size, blocks)


def _blocks(disk: Path) -> dict[int, bytes]:
    with disk.open("rb") as file:
        pieces = enumerate(iter(lambda: file.read(BLOCK), b""))
        return {number: content for number, content in pieces if any(content)}


def _run(*words: str | Path) -> None:
    subprocess.run([*map(str, words)], check=True, capture_output=True, text=True)


# -- making it worse --------------------------------------------------------------------------------------------------


@dataclass
class Spoilt:
    """A disk being spoilt."""

    base: Base
    chance: Random
    size: int = 0
    blocks: dict[int, bytearray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.size = self.base.size
        self.blocks = {number: bytearray(content) for number, content in self.base.blocks.items()}

    def any_block(self) -> int:
        """One that is likely to describe the file system: those of files hold one byte over and over."""
        told = [number for number, content in self.blocks.items() if len(set(content[:64])) > 1]
        return self.chance.choice(told)

    def put(self, offset: int, content: bytes) -> None:
        """Change bytes anywhere."""
        for at, byte in enumerate(content, offset):
            self.blocks.setdefault(at // BLOCK, bytearray(BLOCK))[at % BLOCK] = byte

    def odd(self, count: int) -> bytes:
        """Bytes as they break programs."""
        chance = self.chance
        kind = chance.randrange(5)
        if kind == 0:
            return chance.randbytes(count)
        if kind == 1:
            return chance.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * count
        return struct.pack("<Q", chance.choice([0, 1, 2, 12, 1 << 31, (1 << 32) - 1, 1 << 62]))[:count].ljust(
            count, b"\0"
        )

    def write(self, place: Path) -> None:
        """Make the image."""
        with place.open("wb") as file:
            file.truncate(self.size)
            for number, content in self.blocks.items():
                if number * BLOCK < self.size:
                    file.seek(number * BLOCK)
                    file.write(content[: self.size - number * BLOCK])


def _cut(disk: Spoilt) -> None:
    disk.size = disk.chance.randrange(70_000, disk.size) // 512 * 512


def _emptied(disk: Spoilt) -> None:
    from_block = disk.chance.choice(sorted(disk.blocks))
    disk.blocks = {number: content for number, content in disk.blocks.items() if number < max(from_block, 20)}


def _super_changed(disk: Spoilt) -> None:
    start, length = _SUPER[disk.base.kind]
    for _ in range(disk.chance.choice([1, 1, 2, 4])):
        # The first bytes say which file system this is: with those gone nobody looks at the rest.
        disk.put(
            start + disk.chance.randrange(96 if length > 512 else 11, length),
            disk.odd(disk.chance.choice([1, 2, 4, 8])),
        )


def _bytes_changed(disk: Spoilt) -> None:
    for _ in range(disk.chance.choice([1, 4, 16, 64, 256])):
        offset = disk.any_block() * BLOCK + disk.chance.randrange(BLOCK)
        if offset // BLOCK:
            disk.put(offset, disk.odd(disk.chance.choice([1, 2, 4])))


def _blocks_mixed(disk: Spoilt) -> None:
    """Blocks in the places of others: directories that hold themselves, extents that lead into other trees."""
    for _ in range(disk.chance.choice([1, 2, 6])):
        source, target = disk.any_block(), disk.any_block()
        if target:
            disk.blocks[target] = bytearray(disk.blocks[source])


def _names_led_in_circles(disk: Spoilt) -> None:
    """Every number of an inode that a directory of ext4 may hold becomes that of another directory."""
    for number, content in list(disk.blocks.items()):
        for at in range(0, BLOCK - 12, 4):
            inode, length, name_length, kind = struct.unpack_from("<IHBB", content, at)
            is_name = 2 <= inode < 200 and 12 <= length <= 1024 and 0 < name_length < length and kind in (1, 2)
            if is_name and disk.chance.random() < 0.3:
                struct.pack_into("<I", content, at, disk.chance.choice([2, 12, 13, 14, inode]))
                content[at + 7] = 2
        disk.blocks[number] = content


SPOILING: list[Callable[[Spoilt], None]] = [
    _cut,
    _emptied,
    _super_changed,
    _bytes_changed,
    _bytes_changed,
    _bytes_changed,
    _blocks_mixed,
    _blocks_mixed,
]
"""The more often one is named, the more often it is taken."""


@dataclass(frozen=True)
class Case:
    """A disk that anybody can make again."""

    kind: str
    seed: int
    how: str

    def __str__(self) -> str:
        return f"{self.kind}, seed {self.seed}, {self.how.strip('_').replace('_', ' ')}"


def make(good: list[Base], seed: int, place: Path) -> Case:
    """Spoil the file system that the seed chooses, and write its image."""
    chance = Random(seed)
    found = good[seed % len(good)]
    disk = Spoilt(found, chance)
    spoil = chance.choice([*SPOILING, _names_led_in_circles] if found.kind == "ext4" else SPOILING)
    spoil(disk)
    _sum_again(disk)
    disk.write(place)
    return Case(found.kind, seed, spoil.__name__)


def _sum_again(disk: Spoilt) -> None:
    """Make checksums right again in every block that is not as it was."""
    old = disk.base.blocks
    changed = [number for number, content in disk.blocks.items() if bytes(content) != old.get(number)]
    if disk.base.kind == "xfs":
        for number in changed:
            _sum_xfs(disk.blocks[number])
    if disk.base.kind == "btrfs":
        for start in {number * BLOCK // _BTRFS_NODE * _BTRFS_NODE for number in changed}:
            _sum_btrfs(disk, start, BLOCK if start == _BTRFS_SUPER else _BTRFS_NODE)


def _sum_xfs(block: bytearray) -> None:
    for at in range(0, BLOCK, 512):
        found = _XFS_SUMS.get(bytes(block[at : at + 4]))
        if block[at : at + 2] == _XFS_INODE:
            found = (_XFS_INODE_SUM, _XFS_INODE_BYTES)
        if found is not None and at + found[1] <= BLOCK:
            place, length = found
            struct.pack_into("<I", block, at + place, 0)
            struct.pack_into("<I", block, at + place, crc32c(bytes(block[at : at + length])))


def _sum_btrfs(disk: Spoilt, start: int, length: int) -> None:
    numbers = range(start // BLOCK, (start + length) // BLOCK)
    content = b"".join(bytes(disk.blocks.get(number, bytes(BLOCK))) for number in numbers)
    disk.put(start, struct.pack("<I", crc32c(content[32:])))


def _table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC = _table()


def crc32c(content: bytes) -> int:
    """The checksum of Castagnoli (RFC 3720, appendix B.4)."""
    value = 0xFFFFFFFF
    for byte in content:
        value = _CRC[(value ^ byte) & 255] ^ value >> 8
    return value ^ 0xFFFFFFFF


# -- reading it -------------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """What became of the cases."""

    outcomes: Counter[str] = field(default_factory=Counter)
    dead: list[Case] = field(default_factory=list)
    """Those on which the guest ended, hung, or sent what is no answer."""
    violations: list[str] = field(default_factory=list)
    boots: int = 0
    seconds_most: float = 0.0


class Reader:
    """Reads spoilt disks as `lamella files` does, many in a boot."""

    def __init__(
        self,
        folder: Path,
        good: list[Base],
        kernel: GuestKernel,
        cache: Path,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._folder = folder
        self._good = good
        self._kernel = kernel
        self._cache = cache
        self._tell = tell
        self._no_kvm = folder / "guest-without-kvm"
        self._no_kvm.touch()
        kernel.uncompressed(cache)  # takes memory once, whatever the disks are
        self.found = Found()

    def run(self, seeds: list[int], what: What) -> None:
        """Read the disks of these seeds."""
        memory = _memory_mib()
        left = list(seeds)
        while left:
            now, left = left[:AT_ONCE], left[AT_ONCE:]
            left = [*self._boot(now, what), *left]
        if _memory_mib() > memory + MEMORY_MOST_MIB:
            self.found.violations.append(f"the reader grew from {memory} to {_memory_mib()} MiB")

    def _boot(self, seeds: list[int], what: What) -> list[int]:
        """Read as many as one guest does; the seeds of those that are left."""
        self.found.boots += 1
        images = [self._folder / f"disk-{number}.img" for number in range(len(seeds))]
        cases = [make(self._good, seed, image) for seed, image in zip(seeds, images, strict=True)]
        request = GuestRequest(
            what, ("./",), secrets.token_hex(16), "disk", int(BOOT_SECONDS + SECONDS * len(seeds)), disks=len(seeds)
        )
        with started(self._kernel, [str(image) for image in images], request, self._no_kvm, self._cache) as guest:
            for number, case in enumerate(cases):
                guest.deadline = time.monotonic() + (SECONDS if number else BOOT_SECONDS)
                if not self._read(guest, request, case):
                    self.found.dead.append(case)
                    return seeds[number + 1 :]
        return []

    def _read(self, guest: Guest, request: GuestRequest, case: Case) -> bool:
        """Read the next disk of a guest; whether the guest can go on."""
        out = self._folder / "out" / "target"
        shutil.rmtree(out.parent, ignore_errors=True)
        out.mkdir(parents=True)

        def take(answer: GuestAnswer, guest: Guest, request: GuestRequest) -> None:
            answer.taken = take_archive(guest.archive(ending(request)), TreeSink(out), FILES_MOST_BYTES)

        aid = Aid(lambda name: supplied(self._kernel, name), lambda name, wrong: b"key")
        receive = take if request.what is What.GET else take_rows
        conversation = GuestConversation(guest, request, receive, aid)
        began = time.monotonic()
        try:
            answer = conversation.held()
            self._count(case, "incomplete" if answer.trouble else "whole")
        except LamellaError as error:
            self._count(case, "refused" if conversation.is_over else "ended the guest")
            self._tell(f"{case}: {error.message}")
            if not error.message.isprintable():
                self.found.violations.append(f"{case}: {error.message!r}")
        took = time.monotonic() - began
        self.found.seconds_most = max(self.found.seconds_most, took)
        if took > BOOT_SECONDS + SECONDS:
            self.found.violations.append(f"{case}: {took:.0f} s")
        self.found.violations += [f"{case}: {line}" for line in _escaped(out)]
        return conversation.is_over

    def _count(self, case: Case, outcome: str) -> None:
        self.found.outcomes[f"{case.kind}: {outcome}"] += 1


def _escaped(out: Path) -> Iterator[str]:
    """What lies where it must not."""
    if [path.name for path in out.parent.iterdir()] != [out.name]:
        yield "something lies beside the target"
    for path in out.rglob("*"):
        name = path.relative_to(out).as_posix()
        if path.is_symlink():
            if not stays_inside(name, os.readlink(path)):  # noqa: PTH115 - as it is
                yield f"{name} leads out"
        elif not (path.is_dir() or path.is_file()):
            yield f"{name} is neither a file nor a directory"


def _memory_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


# -- by hand ----------------------------------------------------------------------------------------------------------


def through_the_command(seed: int, good: list[Base], folder: Path) -> str:
    """Read one disk through `lamella files get`. Why the command did not do what it has to; empty if it did."""
    image, repository = folder / "one.img", folder / f"repository-{seed}"
    case = make(good, seed, image)
    env = {**os.environ, "LAMELLA_PASSPHRASE": "x", "HOME": str(folder), "XDG_STATE_HOME": str(folder / "state")}
    (folder / "state" / "lamella").mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "state" / "lamella" / "guest-without-kvm").touch()
    program = [sys.executable, "-m", "lamella", "-q", "-r", str(repository)]
    sheet = str(folder / f"sheet-{seed}")
    subprocess.run([*program, "init", "--recovery-sheet", sheet], env=env, check=True, capture_output=True)
    subprocess.run([*program, "backup", f"v={image}"], env=env, check=True, capture_output=True)
    out = folder / f"out-{seed}" / "target"
    out.parent.mkdir()
    words = [*program, "files", "get", "v", "/", "--partition", "disk", "--kernel", str(KERNEL), "--to", str(out)]
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            [*words, "--seconds", "120"], env=env, check=False, capture_output=True, text=True, timeout=180
        )
        lines = done.stderr.splitlines()
        if done.returncode not in (0, 1, 3) or not all(line.startswith("lamella: ") for line in lines):
            return f"{case}: ended with {done.returncode}: {done.stderr}"
        return "; ".join(_escaped(out)) if out.exists() else ""
    return f"{case}: did not end"


def main() -> int:
    """Read many disks, and those that ended a guest once more through the command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--commands", type=int, default=20, help="cases that go through the command as well")
    parser.add_argument("-v", "--verbose", action="store_true", help="say of each disk why it was not read")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lamella-hostile-") as place:
        folder = Path(place)
        good = bases(folder)
        kernel = find_kernel(KERNEL)
        tell = print if args.verbose else lambda line: None
        reader = Reader(folder, good, kernel, folder / "cache", tell)
        seeds = list(range(args.seed, args.seed + args.cases))
        for number in range(0, len(seeds), AT_ONCE):
            reader.run(seeds[number : number + AT_ONCE], (What.GET, What.WALK)[number // AT_ONCE % 2])
            print(f"{min(number + AT_ONCE, len(seeds))} of {len(seeds)}: {_shown(reader.found)}", flush=True)
        again = [*(case.seed for case in reader.found.dead), *seeds[:: max(1, len(seeds) // args.commands)]]
        for seed in again[: args.commands]:
            wrong = through_the_command(seed, good, folder)
            if wrong:
                reader.found.violations.append(wrong)
            print(f"seed {seed} through the command: {wrong or 'as it should be'}", flush=True)
    found = reader.found
    print(f"{args.cases} disks, {found.boots} boots, {time.monotonic() - began:.0f} s, {_memory_mib()} MiB")
    for outcome, count in sorted(found.outcomes.items()):
        print(f"  {count:5} {outcome}")
    for line in [
        *(f"ended the guest: {case}" for case in found.dead),
        *(f"VIOLATION {one}" for one in found.violations),
    ]:
        print(line)
    return 1 if found.violations else 0


def _shown(found: Found) -> str:
    return f"{found.boots} boots, {len(found.dead)} ended the guest, {len(found.violations)} violations"


if __name__ == "__main__":
    raise SystemExit(main())
