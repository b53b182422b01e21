"""One repository below one place, its hosts, their clocks, and every way in which a command may run on them.

Commands run in this process, or in a copy of it that is killed. Time, random bytes and salts depend on the seed, the
step and the command alone, so a history can be told again.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn
from unittest import mock

from lamella.cli.main import main
from lamella.stores.local.making import write_whole
from tests.cli.program import Done
from tests.fault.rot import write_volume
from tests.fault.rot_damage import CHECKPOINTED, LOCKLESS
from tests.fault.world import KEY, SECRET, SMALL_RESCUE, host_at
from tests.torture.edited import changed, write_image

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
START_MS = 1_782_907_200_000
"""2026-07-01T12:00:00Z."""
HOSTS = ("one", "two", "stranger")
"""The last remembers nothing from one command to the next."""
VOLUMES: Mapping[str, tuple[str, ...]] = {"one": ("a", "c"), "two": ("b",)}
"""What each host saves."""
KILLED = -9
CODES = frozenset({0, 1, 2, 3, 4, 10, 11, 12, 20, 21, 22, 75, 130})
"""Those of docs/guide/scripts.md."""
_WRITES = frozenset({"os.rename", "os.link", "os.remove", "os.truncate", "os.mkdir"})


@dataclass
class World:
    """What one history happens to."""

    place: Path
    seed: int
    lockless: bool = False
    checkpointed: bool = False
    tracked: Path | None = None
    """Where its sources lie, if they are to be saved with differences: on a file system that tells what changed."""
    now_ms: int = START_MS
    skew_ms: dict[str, int] = field(default_factory=dict)
    """By how much a host's clock is wrong."""
    step: int = 0
    kills: int = 0
    full: int = 0
    pauses: int = 0
    commands: int = 0
    held: dict[str, dict[int, bytes]] = field(default_factory=dict)
    """By volume: the chunks that it has now."""
    _commands: int = 0

    @property
    def repo(self) -> Path:
        return self.place / "repository"

    @property
    def key(self) -> Path:
        return self.place / "key"

    def source(self, volume: str) -> Path:
        return (self.tracked or self.place / "src") / f"{volume}.img"

    @property
    def settings(self) -> Path:
        """A document that goes with every backup."""
        return self.place / "src" / "settings"

    def clock(self, host: str) -> int:
        """What a host takes for the time."""
        return self.now_ms + self.skew_ms.get(host, 0)

    def begin(self, step: int) -> random.Random:
        """A step begins. Returns its chance, which no other step shares."""
        self.step, self._commands = step, 0
        return random.Random(f"{self.seed}/{step}")

    # -- running -------------------------------------------------------------------------------------------------------

    def run(self, host: str, *words: str | Path) -> Done:
        """One command on a host, in this process, to its end."""
        self._prepare(host)
        return self._told(host, words)

    def run_full(self, host: str, writes: int, *words: str | Path) -> Done:
        """The same on a disk that takes this many more objects."""
        self._prepare(host)
        self.full += 1
        left = count(writes, -1)

        def written(descriptor: int, content: bytes | memoryview) -> None:
            if next(left) <= 0:
                write_whole(descriptor, content[: len(content) // 2])
                raise OSError(28, "No space left on device")
            write_whole(descriptor, content)

        with mock.patch("lamella.stores.local.writing.write_whole", written):
            return self._told(host, words)

    def run_killed(self, host: str, change: int, *words: str | Path) -> Done:
        """The same in a process that gets SIGKILL right before its change number `change` of any file system.

        A command that makes fewer changes ends by itself.
        """
        return self._apart(host, words, change, lambda: None)

    def run_paused(self, host: str, change: int, meanwhile: Callable[[], None], *words: str | Path) -> Done:
        """The same, but right before that change the command stands still while something else happens."""
        return self._apart(host, words, change, meanwhile, kill=False)

    def _apart(
        self,
        host: str,
        words: tuple[str | Path, ...],
        change: int,
        meanwhile: Callable[[], None],
        *,
        kill: bool = True,
    ) -> Done:
        self._prepare(host)
        result = self.place / "result"
        result.unlink(missing_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            self._child(host, words, change, signal.SIGKILL if kill else signal.SIGSTOP, result)
        self._commands += 1
        _, status = os.waitpid(child, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            self.pauses += 1
            try:
                meanwhile()
            finally:
                os.kill(child, signal.SIGCONT)
                _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            self.kills += 1
            return Done(-os.WTERMSIG(status), "", "")
        code, out, err = json.loads(result.read_text())
        return Done(code, out, err)

    def _child(
        self, host: str, words: tuple[str | Path, ...], change: int, how: signal.Signals, result: Path
    ) -> NoReturn:
        left, running = count(change, -1), [True]

        def met(event: str, arguments: tuple[object, ...]) -> None:
            opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if running and (event in _WRITES or opened) and next(left) == 0:
                os.kill(os.getpid(), how)

        try:
            sys.addaudithook(met)
            done = self._told(host, words)
            running.clear()
            result.write_text(json.dumps([done.code, done.out, done.err]))
        finally:
            os._exit(0)

    def _prepare(self, host: str) -> None:
        if host == "stranger":
            shutil.rmtree(self.place / host, ignore_errors=True)

    def _told(self, host: str, words: tuple[str | Path, ...]) -> Done:
        self.commands += 1
        self._commands += 1
        env = {
            "HOME": str(self.place),
            "LAMELLA_REPO": str(self.repo),
            "LAMELLA_CONFIG": str(self.place / "no-configuration"),
            "LAMELLA_STATE_DIR": str(self.place / host / "state"),
            "LAMELLA_CACHE_DIR": str(self.place / host / "cache"),
        }
        out, err = io.StringIO(), io.StringIO()
        with self.determined(host), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["--keyfile", str(self.key), *map(str, words)], env)
        return Done(code, out.getvalue(), err.getvalue())

    @contextlib.contextmanager
    def determined(self, host: str) -> Iterator[None]:
        """Time stands still at what the host takes for it, and what is drawn depends on the step and the command."""
        moment_ns = self.clock(host) * 1_000_000
        time = SimpleNamespace(
            time_ns=lambda: moment_ns,
            clock_gettime=lambda clock: moment_ns / 1e9,
            clock_gettime_ns=lambda clock: moment_ns,
            CLOCK_BOOTTIME=0,
            CLOCK_REALTIME=0,
        )
        drawn = random.Random(f"{self.seed}/{self.step}/{self._commands}/{host}").randbytes
        patches: dict[str, object] = {
            "os.urandom": drawn,
            "lamella.base.clock.time": time,
            "lamella.crypto.seal.time": time,
            "lamella.crypto.seal.os": SimpleNamespace(urandom=drawn, getpid=lambda: 1),
            "lamella.crypto.seal._salts_made": count(),
            "lamella.repository.create.faster_algorithm": lambda: 1 + self.seed % 2,
            "lamella.repository.create.rescue_source": lambda: SMALL_RESCUE,
            "lamella.operations.repair.repair.rescue_source": lambda: SMALL_RESCUE,
            "lamella.operations.repair.objects.rescue_source": lambda: SMALL_RESCUE,
            **(LOCKLESS if self.lockless else {}),
            **(CHECKPOINTED if self.checkpointed else {}),
        }
        with contextlib.ExitStack() as held:
            for name, value in patches.items():
                held.enter_context(mock.patch(name, value))
            yield

    # -- building ------------------------------------------------------------------------------------------------------

    def build(self) -> None:
        """Make it."""
        shutil.rmtree(self.place, ignore_errors=True)
        (self.place / "src").mkdir(parents=True)
        (self.place / "truth").mkdir()
        for left in () if self.tracked is None else list(self.tracked.iterdir()):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        self.key.write_bytes(KEY)
        self.key.chmod(0o600)
        self.begin(-1)
        done = self.run("one", "init", "-q", "--recovery-sheet", self.place / "sheet")
        assert done.code == 0, done

    def write(self, path: Path, chunks: dict[int, bytes]) -> None:
        """An image of these chunks."""
        if self.tracked is None:
            write_volume(path, chunks)
        else:
            write_image(path, chunks)

    def objects(self) -> dict[str, tuple[int, int]]:
        """Every object with its size and the time of its last change."""
        found = {}
        for folder, below, files in os.walk(self.repo):
            if folder == str(self.repo) and "tmp" in below:
                below.remove("tmp")
            for path in map(Path(folder).joinpath, files):
                status = path.stat()
                found[str(path.relative_to(self.repo))] = status.st_size, status.st_mtime_ns
        return found


def write_source(world: World, volume: str, chance: random.Random) -> None:
    """Let a volume be something else: some chunks of its own, some that other volumes have, too."""
    chunks = changed(volume, world.held.get(volume, {}), chance) if world.tracked else _drawn(volume, chance)
    world.write(world.source(volume), chunks)
    world.held[volume] = chunks
    world.settings.write_text(f"<settings of='{volume}' at='{chance.randrange(5)}'/>" * 9)


def _drawn(volume: str, chance: random.Random) -> dict[int, bytes]:
    chunks = {number: f"common {number}".encode() for number in (0, 1, 70)}
    chunks[64 * 64] = f"{volume} {chance.random()}".encode()
    for _ in range(chance.randrange(3)):
        chunks[chance.randrange(2, 64)] = f"{volume} {chance.randrange(8)}".encode()
    chunks[80] = f"{chance.randrange(4)}".encode()
    return chunks


__all__ = ["SECRET", "World", "host_at"]
