"""The list of slow tests names files that there are: what was renamed would come back into `make test`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.slow_tests import LIST, ROOT, name_of


@pytest.mark.parametrize("file", sorted({name.partition("::")[0] for name in LIST.read_text("utf-8").split()}))
def test_it_is_there(file: str) -> None:
    assert (ROOT / file).is_file()


def test_names_from_junit() -> None:
    assert name_of("tests.unit.test_slow_list", "test_it[a-b]") == "tests/unit/test_slow_list.py::test_it"
    assert name_of("tests.unit.test_slow_list.TestOne", "test_it") == "tests/unit/test_slow_list.py::TestOne::test_it"
    assert name_of("tests.unit.test_gone", "test_it") == ""
    assert Path(LIST).is_file()
