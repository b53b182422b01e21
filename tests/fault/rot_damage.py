"""What may rot in the repository of `rot.py`, and where each thing of each age lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lamella.base.ids import CATALOGUE, ChunkId
from lamella.format import node
from lamella.format.container import HEADER_SIZE, Kind
from lamella.history.catalogue import Snapshot
from lamella.operations.shared.selection import select
from lamella.packs.containers import PackHead, open_blob
from lamella.packs.heads import read_head
from lamella.repository.repository import Repository
from lamella.stores.local.store import LocalStore
from tests.fault.rot import AGES, DAYS, World
from tests.fault.world import SECRET, host_at

Edit = Callable[[bytes], bytes | None]
"""What becomes of an object's bytes; None: it is gone."""
Id = tuple[Kind, bytes]

BLOBS = {"chunk": Kind.CHUNK, "document": Kind.DOCUMENT, "leaf": Kind.LEAF, "inner": Kind.INNER}
DATA = ("chunk", "document")
NODES = ("leaf", "inner")
PACKS = ("pack-head", "pack-cut", "pack-emptied", "pack-missing")
COMMITS = ("container", "directory", "trailer", "truncated", "zeroed", "gone")
"""Of a commit."""
CATALOGUES = ("segment", "index")
FILES = ("restore.py", "readme.txt")
LOCKS = ("marker", "slot")
KINDS = (*DATA, *NODES, *PACKS, *COMMITS, *CATALOGUES, *FILES, *LOCKS)

LOCKLESS: Mapping[str, object] = {"lamella.stores.local.store.LOCKING_FILE_SYSTEMS": frozenset()}
"""With this a prune condemns, and deletes a day later what everybody has seen condemned."""
CHECKPOINTED: Mapping[str, object] = {
    "lamella.history.publish.CHECKPOINT_EVERY": 2,
    "lamella.history.checkpoints.TAIL_BYTES": 256,
    "lamella.packs.blobmap.WORTH_WRITING": 0,
}
"""With these a small repository has checkpoints, catalogue segments and index segments."""
_IN_DIRECTORY = HEADER_SIZE + 30
_IN_BLOB = 10


@dataclass(frozen=True, order=True)
class Damage:
    """One thing that rots; `age` says which snapshot alone needs it, or `shared` by all."""

    kind: str
    age: str = "shared"

    @property
    def snapshots(self) -> frozenset[str]:
        """The ages of `v` that are not whole any more because of it."""
        broken = self.kind in (*DATA, *NODES, *PACKS)
        return frozenset(DAYS if self.age == "shared" else [self.age]) if broken else frozenset()


def damages() -> Iterator[Damage]:
    """All there are."""
    for kind in KINDS:
        aged = kind in (*DATA, *NODES, *PACKS, *COMMITS)
        yield from (Damage(kind, age) for age in (AGES if aged else ("shared",)))


def flip(offset: int) -> Edit:
    """One bit, counted from the end if negative."""

    def edit(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[offset] ^= 1
        return bytes(changed)

    return edit


_PACK_EDITS: Mapping[str, Edit] = {
    "pack-head": flip(_IN_DIRECTORY),
    "pack-cut": lambda content: content[:-1],
    "pack-emptied": lambda content: b"",
    "pack-missing": lambda content: None,
}
_COMMIT_EDITS: Mapping[str, Edit] = {
    "directory": flip(_IN_DIRECTORY),
    "trailer": flip(-10),
    "truncated": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: bytes(len(content)),
    "gone": lambda content: None,
}
_FILE_EDITS: Mapping[str, tuple[str, Edit]] = {
    "restore.py": ("restore.py", flip(2000)),
    "readme.txt": ("readme.txt", flip(20)),
    "marker": ("lamella", flip(20)),
}


@dataclass
class Spots:
    """Where everything of each age lies, as objects and offsets."""

    blobs: dict[tuple[Kind, str], tuple[str, int]] = field(default_factory=dict)
    packs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, tuple[str, int]] = field(default_factory=dict)
    """And where the commit's blob lies."""
    segments: list[str] = field(default_factory=list)
    indexes: list[str] = field(default_factory=list)
    slot: str = ""

    def places(self, damage: Damage) -> tuple[list[str], Edit]:
        """The objects that a damage is in, and what becomes of each."""
        if damage.kind in CATALOGUES:
            return self.segments if damage.kind == "segment" else self.indexes, flip(-_IN_BLOB)
        name, edit = self._place(damage)
        return [name], edit

    def _place(self, damage: Damage) -> tuple[str, Edit]:
        kind = damage.kind
        if kind in BLOBS:
            name, offset = self.blobs[BLOBS[kind], damage.age]
            return name, flip(offset + _IN_BLOB)
        if kind in PACKS:
            return self.packs[damage.age], _PACK_EDITS[kind]
        if kind in COMMITS:
            name, offset = self.commits[damage.age]
            return name, _COMMIT_EDITS.get(kind) or flip(offset + _IN_BLOB)
        return (self.slot, flip(60)) if kind == "slot" else _FILE_EDITS[kind]


