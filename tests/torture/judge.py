"""What is right after a command: said from what was saved, what was damaged and what was asked, and from the oracle.

Nothing here knows how Lamella decides. Rules of retention are written down again, as the guide says them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.cli.program import Done
from tests.torture.oracle import Key, Saved, View
from tests.torture.world import CODES, DAY_MS, HOUR_MS, KILLED

JUDGING = frozenset({"check", "doctor", "verify", "prune", "delete"})
"""Commands that read the whole history anew: from a cache nobody judges."""


@dataclass
class Known:
    """What this process knows of the snapshots of a repository."""

    saved: dict[Key, Saved] = field(default_factory=dict)
    gone: set[Key] = field(default_factory=set)
    """Those whose removal somebody asked for."""
    back: set[Key] = field(default_factory=set)
    """Removed ones that stand again only because the commit that removed them is damaged: they may go again."""
    given_up: set[Key] = field(default_factory=set)
    """Those of history that somebody gave up."""
    seen: dict[str, set[Key]] = field(default_factory=dict)
    """By host: those that it knows to have been there."""
    proven: set[Key] = field(default_factory=set)
    """Those whose commit does not open, and proves nevertheless that it was one: even a stranger can tell."""
    flagged: set[Key] = field(default_factory=set)
    """Not whole, and a prune can tell."""
    unread: bool = False
    """Something rotted that nobody has read since."""
    passed: dict[str, dict[str, Key]] = field(default_factory=dict)
    """By host and volume: the newest snapshot that passed a full verification there. It stays until a newer one has."""
    pinned: set[Key] = field(default_factory=set)
    marred: bool = False
    """Damage may go beyond what the bytes that were put back can mend: something was repaired or given up."""
    broke: set[Key] = field(default_factory=set)
    """What damage took, since all was put right."""

    def hidden(self, view: View) -> set[Key]:
        """Snapshots that should stand and do not."""
        return self.saved.keys() - view.times.keys() - self.gone - self.given_up

    def rows(self, view: View, volume_id: str) -> list[Key]:
        """The standing snapshots of a volume that were really saved, the newest last."""
        known = [key for key in view.times if key.volume_id == volume_id and key in self.saved]
        return sorted(known, key=lambda key: self.saved[key].number)

    def pass_all(self, view: View, host: str, now_ms: int, failed: Collection[tuple[str, str]]) -> None:
        """A full verification on this host has read everything, and could not restore the snapshots `failed` (volume,
        name): the emergency reader also finds packs under a wrong name.
        """
        for volume_id in self.volumes():
            rows = self.rows(view, volume_id)
            whole = [key for key in rows if key in view.whole and (self.saved[key].volume, key.name) not in failed]
            if whole and _orderly(rows, view, now_ms) and len({self.saved[key].writer for key in rows}) == 1:
                self.passed.setdefault(host, {})[volume_id] = whole[-1]
            else:  # another one may be the newest by now: which, a wrong clock does not tell
                self.passed.get(host, {}).pop(volume_id, None)

    def volumes(self) -> list[str]:
        """All volume ids."""
        return sorted({key.volume_id for key in self.saved})


# -- what must stay ----------------------------------------------------------------------------------------------------


def must_stay(known: Known, view: View, host: str, rule: str, now_ms: int) -> set[Key]:
    """What a prune by a rule keeps: the rule over all, as if each were whole, and over the whole ones; what passed."""
    kept = set(known.passed.get(host, {}).values())
    for volume_id in known.volumes():
        rows = known.rows(view, volume_id)
        whole = [key for key in rows if key not in known.flagged]
        if not whole:
            kept |= set(rows)
        elif _orderly(rows, view, now_ms):
            kept |= _kept(rows, rule, view) | _kept(whole, rule, view)
        else:  # which is the newest is in dispute; that one is the last saved is not
            kept.add(rows[-1])
        kept |= {key for key in rows if key in known.pinned}
    return kept


def _orderly(rows: Sequence[Key], view: View, now_ms: int) -> bool:
    """Whether no clock was wrong when these were saved, nor is now."""
    times = [view.times[key] for key in rows]
    return times == sorted(times) and times[-1] <= now_ms + HOUR_MS // 2


def _kept(rows: Sequence[Key], rule: str, view: View) -> set[Key]:
    word, _, value = rule.partition(" ")
    last = rows[-1]
    if word == "last":
        return set(rows[-int(value) :])
    if word == "within":
        first = view.times[last] - int(value[:-1]) * DAY_MS
        return {key for key in rows if view.times[key] >= first}
    return {last}


# -- what a command did ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deed:
    """One command and what was before and after it."""

    word: str
    host: str
    done: Done
    before: View
    after: View
    stay: frozenset[Key]
    """What it must leave as restorable as it was."""
    calm: bool = False
    """Nothing was ever damaged, and nobody lied about what there is: nothing may be reported."""


def complaints(deed: Deed, known: Known) -> Iterator[str]:
    """What is wrong with it."""
    yield from _manners(deed)
    yield from _losses(deed, known)
    if deed.done.code != KILLED:
        yield from _said(deed, known)


def _manners(deed: Deed) -> Iterator[str]:
    done = deed.done
    if done.code not in CODES and done.code != KILLED:
        yield f"exit {done.code} is in no table"
    if deed.calm and done.code in {20, 21}:
        yield f"a false alarm: {done.err[-400:]}"
    if "internal error" in done.err or "Traceback" in done.err:
        yield f"it fell over: {done.err[-400:]}"


def _losses(deed: Deed, known: Known) -> Iterator[str]:
    before, after = deed.before, deed.after
    if not before.opens:
        return
    if not after.opens:
        yield "nothing opens the repository any more"
        return
    for key in sorted(before.times.keys() & deed.stay):
        if key not in after.times:
            yield f"{_name(key, known)} was not to be removed, and is"
        elif key in before.whole and key not in after.whole:
            yield f"{_name(key, known)} was whole, and is not any more"
    for volume_id in known.volumes():
        had = [key for key in before.whole - known.back if key.volume_id == volume_id]
        if had and not any(key.volume_id == volume_id for key in after.whole):
            if deed.word == "delete-all" or _silent(known, before, volume_id):
                continue
            yield f"no whole snapshot of {_name(had[0], known)}'s volume is left"


def _silent(known: Known, view: View, volume_id: str) -> bool:
    """Whether a snapshot of the volume is broken and nobody can know: TRUST R3's exception."""
    rows = known.rows(view, volume_id)
    return any(key not in view.whole and key not in known.flagged for key in rows)


