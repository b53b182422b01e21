"""Deletion under the store's lock (FORMAT 8, exclusive mode): one blob, runs that share a lock, prunes that own it.

As in `grace`: every pack holds the blob, every snapshot needs it. The lock may be lost without its holder noticing at
once (a broken connection), and the power may fail: then what was not synced is gone, and removals are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

LOCK_FIRST = "lock first"  # runs hold the lock from before their first listing to their end
REREAD = "re-read"  # prune reads the heads again under its lock
RECHECK = "re-check"  # a run whose lock was lost takes it again and looks up again what it uses
STOP = "stop"  # a prune whose lock was lost deletes nothing more
MARK_SESSIONS = "mark sessions"  # what an unfinished run said it stored is needed
DURABLE = "durable"  # copies are synced and read back before the old pack goes
RULES = frozenset({LOCK_FIRST, REREAD, RECHECK, STOP, MARK_SESSIONS, DURABLE})

NOBODY, SHARED, ALONE = 0, 1, 2


class Run(NamedTuple):
    """A backup. `phase`: 0 not begun, 1 listed and used something, 2 over. `lost`: its lock is gone."""

    phase: int = 0
    used: int = 0
    lost: bool = False


class Prune(NamedTuple):
    """A prune. `phase`: 0 not begun, 1 looked without the lock, 2 marked under it, 3 deleted, 4 over."""

    phase: int = 0
    need: bool = False
    held: int = 0
    doomed: int = 0
    lost: bool = False


class State(NamedTuple):
    """Everything. `locks`: what each run and then each prune holds. `session`: the packs an unfinished run named."""

    old: bool
    saved: bool
    present: int
    durable: int
    session: int
    locks: tuple[int, ...]
    runs: tuple[Run, ...]
    prunes: tuple[Prune, ...]
    power: bool = True


def lost(state: State) -> bool:
    """A snapshot stands and no pack is left."""
    return (state.old or state.saved) and not state.present


def initial(*, old: bool, runs: int = 2, prunes: int = 2) -> State:
    """One pack; a snapshot needs it, or was removed."""
    return State(old, False, 1, 1, 0, (NOBODY,) * (runs + prunes), (Run(),) * runs, (Prune(),) * prunes)


class Model:
    """The steps."""

    def __init__(self, rules: frozenset[str] = RULES) -> None:
        self.rules = rules

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """Everything that may happen next."""
        if state.power:
            idle = tuple(NOBODY for _ in state.locks)
            yield (
                "power fails",
                state._replace(
                    power=False, present=state.present & state.durable, locks=idle,
                    runs=tuple(Run() if run.phase == 1 else run for run in state.runs),
                    prunes=tuple(Prune() if 0 < prune.phase < 4 else prune for prune in state.prunes),
                ),
            )  # fmt: skip
        for number, run in enumerate(state.runs):
            yield from self._run(state, number, run)
        for number, prune in enumerate(state.prunes):
            yield from self._prune(state, number, prune)

    def _may(self, state: State, place: int, wanted: int) -> bool:
        others = [lock for at, lock in enumerate(state.locks) if at != place]
        return not any(lock == ALONE or (wanted == ALONE and lock) for lock in others)

    @staticmethod
    def _locked(state: State, place: int, lock: int) -> State:
        return state._replace(locks=(*state.locks[:place], lock, *state.locks[place + 1 :]))

    # -- backing up ----------------------------------------------------------------------------------------------------

    def _with_run(self, state: State, number: int, run: Run) -> State:
        return state._replace(runs=(*state.runs[:number], run, *state.runs[number + 1 :]))

    def _run(self, state: State, number: int, run: Run) -> Iterator[tuple[str, State]]:
        if run.phase == 0:
            holding = state
            if LOCK_FIRST in self.rules:
                if not self._may(state, number, SHARED):
                    return
                holding = self._locked(state, number, SHARED)
            for label, after in self._use(holding, number):
                yield f"{label} (run {number})", after
        elif run.phase == 1:
            if state.locks[number] and not run.lost:
                gone = self._locked(state, number, NOBODY)
                yield f"lose connection (run {number})", self._with_run(gone, number, run._replace(lost=True))
            # Stopping where it is, after it told what it stored: also a SESSION is published under the lock only.
            told = self._locked(state, number, NOBODY)._replace(session=state.session | run.used)
            stopped = self._with_run(told._replace(durable=state.durable | run.used & state.present), number, Run())
            if not state.session and state.present & run.used and not (run.lost and RECHECK in self.rules):
                yield f"stop (run {number})", stopped
            yield from self._publish(state, number, run)

    def _use(self, state: State, number: int) -> Iterator[tuple[str, State]]:
        own = 1 << (1 + number)
        for at in range(state.present.bit_length()):
            if state.present >> at & 1:
                yield "reuse", self._with_run(state, number, Run(1, 1 << at))
        if state.session:
            # A run that goes on where another stopped relies on what that one told.
            yield "resume", self._with_run(state, number, Run(1, state.session))
        stored = state._replace(present=state.present | own)
        yield "store", self._with_run(stored, number, Run(1, own))

    def _publish(self, state: State, number: int, run: Run) -> Iterator[tuple[str, State]]:
        if not self._may(state, number, SHARED):
            return
        present = state.present
        if run.lost and RECHECK in self.rules and not present & run.used:
            present |= 1 << (1 + number)
        # Packs, sync, commit, sync.
        done = self._locked(state, number, NOBODY)._replace(
            saved=True, present=present, durable=present & (state.durable | run.used | 1 << (1 + number)), session=0
        )
        yield f"publish (run {number})", self._with_run(done, number, Run(2))

    # -- pruning -------------------------------------------------------------------------------------------------------

    def _with_prune(self, state: State, number: int, prune: Prune) -> State:
        return state._replace(prunes=(*state.prunes[:number], prune, *state.prunes[number + 1 :]))

    def _looked(self, state: State, prune: Prune) -> Prune:
        held = state.session if MARK_SESSIONS in self.rules else 0
        return prune._replace(need=state.old or state.saved, held=held)

    def _prune(self, state: State, number: int, prune: Prune) -> Iterator[tuple[str, State]]:
        place = len(state.runs) + number
        if prune.phase == 0:
            yield f"look (prune {number})", self._with_prune(state, number, self._looked(state, Prune(1)))
        elif prune.phase == 1 and self._may(state, place, ALONE):
            seen = self._looked(state, prune) if REREAD in self.rules else prune
            yield from self._mark(self._locked(state, place, ALONE), number, seen)
        elif prune.phase == 2:
            if state.locks[place]:
                gone = self._locked(state, place, NOBODY)
                yield f"lose connection (prune {number})", self._with_prune(gone, number, prune._replace(lost=True))
            if not (prune.lost and STOP in self.rules):
                left = state._replace(present=state.present & ~prune.doomed, durable=state.durable & ~prune.doomed)
                yield f"delete (prune {number})", self._with_prune(self._locked(left, place, NOBODY), number, Prune(4))

    def _mark(self, state: State, number: int, prune: Prune) -> Iterator[tuple[str, State]]:
        if not prune.need:
            after = prune._replace(phase=2, doomed=state.present & ~prune.held)
            yield f"mark (prune {number})", self._with_prune(state, number, after)
            return
        own = 1 << (1 + len(state.runs) + number)
        copied = state._replace(present=state.present | own)
        if DURABLE in self.rules:
            copied = copied._replace(durable=copied.durable | own)
        after = prune._replace(phase=2, doomed=state.present & ~own & ~prune.held)
        yield f"copy (prune {number})", self._with_prune(copied, number, after)
