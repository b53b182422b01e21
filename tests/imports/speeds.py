"""Importing a history of two states beside what the original tool needs to restore them.

`python -m tests.imports.speeds`.

The other tool writes each state into a file; Lamella compresses, encrypts and syncs it into a new repository. Where
that tool cannot be had here, something that does the same work stands in, and its name says what it is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from bench.measure import MIB
from bench.programs import Lamella
from lamella.format import zstd_provider
from tests.imports import pbs_store, qvm_backups
from tests.imports.make_wyng_archives import PASSPHRASE, Wyng, file_system

_BORG = os.environ.get("LAMELLA_TEST_BORG", "borg")
_PASSPHRASE = qvm_backups.PASSPHRASE.decode()
_PART = 100 * MIB
"""Of qvm-backup."""
_ENV = {
    "BORG_PASSPHRASE": "x",
    "RESTIC_PASSWORD": "x",
    "BORG_TESTONLY_WEAKEN_KDF": "1",
    "P": _PASSPHRASE,
    "LAMELLA_FROM_PASSPHRASE": _PASSPHRASE,
}


@dataclass(frozen=True)
class _Archive:
    """An archive of two states: how Lamella imports it, and what restores both."""

    name: str
    words: Sequence[str | Path]
    beside: str
    restore: Callable[[Path], None]


def _ran(*words: str | Path, cwd: Path | None = None, into: Path | None = None) -> None:
    with (into or Path(os.devnull)).open("wb") as out:
        env = os.environ | _ENV
        subprocess.run(list(map(str, words)), cwd=cwd, env=env, stdout=out, stderr=subprocess.DEVNULL, check=True)


def _states(place: Path, size: int) -> Iterator[Path]:
    """Half text, a quarter random, a quarter a hole; then with one block of 64 KiB in a hundred changed."""
    chance, image = random.Random(7), place / "disk.img"
    with image.open("wb") as file:
        for at in range(0, size // 2, MIB):
            file.write((b"%015d\n" % chance.getrandbits(48) * 64 + chance.randbytes(256)) * (MIB // 1280))
            file.seek(at + MIB)
        for _ in range(0, size // 4, MIB):
            file.write(chance.randbytes(MIB))
        file.truncate(size)
    yield image
    with image.open("r+b") as file:
        for _ in range(size // (100 << 16)):
            file.seek(chance.randrange(size * 3 // 4 >> 16) << 16)
            file.write(chance.randbytes(1 << 16))
    yield image


def _borg(place: Path, size: int) -> _Archive:
    archive = place / "borg"
    _ran(_BORG, "init", "-e", "repokey", archive)
    for number, image in enumerate(_states(place, size)):
        _ran(_BORG, "create", f"{archive}::{number}", image.name, cwd=place)

    def restore(out: Path) -> None:
        for number in range(2):
            _ran(_BORG, "extract", "--stdout", f"{archive}::{number}", "disk.img", into=out)

    return _Archive("borg", ["borg", "--program", _BORG, archive], "borg extract --stdout", restore)


def _restic(place: Path, size: int) -> _Archive:
    archive = place / "restic"
    _ran("restic", "-q", "-r", archive, "init")
    for image in _states(place, size):
        _ran("restic", "-q", "-r", archive, "backup", image.name, cwd=place)
    words = ["restic", "-q", "-r", str(archive), "snapshots", "--json"]
    printed = subprocess.run(words, env=os.environ | _ENV, capture_output=True, check=True).stdout
    listed = [one["id"] for one in sorted(json.loads(printed), key=lambda one: str(one["time"]))]

    def restore(out: Path) -> None:
        for one in listed:
            _ran("restic", "-q", "-r", archive, "dump", one, "/disk.img", into=out)

    return _Archive("restic", ["restic", archive], "restic dump", restore)


def _qcow2(place: Path, size: int) -> _Archive:
    image = place / "disk.qcow2"
    for number, raw in enumerate(_states(place, size)):
        if number:
            _ran("qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", raw, image)
        else:
            _ran("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
            _ran("qemu-img", "snapshot", "-c", "one", image)

    def restore(out: Path) -> None:
        _ran("qemu-img", "convert", "-l", "snapshot.name=one", "-O", "raw", image, out)
        _ran("qemu-img", "convert", "-O", "raw", image, out)

    return _Archive("qcow2", ["qcow2", image], "qemu-img convert", restore)


def _qvm(place: Path, size: int) -> _Archive:
    files = []
    qvm_backups.PART = _PART
    for number, image in enumerate(_states(place, size)):
        members = qvm_backups.files_of(place, image, size)
        one = place / f"qvm{number}"
        files.append(qvm_backups.write_backup(one, members, id_=f"{number}-1", time=1_700_000_000 + number))

    def restore(out: Path) -> None:
        for number, file in enumerate(files):
            with tarfile.open(file, ignore_zeros=True) as outer:
                parts = [name for name in outer.getnames() if name.startswith("vm20/private.img.")]
            pieces = [
                f"tar -xiOf {file} {part} >part && P='{number}-1!{part.removesuffix('.enc')}!{_PASSPHRASE}'"
                " scrypt dec --passphrase env:P part"
                for part in parts
            ]
            _ran("sh", "-c", f"{{ {'; '.join(pieces)}; }} | gunzip | tar -xOf - >{out}", cwd=place)

    return _Archive("qvm", ["qvm", *files], "tar | scrypt dec | gunzip | tar, by hand", restore)


def _pbs(place: Path, size: int) -> _Archive:
    store, moment = pbs_store.PbsStore(place / "store"), datetime(2026, 1, 1, tzinfo=UTC)
    pbs_store.CHUNK = 4 * MIB  # as Proxmox cuts the disks of machines
    for number, image in enumerate(_states(place, size)):
        store.snapshot(moment + timedelta(hours=number), {"disk": image.read_bytes()})

    def restore(out: Path) -> None:
        for index in sorted((place / "store").rglob("disk.img.fidx")):
            digests = index.read_bytes()[4096:]
            with out.open("wb") as file:
                for at in range(0, len(digests), 32):
                    name = digests[at : at + 32].hex()
                    blob = (place / "store/.chunks" / name[:4] / name).read_bytes()
                    file.write(_unpacked(blob))

    return _Archive("pbs", ["pbs", store.place, "vm/100"], "reading and unpacking the chunks alone", restore)


def _unpacked(blob: bytes) -> bytes:
    if not blob.startswith(pbs_store.magic("Proxmox Backup zstd compressed blob v1.0")):
        return blob[12:]
    return bytes(zstd_provider.load()[1].ZstdDecompressor().decompress(blob[12:]))


@contextmanager
def _wyng(place: Path, size: int, cipher: str = "off") -> Iterator[_Archive]:
    """As root, with the real wyng in LAMELLA_TEST_WYNG."""
    with file_system(4 * size) as folder:
        wyng = Wyng(Path(os.environ["LAMELLA_TEST_WYNG"]), folder, "archive")
        wyng.run("arch-init", f"--encrypt={cipher}")
        for image in _states(place, size):
            (wyng.volumes / "disk.img").write_bytes(image.read_bytes())
            wyng.run("send", "disk.img")
        listed = wyng.run("list", "--json")
        sessions = list(json.loads(listed[listed.index("{") :])["volumes"]["disk.img"]["sessions"])

        def restore(out: Path) -> None:
            for session in sessions:
                out.unlink(missing_ok=True)
                wyng.run("receive", "disk.img", f"--session={session[2:]}", f"--save-to={out}")

        yield _Archive(f"wyng, {cipher}", ["wyng", wyng.archive], "wyng receive", restore)


_KINDS = {"borg": _borg, "restic": _restic, "qcow2": _qcow2, "qvm": _qvm, "pbs": _pbs}
_WYNG = {"wyng": "off", "wyng-encrypted": "xchacha20-dgr"}


def _seconds(work: Callable[[], object]) -> float:
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def main() -> None:
    """Measure every kind; the better of each pair of runs counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.imports.speeds", description=__doc__)
    parser.add_argument("kind", nargs="*", metavar="KIND", help=", ".join((*_KINDS, *_WYNG)))
    parser.add_argument("--mib", type=int, default=256, help="size of the image")
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    print(f"two states of {args.mib} MiB; load {os.getloadavg()[0]:.1f}; best of {args.repeats} runs of each")
    for kind in args.kind or _KINDS:
        with tempfile.TemporaryDirectory(prefix="lamella-importing-") as folder:
            _ENV.update(BORG_BASE_DIR=folder, XDG_CACHE_HOME=folder)
            place, size = Path(folder), args.mib * MIB
            made: AbstractContextManager[_Archive]
            made = _wyng(place, size, _WYNG[kind]) if kind in _WYNG else nullcontext(_KINDS[kind](place, size))
            with made as archive:
                _measure(archive, place, args)


def _measure(archive: _Archive, place: Path, args: argparse.Namespace) -> None:
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(args.repeats):
        lamella = Lamella(place, folder="lamella")
        lamella.init()
        (place / "lamella/key").chmod(0o600)
        words, env = lamella.words("import", "-q", *archive.words), lamella.env | _ENV
        if archive.name.startswith("wyng"):
            env["LAMELLA_FROM_PASSPHRASE"] = PASSPHRASE
        ours.append(_seconds(partial(subprocess.run, words, env=env, check=True)))
        theirs.append(_seconds(partial(archive.restore, place / "restored")))
    right = (place / "disk.img").read_bytes()
    if (place / "restored").read_bytes() != right:
        raise SystemExit(f"{archive.name}: what was restored is not what was saved")
    mine, other = 2 * args.mib / min(ours), 2 * args.mib / min(theirs)
    print(
        f"{archive.name}: import {mine:.0f} MiB/s; {archive.beside} {other:.0f} MiB/s; ratio {mine / other:.2f}; "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
