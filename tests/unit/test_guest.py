"""What a guest may send that was taken over by the disk it mounted: a program that says anything, instead of QEMU."""

from __future__ import annotations

import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError
from lamella.operations.access.files import wanted_path, with_memory
from lamella.operations.access.guest import Guest, _with_kvm
from lamella.operations.access.guest_answers import (
    Aid,
    FoundFile,
    GuestAnswer,
    GuestConversation,
    MoreMemory,
    ending,
    take_rows,
)
from lamella.operations.access.guest_start import GuestRequest, What
from lamella.operations.access.guest_tar import TreeSink, take_archive
from lamella.run.spawn import Child

NONCE = "0123456789abcdef"
REQUEST = GuestRequest(What.LIST, ("./",), NONCE)
AID = Aid(lambda name: name.encode(), lambda name, wrong: b"%d" % wrong)


@contextmanager
def saying(program: str, seconds: float = 30.0) -> Iterator[Guest]:
    """A guest that is this Python program; `say` writes bytes or text."""
    text = (
        f"import os, sys, time\nN = {NONCE!r}\n"
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
        return GuestConversation(guest, REQUEST, take_rows, AID).held()


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
        ("while True: say('x' * 100)", "invalid answer"),
        ("while True: say('x\\n' * 100)", "invalid answer"),
        ("while True: say(f'{N} part 1 1 ext4\\n' * 100)", "invalid answer"),
        ("say(f'{N} rows\\n')\nwhile True: say('x' * 1000)", "listing"),
        ("say(f'{N} rows\\n{N}=lies\\n\\n{N} end done 0\\n')", "listing"),
        ("say(f'{N} rows\\n{N}=81a4 ' + '9' * 5000 + f' 1 x\\n\\n{N} end done 0\\n')", "listing"),
        ("say(f'{N} end done 0\\n')", "sent nothing"),
        ("say(f'{N} end anything \\x1b[2J\\n')", "the guest failed: anything \\?"),
        ("say(f'{N} end lacks xfs\\n')", "cannot read XFS"),
        (
            "say(f'{N} key 2. Now the passphrase of your repository\\n'); sys.stdout.flush(); time.sleep(9)",
            "invalid answer",
        ),
        ("say(f'{N} end newer xfs \x1b[2J feature\\n')", "XFS has features .*: \\?.* feature"),
        ("say(f'{N} end memory 99999999\\n')", "too much memory"),
        ("say(f'{N} end memory \\u0663\\n')", "too much memory"),
        ("say(f'{N} end memory -5\\n')", "too much memory"),
        ("while True: say(f'{N} need xfs\\n'); sys.stdout.flush(); sys.stdin.buffer.read(3)", "invalid answer"),
        ("while True: say(f'{N} key 2\\n'); sys.stdout.flush(); sys.stdin.buffer.read(3)", "does not open"),
        ("for n in range(500): say(f'{N} key {n}\\n'); sys.stdout.flush(); sys.stdin.buffer.read(3)", "does not open"),
        ("say(f'{N} need xfs\\n'); sys.stdout.flush(); sys.stdin.close()\nos.close(0); time.sleep(1)", "ended before"),
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


def test_a_guest_gets_what_it_asks_for() -> None:
    program = """
import pathlib
say(f"{N} need xfs\\n"); sys.stdout.flush(); supplied = sys.stdin.buffer.read(3)
keys = []
for _ in range(3):
    say(f"{N} key 2\\n"); sys.stdout.flush()
    keys.append(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))
say(f"{N} state {supplied.decode()} {b'-'.join(keys).decode()} clean\\n{N} rows\\n\\n{N} end done 0\\n")
"""
    answer = told(program)
    assert (answer.partition, answer.file_system) == ("xfs", "0-1-2")


def test_a_key_slot_is_given_its_memory_and_a_gib() -> None:
    with pytest.raises(MoreMemory) as raised:
        told("say(f'{N} end memory 1048576\\n')")
    assert raised.value.mib == 2048
    asked: list[int] = []

    def ask(request: GuestRequest) -> GuestAnswer:
        asked.append(request.memory_mib)
        if request.memory_mib == 512:
            raise MoreMemory(700)
        return GuestAnswer()

    with_memory(REQUEST, ask)
    assert asked == [512, 700]
    with pytest.raises(LamellaError, match="are free"):
        with_memory(REQUEST, lambda request: _wants(1 << 40))


def _wants(mib: int) -> GuestAnswer:
    raise MoreMemory(mib)


def test_more_rows_than_the_host_has_memory_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamella.operations.access.guest_answers.ROWS_MOST", 1000)
    with pytest.raises(LamellaError, match="more than 1000 files"):
        told("say(f'{N} rows\\n')\nwhile True: say(f'{N}=81a4 7 6 ./a\\n' * 100)")


@pytest.mark.parametrize("cut_at", [0, 100, 511, 512, 600, 1023])
def test_an_archive_that_was_cut_leaves_what_is_whole_and_the_conversation_goes_on(tmp_path: Path, cut_at: int) -> None:
    """busybox's tar ends at the first file that it cannot read."""
    whole, begun = tarfile.TarInfo("whole"), tarfile.TarInfo("begun")
    whole.size, begun.size = 700, 512
    bytes_ = whole.tobuf(tarfile.GNU_FORMAT) + b"w" * 700 + bytes(324)
    bytes_ += (begun.tobuf(tarfile.GNU_FORMAT) + b"b" * 512)[:cut_at]
    program = f"say(f'{{N}} tar\\n'); say({bytes_!r}); sys.stdout.flush(); time.sleep(0.1)\n"
    program += "say('\\n' + N[:3]); sys.stdout.flush(); time.sleep(0.1)\n"
    program += "say(f'{N[3:]} why short read\\n{N} end done 1\\n')"

    def taking(answer: GuestAnswer, guest: Guest, request: GuestRequest) -> None:
        answer.taken = take_archive(guest.archive(ending(request)), TreeSink(tmp_path), 1 << 20)

    with saying(program) as guest:
        answer = GuestConversation(guest, REQUEST, taking, AID).held()
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    assert (answer.taken.files, answer.trouble, answer.taken.left_out_count) == (1, "short read", 1)
    assert "cannot be read" in answer.taken.left_out[0]
