"""Every command after every damage on every host, and what is right then: written down from decision 0036."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cli.program import Done
from tests.fault.rot import DAY_MS, DAYS, HOSTS, Wanted, World, same
from tests.fault.rot_damage import (
    COMMITS,
    DATA,
    FILES,
    LOCKS,
    NODES,
    PACKS,
    Damage,
    Spots,
    damages,
    inflict,
    survey,
)

NEWEST_FIRST = tuple(sorted(DAYS, key=DAYS.__getitem__))
Words = Sequence[str | Path]
Rules = Callable[[Sequence[str]], Sequence[str]]


# -- the cells ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Cell:
    """One damage, met on one host by one command."""

    damage: Damage
    host: str
    known: bool
    """Whether `verify --level full` found it before, on the host `other`."""
    command: str

    def __str__(self) -> str:
        known = "known" if self.known else "unread"
        return f"{self.damage.kind} of {self.damage.age}, {known}: {self.command} on {self.host}"

    @property
    def visible(self) -> frozenset[str]:
        """The ages of `v` that a prune can tell are not whole: nobody sees rot in what nobody has read.

        A host that opened a pack's head once reads it again only where a blob cannot be had.
        """
        return frozenset() if self.unread else self.damage.snapshots

    @property
    def unread(self) -> bool:
        """Whether no metadata tells of this rot: the newest may be kept in favour of a whole one (TRUST R3, later)."""
        opened_before = self.damage.kind == "pack-head" and self.host in {"maker", "other"}
        return not self.known and (self.damage.kind in DATA or opened_before)

    @property
    def history_missing(self) -> bool:
        """Proven by the object itself, or witnessed: by this host's pins, by the next commit, by others' `seen`.

        The newest commit is witnessed by no commit; a stranger cannot know that it is gone, or that zeros were one.
        """
        if self.damage.kind not in COMMITS:
            return False
        proven = self.damage.kind not in {"zeroed", "gone"}
        return proven or self.host in {"maker", "other"} or self.damage.age != "newest"

    @property
    def from_cache(self) -> bool:
        """Whether the host may go on with the commit as it read it when it was sound: only who judges reads it again.

        It then shows and restores what is right. That an object is gone shows in the listing.
        """
        warm = self.host in {"maker", "other"} and self.damage.kind in COMMITS and self.damage.kind != "gone"
        return warm and not self.command.startswith(("check", "repair", "verify", "doctor", "prune", "delete"))

    @property
    def listed(self) -> tuple[str, ...]:
        """The ages that can still be named, newest first."""
        lost = {self.damage.age} if self.damage.kind in COMMITS else set()
        return tuple(age for age in NEWEST_FIRST if age not in lost)

    @property
    def asked(self) -> str:
        """The age that a restore or a delete names."""
        return self.command.partition("-")[2].replace("latest", "newest")


def _within(rows: Sequence[str]) -> Sequence[str]:
    return [age for age in rows if DAYS[age] - DAYS[rows[0]] <= 30]


def _thin(rows: Sequence[str]) -> Sequence[str]:
    """Up to 10 days before the newest all, of the older ones the newest: they are of one year."""
    older = [age for age in rows if DAYS[age] - DAYS[rows[0]] > 10]
    return [*(age for age in rows if age not in older), *older[:1]]


PRUNES: Mapping[str, tuple[Words, Rules]] = {
    "prune-last": (["--keep-last", "1"], lambda rows: rows[:1]),
    "prune-within": (["--keep-within", "30d"], _within),
    "prune-thin": (["--thin-older", "10d:year"], _thin),
}
_RESTORES = ("latest", *DAYS)


def kept(rules: Rules, rows: Sequence[str], broken: frozenset[str] = frozenset()) -> set[str]:
    """What stays of a volume: by the rules over all as if healthy, and over the whole ones; all where none is."""
    whole = [age for age in rows if age not in broken]
    return {*rules(rows), *rules(whole)} if whole else set(rows)


def _words(world: World, cell: Cell) -> Words:
    """Commands that name snapshots or places."""
    word = cell.command
    if word.startswith("restore-"):
        return ["restore", "v" if word == "restore-latest" else world.at("v", cell.asked), "--to", world.place / "out"]
    if word == "delete-last-whole":
        return ["delete", *(world.at("v", age) for age in NEWEST_FIRST if age not in cell.visible), "-y"]
    if word.startswith("delete-"):
        return ["delete", world.at("v", cell.asked), "-y"]
    if word.startswith("backup-"):
        return world.backup_words()
    if word == "copy":
        return ["copy", "--to", world.second, "--to-keyfile", world.key]
    if word == "mirror":
        return ["mirror", "--to", world.place / "live" / "mirror"]
    return ["diff", world.at("v", "oldest"), world.at("v", "newest")]


COMMANDS: Mapping[str, Words | None] = {
    "list": ["list"],
    "info": ["info", "v"],
    "diff": None,
    "verify-structure": ["verify", "--level", "structure"],
    "verify-sample": ["verify", "--level", "sample"],
    "verify-full": ["verify", "--level", "full"],
    "check": ["check"],
    "repair-dry": ["repair", "-n"],
    "repair": ["repair", "-y"],
    "doctor": ["doctor"],
    "tag": ["tag", "w@latest", "kept"],
    "rename": ["rename", "v", "renamed"],
    "backup-same": None,
    "backup-changed": None,
    "backup-gone": None,
    "copy": None,
    "mirror": None,
    "prune-dry": ["prune", "--keep-last", "1", "-n"],
    **{name: ["prune", *words] for name, (words, _) in PRUNES.items()},
    "delete-newest": None,
    "delete-oldest": None,
    "delete-last-whole": None,
    "config": ["config", "show"],
    "key": ["key", "list"],
    **dict.fromkeys(f"restore-{which}" for which in _RESTORES),
}
"""The words of each; None: they name snapshots or places."""
READERS = ("list", *(f"restore-{which}" for which in _RESTORES))
"""What restore.py does, as the host `restore.py`."""


def cells() -> Iterator[Cell]:
    """All there are."""
    for damage in damages():
        for known in (False, True):
            yield from (Cell(damage, host, known, command) for host in HOSTS for command in COMMANDS)
            yield from (Cell(damage, "restore.py", known, command) for command in READERS)


# -- what is right -----------------------------------------------------------------------------------------------------

DONE, USAGE, INCOMPLETE, NOT_THERE, DAMAGED, HISTORY = 0, 2, 3, 4, 20, 21
NOTHING_OPENS = {1, NOT_THERE, 10, 12, DAMAGED}


def codes(cell: Cell) -> set[int]:
    """The exit codes that are right."""
    if cell.command == "config":
        return {DONE}
    if cell.damage.kind in LOCKS:
        return {DONE, *NOTHING_OPENS} if cell.command == "mirror" else NOTHING_OPENS
    if cell.damage.kind in COMMITS:
        return _of_history(cell)
    deletes = cell.command in PRUNES or cell.command.startswith("delete-")
    right = _of_deletion(cell) if deletes else _of_reading(cell)
    # The hints and the texts for people are mended or reported; the log may be read without its segments, or not.
    more = {"index": {DAMAGED}, "segment": {NOT_THERE, DAMAGED, HISTORY}, **{name: {DAMAGED} for name in FILES}}
    return right | more.get(cell.damage.kind, set())


def _of_history(cell: Cell) -> set[int]:
    """Missing history is 21 from every command that opens the repository."""
    named = cell.damage.age == "shared" or cell.asked == cell.damage.age
    named = named or cell.command == "diff" or cell.command == "delete-last-whole"
    if not cell.history_missing:  # a stranger sees two snapshots; what was the third is no commit of anybody
        return {DONE, USAGE, INCOMPLETE, NOT_THERE, DAMAGED}
    if cell.command in {"repair", "repair-dry", "mirror"}:
        return {DONE, DAMAGED, HISTORY}
    if cell.from_cache:
        return {DONE, NOT_THERE, HISTORY}
    return {HISTORY, NOT_THERE} if named or cell.command == "backup-gone" else {HISTORY}


def _of_deletion(cell: Cell) -> set[int]:
    """A kept snapshot that is not whole is 20; in a repository as small as this a lost pack is more than 1 %: 21."""
    if cell.command == "delete-last-whole":
        return {USAGE} if len(cell.visible) < len(DAYS) else {DONE, USAGE, DAMAGED, HISTORY}
    if cell.command in PRUNES:
        left = kept(PRUNES[cell.command][1], NEWEST_FIRST, cell.visible)
    else:
        left = set(NEWEST_FIRST) - {cell.asked}
    if not left & cell.visible:
        # Whether a host has opened a head before depends on what it did before.
        return {DONE, HISTORY} if cell.unread and cell.damage.kind == "pack-head" else {DONE}
    refused = {USAGE} if len(cell.visible) == len(DAYS) and cell.command not in PRUNES else set()
    # What a host that opened the head before cannot read any more is bad; to others it is gone.
    bad = {DAMAGED} if cell.damage.kind not in PACKS or cell.damage.kind == "pack-head" else set()
    return refused | bad | ({HISTORY} if cell.damage.kind in PACKS else set())


def _of_reading(cell: Cell) -> set[int]:
    kind, broken, word = cell.damage.kind, cell.damage.snapshots, cell.command
    if word.startswith("restore-"):
        # The emergency reader uses what is whole in a bad pack, and others a head that they opened before.
        had = {DONE} if kind in PACKS and cell.host != "fresh" else set()
        return {DAMAGED, *had} if cell.asked in broken and kind != "document" else {DONE}
    if word.startswith("verify-"):
        return {DAMAGED} if kind in _read_by(cell) else {DONE, DAMAGED}
    copied = {INCOMPLETE, DAMAGED} if broken else {DONE}
    copied |= {DONE} if kind == "pack-head" and cell.host != "fresh" else set()
    fixed = {"backup-gone": {NOT_THERE}, "copy": copied, "doctor": {DONE, 1, DAMAGED}}
    fixed["prune-dry"] = {DONE, DAMAGED, HISTORY}
    plain = {DONE} if word in {"tag", "rename", "list", "key"} else {DONE, DAMAGED}
    return fixed.get(word, plain)


def _read_by(cell: Cell) -> set[str]:
    """In which kinds of things a verification must see rot."""
    if cell.command == "verify-full":
        return {*DATA, *NODES, *PACKS, *FILES, "segment"}
    listed = set(PACKS) - {"pack-head"}
    if cell.command == "verify-structure" and cell.host != "fresh":
        return listed  # it compares what it read before with the listing
    return {*NODES, *PACKS, *(DATA if cell.known and cell.command == "verify-sample" else ())}


def may_go(cell: Cell, volume: str) -> set[str]:
    """The ages of a volume whose removal the command was asked for."""
    if volume == "x" or cell.history_missing:
        return set()
    if cell.command in PRUNES:
        broken = cell.visible if volume == "v" else frozenset()
        return set(NEWEST_FIRST) - kept(PRUNES[cell.command][1], cell.listed, broken)
    return {cell.asked} & set(DAYS) if volume == "v" and cell.command.startswith("delete-") else set()


# -- one cell ----------------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """A repository that is broken again and again."""

    world: World
    spots: Spots

    @classmethod
    def build(cls, place: Path, patches: Mapping[str, object]) -> Bench:
        """Make the repository and see where its parts lie."""
        world = World(place, patches).build()
        return cls(world, survey(world))

    def examined(self, wanted: Sequence[Cell]) -> list[str]:
        """What is wrong in these cells."""
        complaints: list[str] = []
        for damage, known in sorted({(cell.damage, cell.known) for cell in wanted}):
            before = self._prepare(damage, known)
            for cell in wanted:
                if (cell.damage, cell.known) == (damage, known):
                    complaints += (f"{cell}: {text}" for text in self._examine(cell, before))
        return complaints

    def _prepare(self, damage: Damage, known: bool) -> dict[Wanted, bool]:
        """Damage the repository, and keep that state. Returns what is whole after that."""
        self.world.reset()
        inflict(self.world, self.spots, damage)
        if known:
            self.world.run("other", "verify", "--level", "full")
        self.world.keep("damaged")
        self._unlock(damage)
        whole = self.world.whole()
        if damage.kind in (*DATA, *NODES, "pack-emptied", "pack-missing"):
            found = {wanted.age for wanted in whole if wanted.volume == "v" and not whole[wanted]}
            assert found == damage.snapshots, f"{damage} breaks {found}"
        return whole

    def _unlock(self, damage: Damage) -> None:
        """What keeps everybody out is put right, so that the oracle can be asked what lies behind."""
        if damage.kind in LOCKS:
            for name in self.spots.places(damage)[0]:
                shutil.copyfile(self.world.place / "base" / "repository" / name, self.world.repo / name)

    def _examine(self, cell: Cell, before: Mapping[Wanted, bool]) -> Iterator[str]:
        """Run the command in the damaged state, and say what is wrong with what it did."""
        self.world.reset("damaged")
        objects = self.world.objects()
        done = self._run(cell)
        if done.code not in codes(cell):
            said = " ".join((done.err or done.out).split())[-300:]
            yield f"exit {done.code}, not {sorted(codes(cell))}: {said}"
        yield from self._said_wrong(cell, done, before)
        if self.world.objects() == objects and not self.world.called:
            return  # nothing was written, so nothing is less restorable
        if cell.history_missing and cell.command != "repair" and not cell.from_cache:
            yield "it wrote, although history is missing"
        self._unlock(cell.damage)
        yield from _losses(cell, before, self.world.whole())

    def _run(self, cell: Cell) -> Done:
        world = self.world
        (world.place / "out").unlink(missing_ok=True)
        if cell.command.startswith("backup-"):
            world.sources("changed" if cell.command == "backup-changed" else "newest")
        if cell.command == "backup-gone":
            for image in (world.place / "src").glob("*.img"):
                image.unlink()
        words = COMMANDS[cell.command] or _words(world, cell)
        if cell.host == "restore.py":
            return world.rescue(*words)
        # A millisecond later: one in a thousand snapshots of the same one would have the same name.
        before, world.days_ago = world.days_ago, world.days_ago - 1.5 / DAY_MS
        done = world.run(cell.host, *words)
        world.days_ago = before
        if cell.command == "rename" and done.code == DONE:
            world.called["v"] = "renamed"
        return done

    def _said_wrong(self, cell: Cell, done: Done, before: Mapping[Wanted, bool]) -> Iterator[str]:
        """Whether what a restore wrote, or a copy called complete, is right."""
        if cell.command == "copy" and done.code == DONE:
            copied = self.world.whole(self.world.second)
            there = (one for one in before if one.volume == "x" or one.age in cell.listed)
            yield from (f"exit 0, but {one} is not in the copy" for one in there if not copied[one])
        if not cell.command.startswith("restore-"):
            return
        out, wanted = self.world.place / "out", Wanted("v", cell.asked)
        right = same(out, self.world.truth[wanted])
        stranger = cell.damage.kind in COMMITS and not cell.history_missing and cell.command == "restore-latest"
        if out.exists() and not right and not stranger:
            yield f"wrong bytes, exit {done.code}"
        # What is whole in a pack of a wrong length is for the emergency reader alone.
        must = before[wanted] and cell.command != "restore-latest" and cell.damage.kind not in (*LOCKS, *PACKS)
        if must and not right:
            yield f"named in full and whole, but not restored: {done.err[-300:]}"


def _losses(cell: Cell, before: Mapping[Wanted, bool], after: Mapping[Wanted, bool]) -> Iterator[str]:
    """What was whole, should have stayed, and is not whole any more."""
    for wanted, whole in before.items():
        if whole and not after[wanted] and wanted.age not in may_go(cell, wanted.volume):
            yield f"{wanted} was whole and is LOST"
    if cell.unread:
        return
    for volume in ("v", "w", "x"):
        if _any_whole(before, volume) and not _any_whole(after, volume):
            yield f"no snapshot of {volume} is left"


def _any_whole(found: Mapping[Wanted, bool], volume: str) -> bool:
    """Whether a snapshot of a volume is whole, documents included."""
    ages = {wanted.age for wanted in found if wanted.volume == volume}
    broken = {wanted.age for wanted, ok in found.items() if wanted.volume == volume and not ok}
    return ages != broken
