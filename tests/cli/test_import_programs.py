"""`lamella import borg` and `restic`: the real programs make the archives, and say what is right."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError
from lamella.imports.borg import borg_history
from lamella.imports.history import volume_sources
from lamella.imports.restic import _checked, restic_history
from tests.cli.program import Lamella, environment
from tests.features import require

MIB = 1 << 20
CASES = int(os.environ.get("LAMELLA_MUTATIONS", "40"))
"""By hand 2,000."""
KILLS = int(os.environ.get("LAMELLA_KILLS", "2"))
"""By hand 10, and with both tools."""
BORG = os.environ.get("LAMELLA_TEST_BORG", "borg")
"""The borg to try, 1.2 to 2.0.0b21; that of the system is 1.2."""


class Archive:
    """A repository of another tool, with two states of two images, one of them below a name that needs care."""

    names = ("web disk.img", "sub/{now}'s data.img")

    def __init__(self, tmp_path: Path) -> None:
        self.states: list[bytes] = []
        self.top, self.place, self.home = tmp_path / "tree", tmp_path / "archive", tmp_path / "home"
        (self.top / "sub").mkdir(parents=True)
        self.home.mkdir()
        for name in self.names:
            with (self.top / name).open("wb") as file:
                file.write(os.urandom(MIB))
                file.truncate(6 * MIB)
        (self.top / "empty").touch()
        os.link(self.top / self.names[0], self.top / "hard.img")
        (self.top / "link.img").symlink_to("/etc/passwd")

    @property
    def env(self) -> dict[str, str]:
        """What both tools read; none of their caches stays on the machine."""
        secrets = {"BORG_PASSPHRASE": "x", "RESTIC_PASSWORD": "x", "BORG_TESTONLY_WEAKEN_KDF": "1"}
        return {**secrets, "BORG_BASE_DIR": str(self.home), "XDG_CACHE_HOME": str(self.home)}

    def ran(self, *words: str | Path, into: Path | None = None) -> bytes:
        """Run the tool in the tree."""
        env = {**os.environ, **self.env, "LC_ALL": "C.UTF-8"}
        done = subprocess.run(list(map(str, words)), cwd=into or self.top, env=env, capture_output=True, timeout=120)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def change(self, seed: int) -> None:
        """Write a little into each image, and keep what is to be saved."""
        chance = random.Random(seed)
        for name in self.names:
            with (self.top / name).open("r+b") as file:
                file.seek(chance.randrange(6 * MIB - 5000))
                file.write(chance.randbytes(5000))
            self.states.append((self.top / name).read_bytes())


class Borg(Archive):
    """borg: the archives `one` and `t{w}o`."""

    kind = "borg"
    names_of_archives = ("one", "t{w}o")

    def __init__(self, tmp_path: Path) -> None:
        super().__init__(tmp_path)
        require("borg", shutil.which(BORG) is not None, "there is no borg")
        self.is_second = b"borg 2" in self.ran(BORG, "--version")
        if self.is_second:  # where several archives may have one name
            self.ran(BORG, "-r", self.place, "repo-create", "-e", "repokey-aes-ocb")
        else:
            self.ran(BORG, "init", "-e", "repokey", self.place)
        for number, name in enumerate(self.names_of_archives):
            self.change(number)
            self.ran(BORG, *self.archive("create", name.replace("{", "{{").replace("}", "}}")), ".")
        self.sessions = list(self.names_of_archives)
        if self.is_second:
            listed = json.loads(self.ran(BORG, "-r", self.place, "repo-list", "--json"))["archives"]
            self.ids = {f"{one['name']}~{one['id'][:8]}": f"aid:{one['id']}" for one in listed}
            self.sessions = list(self.ids)

    def archive(self, command: str, name: str) -> list[str]:
        """A command for an archive."""
        return ["-r", str(self.place), command, name] if self.is_second else [command, f"{self.place}::{name}"]

    def restored(self, session: str, into: Path) -> Path:
        """Where the tool itself restores a session."""
        into.mkdir()
        name = self.ids[session] if self.is_second else session.replace("{", "{{").replace("}", "}}")
        self.ran(BORG, *self.archive("extract", name), into=into)
        return into

    def unlock(self) -> None:
        """Take away the lock that a killed borg left."""
        words = ["-r", str(self.place), "break-lock"] if self.is_second else ["break-lock", str(self.place)]
        self.ran(BORG, *words)

    @property
    def options(self) -> list[str]:
        """Which program is to be used."""
        return ["--program", BORG]


class Restic(Archive):
    """restic: its snapshots have ids."""

    kind = "restic"
    options = ()

    def __init__(self, tmp_path: Path) -> None:
        super().__init__(tmp_path)
        require("restic", shutil.which("restic") is not None, "there is no restic")
        self.ran("restic", "-q", "-r", self.place, "init")
        self.sessions: list[str] = []
        for number in range(2):
            self.change(number)
            self.ran("restic", "-q", "-r", self.place, "backup", "--tag", f"t{number}", ".")

    def restored(self, session: str, into: Path) -> Path:
        """Where the tool itself restores a session."""
        self.ran("restic", "-q", "-r", self.place, "restore", session, "--target", into)
        return into


Foreign = Borg | Restic


@pytest.fixture(params=[Borg, Restic])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Foreign:
    """An archive of each tool."""
    made: Foreign = request.param(tmp_path)
    return made


def test_every_session_is_what_the_tool_itself_restores(empty: Lamella, archive: Foreign, tmp_path: Path) -> None:
    empty.env.update(archive.env)
    words = ["import", archive.kind, *archive.options, archive.place]
    listed = empty.json(*words, "--list")
    sessions = [row["session"] for row in listed["sessions"]]
    assert len(sessions) == 2 and all(row["claimed_time"] for row in listed["sessions"])
    if isinstance(archive, Borg):
        assert sessions == archive.sessions
    else:
        assert [row["tags"] for row in listed["sessions"]] == [["t0"], ["t1"]]
    names = {volume["volume"] for row in listed["sessions"] for volume in row["volumes"]}
    assert names == {*archive.names, "hard.img"}, "neither links nor empty files"
    # The names are full of what patterns and shells take for something else.
    done = empty.json(*words, "web=web disk.img", "data=sub/*", "hard.img")
    assert done["result"] == "complete" and len(done["sessions"]) == 6
    later = [row for row in done["sessions"] if row["session"] != sessions[0]]
    assert sum(row["stored_bytes"] for row in later) < 3 * MIB, "only what changed is stored"
    found = {(row["session"], row["volume"]): row["snapshot"] for row in done["sessions"]}
    for number, session in enumerate(sessions):
        right = archive.restored(session, tmp_path / f"right{number}")
        several = zip(("web", "data", "hard.img"), (*archive.names, "hard.img"), strict=True)
        for ours, theirs in list(several)[: 1 if not number else 3]:
            target = tmp_path / f"{number}-{ours}"
            empty.ok("restore", f"{ours}@{found[session, ours]}", "--to", target)
            assert target.read_bytes() == (right / theirs).read_bytes(), (session, ours)
            assert target.stat().st_blocks * 512 < 3 * MIB, "holes stay holes"
    again = empty.json(*words, "web=web disk.img", "data=sub/*", "hard.img")
    assert {row["result"] for row in again["sessions"]} == {"present"} and again["stored_bytes"] == 0


def test_snapshots_of_one_second_keep_their_order() -> None:
    rows = [
        {"id": letter * 64, "time": f"2026-11-30T06:05:37.{part}+01:00"}
        for letter, part in (("a", "779"), ("c", "07012"), ("b", "070987654"))
    ]
    assert [one["id"][0] for one in _checked(rows)] == ["c", "b", "a"]


@pytest.mark.parametrize("archive", [Borg, Restic] if KILLS > 2 else [Restic], indirect=True)
def test_killed_again_and_again_no_session_is_read_twice(empty: Lamella, archive: Foreign) -> None:
    empty.env.update(archive.env)
    words = ["import", archive.kind, *archive.options, str(archive.place), archive.names[0]]
    chance = random.Random(3)
    for turn in range(KILLS):
        process = subprocess.Popen(
            [*empty.command, *empty.options, "-q", *words],
            env=environment(empty.env),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        until = time.monotonic() + chance.uniform(0.3, 5.0)
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT if turn % 3 == 2 else signal.SIGKILL)
        assert "Traceback" not in process.communicate(timeout=120)[1]
        if isinstance(archive, Borg):
            archive.unlock()
        before = {row["snapshot"] for row in empty.json("list")["snapshots"]}
    done = empty.json(*words)
    assert [row["result"] for row in done["sessions"]].count("present") == len(before)
    assert sum(row["read_bytes"] for row in done["sessions"]) == (2 - len(before)) * 6 * MIB
    assert len(empty.json("list")["snapshots"]) == 2


@pytest.mark.parametrize("archive", [Borg, Restic], indirect=True)
def test_no_archive_and_a_wrong_secret_are_told_apart(empty: Lamella, archive: Foreign, tmp_path: Path) -> None:
    """Scripts must see without reading whether a path is wrong (10), or a passphrase (12)."""
    empty.env.update(archive.env)
    for nowhere in (tmp_path / "none", archive.top):
        done = empty.run("import", archive.kind, *archive.options, nowhere, "*.img")
        assert (done.code, done.err.count("\n")) == (10, 1), done.err
    wrong = {"BORG_PASSPHRASE": "y", "RESTIC_PASSWORD": "y"}
    done = empty.run("import", archive.kind, *archive.options, archive.place, "*.img", env=wrong)
    assert (done.code, done.err.count("\n")) == (12, 1), done.err


@pytest.mark.parametrize("archive", [Borg], indirect=True)
def test_a_lost_chunk_is_no_zeros(empty: Lamella, archive: Foreign, tmp_path: Path) -> None:
    """borg 2 restores zeros in the place of what is lost, and ends with 0."""
    empty.env.update(archive.env)
    data = [path for path in (archive.place / "data").rglob("*") if path.is_file()]
    max(data, key=lambda path: path.stat().st_size).unlink()
    done = empty.run("import", archive.kind, *archive.options, archive.place, archive.names[0])
    assert (done.code, len(done.err) < 2000) == (3, True), done
    for row in empty.json("list")["snapshots"]:
        empty.ok("restore", f"{row['volumes'][0]}@{row['snapshot']}", "--to", tmp_path / "out", "--overwrite")
        assert (tmp_path / "out").read_bytes() in archive.states, "what needs the chunk is not stored"


def stand_in(tmp_path: Path, answers: dict[str, bytes]) -> Path:
    """A program that says of each command what is in a file; for answers that the real one would never give."""
    folder = tmp_path / "said"
    folder.mkdir(exist_ok=True)
    for word, content in answers.items():
        (folder / word).write_bytes(content)
    program = tmp_path / "program"
    program.write_text(f"""#!/bin/sh
