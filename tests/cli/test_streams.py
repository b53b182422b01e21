"""Streams through the command: `NAME=-` and `NAME=!COMMAND`.

What a user fears: a dump that broke off and is kept as if it were whole, a command that goes on for ever when the
backup is over, and a claimed date that lets a retention rule remove what it should keep.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.program import COMMAND, SECONDS, Lamella, environment

MIB = 1 << 20
SIZE = 5 * MIB + 1234


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "dump"
    path.write_bytes(random.Random(5).randbytes(SIZE))
    return path


def restored(lamella: Lamella, volume: str, to: Path) -> bytes:
    lamella.ok("restore", volume, "--to", to, "--overwrite")
    return to.read_bytes()


def piped(lamella: Lamella, content: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A backup with a pipe as its standard input."""
    with subprocess.Popen(["cat", content], stdout=subprocess.PIPE) as writer:
        return subprocess.run(
            [*COMMAND, *lamella.options, "backup", *arguments],
            env=environment(lamella.env),
            stdin=writer.stdout,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )


@contextmanager
def hanging(lamella: Lamella, folder: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A backup of a command that writes a little and then waits for ever; the file tells what processes it has."""
    told = folder / "told"
    command = f"head -c 3000000 /dev/urandom; (echo $BASHPID; echo $$) > {told}; sleep 600 | sleep 600"
    with subprocess.Popen(
        [*COMMAND, *lamella.options, "backup", f"stuck=!{command}"],
        env=environment(lamella.env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        try:
            wait_for(lambda: told.exists() and told.read_text().count("\n") == 2)
            yield program, told
        finally:
            program.kill()


def wait_for(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def group_lives(leader: int) -> bool:
    """Whether any process of a group is there that has not ended."""
    for one in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = one.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            return True
    return False


def test_a_stream_is_a_volume_like_any_other(empty: Lamella, dump: Path, tmp_path: Path) -> None:
    rows = empty.json("backup", f"db=!cat {dump}")["volumes"]
    assert [(row["driver"], row["mode"], row["source_bytes"]) for row in rows] == [("stream", "full", SIZE)]
    assert restored(empty, "db", tmp_path / "out") == dump.read_bytes()
    again = empty.json("backup", f"db=!cat {dump}")
    assert (again["volumes"][0]["mode"], again["volumes"][0]["new_chunks"]) == ("compare", 0)
    assert again["stored_bytes"] == 0 and again["metadata_bytes"] < 2000, again
    content = bytearray(dump.read_bytes())
    content[3 * MIB] ^= 1
    dump.write_bytes(content + b"more")
    done = piped(empty, dump, "db=-")
    assert done.returncode == 0, done
    assert restored(empty, "db", tmp_path / "out") == content + b"more"
    # Several in one run, and what a shell does with words is the shell's business.
    two = empty.json("backup", "a=!echo \"$HOME\" 'b  c' $((1 + 1)) | tr a-z A-Z", f"db=!cat {dump}")
    assert [row["result"] for row in two["volumes"]] == ["complete", "complete"]
    assert restored(empty, "a", tmp_path / "a") == f"{os.environ['HOME'].upper()} B  C 2\n".encode()
    assert empty.json("verify", "--level", "full")["findings"] == []


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("head -c 3000000 {dump}; exit 7", "ended with status 7"),
        ("head -c 3000000 {dump}; echo no such table >&2; false", "no such table"),
        ("head -c 3000000 {dump}; kill -9 $$", "signal 9"),
        ("false | cat {dump}", "ended with status 1"),
        ("cat {dump}; nosuchprogram", "nosuchprogram"),
        ("true", "ended after 0 B"),
    ],
)
def test_a_command_that_fails_leaves_no_snapshot(empty: Lamella, dump: Path, command: str, told: str) -> None:
    failed = empty.run("backup", f"db=!{command.format(dump=dump)}")
    assert failed.code == 3 and told in failed.err and "NOT SAVED" in failed.out, failed
    assert empty.json("list")["snapshots"] == []


def test_a_size_is_believed_to_the_byte(empty: Lamella, dump: Path, image: Path) -> None:
    for size in (SIZE - 1, SIZE + 1):
        for text in (f"db=!cat {dump}", "db=-"):
            failed = piped(empty, dump, "--size", str(size), text)
            word = "is longer than the 5.0 MiB of --size" if size < SIZE else "ended 1 B before the 5.0 MiB of --size"
            assert failed.returncode == 3 and word in failed.stderr, failed
    assert empty.json("list")["snapshots"] == []
    assert piped(empty, dump, "--size", str(SIZE), "db=-").returncode == 0
    # A stream that fails takes nothing from the others of its run.
    both = empty.json("backup", f"db=!head -c 100 {dump}; false", image, code=3)
    assert {row["volume"]: row["result"] for row in both["volumes"]} == {"db": "failed", "disk": "complete"}
    assert [one["volumes"] for one in empty.json("list")["snapshots"]] == [["db"], ["disk"]]


def test_an_endless_command_ends_at_its_size(empty: Lamella) -> None:
    failed = empty.run("backup", "--size", "5M", "x=!cat /dev/zero")
    assert failed.code == 3 and "longer than the 5.0 MiB of --size" in failed.err, failed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_ends_with_the_backup(empty: Lamella, tmp_path: Path, number: signal.Signals) -> None:
    with hanging(empty, tmp_path) as (program, told):
        leader = int(told.read_text().split()[-1])
        assert group_lives(leader)
        program.send_signal(number)
        program.communicate(timeout=SECONDS)
        wait_for(lambda: not group_lives(leader))
    assert program.returncode == (-9 if number == signal.SIGKILL else 130)
    assert empty.json("list")["snapshots"] == []


def test_a_command_leaves_nobody_behind(empty: Lamella, tmp_path: Path) -> None:
    told = tmp_path / "told"
    empty.ok("backup", f"db=!sleep 600 >/dev/null 2>&1 & echo $$ > {told}; echo content")
    wait_for(lambda: not group_lives(int(told.read_text())))


def test_a_command_asks_nobody(empty: Lamella, tmp_path: Path) -> None:
    """No secret of Lamella is in its environment, nothing on standard input, and its locale is the user's."""
    env = {"LAMELLA_PASSPHRASE": "", "LC_ALL": "C.UTF-8"}
    command = "! read -r line && env | grep -c PASSPHRASE; echo $LC_ALL"
    done = empty.run("backup", f"db=!{command}", env=env)
    assert done.code == 0, done
    assert restored(empty, "db", tmp_path / "out") == b"0\nC.UTF-8\n"


def test_memory_does_not_grow_with_the_stream(empty: Lamella) -> None:
    def most(size: str) -> int:
        source = f"zeros=!head -c {size} /dev/zero"
        program = subprocess.Popen([*COMMAND, *empty.options, "backup", "-q", source], env=environment(empty.env))
        _, status, used = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
        assert program.returncode == 0
        return used.ru_maxrss >> 10

    few, many = most("64M"), most("1G")
    assert many < few + 64, f"{few} MiB for 64 MiB, {many} MiB for 1 GiB"


def test_a_claimed_time_is_shown_and_found_and_never_believed(empty: Lamella, tmp_path: Path) -> None:
    for month in ("01", "02", "03"):
        empty.ok("backup", "--time", f"2024-{month}-15T12:00", f"old=!echo {month}")
    rows = empty.json("list")["snapshots"]
    assert [row["claimed_time"][:7] for row in rows] == ["2024-01", "2024-02", "2024-03"]
    assert all(row["time"] > "2025" for row in rows)
    assert "2024-02-15" in empty.ok("list").out and "2024-03-15" in empty.ok("info", "old").out
    assert restored(empty, "old@2024-02-20", tmp_path / "out") == b"02\n"
    assert restored(empty, "old", tmp_path / "out") == b"03\n"
    # Were the claims believed, each would be the only one of its month and stay.
    plan = empty.json("prune", "-n", "--keep-monthly", "12")
    assert len(plan["removed"]) == 2 and [row["snapshot"] for row in plan["kept"]] == [rows[-1]["snapshot"]]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-"], "needs a name"),
        (["!echo x"], "needs a name"),
        (["x="], "x="),
        (["x=!"], "names no command"),
        (["x=-", "y=-"], "one source only"),
        (["-r", "{repo}", "-r", "{repo}2", "x=-"], "several repositories"),
        (["--size", "0", "x=!true"], "no bytes"),
        (["--size", "5", "x=!true", "y=!true"], "single stream"),
        (["--size", "5", "{image}"], "streams only"),
        (["--time", "2024-01-01", "x=!true", "{image}"], "streams only"),
        (["--time", "soon", "x=!true"], "not a moment"),
        (["--time", "2999-01-01", "x=!true"], "future"),
        (["--source-driver", "file", "x=!true"], "is a stream"),
        (["--changes-from", "{image}", "--changes-base", "x", "x=!true"], "no change map"),
        (["a/b=!true"], "not a volume name"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_runs(
    empty: Lamella, image: Path, arguments: list[str], told: str
) -> None:
    words = [word.format(repo=empty.env["LAMELLA_REPO"], image=image) for word in arguments]
    done = empty.run("backup", *words)
    assert done.code in (2, 4) and told in done.err, done


def test_a_dry_run_runs_no_command(empty: Lamella, tmp_path: Path) -> None:
    empty.ok("backup", "-n", f"db=!touch {tmp_path}/ran; echo x")
    assert not (tmp_path / "ran").exists()


def test_one_moment_is_never_claimed_of_a_stream(empty: Lamella) -> None:
    done = empty.run("backup", "--require-consistent", "db=!echo x")
    assert done.code == 3 and "a consistent state is required" in done.err, done


def test_a_name_that_is_a_pattern_or_a_path_elsewhere(empty: Lamella, tmp_path: Path) -> None:
    """A command may hold what patterns and directories are made of, beside sources that are such."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.img", "b.img"):
        (folder / name).write_bytes(name.encode() * 9999)
    rows = empty.json("backup", f"all=!cat {folder}/*.img", f"{folder}/?.img")["volumes"]
    assert {row["volume"]: row["driver"] for row in rows} == {"all": "stream", "a": "file", "b": "file"}
    assert restored(empty, "all", tmp_path / "out") == b"a.img" * 9999 + b"b.img" * 9999
    taken = empty.run("backup", "a=!echo x")
    assert taken.code == 2 and "--adopt" in taken.err, taken


def test_several_repositories_get_a_run_of_the_command_each(empty: Lamella, tmp_path: Path) -> None:
    second = tmp_path / "second"
    empty.ok("init", "-q", "-r", second)
    done = empty.json("backup", "-r", tmp_path / "repository", "-r", second, f"db=!echo run >> {tmp_path}/runs; echo x")
    assert [one["result"] for one in done["repositories"]] == ["complete", "complete"]
    assert (tmp_path / "runs").read_text() == "run\nrun\n"


def test_a_stream_in_a_profile(empty: Lamella, keyfile: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        f'[repositories.main]\nurl = "{tmp_path}/repository"\nkeyfile = "{keyfile}"\n'
        '[profiles.nightly]\nrepositories = ["main"]\n'
        f"sources = ['db=!cat {tmp_path}/made | tr a b']\n"
    )
    lamella = Lamella({"LAMELLA_CONFIG": str(config)})
    failed = lamella.run("run", "nightly")
    assert failed.code == 3 and "made" in failed.err, failed
    (tmp_path / "made").write_text("banana")
    lamella.ok("run", "nightly")
    assert restored(empty, "db", tmp_path / "out") == b"bbnbnb"
