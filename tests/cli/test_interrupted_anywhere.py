"""Every command that takes long, asked to end at a moment chosen at random: it ends, and does all its work afterwards.

The short form draws a few moments. By hand, at length: LAMELLA_MOMENTS=200 pytest --timeout 0 FILE
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.program import COMMAND, SECONDS, Lamella, environment

MIB = 1 << 20
SIZE = 24 * MIB
MOMENTS = int(os.environ.get("LAMELLA_MOMENTS", "3"))  # taken before a test's own places hide it
MAX_MOMENTS = MOMENTS + 30
"""A machine that is faster than it was a moment ago is asked more often, until it was interrupted once."""


@dataclass
class World:
    """A repository with some snapshots of one image, a second one to copy into, and all that this host remembers."""

    place: Path

    @property
    def image(self) -> Path:
        return self.place / "vm.img"

    @property
    def lamella(self) -> Lamella:
        places = {"LAMELLA_STATE_DIR": "state", "LAMELLA_CACHE_DIR": "cache", "LAMELLA_REPO": "repo"}
        env = {name: str(self.place / below) for name, below in places.items()}
        return Lamella(env, ["--keyfile", str(self.place / "key")])

    @property
    def expected(self) -> bytes:
        """The image at the newest snapshot."""
        return (self.place / "newest").read_bytes()

    def write(self, number: int) -> None:
        """Change the image in a few places."""
        chance = random.Random(number)
        with self.image.open("r+b") as file:
            for _ in range(12):
                file.seek(chance.randrange(SIZE - MIB))
                file.write(chance.randbytes(MIB // 4))

    @property
    def saved(self) -> Path:
        return self.place.with_name("saved")

    def back(self) -> None:
        """As it was saved, at the same place: a source is known by its path."""
        shutil.rmtree(self.place)
        shutil.copytree(self.saved, self.place)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("anywhere") / "world")
    made.place.mkdir()
    (made.place / "key").write_bytes(os.urandom(32))
    (made.place / "key").chmod(0o600)
    made.image.write_bytes(random.Random(0).randbytes(SIZE))
    made.lamella.ok("init", "-q")
    made.lamella.ok("init", "-q", "-r", made.place / "other")
    for number in range(1, 5):
        made.lamella.ok("backup", made.image)
        shutil.copy(made.image, made.place / "newest")
        made.write(number)
    shutil.copytree(made.place, made.saved)
    return made


def _restored(world: World) -> None:
    assert (world.place / "out.img").read_bytes() == world.expected


def _pruned(world: World) -> None:
    assert len(world.lamella.json("list")["snapshots"]) == 1


def _mirrored(world: World) -> None:
    world.lamella.ok("verify", "-r", world.place / "mirror", "--level", "full")


def _copied(world: World) -> None:
    other = world.place / "other"
    assert len(world.lamella.json("list", "-r", other)["snapshots"]) == 4
    world.lamella.ok("verify", "-r", other, "--level", "full")


def _backed_up(world: World) -> None:
    world.lamella.ok("restore", "vm", "--to", world.place / "out.img")
    assert (world.place / "out.img").read_bytes() == world.image.read_bytes()


JOBS: dict[str, tuple[list[str], Callable[[World], None]]] = {
    "backup": (["backup", "{}/vm.img", "--point-every", "2M"], _backed_up),
    "restore": (["restore", "vm", "--to", "{}/out.img", "--overwrite", "--yes"], _restored),
    "verify": (["verify", "--level", "full"], lambda world: None),
    "prune": (["prune", "--keep-last", "1", "--yes", "--max-unused", "1%"], _pruned),
    "copy": (["copy", "--to", "{}/other", "--to-keyfile", "{}/key"], _copied),
    "mirror": (["mirror", "--to", "{}/mirror"], _mirrored),
    "check": (["check"], lambda world: None),
}


@pytest.mark.parametrize(
    "job", [pytest.param(job, marks=[] if job in ("backup", "restore", "prune") else pytest.mark.slow) for job in JOBS]
)
def test_a_command_is_asked_to_end(world: World, job: str) -> None:
    words, check = JOBS[job]
    seconds = 0.0
    interrupted = 0
    for number in range(MAX_MOMENTS):
        if number > MOMENTS and interrupted:
            break
        world.back()
        arguments = [word.format(world.place) for word in words]
        if number == 0:
            started = time.monotonic()
            world.lamella.ok(*arguments)
            seconds = time.monotonic() - started
            continue
        chance = random.Random(f"{job} {number}")
        code, err = _asked_to_end(world.lamella, arguments, chance.uniform(0.3, 1) * seconds, chance)
        assert code in (0, 130, -signal.SIGINT, -signal.SIGTERM), (number, code, err)
        assert "internal error" not in err, (number, err)
        interrupted += code == 130
        world.lamella.ok(*arguments)
        check(world)
        world.lamella.ok("verify", "--level", "full")
    assert interrupted


def _asked_to_end(lamella: Lamella, arguments: list[str], after: float, chance: random.Random) -> tuple[int, str]:
    with subprocess.Popen(
        [*COMMAND, *lamella.options, *arguments],
        env=environment(lamella.env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            time.sleep(after)
            process.send_signal(chance.choice([signal.SIGINT, signal.SIGTERM]))
            err = process.communicate(timeout=SECONDS)[1]
        finally:
            process.kill()
    return process.returncode, err
