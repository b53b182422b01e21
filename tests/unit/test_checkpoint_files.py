"""Checkpoint files: how they are named, known again, and told from everything else. No clones are needed for that."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.base.errors import CheckpointLost
from lamella.sources.base import Keeping
from lamella.sources.checkpoint_files import DIRECTORY, CheckpointFiles, Token, source_name
from lamella.sources.reflink.reflink import nearly_full

OWNER = "00c0ffee"
IDENTITY = b"file:0123456789abcdef:/images/disk.img"
PREFIX = f"{source_name(IDENTITY)}-{OWNER}-"
NUMBERS = st.integers(0, (1 << 64) - 1)
TOKEN = Token("btrfs", "0f" * 16, PREFIX + "1", 257, 8, 1 << 30, 1_700_000_000_123_456_789)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The directory where the checkpoints of `files` go, although nothing else does."""
    directory = tmp_path / "kept"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def files(tmp_path: Path, place: Path) -> CheckpointFiles:
    return CheckpointFiles(tmp_path / "disk.img", IDENTITY, Keeping(OWNER, place), "btrfs")


def made(place: Path, name: str, content: bytes = b"x") -> Path:
    file = place / name
    file.write_bytes(content)
    return file


def token_of(files: CheckpointFiles, file: Path) -> Token:
    with file.open("rb") as opened:
        return files.token(opened.fileno(), file.name)


# -- texts ----------------------------------------------------------------------------------------------------------


def test_the_name_of_a_source_stays_the_same_for_ever() -> None:
    assert source_name(IDENTITY) == "e0c299d4b28e14e9"


@given(
    st.builds(Token, st.sampled_from(["btrfs", "reflink"]), st.text(max_size=40), st.text(max_size=80), *[NUMBERS] * 4)
)
def test_a_text_says_what_the_token_was(token: Token) -> None:
    assert Token.parse(token.text) == token


@given(st.text(max_size=60) | st.recursive(st.none() | st.integers(), st.lists).map(repr))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(CheckpointLost, match="cannot be read"):
        Token.parse(text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"version":1', '"version":2'),
        ('"version":1', '"version":"1"'),
        ('"size":1073741824', '"size":"1073741824"'),
        ('"size":1073741824', '"size":1073741824.0'),
        ('"size":1073741824', '"size":true'),
        ('"size":1073741824,', ""),
        ('"driver":"btrfs"', '"driver":7'),
        ('"driver"', '"more":1,"driver"'),
        ("}", " " * 1024 + "}"),
    ],
)
def test_a_text_of_another_shape_is_refused(old: str, new: str) -> None:
    altered = TOKEN.text.replace(old, new)
    assert altered != TOKEN.text
    with pytest.raises(CheckpointLost, match="cannot be read"):
        Token.parse(altered)


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (TOKEN, ""),
        (replace(TOKEN, driver="reflink"), "was made by the btrfs driver"),
        (replace(TOKEN, system="f0" * 16), "is on another file system than the one it was made on"),
        (replace(TOKEN, inode=258), "is another file than the one that was kept"),
        (replace(TOKEN, generation=9), "is another file than the one that was kept"),
        (replace(TOKEN, size=1), "was changed since it was made"),
        (replace(TOKEN, ctime_ns=TOKEN.ctime_ns + 1), "was changed since it was made"),
    ],
)
def test_differences_are_told(now: Token, why: str) -> None:
    assert TOKEN.difference(now) == why


@pytest.mark.parametrize("owner", ["x", "0123456", "012345678", "0123456G", "../../.."])
def test_owners_are_8_digits(owner: str) -> None:
    with pytest.raises(ValueError, match="not an owner"):
        Keeping(owner)


# -- the directory --------------------------------------------------------------------------------------------------


def test_what_is_kept_is_listed_oldest_first(files: CheckpointFiles, place: Path) -> None:
    numbers = [10, 9, 2, 1, 100]
    for number in numbers:
        made(place, f"{PREFIX}{number}")
    assert [token.file for token in files.kept()] == [f"{PREFIX}{number}" for number in sorted(numbers)]
    assert next(files.next_names()) == f"{PREFIX}101"


def test_numbers_start_at_one_and_go_on(files: CheckpointFiles) -> None:
    names = files.next_names()
    assert [next(names) for _ in range(3)] == [f"{PREFIX}{number}" for number in (1, 2, 3)]


def test_foreign_entries_are_neither_listed_nor_dropped(files: CheckpointFiles, place: Path) -> None:
    foreign = [
        f"{source_name(IDENTITY)}-0badf00d-1",
        f"{source_name(b'other')}-{OWNER}-1",
        f"{PREFIX}0",
        f"{PREFIX}01",
        f"{PREFIX}",
        f"{PREFIX}1x",
        f"{PREFIX}1\n",
        f"{PREFIX}" + "9" * 17,
        "notes.txt",
    ]
    for name in foreign:
        file = made(place, name)
        files.drop(name)
        files.drop(token_of(files, file).text)
        assert file.exists(), name
    assert files.kept() == []


