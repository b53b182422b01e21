"""Help is quick, complete, and the same in the manual pages."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.base import errors
from lamella.cli.arguments import COMMANDS, DEFAULTS, EXIT_CODES, CommandParser, build, load, parse
from tests.cli.program import ROOT, Lamella, environment
from tests.features import require
from tools import man
from tools.man_examples import EXAMPLES
from tools.man_topics import KEYS

HEAVY = (
    "cryptography",
    "dataclasses",
    "hashlib",
    "json",
    "lamella.cli.commands",
    "lamella.operations",
    "lamella.repository",
    "sqlite3",
    "subprocess",
    "tomllib",
    "zstandard",
)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--json", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom lamella.cli.main import main\n"
        f"code = main({arguments!r}, {{}})\nprint('MODULES', code, *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment({}), capture_output=True, text=True, check=True, timeout=60
    )
    help_text, _, loaded = done.stdout.partition("MODULES ")
    assert help_text.startswith("usage: lamella")
    code_word, *modules = loaded.split()
    assert code_word == "0"
    assert "argparse" in modules
    assert [name for name in HEAVY if any(one == name or one.startswith(f"{name}.") for one in modules)] == []


def test_help_names_every_command_and_exit_code() -> None:
    text = Lamella().ok("--help").out
    assert [name for name in COMMANDS if not re.search(rf"^    {name} ", text, re.MULTILINE)] == []
    assert EXIT_CODES.splitlines()[-1] in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command: str) -> None:
    text = Lamella().ok(command, "--help").out
    assert text.startswith(f"usage: lamella {command}")
    assert "--lock-wait" in text


def test_version() -> None:
    assert re.fullmatch(r"lamella \d+\.\d+\.\d+\n", Lamella().ok("--version").out)


def test_every_command_has_its_module() -> None:
    folder = ROOT / "src" / "lamella" / "cli" / "commands"
    modules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert {name for name in modules if not name.startswith("_")} == set(COMMANDS)
    assert all(callable(load(name).run) for name in COMMANDS)


def test_options_of_every_command_are_prefilled() -> None:
    """An option that is not in the table would be missing from the arguments when nobody gives it."""
    (group,) = [group for group in build()._action_groups if group.title == "options of every command"]
    # Before and after the command -r is collected apart.
    assert {action.dest for action in group._group_actions} | {"repos"} == set(DEFAULTS)
    assert all(action.default == argparse.SUPPRESS for action in group._group_actions)


def test_later_option_wins() -> None:
    assert parse(["-r", "one", "list", "-r", "two"]).repo == "two"
    assert parse(["-r", "one", "list"]).repo == "one"
    assert parse(["list"]).repo is None


def test_repositories_are_collected() -> None:
    assert parse(["-r", "one", "-r", "two", "backup", "x", "-r", "three", "-r", "one"]).repos == ["one", "two", "three"]
    assert parse(["backup", "x"]).repos == []


def _leaves(parser: CommandParser, *names: str) -> Iterator[tuple[tuple[str, ...], CommandParser]]:
    """Every command that has no commands below it."""
    parser.fill()
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield names, parser
    for action in below:
        for name, child in action.choices.items():
            yield from _leaves(child, *names, name)


def _words(action: argparse.Action) -> list[str]:
    """Words for a positional argument: two where it takes several."""
    if action.choices is not None:
        return [str(next(iter(action.choices)))]
    return [f"{action.dest}-{number}" for number in range(2 if action.nargs in ("*", "+") else 1)]


SEVERAL = {
    names: [word for action in parser._get_positional_actions() for word in _words(action)]
    for names, parser in _leaves(build())
    if sum(len(_words(action)) for action in parser._get_positional_actions()) > 1
}
"""Every command that takes several words, with words for it."""
NEEDED = {
    names: [word for action in parser._actions if action.option_strings and action.required for word in ("--to", "x")]
    for names, parser in _leaves(build())
}
"""Of each command the options that it must have: there is none but --to."""


@pytest.mark.parametrize("names", SEVERAL, ids=" ".join)
def test_options_may_stand_between_any_words(names: tuple[str, ...]) -> None:
    words = SEVERAL[names]
    needed = NEEDED[names]
    right = vars(parse([*names, *words, *needed, "-v", "-r", "y", "--lock-wait", "3"]))
    for at in range(len(words) + 1):
        between = [*words[:at], "-v", *words[at : at + 1], "-vr", "y", *words[at + 1 :], "--lock-wait=3", *needed]
        assert vars(parse([*names, *between])) == right, between
        dashed = [*words[:at], "--lock-wait", "3", "-r", "y", *needed, "-v", "--", *words[at:]]
        assert vars(parse([*names, *dashed])) == right, dashed
    with pytest.raises(errors.UsageError, match="unrecognized arguments: --nothing"):
        parse([*names, words[0], "--nothing", *words[1:], *needed])


WRITING: dict[str, list[list[str]]] = {
    "init": [[]],
    "backup": [["x"]],
    "restore": [["x", "--to", "y"]],
    "check": [[]],
    "key": [["add"], ["change"], ["remove", "x"]],
}


@pytest.mark.parametrize("command", WRITING)
def test_writing_commands_have_a_dry_run(command: str) -> None:
    for arguments in WRITING[command]:
        assert parse([command, *arguments, "-n"]).dry_run
        assert not parse([command, *arguments]).dry_run


def _named(path: Path) -> str:
    return path.relative_to(man.FOLDER).as_posix()


def test_manual_pages_are_current() -> None:
    on_disk = {_named(path): path.read_text("utf-8") for path in man.FOLDER.glob("*/*")}
    assert on_disk == man.pages(), "run: python -m tools.man"


def test_manual_knows_every_exit_code() -> None:
    kinds = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.LamellaError)]
    known = {one.exit_code for one in kinds}
    assert known <= man.EXIT_STATUS.keys()
    assert all(str(code) in EXIT_CODES for code in man.EXIT_STATUS)


@pytest.mark.parametrize("page", sorted(map(_named, man.FOLDER.glob("*/*"))))
def test_manual_pages_are_sound(page: str) -> None:
    groff = shutil.which("groff")
    require("groff", groff is not None, "groff is not installed")
    assert groff is not None
    done = subprocess.run(
        [groff, "-man", "-Tutf8", "-ww", str(man.FOLDER / page)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "LAMELLA" in done.stdout


def test_wrong_manual_page_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(man, "FOLDER", tmp_path)
    (tmp_path / "man1").mkdir()
    (tmp_path / "man1/lamella-gone.1").write_text("old")
    assert man.main() == 0
    assert {_named(path) for path in tmp_path.glob("*/*")} == set(man.pages())


@pytest.mark.parametrize(
    ("word", "meant"),
    [("lst", "lamella list"), ("snapshots", "lamella list"), ("forget", "lamella prune"), ("help", "lamella --help")],
)
def test_a_word_of_another_program_or_a_slip_finds_its_command(word: str, meant: str) -> None:
    done = Lamella().run(word)
    assert done.code == 2
    assert done.err == f"lamella: there is no command {word}; did you mean: {meant}?\n"
    assert "did you mean" not in Lamella().run("xyzzy").err


def test_every_command_has_three_examples_that_its_parser_takes() -> None:
    assert EXAMPLES.keys() == COMMANDS.keys()
    assert not [command for command, examples in EXAMPLES.items() if len(examples) < 3]
    lines = [line for examples in EXAMPLES.values() for _, line in examples if line.startswith("lamella ")]
    assert len(lines) > 2 * len(EXAMPLES)
    for line in lines:
        words = shlex.split(line.partition(" | ")[0].partition(" > ")[0])
        assert words[1] in COMMANDS
        parse(words[1:])  # raises UsageError for an option that is gone


def test_the_examples_make_sense(saved: Lamella) -> None:
    """What they name may be missing here; that the command refuses the words themselves would be exit code 2."""
    saved.ok("rename", "disk", "web")
    refused = []
    for command in ("delete", "diff", "info", "list", "prune", "repair", "tag", "verify"):
        for line in (line for _, line in EXAMPLES[command] if line.startswith(f"lamella {command}")):
            done = saved.run(*shlex.split(line)[1:])
            if done.code == 2 and "there is no rule" not in done.err and "-y" not in done.err:
                refused.append(f"{line}: {done.err}")
    assert not refused


def test_the_manual_knows_every_key_of_the_configuration() -> None:
    """A key that a file may hold and the manual does not explain, or the other way round."""
    from dataclasses import fields

    from lamella.cli import configuration as c
    from lamella.cli.everyday import profiles as p
    from lamella.cli.media_set import MediaSet
    from lamella.cli.policy import KEYS as RULES

    def names(kind: type) -> set[str]:
        return {one.name for one in fields(kind)}

    inner = {name: kind for name, (kind, _) in p._TABLES.items()}
    expected = {
        "[repositories.NAME]": names(c.RepositorySettings),
        "[media.NAME]": names(MediaSet),
        "[backup]": names(c.BackupSettings),
        "[lvm]": names(c.LvmSettings),
        "[prune] and [prune.volumes.NAME]": {"zone", *RULES},
        "[profiles.NAME]": names(p.Profile) - {"name", *inner},
        **{f"[profiles.NAME.{name}]": names(kind) for name, kind in inner.items()},
    }
    tables = dict(KEYS)
    assert tables.pop("Outside of tables").keys() == {"default_repository"}
    assert {table: set(keys) for table, keys in tables.items()} == expected
