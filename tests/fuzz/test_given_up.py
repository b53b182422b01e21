"""History of which parts are lost and given up, at random: both readers miss the same, and miss what was not given up.

LAMELLA_GIVEN_UP says how many histories there are (250).
"""

from __future__ import annotations

import os
import random
import shutil
import struct
from pathlib import Path

import pytest

from tests.fuzz.mutations import ALICE, BOB, DOMAIN, KEYFILE, VOLUME
from tests.fuzz.two_readers import by_lamella, by_rescue
from tests.unit import rescue_writer as rw

CASES = int(os.environ.get("LAMELLA_GIVEN_UP", "250"))
_FORGO = 0x16


class _Story:
    """Alice publishes, Bob sees some of that; commits get lost, and Bob gives some of them up."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.writer = rw.Writer()
        self.writer.slot(3, KEYFILE)
        self.alice, self.bob = rw.Chain(ALICE.key), rw.Chain(BOB.key)
        self.writer.commit(self.bob, rw.volume_record(VOLUME, DOMAIN, "disk"))
        self.shas = [bytes(32)]
        self.excused: set[int] = set()
        self.known: set[int] = set()
        """Numbers that somebody named."""

    def head(self, seq: int) -> bytes:
        return self.alice.writer + struct.pack("<Q", seq) + self.shas[seq]

    def path(self, seq: int) -> str:
        return f"w/{self.alice.writer.hex()}/{seq:016x}-{self.shas[seq].hex()}"

    def there(self) -> list[int]:
        return [seq for seq in range(1, len(self.shas)) if self.path(seq) in self.writer.objects]

    def publish(self) -> None:
        self.shas.append(self.writer.commit(self.alice, b""))

    def see(self) -> None:
        if len(self.shas) > 1:
            seq = self.chance.randrange(1, len(self.shas))
            self.writer.commit(self.bob, b"", [self.head(seq)])
            self.known.add(seq)

    def lose(self) -> None:
        """Any commit, or the one before a gap."""
        there = self.there()
        before = [seq for seq in there if seq + 1 not in there]
        if chosen := before if self.chance.random() < 0.5 else there:
            del self.writer.objects[self.path(self.chance.choice(chosen))]

    def give_up(self) -> None:
        """As the command does: a commit that is missing, and the newest one before it that is there."""
        gone = sorted({*range(1, len(self.shas))} - {*self.there()} - self.excused)
        if not gone:
            return
        seq = self.chance.choice(gone)
        left = max([one for one in self.there() if one < seq], default=0)
        said = self.head(seq) + struct.pack("<Q", left) + self.shas[left]
        self.writer.commit(self.bob, self.writer.prune_sign(self.bob, _FORGO, said))
        self.excused |= {*range(left + 1, seq + 1)}
        self.known |= {left} if left else set()

    def missed(self) -> bool:
        """Whether history is missing: what was named, or lies before a commit that is there, and was not given up."""
        there = self.there()
        last = max(there, default=0)
        gone = {*range(1, len(self.shas))} - {*there} - self.excused
        return any(seq < last or seq in self.known for seq in gone)


@pytest.mark.parametrize("start", range(0, CASES, 50))
def test_both_readers_miss_what_was_not_given_up(tmp_path: Path, start: int) -> None:
    outcomes = set()
    for seed in range(start, start + 50):
        story = _Story(seed)
        steps = [story.publish, story.publish, story.publish, story.see, story.lose, story.give_up]
        for _ in range(story.chance.randrange(4, 16)):
            story.chance.choice(steps)()
        views = []
        for reader in (by_lamella, by_rescue):
            for left in ("state", "cache", "repository"):
                shutil.rmtree(tmp_path / left, ignore_errors=True)
            view = reader(dict(story.writer.objects), tmp_path)
            assert not view.refused, seed
            views.append(view.missing)
        assert views == [story.missed()] * 2, (seed, views, story.missed())
        outcomes.add((story.missed(), bool(story.excused)))
    assert len(outcomes) == 4
