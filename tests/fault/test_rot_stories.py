"""What was found by attacking (C1, H1, H2), and two hosts that prune: each as commands, with literal results."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from lamella.stores.local.store import LocalStore
from tests.cli.program import Done
from tests.fault.rot import Wanted, World, same, write_volume
from tests.fault.rot_cells import NEWEST_FIRST, PRUNES, Bench, kept
from tests.fault.rot_damage import DATA, LOCKLESS, NODES, PACKS, Damage, flip, inflict, rot

KEEP_ONE = ("prune", "--keep-last", "1")
FULL = ("verify", "--level", "full")


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """The repository, in memory where there is room."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="lamella-rot-", dir=memory) as name:
        yield Bench.build(Path(name) / "plain", {})


@pytest.fixture
def world(bench: Bench) -> World:
    """As it was when it was made."""
    bench.world.reset()
    bench.world.days_ago = 0
    return bench.world


def rotten(bench: Bench, kind: str, age: str = "newest") -> None:
    """Let something rot."""
    inflict(bench.world, bench.spots, Damage(kind, age))


def listed(world: World, volume: str = "v", host: str = "maker") -> set[str]:
    """The ages of a volume that are listed."""
    ages = {name: age for age, name in world.names.items()}
    rows = json.loads(world.run(host, "list", volume, "--json").out)["snapshots"]
    return {ages.get(row["snapshot"], "later") for row in rows if volume in row["volumes"]}


def restores(
    world: World, age: str, code: int = 0, *, hosts: tuple[str, ...] = ("maker", "fresh", "restore.py")
) -> None:
    """Every reader gives the right bytes of a snapshot of `v` that is named in full, and this exit code."""
    for host in hosts:
        out = world.place / "out"
        out.unlink(missing_ok=True)
        words = ("restore", world.at("v", age), "--to", out)
        done = world.rescue(*words) if host == "restore.py" else world.run(host, *words)
        assert (done.code, same(out, world.truth[Wanted("v", age)])) == (code, True), (host, done)
        out.unlink()


def latest_is_broken(world: World) -> None:
    """What came back is as old as it was: the latest is still the newest one, and nobody gives older data for it."""
    out = world.place / "out"
    out.unlink(missing_ok=True)
    for host in ("maker", "other", "fresh"):
        nothing_restored(world, world.run(host, "restore", "v", "--to", out), 20)
    nothing_restored(world, world.rescue("restore", "v", "--to", out), 20)


def nothing_restored(world: World, done: Done, code: int) -> None:
    """The command ended so, and wrote no file."""
    assert (done.code, (world.place / "out").exists()) == (code, False), done


def killed_before_deletion(world: World, host: str, *words: str) -> None:
    """The command published what it removes, and died when the first pack was to go."""
    before = {name for name in world.objects() if name.startswith("p/")}
    with mock.patch.object(LocalStore, "delete", side_effect=KeyboardInterrupt):
        done = world.run(host, *words)
    assert done.code == 130, done
    assert before <= set(world.objects()), "a pack is gone"


# -- C1: rot in the newer one deleted the older, whole one -------------------------------------------------------------


@pytest.mark.parametrize("pruner", ["maker", "other", "fresh"])
@pytest.mark.parametrize("kind", ["chunk", "leaf", "inner", "document"])
def test_c1_rot_in_the_newest_keeps_the_whole_one_before(bench: Bench, world: World, kind: str, pruner: str) -> None:
    rotten(bench, kind)
    assert world.run("maker", *FULL).code == 20
    assert "DAMAGED" in world.run("maker", "list").out
    for _ in range(2):
        done = world.run(pruner, *KEEP_ONE)
        assert done.code == 20, done
        restores(world, "middle")
    assert listed(world) == {"newest", "middle"}
    # The broken one goes on request, and then the rest is as good as any.
    world.ok("maker", "delete", world.at("v", "newest"), "-y")
    world.ok("maker", *KEEP_ONE)
    assert listed(world) == {"middle"}
    restores(world, "middle")


@pytest.mark.parametrize("kind", ["chunk", "leaf", "inner", "document"])
def test_c1_after_a_repair_said_what_is_lost(bench: Bench, world: World, kind: str) -> None:
    rotten(bench, kind)
    shutil.rmtree(world.place / "src", ignore_errors=True)
    assert world.run("maker", "repair", "-y").code == 20
    # A loss that its author recorded is shown ever after, counts as not whole, and stops nothing.
    assert world.run("maker", *KEEP_ONE).code == 0
    restores(world, "middle")
    assert listed(world) == {"newest", "middle"}
    assert bench.spots.packs["oldest"] not in world.objects()
    for host in ("other", "fresh"):
        assert "INCOMPLETE" in world.run(host, "list").out
        assert world.run(host, *KEEP_ONE).code == 0
        restores(world, "middle")


