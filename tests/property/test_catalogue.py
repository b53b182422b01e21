"""The catalogue depends on the records alone: not on the order in which chains are read, nor on how they are read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lamella.base.errors import IntegrityError
from lamella.base.ids import SnapId, VolumeId
from lamella.format.deletion import Remove, Retire
from lamella.format.known import understood
from lamella.format.labels import Pin, Tag
from lamella.format.owners import Give, Join
from lamella.format.records import (
    Confirm,
    RawRecord,
    Ref,
    Rename,
    Run,
    RunVolume,
    raw,
)
from lamella.format.sessions import Abandon, Session
from lamella.history.catalogue import Catalogue
from lamella.history.latest import latest
from lamella.history.state import build
from tests.property.chains import KEYS, Script, writer
from tests.unit.small_repository import snapshot_record, volume_record

WRITERS = 3
Step = tuple[int, list[Any], list[int]]
"""Writer, records, whom it has seen."""

writers = st.integers(0, WRITERS - 1)
numbers = st.integers(1, 4)
volumes = st.builds(lambda number, by: volume_record(writer(by), number), numbers, writers)
"""VOLUME records: of whoever says them, or of another writer."""
refs = st.builds(
    lambda by, seq, number: Ref(writer(by), seq, SnapId(number.to_bytes(16, "big"))),
    writers,
    st.integers(1, 4),
    numbers,
)
RUN_VOLUMES = (RunVolume(VolumeId(bytes(16)), "v", False, ""),)
words = st.sampled_from(["a", "b"])
sessions = st.sampled_from([b"s" * 16, b"t" * 16])
packs = st.lists(numbers.map(lambda number: bytes([number]) * 32), max_size=2).map(tuple)


def either(records: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Signed by the prune key, or not."""
    return st.tuples(records, st.booleans())


records = st.one_of(
    st.builds(lambda number, made: raw(snapshot_record(number, volume=made.volume_id)), numbers, volumes),
    st.builds(lambda ref: raw(Confirm((ref,))), refs),
    either(st.builds(Tag, refs, st.booleans(), words)),
    either(st.builds(Pin, refs, st.booleans(), words)),
    either(st.builds(lambda made, name: Rename(made.volume_id, name), volumes, words)),
    either(st.builds(lambda made, name: replace(made, name=name), volumes, words)),
    either(st.builds(lambda new, old: Join(writer(new), writer(old)), writers, writers)),
    either(st.builds(lambda made, by: Give(made.volume_id, writer(by)), volumes, writers)),
    either(st.builds(lambda found: Remove(tuple(found)), st.lists(refs, max_size=3))),
    st.builds(lambda id_, found: raw(Session(id_, "run", (), found)), sessions, packs),
    st.builds(lambda id_: raw(Abandon(id_)), sessions),
    st.builds(lambda number: raw(Run(f"snap-{number:04}", number > 2, RUN_VOLUMES)), numbers),
    st.sampled_from([RawRecord(kind, b"short") for kind in (2, 3, 5, 6, 7, 10, 11, 13, 16, 20, 21, 25, 26)]),
)  # fmt: skip
steps = st.lists(
    st.tuples(writers, st.lists(records, min_size=1, max_size=3), st.lists(writers, max_size=2)), max_size=12
)


def script(made: list[Step]) -> Script:
    found = Script()
    for by, rows, sees in made:
        found.commit(by, rows, sees)
    return found


def comparable(catalogue: Catalogue) -> dict[str, Any]:
    return {
        "volumes": catalogue.volumes,
        "removed": catalogue.removed,
        "runs": catalogue.runs,
        "sessions": catalogue.sessions,
        "files": catalogue.files,
        "writers": catalogue.writers,
        "retired": catalogue.retired,
        "notes": sorted(catalogue.notes),
        "latest": {id_: latest(state.snapshots) for id_, state in catalogue.volumes.items()},
    }


@given(steps, st.permutations(range(WRITERS)))
def test_any_order_of_chains_gives_the_same_catalogue(made: list[Step], order: list[int]) -> None:
    found = script(made)
    permuted = [position for position in order if position < len(found.chains)]
    assert comparable(build(KEYS, found.history())) == comparable(build(KEYS, found.history(permuted)))


@given(steps)
def test_what_no_signature_removed_is_there(made: list[Step]) -> None:
    """Told again from the records, without the builder."""
    added: set[Ref] = set()
    removed: set[Ref] = set()
    seqs = [0] * WRITERS
    for by, rows, _ in made:
        seqs[by] += 1
        for row in rows:
            if isinstance(row, RawRecord):
                if row.type == 3 and len(row.value) > 100:
                    added.add(Ref(writer(by), seqs[by], SnapId(row.value[:16])))
            elif isinstance(row[0], Remove) and row[1]:
                removed |= set(row[0].refs)
    catalogue = build(KEYS, script(made).history())
    assert {shot.ref for shot in catalogue.snapshots} == added - removed
    assert set(catalogue.removed) == removed


@given(steps, writers, refs, words)
def test_who_may_only_write_takes_no_label_of_others_away(made: list[Step], by: int, ref: Ref, word: str) -> None:
    found = script(made)
    before = {shot.ref: shot for shot in build(KEYS, found.history()).snapshots}
    mine = {
        tag.tag
        for row in (found.chains[writer(by)].entries if writer(by) in found.chains else [])
        if (tag := tag_of(row.record)) is not None and tag.ref == ref
    }
    removals = [(Tag(ref, True, one), False) for one in ("a", "b")]
    found.commit(by, removals, sees=range(WRITERS))
    after = {shot.ref: shot for shot in build(KEYS, found.history()).snapshots}
    for key, shot in before.items():
        lost = set(shot.tags) - set(after[key].tags)
        assert lost <= (mine if key == ref else set())


def tag_of(record: RawRecord) -> Tag | None:
    try:
        known = understood(record)
    except IntegrityError:
        return None
    return known if isinstance(known, Tag) else None


def test_a_retired_writer_needs_the_signature() -> None:
    found = Script()
    head = found.commit(0, [])
    found.commit(1, [(Retire(head), False)])
    assert build(KEYS, found.history()).retired == {}
    found.commit(1, [(Retire(head), True)])
    assert build(KEYS, found.history()).retired == {head.writer: head}
