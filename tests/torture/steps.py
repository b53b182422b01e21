"""What happens in a history: drawn from its seed, told on one line each, and read back from those lines."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.torture.hostile import ATTACKS

LENGTH = 24

_WEIGHTS: Mapping[str, int] = {
    "backup": 30,
    "prune": 16,
    "verify": 10,
    "restore": 10,
    "look": 8,
    "delete": 4,
    "repair": 3,
    "label": 2,
    "give-up": 4,
    "damage": 16,
    "junk": 4,
    "lock": 1,
    "heal": 8,
    "clock": 3,
    "forget": 3,
    "wait": 4,
    "hostile": 6,
}
_COMMANDS = frozenset({"backup", "prune", "verify", "restore", "look", "delete", "repair", "label", "give-up"})
_MODES: Mapping[str, int] = {"plain": 76, "killed": 14, "full": 6, "paused": 4}
"""How a command runs: to its end; killed; on a full disk; or standing still while another host runs a command."""
_RULES = ("last 1", "last 1", "last 2", "last 3", "within 3d", "within 30d", "tag nothing")
_LOOKS = ("list", "check", "doctor", "info", "key list", "config show")
_DAMAGES: Mapping[str, int] = {
    "blob:chunk": 6,
    "blob:leaf": 4,
    "blob:inner": 2,
    "blob:document": 2,
    "blob:segment": 2,
    "pack:cut": 2,
    "pack:grown": 2,
    "pack:gone": 2,
    "pack:zeroed": 1,
    "pack:head": 2,
    "commit:flipped": 3,
    "commit:trailer": 1,
    "commit:cut": 1,
    "commit:grown": 1,
    "commit:gone": 1,
    "commit:zeroed": 1,
    "file:": 2,
    "swap:p": 2,
    "swap:w": 1,
}
_JUNK = ("pack", "pack-copy", "commit", "index", "slot", "top")
_CLOCKS = ("-400d", "-2d", "-1h", "+1h", "+2d", "+400d", "right", "right", "right")


@dataclass(frozen=True)
class Step:
    """One event. `number` is its chance's: it stays the same when steps before it are dropped."""

    number: int
    word: str
    host: str
    how: str
    what: str

    def __str__(self) -> str:
        return " ".join(map(str, (self.number, self.word, self.host, self.how, self.what))).rstrip()

    @classmethod
    def parse(cls, line: str) -> Step:
        """Read a line back. Raises ValueError."""
        number, word, host, how, *what = line.split(maxsplit=4)
        return cls(int(number), word, host, how, "".join(what).rstrip())


@dataclass(frozen=True)
class History:
    """What happens, and to what kind of repository."""

    seed: int
    lockless: bool
    checkpointed: bool
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "\n".join([f"{self.seed} {self.lockless:d} {self.checkpointed:d}", *map(str, self.steps)])

    @classmethod
    def parse(cls, text: str) -> History:
        """Read a history back. Raises ValueError."""
        first, *lines = text.strip().splitlines()
        seed, lockless, checkpointed = map(int, first.split())
        return cls(seed, bool(lockless), bool(checkpointed), tuple(map(Step.parse, lines)))


def draw(seed: int, hostile: Sequence[str] = ATTACKS) -> History:
    """The history of a seed."""
    chance = random.Random(f"history {seed}")
    lockless, checkpointed = chance.random() < 0.25, chance.random() < 0.3
    steps = [Step(number, "backup", host, "plain", "") for number, host in enumerate(("one", "two", "one"))]
    while len(steps) < LENGTH:
        steps.append(_draw(len(steps), chance, hostile))
        if steps[-1].what.startswith("commit:") and chance.random() < 0.6:  # before anybody mends it
            host, what = chance.choice(("one", "two", "stranger")), chance.choice(("latest", "emergency"))
            steps.append(Step(len(steps), "restore", host, "plain", what))
    # What was found is acted upon: everybody knows what is broken, and everybody prunes.
    ends = [("verify", "two", "full"), *(("prune", host, "last 1") for host in ("one", "two", "stranger"))]
    steps += [Step(len(steps) + at, word, host, "plain", what) for at, (word, host, what) in enumerate(ends)]
    return History(seed, lockless, checkpointed, tuple(steps))


def _draw(number: int, chance: random.Random, hostile: Sequence[str]) -> Step:
    word = _weighted(_WEIGHTS, chance)
    host = chance.choice(("one", "one", "two", "two", "stranger"))
    if word == "backup" and host == "stranger":
        host = "one"
    how = _weighted(_MODES, chance) if word in _COMMANDS else "plain"
    return Step(number, word, host, how, _what(word, chance, hostile))


def _what(word: str, chance: random.Random, hostile: Sequence[str]) -> str:
    if word == "damage":
        return _weighted(_DAMAGES, chance)
    choices = {
        "prune": _RULES,
        "verify": ("full", "full", "sample", "structure"),
        "restore": ("latest", "named", "emergency"),
        "look": _LOOKS,
        "delete": ("oldest", "newest", "any"),
        "label": ("tag", "pin", "unpin"),
        "junk": _JUNK,
        "heal": ("all", "all", "one"),
        "clock": _CLOCKS,
        "forget": ("cache", "cache", "state", "old"),
        "wait": ("1h", "1d", "8d", "35d"),
        "hostile": hostile,
    }
    return chance.choice(choices.get(word, ("",)))


def _weighted(weights: Mapping[str, int], chance: random.Random) -> str:
    return chance.choices(list(weights), list(weights.values()))[0]