@pytest.mark.parametrize("kind", ["chunk", "leaf"])
def test_c1_delete_refuses_the_last_whole_one(bench: Bench, world: World, kind: str) -> None:
    rotten(bench, kind)
    world.run("maker", *FULL)
    before = world.objects()
    done = world.run("maker", "delete", world.at("v", "middle"), world.at("v", "oldest"), "-y")
    assert done.code == 2 and "--yes-last" in done.err, done
    assert world.objects() == before
    assert world.run("maker", "prune", "--keep-tag", "nothing").code == 20
    assert listed(world) == {"newest", "middle"}, "the last one, and the last whole one"
    restores(world, "middle")


def test_unread_rot_is_the_one_exception(bench: Bench, world: World) -> None:
    """Nobody has read it, so nobody can know it: the newest is kept (TRUST R3 is a later landing). A node is read."""
    rotten(bench, "leaf")
    assert world.run("maker", *KEEP_ONE).code == 20
    restores(world, "middle")


def test_a_false_alarm_dies(bench: Bench, world: World) -> None:
    """What opens when it is read again is not bad, whatever was published of it."""
    sound = world.objects()
    rotten(bench, "chunk")
    assert world.run("maker", *FULL).code == 20
    name = bench.spots.places(Damage("chunk", "newest"))[0][0]
    (world.repo / name).write_bytes(sound[name])
    world.ok("other", *KEEP_ONE)
    assert listed(world) == {"newest"}
    restores(world, "newest")


def test_a_weaker_check_hides_nothing(bench: Bench, world: World) -> None:
    rotten(bench, "chunk")
    assert world.run("maker", *FULL).code == 20
    assert world.run("other", "verify", "--level", "sample").code == 20
    world.run("maker", "verify", "--level", "structure")
    assert "DAMAGED" in world.run("maker", "list").out


# -- H1, H2: a commit that cannot be read ------------------------------------------------------------------------------

PROVEN = pytest.mark.parametrize("kind", ["container", "directory", "trailer", "truncated"])
JUDGE = (["check"], ["doctor"], ["verify"], [*FULL], ["verify", "--level", "structure"], [*KEEP_ONE], [*KEEP_ONE, "-n"])
TELL = (["list"], ["info"], ["tag", "w@latest", "x"], ["rename", "w", "other"], ["key", "list"], ["info", "w@latest"])


@PROVEN
@pytest.mark.parametrize("host", ["maker", "other", "fresh"])
def test_h1_no_command_says_fine_over_a_broken_commit(bench: Bench, world: World, kind: str, host: str) -> None:
    rotten(bench, kind)
    world.sources("newest")
    before = world.objects()
    commands: list[Sequence[str | Path]] = [*JUDGE, ["delete", world.at("v", "oldest"), "-y"]]
    if host == "fresh":  # the others have read it when it was sound
        commands += [*TELL, world.backup_words(), ["copy", "--to", world.second, "--to-keyfile", world.key]]
    ended = {" ".join(map(str, words)): world.run(host, *words).code for words in commands}
    assert ended == dict.fromkeys(ended, 21)
    assert world.objects() == before
    for age in ("middle", "oldest"):
        restores(world, age, 21, hosts=("fresh", "restore.py"))


@PROVEN
def test_h2_the_older_data_is_not_given_for_the_latest(bench: Bench, world: World, kind: str) -> None:
    rotten(bench, kind)
    out = world.place / "out"
    out.unlink(missing_ok=True)
    nothing_restored(world, world.run("fresh", "restore", "v", "--to", out), 21)
    nothing_restored(world, world.rescue("restore", "v", "--to", out), 21)
    for host in ("maker", "other"):  # they have read the commit when it was sound
        done = world.run(host, "restore", "v", "--to", out)
        assert (done.code, same(out, world.truth[Wanted("v", "newest")])) in {(0, True), (21, False)}, done
        out.unlink(missing_ok=True)
    assert world.rescue("list").code == 21
    restores(world, "middle", 21, hosts=("fresh", "restore.py"))
    assert listed(world, host="fresh") == {"middle", "oldest"}


