"""A family of damaged repositories: every kind of place damaged in every way, and what becomes of each.

`tests/fault/family.json` holds what is expected of each member: what verification finds, what still restores by both
readers, and what a repair does, alone and with a sound copy. After a wanted change look at what differs:
`python -m tests.fault.family` writes it anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lamella import rescue
from lamella.base.errors import LamellaError
from lamella.base.ids import CATALOGUE, ChunkId
from lamella.base.names import pack_name
from lamella.crypto.slots import key_file
from lamella.format.container import Kind
from lamella.memory.host import Host
from lamella.operations.backup.story import BackupOptions
from lamella.operations.keyring import add_slot
from lamella.operations.repair.repair import RepairOptions, repair
from lamella.operations.shared.selection import Selected, select
from lamella.operations.verify.verify import VerifyOptions, examine_all, verify
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from tests.fault.damage import DOCUMENT, Objects, sparse
from tests.fault.world import (
    CHUNK,
    KEY,
    SECRET,
    SMALL_RESCUE,
    Truth,
    as_directory,
    backup,
    fresh_host,
    host_at,
    init,
    short_rescue,
    volume,
)

EXPECTED = Path(__file__).with_suffix(".json")
Json = dict[str, Any]


@dataclass
class Family:
    """The sound repository, an older age of it, a foreign one, and where in it things lie."""

    place: Path
    objects: Objects = field(default_factory=dict)
    older: Objects = field(default_factory=dict)
    foreign: Objects = field(default_factory=dict)
    truth: Truth = field(default_factory=Truth)
    labels: dict[str, str] = field(default_factory=dict)
    """`VOLUME@SNAPSHOT` -> `VOLUME number`."""
    places: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Name of a place -> object, offset of a byte in it."""
    partners: dict[str, str] = field(default_factory=dict)
    """Name of a place -> another object of the same kind."""
    outcomes: dict[str, Json] = field(default_factory=dict)
    """By a digest of all objects."""


@contextlib.contextmanager
def small_steps() -> Iterator[None]:
    """Checkpoints, catalogue segments and index segments come early."""
    with pytest.MonkeyPatch.context() as patch, short_rescue(patch):
        patch.setattr("lamella.history.publish.CHECKPOINT_EVERY", 4)
        patch.setattr("lamella.history.checkpoints.TAIL_BYTES", 1000)
        patch.setattr("lamella.packs.blobmap.WORTH_WRITING", 1)
        patch.setattr("lamella.packs.blobmap.WORTH_READING", 1)
        patch.setattr("lamella.operations.repair.objects.rescue_source", lambda: SMALL_RESCUE)
        patch.setattr("lamella.operations.repair.repair.rescue_source", lambda: SMALL_RESCUE)
        yield


def build(place: Path) -> Family:
    """Two writers; five snapshots of one volume, one of another; documents, checkpoints and segments of both kinds."""
    family = Family(place)
    one, two = host_at(place / "one"), host_at(place / "two", "two")
    store = MemoryStore()
    init(store, one)
    with Repository.open(store, SECRET, one) as repo:
        add_slot(repo, key_file(b"another key file, of 32 bytes or more"), admin=False)
    counts: dict[str, int] = {}

    def save(host: Host, name: str, content: bytes, options: BackupOptions | None = None) -> None:
        result = backup(store, host, volume(content, name), options=options)
        family.truth.learn(result, {name: content})
        counts[name] = counts.get(name, 0) + 1
        family.labels[f"{name}@{result.snapshot}"] = f"{name} {counts[name]}"

    shared = sparse(70 * CHUNK, {number: bytes([number + 1]) for number in range(0, 70, 3)}).content
    for number in range(5):
        content = bytearray(shared)
        content[6 * CHUNK : 7 * CHUNK] = os.urandom(CHUNK)
        options = BackupOptions(chunk_log2=16, workers=1, documents={"settings": DOCUMENT + bytes([number])})
        save(one, "disk", bytes(content), options)
        if number == 1:
            save(two, "other", os.urandom(CHUNK + 500))
        if number == 2:
            family.older = store.objects()
    family.objects = store.objects()
    family.foreign = _foreign(place / "foreign")
    _find_places(family, one)
    return family


def _foreign(place: Path) -> Objects:
    store, host = MemoryStore(), host_at(place)
    init(store, host)
    backup(store, host, volume(os.urandom(CHUNK), "disk"))
    return store.objects()