def _said(deed: Deed, known: Known) -> Iterator[str]:
    """What its exit code and its output claim, beside the oracle."""
    done, view = deed.done, deed.after
    if done.code != 0:
        return
    # What a prune has brought back was not missing: its removal was asked for.
    unseen = known.hidden(deed.before) & known.seen.get(deed.host, set()) - view.times.keys()
    if deed.word in JUDGING and (deed.before.missing or unseen):
        yield f"{deed.word} ends with 0, and history is missing"
    if deed.word == "give-up" and view.missing:
        yield "history is given up, and still missing"
    holes = view.times.keys() & known.saved.keys() - view.whole - view.lost
    if deed.word == "verify" and holes:
        yield f"verify at level full ends with 0 over {_names(holes, known)}"
    if deed.word == "repair" and holes and not known.unread:
        yield f"repair ends with 0 over {_names(holes, known)}"
    if deed.word in {"prune", "delete"} and holes & known.flagged:
        yield f"{deed.word} ends with 0 over {_names(holes & known.flagged, known)}"
    if deed.word == "list":
        yield from _listed(deed, known)


def _listed(deed: Deed, known: Known) -> Iterator[str]:
    rows = {
        Key(by_volume["id"], one["snapshot"])
        for document in [json.loads(deed.done.out)]
        for by_volume in document["volumes"]
        for one in document["snapshots"]
        if by_volume["volume"] in one["volumes"]
    }
    should = (deed.before.times.keys() | known.hidden(deed.before)) & known.seen.get(deed.host, set())
    absent = should & known.saved.keys() - rows
    if absent:
        yield f"list ends with 0 and does not show {_names(absent, known)}"


def latest(known: Known, view: View, host: str, volume: str) -> list[Saved]:
    """What may count as the newest snapshot of a volume of which this host can know.

    It is the last one that was saved; or, if a host that forgot who it was saved that one, the last by who came first.
    """
    witnessed = known.seen.get(host, set()) | (known.proven if view.missing else set())
    rows = (view.times.keys() | (known.hidden(view) & witnessed)) & known.saved.keys()
    some = sorted((known.saved[key] for key in rows if known.saved[key].volume == volume), key=lambda one: one.number)
    first = min((one for one in known.saved.values() if one.volume == volume), key=lambda one: one.number)
    owners = [one for one in some if one.writer == first.writer]
    # A host that has the commit in its cache goes on showing what was given up.
    given_up = [known.saved[key] for key in known.given_up if known.saved[key].volume == volume]
    return [*some[-1:], *owners[-1:], *given_up]


def _name(key: Key, known: Known) -> str:
    saved = known.saved.get(key)
    return f"{saved.volume}@{key.name} (number {saved.number})" if saved else f"{key.volume_id[:4]}@{key.name}"


def _names(keys: Iterable[Key], known: Known) -> str:
    return ", ".join(_name(key, known) for key in sorted(keys))