def test_whose_history_is_missing_decides_what_is_restored(world: World) -> None:
    """A third host, which may only add, saves `y` twice; its newest commit breaks, and nobody else's."""
    out, key = world.place / "out", world.place / "live" / "writer"
    out.unlink(missing_ok=True)
    image = write_volume(world.place / "live" / "y.img", {0: b"y"})
    world.ok("maker", "key", "add", "--new-keyfile", key, "--generate", "--role", "writer")
    world.ok("third", "backup", image, "--keyfile", key)
    before = set(world.objects())
    world.ok("third", "backup", image, "--keyfile", key)
    (commit,) = (name for name in set(world.objects()) - before if name.startswith("w/"))
    rot(world.repo / commit, flip(-10))
    for run in (partial(world.run, "maker"), partial(world.run, "fresh"), world.rescue):
        nothing_restored(world, run("restore", "y", "--to", out), 21)
        done = run("restore", "v", "--to", out)
        assert (done.code, same(out, world.truth[Wanted("v", "newest")])) == (21, True), done
        out.unlink()
    restores(world, "newest", 21)


def test_who_signed_with_the_prune_key_may_have_said_anything(bench: Bench, world: World) -> None:
    """The broken commit is the maker's, who made the repository: `x` is given only if it is named in full."""
    rotten(bench, "container")
    out = world.place / "out"
    out.unlink(missing_ok=True)
    for host in ("fresh", "restore.py"):
        for what, right in (("x", False), (world.at("x", "newest"), True)):
            words = ("restore", what, "--to", out)
            done = world.rescue(*words) if host == "restore.py" else world.run(host, *words)
            assert (done.code, same(out, world.truth[Wanted("x", "newest")])) == (21, right), (host, what, done)
            out.unlink(missing_ok=True)


@pytest.mark.parametrize("kind", ["container", "zeroed", "gone"])
def test_given_up_history_lets_all_hosts_go_on(bench: Bench, world: World, kind: str) -> None:
    """FORGO excuses the loss for every host; the number is never used again, so its return is no fork."""
    sound = world.objects()
    rotten(bench, kind)
    name = bench.spots.commits["newest"][0]
    shutil.rmtree(world.place / "live" / "maker" / "cache")
    assert world.run("maker", "check").code == 21
    done = world.run("maker", "check", "--give-up", name, "-y")
    assert done.code == 0, done
    world.sources("changed")
    world.ok("maker", *world.backup_words())
    for host in ("maker", "other", "fresh"):
        assert world.run(host, "list").code == 0, host
    restores(world, "middle")
    # Nothing else is given up with it: the commit before it is missed as ever when it is lost later.
    left = max(one for one in world.objects() if one.startswith(name.rpartition("/")[0]) and one < name)
    kept = (world.repo / left).read_bytes()
    (world.repo / left).unlink()
    for host in ("maker", "other", "fresh"):
        assert world.run(host, "check").code == world.rescue("list").code == 21, host
    (world.repo / left).write_bytes(kept)
    (world.repo / name).write_bytes(sound[name])
    assert len([one for one in world.objects() if one.startswith(name.partition("-")[0])]) == 1
    assert world.run("fresh", "list").code == 0
    restores(world, "newest")


# -- two hosts ---------------------------------------------------------------------------------------------------------

RULES = (["--keep-last", "1"], ["--keep-within", "30d"], ["--thin-older", "10d:year"], ["--keep-tag", "nothing"])


@pytest.mark.parametrize("kind", ["chunk", "leaf"])
@pytest.mark.parametrize("age", ["newest", "middle", "oldest"])
def test_two_hosts_prune_in_turn_with_different_rules(bench: Bench, world: World, kind: str, age: str) -> None:
    rotten(bench, kind, age)
    world.run("other", *FULL)
    for number in range(8):
        world.run(("maker", "other")[number % 2], "prune", *RULES[number % len(RULES)])
        whole = world.whole()
        left = {one.age for one in listed_whole(world, whole)}
        assert left, f"step {number}: nothing of v is whole any more"
    assert all(whole[one] for one in whole if one.volume == "x")


def listed_whole(world: World, whole: dict[Wanted, bool]) -> list[Wanted]:
    """The snapshots of `v` whose volume restores."""
    return [one for one in whole if one.volume == "v" and not one.document and whole[one]]


def brought_back(bench: Bench, kind: str, pruner: str) -> None:
    """All but the newest were removed, no pack was deleted yet; then the newest turned out to be broken, and a prune
    brought the one before back.
    """
    world = bench.world
    killed_before_deletion(world, "maker", *KEEP_ONE)
    assert listed(world) == {"newest"}
    rotten(bench, kind)
    assert world.run("other", *FULL).code == 20
    world.days_ago = -1
    assert world.run(pruner, *KEEP_ONE).code == 20
    assert listed(world) == {"newest", "middle"}


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("pruner", ["maker", "other", "fresh"])
@pytest.mark.parametrize("kind", ["chunk", "leaf"])
def test_what_a_killed_prune_removed_comes_back(bench: Bench, kind: str, pruner: str) -> None:
    brought_back(bench, kind, pruner)
    restores(bench.world, "middle")


