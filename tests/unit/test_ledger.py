"""The ledger: what it says is believed only if this repository's keys say so, for the volume it was written for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamella.base.ids import ChunkId, SnapId, VolumeId, WriterId
from lamella.crypto.derive import Keys
from lamella.format.records import Ref
from lamella.memory.encoding import encode
from lamella.memory.host import Host
from lamella.memory.ledger import Ledger, LedgerEntry, needed_checkpoints, tracked_identities
from tests.unit.small_repository import Small

ONE, TWO = VolumeId(b"1" * 16), VolumeId(b"2" * 16)
ENTRY = LedgerEntry(
    Ref(WriterId(b"w" * 16), 7, SnapId(b"s" * 16)),
    ChunkId(b"r" * 24),
    1 << 30,
    17,
    b"file:0123456789abcdef:/images/\xff.img",
    "btrfs",
    '{"file":"moment-1","inode":257}',
)
Edit = Callable[[dict[str, Any]], object]


class Desk:
    """Two repositories of one host, by their keys and memory."""

    def __init__(self, place: Path) -> None:
        self.smalls = [Small.make(place), Small(place)]
        self.smalls[1] = Small.make(place)
        self.host: Host = self.smalls[0].host()
        self.keys: list[Keys] = []
        self.ledgers: list[Ledger] = []
        self.files: list[Path] = []
        for small in self.smalls:
            with small.opened() as repo:
                self.keys.append(repo.keys)
                self.ledgers.append(Ledger(repo.memory, repo.keys))
                self.files.append(repo.memory.directory / "ledger.json")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def rewrite(path: Path, edit: Edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def row(content: dict[str, Any], volume: VolumeId = ONE) -> dict[str, Any]:
    found = content["volumes"][volume.hex()]
    assert isinstance(found, dict)
    return found


def test_what_was_recorded_is_found_again(desk: Desk) -> None:
    ledger = desk.ledgers[0]
    assert ledger.entry(ONE) == (None, "this host keeps no checkpoint of the last backup")
    ledger.record(ONE, ENTRY)
    assert ledger.entry(ONE) == (ENTRY, "")
    assert ledger.entry(TWO)[0] is None
    ledger.forget(TWO)
    assert ledger.entry(ONE) == (ENTRY, "")
    ledger.forget(ONE)
    assert ledger.entry(ONE)[0] is None


def test_a_second_record_takes_the_place_of_the_first(desk: Desk) -> None:
    newer = LedgerEntry(ENTRY.ref, ENTRY.root, 5, 16, b"other", "reflink", "moment-2")
    desk.ledgers[0].record(ONE, ENTRY)
    desk.ledgers[0].record(TWO, ENTRY)
    desk.ledgers[0].record(ONE, newer)
    assert desk.ledgers[0].entry(ONE)[0] == newer
    assert desk.ledgers[0].entry(TWO)[0] == ENTRY


OTHER_VALUES = {
    "writer": "00" * 16,
    "seq": 8,
    "snap_id": "00" * 16,
    "root": "00" * 24,
    "size": 1 << 29,
    "chunk_log2": 16,
    "identity": b"file:0123456789abcdef:/images/other.img".hex(),
    "driver": "reflink",
    "checkpoint": "moment-9",
}


@pytest.mark.parametrize("field", sorted(OTHER_VALUES))
def test_an_edited_field_is_not_believed(desk: Desk, field: str) -> None:
    desk.ledgers[0].record(ONE, ENTRY)
    assert set(OTHER_VALUES) == set(encode(ENTRY))
    assert OTHER_VALUES[field] != encode(ENTRY)[field]
    rewrite(desk.files[0], lambda content: row(content)["entry"].update({field: OTHER_VALUES[field]}))
    entry, why = desk.ledgers[0].entry(ONE)
    assert entry is None
    assert "altered or belongs to another repository" in why


def test_an_entry_of_another_volume_is_not_believed(desk: Desk) -> None:
    desk.ledgers[0].record(ONE, ENTRY)
    rewrite(desk.files[0], lambda content: content["volumes"].update({TWO.hex(): row(content)}))
    assert desk.ledgers[0].entry(TWO)[0] is None
    assert desk.ledgers[0].entry(ONE)[0] == ENTRY


def test_the_ledger_of_another_repository_is_not_believed(desk: Desk) -> None:
    desk.ledgers[0].record(ONE, ENTRY)
    desk.files[1].parent.mkdir(parents=True, exist_ok=True)
    desk.files[1].write_bytes(desk.files[0].read_bytes())
    entry, why = desk.ledgers[1].entry(ONE)
    assert entry is None
    assert "another repository" in why


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: row(content).pop("mac"),
        lambda content: row(content).pop("entry"),
        lambda content: row(content)["entry"].pop("root"),
        lambda content: row(content)["entry"].update(size="many"),
        lambda content: row(content)["entry"].update(writer=5),
        lambda content: row(content).update(mac="no hex"),
        lambda content: row(content).update(mac=None),
        lambda content: row(content).update(mac=""),
        lambda content: content["volumes"].update({ONE.hex(): None}),
        lambda content: content["volumes"].update({ONE.hex(): ["entry", "mac"]}),
        lambda content: content.update(volumes=[]),
        lambda content: content.update(volumes=None),
    ],
)
def test_a_damaged_entry_gives_a_reason(desk: Desk, edit: Edit) -> None:
    desk.ledgers[0].record(ONE, ENTRY)
    rewrite(desk.files[0], edit)
    entry, why = desk.ledgers[0].entry(ONE)
    assert entry is None
    assert why
    desk.ledgers[0].record(ONE, ENTRY)
    assert desk.ledgers[0].entry(ONE)[0] == ENTRY


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"volumes": 5}', b"null"])
def test_a_damaged_file_is_an_empty_one(desk: Desk, content: bytes) -> None:
    desk.ledgers[0].record(ONE, ENTRY)
    desk.files[0].write_bytes(content)
    assert desk.ledgers[0].entry(ONE)[0] is None
    assert needed_checkpoints(desk.host, ENTRY.identity) == set()
    assert tracked_identities(desk.host) == []
    desk.ledgers[0].forget(ONE)


def test_needed_is_what_any_repository_names(desk: Desk) -> None:
    other = LedgerEntry(ENTRY.ref, ENTRY.root, 5, 16, b"other", "reflink", "moment-2")
    second = LedgerEntry(ENTRY.ref, ENTRY.root, 5, 16, ENTRY.identity, "btrfs", "moment-3")
    desk.ledgers[0].record(ONE, ENTRY)
    desk.ledgers[0].record(TWO, other)
    desk.ledgers[1].record(ONE, second)
    assert needed_checkpoints(desk.host, ENTRY.identity) == {ENTRY.checkpoint, "moment-3"}
    assert needed_checkpoints(desk.host, b"other") == {"moment-2"}
    assert needed_checkpoints(desk.host, b"unknown") == set()
    assert tracked_identities(desk.host) == sorted([ENTRY.identity, b"other"])


def test_an_entry_that_is_not_believed_still_keeps_its_moment(desk: Desk) -> None:
    desk.ledgers[0].record(ONE, ENTRY)
    rewrite(desk.files[0], lambda content: row(content).update(mac="00" * 32))
    assert needed_checkpoints(desk.host, ENTRY.identity) == {ENTRY.checkpoint}