def _find_places(family: Family, host: Host) -> None:
    objects = family.objects
    with Repository.open(MemoryStore(objects), SECRET, host, whole=True) as repo:
        repo.refresh_map()
        disk = [one for one in select(repo, []) if one.volume_name == "disk"]
        (other,) = [one for one in select(repo, []) if one.volume_name == "other"]
        own = repo.history.chains[disk[0].snapshot.ref.writer]
        commits = {commit.head.seq: commit.head.name for commit in own.commits}
        slots = sorted((name for name in objects if name.startswith("keys/")), key=lambda name: objects[name][9])
        segment = next(row.pack for row in own.carried.segments) if own.carried is not None else b""
        index = sorted((name for name in objects if name.startswith("i/")), key=lambda name: len(objects[name]))
        places = {
            "marker": ("lamella", 20),
            "slot": (slots[0], 60),
            "readme": ("readme.txt", 3),
            "emergency reader": ("restore.py", 3),
            "first commit": (commits[1], 200),
            "middle commit": (commits[3], 200),
            "checkpoint": (commits[own.checkpoint[0]], 200),
            "newest commit": (commits[max(commits)], 200),
            "catalogue segment": (pack_name(segment), -20),
            "index segment": (index[-1], 200),
            "pack head": (_blob(repo, disk[-1], Kind.LEAF, _leaf(repo, disk[-1]))[0], 150),
            "chunk of one snapshot": _blob(repo, disk[-1], Kind.CHUNK, _chunk(repo, disk[-1], 6)),
            "chunk of all snapshots": _blob(repo, disk[0], Kind.CHUNK, _chunk(repo, disk[0], 3)),
            "leaf node": _blob(repo, disk[-1], Kind.LEAF, _leaf(repo, disk[-1])),
            "root node": _blob(repo, disk[-1], Kind.INNER, disk[-1].snapshot.added.root),
            "document": _blob(repo, disk[-1], Kind.DOCUMENT, disk[-1].snapshot.added.documents[0].parts[0]),
        }
        pack = _blob(repo, other, Kind.LEAF, other.snapshot.added.root)[0]
    family.places = places
    partner = {"p": pack, "w": commits[2], "keys": slots[1], "i": index[0]}
    family.partners = {name: partner.get(found[0].split("/")[0], "readme.txt") for name, found in places.items()}
    family.partners["readme"] = "restore.py"


def _chunk(repo: Repository, one: Selected, number: int) -> ChunkId:
    (run,) = repo.tree_reader(one.snapshot.added.domain_id).runs(repo.tree(one.snapshot), number, number + 1)
    assert isinstance(run.slot, bytes)
    return run.slot


def _leaf(repo: Repository, one: Selected) -> ChunkId:
    tree = repo.tree(one.snapshot)
    leaf = repo.tree_reader(one.snapshot.added.domain_id).node(tree.shape, tree.root, tree.shape.depth - 1, 0).slots[0]
    assert isinstance(leaf, bytes)
    return leaf


def _blob(repo: Repository, one: Selected, kind: Kind, id_: ChunkId) -> tuple[str, int]:
    """The object and the middle of a blob in its only place."""
    (place,) = repo.blobs.find(kind, id_)
    assert place.domain_id == one.snapshot.added.domain_id != CATALOGUE
    return pack_name(place.pack), place.blob.offset + place.blob.sealed_length // 2


# -- damage ------------------------------------------------------------------------------------------------------------


def _delete(family: Family, place: str) -> Objects:
    name, _ = family.places[place]
    return {other: content for other, content in family.objects.items() if other != name}


def _truncate(family: Family, place: str) -> Objects:
    name, _ = family.places[place]
    return {**family.objects, name: family.objects[name][:-40]}


def _flip(family: Family, place: str) -> Objects:
    name, offset = family.places[place]
    content = bytearray(family.objects[name])
    content[offset] ^= 4
    return {**family.objects, name: bytes(content)}


def _swap(family: Family, place: str) -> Objects:
    name, _ = family.places[place]
    other = family.partners[place]
    return {**family.objects, name: family.objects[other], other: family.objects[name]}


def _duplicate(family: Family, place: str) -> Objects:
    """The same bytes under another name of the same form."""
    name, _ = family.places[place]
    wrong = hashlib.sha256(name.encode()).hexdigest()
    folder = name.rpartition("/")[0]
    new = {"p": f"p/{wrong[:2]}/{wrong}", "i": f"i/{wrong}", "keys": f"keys/{wrong[:8]}"}.get(name.split("/")[0])
    if name.startswith("w/"):
        new = f"{folder}/{int(name.split('/')[2][:16], 16):016x}-{wrong}"
    return {**family.objects, new or f"{name}.1": family.objects[name]}


def _stale(family: Family, place: str) -> Objects:
    """All objects of this kind as they were three snapshots ago."""
    kind = family.places[place][0].split("/")[0]
    kept = {name: content for name, content in family.objects.items() if name.split("/")[0] != kind}
    return kept | {name: content for name, content in family.older.items() if name.split("/")[0] == kind}


def _foreign_object(family: Family, place: str) -> Objects:
    """An object of another repository under this name."""
    name, _ = family.places[place]
    kind = name.split("/")[0]
    theirs = [content for other, content in family.foreign.items() if other.split("/")[0] == kind]
    return {**family.objects, name: max(theirs, key=len) if theirs else b"of another repository"}


ACTIONS: Mapping[str, Callable[[Family, str], Objects]] = {
    "delete": _delete,
    "truncate": _truncate,
    "flip": _flip,
    "swap": _swap,
    "duplicate": _duplicate,
    "stale": _stale,
    "foreign": _foreign_object,
}


