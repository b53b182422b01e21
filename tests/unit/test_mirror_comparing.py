"""Comparing two places in one pass: what is found, and what is held in memory meanwhile."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.base.names import pack_name
from lamella.operations.mirror import comparing
from lamella.operations.mirror.comparing import compare
from lamella.stores.base import Entry
from lamella.stores.memory import MemoryStore


class Many(MemoryStore):
    """A store that lists so many packs, in order, and holds none of them. Each third one is left out with `gaps`."""

    def __init__(self, packs: int, *, gaps: bool = False) -> None:
        super().__init__()
        self.packs, self.gaps = packs, gaps

    def list(self, prefix: str) -> Iterator[Entry]:
        for number in range(self.packs if "p/".startswith(prefix) else 0):
            if not (self.gaps and number % 3 == 0):
                yield Entry(pack_name(number.to_bytes(32, "big")), 8 << 20)


def peak(packs: int) -> int:
    tracemalloc.start()
    try:
        found = compare(Many(packs), Many(packs, gaps=True))
        assert (found.shared, found.missing_packs, found.extra) == (packs - -(-packs // 3), -(-packs // 3), 0)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_ten_times_the_packs_take_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the two places have in common is never held; of what is missing no more than a pass gathers."""
    monkeypatch.setattr(comparing, "MOST_MISSING", 500)
    few, many = peak(3_000), peak(30_000)
    assert many < few * 1.2 and many < 1 << 20, (few, many)


NAMES = [pack_name(hashlib.sha256(bytes([number])).digest()) for number in range(6)]
NAMES += ["readme.txt", "restore.py", "keys/00000001", "keys/00000002", "i/" + "ab" * 32, "w/strange", "p/strange"]
PLACES = st.dictionaries(st.sampled_from(NAMES), st.binary(max_size=2), max_size=len(NAMES))


@given(PLACES, PLACES)
def test_the_join_finds_what_sets_find(here: dict[str, bytes], there: dict[str, bytes]) -> None:
    found = compare(MemoryStore(here), MemoryStore(there))
    mine, theirs = ({name for name in place if "strange" not in name} for place in (here, there))
    missing = [entry.name for entry in (*found.missing, *found.lacking())]
    assert sorted(missing) == sorted(mine - theirs) and found.missing_packs == len(found.missing)
    assert (found.shared, found.extra) == (len(mine & theirs), len(theirs - mine))
    resized = {
        (name, len(there[name]), len(here[name])) for name in mine & theirs if len(here[name]) != len(there[name])
    }
    assert set(found.resized) == resized and len(found.resized) == len(resized)
    assert bool(found.there.ignored) == any("strange" in name for name in there)
