"""What a person reads: plan, question, deed and result in their tense; -q and -v; causes that are the causes."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from tests.cli.program import SECONDS, Lamella, Terminal, environment
from tests.features import require

MIB = 1 << 20
DEEDS = re.compile(r"\b(removed|deleted|freed|replaced|overwritten|repaired|lost)\b")


@pytest.fixture
def two(saved: Lamella, image: Path) -> Lamella:
    """The command and a repository with two snapshots of `disk`."""
    with image.open("r+b") as file:
        file.write(b"changed")
    saved.ok("backup", image)
    return saved


def names(lamella: Lamella) -> list[str]:
    return [row["snapshot"] for row in lamella.json("list", "disk")["snapshots"]]


# -- tense ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "plan"),
    [
        ("prune --keep-last 1", "Will remove 1 snapshot and keep 1. This frees about "),
        ("delete disk@{first}", "Will remove 1 snapshot (disk@{first}). This frees about "),
        ("key remove {slot}", "Will remove the key file slot {slot} (admin): "),
        ("restore disk --to {out} --overwrite", "Will replace the content of {out} by disk@{last}, 8.0 MiB."),
    ],
)
def test_nothing_is_said_to_be_done_before_the_answer(two: Lamella, tmp_path: Path, command: str, plan: str) -> None:
    two.ok("key", "add", "--new-keyfile", tmp_path / "other", "--generate")
    slot = next(row["name"] for row in two.json("key", "list")["slots"] if not row["current"]).removeprefix("keys/")
    out = tmp_path / "out.img"
    out.write_bytes(b"old")
    first, last = names(two)
    words = {"first": first, "last": last, "slot": slot, "out": str(out)}
    with Terminal([*two.options, *command.format(**words).split()], two.env) as terminal:
        terminal.expect("Continue? [y/N]")
        assert plan.format(**words) in terminal.seen
        assert DEEDS.findall(terminal.seen.partition("Will ")[0].replace("is replaced once", "")) == []
        terminal.type("n")
        assert terminal.end() == 130
        assert DEEDS.findall(terminal.seen.partition("[y/N]")[2]) == []
    assert names(two) == [first, last]
    assert out.read_bytes() == b"old"


def test_the_result_counts_what_was_done(two: Lamella) -> None:
    first, last = names(two)
    done = two.ok("prune", "--keep-last", "1")
    assert "removing 1 snapshot" in done.err
    assert re.search(r"^removed 1 snapshot, kept 1, freed \d", done.out, re.MULTILINE)
    deleted = two.ok("delete", f"disk@{last}", "-y", "--yes-last")
    assert f"removed: disk@{last}\nremoved 1 snapshot, freed " in deleted.out
    assert first != last


@pytest.fixture
def read_only(two: Lamella, place: Path) -> Iterator[Lamella]:
    """The command and the repository, which cannot be written."""
    mount = ["mount", "--bind", str(place), str(place)]
    able = os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    require("mount", able, "this test makes a directory read-only")
    subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
    try:
        yield two
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("command", ["prune --keep-last 1", "delete disk@latest -y", "delete disk@latest --mark"])
def test_nothing_is_removed_from_what_can_only_be_read(read_only: Lamella, command: str) -> None:
    before = names(read_only)
    done = read_only.run(*command.split())
    assert done.code == 1
    assert "removed:" not in done.out
    assert not re.search(r"^removed", done.out, re.MULTILINE)
    assert read_only.run("--json", *command.split()).json.get("removed", []) == []
    assert names(read_only) == before


# -- how much is said --------------------------------------------------------------------------------------------------

COMMANDS = (
    "backup {image}", "restore disk --to {out}", "verify --level full", "check", "doctor", "tag disk@latest x",
    "rename disk plate", "prune --keep-last 1", "delete disk@latest -y --yes-last", "repair -y", "mirror --to {mirror}",
    "key add --new-keyfile {key} --generate", "key change --new-keyfile {key} --generate", "monitor {image}",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_quiet_is_silent(two: Lamella, image: Path, tmp_path: Path, command: str) -> None:
    words = {"image": image, "out": tmp_path / "out", "mirror": tmp_path / "mirror", "key": tmp_path / "key2"}
    done = two.ok("-q", *command.format(**words).split())
    assert (done.out, done.err) == ("", "")


def test_quiet_takes_no_answer_away(two: Lamella) -> None:
    for command in ("list", "list disk", "info disk", "diff disk@latest", "config show", "prune --keep-last 1 -n"):
        assert two.run("-q", *command.split()).out == two.run(*command.split()).out != ""


def test_people_read_sizes_with_units_and_moments_in_local_time(two: Lamella) -> None:
    """All that JSON says in bytes and in UTC."""
    facts, shown = two.json("info", "disk"), two.ok("info", "disk", env={"TZ": "Asia/Tokyo"}).out
    lines = dict(re.split(r" {2,}", line, maxsplit=1) for line in shown.splitlines())
    local = datetime.fromisoformat(facts["time"]).astimezone(timezone(timedelta(hours=9)))
    assert lines["time"] == f"{local:%Y-%m-%d %H:%M}"
    assert (lines["size"], facts["size"]) == ("8.0 MiB", 8 << 20)
    for name in ("data bytes", "chunk size", "read bytes", "stored bytes", "sampled bytes"):
        assert re.fullmatch(r"[\d.]+ ([KMG]i)?B", lines[name])
    assert all(lines.values()), "a line that says nothing"
    assert "this_host=yes" in two.ok("info").out
    pruned = two.ok("prune", "--keep-last", "1", "-n", env={"TZ": "Asia/Tokyo"}).out
    assert f"  {local:%Y-%m-%d %H:%M}  last 1" in pruned and "LOCAL TIME" in pruned


def test_quiet_tells_of_damage(two: Lamella, place: Path) -> None:
    pack = max(place.glob("p/*/*"), key=lambda path: path.stat().st_size)
    pack.write_bytes(bytes(pack.stat().st_size))
    done = two.run("-q", "verify", "--level", "full")
    assert done.code == 20
    assert "damage: " in done.out
    assert "cannot be restored: disk@" in done.out


@pytest.mark.parametrize("command", [*COMMANDS[:4], "list", "prune --keep-last 1"])
def test_verbose_tells_more(two: Lamella, image: Path, tmp_path: Path, command: str) -> None:
    words = {"image": image, "out": tmp_path / "out"}
    done = two.ok("-v", *command.format(**words).split())
    assert re.search(r"repository [0-9a-f]{32}, \d snapshots, by keys/", done.err)
    if command.startswith("backup"):
        assert "file driver, from 2" in done.err
        assert "consistency " in done.err


def test_no_message_names_nothing_or_the_program_twice(two: Lamella, place: Path) -> None:
    with (place / "lamella").open("rb") as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        done = two.run("list")
    assert done.code == 11
    assert "lamella: lamella:" not in done.err
    assert f"process {os.getpid()} of {os.uname().nodename}, which has run for " in done.err


# -- sharing between volumes -------------------------------------------------------------------------------------------


@pytest.fixture
def equal(tmp_path: Path) -> list[Path]:
    """Three images with the same bytes."""
    content = os.urandom(1 << 20)
    images = [tmp_path / f"{name}.raw" for name in "abc"]
    for one in images:
        one.write_bytes(content)
    return images


def test_volumes_share_data_if_the_user_says_so(empty: Lamella, equal: list[Path], tmp_path: Path) -> None:
    said = empty.run("backup", *equal[:2], "-n")
    assert "--domain" in empty.ok("backup", *equal).err
    assert said.code == 0
    other = Lamella({**empty.env, "LAMELLA_REPO": str(tmp_path / "R2")}, empty.options)
    assert "--domain" in other.ok("init").err
    stored = [row["stored_bytes"] for row in other.json("backup", "--domain", "vms", *equal)["volumes"]]
    assert sum(stored) < 1.5 * (1 << 20)
    assert "--domain" not in other.ok("backup", *equal).err


def test_a_domain_for_a_known_volume_is_refused(empty: Lamella, equal: list[Path]) -> None:
    empty.ok("backup", equal[0])
    done = empty.run("backup", "--domain", "vms", equal[0], equal[1])
    assert done.code == 2
    assert "the domain of a was chosen at its first backup" in done.err
    empty.ok("backup", "--domain", "vms", equal[1])
    empty.ok("backup", "--domain", "vms", equal[1])


def test_the_domain_of_new_volumes_is_configured(empty: Lamella, equal: list[Path], tmp_path: Path) -> None:
    empty.ok("backup", equal[0])
    config = tmp_path / "lamella.toml"
    config.write_text('[backup]\ndomain = "vms"\n')
    empty.env["LAMELLA_CONFIG"] = str(config)
    rows = empty.json("backup", *equal)["volumes"]
    assert [row["new_chunks"] > 0 for row in rows] == [False, True, False]
    domains = {row["volume"]: row["domain"] for row in empty.json("list")["volumes"]}
    assert domains == {"a": "", "b": "vms", "c": "vms"}


# -- the cause, and what mends it --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("[prune]\nkeep_day = 3\n", "keep_daily"),
        ("[prune.volumes.x]\nkeep_weeks = 3\n", "keep_weekly"),
        ("[backup]\ncompresion = 3\n", "compression"),
        ('[repositories.a]\nurl = "/x"\npasphrase_file = "/y"\n', "passphrase_file"),
        ('default_repo = "/x"\n', "default_repository"),
        ("[lvm]\ndata = 3\n", "data_percent"),
    ],
)
def test_the_nearest_key_is_named(lamella: Lamella, tmp_path: Path, text: str, near: str) -> None:
    config = tmp_path / "lamella.toml"
    config.write_text(text)
    done = lamella.run("config", "validate", env={"LAMELLA_CONFIG": str(config)})
    assert done.code == 2
    assert f"did you mean {near}?" in done.out


@pytest.mark.parametrize("name", ["a@b", ".a", "-a", "^a", "a/b"])
def test_a_name_that_is_forbidden_is_said_to_be(empty: Lamella, image: Path, name: str) -> None:
    done = empty.run("backup", f"{name}={image}")
    assert done.code == 2
    if not name.startswith("-"):
        assert "not a volume name" in done.err


def test_a_target_that_is_no_file(saved: Lamella, tmp_path: Path) -> None:
    done = saved.run("restore", "disk", "--to", tmp_path)
    assert done.code == 2
    assert f"name a file in it: {tmp_path}/disk.img" in done.err
    assert "--overwrite" not in done.err
    done = saved.run("restore", "disk", "--to", tmp_path / "none" / "out")
    assert done.code == 1
    assert f"there is no directory {tmp_path}/none" in done.err
    assert "will create" not in done.err
    (tmp_path / "link").symlink_to(tmp_path / "none" / "out")
    assert "will create" not in saved.run("restore", "disk", "--to", tmp_path / "link").err
    (tmp_path / "link2").symlink_to(tmp_path / "new")
    done = saved.ok("restore", "disk", "--to", tmp_path / "link2")
    assert f"will create {tmp_path}/new, to which {tmp_path}/link2 leads" in done.err


def test_a_source_that_cannot_tell_what_changed_is_not_monitored(saved: Lamella, image: Path) -> None:
    done = saved.json("monitor", image)["sources"][0]
    require("ext4", not done["tracked"], "the temporary directory tells what changed")
    said = saved.ok("monitor", image)
    assert "nothing to free" in said.out
    assert "each backup reads all of it" in said.out
    assert "may have changed" not in said.out


def test_consistency_is_one_of_the_words_in_every_document(saved: Lamella, image: Path) -> None:
    words = {"unknown", "live", "quiesced", "halted", "committed"}
    (row,) = saved.json("backup", image)["volumes"]
    found = [row["consistency"], saved.json("info", "disk")["consistency"]]
    (row,) = saved.json("backup", image, "--before", "true")["volumes"]
    found += [row["consistency"], saved.json("info", "disk")["consistency"]]
    assert set(found) <= words
    assert found[0] == found[1]
    assert found[2] == found[3]


@pytest.mark.parametrize("how", ["option", "variable", "configuration"])
def test_another_ssh_command(saved: Lamella, place: Path, tmp_path: Path, how: str) -> None:
    log = tmp_path / "log"
    serve = f"{sys.executable} -m lamella serve {place}"
    command = shlex.join(["sh", "-c", f'echo "$@" > {log}; exec {serve}', "ssh", "-o", "A=b"])
    env, options = {**saved.env, "LAMELLA_REPO": "ssh://somewhere/any"}, []
    if how == "option":
        options = ["--ssh-command", command]
    elif how == "variable":
        env["LAMELLA_SSH_COMMAND"] = command
    else:
        config = tmp_path / "lamella.toml"
        config.write_text(f'[repositories.far]\nurl = "ssh://somewhere/any"\nssh_command = {json.dumps(command)}\n')
        env |= {"LAMELLA_REPO": "far", "LAMELLA_CONFIG": str(config)}
    assert "disk" in Lamella(env, [*saved.options, *options]).ok("list").out
    assert log.read_text().startswith("-o A=b -T ")
    assert "somewhere" in log.read_text()


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Images of one, three and two MiB without holes."""
    paths = [tmp_path / f"{name}.img" for name in "abc"]
    for path, size in zip(paths, (1, 3, 2), strict=True):
        path.write_bytes(os.urandom(size * MIB))
    return paths


