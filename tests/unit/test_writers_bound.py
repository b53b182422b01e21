"""How many hosts may write to one repository: a flood of new ones stops no host that is there (FORMAT, Bounds)."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamella.base.errors import RepositoryError
from lamella.operations.doctor.doctor import examine
from tests.unit.small_repository import ADMIN, WRITER, Small, image


@pytest.fixture
def crowded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    """Hosts one and two write here, and more than two may not."""
    small = Small.make(tmp_path)
    for host, name in (("one", "a"), ("two", "b")):
        small.backup(image(tmp_path / f"{name}.img", "a"), host)
    monkeypatch.setattr("lamella.history.crowding.MAX_WRITERS", 2)
    monkeypatch.setattr("lamella.operations.doctor.doctor._MANY_WRITERS", 2)
    return small


def test_one_more_writer_is_refused_and_those_that_are_there_go_on(crowded: Small, tmp_path: Path) -> None:
    with crowded.opened("three", WRITER) as repo, pytest.raises(RepositoryError, match="no more may"):
        repo.publish([])
    for host, secret in (("two", WRITER), ("one", WRITER), ("three", ADMIN)):
        with crowded.opened(host, secret) as repo:
            repo.publish([])


def test_doctor_counts_them(crowded: Small) -> None:
    checks = {one.name: one for one in examine(crowded.host("one"), crowded.store, ADMIN)}
    assert not checks["writers"].ok and "2 hosts write here" in checks["writers"].message