for word in "$@"; do [ -f "{folder}/$word" ] && exec cat "{folder}/$word"; done
exit 3
""")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("kind", "said", "words"),
    [
        ("borg", b"borg 2.0.0b20\n", "borg 2.0.0b20 is not supported"),
        ("borg", b"borg 3.0.0\n", "borg 3.0.0 is not supported"),
        ("borg", b"borg 1.1.18\n", "borg 1.1.18 is not supported"),
        ("borg", b"hello\n", "does not say its version"),
        ("restic", b"restic 0.9.6 compiled with go\n", "restic 0.9.6 compiled with go is not supported"),
    ],
)
def test_other_versions_are_refused_by_name(
    lamella: Lamella, tmp_path: Path, kind: str, said: bytes, words: str
) -> None:
    program = stand_in(tmp_path, {"--version": said, "version": said})
    done = lamella.run("import", kind, "--program", program, "--list", tmp_path)
    assert (done.code, done.err.count("\n"), words in done.err) == (2, 1, True), done.err


def test_a_program_that_fails_stores_nothing(empty: Lamella, tmp_path: Path) -> None:
    program = stand_in(tmp_path, {"--version": b"borg 1.4.5\n"})
    done = empty.run("import", "borg", "--program", program, tmp_path, "*.img")
    assert (done.code, done.err.count("\n"), "ended with status 3" in done.err) == (3, 1, True), done.err
    missing = empty.run("import", "restic", "--program", tmp_path / "no-such-program", tmp_path)
    assert (missing.code, "cannot run" in missing.err) == (2, True), missing.err
    assert empty.json("list")["snapshots"] == []


BORG_ANSWERS = {
    "--version": b"borg 1.4.5\n",
    "--json": b'{"repository": {"id": "0123abcd"}, "archives": [{"name": "one", "hostname": "h",'
    b' "time": "2026-01-02T03:04:05.000000"}, {"name": "two", "hostname": "h", "time": "2026-01-03T03:04:05"}]}',
    "--json-lines": b'{"type": "-", "mode": "-rw", "path": "a.img", "size": 5, "healthy": true, "linktarget": ""}\n'
    b'{"type": "-", "mode": "hrw", "path": "b.img", "size": 0, "healthy": true, "linktarget": "a.img"}\n',
}
RESTIC_ANSWERS = {
    "version": b"restic 0.14.0\n",
    "cat": b'{"version": 2, "id": "%s"}' % (b"ab" * 32),
    "snapshots": b'[{"id": "%s", "time": "2026-01-02T03:04:05.123Z", "hostname": "h", "tags": ["t"]}]' % (b"cd" * 32),
    "ls": b'{"struct_type": "snapshot"}\n{"type": "file", "path": "/a.img", "size": 5}\n',
}
BORG2_ANSWERS = {
    "--version": b"borg 2.0.0b21\n",
    "repo-list": b'{"repository": {"id": "0123abcd"}, "archives": [{"name": "one", "id": "%s", "hostname": "h",'
    b' "time": "2026-01-02T03:04:05.000000+00:00"}, {"name": "one", "id": "%s", "hostname": "h",'
    b' "time": "2026-01-03T03:04:05+00:00"}]}' % (b"ab" * 32, b"cd" * 32),
    "--json-lines": b'{"type": "-", "mode": "-rw", "path": "a.img", "size": 5, "hlid": "", "target": ""}\n'
    b'{"type": "-", "mode": "-rw", "path": "b.img", "size": 5, "hlid": "ef", "target": ""}\n',
}
ODD = [b'"\\ud800"', b'"\\u0000"', b"1e999", b"-1", b"null", b"[]", b"{}", b"9" * 5000, b"[" * 5000, b"NaN", b"true"]


def test_a_program_that_ends_well_and_speaks_of_damage_has_failed(empty: Lamella, tmp_path: Path) -> None:
    program = stand_in(tmp_path, {**BORG2_ANSWERS, "extract": b"12345"})
    words: list[str | Path] = ["import", "borg", "--program", program, tmp_path, "a.img"]
    text, says = program.read_text(), '{ echo "object ab missing, returning 5 zero bytes." >&2; }'
    program.write_text(text.replace("&& exec cat", f"&& {says} && exec cat"))
    done = empty.json(*words, code=3)
    assert {row["result"] for row in done["sessions"]} == {"failed"}
    assert "the archive is damaged: object ab missing" in done["sessions"][0]["error"]
    assert empty.json("list")["snapshots"] == []
    program.write_text(text)
    assert {row["result"] for row in empty.json(*words)["sessions"]} == {"imported"}


def test_a_newer_borg_2_is_tried_with_a_warning(lamella: Lamella, tmp_path: Path) -> None:
    for said, warned in ((b"borg 2.0.0b21\n", False), (b"borg 2.0.0b22\n", True), (b"borg 2.0.1\n", True)):
        program = stand_in(tmp_path, {**BORG2_ANSWERS, "--version": said})
        done = lamella.run("import", "borg", "--program", program, "--list", tmp_path, "--json")
        assert [row["session"] for row in done.json["sessions"]] == ["one~abababab", "one~cdcdcdcd"]
        assert [row["claimed_time"][:10] for row in done.json["sessions"]] == ["2026-01-02", "2026-01-03"]
        assert (done.code, "was never tried" in done.err) == (0, warned), done.err


@pytest.mark.parametrize("kind", ["borg", "borg 2", "restic"])
def test_whatever_a_program_says_ends_in_a_list_or_one_line(tmp_path: Path, kind: str) -> None:
    answers = {"borg": BORG_ANSWERS, "borg 2": BORG2_ANSWERS, "restic": RESTIC_ANSWERS}[kind]
    history = restic_history if kind == "restic" else borg_history
    chance, whole = random.Random(11), 0
    for _ in range(CASES):
        said = dict(answers)
        word = chance.choice([one for one in answers if "version" not in one])
        said[word] = mutated(said[word], chance)
        try:
            found = history("x", lambda _: True, str(stand_in(tmp_path, said)))
        except LamellaError as error:
            assert "\n" not in error.message and len(error.message) < 1000
            continue
        whole += 1
        for session, volume in volume_sources(found):
            assert session.id and volume.source.identity and volume.size is not None and 0 < volume.size <= 1 << 47
    assert whole < CASES


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut, doubled, or a value replaced by an odd one."""
    at = chance.randrange(len(content))
    match chance.randrange(5):
        case 0:
            return content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :]
        case 1:
            return content[:at]
        case 2:
            return content[:at] + content[chance.randrange(len(content)) :]
        case 3:
            return content * chance.randrange(2, 50)
    start = content.find(b": ", at) + 2
    end = min([found for mark in b",}\n" if (found := content.find(mark, start)) > 0] or [len(content)])
    return content[:start] + chance.choice(ODD) + content[end:]
