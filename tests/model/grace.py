"""Deletion on a store without a lock (FORMAT 8, grace mode), small enough to look at every interleaving.

There is one blob. Every pack holds a copy of it, every snapshot needs it; a state is bad when a snapshot stands and no
pack is left. Commits form one list in the order of their arrival; what a process knows is a set of places in it.
Time is a step that "many hours pass": it is longer than any listing lags, than W, and as long as G.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

ANNOUNCE = "announce"  # a run publishes SESSION before the listing it deduplicates by
SESSIONS_HOLD = "sessions hold"  # no deletion while a session is open that had not seen the CONDEMN
MARK_SESSIONS = "mark sessions"  # bases, partial roots and packs of open sessions are needed
ACKNOWLEDGE = "acknowledge"  # every active writer has seen the CONDEMN
COLLECTORS_ACKNOWLEDGE = "collectors acknowledge"  # collectors count as writers there
REREAD = "re-read"  # a fresh view is marked again before anything is deleted
GRACE = "grace"  # a condemned pack stays for G, which is longer than any listing lags
NO_REUSE = "no reuse"  # condemned packs are not used by new runs
EVERY_BATCH = "every batch"  # .. until every batch that condemned them rescued them
MERGE = "merge"  # what a run used is compared with new CONDEMNs before its commit acknowledges them
WINDOW = "window"  # publish within W of the last listing, else list again
SAME_BATCH = "same batch"  # a needed copy goes only in favour of a pack that the same batch wrote
SOUND_KEEPER = "sound keeper"  # .. and not in favour of a pack that somebody condemned
CLOSED_VIEW = "closed view"  # a view that lacks what somebody saw counts for nothing
ALL_BRANCHES = "all branches"  # all branches of a forked chain are marked
RULES = frozenset(
    {
        ANNOUNCE, SESSIONS_HOLD, MARK_SESSIONS, ACKNOWLEDGE, COLLECTORS_ACKNOWLEDGE, REREAD, GRACE, NO_REUSE,
        EVERY_BATCH, MERGE, WINDOW, SAME_BATCH, SOUND_KEEPER, CLOSED_VIEW, ALL_BRANCHES,
    }
)  # fmt: skip

OPEN, DONE, GONE, CONDEMNED, RESCUED, PLAIN = "SESSION", "ADD", "REMOVE", "CONDEMN", "RESCUE", "ACK"
BASE, OWN = -1, -2


class Commit(NamedTuple):
    """One commit: who, what, which session or batch it belongs to, which packs it names, what its writer had seen."""

    writer: str
    kind: str
    about: int = -1
    packs: int = 0
    seen: int = 0
    branch: int = 0


class Writer(NamedTuple):
    """A process that backs up. `phase`: 0 idle, 1 announced, 3 listed and used something, 4 looked again, 5 over."""

    phase: int = 0
    view: int = 0
    listed: int = 0
    """Packs it found, until it has used one."""
    used: int = 0
    fresh: bool = True
    pinned: bool = False


class Collector(NamedTuple):
    """A process that prunes. `phase`: 0 not begun, 1 marked, 2 condemned, 3 decided, 4 over."""

    phase: int = 0
    view: int = 0
    batch: int = -1
    target: int = 0
    copied: bool = False
    doomed: int = 0
    rounds: int = 0


class State(NamedTuple):
    """Everything."""

    log: tuple[Commit, ...]
    present: int
    old: int
    old_present: int
    hours: int
    writers: tuple[Writer, ...]
    collectors: tuple[Collector, ...]


class World(NamedTuple):
    """Who takes part, what may happen, and which rules are kept."""

    rules: frozenset[str] = RULES
    writers: tuple[str, ...] = ("a",)
    sessions: tuple[int, ...] = ()
    """The session each writer process runs; a copied machine runs the same one. Empty: each its own."""
    collectors: tuple[str, ...] = ("c",)
    first: tuple[Commit, ...] = ()
    packs: int = 1
    """Packs there are at the start."""
    base: bool = False
    """Runs share the old snapshot's tree without looking anything up."""
    stale: bool = False
    """Listings may lack what is younger than some hours."""
    lying_clocks: bool = False
    """A writer may not notice that hours passed."""
    expire: bool = False
    """Sessions older than some hours no longer hold anything, and silent writers are retired."""
    hidden: bool = False
    """The store may leave the first writer's chain out of a listing."""
    remove: bool = False
    """Collectors remove the old snapshot first."""
    rounds: int = 1
    """Batches a collector makes."""
    repack: bool = False
    """Needed packs may be copied and replaced, too."""
    pins: bool = False
    """Runs may write down in the middle what they rely on."""
    old_client: bool = False
    """Runs announce nothing and look only once; they stop where they see a record they do not know."""
    whims: bool = False
    """Collectors may rescue what they could delete."""
    hours: int = 1
    """How often many hours may pass."""

    def pack_of(self, number: int, *, collector: bool) -> int:
        """The bit of the pack that a process writes; a writer has three more."""
        return 1 << (self.packs + (4 * len(self.writers) + number if collector else 4 * number))

    def session(self, number: int) -> int:
        """The session of a writer process."""
        return self.sessions[number] if self.sessions else number