def test_what_is_no_file_under_our_name_is_left_alone(files: CheckpointFiles, place: Path, tmp_path: Path) -> None:
    precious = made(tmp_path, "precious", b"do not touch")
    (place / f"{PREFIX}1").symlink_to(precious)
    (place / f"{PREFIX}2").mkdir()
    os.mkfifo(place / f"{PREFIX}3")
    assert files.kept() == []
    for number in (1, 2, 3):
        files.drop(f"{PREFIX}{number}")
        assert os.path.lexists(place / f"{PREFIX}{number}")
    with pytest.raises(CheckpointLost), files.opened(replace(TOKEN, file=f"{PREFIX}1").text):
        pytest.fail("a link is no checkpoint")
    assert precious.read_bytes() == b"do not touch"


def test_dropping_by_text_or_by_name(files: CheckpointFiles, place: Path) -> None:
    first, second = made(place, f"{PREFIX}1"), made(place, f"{PREFIX}2")
    files.drop(token_of(files, first).text)
    assert not first.exists()
    files.drop(second.name)
    assert not second.exists()
    files.drop(second.name)


def test_an_old_text_does_not_drop_what_took_the_name_later(files: CheckpointFiles, place: Path) -> None:
    first = made(place, f"{PREFIX}1")
    text = token_of(files, first).text
    first.rename(place / "aside")
    second = made(place, f"{PREFIX}1")
    files.drop(text)
    assert second.exists()


def test_an_edited_file_can_be_dropped_but_not_opened(files: CheckpointFiles, place: Path) -> None:
    file = made(place, f"{PREFIX}1")
    text, before = token_of(files, file).text, file.stat().st_ctime_ns
    with files.opened(text) as (fd, _):
        assert os.read(fd, 9) == b"x"
    file.write_bytes(b"y")
    while file.stat().st_ctime_ns == before:  # stamps are coarse
        os.utime(file, (0, 0))
    with pytest.raises(CheckpointLost, match="was changed since"), files.opened(text):
        pytest.fail("an edited checkpoint was opened")
    files.drop(text)
    assert not file.exists()


def test_undoing_spares_what_took_the_name(files: CheckpointFiles, place: Path) -> None:
    file = made(place, f"{PREFIX}1")
    directory = os.open(place, os.O_RDONLY)
    with file.open("rb") as opened:
        file.rename(place / "aside")
        other = made(place, f"{PREFIX}1")
        files.undo(other.name, opened.fileno(), directory)
        assert other.exists()
        (place / "aside").rename(other)
        files.undo(other.name, opened.fileno(), directory)
        assert not other.exists()
        files.undo(other.name, opened.fileno(), directory)
    os.close(directory)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_directory_that_others_may_write_to_is_not_used(files: CheckpointFiles, place: Path, mode: int) -> None:
    made(place, f"{PREFIX}1")
    assert len(files.kept()) == 1
    place.chmod(mode)
    assert files.kept() == []
    with files.directory() as directory:
        assert directory is None


def test_a_link_in_the_place_of_the_directory_is_not_used(files: CheckpointFiles, place: Path) -> None:
    made(place, f"{PREFIX}1")
    place.rename(place.with_name("elsewhere"))
    place.symlink_to("elsewhere")
    assert files.kept() == []
    with files.directory() as directory:
        assert directory is None


def test_a_directory_that_was_asked_for_is_made_for_us_alone(tmp_path: Path) -> None:
    asked = tmp_path / "asked" / "for"
    files = CheckpointFiles(tmp_path / "disk.img", IDENTITY, Keeping(OWNER, asked), "btrfs")
    assert files.kept() == []
    assert not asked.exists()
    with files.directory() as directory:
        assert directory is not None
    assert asked.stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / DIRECTORY).exists()


def test_nothing_can_be_made_where_there_is_no_place(tmp_path: Path) -> None:
    made(tmp_path, "file")
    files = CheckpointFiles(tmp_path / "disk.img", IDENTITY, Keeping(OWNER, tmp_path / "file" / "x"), "btrfs")
    with files.directory() as directory:
        assert directory is None


@pytest.mark.parametrize(
    ("free", "total", "full"),
    [
        (2 << 30, 1 << 50, False),
        ((2 << 30) - 1, 1 << 50, True),
        ((2 << 30) - 1, 40 << 30, True),
        ((2 << 30) - 1, 39 << 30, False),
        (50, 1000, False),
        (49, 1000, True),
        (0, 1000, True),
        (0, 0, False),
    ],
)
def test_nearly_full_is_below_both_bounds(free: int, total: int, full: bool) -> None:
    assert nearly_full(free, total) is full
