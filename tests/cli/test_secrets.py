"""Where the secret comes from: exactly one source, else the terminal (design: secret)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from lamella.base.errors import UsageError
from lamella.cli.secret import given_source
from lamella.crypto.new_slots import MIN_WRITTEN_LOG_N
from tests.cli.program import COMMAND, Lamella, Terminal, environment
from tests.features import require

WORD = "correct höhe battery"
COST = ["--kdf-cost", str(MIN_WRITTEN_LOG_N)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `word`, a file that holds the passphrase, and `repository`, which it opens."""
    home = tmp_path_factory.mktemp("passphrase")
    (home / "word").write_text(WORD + "\n")
    places = {"LAMELLA_STATE_DIR": str(home / "state"), "LAMELLA_CACHE_DIR": str(home / "cache")}
    env = {**places, "LAMELLA_CONFIG": str(home / "none"), "LAMELLA_PASSPHRASE_FILE": str(home / "word")}
    Lamella(env).ok("init", "-q", "-r", home / "repository", *COST)
    return home


@pytest.fixture
def lamella(home: Path) -> Lamella:
    """The command, told the repository and no secret."""
    return Lamella({"LAMELLA_REPO": str(home / "repository")})


@pytest.mark.parametrize("source", ["", "_FILE", "_COMMAND", "_FD", "credential"])
def test_each_source_opens(source: str, home: Path, lamella: Lamella) -> None:
    (home / "lamella.passphrase").write_text(WORD)
    if source == "_FD":
        reader, writer = os.pipe()
        os.write(writer, f"{WORD}\n".encode())
        os.close(writer)
        with os.fdopen(reader):
            lamella.env["LAMELLA_PASSPHRASE_FD"] = "0"
            done = run_with_input(lamella, reader)
        assert done == 0
        return
    values = {"": WORD, "_FILE": str(home / "word"), "_COMMAND": f"cat '{home / 'word'}'", "credential": str(home)}
    name = "CREDENTIALS_DIRECTORY" if source == "credential" else f"LAMELLA_PASSPHRASE{source}"
    lamella.ok("list", env={name: values[source]})


def run_with_input(lamella: Lamella, descriptor: int) -> int:
    """Run `list` with this descriptor as standard input; return the exit code."""
    return subprocess.run(
        [*COMMAND, "list"], env=environment(lamella.env), stdin=descriptor, timeout=60, capture_output=True
    ).returncode


def test_wrong_passphrase_is_12(lamella: Lamella) -> None:
    done = lamella.run("list", env={"LAMELLA_PASSPHRASE": WORD + "\n"})
    assert done.code == 12
    assert "passphrase" in done.err


def test_two_sources_are_named(home: Path, lamella: Lamella, tmp_path: Path) -> None:
    env = {"LAMELLA_PASSPHRASE": WORD, "LAMELLA_RECOVERY_KEY_FILE": "x"}
    done = lamella.run("list", "--keyfile", tmp_path / "key", env=env)
    assert done.code == 2
    for name in ("LAMELLA_PASSPHRASE", "LAMELLA_RECOVERY_KEY_FILE", "--keyfile"):
        assert name in done.err
    assert WORD not in done.err


def test_no_source_and_no_terminal_is_2(lamella: Lamella) -> None:
    done = lamella.run("list")
    assert done.code == 2
    assert "no terminal" in done.err
    assert lamella.run("list", env={"LAMELLA_PASSPHRASE": ""}).code == 2


@pytest.mark.parametrize(
    ("name", "value", "code", "text"),
    [
        ("LAMELLA_PASSPHRASE_FILE", "/nonexistent", 2, "/nonexistent"),
        ("LAMELLA_PASSPHRASE_COMMAND", "false", 1, "false"),
        ("LAMELLA_PASSPHRASE_COMMAND", "'", 2, "words"),
        ("LAMELLA_PASSPHRASE_FD", "99", 2, "99"),
        ("LAMELLA_PASSPHRASE_FD", "no", 2, "'no'"),
        ("LAMELLA_PASSPHRASE_COMMAND", "true", 2, "empty"),
    ],
)
def test_source_that_cannot_be_read(name: str, value: str, code: int, text: str, lamella: Lamella) -> None:
    done = lamella.run("list", env={name: value})
    assert done.code == code
    assert text in done.err


def test_only_one_newline_is_taken_off() -> None:
    args = Namespace(keyfile=None, recovery_key_file=None)
    for printed, wanted in (("a", "a"), ("a\\n", "a"), ("a\\n\\n", "a\n"), (" a ", " a ")):
        source = given_source(args, {"LAMELLA_PASSPHRASE_COMMAND": f"printf '{printed}'"}, None)
        assert source is not None
        assert source.read().value == wanted.encode()