def initial(world: World) -> State:
    """Old packs, the first commits, nobody has begun."""
    packs = (1 << world.packs) - 1
    known = (1 << len(world.first)) - 1
    writers = tuple(Writer() for _ in world.writers)
    return State(
        world.first, packs, len(world.first), packs, 0, writers, tuple(Collector(view=known) for _ in world.collectors)
    )


def lost(state: State) -> bool:
    """A snapshot stands and the blob is in no pack."""
    return not state.present and needed(state.log, (1 << len(state.log)) - 1)


def bits(mask: int) -> Iterator[int]:
    """The places of the set bits."""
    place = 0
    while mask:
        if mask & 1:
            yield place
        mask >>= 1
        place += 1


def needed(log: tuple[Commit, ...], view: int, *, all_branches: bool = True) -> bool:
    """Whether a snapshot stands in this view."""
    gone = {log[place].about for place in bits(view) if log[place].kind == GONE}
    return any(
        log[place].kind == DONE and place not in gone and (all_branches or not log[place].branch)
        for place in bits(view)
    )


def open_sessions(log: tuple[Commit, ...], view: int) -> dict[int, int]:
    """For each session that is open in a view, the place of its last SESSION."""
    found: dict[int, int] = {}
    for place in bits(view):
        commit = log[place]
        if commit.kind == OPEN:
            found[commit.about] = place
        elif commit.kind == DONE:
            found.pop(commit.about, None)
    return found


def condemned(world: World, log: tuple[Commit, ...], view: int, pack: int) -> bool:
    """Whether the pack must not be relied on, as far as this view shows."""
    batches = {place for place in bits(view) if log[place].kind == CONDEMNED and log[place].packs & pack}
    rescued = {log[place].about for place in bits(view) if log[place].kind == RESCUED and log[place].packs & pack}
    if EVERY_BATCH in world.rules:
        return bool(batches - rescued)
    return bool(batches) and not batches & rescued


