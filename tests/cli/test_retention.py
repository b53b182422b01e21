"""prune, delete, tag and rename, as people and scripts use them."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from tests.cli.program import Done, Lamella, Terminal

MIB = 1 << 20


@pytest.fixture
def three(empty: Lamella, image: Path) -> Lamella:
    """A repository with three snapshots of two volumes."""
    other = image.with_name("other.img")
    for number in range(3):
        other.write_bytes(b"%d" % number * 100_000)
        empty.ok("backup", image, other)
    return empty


def names(lamella: Lamella, volume: str) -> list[str]:
    """The snapshots of a volume, oldest first."""
    return [row["snapshot"] for row in lamella.json("list", volume)["snapshots"]]


def refused(done: Done, code: int, text: str) -> None:
    assert (done.code, done.out) == (code, ""), (done.code, done.out, done.err)
    (line,) = done.err.splitlines()
    assert text in line, line


def fingerprint(lamella: Lamella) -> str:
    return str(lamella.json("info")["fingerprint"])


# -- prune -------------------------------------------------------------------------------------------------------------


def test_without_a_rule_nothing_is_removed(three: Lamella) -> None:
    refused(three.run("prune"), 2, "no rule")
    refused(three.run("prune", "-n"), 2, "no rule")
    refused(three.run("prune", "--keep-last", "0"), 2, "")
    assert len(names(three, "disk")) == 3


def test_a_dry_run_says_why_each_snapshot_stays_or_goes(three: Lamella) -> None:
    before = fingerprint(three)
    first, second, third = names(three, "disk")
    plan = three.json("prune", "--keep-last", "2", "-n")
    assert plan["dry_run"]
    assert {(row["volume"], row["snapshot"]) for row in plan["removed"]} == {("disk", first), ("other", first)}
    kept = {(row["volume"], row["snapshot"]): row["reasons"] for row in plan["kept"]}
    assert kept["disk", third] == ["last 1"]
    assert kept["disk", second] == ["last 2"]
    lines = three.ok("prune", "--keep-last", "2", "-n").out.splitlines()
    assert sum(line.startswith("keep ") and "last" in line for line in lines) == 4
    assert sum(line.startswith("remove ") and "no rule keeps it" in line for line in lines) == 2
    assert fingerprint(three) == before


def test_prune_removes_what_no_rule_keeps(three: Lamella, image: Path, tmp_path: Path) -> None:
    first, second, third = names(three, "disk")
    done = three.json("prune", "--keep-last", "1")
    assert {row["snapshot"] for row in done["removed"]} == {first, second}
    assert {"freed_bytes", "condemned_bytes"} <= done.keys()
    assert names(three, "disk") == names(three, "other") == [third]
    assert three.json("prune", "--keep-last", "1")["removed"] == []
    three.ok("restore", "disk", "--to", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == image.read_bytes()
    assert three.json("verify", "--level", "full")["findings"] == []


def test_rules_are_of_each_volume(three: Lamella, tmp_path: Path) -> None:
    config = tmp_path / "prune.toml"
    config.write_text('[prune]\nzone = "Europe/Berlin"\nkeep_last = 1\n[prune.volumes.other]\nkeep_last = "all"\n')
    three.env["LAMELLA_CONFIG"] = str(config)
    plan = three.json("prune", "-n")
    assert [row["volume"] for row in plan["removed"]] == ["disk", "disk"]
    assert len(three.json("prune", "--keep-last", "1", "-n")["removed"]) == 4  # options instead of the configuration
    assert len(three.json("prune", "--keep-last", "1", "-n", "other")["removed"]) == 2
    assert three.run("prune", "--keep-last", "1", "nothing").code == 4


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[prune]\nkeep_last = 0\n", "keep_last"),
        ("[prune]\nkeep_forever = 1\n", "unknown key prune.keep_forever"),
        ('[prune]\nkeep_within = "soon"\n', "keep_within"),
        ('[prune]\nzone = "Mars/Base"\n', "Mars/Base"),
        ('[prune]\nthin_older = ["1d:fortnight"]\n', "fortnight"),
        ("[prune.volumes.v]\nkeep_daily = true\n", "keep_daily"),
        ('[prune]\nkeep_tags = "a"\n', "keep_tags"),
    ],
)
def test_what_is_wrong_in_the_configuration(lamella: Lamella, tmp_path: Path, text: str, problem: str) -> None:
    config = tmp_path / "prune.toml"
    config.write_text(text)
    done = lamella.run("config", "validate", env={"LAMELLA_CONFIG": str(config)})
    assert done.code == 2
    assert problem in done.out


def test_the_configured_rules_are_shown(lamella: Lamella, tmp_path: Path) -> None:
    config = tmp_path / "prune.toml"
    rules = 'keep_daily = 7\nthin_older = ["1d", "30d:week"]\n'
    config.write_text(f'[prune]\n{rules}[prune.volumes.v]\nkeep_within = "1y"\n')
    shown = lamella.ok("config", "show", env={"LAMELLA_CONFIG": str(config)}).out
    assert 'prune.zone = "UTC"' in shown
    assert f"prune.keep_daily = 7  # {config}" in shown
    assert 'prune.thin_older = "1d, 30d:week"' in shown
    assert 'prune.volumes.v.keep_within = "1y"' in shown


def test_a_person_is_asked(three: Lamella) -> None:
    arguments = [*three.options, "prune", "--keep-last", "1"]
    with Terminal(arguments, three.env) as terminal:
        terminal.expect("Continue? [y/N]")
        assert "Will remove 4 snapshots and keep 2. This frees about " in terminal.seen
        assert " B, and cannot be undone. Continue?" in terminal.seen
        assert "emoved" not in terminal.seen, "nothing is removed before the answer"
        terminal.type("n")
        assert terminal.end() == 130
    assert len(names(three, "disk")) == 3


def test_while_a_person_thinks_others_go_on(three: Lamella, image: Path) -> None:
    """A pin given meanwhile holds, a backup made meanwhile stays, and what it pushes out was not agreed to."""
    first, second, third = names(three, "disk")
    with Terminal([*three.options, "prune", "--keep-last", "1", "disk"], three.env) as terminal:
        terminal.expect("Continue? [y/N]")
        assert "Will remove 2 snapshots and keep 1. " in terminal.seen
        three.ok("tag", f"disk@{first}", "--pin", "trial")
        three.ok("backup", image)
        terminal.type("y")
        assert terminal.end() == 0, terminal.seen
    assert names(three, "disk")[:2] == [first, third]
    assert len(names(three, "disk")) == 3
    assert len(names(three, "other")) == 3
    assert three.json("verify", "--level", "full")["findings"] == []
    assert second not in names(three, "disk")


def test_a_repository_in_use_when_the_answer_comes_is_said(three: Lamella, place: Path) -> None:
    with Terminal([*three.options, "prune", "--keep-last", "1"], three.env) as terminal:
        terminal.expect("[y/N]")
        with (place / "lamella").open("rb") as marker:
            fcntl.flock(marker, fcntl.LOCK_SH)
            terminal.type("y")
            assert terminal.end() == 11
    assert "--lock-wait" in terminal.seen
    assert len(names(three, "disk")) == 3


@pytest.mark.parametrize(("meanwhile", "code"), [("pin", 2), ("new", 0)])
def test_what_is_deleted_is_looked_at_again_after_the_answer(
    three: Lamella, image: Path, meanwhile: str, code: int
) -> None:
    before = names(three, "disk")
    words = ["disk", "--all-snapshots", "--yes-last"] if meanwhile == "new" else [f"disk@{before[0]}"]
    with Terminal([*three.options, "delete", *words], three.env) as terminal:
        terminal.expect("cannot be undone. Continue? [y/N]")
        if meanwhile == "pin":
            three.ok("tag", f"disk@{before[0]}", "--pin", "trial")
        else:
            three.ok("backup", image)
        terminal.type("y")
        assert terminal.end() == code, terminal.seen
    left = names(three, "disk")
    if meanwhile == "pin":
        assert left == before
    else:
        assert len(left) == 1
        assert left[0] not in before


def test_tags_and_pins_keep(three: Lamella) -> None:
    first, second, third = names(three, "disk")
    three.ok("tag", f"disk@{first}", "release")
    three.ok("tag", f"disk@{second}", "--pin", "trial", "--all-volumes")
    done = three.json("prune", "--keep-last", "1", "--keep-tag", "release")
    assert [(row["volume"], row["snapshot"]) for row in done["removed"]] == [("other", first)]
    reasons = {(row["volume"], row["snapshot"]): row["reasons"] for row in done["kept"]}
    assert reasons["disk", first] == ["tag release"]
    assert reasons["disk", second] == reasons["other", second] == ["pinned: trial"]
    assert reasons["disk", third] == ["last 1"]


def test_the_last_good_snapshot_stays(three: Lamella) -> None:
    plan = three.json("prune", "--keep-tag", "nothing", "-n")
    assert [row["reasons"] for row in plan["kept"]] == [["last good snapshot of the volume"]] * 2
    assert three.json("prune", "--keep-tag", "nothing", "--yes-last", "-n")["kept"] == []


def test_a_writers_secret_removes_nothing(three: Lamella, tmp_path: Path) -> None:
    key = tmp_path / "writer"
    three.ok("key", "add", "--new-keyfile", key, "--generate", "--role", "writer")
    writer = Lamella(three.env, ["--keyfile", str(key), *three.options[2:]])
    first = names(writer, "disk")[0]
    before = fingerprint(three)
    done = writer.run("prune", "--keep-last", "1")
    assert done.code == 1
    assert "not delete" in done.err
    refused(writer.run("delete", f"disk@{first}", "-y"), 1, "not delete")
    assert fingerprint(three) == before
    writer.ok("delete", f"disk@{first}", "--mark")
    assert names(writer, "disk")[0] == first
    assert "marked as removed" in three.ok("list").out
    assert three.json("list", "disk")["snapshots"][0]["marked_removed"] is True


def test_backup_prunes_afterwards_by_the_configuration(three: Lamella, image: Path, tmp_path: Path) -> None:
    refused(three.run("backup", image, "--prune"), 2, "no rule")
    assert len(names(three, "disk")) == 3
    config = tmp_path / "prune.toml"
    config.write_text("[prune]\nkeep_last = 2\n")
    three.env["LAMELLA_CONFIG"] = str(config)
    done = three.json("backup", image, "--prune")
    assert done["result"] == "complete"
    assert [row["volume"] for row in done["prune"]["removed"]] == ["disk", "disk"]
    assert names(three, "disk")[1] == done["snapshot"]
    assert (len(names(three, "disk")), len(names(three, "other"))) == (2, 3)


def test_nothing_is_removed_while_others_use_the_repository(three: Lamella, place: Path) -> None:
    first, *_ = names(three, "disk")
    with (place / "lamella").open("rb") as marker:
        fcntl.flock(marker, fcntl.LOCK_SH)  # as a backup or a restore holds it
        assert three.json("prune", "--keep-last", "1", "-n")["removed"]
        refused(three.run("prune", "--keep-last", "1"), 11, "try again later")
        refused(three.run("delete", f"disk@{first}", "-y"), 11, "try again later")
    assert len(names(three, "disk")) == 3


# -- delete ------------------------------------------------------------------------------------------------------------


def test_delete_wants_a_snapshot_and_consent(three: Lamella) -> None:
    first, *_ = names(three, "disk")
    refused(three.run("delete", "disk", "-y"), 2, "names a volume and no snapshot")
    refused(three.run("delete", f"disk@{first}", "--all-snapshots", "-y"), 2, "--all-snapshots")
    refused(three.run("delete", f"disk@{first}"), 2, "--yes")
    refused(three.run("delete", "disk@1999", "-y"), 4, "no snapshot 1999")
    refused(three.run("delete", "nothing", "--all-snapshots", "-y"), 4, "nothing")
    assert len(names(three, "disk")) == 3
    assert three.json("delete", f"disk@{first}", "-n")["dry_run"]
    assert len(names(three, "disk")) == 3


def test_delete_removes_one_snapshot_of_one_volume(three: Lamella, image: Path, tmp_path: Path) -> None:
    first, second, third = names(three, "disk")
    done = three.json("delete", f"disk@{first}", "-y")
    assert done["removed"] == [{"snapshot": first, "volume": "disk"}]
    assert names(three, "disk") == [second, third]
    assert names(three, "other") == [first, second, third]
    three.ok("restore", f"disk@{second}", "--to", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == image.read_bytes()
    three.ok("delete", f"disk@{third}", "-y")  # the newest, of which an older one is left
    assert names(three, "disk") == [second]


def test_the_last_one_goes_only_on_request(three: Lamella) -> None:
    refused(three.run("delete", "disk", "--all-snapshots", "-y"), 2, "no whole snapshot of disk would be left")
    first, *others = names(three, "disk")
    three.ok("delete", *(f"disk@{one}" for one in others), "-y")
    refused(three.run("delete", f"disk@{first}", "-y"), 2, "--yes-last")
    three.ok("delete", "disk", "--all-snapshots", "-y", "--yes-last")
    assert [row["volume"] for row in three.json("list")["volumes"]] == ["other"]


def test_after_all_is_gone_the_next_backup_begins_anew(saved: Lamella, image: Path, tmp_path: Path) -> None:
    saved.ok("delete", "disk", "--all-snapshots", "-y", "--yes-last")
    assert saved.json("list")["snapshots"] == []
    assert saved.json("backup", image)["result"] == "complete"
    saved.ok("restore", "disk", "--to", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == image.read_bytes()


def test_what_is_pinned_is_not_deleted(three: Lamella) -> None:
    first, *_ = names(three, "disk")
    three.ok("tag", f"disk@{first}", "--pin")
    refused(three.run("delete", f"disk@{first}", "-y"), 2, "is pinned")
    assert "no tags, not pinned: prune may remove" in three.ok("tag", f"disk@{first}", "--unpin").out
    three.ok("delete", f"disk@{first}", "-y")


# -- tag, rename -------------------------------------------------------------------------------------------------------


def test_tags_are_shown_and_select(three: Lamella, tmp_path: Path) -> None:
    first, *_ = names(three, "other")
    made = three.json("tag", f"other@{first}", "vor dem Umzug", "^x")
    assert made["snapshots"] == [{"snapshot": first, "volume": "other", "tags": ["vor dem Umzug", "x"], "pinned": None}]
    assert three.json("list")["snapshots"][0]["tags"] == ["vor dem Umzug", "x"]
    assert "^vor dem Umzug" in three.ok("list").out
    assert three.json("info", "other@^x")["snapshot"] == first
    three.ok("restore", "other@^vor dem Umzug", "--to", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"0" * 100_000
    assert three.json("tag", "other@^x", "--remove", "x")["snapshots"][0]["tags"] == ["vor dem Umzug"]
    assert three.run("info", "other@^x").code == 4
    refused(three.run("tag", "other", "x"), 2, "names no snapshot")
    refused(three.run("tag", f"other@{first}"), 2, "nothing to change")
    refused(three.run("tag", f"other@{first}", "a@b"), 2, "not a tag")


def test_a_writer_cannot_take_another_writers_tag_away(three: Lamella, tmp_path: Path) -> None:
    first, *_ = names(three, "disk")
    three.ok("tag", f"disk@{first}", "keep", "--pin", "mine")
    key = tmp_path / "writer"
    three.ok("key", "add", "--new-keyfile", key, "--generate", "--role", "writer")
    places = {f"LAMELLA_{word}_DIR": str(tmp_path / f"other-{word}") for word in ("STATE", "CACHE")}
    elsewhere = {**three.env, **places}
    writer = Lamella(elsewhere, ["--keyfile", str(key), *three.options[2:]])
    done = writer.run("tag", f"disk@{first}", "--remove", "keep", "--unpin")
    assert done.code == 1
    assert "not removed: " in done.err
    row = three.json("list", "disk")["snapshots"][0]
    assert (row["tags"], row["pinned"]) == (["keep"], ["mine"])


def test_rename(three: Lamella, image: Path) -> None:
    assert three.json("rename", "disk", "platte", "-n")["volume"] == "platte"
    assert len(names(three, "disk")) == 3
    three.ok("rename", "disk", "platte")
    assert len(names(three, "platte")) == 3
    refused(three.run("rename", "platte", "other"), 2, "another volume is called other")
    refused(three.run("rename", "platte", "a/b"), 2, "")
    refused(three.run("rename", "disk", "x"), 4, "disk")
    assert three.json("backup", image)["volumes"][0]["volume"] == "platte"
    assert len(names(three, "platte")) == 4
