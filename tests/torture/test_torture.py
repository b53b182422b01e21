"""The short form of the torture, and that it finds the faults which attacks had found before."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.__main__ import in_memory, told
from tests.torture.faults import FAULTS, put_back
from tests.torture.run import Complaint, Figures, Torture
from tests.torture.shrink import shrunk
from tests.torture.steps import History, Step, draw

FIRST = 1
SHORT = 30
"""Histories of the short form: a minute on a calm machine. By hand: make torture TORTURE_ARGS='--minutes 60'."""


def searched(figures: Figures) -> tuple[History, list[Complaint]] | None:
    """The first history of the short form after which something is wrong."""
    for seed in range(FIRST, FIRST + SHORT):
        history = draw(seed)
        found = told(history, figures)
        if found:
            return history, found
    return None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_whole_is_lost_and_no_command_says_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    figures = Figures()
    found = searched(figures)
    with capsys.disabled():
        print(f" torture: {figures}", end="")
    if found is not None:
        small, complaint = shrunk(found[0], found[1][0], told)
        pytest.fail(f"seed {found[0].seed}: {complaint}\nto see it: python -m tests.torture --replay FILE of\n{small}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_is_put_back_is_found(fault: str) -> None:
    with put_back(fault):
        assert searched(Figures()) is not None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_history_is_shortened_to_what_matters() -> None:
    """Publication decides again: a backup, rot, a verification and a prune are enough to see it."""
    with put_back("C1"):
        found = searched(Figures())
        assert found is not None
        small, complaint = shrunk(found[0], found[1][0], told)
        assert len(small.steps) < 10
        assert complaint.step == small.steps[-1]
        assert told(small, Figures()) != []


def test_a_history_is_read_back_from_its_lines() -> None:
    for seed in range(50):
        assert History.parse(str(draw(seed))) == draw(seed)
    assert Step.parse("3 backup one killed") == Step(3, "backup", "one", "killed", "")


def test_a_history_told_again_is_the_same() -> None:
    """Names, moments and bytes depend on the seed, and on where the repository lies."""
    with in_memory() as place:
        logs: list[list[str]] = [[], []]
        for log in logs:
            Torture(draw(5), place, Figures(), log.append).run()
        assert logs[0] == logs[1]


@pytest.mark.parametrize("path", sorted(Path(__file__).with_name("found").glob("*.txt")), ids=lambda path: path.stem)
def test_what_was_found_once_is_mended(path: Path) -> None:
    """Short histories after which something was wrong, each named after what was."""
    assert told(History.parse(path.read_text()), Figures()) == []
