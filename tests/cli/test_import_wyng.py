"""Importing what the real wyng saved.

What a user fears: a session that differs from what wyng restores; the same history twice; a prune that takes years for
the work of one day; an old state that passes for the latest; a half-read archive after a kill, and no word of it.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.program import Lamella, environment
from tests.imports.wyng_archives import EXPECTED, PASSPHRASE, unpacked

VOLUMES = {"disk.img": "disk.img", "home/kept.img": "home_kept.img", "copy.img": "copy.img"}


def restored(lamella: Lamella, row: dict[str, str], target: Path) -> tuple[str, int]:
    """SHA-256 and size of an imported volume, as `restore` writes it."""
    lamella.ok("restore", f"{row['volume']}@{row['snapshot']}", "--to", target)
    content = target.read_bytes()
    target.unlink()
    return hashlib.sha256(content).hexdigest(), len(content)


def sessions_of(archive: str) -> int:
    return sum(map(len, EXPECTED[archive].values()))


def test_every_session_is_what_wyng_restores(empty: Lamella, tmp_path: Path) -> None:
    archive = unpacked("plain", tmp_path)
    done = empty.json("import", "wyng", archive)
    assert done["result"] == "complete"
    assert len(done["sessions"]) == sessions_of("plain") == len(empty.json("import", "wyng", archive)["sessions"])
    names = {here: there for there, here in VOLUMES.items()}
    for row in done["sessions"]:
        sha256, size = EXPECTED["plain"][names[row["volume"]]][row["session"]]
        assert restored(empty, row, tmp_path / "out") == (sha256, size), row
    order = [row["session"] for row in done["sessions"] if row["volume"] == "disk.img"]
    assert order[:2] == sorted(order[:2], reverse=True), "the second session has the earlier local time"
    again = empty.json("import", "wyng", archive)
    assert {row["result"] for row in again["sessions"]} == {"present"}
    assert len(empty.json("list")["snapshots"]) == len({row["snapshot"] for row in done["sessions"]})


def test_what_wyng_cannot_restore_is_left_out_and_said(empty: Lamella, tmp_path: Path) -> None:
    done = empty.json("import", "wyng", unpacked("grown", tmp_path), code=3)
    expected = EXPECTED["grown"]["disk.img"]
    assert {row["session"]: row["result"] for row in done["sessions"]} == {
        session: "imported" if sha256 else "failed" for session, (sha256, _) in expected.items()
    }
    assert "imported" in {row["result"] for row in done["sessions"]}


def test_an_encrypted_archive(empty: Lamella, tmp_path: Path) -> None:
    archive = unpacked("dgr", tmp_path)
    none = empty.run("import", "wyng", archive)
    assert (none.code, none.err.count("\n")) == (2, 1), none.err
    wrong = empty.run("import", "wyng", archive, env={"LAMELLA_FROM_PASSPHRASE": "another passphrase"})
    assert (wrong.code, wrong.err.count("\n")) == (12, 1), wrong.err
    empty.env["LAMELLA_FROM_PASSPHRASE"] = PASSPHRASE
    for row in empty.json("import", "wyng", archive)["sessions"]:
        assert restored(empty, row, tmp_path / "out") == tuple(EXPECTED["dgr"]["disk.img"][row["session"]])


def test_listing_needs_no_repository(lamella: Lamella, tmp_path: Path) -> None:
    archive = unpacked("plain", tmp_path)
    for words in ((archive, "disk*", "--list"), (archive, "--list", "disk*"), ("--list", archive, "-v", "disk*")):
        listed = lamella.json("import", "wyng", *words)
        assert {one["volume"] for row in listed["sessions"] for one in row["volumes"]} == {"disk.img"}
    assert listed["sessions"][0]["tags"] == ["first"]
    assert lamella.run("import", "wyng", tmp_path / "plain", "none", "--list").code == 4
    for nowhere in (tmp_path, tmp_path / "none"):
        done = lamella.run("import", "wyng", nowhere, "--list")
        assert (done.code, done.err.count("\n"), "there is no wyng archive" in done.err) == (10, 1, True), done


def test_prune_keeps_an_imported_history(empty: Lamella, tmp_path: Path) -> None:
    archive = unpacked("plain", tmp_path)
    done = empty.json("import", "wyng", archive, "disk.img")
    assert empty.json("prune", "--keep-last", "1", "-y")["removed"] == []
    first = done["sessions"][0]
    document = tmp_path / "origin.json"
    empty.ok("restore", f"disk.img@{first['snapshot']}", "--document", "origin.json", "--to", document)
    assert first["session"] in document.read_text() and "wyng" in document.read_text()
    listed = empty.json("list", "disk.img")["snapshots"]
    assert [row["claimed_time"] for row in listed] == [row["claimed_time"] for row in done["sessions"]]
    assert listed[0]["tags"] == ["first"]


def test_trusted_times_are_those_of_the_snapshots(empty: Lamella, tmp_path: Path) -> None:
    done = empty.json("import", "wyng", unpacked("plain", tmp_path), "disk.img", "--trust-times")
    listed = empty.json("list", "disk.img")["snapshots"]
    assert [row["time"] for row in listed] == [row["claimed_time"] for row in done["sessions"]]
    pruned = empty.json("prune", "--keep-last", "1", "-y")
    assert len(pruned["removed"]) == len(done["sessions"]) - 1
    assert pruned["kept"][0]["snapshot"] == done["sessions"][-1]["snapshot"]


def test_an_older_session_never_becomes_the_latest(empty: Lamella, tmp_path: Path) -> None:
    archive = unpacked("plain", tmp_path)
    last = max(EXPECTED["plain"]["disk.img"])
    (newest,) = [one["session"] for one in empty.json("import", "wyng", archive, "disk.img", "--list")["sessions"][-1:]]
    assert newest != last, "which by its name would not be the newest"
    only = empty.json("import", "wyng", archive, "disk.img", "--session", newest)["sessions"][0]
    done = empty.json("import", "wyng", archive, code=3)
    assert {row["result"] for row in done["sessions"] if row["volume"] == "disk.img"} == {"present", "left out"}
    assert {row["result"] for row in done["sessions"] if row["volume"] != "disk.img"} == {"imported"}
    assert empty.json("info", "disk.img@latest")["snapshot"] == only["snapshot"]


def test_a_taken_name_is_refused_before_anything_is_read(saved: Lamella, tmp_path: Path) -> None:
    archive = unpacked("plain", tmp_path)
    saved.ok("rename", "disk", "disk.img")
    refused = saved.run("import", "wyng", archive)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "NAME=disk.img" in refused.err
    assert len(saved.json("list")["snapshots"]) == 1
    done = saved.json("import", "wyng", archive, "old=disk.img", "home/*")
    assert {row["volume"] for row in done["sessions"]} == {"old", "home_kept.img"}
    # A live disk goes on with the history, which another run of the import leaves alone.
    (tmp_path / "live.img").write_bytes(bytes(1 << 20))
    saved.ok("backup", f"old={tmp_path / 'live.img'}", "--adopt")
    again = saved.json("import", "wyng", archive, "disk.img", "home/*")
    assert {row["result"] for row in again["sessions"]} == {"present"}


def killed_after(lamella: Lamella, lines: int, archive: Path) -> None:
    """Run the import, and kill it as soon as it said so many lines."""
    command = [*lamella.command, *lamella.options, "import", "wyng", str(archive)]
    with subprocess.Popen(
        command, env=environment({**lamella.env, "PYTHONUNBUFFERED": "1"}), stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        for _ in range(lines):
            run.stdout.readline()
        os.kill(run.pid, signal.SIGKILL)


@pytest.mark.parametrize("lines", [1])
def test_a_killed_import_goes_on(empty: Lamella, tmp_path: Path, lines: int) -> None:
    archive = unpacked("plain", tmp_path)
    present = 0
    for _ in range(int(os.environ.get("LAMELLA_TEST_KILLS", "3"))):
        killed_after(empty, lines + 2, archive)
        rows = empty.json("import", "wyng", archive, "-n")["sessions"]
        here = [row["result"] for row in rows].count("present")
        assert here >= present, "nothing is lost"
        assert {row["result"] for row in rows} <= {"present", "planned"}, "and nothing is in the wrong order"
        present = here
    empty.ok("import", "wyng", archive)
    rows = empty.json("list")["snapshots"]
    assert len(rows) == 6, "no session is here twice"
    assert all(row["pinned"] for row in rows)


def test_verify_compares_a_snapshot_with_what_wyng_restored(empty: Lamella, tmp_path: Path) -> None:
    row = empty.json("import", "wyng", unpacked("plain", tmp_path), "copy.img")["sessions"][0]
    selected, file = f"copy.img@{row['snapshot']}", tmp_path / "restored.img"
    empty.ok("restore", selected, "--to", file)
    content = file.read_bytes()
    assert hashlib.sha256(content).hexdigest() == EXPECTED["plain"]["copy.img"][row["session"]][0]
    assert "no difference found" in empty.ok("verify", selected, "--against", file).out
    one = bytearray(content)
    one[-1] ^= 1
    for other in (bytes(one), content[:-1], content + bytes(1)):
        file.write_bytes(other)
        done = empty.run("verify", selected, "--against", file)
        assert done.code == 20, done
        assert "DIFFERENT" in done.out and "as it is now" not in done.out
    assert empty.run("verify", selected, "--against", file, "--level", "full").code == 2
    assert empty.run("verify", selected, "--against", tmp_path / "none").code == 3
