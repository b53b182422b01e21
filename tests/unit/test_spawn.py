"""Running programs: output, failure, deadline, bounds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError, SourceError, UsageError
from lamella.run.spawn import run, run_unbroken, shell_words, stream

PYTHON = [sys.executable, "-I", "-S", "-c"]


def test_output_is_returned_and_input_is_passed() -> None:
    assert run(["cat"], input=b"a\0b\n", timeout_seconds=20) == b"a\0b\n"


def test_without_input_standard_input_is_empty() -> None:
    assert run(["cat"], timeout_seconds=20) == b""


def test_more_than_a_pipe_holds_flows_in_all_directions() -> None:
    echo = "import sys; b = sys.stdin.buffer.read(); sys.stderr.write('e' * 300000); sys.stdout.buffer.write(b)"
    content = os.urandom(700_000)
    assert run([*PYTHON, echo], input=content, timeout_seconds=20) == content


def test_a_program_need_not_read_its_input() -> None:
    assert run(["echo", "done"], input=bytes(1 << 20), timeout_seconds=20) == b"done\n"


def test_words_reach_the_program_as_they_are() -> None:
    assert run(["printf", "%s|", "a b", "$HOME", "*", ""], timeout_seconds=20) == b"a b|$HOME|*||"


@pytest.mark.parametrize("which", ["", "NEW_", "TO_", "FROM_", "OF_A_LATER_COMMAND_"])
def test_the_locale_is_c_and_no_passphrase_is_inherited(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv(f"LAMELLA_{which}PASSPHRASE", "secret")
    monkeypatch.setenv("LAMELLA_MARK", "inherited")
    lines = run(["env"], timeout_seconds=20).splitlines()
    assert b"LC_ALL=C" in lines
    assert b"LAMELLA_MARK=inherited" in lines
    assert not [line for line in lines if line.endswith(b"=secret")]


def test_failure_tells_the_status_and_one_printable_line() -> None:
    with pytest.raises(SourceError) as caught:
        run(["sh", "-c", r"printf 'bad \033[31mthing\nhappened' >&2; exit 7"], timeout_seconds=20, error=SourceError)
    assert caught.value.message == "sh ended with status 7: bad ?[31mthing; happened"


def test_of_a_long_complaint_the_start_is_told() -> None:
    with pytest.raises(LamellaError) as caught:
        run(["sh", "-c", "echo why >&2; head -c 300000 /dev/zero | tr '\\0' e >&2; exit 1"], timeout_seconds=20)
    assert caught.value.message.startswith("sh ended with status 1: why; eee")
    assert len(caught.value.message) < 5000


def test_death_by_a_signal_is_told() -> None:
    with pytest.raises(LamellaError, match="ended by signal 9"):
        run(["sh", "-c", "kill -9 $$"], timeout_seconds=20)


@pytest.mark.parametrize("argv", [["/nonexistent/program"], ["/etc"], []])
def test_what_cannot_be_started_raises_the_chosen_error(argv: list[str]) -> None:
    with pytest.raises(SourceError):
        run(argv, timeout_seconds=20, error=SourceError)


def test_too_much_output_ends_the_program() -> None:
    with pytest.raises(LamellaError, match="more than 1000 bytes"):
        run(["yes"], timeout_seconds=20, max_output=1000)


def test_output_of_just_the_bound_is_accepted() -> None:
    assert len(run(["head", "-c", "1000", "/dev/zero"], timeout_seconds=20, max_output=1000)) == 1000


@pytest.mark.parametrize("grandchild", ["sleep 600 & echo $! >&3; wait", "sleep 600 & echo $! >&3; exit 0"])
def test_the_deadline_ends_the_program_and_what_it_started(grandchild: str, tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    with pytest.raises(LamellaError, match="did not end within"):
        run(["sh", "-c", f"exec 3>{noted}; {grandchild}"], timeout_seconds=0.5)
    # The sleeper is dead or dying: it was sent a signal that cannot be held off, before `run` returned.
    status = Path(f"/proc/{int(noted.read_text())}/status")
    try:
        lines = status.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return
    state = next(line for line in lines if line.startswith("State:"))
    pending = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    assert "Z" in state or "X" in state or any(mask & 1 << 8 for mask in pending)


def test_shell_words_follow_quotes_and_expand_nothing() -> None:
    assert shell_words("pass show 'my backup' $X \"a b\"") == ["pass", "show", "my backup", "$X", "a b"]


@pytest.mark.parametrize("text", ["", "   ", "echo 'open"])
def test_shell_words_refuse_what_is_no_command(text: str) -> None:
    with pytest.raises(UsageError):
        shell_words(text)


# -- stream ----------------------------------------------------------------------------------------------------------


def test_a_stream_is_everything_in_order_and_little_at_a_time() -> None:
    pieces = list(stream([*PYTHON, "import sys\nfor n in range(200000): print(n)"], timeout_seconds=60))
    assert b"".join(pieces) == b"".join(b"%d\n" % number for number in range(200_000))
    assert max(map(len, pieces)) <= 1 << 16


def test_a_stream_that_fails_says_so_after_its_last_piece() -> None:
    pieces = stream(["sh", "-c", "echo half; echo why >&2; exit 3"], timeout_seconds=20, error=SourceError)
    assert next(pieces) == b"half\n"
    with pytest.raises(SourceError, match="sh ended with status 3: why"):
        next(pieces)


def test_a_stream_has_a_deadline() -> None:
    with pytest.raises(LamellaError, match=r"sleep did not end within 0\.1 s"):
        list(stream(["sleep", "60"], timeout_seconds=0.1))


def test_a_stream_left_early_ends_its_program(tmp_path: Path) -> None:
    pieces = stream(["sh", "-c", "echo $$; exec cat /dev/zero"], timeout_seconds=60)
    pid = int(next(pieces).split(b"\n")[0])
    pieces.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# -- what must not be broken off -------------------------------------------------------------------------------------

INTERRUPTED = """
import os, signal, sys
from lamella.run.spawn import run_unbroken
slow = f"kill -INT {os.getpid()}; sleep 0.3; echo done > {sys.argv[1]}"
try:
    run_unbroken(["sh", "-c", slow], timeout_seconds=60)
except KeyboardInterrupt:
    print(open(sys.argv[1]).read())
"""


def test_an_interrupt_waits_for_the_program(tmp_path: Path) -> None:
    done = run([sys.executable, "-c", INTERRUPTED, str(tmp_path / "made")], timeout_seconds=60)
    assert done.strip() == b"done"


def test_a_failure_of_an_unbroken_program_is_told() -> None:
    with pytest.raises(SourceError, match="sh ended with status 5: no space"):
        run_unbroken(["sh", "-c", "echo no space >&2; exit 5"], timeout_seconds=20, error=SourceError)
    with pytest.raises(SourceError, match="cannot run"):
        run_unbroken(["/no/such/program"], timeout_seconds=20, error=SourceError)


def test_at_the_deadline_an_unbroken_program_is_asked_to_stop(tmp_path: Path) -> None:
    made = tmp_path / "made"
    asked = f"trap 'echo tidy > {made}; exit 7' TERM; while :; do sleep 0.05; done"
    with pytest.raises(LamellaError, match="ended with status 7"):
        run_unbroken(["sh", "-c", asked], timeout_seconds=1)
    assert made.read_text() == "tidy\n"
