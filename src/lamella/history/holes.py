"""Objects under commits' names that do not open, and gaps in chains (FORMAT 8, "What cannot be read")."""

from __future__ import annotations

from collections.abc import Iterator

from lamella.format.commit import Head
from lamella.history.history import Chain, Gap, Unreadable
from lamella.history.missing import Judge
from lamella.memory.pins import Problem


def judged(judge: Judge) -> Iterator[Problem]:
    """Problems for commits that cannot be read or are not there. Fills `damaged`, `notes` and `unexplained`."""
    yield from _unreadable(judge)
    for chain in judge.counting():
        for gap in chain.gaps:
            yield from _gap(judge, chain, gap)


def _unreadable(judge: Judge) -> Iterator[Problem]:
    history = judge.history
    witnessed = _witnessed(judge)
    for one in {row.head: row for row in history.unreadable}.values():
        if judge.is_excused(one.head):
            history.notes.append(f"{one.head.name} cannot be read, and is given up: {one.reason}")
        elif one.head in witnessed or _is_proven(judge, one):
            judge.knows(one.head.writer, one.head.seq)
            history.damaged.append((one.head.name, one.reason))
            name, writer = one.head.name, one.head.writer.hex()
            text = f"commit {one.head.seq} of writer {writer[:8]} cannot be read: {name}: {one.reason}"
            yield Problem(f"unreadable:{writer}:{one.head.seq}:{one.head.sha256.hex()}", text, one.head)
        else:
            history.unexplained.append(one.head.name)
            history.notes.append(f"{one.head.name} is no commit, and nothing shows that it was: {one.reason}")


def _is_proven(judge: Judge, one: Unreadable) -> bool:
    """Whether a commit was made. Only the store itself can withhold bytes: a withheld object counts as one."""
    if one.evidence is None:
        return one.withheld
    if not judge.history.counts(one.head.writer):
        return False
    intact = [commit.head for commit in judge.commits(one.head.writer) if commit.head.seq == one.head.seq]
    return not judge.speaks_of(one.evidence, intact)


def _witnessed(judge: Judge) -> set[Head]:
    found = {Head(writer, *pinned) for writer, pinned in judge.pins.heads.items()}
    found |= {head for heads in judge.history.audits.values() for head in heads}
    found |= {*judge.left()}
    for chain in judge.counting():
        for commit in chain.commits:
            found |= set(commit.body.seen)
            found.add(Head(chain.writer, commit.head.seq - 1, commit.body.prev))
            earlier = () if commit.checkpoint is None else commit.checkpoint.earlier
            found |= {Head(chain.writer, *place) for place in (commit.body.checkpoint, *earlier)}
    return found


def _gap(judge: Judge, chain: Chain, gap: Gap) -> Iterator[Problem]:
    left = [head for head in judge.left() if head.writer == chain.writer and gap.first <= head.seq <= gap.last]
    lacking = [head for head in (*gap.named, *left) if not judge.is_excused(head)]
    given_up = any(row.head.seq == gap.last for row in judge.history.forgone.get(chain.writer, ()))
    if not lacking and (gap.named or given_up):
        return
    one = gap.first == gap.last
    where = f"{gap.last}" if one else f"{gap.first}-{gap.last}"
    word = f"commit {gap.last} is missing or damaged" if one else f"commits {gap.first} to {gap.last} are missing"
    writer = chain.writer.hex()
    text = f"writer {writer[:8]}: {word}"
    yield Problem(f"missing:{writer}:{where}", text, lacking[0] if lacking else None)
