"""Running one program and saying what it cost; medians over repeats."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 1 << 20
_SAID = 2000


class BenchError(Exception):
    """The benchmark cannot go on; the text says why."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The cost of one run. Seconds and bytes.

    `cpu` is user + system of the process and of every child it waited for; `memory` the largest resident set of any one
    of them, as the kernel kept it: never less than that of this process, which starts them (some 30 MiB).
    """

    wall: float
    cpu: float
    memory: int
    output: str = ""


@dataclass(slots=True)
class Series:
    """Repeats of one step, and the facts it left behind (bytes stored, objects: the same in every repeat)."""

    samples: list[Sample] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def median(self, of: Callable[[Sample], float]) -> float:
        """The median of one figure."""
        return statistics.median(map(of, self.samples))

    @property
    def wall(self) -> float:
        """Median seconds by the clock."""
        return self.median(lambda sample: sample.wall)

    @property
    def cpu(self) -> float:
        """Median processor seconds."""
        return self.median(lambda sample: sample.cpu)

    @property
    def memory(self) -> int:
        """Largest resident set of all repeats, bytes: a bound is broken by one run."""
        return max(sample.memory for sample in self.samples)

    def spread(self) -> str:
        """The fastest and the slowest repeat by the clock, as text."""
        walls = [sample.wall for sample in self.samples]
        return f"{seconds(min(walls))}-{seconds(max(walls))}"


def seconds(value: float) -> str:
    """Seconds for a table: two digits behind the point, three where there is none before it."""
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def pin(count: int) -> list[int]:
    """Bind this process, and so all it starts, to `count` of the processors it may use; returns their numbers."""
    chosen = sorted(os.sched_getaffinity(0))[:count]
    os.sched_setaffinity(0, chosen)
    return chosen


def run(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> Sample:
    """Run a program without a shell and terminal, standard output kept. Raises BenchError if it fails."""
    argv = [str(word) for word in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        try:
            program = subprocess.Popen(
                argv, env=None if env is None else dict(env), stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )
        except OSError as error:
            raise BenchError(f"cannot run {argv[0]}: {error.strerror}") from error
        try:
            _, status, usage = os.wait4(program.pid, 0)
        except BaseException:
            program.kill()
            program.wait()
            raise
        wall = time.perf_counter() - started
        program.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for, outside of Popen
        out.seek(0)
        err.seek(0)
        output, errors = out.read().decode("utf-8", "replace"), err.read().decode("utf-8", "replace")
    if program.returncode != 0:
        raise BenchError(f"{' '.join(argv)}\nended with {program.returncode}: {(errors or output)[-_SAID:].strip()}")
    return Sample(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, output)


def settle() -> None:
    """Write out what earlier steps left in memory, so that no step pays for another one's pages."""
    os.sync()
