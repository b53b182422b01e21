"""Ctrl-C between the making of a file and the next step: nothing of a file is left that nobody wants."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lamella.base.durable import write_durably
from lamella.base.trust import Clear
from lamella.cli.new_files import write_file
from lamella.operations.access.guest_tar import Member, MemberKind, TreeSink
from lamella.operations.access.image_file import write_image
from lamella.operations.access.images import Image
from lamella.stores.local.reserve import NAME, keep_reserve
from lamella.stores.local.store import LocalStore
from tests.unit.test_tree_hostile import Liar, extracted

Write = Callable[[Path], object]


def put(place: Path) -> None:
    with closing(LocalStore.open(place)) as store:
        store.put("objects/ab/abcd", Clear(b"content"))


def reserve(place: Path) -> None:
    root = os.open(place, os.O_RDONLY)
    try:
        assert keep_reserve(root) and (place / "tmp" / NAME).exists()
    finally:
        os.close(root)


def tree(place: Path) -> None:
    liar = Liar()
    extracted(liar.volume(liar.file(b"a")), place)


def from_a_guest(place: Path) -> None:
    TreeSink(place).file("a", Member("a", MemberKind.FILE, 7, 0o600, 0, ""), iter([b"content"]))


WRITERS: dict[str, Write] = {
    "a small file of a command": lambda place: write_file(place / "a", b"content", overwrite=False),
    "a small file that is replaced": lambda place: write_file(place / "a", b"content", overwrite=True),
    "a file of the state": lambda place: write_durably(place / "a", b"content"),
    "an export": lambda place: write_image(place / "a", Image(0, iter(())), "disk", lambda _: None),
    "a file of a tree": tree,
    "a file that a guest sends": from_a_guest,
    "an object": put,
    "the reserve": reserve,
}


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The first file that is made costs a Ctrl-C, before its maker has got the descriptor."""
    made: list[int] = []
    opened = os.open

    def interrupt(*names: object, **options: object) -> int:
        fd = opened(*names, **options)  # type: ignore[arg-type]
        if not made and int(str(names[1])) & os.O_CREAT and not int(str(names[1])) & os.O_DIRECTORY:
            made.append(fd)
            signal.raise_signal(signal.SIGINT)
            made[0] = -1  # whoever is not interrupted here has it
        return fd

    monkeypatch.setattr(os, "open", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield made
    signal.signal(signal.SIGINT, before)
    if made and made[0] >= 0:
        os.close(made[0])


@pytest.mark.parametrize("kind", WRITERS)
def test_an_interrupted_file_is_not_left(kind: str, tmp_path: Path, interrupted: list[int]) -> None:
    with pytest.raises(KeyboardInterrupt):
        WRITERS[kind](tmp_path)
    assert interrupted
    assert not [found for found in tmp_path.rglob("*") if not found.is_dir()]
    WRITERS[kind](tmp_path)
    assert [found for found in tmp_path.rglob("*") if not found.is_dir()]
