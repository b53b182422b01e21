"""Every exit code that can be reached, and what is said with it (design: exit codes, errors)."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamella.cli import main as program
from lamella.cli.arguments import COMMANDS
from tests.cli.program import COMMAND, Done, Lamella, environment

MIB = 1 << 20


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, as another process would."""
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def refused(done: Done, code: int, text: str) -> None:
    """The run ended with `code` and one line that says `text`; nothing is on standard output."""
    assert (done.code, done.out) == (code, ""), (done.code, done.out, done.err)
    (line,) = done.err.splitlines()
    assert line.startswith("lamella: ")
    assert text in line


def test_usage_is_2(saved: Lamella, image: Path) -> None:
    for arguments in (
        ["bogus"],
        ["list", "--bogus"],
        ["restore", "disk"],
        ["key"],
        ["-q", "-v", "list"],
        ["verify", "--percent", "0"],
        ["verify", "--level", "full", "--percent", "5"],
        ["backup", str(image), "--compression", "20"],
        ["backup", str(image), str(image)],
        ["backup", str(image), "--document", "nothing"],
        ["diff", "disk"],
        ["init", "--kdf-cost", "15", "-r", "elsewhere"],
        ["info", "@"],
        ["--lis", "list"],
    ):
        refused(saved.run(*arguments), 2, "")
    refused(saved.run("list", "-r", "ftp://place/"), 2, "ftp")


def test_no_command_shows_help() -> None:
    done = Lamella().run()
    assert (done.code, done.out) == (2, "")
    assert all(name in done.err for name in COMMANDS)


def test_no_repository_named_is_2(keyfile: Path) -> None:
    refused(Lamella().run("list", "--keyfile", keyfile), 2, "LAMELLA_REPO")


def test_too_large_document_is_2(saved: Lamella, image: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(MIB + 1))
    refused(saved.run("backup", image, "--document", f"large={large}"), 2, "more than 1.0 MiB")
    large.write_bytes(bytes(MIB))
    saved.ok("backup", image, "--document", f"large={large}")


def test_failed_is_1(saved: Lamella, tmp_path: Path) -> None:
    refused(saved.run("init"), 1, "already a repository")
    done = saved.run("restore", "-q", "disk", "--to", tmp_path / "missing" / "out")
    refused(done, 1, "missing")


def test_some_volumes_failed_is_3(empty: Lamella, image: Path, tmp_path: Path) -> None:
    made = empty.json("backup", tmp_path / "gone.img", image, code=3)
    assert made["result"] == "incomplete"
    results = {row["volume"]: row["result"] for row in made["volumes"]}
    assert results == {"gone": "failed", "disk": "complete"}
    assert "gone.img" in next(row["error"] for row in made["volumes"] if row["volume"] == "gone")
    (shot,) = empty.json("list")["snapshots"]
    assert (shot["result"], shot["volumes"]) == ("incomplete", ["disk"])
    assert empty.run("backup", "-n", tmp_path / "gone.img", image).code == 3
    proof = empty.json("verify", "--level", "full", code=3)
    assert (proof["unrestorable"], [row["object"] for row in proof["findings"]]) == ([], ["gone"])
    assert "INCOMPLETE" in empty.run("verify").out


def test_nothing_matched_is_4(saved: Lamella, empty: Lamella, tmp_path: Path) -> None:
    refused(saved.run("backup", tmp_path / "gone.img"), 4, "gone.img")
    for arguments in (["list", "no"], ["info", "no"], ["verify", "no"], ["diff", "disk@1999"], ["info", "disk@1999"]):
        refused(saved.run(*arguments), 4, "no")
    refused(saved.run("restore", "no", "--to", tmp_path / "out"), 4, "disk")
    refused(saved.run("key", "remove", "ffffff"), 4, "ffffff")


def test_verify_of_nothing_is_4(empty: Lamella) -> None:
    refused(empty.run("verify"), 4, "no snapshot")


