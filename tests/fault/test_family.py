"""Each member of the family of damaged repositories, against what is written down for it (tests/fault/family.json)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.family import ACTIONS, EXPECTED, Family, Json, build, members, small_steps

ROWS: dict[str, Json] = json.loads(EXPECTED.read_text("utf-8"))
EVERYTHING = 6
"""Snapshots in the sound repository."""
UNNOTICED = {"stale", "delete"}
"""A machine that knows nothing cannot see that the newest commits are missing: there it repairs nothing."""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    with small_steps():
        yield build(tmp_path_factory.mktemp("family"))


@pytest.mark.parametrize("place", ROWS)
def test_member(family: Family, tmp_path: Path, place: str) -> None:
    found = members(place, family, tmp_path)
    for action, outcome in found.items():
        assert outcome == ROWS[place][action], f"{place}, {action}"


def test_every_place_and_action_has_its_expectation(family: Family) -> None:
    assert set(ROWS) == set(family.places)
    assert all(set(row) == set(ACTIONS) for row in ROWS.values())


@pytest.mark.parametrize("place", ROWS)
def test_expectations_keep_the_laws(place: str) -> None:
    """Whatever is written down anew must still be as it should be."""
    for action, row in ROWS[place].items():
        what = f"{place}, {action}"
        if "refused" in row["verify"]:
            assert place in ("marker", "slot"), what
            continue
        seen, alone = row["verify"], row["repair by the host that wrote it"]
        assert set(seen["restores"]) <= set(row["restore.py"]), f"{what}: the emergency reader restores less"
        assert len(seen["restores"]) == EVERYTHING or seen["findings"] or seen["problems"] or action in UNNOTICED, what
        assert set(seen["restores"]) <= set(alone["then"]["restores"]), f"{what}: a repair made it worse"
        assert set(row["restore.py"]) <= set(alone["restore.py"]), f"{what}: a repair made it worse for restore.py"
        lost = set(alone["lost"])
        assert len(lost) + len(alone["then"]["restores"]) == EVERYTHING, f"{what}: lost and not recorded"
        copied = row["repair by a stranger with a copy"]
        assert not copied["lost"], what
        if action not in UNNOTICED:
            assert len(copied["then"]["restores"]) == EVERYTHING, f"{what}: a copy has everything"