def test_a_journal_sees_how_each_volume_ended_as_soon_as_it_did(empty: Lamella, three: list[Path]) -> None:
    words = [*empty.command, *empty.options, "backup", "--read-rate", "2M", *map(str, three)]
    env = environment({**empty.env, "PYTHONUNBUFFERED": ""})
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        assert run.stdout is not None
        first, at = run.stdout.readline(), time.monotonic()
        rest = run.stdout.read().decode()
        assert run.wait(SECONDS) == 0
    assert first == b"a (1 of 3): 1.0 MiB, 1.0 MiB read, 1.0 MiB stored\n"
    assert time.monotonic() - at > 1  # the two others, of 5 MiB, take longer
    assert "\nc (3 of 3): 2.0 MiB" in rest and "complete, 6.0 MiB saved" in rest


def test_what_a_backup_says_needs_no_glossary(empty: Lamella, three: list[Path]) -> None:
    """Nor does it when asked for more, or later; and it is silent when asked to be."""
    said = [empty.ok("backup", option, *three) for option in ("-v", "-v", "-q")]
    assert said[-1].out == said[-1].err == ""
    text = "".join(one.out + one.err for one in said)
    for jargon in ("chunk", "metadata", "record of changes", "unconfirmed", "compare,", "moment"):
        assert jargon not in text
    assert "consistency" in text and "everything is read and compared: its storage cannot tell what changed" in text


