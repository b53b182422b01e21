"""Far sides that print something of their own before the server answers, or have another locale than this one.

What a user fears: a terminal full of garbage, a command that hangs, a repository that is not found again.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.program import Lamella
from tests.features import require

LATIN_1 = {"LC_ALL": "de_DE.ISO-8859-1"}


def far(tmp_path: Path, *before: str) -> dict[str, str]:
    """In place of ssh a shell that runs these lines and then what ssh would run."""
    script = tmp_path / "ssh"
    script.write_text("\n".join(("#!/bin/sh", *before, 'for last; do :; done; eval "$last"', "")))
    script.chmod(0o755)
    return {"LAMELLA_SSH_COMMAND": shlex.quote(str(script))}


@pytest.mark.parametrize(
    ("noise", "said"),
    [
        ("head -c 5 /dev/urandom | tr '\\0-\\177' '\\200-\\377'", "sends bytes that are no text"),
        ("cat /dev/urandom", "sends bytes that are no text"),
        (r"printf '\033[31mWelcome to the far side, Jos\351!\033[0m\r\n\233c'", "Welcome to the far side"),
        ("yes 'You have mail. '", "says 'You have mail."),
        ("printf LMLSERV1; head -c 4000 /dev/urandom", "does not keep to the protocol"),
    ],
)
def test_what_a_far_shell_prints_first_is_one_short_line(
    empty: Lamella, place: Path, tmp_path: Path, noise: str, said: str
) -> None:
    done = empty.run("-r", f"ssh://far{place}", "list", env=far(tmp_path, noise))
    assert done.code == 1 and said in done.err and done.err.count("\n") == 1
    assert done.err.rstrip("\n").isprintable() and "\ufffd" * 20 not in done.err and len(done.err) < 500


def test_what_a_far_shell_prints_as_an_error_harms_nothing(saved: Lamella, place: Path, tmp_path: Path) -> None:
    noise = "head -c 200000 /dev/urandom >&2"
    done = saved.ok("-r", f"ssh://far{place}", "list", env=far(tmp_path, noise))
    assert "disk" in done.out and done.err.replace("\n", "").isprintable() and len(done.err) < 1000


@pytest.fixture(scope="module")
def locales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("locales")
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(place / "de_DE.ISO-8859-1")],
        capture_output=True,
        check=False,
    )
    require("localedef", made.returncode in {0, 1}, "locales cannot be made here")
    return place


@pytest.mark.parametrize(("served", "variables"), [(False, LATIN_1), (True, {"LC_ALL": "C", "PYTHONUTF8": "0"})])
def test_a_repository_is_the_same_whatever_the_far_locale(
    lamella: Lamella, image: Path, tmp_path: Path, locales: Path, variables: dict[str, str], served: bool
) -> None:
    """By the agent that is sent along, and by an installed server; then beside it, by this machine."""
    place = tmp_path / "Säcke" / "größe"
    place.parent.mkdir()
    odd = {**variables, "LOCPATH": str(locales), "PYTHONCOERCECLOCALE": "0"}
    before = [f"export {name}={shlex.quote(value)}" for name, value in odd.items()]
    if served:
        before.append(f"exec {sys.executable} -m lamella serve {shlex.quote(str(place))}")
        lamella.ok("-r", place, "init", "-q")
    env = far(tmp_path, *before)
    remote = f"ssh://far{place}"
    if not served:
        lamella.ok("-r", remote, "init", "-q", env=env)
    named = image.rename(image.with_name("möbel.img"))
    lamella.ok("-r", remote, "backup", named, env=env)
    assert "möbel" in lamella.ok("-r", remote, "list", env=env).out
    lamella.ok("-r", place, "restore", "möbel", "--to", tmp_path / "out.img")
    assert (tmp_path / "out.img").read_bytes() == named.read_bytes()
    assert [one.name for one in place.parent.iterdir()] == ["größe"]
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith("S")] == ["Säcke"]
    gone = lamella.run("-r", f"{remote}-nichts", "list", env=env)
    assert gone.code in {0, 10} and (served or "größe-nichts" in gone.err)


def test_the_emergency_reader_knows_names_whatever_the_locale(
    empty: Lamella, place: Path, image: Path, tmp_path: Path, locales: Path
) -> None:
    named = image.rename(image.with_name("möbel.img"))
    empty.ok("backup", named)
    environment = {**os.environ, **LATIN_1, "LOCPATH": str(locales), "PYTHONCOERCECLOCALE": "0"}
    for words in (["list"], ["restore", "möbel", "--to", str(tmp_path / "süß.img")]):
        argv = [sys.executable, "-I", "-S", str(place / "restore.py"), *words, "--repo", str(place), *empty.options]
        done = subprocess.run(argv, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "süß.img").read_bytes() == named.read_bytes()
