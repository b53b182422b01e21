"""The small parts: values, the progress line, places."""

from __future__ import annotations

import argparse
import ast
import io
import os
import re
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.base.errors import UsageError
from lamella.base.events import Progress
from lamella.cli import amounts, shown, values
from lamella.cli.folding import folded
from lamella.cli.local_time import shown_time
from lamella.cli.places import this_host
from lamella.cli.progress import INTERVAL_SECONDS, Bar, Standing, Tally, line
from tests.cli.program import COMMAND, ROOT, SECONDS, Lamella, environment
from tests.features import require

MIB = 1 << 20


@given(st.text())
def test_shown_text_is_printable_and_says_the_same(text: str) -> None:
    escaped = shown.shown(text)
    assert escaped.isprintable()
    if text.isprintable():
        assert escaped == text
    if "\\" not in text:
        escapes = re.compile(r"\\(?:x..|u....|U........|.)")
        assert escapes.sub(lambda match: match[0].encode("ascii").decode("unicode_escape"), escaped) == text


@given(st.integers(0, 1 << 50))
def test_size_in_bytes(count: int) -> None:
    assert values.size(str(count)) == values.size(f"{count}B") == count


@pytest.mark.parametrize(
    ("text", "count"), [("64K", 65536), ("1.5G", 3 << 29), ("20 MiB", 20 * MIB), ("2tb", 2 << 40), ("0", 0)]
)
def test_size_with_units(text: str, count: int) -> None:
    assert values.size(text) == count


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        *((values.size, text) for text in ("", "K", "-1", "1.G", "1X", "1KK", "\u0665K5", "1e3")),
        *((values.chunk_log2, text) for text in ("32K", "8M", "96K", "0")),
        *((amounts.percent, text) for text in ("0", "100.1", "nan", "x", "-5", "inf")),
        *((values.seconds, text) for text in ("-1", "nan", "inf", "")),
        *((values.workers, text) for text in ("0", "65", "1.5", "-1", "")),
    ],
)
def test_what_is_no_value(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse(text)


@given(st.integers(16, 22))
def test_chunk_sizes(log2: int) -> None:
    assert values.chunk_log2(f"{1 << (log2 - 10)}K") == log2


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 29, "1.5 GiB"), (1 << 60, "1024.0 PiB")]
)
def test_shown_bytes(count: int, text: str) -> None:
    assert shown.shown_bytes(count) == text


@pytest.mark.parametrize(("count", "text"), [(0.84, "0.8 s"), (59.9, "59.9 s"), (125, "2:05"), (10810, "3:00:10")])
def test_shown_seconds(count: float, text: str) -> None:
    assert shown.shown_seconds(count) == text


@given(st.lists(st.lists(st.text("abc \u00e4", max_size=60), min_size=3, max_size=3), min_size=1), st.integers(1, 200))
def test_a_folded_table_fits_and_loses_nothing(rows: list[list[str]], columns: int) -> None:
    made = folded(rows, columns)
    widths = [max(len(row[number]) for row in made) for number in range(3)]
    words = [max(len(word) for row in rows for word in row[number].split(" ")) for number in (0, 1)]
    before = [max(len(row[number]) for row in rows) for number in range(3)]
    # Words of the first cells stay whole, the last cell has 12 columns at least, and so much alone can be too wide.
    least = [min(wide, max(12, word)) for wide, word in zip(before, [*words, 0], strict=True)]
    assert sum(widths) + 4 <= max(columns, sum(least) + 4)
    for number in range(3):
        assert "".join(row[number] for row in made).replace(" ", "") == "".join(row[number] for row in rows).replace(
            " ", ""
        )
    if sum(before) + 4 <= columns:
        assert made == rows


