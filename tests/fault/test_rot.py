"""Rot in each kind of object of each age, on each host, read before or not, then every command (decision 0036).

After each the emergency reader is asked: is any whole snapshot less restorable than before, is a volume left without
one, and did the command say that all is well over a hole?
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.rot import HOSTS
from tests.fault.rot_cells import COMMANDS, PRUNES, Bench, Cell, cells
from tests.fault.rot_damage import (
    CATALOGUES,
    CHECKPOINTED,
    COMMITS,
    DATA,
    KINDS,
    NODES,
    PACKS,
    Damage,
    damages,
    inflict,
)

SAMPLE = 120
SEED = 36


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """In memory where there is room: every command flushes what it writes."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="lamella-rot-", dir=memory) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def plain(place: Path) -> Bench:
    """A log of a few commits."""
    return Bench.build(place / "plain", {})


@pytest.fixture(scope="module")
def checkpointed(place: Path) -> Bench:
    """A log with checkpoints and catalogue segments, and packs named by index segments."""
    return Bench.build(place / "checkpointed", CHECKPOINTED)


def chosen() -> list[Cell]:
    """Those that are always looked at: what deletes, after what is found most easily overlooked, and a sample."""
    fixed = [
        *(Cell(Damage(kind, "newest"), "maker", True, command) for kind in (*DATA, *NODES) for command in PRUNES),
        *(Cell(Damage(kind, "newest"), "fresh", True, "prune-last") for kind in (*DATA, *NODES, *PACKS)),
        *(Cell(Damage(kind, "newest"), host, False, "prune-last") for kind in COMMITS for host in HOSTS),
        *(Cell(Damage(kind, "newest"), "restore.py", False, "restore-latest") for kind in COMMITS),
        *(Cell(Damage("leaf", "newest"), "other", False, command) for command in COMMANDS),
    ]
    rest = sorted(set(cells()).difference(fixed))
    return [*fixed, *random.Random(SEED).sample(rest, SAMPLE)]


def test_a_sound_repository_passes_every_command(plain: Bench, checkpointed: Bench) -> None:
    """The frame itself: with nothing broken, all that was backed up is whole."""
    for bench in (plain, checkpointed):
        bench.world.reset()
        assert all(bench.world.whole().values())
        for command in ("list", "check", "verify"):
            assert bench.world.run("fresh", command).code == 0
        bench.world.ok("maker", "prune", "--keep-last", "1")


@pytest.mark.timeout(1200)
def test_rot_then_a_command(plain: Bench, checkpointed: Bench) -> None:
    wanted = chosen()
    complaints = plain.examined([cell for cell in wanted if cell.damage.kind not in CATALOGUES])
    complaints += checkpointed.examined([cell for cell in wanted if cell.damage.kind in CATALOGUES])
    assert not complaints, "\n".join([f"{len(complaints)} complaints in {len(wanted)} cells:", *complaints])


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_rot_of_a_kind_then_every_command(plain: Bench, checkpointed: Bench, kind: str) -> None:
    bench = checkpointed if kind in CATALOGUES else plain
    complaints = bench.examined([cell for cell in cells() if cell.damage.kind == kind])
    assert not complaints, "\n".join([f"{len(complaints)} complaints", *complaints])


@pytest.mark.long
@pytest.mark.parametrize("kind", COMMITS)
def test_rot_of_a_commit_after_a_checkpoint_then_every_command(checkpointed: Bench, kind: str) -> None:
    wanted = {Damage(kind, "middle"), Damage(kind, "newest")}
    complaints = checkpointed.examined([cell for cell in cells() if cell.damage in wanted])
    assert not complaints, "\n".join([f"{len(complaints)} complaints", *complaints])


@pytest.mark.parametrize("kind", ["container", "zeroed", "gone"])
@pytest.mark.parametrize("host", HOSTS)
def test_commits_before_an_audited_checkpoint_say_nothing(checkpointed: Bench, kind: str, host: str) -> None:
    """What they said stands in the checkpoint: nothing is missing, and nothing is less restorable."""
    world = checkpointed.world
    world.reset()
    inflict(world, checkpointed.spots, Damage(kind, "oldest"))
    assert all(world.whole().values())
    for command in ("list", "check", "doctor"):
        assert world.run(host, command).code == 0, command
    world.ok(host, "prune", "--keep-last", "2", "--remove-delay", "0h")
    whole = world.whole()
    assert {one.age for one in whole if one.volume in {"v", "w"} and not whole[one]} == {"oldest"}


@pytest.mark.parametrize(
    "damage", [one for one in damages() if one.kind in ("chunk", "leaf", "inner", "document")], ids=str
)
def test_the_damages_are_where_they_should_be(plain: Bench, damage: Damage) -> None:
    """What a damage breaks is what it says."""
    assert plain.examined([Cell(damage, "fresh", False, "config")]) == []