class Model:
    """The steps of a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rules = world.rules

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """Everything that may happen next."""
        yield from self._hours(state)
        for number in range(len(state.writers)):
            for label, after in self._writer(state, number):
                yield f"{label} (writer {number})", after
        for number in range(len(state.collectors)):
            for label, after in self._collector(state, number):
                yield f"{label} (collector {number})", after

    def _hours(self, state: State) -> Iterator[tuple[str, State]]:
        if state.hours >= self.world.hours:
            return
        later = state._replace(hours=state.hours + 1, old=len(state.log), old_present=state.present)
        tired = tuple(writer._replace(fresh=False) for writer in state.writers)
        yield "hours pass", later._replace(writers=tired)
        if self.world.lying_clocks:
            yield "hours pass unnoticed", later

    # -- looking -------------------------------------------------------------------------------------------------------

    def _views(self, state: State, known: int) -> Iterator[tuple[str, int, int]]:
        """(how, commits, packs) that a listing may show to somebody who knows `known`."""
        everything = (1 << len(state.log)) - 1
        yield "", everything, state.present
        if self.world.stale:
            yield " stale", ((1 << state.old) - 1) | known, state.old_present
        if self.world.hidden:
            first = state.log[0].writer
            yield " cut", sum(1 << at for at in bits(everything) if state.log[at].writer != first), state.present

    def _closed(self, state: State, view: int, known: int) -> bool:
        """Whether a view has everything that its commits, and its reader earlier, had seen."""
        for place in bits(view):
            known |= state.log[place].seen
        return CLOSED_VIEW not in self.rules or not known & ~view

    def _worth(self, state: State, view: int) -> int:
        """A view without what no writer acts upon: fewer states that differ in nothing."""
        first = len(self.world.first)
        kinds = (CONDEMNED, RESCUED, GONE)
        return sum(1 << at for at in bits(view) if at < first or state.log[at].kind in kinds)

    # -- backing up ----------------------------------------------------------------------------------------------------

    def _with_writer(self, state: State, number: int, writer: Writer, commit: Commit | None = None) -> State:
        writers = (*state.writers[:number], writer, *state.writers[number + 1 :])
        log = state.log if commit is None else (*state.log, commit)
        return state._replace(writers=writers, log=log)

    def _writer(self, state: State, number: int) -> Iterator[tuple[str, State]]:
        writer = state.writers[number]
        if writer.phase == 0:
            yield from self._begin(state, number, writer)
        elif writer.phase == 1:
            for how, view, packs in self._views(state, writer.view):
                # Looking up needs nothing but what was listed: one step with it.
                after = writer._replace(view=self._worth(state, view | writer.view), listed=packs, fresh=True)
                for label, used in self._use(state, number, after):
                    yield f"{label}{how}", used
        elif writer.phase in (3, 4):
            yield from self._finish(state, number, writer)

    def _begin(self, state: State, number: int, writer: Writer) -> Iterator[tuple[str, State]]:
        for how, listing, _ in self._views(state, writer.view):
            commit, view = None, self._worth(state, listing)
            if ANNOUNCE in self.rules and not self.world.old_client:
                commit = Commit(
                    self.world.writers[number], OPEN, self.world.session(number), 0, view, self._branch(state, number)
                )
            yield f"begin{how}", self._with_writer(state, number, writer._replace(phase=1, view=view), commit)

    def _branch(self, state: State, number: int) -> int:
        """A second process that runs the same session writes a branch of its own."""
        return int(bool(self.world.sessions) and self.world.sessions.index(self.world.sessions[number]) != number)

    def _use(self, state: State, number: int, writer: Writer) -> Iterator[tuple[str, State]]:
        if self.world.base and needed(state.log, writer.view & 1):
            removed = any(state.log[place].kind == GONE for place in bits(writer.view))
            if not removed:
                yield "share base", self._with_writer(state, number, writer._replace(phase=3, used=BASE, listed=0))
        if self.world.old_client and any(state.log[place].kind == CONDEMNED for place in bits(writer.view)):
            return
        for place in bits(writer.listed):
            bad = NO_REUSE in self.rules and condemned(self.world, state.log, writer.view, 1 << place)
            if not bad and not self.world.base:
                yield (
                    "reuse pack",
                    self._with_writer(state, number, writer._replace(phase=3, used=1 << place, listed=0)),
                )
        yield "store", self._store(state, number, writer._replace(phase=3, listed=0))

    def _store(self, state: State, number: int, writer: Writer) -> State:
        own = self.world.pack_of(number, collector=False)
        own = 2 * writer.used if writer.used in (own, 2 * own, 4 * own) else own  # stored again is another pack
        return self._with_writer(state._replace(present=state.present | own), number, writer._replace(used=own))

    def _finish(self, state: State, number: int, writer: Writer) -> Iterator[tuple[str, State]]:
        if writer.fresh or WINDOW not in self.rules or self.world.old_client:
            commit = Commit(
                self.world.writers[number], DONE, self.world.session(number), 0, writer.view,
                self._branch(state, number),
            )  # fmt: skip
            yield "publish", self._with_writer(state, number, writer._replace(phase=5), commit)
        if (writer.phase == 3 or not writer.fresh) and not self.world.old_client:
            yield from self._look_again(state, number, writer)
        if self.world.pins and writer.phase == 4 and not writer.pinned:
            packs = writer.used if writer.used > 0 else 0
            commit = Commit(self.world.writers[number], OPEN, self.world.session(number), packs, writer.view)
            yield "pin", self._with_writer(state, number, writer._replace(pinned=True), commit)

    def _look_again(self, state: State, number: int, writer: Writer) -> Iterator[tuple[str, State]]:
        for how, view, packs in self._views(state, writer.view):
            again = writer._replace(phase=4, view=self._worth(state, view | writer.view), fresh=True, listed=0)
            used = writer.used
            doubtful = used > 0 and (not packs & used or condemned(self.world, state.log, again.view, used))
            # A base that this run's session no longer holds is looked up like anything else.
            unheld = used == BASE and not packs
            if MERGE in self.rules and (doubtful or unheld):
                yield f"store again{how}", self._store(state, number, again)
            else:
                yield f"list again{how}", self._with_writer(state, number, again)

    # -- pruning -------------------------------------------------------------------------------------------------------

    def _with_collector(
        self, state: State, number: int, collector: Collector, *commits: Commit, present: int | None = None
    ) -> State:
        collectors = (*state.collectors[:number], collector, *state.collectors[number + 1 :])
        kept = state.present if present is None else present
        return state._replace(collectors=collectors, log=(*state.log, *commits), present=kept)

    def _collector(self, state: State, number: int) -> Iterator[tuple[str, State]]:
        collector = state.collectors[number]
        if collector.phase == 0:
            yield from self._condemn(state, number, collector)
        elif collector.phase == 1:
            yield self._published(state, number, collector)
        elif collector.phase == 2:
            yield from self._decide(state, number, collector)
            yield from self._acknowledge(state, number, collector)
        elif collector.phase == 3:
            more = collector.rounds + 1 < self.world.rounds
            after = Collector(0 if more else 4, collector.view, rounds=collector.rounds + 1)
            yield "delete", self._with_collector(state, number, after, present=state.present & ~collector.doomed)

    def _mark(self, state: State, view: int) -> tuple[bool, int]:
        """Whether the blob is needed, and the packs that open sessions hold."""
        need = needed(state.log, view, all_branches=ALL_BRANCHES in self.rules)
        held = 0
        if MARK_SESSIONS in self.rules:
            for place in open_sessions(state.log, view).values():
                if not (self.world.expire and place < state.old):
                    held |= state.log[place].packs
                    need = need or self.world.base
        return need, held

    def _condemn(self, state: State, number: int, collector: Collector) -> Iterator[tuple[str, State]]:
        for how, listing, packs in self._views(state, collector.view):
            # Only a cut listing forgets what was known; that is what a closed view is for.
            view = listing if how == " cut" else listing | collector.view
            if not self._closed(state, view, collector.view):
                continue
            seen = collector._replace(phase=1, view=view)
            if self.world.remove and not any(state.log[place].kind == GONE for place in bits(view)):
                gone = Commit(self.world.collectors[number], GONE, 0, 0, view)
                told = view | 1 << len(state.log)
                yield "remove", self._with_collector(state, number, collector._replace(view=told), gone)
                continue
            need, held = self._mark(state, view)
            if not need:
                target = packs & ~held
                if target:
                    yield f"mark{how}", self._with_collector(state, number, seen._replace(target=target))
            else:
                yield from self._repack(state, number, seen, packs)

    def _repack(self, state: State, number: int, seen: Collector, packs: int) -> Iterator[tuple[str, State]]:
        """A needed blob: its pack may go in favour of another."""
        if not self.world.repack:
            return
        own = self.world.pack_of(number, collector=True)
        for place in bits(packs & ~own):
            after = seen._replace(target=1 << place, copied=SAME_BATCH in self.rules)
            if SAME_BATCH in self.rules:
                yield "copy", self._with_collector(state, number, after, present=state.present | own)
            elif packs & ~(1 << place):
                yield "choose copy", self._with_collector(state, number, after)

    def _published(self, state: State, number: int, collector: Collector) -> tuple[str, State]:
        commit = Commit(self.world.collectors[number], CONDEMNED, -1, collector.target, collector.view)
        place = len(state.log)
        after = collector._replace(phase=2, batch=place, view=collector.view | 1 << place)
        return "condemn", self._with_collector(state, number, after, commit)

    def _decide(self, state: State, number: int, collector: Collector) -> Iterator[tuple[str, State]]:
        if GRACE in self.rules and collector.batch >= state.old:
            return
        views = list(self._views(state, collector.view))
        if REREAD not in self.rules:
            views = [("", collector.view, state.present)]
        for how, listing, packs in views:
            view = listing if how == " cut" else listing | collector.view
            if not self._closed(state, view, collector.view) or not self._all_know(state, number, view):
                continue
            doomed = self._doomed(state, number, view, packs)
            for chosen in {doomed, 0} if self.world.whims else {doomed}:
                yield f"decide{how}", self._decided(state, number, view, chosen)

    def _decided(self, state: State, number: int, view: int, doomed: int) -> State:
        collector = state.collectors[number]
        rescued = collector.target & ~doomed
        commits: tuple[Commit, ...] = ()
        if rescued:
            commits = (Commit(self.world.collectors[number], RESCUED, collector.batch, rescued, view),)
        after = collector._replace(phase=3, doomed=doomed, view=view | (bool(commits) << len(state.log)))
        return self._with_collector(state, number, after, *commits)

    def _doomed(self, state: State, number: int, view: int, packs: int) -> int:
        collector = state.collectors[number]
        need, held = self._mark(state, view)
        if not need:
            return collector.target & ~held
        if collector.copied:
            keepers = packs & self.world.pack_of(number, collector=True)
        else:
            keepers = packs & ~collector.target if SAME_BATCH not in self.rules else 0
        if SOUND_KEEPER in self.rules:
            keepers = sum(
                1 << place for place in bits(keepers) if not condemned(self.world, state.log, view, 1 << place)
            )
        return collector.target & ~held if keepers else 0

    def _all_know(self, state: State, number: int, view: int) -> bool:
        """Whether every active writer, and every open session, had seen the CONDEMN."""
        batch, own = state.collectors[number].batch, self.world.collectors[number]
        places = list(bits(view))
        for writer in {state.log[place].writer for place in places} - {own}:
            commits = [place for place in places if state.log[place].writer == writer]
            retired = self.world.expire and max(commits) < state.old
            excused = writer in self.world.collectors and COLLECTORS_ACKNOWLEDGE not in self.rules
            knows = any(state.log[place].seen >> batch & 1 for place in commits)
            if ACKNOWLEDGE in self.rules and not (knows or retired or excused):
                return False
        for place in open_sessions(state.log, view).values():
            expired = self.world.expire and place < state.old
            knows = bool(state.log[place].seen >> batch & 1)
            if SESSIONS_HOLD in self.rules and not (knows or expired):
                return False
        return True

    def _acknowledge(self, state: State, number: int, collector: Collector) -> Iterator[tuple[str, State]]:
        """Say in a commit what was seen of other collectors."""
        own = self.world.collectors[number]
        said = 0
        for commit in state.log:
            if commit.writer == own:
                said |= commit.seen
        for how, listing, _ in self._views(state, collector.view):
            view = listing | collector.view
            news = [place for place in bits(view & ~said) if state.log[place].kind == CONDEMNED]
            if any(state.log[place].writer != own for place in news):
                commit = Commit(own, PLAIN, -1, 0, view)
                after = collector._replace(view=view | 1 << len(state.log))
                yield f"acknowledge{how}", self._with_collector(state, number, after, commit)
