"""Completion in the real shells: a person types the beginning of a line and presses the tabulator.

The fears: it asks for a passphrase, it waits for a server, it offers nothing or the wrong thing.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.cli.program import Lamella, Terminal
from tests.features import require

_TAB, _START_OF_LINE = "\t", "\x01"
_SETUP = {
    "bash": 'eval "$(lamella completion bash)"',
    "zsh": 'autoload -Uz compinit; compinit -u -D; eval "$(lamella completion zsh)"',
    "fish": "lamella completion fish | source",
}
_START = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"], "fish": ["fish", "-N", "-i"]}


@pytest.fixture
def seen(saved: Lamella, image: Path, tmp_path: Path) -> Lamella:
    """The command, with names that `list` saw, and `lamella` on the search path. The key is given to nobody."""
    saved.ok("backup", image, f"other-machine={image.parent / 'key'}")
    with Terminal([*saved.options, "list"], saved.env) as terminal:
        assert terminal.end() == 0
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "lamella"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m lamella "$@"\n')
    program.chmod(0o755)
    config = tmp_path / "lamella.toml"
    config.write_text("""[repositories.nas]\nurl = "ssh://nowhere.invalid/x"\n[profiles.nightly]\nsources = ["/x"]\n""")
    saved.env |= {"LAMELLA_CONFIG": str(config), "PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin"}
    return saved


def words(lamella: Lamella, *line: str) -> list[str]:
    """What the script of a shell is told for the words of a line, the last one unfinished."""
    done = Lamella(lamella.env).ok("completion", "bash", "--", "lamella", *line)
    assert done.err == ""
    return done.out.splitlines()


def test_words_follow_from_the_tree_of_commands_and_the_names_last_seen(seen: Lamella) -> None:
    newest = json.loads(seen.ok("list", "--json").out)["snapshots"][-1]["snapshot"]
    assert words(seen, "resto") == ["restore"]
    assert {"list", "add", "remove"} <= set(words(seen, "key", ""))
    assert words(seen, "verify", "--level", "s") == ["sample", "source", "structure"]
    assert words(seen, "verify", "--lev") == ["--level"]
    assert words(seen, "restore", "") == ["disk", "other-machine"]
    assert words(seen, "restore", "disk") == ["disk@"]
    assert f"disk@{newest}" in words(seen, "restore", "disk@") and "disk@yesterday" in words(seen, "restore", "disk@y")
    assert words(seen, "-q", "restore", "--to", "/tmp/x", "o") == ["other-machine"]
    assert words(seen, "restore", "disk", "--to", "") == [":files"]
    assert words(seen, "run", "n") == ["nightly"]
    assert words(seen, "list", "-r", "n") == ["nas"]
    assert words(seen, "list", "-r", "nas", "") == []  # that host is nowhere: nothing is known, and nothing is asked
    assert words(seen, "nonsense", "") and words(seen, "restore", "--nonsense", "") == ["disk", "other-machine"]


def test_neither_a_damaged_cache_nor_a_broken_configuration_breaks_completion(seen: Lamella, own_places: Path) -> None:
    (cached,) = (own_places / "cache" / "names").iterdir()
    assert cached.stat().st_mode & 0o077 == 0
    for text in ("", "[]", '{"a": 1}', "{", "null"):
        cached.write_text(text)
        assert words(seen, "restore", "") == []
    Path(seen.env["LAMELLA_CONFIG"]).write_text("nonsense = [")
    assert words(seen, "resto") == ["restore"] and words(seen, "run", "") == [] and words(seen, "list", "-r", "") != []


@pytest.mark.parametrize("shell", list(_SETUP))
def test_the_tabulator_completes_in_the_real_shell(seen: Lamella, shell: str, tmp_path: Path) -> None:
    require(shell, shutil.which(shell) is not None, "the shell is not installed")
    (tmp_path / "file-of-mine").touch()
    # The shells end a word at @ or at a colon, each in its own way.
    lines = {
        "lamella resto": "lamella restore",
        "lamella restore oth": "lamella restore other-machine",
        "lamella restore disk@yest": "lamella restore disk@yesterday",
        "lamella verify --lev": "lamella verify --level",
        f"lamella restore disk --to {tmp_path}/file-o": f"lamella restore disk --to {tmp_path}/file-of-mine",
    }
    env = {**seen.env, "HOME": str(tmp_path), "TERM": "dumb" if shell == "bash" else "xterm"}
    with Terminal([], env, _START[shell]) as terminal:
        terminal.type(_SETUP[shell])
        terminal.type("echo rea''dy")
        terminal.expect("ready")
        for typed, completed in lines.items():
            terminal.press(typed + _TAB)
            time.sleep(1.5)  # what the shell shows meanwhile differs; the next key would cut its work short
            terminal.press(f"{_START_OF_LINE}echo '<' ")
            terminal.type("")
            terminal.expect(f"< {completed}")
        assert "assphrase" not in terminal.seen
