"""`lamella key cache`. The fears: a key that stays, a key that other logins read, and a stale key that hurts."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError
from lamella.run import keyring
from tests.cli.program import COMMAND, SECONDS, environment
from tests.features import require

_KEYCTL = {"x86_64": 250, "aarch64": 219}
_JOIN_SESSION_KEYRING = 1


def join_new_session() -> None:
    """What a login does (pam_keyinit): a keyring of its own."""
    number = _KEYCTL[platform.machine()]
    assert ctypes.CDLL(None, use_errno=True).syscall(number, _JOIN_SESSION_KEYRING, None) > 0


def login(env: dict[str, str], script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a login of its own, without a terminal; `$L` is the command."""
    require("keyring", platform.machine() in _KEYCTL, "the numbers of its system calls are not known here")
    return subprocess.run(
        ["sh", "-c", script],
        env=environment({"L": " ".join(COMMAND), **env}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        start_new_session=True,
        preexec_fn=join_new_session,
        check=False,
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one volume, opened by a passphrase; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "disk.img").write_bytes(os.urandom(4096))
    secret = {"LAMELLA_REPO": str(folder / "repository"), "LAMELLA_PASSPHRASE": "first"}
    done = login(secret, f"$L init -q --kdf-cost 17 && $L backup -q {folder}/disk.img")
    assert done.returncode == 0, done.stderr
    return folder / "repository"


@pytest.fixture
def env(repository: Path, place: Path) -> dict[str, str]:
    """Variables that name a copy of it."""
    shutil.copytree(repository, place)
    return {"LAMELLA_REPO": str(place)}


CACHE = "LAMELLA_PASSPHRASE=first $L key cache --minutes 5; "


def test_the_key_is_kept_for_this_login_and_until_it_is_forgotten(env: dict[str, str]) -> None:
    assert "no secret" in login(env, "$L list").stderr  # off by default
    again, end = "$L list -r repository", "$L key cache --forget; $L list"  # the same place, named in another way
    inside = login(env, CACHE + f"$L list && cd {Path(env['LAMELLA_REPO']).parent} && {again}; {end}")
    assert "kept for 5 minutes" in inside.stdout and inside.stdout.count("LATEST") == 2, inside.stderr
    assert "forgotten" in inside.stdout and inside.stderr.count("no secret is given") == 1
    login(env, CACHE)
    assert "no secret" in login(env, "$L list").stderr  # of another login
    assert "nothing was kept" in login(env, "$L key cache --forget").stdout


def test_an_explicit_secret_wins_and_a_stale_key_is_dropped(env: dict[str, str]) -> None:
    wrong = login(env, CACHE + "LAMELLA_PASSPHRASE=wrong $L list")
    assert wrong.returncode == 12
    change = "LAMELLA_PASSPHRASE=first LAMELLA_NEW_PASSPHRASE=second $L key change --kdf-cost 17 > /dev/null; "
    stale = login(env, CACHE + change + "$L list; $L key cache --forget; LAMELLA_PASSPHRASE=second $L list")
    assert "kept for 5 minutes" in stale.stdout and "no secret is given" in stale.stderr
    assert "nothing was kept" in stale.stdout and "disk" in stale.stdout


def test_a_key_opens_no_other_repository_at_the_same_place(env: dict[str, str]) -> None:
    place = env["LAMELLA_REPO"]
    other = f"rm -r {place}; LAMELLA_PASSPHRASE=first $L init -q --kdf-cost 17 -r {place}; $L list"
    done = login(env, CACHE + other)
    assert "kept for 5 minutes" in done.stdout and "no secret is given" in done.stderr


def test_what_cannot_be_kept_is_said(env: dict[str, str], tmp_path: Path) -> None:
    for minutes in ("0", "1441", "x", "-1"):
        assert login(env, f"$L key cache --minutes {minutes}").returncode == 2
    assert login(env, "LAMELLA_PASSPHRASE=wrong $L key cache --minutes 1").returncode == 12
    key = tmp_path / "key.of.mine"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    added = login(
        env, f"LAMELLA_PASSPHRASE=first $L key add --new-keyfile {key}; $L --keyfile {key} key cache --minutes 1"
    )
    assert added.returncode == 2 and "key file" in added.stderr


def test_the_kernel_forgets_by_itself() -> None:
    require("keyring", platform.machine() in _KEYCTL, "the numbers of its system calls are not known here")
    child = os.fork()
    if not child:
        code = 1
        try:
            join_new_session()
            keyring.keep(b"lamella:test", b"secret", 1)
            there = keyring.kept(b"lamella:test") == b"secret"
            time.sleep(2)
            code = 0 if there and keyring.kept(b"lamella:test") is None else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_machine_without_keyrings_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    assert keyring.kept(b"lamella:x") is None and not keyring.forget(b"lamella:x")
    with pytest.raises(LamellaError, match="vax"):
        keyring.keep(b"lamella:x", b"", 1)


def test_nobody_is_asked_where_nothing_can_be_kept(env: dict[str, str], tmp_path: Path) -> None:
    program = "import platform; platform.machine = lambda: 'vax'; from lamella.cli.main import entry; entry()"
    asked = tmp_path / "asked"
    done = subprocess.run(
        [sys.executable, "-c", program, "key", "cache", "--minutes", "5"],
        env=environment({**env, "LAMELLA_PASSPHRASE_COMMAND": f"sh -c 'touch {asked}; echo first'"}),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1 and "vax" in done.stderr, done
    assert not asked.exists()