def test_the_bar_shows_all_volumes_from_the_beginning(empty: Lamella, three: list[Path], tmp_path: Path) -> None:
    """Also those of a second destination: the share done never falls."""
    second = tmp_path / "second"
    empty.ok("init", "-q", "-r", second)
    words: list[str | Path] = ["backup", "--read-rate", "4M", "-r", empty.env["LAMELLA_REPO"], "-r", second, *three]
    with Terminal([*empty.options, *words], empty.env) as terminal:
        assert terminal.end() == 0
    shares = [float(one) for one in re.findall(r"([0-9.]+) %", terminal.seen)]
    assert shares == sorted(shares) and len(shares) > 3
    assert set(re.findall(r"of ([0-9.]+ MiB)", terminal.seen)) == {"12.0 MiB"}
    assert "backup b (5 of 6) " in terminal.seen and "b (5 of 6): 3.0 MiB" in terminal.seen


# -- tables -----------------------------------------------------------------------------------------------------------


def test_a_long_row_is_folded_at_the_end_of_the_terminal_and_nowhere_else(empty: Lamella, image: Path) -> None:
    images = [image.with_name(f"a-virtual-machine-{number}.img") for number in range(12)]
    for one in images:
        one.write_bytes(b"x" * 4096)
    empty.ok("backup", "-q", *images)
    names = [one.stem for one in images]
    piped = empty.ok("list")
    assert any(all(name in line for name in names) for line in piped.out.splitlines())
    assert re.search(r"  48.0 KiB  +(live|unknown)  +a-virtual-machine-0, ", piped.out.split("LOCAL TIME")[1])
    with Terminal([*empty.options, "list"], empty.env) as terminal:
        assert terminal.end() == 0
    rows = terminal.seen.split("LOCAL TIME")[1].splitlines()
    assert len(rows) > 12 and max(map(len, rows)) <= 80
    assert all(name in terminal.seen.split("LOCAL TIME")[1].replace("\r\n", "").replace(" ", "") for name in names)
