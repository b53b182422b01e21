"""Exclusive mode is safe in every interleaving, and each rule has a counter-example when it is left out."""

from __future__ import annotations

import pytest

from tests.model.exclusive import RULES, Model, State, initial, lost
from tests.model.search import Outcome, search


def looked(rules: frozenset[str]) -> Outcome[State]:
    return search([initial(old=False), initial(old=True)], Model(rules).steps, lost)


def test_nothing_is_lost_while_all_rules_are_kept() -> None:
    outcome = looked(RULES)
    assert outcome.safe, outcome.trace
    assert {"delete", "copy", "reuse", "resume", "lose", "power"} <= outcome.labels


@pytest.mark.parametrize("rule", sorted(RULES))
def test_each_rule_has_a_counter_example(rule: str) -> None:
    outcome = looked(RULES - {rule})
    assert not outcome.safe, f"{rule} may be left out: {outcome.states} states"
