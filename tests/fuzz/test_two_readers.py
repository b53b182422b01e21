"""Both readers over changed repositories, records and blobs: the short form of `python -m tests.fuzz.two_readers`."""

from __future__ import annotations

import pytest

from tests.fuzz import two_readers

SHORT_SECONDS = 50


@pytest.mark.slow
def test_both_readers_accept_and_refuse_the_same() -> None:
    counts, wrong = two_readers.run(1, 3000, SHORT_SECONDS)
    assert not wrong, "\n".join(wrong[:20])
    assert {outcome.partition(":")[0] for outcome in counts} == {"repository", "record", "body"}
    assert not any("raised" in outcome for outcome in counts)


@pytest.mark.long
def test_both_readers_accept_and_refuse_the_same_for_long() -> None:
    _, wrong = two_readers.run(5_000_000, 50_000)
    assert not wrong, "\n".join(wrong[:20])
