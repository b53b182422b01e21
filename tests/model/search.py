"""A small breadth-first search over frozen states: every interleaving of a few processes, up to the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

State = TypeVar("State", bound=Hashable)
MOST_STATES = 2_000_000


@dataclass
class Outcome(Generic[State]):
    """What a search saw. `trace` is a shortest way to a bad state, empty if there is none."""

    states: int = 0
    trace: list[str] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)
    """Every kind of step that was possible somewhere (the first word of its text)."""

    @property
    def safe(self) -> bool:
        """No bad state can be reached."""
        return not self.trace


def search(
    initial: Iterable[State],
    steps: Callable[[State], Iterable[tuple[str, State]]],
    bad: Callable[[State], bool],
    *,
    most: int = MOST_STATES,
) -> Outcome[State]:
    """Visit everything that can be reached; stop at the first bad state."""
    outcome: Outcome[State] = Outcome()
    came: dict[State, tuple[State | None, str]] = {state: (None, "") for state in initial}
    queue = deque(came)
    while queue:
        state = queue.popleft()
        if bad(state):
            outcome.trace = _way(came, state)
            break
        for label, after in steps(state):
            outcome.labels.add(label.split()[0])
            if after not in came:
                came[after] = (state, label)
                queue.append(after)
        assert len(came) <= most, "the model grew beyond what a test may cost"
    outcome.states = len(came)
    return outcome


def _way(came: dict[State, tuple[State | None, str]], state: State) -> list[str]:
    words: list[str] = []
    at: State | None = state
    while at is not None:
        at, label = came[at]
        words.append(label)
    return [word for word in reversed(words) if word] or ["(at the start)"]
