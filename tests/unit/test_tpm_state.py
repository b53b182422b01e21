"""Where the state of a restored domain's TPM goes, and what becomes of a state that was there."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamella.base.errors import LamellaError
from lamella.sources.virt import defining
from lamella.sources.virt.defining import _TpmState

UUID = "11111111-2222-4333-8444-555555555555"
NAME = "tpm2-00.permall"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(defining, "_TPM", tmp_path)
    return tmp_path / UUID / "tpm2"


def test_a_state_is_placed_and_taken_back(place: Path) -> None:
    state = _TpmState(UUID, {NAME: b"new"})
    state.place()
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {NAME: b"new"}
    assert state.older is None and place.stat().st_mode & 0o777 == 0o700
    state.undo()
    assert list(place.parent.iterdir()) == []


def test_a_state_that_was_there_is_kept_beside_and_comes_back(place: Path) -> None:
    place.mkdir(parents=True)
    (place / NAME).write_bytes(b"old")
    state = _TpmState(UUID, {NAME: b"new"})
    state.place()
    assert (place / NAME).read_bytes() == b"new"
    assert state.older is not None and (state.older / NAME).read_bytes() == b"old"
    state.undo()
    assert {path.name for path in place.parent.iterdir()} == {"tpm2"} and (place / NAME).read_bytes() == b"old"


def test_nothing_is_touched_for_a_domain_without_a_tpm(place: Path) -> None:
    state = _TpmState(UUID, {})
    state.place()
    state.undo()
    assert not place.parent.exists()


def test_what_cannot_be_written_is_told(place: Path) -> None:
    place.parent.write_bytes(b"")
    state = _TpmState(UUID, {NAME: b"new"})
    with pytest.raises(LamellaError, match="state of the TPM"):
        state.place()
    state.undo()
    assert place.parent.read_bytes() == b""