def inflict(world: World, spots: Spots, damage: Damage) -> None:
    """Let it rot."""
    names, edit = spots.places(damage)
    assert names, damage
    for name in names:
        rot(world.repo / name, edit)


def rot(path: Path, edit: Edit) -> None:
    """Change an object behind everybody's back."""
    changed = edit(path.read_bytes())
    path.chmod(0o600)
    path.unlink()
    if changed is not None:
        path.write_bytes(changed)


def survey(world: World) -> Spots:
    """Look up where everything lies, as a host that is not used again."""
    spots = Spots()
    with Repository.open(LocalStore.open(str(world.repo)), SECRET, host_at(world.place / "surveyor")) as repo:
        ages = {name: age for age, name in world.names.items()}
        heads = [read_head(repo.store, repo.keys, entry.name, entry.size) for entry in repo.store.list("p/")]
        mine = [one.snapshot for one in select(repo, []) if one.volume_name == "v"]
        needed = {ages[one.name]: _needed(repo, heads, one) for one in mine}
        for age in AGES:
            others = [needed[other] for other in DAYS if other != age]
            own = set.intersection(*needed.values()) if age == "shared" else needed[age].difference(*others)
            _note_blobs(spots, [head for head in heads if head.domain_id == mine[0].added.domain_id], age, own)
            _note_commit(spots, repo, world, age)
        spots.segments = [head.name for head in heads if head.domain_id == CATALOGUE]
    names = world.objects()
    spots.indexes = [name for name in names if name.startswith("i/")]
    spots.slot = next(name for name, content in names.items() if name.startswith("keys/") and content[8] == 3)
    return spots


def _needed(repo: Repository, heads: list[PackHead], snapshot: Snapshot) -> set[Id]:
    """Everything that a snapshot needs."""
    added = snapshot.added
    places = {(blob.kind, blob.id): (head, blob) for head in heads for blob in head.blobs}
    shape = node.Shape(added.volume_id, added.size, added.chunk_log2)
    found: set[Id] = {(Kind.DOCUMENT, part) for document in added.documents for part in document.parts}

    def walk(id_: bytes, level: int, first: int) -> None:
        kind = Kind.INNER if level else Kind.LEAF
        found.add((kind, id_))
        head, blob = places[kind, ChunkId(id_)]
        sealed = repo.store.get(head.name, blob.offset, blob.sealed_length)
        content = open_blob(repo.keys.domain(added.domain_id), head.header, blob, sealed, head.name)
        children = node.decode(content, shape, level, first).slots
        for position, child in enumerate(children):
            if isinstance(child, bytes) and level:
                walk(child, level - 1, first + position * node.FAN_OUT**level)
            elif isinstance(child, bytes):
                found.add((Kind.CHUNK, child))

    walk(added.root, shape.depth - 1, 0)
    return found


def _note_blobs(spots: Spots, heads: list[PackHead], age: str, own: set[Id]) -> None:
    for head in heads:
        for blob in head.blobs:
            if (blob.kind, blob.id) in own:
                spots.blobs[blob.kind, age] = head.name, blob.offset
                spots.packs[age] = head.name


def _note_commit(spots: Spots, repo: Repository, world: World, age: str) -> None:
    """The commit that added the snapshots of an age; for `shared` the one before, which named the volumes."""
    shown = {one.snapshot.name: one.snapshot.ref for one in select(repo, [])}
    ref = shown[world.names["oldest" if age == "shared" else age]]
    seq = 2 if age == "shared" else ref.seq
    name = next(entry.name for entry in repo.store.list(f"w/{ref.writer.hex()}/") if f"/{seq:016x}-" in entry.name)
    content = repo.store.get(name)
    directory = int.from_bytes(content[12:16], "little")
    spots.commits[age] = name, (HEADER_SIZE + directory + 15) // 16 * 16