@pytest.mark.parametrize("kind", ["chunk", "leaf"])
def test_what_came_back_is_as_old_as_it_was(bench: Bench, world: World, kind: str) -> None:
    """It is not the latest, and pushes nothing out: other hosts see it arrive now, and know better."""
    brought_back(bench, kind, "other")
    latest_is_broken(world)
    for host in ("other", "maker", "fresh"):
        assert world.run(host, *KEEP_ONE).code == 20, host
        assert listed(world) == {"newest", "middle"}, host
    world.days_ago = -2
    world.sources("changed")
    world.ok("maker", *world.backup_words())
    assert world.run("maker", "prune", "--keep-last", "2").code == 20
    assert listed(world) == {"later", "newest", "middle"}, "the last two, and the last two whole ones"
    restores(world, "middle")


def test_what_had_gone_before_a_yes_last_stays_away(bench: Bench, world: World) -> None:
    """Somebody gave up the volume while what an earlier prune had removed was still there."""
    at_once = ("--remove-delay", "0h")
    killed_before_deletion(world, "maker", *KEEP_ONE)
    killed_before_deletion(world, "other", "delete", world.at("v", "newest"), "-y", "--yes-last", *at_once)
    for host in ("maker", "other", "fresh"):
        world.ok(host, *KEEP_ONE, *at_once)
        assert listed(world, host=host) == set()
    assert not set(bench.spots.packs.values()) & set(world.objects())


def test_what_was_removed_with_yes_last_stays_away(bench: Bench, world: World) -> None:
    rotten(bench, "chunk")
    assert world.run("maker", *FULL).code == 20
    killed_before_deletion(
        world, "maker", "delete", world.at("v", "middle"), world.at("v", "oldest"), "-y", "--yes-last"
    )
    assert listed(world) == {"newest"}
    for host in ("maker", "other", "fresh"):
        assert world.run(host, *KEEP_ONE).code == 20
        assert listed(world, host=host) == {"newest"}
    world.ok("maker", "delete", "v", "--all-snapshots", "-y", "--yes-last")
    world.ok("other", *KEEP_ONE)
    assert world.run("fresh", "list", "v").code in {0, 4}
    assert not [name for name in world.objects() if name in bench.spots.packs.values()]


# -- where no lock dies with its holder --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lockless(bench: Bench) -> Bench:
    """The same repository, reached through a file system without such a lock."""
    world = bench.world
    return Bench(World(world.place, LOCKLESS, world.names, world.truth), bench.spots)


@pytest.mark.parametrize("kind", ["chunk", "leaf"])
def test_removals_of_two_hosts_add_up_and_one_comes_back(lockless: Bench, kind: str) -> None:
    """One host kept the newest alone, before it broke; what it removed is condemned, and is needed again."""
    world = lockless.world
    world.reset()
    world.days_ago = 0
    world.ok("maker", *KEEP_ONE)
    assert listed(world) == {"newest"}
    assert set(lockless.spots.packs.values()) <= set(world.objects()), "it deleted at once"
    rotten(lockless, kind)
    world.run("other", *FULL)
    for day in range(1, 6):
        world.days_ago = -day
        for host in ("other", "maker"):
            done = world.run(host, *KEEP_ONE)
            assert done.code == 20, (day, host, done)
        restores(world, "middle", hosts=("other", "restore.py"))
        latest_is_broken(world)
    assert listed(world) == {"newest", "middle"}
    # Below a node that cannot be read anything may be needed: there the domain keeps all its packs.
    assert (lockless.spots.packs["oldest"] in world.objects()) == (kind == "leaf")


@pytest.mark.long
@pytest.mark.parametrize("age", ["newest", "middle", "shared"])
@pytest.mark.parametrize("kind", [*DATA, *NODES, *PACKS])
def test_prunes_without_a_lock_keep_what_is_whole(lockless: Bench, kind: str, age: str) -> None:
    """Two hosts in turn, for a week, by one rule each time: what it keeps of the whole ones stays whole."""
    world = lockless.world
    world.reset()
    world.days_ago = 0
    rotten(lockless, kind, age)
    world.run("other", *FULL)
    before = world.whole()
    broken = frozenset(one.age for one in before if one.volume == "v" and not before[one])
    stays = {"v": kept(PRUNES["prune-last"][1], NEWEST_FIRST, broken), "w": {"newest"}, "x": {"newest"}}
    for day in range(8):
        world.days_ago = -day
        for host in ("maker", "other", "fresh"):
            world.run(host, *KEEP_ONE)
            world.run(host, *FULL)
        now = world.whole()
        assert [one for one in before if before[one] and not now[one] and one.age in stays[one.volume]] == [], (
            f"day {day}"
        )