# -- what becomes of it ------------------------------------------------------------------------------------------------


def outcome(family: Family, objects: Objects, scratch: Path) -> Json:
    """What verification, both readers and repairs make of a damaged copy; places in one object have some in common."""
    same = hashlib.sha256(repr(sorted(objects.items())).encode()).hexdigest()
    if same not in family.outcomes:
        family.outcomes[same] = _outcome(family, objects, scratch)
    return family.outcomes[same]


def _outcome(family: Family, objects: Objects, scratch: Path) -> Json:
    found: Json = {"verify": _verified(family, objects, scratch), "restore.py": _rescued(family, objects, scratch)}
    shutil.rmtree(scratch / "knows", ignore_errors=True)
    shutil.copytree(family.place / "one", scratch / "knows")
    found["repair by the host that wrote it"] = _repaired(family, objects, host_at(scratch / "knows"), scratch, None)
    with Repository.open(MemoryStore(family.objects), SECRET, fresh_host(scratch / "copy")) as copy:
        stranger = fresh_host(scratch / "mender")
        found["repair by a stranger with a copy"] = _repaired(family, objects, stranger, scratch, copy)
    return found


def _verified(family: Family, objects: Objects, scratch: Path) -> Json:
    """Findings as `severity kind`, and what the main reader restores, as a machine that knows nothing sees it."""
    try:
        with Repository.open(MemoryStore(objects), SECRET, fresh_host(scratch / "stranger")) as repo:
            everything = select(repo, [])
            problems = len(repo.problems)
            full = verify(repo, everything, VerifyOptions("full", workers=1))
            restored = verify(repo, everything, VerifyOptions("restore", workers=1))
    except LamellaError as error:
        return {"refused": error.kind}
    # The map may still know what lies in a pack whose head went bad meanwhile, so the last level may know less.
    assert set(restored.unrestorable) == set(full.unrestorable), (restored.unrestorable, full.unrestorable)
    whole = [one.text for one in everything if one.text not in full.unrestorable]
    return {
        "findings": sorted({f"{one.severity} {one.kind}" for one in full.findings}),
        "problems": problems,
        "restores": sorted(family.labels.get(text, text) for text in whole),
    }


def _rescued(family: Family, objects: Objects, scratch: Path) -> list[str]:
    """The snapshots that the emergency reader restores, each compared with what was saved."""
    place = scratch / "rescue"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "key").write_bytes(KEY)
    repo = as_directory(objects, place / "repository")
    restored: list[str] = []
    for text, content in family.truth.volumes.items():
        words = ["restore", text, "--to", str(place / "out"), "--repo", str(repo), "--keyfile", str(place / "key")]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = rescue.main([*words, "--overwrite"])
        # Named in full it is restored beside missing history, too.
        if code == 0 or (code == 21 and (place / "out").exists()):
            assert (place / "out").read_bytes() == content, f"restore.py restores {text} to wrong bytes"
            restored.append(family.labels[text])
        (place / "out").unlink(missing_ok=True)
    return sorted(restored)


def _repaired(family: Family, objects: Objects, host: Host, scratch: Path, copy: Repository | None) -> Json:
    """What a repair did, what it could not bring back, and what is found afterwards; done again it does nothing."""
    store = MemoryStore(objects)
    others = () if copy is None else (copy,)
    try:
        with Repository.open(store, SECRET, host, whole=True, may_be_lost=True) as repo:
            result = repair(repo, examine_all, RepairOptions(others=others, workers=1))
    except LamellaError as error:
        return {"refused": error.kind}
    _nothing_is_lost(objects, store.objects())
    once = store.objects()
    with Repository.open(store, SECRET, host, whole=True, may_be_lost=True) as repo:
        again = repair(repo, examine_all, RepairOptions(others=others, workers=1))
    assert store.objects() == once, "a second repair changed something"
    assert {one.did for one in again.actions} <= {"left"}, again.actions
    after = _verified(family, once, scratch)
    return {
        "did": sorted({one.did for one in result.actions}),
        "lost": sorted(family.labels.get(gone.obj, gone.obj) for gone in result.gone),
        "must be accepted": bool(result.problems),
        "then": after,
        "restore.py": _rescued(family, once, scratch),
    }


def _nothing_is_lost(before: Objects, after: Objects) -> None:
    """Every object is where it was, or lies aside with the same bytes."""
    for name, content in before.items():
        if after.get(name) != content:
            aside = f"quarantine/{hashlib.sha256(content).hexdigest()}/{name}"
            assert after.get(aside) == content, f"{name} was lost"


def members(place: str, family: Family, scratch: Path) -> Json:
    """The outcome of every action at one place."""
    return {action: outcome(family, damage(family, place), scratch) for action, damage in ACTIONS.items()}


def main() -> None:
    """Write the expectations anew."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name, small_steps():
        family = build(Path(name) / "family")
        rows = {place: members(place, family, Path(name) / "scratch") for place in family.places}
    EXPECTED.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
