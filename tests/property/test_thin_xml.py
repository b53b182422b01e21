"""Laws of the reader of thin_delta's output."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.base.errors import CheckpointLost
from lamella.sources.lvm.thin_xml import differing, mapped

KINDS = ("same", "different", "left_only", "right_only")
elements = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 2**63), st.lists(st.integers(1, 2**40), min_size=1, max_size=3))
)


def written(rows: list[tuple[str, int, list[int]]], verbose: bool, spaces: str) -> bytes:
    parts = ['<superblock uuid="" time="1" transaction="1" data_block_size="256" nr_data_blocks="0">']
    parts.append('<diff left="3" right="4">')
    for kind, begin, lengths in rows:
        if verbose:
            inner = "".join(f'<range begin="{begin}" data_begin="9" length="{length}"/>{spaces}' for length in lengths)
            parts.append(f"<{kind}>{inner}</{kind}>")
        else:
            parts += [f'<{kind} begin="{begin}" length="{length}"/>' for length in lengths]
    return spaces.join([*parts, "</diff>", "</superblock>"]).encode()


@given(elements, st.booleans(), st.sampled_from(["", "\n  ", "<!-- x -->"]), st.lists(st.integers(0, 10_000)))
def test_everything_but_the_same_comes_out_wherever_the_output_is_cut(
    rows: list[tuple[str, int, list[int]]], verbose: bool, spaces: str, cuts: list[int]
) -> None:
    content = written(rows, verbose, spaces)
    ends = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    found = [(one.start, one.end) for one in differing([content[a:b] for a, b in pairwise(ends)], 3, 4)]
    size = 256 * 512
    assert found == [
        (begin * size, (begin + length) * size) for kind, begin, lengths in rows if kind != "same" for length in lengths
    ]


@given(elements, st.booleans(), st.data())
def test_altered_output_is_refused_or_read_to_its_end(
    rows: list[tuple[str, int, list[int]]], verbose: bool, data: st.DataObject
) -> None:
    content = bytearray(written(rows, verbose, "\n"))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        if not content:
            return
    try:
        for one in differing([bytes(content)], 3, 4):
            assert 0 <= one.start < one.end
    except CheckpointLost as lost:
        assert lost.message


@given(st.binary())
def test_any_bytes_are_refused(content: bytes) -> None:
    for found in (differing([content], 3, 4), mapped([content], 3)):
        with pytest.raises(CheckpointLost):
            list(found)
