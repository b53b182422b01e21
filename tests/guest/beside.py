"""How the guest is started: by the process that runs the tests, or once for several by the one that deals them out."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import pytest

from tests.guest import machine
from tests.guest.machine import Guest

FOLDER = "tests/guest/"


class _Node(Protocol):
    """What pytest-xdist calls a worker, as far as it is used here."""

    config: pytest.Config
    workerinput: dict[str, object]


_place = pytest.StashKey[Path]()
_guest = pytest.StashKey[Guest | None]()


def start(place: Path, ids: Iterable[str]) -> Guest:
    """Start a guest that runs these tests."""
    # Slow machines are no failures: how long all of it may take is limited by the one who waits.
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-m",
        "long or not long",
        "--timeout",
        "0",
        "-o",
        "faulthandler_timeout=280",
    ]
    selected = "".join(f"{one}\n" for one in ids)
    return Guest(place / "guest", shlex.join([*words, f"@{machine.SELECTED}"]), selected)


def new_place(config: pytest.Config) -> Path:
    """A directory for a guest and what it is told."""
    place: Path = config._tmp_path_factory.mktemp("guest", numbered=True)  # type: ignore[attr-defined]
    return place


def tell(node: _Node) -> None:
    """Tell a worker where the guest will be."""
    if _place not in node.config.stash:
        node.config.stash[_place] = new_place(node.config)
    node.workerinput["guest"] = str(node.config.stash[_place] / "guest")


def start_once(config: pytest.Config, ids: Iterable[str]) -> None:
    """Start the guest when the first worker has said which tests there are."""
    wanted = [one for one in ids if one.startswith(FOLDER)]
    if _guest not in config.stash:
        collect_only = config.option.collectonly
        config.stash[_guest] = start(config.stash[_place], wanted) if _runs(wanted, collect_only) else None


def _runs(wanted: list[str], collect_only: bool) -> bool:
    return bool(wanted) and not collect_only and not machine.missing()


def end(config: pytest.Config) -> None:
    """The guest does not outlive the tests; its disk goes with it."""
    guest = config.stash.get(_guest, None)
    if guest is not None:
        guest.close()
        (config.stash[_place] / "guest/disk").unlink(missing_ok=True)
