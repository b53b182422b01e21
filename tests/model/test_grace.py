"""Grace mode is safe in every interleaving of these worlds, and each rule is there for a reason the search can show."""

from __future__ import annotations

import pytest

from tests.model.grace import (
    ACKNOWLEDGE,
    ALL_BRANCHES,
    ANNOUNCE,
    CLOSED_VIEW,
    COLLECTORS_ACKNOWLEDGE,
    DONE,
    EVERY_BATCH,
    GONE,
    GRACE,
    MARK_SESSIONS,
    MERGE,
    NO_REUSE,
    PLAIN,
    REREAD,
    RULES,
    SAME_BATCH,
    SESSIONS_HOLD,
    SOUND_KEEPER,
    WINDOW,
    Commit,
    Model,
    State,
    World,
    initial,
    lost,
)
from tests.model.search import Outcome, search

OLD = Commit("a", DONE)
"""A snapshot of a writer that still takes part."""
REMOVED = (OLD, Commit("c", GONE, 0, 0, 1))
OWN_REMOVED = (Commit("c", DONE), Commit("c", GONE, 0))
"""Only the collector ever wrote anything."""

WORLDS = {
    "one writer, stale listings, clocks that lie": World(
        first=REMOVED, stale=True, lying_clocks=True, pins=True, repack=True, hours=2
    ),
    "two processes of one writer": World(first=REMOVED, writers=("a", "a"), lying_clocks=True),
    "a writer nobody knew": World(first=REMOVED, writers=("a", "b"), stale=True),
    "a stranger whose clock lies": World(first=OWN_REMOVED, writers=("b",), lying_clocks=True, hours=2),
    "a base that is removed": World(first=(OLD,), base=True, remove=True, lying_clocks=True, pins=True, hours=2),
    "two collectors": World(first=REMOVED, collectors=("c", "d")),
    "two collectors of one pack": World(first=OWN_REMOVED, collectors=("c", "d"), writers=("b",), whims=True),
    "two collectors that copy": World(
        first=(Commit("c", DONE), Commit("d", PLAIN)),
        collectors=("c", "d"),
        writers=(),
        packs=2,
        repack=True,
        stale=True,
        hours=2,
    ),
    "sessions that expire": World(first=REMOVED, expire=True, stale=True, hours=2),
    "a copied machine": World(first=REMOVED, writers=("a", "a"), sessions=(0, 0), expire=True),
    "a client of an older version": World(first=REMOVED, old_client=True, lying_clocks=True),
    "a store that hides a chain": World(first=(OLD, Commit("c", PLAIN, seen=1)), writers=(), hidden=True),
}

LEFT_OUT = [
    ({ANNOUNCE}, "a stranger whose clock lies"),
    ({SESSIONS_HOLD}, "two processes of one writer"),
    ({MARK_SESSIONS}, "a base that is removed"),
    ({ACKNOWLEDGE}, "a client of an older version"),
    ({REREAD}, "sessions that expire"),
    ({GRACE}, "sessions that expire"),
    ({NO_REUSE}, "one writer, stale listings, clocks that lie"),
    ({EVERY_BATCH}, "two collectors of one pack"),
    ({MERGE}, "sessions that expire"),
    ({WINDOW}, "sessions that expire"),
    ({WINDOW}, "a copied machine"),
    ({ALL_BRANCHES}, "a copied machine"),
    ({CLOSED_VIEW}, "a store that hides a chain"),
    # Two lines of defence: either holds without the other (see below), none does not.
    ({SAME_BATCH, SOUND_KEEPER}, "two collectors that copy"),
    ({SAME_BATCH, GRACE, COLLECTORS_ACKNOWLEDGE}, "two collectors that copy"),
]
SECOND_LINE = [
    ({SAME_BATCH, GRACE}, "two collectors that copy"),
    ({SAME_BATCH, COLLECTORS_ACKNOWLEDGE}, "two collectors that copy"),
    ({SOUND_KEEPER, COLLECTORS_ACKNOWLEDGE}, "two collectors that copy"),
]


def looked(world: World, without: set[str]) -> Outcome[State]:
    model = Model(world._replace(rules=RULES - without))
    return search([initial(world)], model.steps, lost)


@pytest.mark.parametrize("name", WORLDS)
def test_nothing_is_lost_while_all_rules_are_kept(name: str) -> None:
    outcome = looked(WORLDS[name], set())
    assert outcome.safe, outcome.trace
    # Without any deletion a model proves nothing; where a chain is hidden or a client is old, there must be none.
    kept = "hides" in name or "older version" in name
    assert ("delete" in outcome.labels) != kept, outcome.labels


@pytest.mark.parametrize(("without", "name"), LEFT_OUT, ids=lambda value: value if isinstance(value, str) else None)
def test_each_rule_has_a_counter_example(without: set[str], name: str) -> None:
    outcome = looked(WORLDS[name], without)
    assert not outcome.safe, f"{without} may be left out: {outcome.states} states"


@pytest.mark.parametrize(("without", "name"), SECOND_LINE, ids=lambda value: value if isinstance(value, str) else None)
def test_two_lines_of_defence(without: set[str], name: str) -> None:
    outcome = looked(WORLDS[name], without)
    assert outcome.safe, outcome.trace


def test_every_rule_is_left_out_somewhere() -> None:
    assert set().union(*(without for without, _ in LEFT_OUT)) == RULES
