"""The real command in a process of its own, with or without a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
# Another interpreter has other versions of the libraries: tests/packaging/test_older_libraries.py.
COMMAND = [os.environ.get("LAMELLA_TEST_PYTHON", sys.executable), "-m", "lamella"]
SECONDS = 60


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's variables, the project's own source, and `extra`."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1", **extra}


@dataclass(frozen=True)
class Done:
    """How a run ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one document on standard output."""
        document = json.loads(self.out)
        assert isinstance(document, dict)
        assert document["schema"] == "lamella/1"
        return document


@dataclass
class Lamella:
    """Runs `lamella` without a terminal, with these variables and options before every command."""

    env: dict[str, str] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=lambda: list(COMMAND))
    user: int | None = None
    """The account that runs it; group 4321 is one of its groups."""

    def run(self, *arguments: str | Path, env: Mapping[str, str] | None = None, input: str | None = None) -> Done:
        """Run a command to its end."""
        # A session of its own has no terminal, so nothing can be asked for.
        done = subprocess.run(
            [*self.command, *self.options, *map(str, arguments)],
            env=environment({**self.env, **(env or {})}),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            start_new_session=True,
            user=self.user,
            group=self.user,
            extra_groups=None if self.user is None else [4321],
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Done:
        """Run a command that must end with 0."""
        done = self.run(*arguments, env=env)
        assert done.code == 0, (done.code, done.err, done.out)
        return done

    def json(self, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
        """Run a command with --json, and return its document."""
        done = self.run("--json", *arguments)
        assert done.code == code, (done.code, done.err, done.out)
        return done.json


class Terminal:
    """A command that believes a person sits before it."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        command: Sequence[str | Path] = COMMAND,
    ) -> None:
        self._master, slave = pty.openpty()
        self.seen = ""
        self._looked = 0
        self._process = subprocess.Popen(
            [*map(str, command), *map(str, arguments)],
            env=environment({"TERM": "xterm", **(env or {})}),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._master)

    def expect(self, text: str) -> None:
        """Read until `text` was shown; what follows it stays for the next call."""
        while (found := self.seen.find(text, self._looked)) < 0:
            assert self._read(), f"{text!r} was not shown, only {self.seen[self._looked :]!r}"
        self._looked = found + len(text)

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self._master, f"{line}\n".encode())

    def press(self, keys: str) -> None:
        """Press keys; no line ends."""
        os.write(self._master, keys.encode())

    def end(self) -> int:
        """Read to the end and return the exit code."""
        while self._read():
            pass
        return self._process.wait(SECONDS)

    def _read(self) -> bool:
        waiting = select.poll()  # unlike select() it takes descriptors above 1,023, too
        waiting.register(self._master, select.POLLIN)
        ready = waiting.poll(SECONDS * 1000)
        assert ready, f"nothing happened; so far: {self.seen!r}"
        try:
            piece = os.read(self._master, 4096)
        except OSError:  # how Linux reports that the other side is closed
            return False
        self.seen += piece.decode("utf-8", "replace")
        return bool(piece)
