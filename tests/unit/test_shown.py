"""Names in a mounted repository, where a hostile writer may have chosen them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.base.errors import UsageError
from lamella.operations.access.shown import MAX_NAME, distinct, safe_name
from lamella.operations.shared.selection import LATEST
from lamella.sources.names import check_name


@given(st.text(max_size=300))
def test_every_name_becomes_one_that_a_directory_can_hold(text: str) -> None:
    name = safe_name(text)
    assert name not in ("", ".", "..")
    assert "/" not in name and "\0" not in name
    assert 0 < len(name.encode()) <= MAX_NAME


@given(st.text(min_size=1, max_size=40))
def test_a_valid_volume_name_stays_what_it_is(text: str) -> None:
    try:
        name = check_name(text)
    except UsageError:
        return
    assert safe_name(name) == name


@pytest.mark.parametrize("name", ["..", ".", ".x", "a/b", "a\0b", "", "a\nb"])
def test_a_name_that_leads_elsewhere_cannot_be_given_to_a_volume(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


@given(st.lists(st.sampled_from(["a", "b", LATEST, "a/b", "a_b", ".."]), max_size=8))
def test_no_two_entries_share_a_name_and_none_hides_the_latest(names: list[str]) -> None:
    found = distinct((name, f"{number:032x}") for number, name in enumerate(names))
    assert len(set(found)) == len(found) == len(names)
    assert LATEST not in found