def test_key_file_too_short(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(bytes(31))
    source = given_source(Namespace(keyfile=str(tmp_path / "key"), recovery_key_file=None), {}, None)
    assert source is not None
    with pytest.raises(UsageError, match="31"):
        source.read()


def test_prompt_opens(lamella: Lamella) -> None:
    with Terminal(["list", "--json"], lamella.env) as terminal:
        terminal.expect("Passphrase of the repository: ")
        terminal.type(WORD)
        assert terminal.end() == 0
        assert WORD not in terminal.seen


def test_a_wrong_passphrase_is_asked_for_again(lamella: Lamella) -> None:
    with Terminal(["list", "--json"], lamella.env) as terminal:
        for word in ("wrong", "wrong again", WORD):
            terminal.expect("Passphrase of the repository: ")
            terminal.type(word)
        assert terminal.end() == 0
        assert terminal.seen.count("wrong passphrase") == 2


@pytest.mark.parametrize("command", [["list"], ["repair", "-n"], ["verify"], ["prune", "--keep-last", "1", "-n"]])
def test_after_three_wrong_passphrases_it_is_12(lamella: Lamella, command: list[str]) -> None:
    with Terminal(command, lamella.env) as terminal:
        for _ in range(3):
            terminal.expect("Passphrase of the repository: ")
            terminal.type("wrong")
        assert terminal.end() == 12
        assert terminal.seen.count("wrong passphrase") == 3


def test_a_secret_that_is_given_is_not_asked_for_again(lamella: Lamella) -> None:
    with Terminal(["list"], {**lamella.env, "LAMELLA_PASSPHRASE": "wrong"}) as terminal:
        assert terminal.end() == 12
        assert "Passphrase of" not in terminal.seen


@pytest.mark.parametrize("shape", ["as on the sheet", "small letters", "without dashes", "with a mistake"])
def test_a_recovery_key_is_taken_at_the_prompt(home: Path, lamella: Lamella, shape: str) -> None:
    sheet = home / f"sheet {shape}"
    admin = {"LAMELLA_PASSPHRASE_FILE": str(home / "word")}
    lamella.ok("key", "add", "--recovery", "--recovery-sheet", sheet, env=admin)
    key = re.search(r"(?:[A-Z2-7]{5}-\s*){13}[A-Z2-7]{5}", sheet.read_text())
    assert key is not None
    whole = "".join(key[0].split())
    text = {"small letters": whole.lower(), "without dashes": whole.replace("-", "")}.get(shape, whole)
    with Terminal(["list", "--json"], lamella.env) as terminal:
        terminal.expect("Passphrase of the repository: ")
        if shape == "with a mistake":
            terminal.type(("A" if text[0] != "A" else "B") + text[1:])
            terminal.expect("typing mistake in group 1 of 14")
            terminal.expect("Passphrase of the repository: ")
        terminal.type(text)
        assert terminal.end() == 0


@pytest.mark.parametrize("name", ["LAMELLA_PASSPHRASE_FILE", "LAMELLA_RECOVERY_KEY_FILE", "--keyfile"])
def test_a_secret_that_others_can_read_is_told_of(lamella: Lamella, tmp_path: Path, name: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(os.urandom(40))
    for mode, told in ((0o644, True), (0o640, True), (0o600, False), (0o400, False)):
        file.chmod(mode)
        done = lamella.run("list", name, file) if name == "--keyfile" else lamella.run("list", env={name: str(file)})
        assert done.code in (2, 12)
        assert (f"other users can read {file}" in done.err) == told, (mode, done.err)


def rescue(home: Path, *arguments: str | Path) -> list[str | Path]:
    """The command line of the emergency reader."""
    return [
        sys.executable,
        "-I",
        "-S",
        home / "repository" / "restore.py",
        "list",
        "--repo",
        home / "repository",
        *arguments,
    ]


def test_the_emergency_reader_says_that_it_has_no_secret(home: Path) -> None:
    done = subprocess.run(
        rescue(home), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, start_new_session=True
    )
    assert done.returncode == 2
    assert "no secret: give --recovery-key-file" in done.stderr
    assert "interrupted" not in done.stderr


def test_prompt_is_for_a_repository_that_exists(tmp_path: Path) -> None:
    with Terminal(["list", "-r", tmp_path / "none"]) as terminal:
        assert terminal.end() == 10
        assert "Passphrase" not in terminal.seen


def test_init_asks_twice_and_shows_the_sheet(tmp_path: Path) -> None:
    with Terminal(["init", "-r", tmp_path / "R", *COST]) as terminal:
        terminal.expect("New passphrase: ")
        terminal.type(WORD)
        terminal.expect("New passphrase again: ")
        terminal.type(WORD)
        assert terminal.end() == 0
        assert "LAMELLA RECOVERY SHEET" in terminal.seen
        assert "Recovery key" in terminal.seen
        assert WORD not in terminal.seen
    opened = Lamella({"LAMELLA_REPO": str(tmp_path / "R"), "LAMELLA_PASSPHRASE": WORD})
    assert [row["type"] for row in opened.json("key", "list")["slots"]].count("recovery key") == 1


def test_two_entries_that_differ_make_nothing(tmp_path: Path) -> None:
    with Terminal(["init", "-r", tmp_path / "R"]) as terminal:
        terminal.expect("New passphrase: ")
        terminal.type("one passphrase")
        terminal.expect("again: ")
        terminal.type("another one")
        assert terminal.end() == 2
        assert "differ" in terminal.seen
    assert not (tmp_path / "R").exists()


def test_a_passphrase_that_is_soon_guessed_is_refused(tmp_path: Path) -> None:
    with Terminal(["init", "-r", tmp_path / "R"]) as terminal:
        terminal.expect("New passphrase: ")
        terminal.type("ab")
        assert terminal.end() == 2
        assert "fewer than 8 characters" in terminal.seen
    assert not (tmp_path / "R").exists()
    done = Lamella().ok("init", "-r", tmp_path / "R", *COST, env={"LAMELLA_PASSPHRASE": "ab"})
    assert "soon guessed" in done.err and f"next: lamella backup -r {tmp_path}/R SOURCE" in done.err


def test_interrupted_at_the_prompt(lamella: Lamella) -> None:
    with Terminal(["list"], lamella.env) as terminal:
        terminal.expect("Passphrase")
        terminal.type("\x03")
        assert terminal.end() == 130
        assert "\nlamella: interrupted\r\n" in terminal.seen, "a line of its own, and no word of what is whole"


def test_interrupted_before_there_is_a_repository(tmp_path: Path) -> None:
    with Terminal(["init", "-r", tmp_path / "R"]) as terminal:
        terminal.expect("New passphrase: ")
        terminal.type("\x03")
        assert terminal.end() == 130
        assert "whole" not in terminal.seen
    assert not (tmp_path / "R").exists()


def test_programs_do_not_inherit_secrets(home: Path, lamella: Lamella, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    hidden = dict.fromkeys((f"LAMELLA_{which}_PASSPHRASE" for which in ("NEW", "TO", "FROM")), "hidden")
    env = {**hidden, "LAMELLA_PASSPHRASE_COMMAND": f"sh -c 'env > {seen}; cat {home}/word'"}
    lamella.ok("list", env=env)
    assert "PATH=" in seen.read_text()
    assert "hidden" not in seen.read_text()


def test_the_memory_of_a_command_is_its_own(lamella: Lamella, tmp_path: Path) -> None:
    """No core dump, and no other process of the same user may look (proc(5), PR_SET_DUMPABLE)."""
    require("root", os.geteuid() == 0, "a test that gives capabilities away")
    require("setpriv", shutil.which("setpriv") is not None, "setpriv of util-linux is not here")
    seen = tmp_path / "seen"
    look = f"cat /proc/$PPID/limits > {seen}; cat /proc/$PPID/environ >> {seen} 2>&1; echo {WORD}"
    env = environment({**lamella.env, "LAMELLA_PASSPHRASE_COMMAND": f'sh -c "{look}"', "LAMELLA_MARK": "readable"})
    # With capabilities root may look at everything.
    subprocess.run(["setpriv", "--bounding-set=-all", "--inh-caps=-all", *COMMAND, "list"], env=env, check=True)
    assert "readable" not in seen.read_text()
    assert re.search(r"core file size +0 ", seen.read_text())


def test_missing_repository_is_named_even_without_a_secret(tmp_path: Path) -> None:
    assert Lamella().run("list", "-r", tmp_path / "none").code == 10


def test_doctor_asks_on_a_terminal_and_goes_on_without(lamella: Lamella) -> None:
    done = lamella.run("doctor")
    assert (done.code, "left out" in done.err) == (0, True)
    with Terminal(["doctor"], lamella.env) as terminal:
        terminal.expect("Passphrase of the repository: ")
        terminal.type(WORD)
        assert terminal.end() == 0
        assert "an admin's slot" in terminal.seen