def test_the_picture_of_a_terminal_is_one_of_80_columns() -> None:
    """`python -m tools.screenshots docs/guide/images terminal` made it out of what the commands wrote."""
    drawn = ElementTree.parse(ROOT / "docs/guide/images/terminal.svg").getroot()
    lines = [one.text or "" for one in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"$ lamella run nightly", "$ lamella status", "$ lamella list"} <= set(lines)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("zone", "text"),
    [("UTC", "2026-11-22 18:45"), ("Asia/Kolkata", "2026-11-23 00:15"), ("America/Lima", "2026-11-22 13:45")],
)
def test_times_are_local(zone: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert shown_time("2026-11-22T18:45:01.123Z") == text
        assert shown_time("9999-12-31T23:59:59.999Z")[:4] in ("9999",)
    finally:
        monkeypatch.undo()
        time.tzset()


class Watch:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_bar_adds_up_volumes_and_knows_what_is_to_come() -> None:
    watch, stream = Watch(), io.StringIO()
    bar = Bar(stream, watch)
    for name, size in {"a": 100 * MIB, "b": 260 * MIB, "c": 40 * MIB}.items():
        bar.update(Progress("backup", name, 0, size))
    watch.time += 10
    bar.update(Progress("backup", "a", 100 * MIB, 100 * MIB, 5 * MIB))
    shown = stream.getvalue().split("\r")[-1]
    assert "25.0 %" in shown
    assert "100.0 MiB of 400.0 MiB" in shown
    assert "10.0 MiB/s" in shown
    assert "30.0 s left" in shown
    assert len(shown.removesuffix("\x1b[K")) < 80
    assert "backup a (1 of 3)" in shown
    assert line(Progress("backup", "a", 1, 2, 5 * MIB), Standing(1, 2, 0.0)).endswith("stored 5.0 MiB")


@given(st.lists(st.integers(0, 5 * MIB), min_size=1, max_size=5), st.integers(1, 3), st.integers(1, 5))
def test_the_share_that_is_done_never_falls(sizes: list[int], rounds: int, steps: int) -> None:
    """Whatever the volumes are, and however many destinations get them."""
    tally, seen, number = Tally(Watch(), rounds), 0, 0
    for _ in range(rounds):
        for volume, size in enumerate(sizes):
            tally.add(Progress("backup", str(volume), 0, size))
        for volume, size in enumerate(sizes):
            for step in range(steps + 1):
                standing = tally.add(Progress("backup", str(volume), size * step // steps, size))
                assert standing.total == sum(sizes) * rounds
                if all(sizes):  # else a round of nothing looks like the one before
                    assert standing.done >= seen and standing.number >= number
                    seen, number = standing.done, standing.number
    if all(sizes):
        assert (standing.done, standing.number) == (standing.total, len(sizes) * rounds)


def test_bar_is_drawn_ten_times_a_second_at_most() -> None:
    watch, stream = Watch(), io.StringIO()
    bar = Bar(stream, watch)
    for step in range(1000):
        watch.time = 100 + step / 1000
        bar.update(Progress("verify", "a", step, 1000))
    assert stream.getvalue().count("\r") <= 1 / INTERVAL_SECONDS


def test_bar_is_taken_away() -> None:
    stream = io.StringIO()
    bar = Bar(stream, Watch())
    bar.clear()
    assert stream.getvalue() == ""
    bar.update(Progress("restore", "a", 1, 2))
    bar.clear()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_new_stage_begins_at_nothing() -> None:
    watch, stream = Watch(), io.StringIO()
    bar = Bar(stream, watch)
    bar.update(Progress("restore", "a", 100, 100))
    watch.time += 1
    bar.update(Progress("compare", "a", 1, 100))
    assert "compare a    1.0 %" in stream.getvalue()


def test_bar_of_unknown_size_and_strange_names() -> None:
    shown = line(Progress("verify", "a\x1b[2J", 2048, 0), Standing(2048, 0, 0.5))
    assert shown == "verify a\\x1b[2J  2.0 KiB"


def test_bar_survives_a_terminal_that_went_away() -> None:
    stream = io.StringIO()
    bar = Bar(stream, Watch())
    stream.close()
    bar.update(Progress("verify", "a", 1, 2))


EXACT = {
    "stores", "format", "crypto", "rescue.py", "run", "packs", "history", "base",  # objects: their bytes are counted
    "mirror.py", "change_map.py", "wire.py", "btrfs_tree.py", "header.py", "names.py", "zfs",  # fields
}  # fmt: skip


def test_sizes_are_told_in_one_way() -> None:
    """No message about volumes counts bytes by hand: `1073741824 bytes` is for --json."""
    found: list[str] = []
    for path in sorted((ROOT / "src/lamella").rglob("*.py")):
        if EXACT & {*path.relative_to(ROOT / "src/lamella").parts}:
            continue
        for node in (one for one in ast.walk(ast.parse(path.read_text())) if isinstance(one, ast.JoinedStr)):
            for one, after in pairwise(node.values):
                text = after.value if isinstance(after, ast.Constant) else ""
                if isinstance(one, ast.FormattedValue) and str(text).startswith((" bytes", " free")):
                    if ast.unparse(one.value).isupper() or ast.unparse(one.value).startswith("len("):
                        continue  # a limit, and what is beyond it
                    found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert not found, "\n".join(found)


def test_machine_without_an_id_keeps_one(tmp_path: Path) -> None:
    env = {"LAMELLA_STATE_DIR": str(tmp_path / "state"), "LAMELLA_CACHE_DIR": str(tmp_path / "cache")}
    first = this_host(env, tmp_path / "none")
    assert this_host(env, tmp_path / "none") == first
    (tmp_path / "empty").write_text("uninitialized\n")
    assert this_host(env, tmp_path / "empty") == first
    (tmp_path / "id").write_text("0123456789abcdef0123456789abcdef\n")
    assert this_host(env, tmp_path / "id").machine != first.machine
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["machine"]


def test_what_this_host_remembers_is_its_owners_alone(tmp_path: Path, saved: Lamella) -> None:
    """Also the directories above, and whatever the umask: else anybody could exchange the innermost one."""
    saved.env |= {"LAMELLA_STATE_DIR": str(tmp_path / "a/b/state"), "LAMELLA_CACHE_DIR": str(tmp_path / "c/d/cache")}
    command = [*COMMAND, *saved.options, "tag", "disk@latest", "seen"]
    subprocess.run(command, env=environment(saved.env), umask=0, check=True, timeout=SECONDS)
    made = [path for top in ("a", "c") for path in (tmp_path / top, *(tmp_path / top).rglob("*"))]
    assert {tmp_path / "a/b/state/repo", tmp_path / "c/d/cache"} <= set(made)
    assert [str(path) for path in made if path.stat().st_mode & 0o077] == []


@pytest.mark.parametrize("variable", ["LAMELLA_STATE_DIR", "LAMELLA_CACHE_DIR"])
@pytest.mark.parametrize(
    ("which", "mode", "owner"),
    [
        *(("a/b", mode, 0) for mode in (0o777, 0o1777, 0o770)),
        ("a", 0o777, 0),
        ("a/b", 0o700, 65534),
        ("a", 0o755, 65534),
    ],
)
def test_a_place_that_others_can_change_is_refused(
    tmp_path: Path, variable: str, which: str, mode: int, owner: int
) -> None:
    require("root", os.geteuid() == 0 or not owner, "a directory that belongs to another user")
    (tmp_path / "a/b").mkdir(parents=True, mode=0o700)
    (tmp_path / which).chmod(mode)
    os.chown(tmp_path / which, owner or os.geteuid(), -1)
    with pytest.raises(UsageError, match="other users can change") as caught:
        this_host({"HOME": str(tmp_path), variable: str(tmp_path / "a/b")})
    assert str(tmp_path / which) in caught.value.message
    assert variable in caught.value.hint
    (tmp_path / which).chmod(0o1777 if which == "a" else 0o700)
    os.chown(tmp_path / which, os.geteuid(), -1)
    this_host({"HOME": str(tmp_path), variable: str(tmp_path / "a/b")})


@pytest.mark.parametrize("uid", [0, 1000])
def test_usual_places(uid: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    (tmp_path / "id").write_text("0123456789abcdef0123456789abcdef\n")
    host = this_host({"HOME": "/home/a", "XDG_CACHE_HOME": "/fast", "XDG_STATE_HOME": "relative"}, tmp_path / "id")
    wanted = {0: ("/var/lib/lamella", "/var/cache/lamella"), 1000: ("/home/a/.local/state/lamella", "/fast/lamella")}
    assert (str(host.state_dir), str(host.cache_dir)) == wanted[uid]
