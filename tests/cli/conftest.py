"""A key file, images, and a repository, for tests of the command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.program import Lamella
from tests.cli.strangers import Stranger, stranger_at_home

MIB = 1 << 20


@pytest.fixture
def keyfile(tmp_path: Path) -> Path:
    """A key file: opens at once, where a passphrase costs a second."""
    path = tmp_path / "key"
    path.write_bytes(os.urandom(32))
    path.chmod(0o600)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of 8 MiB with data at its start and behind a hole."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.write(os.urandom(MIB))
        file.seek(5 * MIB)
        file.write(b"some text " * 5000)
        file.truncate(8 * MIB)
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the repository is, or will be."""
    return tmp_path / "repository"


@pytest.fixture
def lamella(place: Path, keyfile: Path) -> Lamella:
    """The command, told the repository and the key file; there is no repository yet."""
    return Lamella({"LAMELLA_REPO": str(place)}, ["--keyfile", str(keyfile)])


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    """An account that is not root, with a home and no repository yet."""
    with stranger_at_home() as found:
        yield found


@pytest.fixture
def empty(lamella: Lamella) -> Lamella:
    """The command and an empty repository."""
    lamella.ok("init", "-q")
    return lamella


@pytest.fixture
def saved(empty: Lamella, image: Path) -> Lamella:
    """The command and a repository with one snapshot of the image, as volume `disk`."""
    empty.ok("backup", image)
    return empty
