"""Makes the golden repositories: `python -m tests.golden.repositories.make NAME...`, from the top of the sources.

A golden repository is never made again once a release has written its format: readers of all later versions must open
exactly these bytes. New ones are added beside the old.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pytest

from lamella.base.clock import now_ms
from lamella.crypto.new_slots import MIN_WRITTEN_LOG_N
from lamella.crypto.recovery import recovery_key, recovery_text
from lamella.crypto.slots import key_file, passphrase
from lamella.format.deletion import Remove
from lamella.format.keyslot import SlotType
from lamella.format.labels import Pin, Tag
from lamella.format.records import RawRecord, Rename, Signed, raw
from lamella.format.sessions import Session
from lamella.history import publish
from lamella.memory.host import Host
from lamella.operations.backup.story import BackupOptions
from lamella.operations.prune.prune import run_prune
from lamella.operations.shared.auditing import audit, publish_audits, reapable_commits
from lamella.operations.shared.selection import select
from lamella.repository.create import SlotWanted, create_repository
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from lamella_kit.scripted_source import ScriptedSource
from lamella_kit.tracked_source import TrackedDisk
from tests.fault.damage import sparse
from tests.fault.world import CHUNK, KEY, SECRET, backup, host_at, short_rescue

HERE = Path(__file__).parent
PASSPHRASE = "correct horse bätterie stäple"
RECOVERY_BYTES = bytes(range(32))
EPOCH_MS = 1_763_800_000_000


@dataclass
class Golden:
    """A repository in the making, and what it must give back."""

    place: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    snapshots: dict[str, dict[str, object]] = field(default_factory=dict)
    documents: dict[str, dict[str, str]] = field(default_factory=dict)
    tags: dict[str, list[str]] = field(default_factory=dict)

    def host(self, machine: str) -> Host:
        return host_at(self.place / machine, machine)

    def init(self, id_alg: int) -> None:
        """Three admin slots: a key file, a passphrase and a recovery key."""
        text = recovery_text(type(SECRET)(SlotType.RECOVERY, RECOVERY_BYTES))
        slots = [
            SlotWanted(SECRET, True),
            SlotWanted(passphrase(PASSPHRASE), True),
            SlotWanted(recovery_key(text), True),
            SlotWanted(key_file(KEY[::-1]), False),
        ]
        host = self.host("one")
        create_repository(self.store, host, slots, lambda: EPOCH_MS, log_n=MIN_WRITTEN_LOG_N, id_alg=id_alg)

    def save(self, machine: str, options: BackupOptions, *sources: ScriptedSource) -> None:
        result = backup(self.store, self.host(machine), *sources, options=options)
        assert result.complete
        for source in sources:
            text = f"{source.name}@{result.snapshot}"
            digest = hashlib.sha256(source.content).hexdigest()
            self.snapshots[text] = {"size": len(source.content), "sha256": digest}
            self.documents[text] = {
                name: hashlib.sha256(content).hexdigest() for name, content in options.documents.items()
            }

    def write(self, name: str) -> None:
        expected = {
            "keyfile": KEY.hex(),
            "writer_keyfile": KEY[::-1].hex(),
            "passphrase": PASSPHRASE,
            "recovery": recovery_text(type(SECRET)(SlotType.RECOVERY, RECOVERY_BYTES)),
            "snapshots": self.snapshots,
            "documents": self.documents,
            "tags": self.tags,
        }
        (HERE / f"{name}.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n", "utf-8")
        with tarfile.open(HERE / f"{name}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for path, content in sorted(self.store.objects().items()):
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


def hmac_ids(golden: Golden) -> None:
    """id_alg 1: two writers, two volumes, a tree of two levels, a resize, a document, nothing changed once."""
    golden.init(1)
    noise = random.Random(1).randbytes(3000)
    options = BackupOptions(chunk_log2=16, workers=1, documents={"settings.xml": b"<settings memory='400'/>\n" * 9})
    disk = sparse(66 * CHUNK - 1000, {0: b"a", 1: b"bc", 40: b"d", 65: b"end"})
    golden.save("one", options, disk, ScriptedSource("small", noise + b"s" * CHUNK))
    golden.save("one", options, disk, ScriptedSource("small", noise + b"s" * CHUNK))
    golden.save("two", BackupOptions(chunk_log2=16, workers=1), ScriptedSource("other", b"o" * 70000))
    golden.save("one", BackupOptions(workers=1), sparse(50 * CHUNK + 77, {0: b"a", 1: b"B", 40: b"d"}))


def blake_ids(golden: Golden) -> None:
    """id_alg 2: every codec, a shared domain, an empty volume, zeros that are allocated."""
    golden.init(2)
    first, second = b"text and more text\n" * 4000, random.Random(2).randbytes(2000) + bytes(3 * CHUNK) + b"end"
    for compression in ("auto", "portable", "off"):
        options = BackupOptions(chunk_log2=16, workers=1, domain="shared", compression=compression)
        first = compression.encode() + first
        golden.save("one", options, ScriptedSource("first", first), ScriptedSource("second", second))
        second = second + compression.encode() * 100
    golden.save("one", BackupOptions(workers=1), ScriptedSource("empty", b""))


def deltas(golden: Golden) -> None:
    """Chunks as differences, by two codecs; one that is whole again; a base that no other snapshot needs."""
    golden.init(1)
    chance = random.Random(5)
    chunks = [chance.randbytes(1200) + b"%d line\n" % number * 10000 for number in range(3)]
    disk = TrackedDisk("disk", bytearray(b"".join(chunk[:CHUNK] for chunk in chunks)))
    for compression, places in (("auto", ()), ("auto", (0, 2)), ("portable", (0, 1))):
        for place in places:
            disk.content[place * CHUNK + 20000 : place * CHUNK + 20040] = chance.randbytes(40)
        options = BackupOptions(chunk_log2=16, workers=1, compression=compression, deltas=True)
        result = backup(golden.store, golden.host("one"), disk.source(), options=options)
        assert result.volumes[0].delta_chunks == (2, 1)[compression == "portable"] * bool(places)
        digest = hashlib.sha256(disk.content).hexdigest()
        golden.snapshots[f"disk@{result.snapshot}"] = {"size": len(disk.content), "sha256": digest}
        golden.documents[f"disk@{result.snapshot}"] = {}
    first = next(iter(golden.snapshots))
    with Repository.open(golden.store, SECRET, golden.host("one"), exclusive=True) as repo:
        run_prune(repo, [select(repo, [first])[0].snapshot.ref])
    del golden.snapshots[first], golden.documents[first]
    golden.save("one", BackupOptions(chunk_log2=16, workers=1), ScriptedSource("small", b"s" * 99))


def compacted(golden: Golden) -> None:
    """Tags, a pin, a name, removals, an open session; audited checkpoints, and a log that begins with them."""
    golden.init(1)
    options = BackupOptions(chunk_log2=16, workers=1)
    for number in range(8):
        golden.save(
            "one", options, ScriptedSource("disk", b"%d" % number * 70000), ScriptedSource("old name", b"x" * 99)
        )
    golden.save("two", options, ScriptedSource("other", b"o" * 70000))
    names = [text.partition("@")[2] for text in golden.snapshots if text.startswith("disk")]

    def say(machine: str, *records: Signed | RawRecord, days_ago: int = 0) -> None:
        then = now_ms() - days_ago * 24 * 3600 * 1000
        with Repository.open(golden.store, SECRET, golden.host(machine), clock=lambda: then) as repo:
            repo.publish(records)

    with Repository.open(golden.store, SECRET, golden.host("one")) as repo:
        shots = {(repo.catalogue.volumes[one.added.volume_id].name, one.name): one for one in repo.catalogue.snapshots}
    first, gone = shots["disk", names[0]].ref, [shots["disk", name].ref for name in names[1:6]]
    say("one", Tag(first, False, "vor dem Umzug"), Tag(first, False, "taken away"), Pin(first, False, "for ever"))
    say("two", Tag(first, True, "taken away"), Rename(shots["old name", names[0]].added.volume_id, "new name"))
    say("two", Remove(tuple(gone)), days_ago=40)  # what was removed in the last 30 days is carried
    session = Session(b"session of golde", "20251122T000000Z-open", (), (b"p" * 32,))
    say("two", raw(session))
    for number in range(24):
        with mock.patch.object(publish, "CHECKPOINT_EVERY", 4):
            say("one" if number % 2 else "two")
        if number % 4 == 3:
            with Repository.open(golden.store, SECRET, golden.host("two"), whole=True) as repo:
                publish_audits(repo, audit(repo).passed)
                for head in reapable_commits(repo):
                    golden.store.delete(head.name)
    for text in list(golden.snapshots):
        volume, _, name = text.partition("@")
        facts = golden.snapshots.pop(text)
        documents = golden.documents.pop(text)
        if volume != "disk" or name not in names[1:6]:
            shown = text.replace("old name@", "new name@")
            golden.snapshots[shown], golden.documents[shown] = facts, documents
    golden.tags = {f"disk@{names[0]}": ["vor dem Umzug"]}


RECIPES: dict[str, Callable[[Golden], None]] = {
    "hmac-ids": hmac_ids,
    "blake-ids": blake_ids,
    "compacted": compacted,
    "deltas": deltas,
}


def main(names: list[str]) -> None:
    """Make these."""
    for name in names:
        with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch, short_rescue(patch):
            golden = Golden(Path(place))
            RECIPES[name](golden)
            golden.write(name)


if __name__ == "__main__":
    main(sys.argv[1:])
