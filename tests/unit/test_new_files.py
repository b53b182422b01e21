"""Small files of a command: a name is there with its whole content or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError, UsageError
from lamella.cli.new_files import write_file


class Killed(BaseException):
    """As if the process ended here."""


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_is_killed_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, overwrite: bool
) -> None:
    path = tmp_path / "main.toml"

    def killed(_: int) -> None:
        raise Killed

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(Killed):
        write_file(path, b"content", overwrite=overwrite)
    assert not path.exists()


@pytest.mark.parametrize("number", [0, errno.EPERM, errno.ENOTSUP])
def test_what_is_there_is_never_replaced_and_nothing_else_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "main.toml"
    if number:  # a file system without hard links

        def refused(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "link", refused)
    write_file(path, b"content", overwrite=False)
    assert path.read_bytes() == b"content" and path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="exists already"):
        write_file(path, b"other", overwrite=False)
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(UsageError, match="exists already"):
        write_file(tmp_path / "dangling", b"other", overwrite=False)
    assert path.read_bytes() == b"content"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["dangling", "main.toml"]


def test_a_directory_that_is_full_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LamellaError, match=r"cannot write .*No space left"):
        write_file(tmp_path / "main.toml", b"content", overwrite=False)
    assert not list(tmp_path.iterdir())
