"""What opening costs after a long life: few requests and few bytes, whatever was published and removed meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.opening import grow

pytestmark = pytest.mark.slow


def test_a_new_machine_opens_an_old_repository_with_few_requests(tmp_path: Path) -> None:
    cost = grow(tmp_path, 200, removes=False)
    assert cost.requests < 100
    assert cost.read_bytes < 500 * cost.snapshots
    assert cost.commits < cost.published


def test_what_was_removed_costs_nothing_in_the_end(tmp_path: Path) -> None:
    cost = grow(tmp_path, 100, removes=True)
    assert cost.published > 2 * cost.snapshots
    assert cost.requests < 100
    assert cost.commits < cost.published
