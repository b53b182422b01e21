"""What `list` and `status` keep of the last look never hides anything: each look says what a host without it would say.

One host has looked and keeps its answers; then something happens, to the store, to the repository or to the host. Its
twin, the same host without answers, must then say the same on both streams, with the same exit code.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella.cli.main import main
from lamella.history import answers, checkpoints, log
from lamella.history.chains import HistoryReader, Listed
from lamella.operations.look import listing
from lamella.repository.repository import Repository
from tests.cli.test_missing_history import World, built, chain, damaged, lie, world

__all__ = ["built", "world"]

LOOKS = ("list", "status")
KNEW = "knew"


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A word for each time that a history is read."""
    made: list[str] = []
    read = log.Log.read

    def counted(self: log.Log, **options: object) -> None:
        made.append("read")
        read(self, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(log.Log, "read", counted)
    return made


def look(world: World, host: str) -> list[tuple[int, str, str]]:
    """What all looks say, without ages and the name of the host."""
    said = []
    for command in LOOKS:
        code, out, err = world.run(host, command, "--json")
        said.append((code, re.sub(r'"age_seconds": \d+', "AGE", out), err.replace(host, "HOST")))
    return said


def warm(world: World, host: str = KNEW) -> None:
    """Look until the answers are kept."""
    for _ in range(2):  # what the first look learns is part of what the second one follows from
        look(world, host)


def caches(world: World, host: str = KNEW) -> list[Path]:
    return list((world.place / host / "cache").glob("*/cache.sqlite"))


def change_cache(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def twin(world: World) -> str:
    """The same host without answers."""
    shutil.rmtree(world.place / "twin", ignore_errors=True)
    shutil.copytree(world.place / KNEW, world.place / "twin")
    for path in caches(world, "twin"):
        try:
            change_cache(path, "DELETE FROM answers")
        except sqlite3.OperationalError:
            pass  # it has none
        except sqlite3.DatabaseError:
            path.unlink()
    return "twin"


def says_the_same(world: World) -> list[tuple[int, str, str]]:
    """What the host says now, with answers and without, and once more when it has kept new ones."""
    other = twin(world)
    said = look(world, KNEW)
    assert said == look(world, other)
    assert look(world, KNEW) == look(world, twin(world))
    return said


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_a_second_look_reads_no_history_and_says_the_same(world: World, readings: list[str]) -> None:
    warm(world)
    readings.clear()
    said = look(world, KNEW)
    assert not readings
    assert said == look(world, twin(world)) and len(readings) == len(LOOKS)
    assert said[0][0] == 0 and all(shot in said[0][1] for shot in world.shots)


@pytest.mark.parametrize("options", [["-v"], ["--expect", "AAAA-AAAA-AAAA-AAAA"]])
def test_what_is_about_the_history_itself_is_read(world: World, readings: list[str], options: list[str]) -> None:
    warm(world)
    readings.clear()
    code, _, err = world.run(KNEW, "list", *options)
    assert readings and (code == 0) == (options == ["-v"])
    assert "5 snapshots" in err or "not the expected one" in err


def test_an_answer_cannot_be_read_without_the_keys(world: World) -> None:
    warm(world)
    (cache,) = caches(world)
    connection = sqlite3.connect(cache)
    rows = connection.execute("SELECT question, sealed FROM answers").fetchall()
    connection.close()
    assert sorted(row[0] for row in rows) == ["list", "status"]
    assert not any(b"disk" in row[1] or row[1][32:34] == b"\x78\x01" for row in rows)


# -- what happens meanwhile --------------------------------------------------------------------------------------------

Event = Callable[[World], None]
EVENTS: dict[str, Event] = {
    "nothing": lambda world: None,
    "a snapshot of another host": lambda world: world.backup("two", "other", b"p"),
    "an own snapshot": lambda world: world.backup(KNEW, "mine", b"m"),
    "a new volume": lambda world: world.backup("one", "second", b"s"),
    "a removal": lambda world: void(world.ok("one", "delete", f"disk@{world.shots[0]}", "-y")),
    "a volume that is deleted": lambda world: ended(world),
    "a prune": lambda world: void(world.ok("one", "prune", "--keep-last", "1", "-y")),
    "a tag": lambda world: void(world.ok("one", "tag", f"disk@{world.shots[1]}", "gold")),
    "another name": lambda world: void(world.ok("one", "rename", "disk", "plate")),
    "a verification": lambda world: void(world.ok(KNEW, "verify")),
    "a verification elsewhere": lambda world: void(world.ok("one", "verify")),
    "a rollback": lambda world: damaged(world.path(chain(world)[-1]), "deleted"),
    "a chain that is gone": lambda world: damaged(world.path(chain(world, "two")[0]), "deleted"),
    "a hole": lambda world: damaged(world.path(chain(world)[3]), "deleted"),
    "a commit that rots": lambda world: damaged(world.path(chain(world)[3]), "flipped"),
    "a lie about what was seen": lambda world: lie(world, chain(world)[-1]._replace(seq=99)),
    "junk under a commit's name": lambda world: junk(world),
    "an expelled writer": lambda world: expelled(world),
    "enrolment that is closed": lambda world: void(world.ok("one", "check", "--close-enrolment", "-y")),
    "a fork": lambda world: fork(world),
    "pins that are lost": lambda world: remembered(world, "pins.json").unlink(),
    "pins that are damaged": lambda world: void(remembered(world, "pins.json").write_text('{"heads": 3}')),
    "pins of what never was": lambda world: ahead(world),
    "a verdict that is damaged": lambda world: void(remembered(world, "verified.json").write_text("{")),
    "a memory that is lost": lambda world: shutil.rmtree(world.place / KNEW / "state"),
    "a cache that is lost": lambda world: shutil.rmtree(world.place / KNEW / "cache"),
    "a cache that is damaged": lambda world: void(caches(world)[0].write_bytes(b"no database" * 1000)),
    "a cache of another version": lambda world: change_cache(caches(world)[0], "PRAGMA user_version = 999"),
    "a cache without answers": lambda world: change_cache(caches(world)[0], "DROP TABLE answers"),
    "a cache that cannot be": lambda world: no_cache(world),
    "answers that are damaged": lambda world: flip(world),
    "answers to other questions": lambda world: swap(world),
    "a marker that is gone": lambda world: (world.store / "lamella").unlink(),
}  # fmt: skip


def void(_: object) -> None:
    """An event is what happened, and not what somebody said about it."""


def ended(world: World) -> None:
    world.ok("one", "delete", "disk", "--all-snapshots", "--yes-last", "-y")


def expelled(world: World) -> None:
    world.ok("one", "check", "--expel", chain(world, "two")[0].writer.hex(), "-y")


def remembered(world: World, name: str) -> Path:
    (path,) = (world.place / KNEW / "state" / "repo").glob(f"*/{name}")
    return path


def junk(world: World) -> None:
    newest = chain(world)[-1]
    world.path(newest._replace(seq=newest.seq + 1)).write_bytes(b"junk" * 100)


def fork(world: World) -> None:
    shutil.copytree(world.place / "two", world.place / "clone")
    for host in ("two", "clone"):
        arguments = ["--keyfile", str(world.place / "writer"), "backup", str(world.images / "other.img")]
        assert main(arguments, world.env(host)) == 0
        if host == "two":
            aside = world.place / "aside"
            newest = chain(world, "two")[-1]
            world.path(newest).rename(aside)
    aside.rename(world.path(newest))


def ahead(world: World) -> None:
    path = remembered(world, "pins.json")
    pins = json.loads(path.read_text())
    for seen in pins["heads"].values():
        seen[0] += 1
    path.write_text(json.dumps(pins))


def no_cache(world: World) -> None:
    shutil.rmtree(world.place / KNEW / "cache")
    (world.place / KNEW / "cache").write_text("a file")


def flip(world: World) -> None:
    change_cache(caches(world)[0], "UPDATE answers SET sealed = CAST(substr(sealed, 1, 99) || x'00' AS BLOB)")


def swap(world: World) -> None:
    """Each answer in the place of the other one, as somebody who may write the cache could do."""
    change_cache(
        caches(world)[0],
        "UPDATE answers SET question = '?' || question",
        "UPDATE answers SET question = CASE question WHEN '?list' THEN 'status' ELSE 'list' END",
    )


def swap_states(world: World) -> None:
    connection = sqlite3.connect(caches(world)[0])
    with connection:
        (one, first), (two, second) = connection.execute("SELECT question, sealed FROM answers").fetchall()
        connection.execute("UPDATE answers SET sealed = ? WHERE question = ?", (second, one))
        connection.execute("UPDATE answers SET sealed = ? WHERE question = ?", (first, two))
    connection.close()


EVENTS["answers that changed places"] = swap_states


@pytest.mark.parametrize("event", EVENTS)
def test_whatever_happens_the_answers_are_those_of_a_host_that_kept_none(world: World, event: str) -> None:
    world.ok(KNEW, "verify", "--level", "structure")
    warm(world)
    before = look(world, KNEW)
    EVENTS[event](world)
    assert world.capture is not None
    world.capture.readouterr()
    said = says_the_same(world)
    unseen = ("nothing", "rots", "elsewhere", "answers", "cache", "junk", "lost", "expelled", "enrolment")
    assert any(word in event for word in unseen) or said != before, "nothing happened"


def test_a_state_that_was_seen_before_is_no_excuse_for_a_rollback(world: World) -> None:
    """The answer to the older state is gone, and what this host remembers is not what it was then."""
    shutil.copytree(world.store, world.place / "older")
    warm(world)
    world.backup("one", "disk", b"e")
    assert all(code == 0 for code, _, _ in look(world, KNEW)[:1])
    kept = [row for path in caches(world) for row in sqlite3.connect(path).execute("SELECT * FROM answers")]
    shutil.rmtree(world.store)
    shutil.copytree(world.place / "older", world.store)
    (code, _, said), _ = says_the_same(world)
    assert code == 21 and "an older state is shown" in said
    assert len(kept) == 2


def test_what_the_user_took_as_lost_stays_gone_until_it_comes_back(world: World) -> None:
    newest = chain(world)[-1]
    content = world.path(newest).read_bytes()
    warm(world)
    damaged(world.path(newest), "deleted")
    assert says_the_same(world)[0][0] == 21
    world.ok(KNEW, "check", "--accept-rollback", "-y")
    assert says_the_same(world)[0][0] == 0
    warm(world)
    world.path(newest).write_bytes(content)
    assert world.shots[-1] in says_the_same(world)[0][1]


def test_a_snapshot_that_comes_while_an_answer_is_made_is_not_missed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process of this host sees it, too, and remembers it."""
    rows = listing.snapshots

    def slow(repo: Repository) -> list[listing.Row]:
        found = rows(repo)
        monkeypatch.undo()
        world.backup("two", "other", b"p")
        world.run(KNEW, "info")
        return found

    monkeypatch.setattr(listing, "snapshots", slow)
    assert len(json.loads(world.run(KNEW, "list", "--json")[1])["snapshots"]) == 5
    assert len(json.loads(says_the_same(world)[0][1])["snapshots"]) == 6


def test_what_was_remembered_for_a_moment_leaves_no_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an answer was made from must be what was remembered before and after."""
    world.ok(KNEW, "verify", "--level", "structure")
    verdicts = remembered(world, "verified.json")
    right, rows = verdicts.read_text(), listing.volumes

    def other(repo: Repository) -> list[listing.Row]:
        verdicts.write_text(right.replace('"ok"', '"damaged"'))
        return rows(repo)

    monkeypatch.setattr(listing, "volumes", other)
    assert "damaged" in world.run(KNEW, "list", "--json")[1]
    monkeypatch.undo()
    verdicts.write_text(right)
    assert "damaged" not in says_the_same(world)[0][1]


def test_what_is_remembered_while_the_commits_are_listed_counts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process of this host saw a newer commit, between two steps of this one."""
    names = HistoryReader.names

    def later(self: HistoryReader, below: str) -> Listed:
        monkeypatch.undo()
        ahead(world)
        return names(self, below)

    world.ok(KNEW, "list")
    monkeypatch.setattr(HistoryReader, "names", later)
    assert world.run(KNEW, "list", "--json")[0] == 21
    assert says_the_same(world)[0][0] == 21


def test_a_segment_that_is_gone_is_missed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The older part of a long history lies in packs: those are looked for each time."""
    monkeypatch.setattr(checkpoints, "TAIL_BYTES", 300)
    for number in range(52):
        world.ok("one", "tag", f"disk@{world.shots[0]}", f"t{number}")
        if number in (25, 50):
            world.ok("one", "prune", "--keep-last", "9", "-y")  # which looks through checkpoints, and shortens the log
    world.ok("one", "prune", "--keep-last", "9", "-y")
    warm(world)
    (cache,) = caches(world)
    (sealed, question) = sqlite3.connect(cache).execute("SELECT sealed, question FROM answers").fetchone()
    assert sealed and question == "list"
    before = says_the_same(world)
    for pack in segments(world):
        pack.unlink()
    after = says_the_same(world)
    assert before[0][0] == 0 and after[0][0] == 21 and "the checkpoint in commit" in after[0][2]


def segments(world: World) -> list[Path]:
    """The packs that no snapshot needs: those of the catalogue."""
    found = []
    for path in list(world.store.glob("p/*/*")):
        aside = path.with_suffix(".aside")
        path.rename(aside)
        code, _, _ = world.run("probe", "list", "--json")
        aside.rename(path)
        found += [path] * (code == 21)
    assert found
    return found


def test_an_answer_in_another_form_or_of_another_program_is_none(
    world: World, monkeypatch: pytest.MonkeyPatch, readings: list[str]
) -> None:
    warm(world)
    monkeypatch.setattr(answers, "_program", lambda: [1, 2, 3])
    readings.clear()
    look(world, KNEW)
    assert len(readings) == len(LOOKS)
    says_the_same(world)


def test_another_repository_in_the_same_place_is_another_one(world: World) -> None:
    warm(world)
    shutil.rmtree(world.store)
    world.ok("one", "init", "-q")
    (code, out, _), _ = says_the_same(world)
    assert code == 0 and json.loads(out)["snapshots"] == []


def test_a_memory_that_cannot_be_read_or_written_keeps_no_answer(world: World, readings: list[str]) -> None:
    shutil.rmtree(world.place / KNEW / "state")
    (world.place / KNEW / "state").write_text("a file")
    warm(world)
    readings.clear()
    look(world, KNEW)
    assert len(readings) == len(LOOKS)


def test_a_program_that_is_replaced_while_it_runs_keeps_no_answer(
    world: World, monkeypatch: pytest.MonkeyPatch, readings: list[str]
) -> None:
    def gone() -> list[int]:
        raise FileNotFoundError(2, "No such file or directory", "lamella/history/answers.py")

    monkeypatch.setattr(answers, "_program", gone)
    warm(world)
    readings.clear()
    said = look(world, KNEW)
    assert said[0][0] == 0 and len(readings) == len(LOOKS)
