"""Small real file systems for the contract tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.features import require

_SECONDS = 30

pytest.register_assert_rewrite("lamella_kit.store_contract", "lamella_kit.store_reading")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)


Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """A function that mounts a file system on a new directory with `mount`'s arguments and returns the directory.

    All of them are unmounted afterwards. Skips without root or where mounting is forbidden, unless `mount` is required.
    """
    require("mount", os.geteuid() == 0, "only root can mount")
    with ExitStack() as stack:

        def mounted(*arguments: str) -> Path:
            place = tmp_path / f"mount-{len(list(tmp_path.iterdir()))}"
            place.mkdir()
            result = _run("mount", *arguments, str(place))
            require("mount", result.returncode == 0, f"mounting is not possible: {result.stderr.strip()}")
            stack.callback(_run, "umount", "--lazy", str(place))
            return place

        yield mounted


@pytest.fixture(params=["tmpfs", "ext4"])
def small_file_system(request: pytest.FixtureRequest, mount: Mount, tmp_path: Path) -> Path:
    """A file system of a few MiB."""
    if request.param == "tmpfs":
        return mount("-t", "tmpfs", "-o", "size=2m", "small")
    require("mkfs.ext4", shutil.which("mkfs.ext4") is not None, "no such program")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, timeout=_SECONDS, capture_output=True)
    return mount("-o", "loop", str(image))
