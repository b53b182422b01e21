"""What a guest may send that was taken over by the disk it mounted: a program that says anything, instead of QEMU."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError
from lamella.operations.access.files import FoundFile, GuestAnswer, conversation, take_rows, wanted_path
from lamella.operations.access.guest import Guest, _with_kvm
from lamella.operations.access.guest_start import GuestRequest, What
from lamella.run.spawn import Child

NONCE = "0123456789abcdef"
REQUEST = GuestRequest(What.LIST, ("./",), NONCE)


@contextmanager
def saying(program: str, seconds: float = 30.0) -> Iterator[Guest]:
    """A guest that is this Python program; `say` writes bytes or text."""
    text = (
        f"import sys, time\nN = {NONCE!r}\n"
        "def say(what): sys.stdout.buffer.write(what if isinstance(what, bytes) else what.encode())\n" + program
    )
    child = Child([sys.executable, "-c", text])
    try:
        yield Guest(child, NONCE, time.monotonic() + seconds)
    finally:
        child.kill()
        child.end(1.0)


def told(program: str, seconds: float = 30.0) -> GuestAnswer:
    with saying(program, seconds) as guest:
        return conversation(guest, REQUEST, take_rows)


def test_what_comes_with_the_first_answer_is_not_lost(tmp_path: Path) -> None:
    with saying("say(f'{N} hello\\n{N} more\\n'); sys.stdout.flush(); time.sleep(60)") as guest:
        assert _with_kvm(guest, tmp_path / "no-kvm") is guest
        assert [guest.word(), guest.word()] == ["hello", "more"]
    assert not (tmp_path / "no-kvm").exists()


def test_a_silent_guest_is_ended_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamella.operations.access.guest.KVM_SECONDS", 0.2)
    with saying("time.sleep(60)") as guest:
        assert _with_kvm(guest, tmp_path / "no-kvm") is None
    assert "did not answer" in (tmp_path / "no-kvm").read_text()
    with saying("") as guest:  # it ends: that says nothing of KVM
        assert _with_kvm(guest, tmp_path / "other") is None
    assert not (tmp_path / "other").exists()


def test_an_honest_listing_with_odd_names() -> None:
    program = """
say(f"noise of the kernel\\n{N} hello\\n{N} part disk 1000 ext4\\n{N} state disk ext4 replayed\\n{N} rows\\n")
say(f"{N}=41ed 4096 5 ./\\n{N}=81a4 7 6 ./a\\nb 81a4 1 1 c\\n".encode() + f"{N}=81a4 8 -7 ".encode() + b"./\\xff\\n")
say(f"\\n{N} end done 0\\n")
"""
    answer = told(program)
    assert answer.rows == [
        FoundFile(".", 0o40755, 0, 5),
        FoundFile("a\nb 81a4 1 1 c", 0o100644, 7, 6),
        FoundFile("\udcff", 0o100644, 8, -7),
    ]
    assert (answer.partition, answer.file_system, answer.state, answer.trouble) == ("disk", "ext4", "replayed", "")


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("", "ended before"),
        ("say(f'{N} hello')", "ended before"),
        ("say(f'{N} rows\\n{N}=81a4 7 6 ./a\\n')", "ended before"),
        ("time.sleep(60)", "in time"),
        ("while True: say('x' * 100)", "nonsense"),
        ("while True: say('x\\n' * 100)", "nonsense"),
        ("while True: say(f'{N} part 1 1 ext4\\n' * 100)", "nonsense"),
        ("say(f'{N} rows\\n')\nwhile True: say('x' * 1000)", "listing"),
        ("say(f'{N} rows\\n{N}=lies\\n\\n{N} end done 0\\n')", "listing"),
        ("say(f'{N} rows\\n{N}=81a4 ' + '9' * 5000 + f' 1 x\\n\\n{N} end done 0\\n')", "listing"),
        ("say(f'{N} end done 0\\n')", "sent nothing"),
        ("say(f'{N} end anything \\x1b[2J\\n')", "the guest failed: anything \\?"),
        ("say(f'{N} end lacks xfs\\n')", "cannot read XFS"),
        ("say(f'{N} end cannot LVM\\n')", "does not read LVM"),
        ("say(f'{N} part 1 99999999999 ext4\\n{N} part 2 x xfs\\n{N} end several\\n')", "93.1 GiB, ext4.*; 2 "),
    ],
)
def test_a_guest_that_lies_or_hangs_ends_with_one_line(program: str, why: str) -> None:
    started = time.monotonic()
    with pytest.raises(LamellaError, match=why) as raised:
        told(program, 2.0)
    assert time.monotonic() - started < 20
    assert raised.value.message.isprintable()


def test_paths_are_quoted_for_the_guests_shell() -> None:
    assert wanted_path("/home/'$(reboot)' x") == "./home/'$(reboot)' x"
    script = GuestRequest(What.GET, (), "n", partition="'; reboot #").script()
    assert "PARTITION=''\"'\"'; reboot #'" in script