def test_source_that_is_no_volume_is_1(saved: Lamella, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(saved.run("backup", tmp_path / "pipe"), 1, "pipe")


def test_no_repository_is_10(lamella: Lamella, place: Path, image: Path) -> None:
    for arguments in (["list"], ["backup", str(image)], ["verify"], ["check"], ["key", "list"]):
        refused(lamella.run(*arguments), 10, str(place))
    assert not place.exists()
    place.mkdir()
    refused(lamella.run("list"), 10, "lamella init")
    error = lamella.json("list", code=10)["error"]
    assert (error["exit"], error["kind"], error["object"]) == (10, "no-repository", str(place))
    assert "lamella init" in error["hint"]


def test_missing_repository_is_reported_before_the_secret_is_read(place: Path) -> None:
    never = {"LAMELLA_REPO": str(place), "LAMELLA_PASSPHRASE_FILE": "/nonexistent"}
    assert Lamella(never).run("list").code == 10


def test_locked_is_11(saved: Lamella, place: Path) -> None:
    with locked(place / "lamella"):
        refused(saved.run("list"), 11, "--lock-wait")
        assert saved.json("list", code=11)["error"]["kind"] == "locked"
    saved.ok("list")


def test_lock_is_waited_for(saved: Lamella, place: Path) -> None:
    with locked(place / "lamella"):
        waiting = subprocess.Popen(
            [*COMMAND, *saved.options, "--lock-wait", "50", "list"],
            env=environment(saved.env),
            stdout=subprocess.PIPE,
        )
    out, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0
    assert b"disk" in out


def test_wrong_key_is_12(saved: Lamella, place: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_bytes(os.urandom(32))
    wrong.chmod(0o600)
    other = Lamella({"LAMELLA_REPO": str(place)})
    refused(other.run("list", "--keyfile", wrong), 12, "key file")
    wrong.write_text("AAAA-BBBB")
    refused(other.run("list", "--recovery-key-file", wrong), 12, "recovery key")


def damage(place: Path) -> None:
    """Overwrite a part of the largest pack: more than the padding that may happen to be there."""
    pack = max((place / "p").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(pack.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = os.urandom(64)
    pack.chmod(0o600)
    pack.write_bytes(content)


def test_damage_is_20(saved: Lamella, place: Path, tmp_path: Path) -> None:
    (shot,) = saved.json("list")["snapshots"]
    damage(place)
    proof = saved.json("verify", "--level", "full", code=20)
    assert proof["unrestorable"] == [f"disk@{shot['snapshot']}"]
    assert {"kind", "severity", "object", "message", "affects"} <= proof["findings"][0].keys()
    shown = saved.run("verify", "--level", "full")
    assert shown.code == 20
    assert "damage: " in shown.out
    assert f"cannot be restored: disk@{shot['snapshot']}" in shown.out
    out = tmp_path / "out"
    assert saved.run("restore", "disk", "--to", out).code == 20
    assert not out.exists()


@pytest.fixture
def rolled_back(saved: Lamella, image: Path, place: Path, tmp_path: Path) -> Lamella:
    """A repository that was set back to the state before its last backup."""
    shutil.copytree(place, tmp_path / "old")
    saved.ok("backup", image)
    shutil.rmtree(place)
    (tmp_path / "old").rename(place)
    return saved


def test_rollback_is_21(rolled_back: Lamella, image: Path, tmp_path: Path) -> None:
    for arguments in (["restore", "disk", "--to", str(tmp_path / "out")], ["backup", str(image)], ["key", "list"]):
        refused(rolled_back.run(*arguments), 21, "lamella check --accept-rollback")
    assert not (tmp_path / "out").exists()
    listed = rolled_back.run("list")
    assert listed.code == 21
    assert "disk" in listed.out
    assert "warning: " in listed.err
    found = rolled_back.json("list", code=21)
    assert len(found["snapshots"]) == len(found["problems"]) == 1
    assert rolled_back.json("info", code=21)["problems"] == found["problems"]
    proof = rolled_back.json("verify", code=21)
    assert proof["unrestorable"] == []


def test_rollback_is_accepted(rolled_back: Lamella, image: Path) -> None:
    problems = rolled_back.json("check", code=21)["problems"]
    assert len(problems) == 1
    accepted = rolled_back.json("check", "--accept-rollback")
    assert (accepted["problems"], accepted["accepted"]) == (problems, True)
    assert rolled_back.json("check")["problems"] == []
    rolled_back.ok("backup", image)
    assert len(rolled_back.json("list")["snapshots"]) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_is_130_and_the_next_run_works(
    number: signal.Signals, empty: Lamella, tmp_path: Path, image: Path
) -> None:
    large = tmp_path / "large.img"
    large.write_bytes(os.urandom(24 * MIB))
    # Slow enough that after its first sign of progress most of the work is still to do.
    arguments = ["--json", "--json-lines", "backup", str(large), "--compression", "19", "--workers", "1"]
    running = subprocess.Popen(
        [*COMMAND, *empty.options, *arguments],
        env=environment(empty.env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    for line in running.stderr:
        event = json.loads(line)
        if event["event"] == "progress":
            assert event["done_bytes"] < event["total_bytes"]
            break
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert json.loads(out)["error"]["kind"] == "interrupted"
    assert json.loads(err.splitlines()[-1])["event"] == "error"
    assert empty.json("list")["snapshots"] == []
    empty.ok("backup", large)
    empty.ok("restore", "large", "--to", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == large.read_bytes()


def test_errors_are_documents_with_json(saved: Lamella) -> None:
    for arguments, code, command in (
        (["bogus"], 2, ""),
        (["list", "--bogus"], 2, "list"),
        (["info", "no"], 4, "info"),
        ([], 2, ""),
    ):
        document = saved.json(*arguments, code=code)
        assert document["command"] == command
        assert document["error"]["exit"] == code
        assert {"kind", "object", "hint"} <= document["error"].keys()


def broken(context: object) -> int:
    """A command with a fault."""
    raise ZeroDivisionError("a fault\nof ours")


def test_fault_of_ours_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("lamella.cli.commands.info.run", broken)
    assert program.main(["info"], {}) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "internal error: ZeroDivisionError: a fault of ours" in line
    assert "--debug" in line
    assert program.main(["info", "--debug", "--json"], {}) == 1
    shown = capsys.readouterr()
    assert "Traceback" in shown.err
    assert json.loads(shown.out)["error"]["exit"] == 1


def test_reader_that_goes_away_is_no_error(saved: Lamella) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, *saved.options, "list"],
        env=environment(saved.env),
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_result_that_cannot_be_written_is_1(saved: Lamella) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *saved.options, "list"],
            env=environment(saved.env),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
        failed = subprocess.run(
            [*COMMAND, "--json", "-r", "/no/repository", *saved.options, "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert "cannot write the result" in done.stderr
    assert failed.returncode == 10 and failed.stderr.count("\n") == 1, failed


def test_path_that_cannot_be_looked_at_is_1(saved: Lamella) -> None:
    done = saved.run("restore", "disk", "--to", "/" + "x" * 300)
    refused(done, 1, "x" * 300)
    assert "internal" not in done.err


def test_closed_streams(saved: Lamella, image: Path) -> None:
    arguments = " ".join([*COMMAND, *saved.options])
    command = f"{arguments} backup {image} >&- 2>&- <&- && {arguments} verify --level full >&- 2>&- <&-"
    done = subprocess.run(["sh", "-c", command], env=environment(saved.env), timeout=60)
    assert done.returncode == 0
    assert len(saved.json("list")["snapshots"]) == 2
