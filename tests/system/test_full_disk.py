"""A disk that is full to its last block: snapshots can be removed from it all the same, and a backup fits again."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lamella_kit.image_files import mounted
from tests.cli.program import Lamella
from tests.features import require
from tests.system import loop_fs
from tests.system.ssh_server import ssh_server

MIB = 1 << 20


@contextmanager
def disk_of(kind: str, tmp_path: Path) -> Iterator[Path]:
    if kind != "tmpfs":
        with loop_fs.make(kind) as place:
            yield place
        return
    require("root", os.geteuid() == 0, "only root may mount")
    place = tmp_path / "disk"
    place.mkdir()
    with mounted("none", place, kind="tmpfs", options="size=24m,mode=700"):
        yield place


def fill(place: Path) -> None:
    """Take all space there is, to the last byte that a write can have; more of it at every call."""
    filler = place / "filler"
    with filler.open("ab", buffering=0) as file:
        for piece in (64 * MIB, 4 * MIB, 256 * 1024, 4096):
            with suppress(OSError):
                while True:
                    if piece > 4096:
                        os.posix_fallocate(file.fileno(), filler.stat().st_size, piece)
                    else:
                        file.write(os.urandom(piece))
                        os.fsync(file.fileno())
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), (place / "more").open("wb", buffering=0) as file:
        file.write(os.urandom(512 * 1024))
        os.fsync(file.fileno())
    (place / "more").unlink(missing_ok=True)


@contextmanager
def reached(place: Path, how: str) -> Iterator[dict[str, str]]:
    """The environment of a client of a repository at this place."""
    if how == "directory":
        yield {"LAMELLA_REPO": str(place)}
        return
    with ssh_server() as server:
        path = f"{server.bin}:{os.environ['PATH']}"
        yield {"LAMELLA_REPO": f"ssh://127.0.0.1:{server.port}{place}", "PATH": path}


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("tmpfs", "directory"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("xfs", "directory"), ("btrfs", "directory"), ("tmpfs", "ssh"))
        ),
    ],
)
def test_a_full_disk_can_be_pruned(kind: str, how: str, tmp_path: Path) -> None:
    keyfile, image = tmp_path / "key", tmp_path / "disk.img"
    keyfile.write_bytes(os.urandom(32))
    keyfile.chmod(0o600)
    with disk_of(kind, tmp_path) as disk, reached(disk / "R", how) as environment:
        lamella = Lamella(environment, ["--keyfile", str(keyfile)])
        lamella.ok("init")
        # More than once: what is given up has to be there again.
        for round_ in range(2):
            contents = {}
            for _ in range(2):
                image.write_bytes(os.urandom(5 * MIB))
                lamella.ok("backup", image)
                contents[names(lamella)[-1]] = image.read_bytes()
            fill(disk)
            image.write_bytes(os.urandom(5 * MIB))
            assert lamella.run("backup", image).code == 1
            done = lamella.json("prune", "--keep-last", "1")
            assert done["freed_bytes"] > 4 * MIB, done
            # The one that passed the full verification of the first round stays beside the newest.
            *proven, last = names(lamella)
            assert len(proven) == round_
            lamella.ok("restore", f"disk@{last}", "--to", tmp_path / "out", "--overwrite")
            assert (tmp_path / "out").read_bytes() == contents[last]
            assert lamella.json("verify", "--level", "full")["findings"] == []
            (disk / "filler").unlink()


def names(lamella: Lamella) -> list[str]:
    return [row["snapshot"] for row in lamella.json("list", "disk")["snapshots"]]


def test_a_backup_does_not_take_the_room_that_is_kept_back(tmp_path: Path) -> None:
    keyfile, image = tmp_path / "key", tmp_path / "disk.img"
    keyfile.write_bytes(os.urandom(32))
    keyfile.chmod(0o600)
    with disk_of("tmpfs", tmp_path) as disk:
        lamella = Lamella({"LAMELLA_REPO": str(disk / "R")}, ["--keyfile", str(keyfile)])
        lamella.ok("init")
        reserve = disk / "R" / "tmp" / "reserve"
        assert reserve.stat().st_size == MIB
        fill(disk)
        image.write_bytes(b"little")
        assert lamella.run("backup", image).code == 1
        assert reserve.stat().st_size == MIB
