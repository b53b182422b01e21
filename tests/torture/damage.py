"""What may happen to the objects of a repository behind everybody's back, and how it is put right again."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from lamella.base.errors import LamellaError
from lamella.crypto.derive import Keys
from lamella.format.container import Kind
from lamella.packs.containers import PackHead
from lamella.packs.heads import read_head
from lamella.stores.local.store import LocalStore
from tests.torture.world import World

Row = TypeVar("Row")
Edit = Callable[[bytes, random.Random], bytes | None]
"""What becomes of an object's bytes; None: it is gone."""

DATA = ("chunk", "document")
NODES = ("leaf", "inner")
"""Nobody sees rot in data that nobody has read; nodes are read by every prune that keeps them."""
_BLOBS = {
    "chunk": Kind.CHUNK,
    "document": Kind.DOCUMENT,
    "leaf": Kind.LEAF,
    "inner": Kind.INNER,
    "segment": Kind.SEGMENT,
}


def _flip(low: int, high: int | None = None) -> Edit:
    def edit(content: bytes, chance: random.Random) -> bytes:
        if not content:
            return content
        changed = bytearray(content)
        end = len(content) if high is None else min(high, len(content))
        changed[chance.randrange(min(low, end - 1), end)] ^= 1 << chance.randrange(8)
        return bytes(changed)

    return edit


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.choice([len(content) - 1, len(content) // 2, 0])] if content else content


def _grown(content: bytes, chance: random.Random) -> bytes:
    return content + chance.randbytes(chance.choice([1, 16, 300]))


def _zeroed(content: bytes, chance: random.Random) -> bytes:
    return bytes(len(content))


def _gone(content: bytes, chance: random.Random) -> None:
    return None


PACKS: dict[str, Edit] = {"cut": _cut, "grown": _grown, "gone": _gone, "zeroed": _zeroed, "head": _flip(0, 200)}
COMMITS: dict[str, Edit] = {
    "flipped": _flip(0),
    "trailer": _flip(1 << 30),
    "cut": _cut,
    "grown": _grown,
    "gone": _gone,
    "zeroed": _zeroed,
}
FILES = ("restore.py", "readme.txt", "i/")
LOCKS = ("lamella", "keys/")
"""What is needed to open anything: put back before anything else happens."""


@dataclass(frozen=True)
class Done:
    """What was damaged."""

    what: str
    names: tuple[str, ...]
    seen: bool
    """A prune sees it in what it keeps, without anybody having read all data; a known head is not read again."""
    proves: bool = False
    """A commit of which enough is left to tell that it was one."""


@dataclass
class Damages:
    """All damage that was done to one repository."""

    world: World
    keys: Keys
    originals: dict[str, bytes | None] = field(default_factory=dict)
    """The bytes of what is damaged; None: the object should not be there at all."""
    done: int = 0

    # -- choosing ------------------------------------------------------------------------------------------------------

    def names(self, below: str) -> list[str]:
        """Objects, the newest last; the names of those of one moment are drawn and not ordered by themselves."""
        found = self.world.objects()
        chosen = [(status[1], status[0], name) for name, status in found.items() if name.startswith(below)]
        return [name for _, _, name in sorted(chosen)]

    def inflict(self, kind: str, chance: random.Random) -> Done | None:
        """Damage something: `blob:KIND`, `pack:WAY`, `commit:WAY`, `file:`, `junk:KIND`...; None: there is none."""
        word, _, way = kind.partition(":")
        done = getattr(self, f"_{word}")(way, chance)
        assert done is None or isinstance(done, Done)
        self.done += done is not None
        return done

    def _blob(self, way: str, chance: random.Random) -> Done | None:
        head = self._pack_with(_BLOBS[way], chance)
        if head is None:
            return None
        blob = _newest([blob for blob in head.blobs if blob.kind == _BLOBS[way]], chance)
        self.edit(head.name, _flip(blob.offset, blob.offset + blob.sealed_length), chance)
        return Done(f"{way} in {head.name}", (head.name,), way in NODES)

    def _pack_with(self, kind: Kind, chance: random.Random) -> PackHead | None:
        heads = [head for head in map(self._head, self.names("p/")) if head is not None]
        some = [head for head in heads if any(blob.kind == kind for blob in head.blobs)]
        return _newest(some, chance) if some else None

    def _head(self, name: str) -> PackHead | None:
        store = LocalStore.open(self.world.repo)
        try:
            return read_head(store, self.keys, name, store.stat(name))
        except LamellaError:
            return None
        finally:
            store.close()

    def _pack(self, way: str, chance: random.Random) -> Done | None:
        names = self.names("p/")
        return (
            self._one(names, PACKS[way], chance, f"pack {way}", seen=way not in {"head", "zeroed"}) if names else None
        )

    def _commit(self, way: str, chance: random.Random) -> Done | None:
        before = set(self.originals)
        done = self._one(self.names("w/"), COMMITS[way], chance, f"commit {way}", seen=True)
        path = self.world.repo / done.names[0]
        left = path.stat().st_size if path.exists() and way != "zeroed" else 0
        return replace(done, proves=left > 0 and not before.intersection(done.names))

    def _file(self, way: str, chance: random.Random) -> Done | None:
        names = [name for below in FILES for name in self.names(below)]
        return self._one(names, chance.choice([_flip(0), _gone, _cut]), chance, "file", seen=True) if names else None

    def _lock(self, way: str, chance: random.Random) -> Done | None:
        names = [name for below in LOCKS for name in self.names(below)]
        return self._one(names, chance.choice([_flip(0), _gone, _cut]), chance, "lock", seen=True)

    def _one(self, names: list[str], edit: Edit, chance: random.Random, what: str, *, seen: bool) -> Done:
        name = _newest(names, chance)
        self.edit(name, edit, chance)
        return Done(f"{what}: {name}", (name,), seen)

    def _swap(self, way: str, chance: random.Random) -> Done | None:
        names = self.names(way + "/")
        if len(names) < 2:
            return None
        one, other = chance.sample(names, 2)
        first, second = (self.world.repo.joinpath(name).read_bytes() for name in (one, other))
        self.edit(one, lambda content, chance: second, chance)
        self.edit(other, lambda content, chance: first, chance)
        return Done(f"swapped: {one} {other}", (one, other), False)

    def _junk(self, way: str, chance: random.Random) -> Done | None:
        """Objects of nobody, under names that could be right."""
        content = chance.randbytes(chance.choice([0, 64, 500]))
        if way == "pack-copy":
            names = self.names("p/")
            content = self.world.repo.joinpath(names[0]).read_bytes()[:-1] if names else content
        name = _junk_name(way, content, chance)
        path = self.world.repo / name
        if path.exists():
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.originals.setdefault(name, None)
        return Done(f"junk: {name}", (name,), True)

    def edit(self, name: str, edit: Edit, chance: random.Random) -> None:
        """Change one object behind everybody's back."""
        path = self.world.repo / name
        before = path.read_bytes()
        self.originals.setdefault(name, before)
        changed = edit(before, chance)
        path.chmod(0o600)
        path.unlink()
        if changed is not None:
            path.write_bytes(changed)

    # -- putting right -------------------------------------------------------------------------------------------------

    def heal(self, names: tuple[str, ...] | None = None) -> None:
        """The right bytes of these objects are back (all: None); junk is swept away."""
        for name in list(self.originals) if names is None else names:
            content = self.originals.pop(name)
            path = self.world.repo / name
            path.unlink(missing_ok=True)
            if content is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)


def _junk_name(way: str, content: bytes, chance: random.Random) -> str:
    digest = hashlib.sha256(content).hexdigest()
    drawn = chance.randbytes(16).hex()
    return {
        "pack": f"p/{digest[:2]}/{digest}",
        "pack-copy": f"p/{digest[:2]}/{digest}",
        "commit": f"w/{drawn}/{chance.randrange(1, 9):016x}-{digest}",
        "index": f"i/{digest}",
        "slot": f"keys/{drawn[:8]}",
        "top": f"{drawn[:8]}.txt",
    }[way]


def _newest(rows: list[Row], chance: random.Random) -> Row:
    """Any of these; what is newest more often: nothing else repeats it yet."""
    return rows[-1] if chance.random() < 0.4 else chance.choice(rows[-3:] if chance.random() < 0.5 else rows)
