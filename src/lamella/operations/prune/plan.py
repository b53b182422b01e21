"""The plan of a prune: snapshots and packs that change, each with its reason and bytes (docs/decisions/0038).

`plan_removals` and `plan_packs` are the only places that choose; a dry run and both executors call them. The blob map
chooses packs and decides nothing: an executor reads each pack's own directory before it touches the pack.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from lamella.base.errors import IntegrityError, RepositoryError
from lamella.base.ids import WriterId
from lamella.base.names import pack_name
from lamella.format.records import Ref
from lamella.operations.prune.health import Health
from lamella.operations.prune.needed import DAY_MS, Needed, Survey, history_troubles
from lamella.packs.usage import PackUse
from lamella.repository.repository import Repository
from lamella.stores.base import Abilities, Store
from lamella.stores.cold import Warmth, thawable

HOUR_MS = 3600 * 1000
UNEXPLAINED_MS = 30 * DAY_MS
"""How long a pack stays that nothing needs, while an object under a commit's name is not explained."""


@dataclass(frozen=True, slots=True)
class PruneOptions:
    """Options of a prune. Percentages are of bytes; times are milliseconds."""

    repack: bool = True
    """Packs that are partly needed may be rewritten. Without it only packs that nothing needs are deleted."""
    repack_below: float = 50.0
    """A pack is rewritten when less than this percentage of it is needed."""
    max_unused: float = 30.0
    """Beyond that, packs are rewritten until unneeded bytes are at most this percentage of the needed ones."""
    batch_bytes: int = 1 << 30
    """Needed bytes rewritten before their old packs go: an interruption loses at most this much work."""
    grace_ms: int = DAY_MS
    """Where the store has no lock: how long a condemned pack stays at least."""
    remove_delay_ms: int = 0
    """How long after this host first saw a REMOVE its snapshot is still needed (append-only set-ups: 14 days)."""
    others_delay_ms: int = 0
    """The same for snapshots of other hosts, if that is longer."""
    last: bool = False
    """The last whole snapshot of a volume may be removed, too, and does not come back (REMOVE_LAST)."""
    retire: tuple[WriterId, ...] = ()
    """Writers whose silence no longer holds deletions up."""

    @property
    def delays_ms(self) -> tuple[int, int]:
        """The times for which removed snapshots of this host, and of others, are still needed."""
        return self.remove_delay_ms, max(self.remove_delay_ms, self.others_delay_ms)


class Method(Enum):
    """The ways in which packs are deleted."""

    ALONE = "under the exclusive lock"
    LOCKLESS = "without a lock"
    OTHERS = "by others: this client may not delete"


class Fate(Enum):
    """The fate of a pack."""

    DELETE = "delete"
    CONDEMN = "condemn"
    REWRITE = "rewrite"
    RESCUE = "rescue"


class PlannedRemoval(NamedTuple):
    """A snapshot that is removed, and why; with `last` by a REMOVE_LAST, so that it never comes back."""

    ref: Ref
    name: str
    reason: str
    last: bool = False


class PlannedPack(NamedTuple):
    """A pack that changes, and why. `written` is how many bytes are put instead, estimated by its needed share."""

    use: PackUse
    fate: Fate
    reason: str
    written: int = 0


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """The plan of a prune. Packs and snapshots it does not name stay."""

    method: Method
    removals: tuple[PlannedRemoval, ...] = ()
    packs: tuple[PlannedPack, ...] = ()
    revived: tuple[str, ...] = ()
    """Names of removed snapshots that come back, because their volume has no whole one left."""
    undecided: tuple[IntegrityError, ...] = ()
    """The parts that cannot be judged and therefore stay, and why."""
    damaged: tuple[IntegrityError, ...] = ()
    """Snapshots that stay and are not whole."""
    waiting: tuple[str, ...] = ()
    """Why packs that were condemned before cannot be deleted yet."""
    waiting_bytes: int = 0
    """Bytes of those packs."""
    notes: tuple[str, ...] = ()
    live_bytes: int = 0
    """Needed bytes."""
    unused_bytes: int = 0
    """Unneeded bytes in packs that hold something needed, before any of them is rewritten."""

    def uses(self, fate: Fate) -> list[PackUse]:
        """The packs with this fate, in the order in which they are to be dealt with."""
        return [pack.use for pack in self.packs if pack.fate is fate]

    @property
    def gone(self) -> list[PackUse]:
        """The packs that this run deletes: without a lock, those that were condemned before."""
        return self.uses(Fate.DELETE) + (self.uses(Fate.REWRITE) if self.method is Method.ALONE else [])

    @property
    def deleted_packs(self) -> int:
        """The number of packs that this run deletes."""
        return len(self.gone)

    @property
    def repacked_bytes(self) -> int:
        """Needed bytes that are rewritten."""
        return sum(use.needed for use in self.uses(Fate.REWRITE))

    @property
    def freed_bytes(self) -> int:
        """Bytes that this run deletes, less those it writes instead."""
        return sum(use.length for use in self.gone) - sum(pack.written for pack in self.packs)

    @property
    def condemned_bytes(self) -> int:
        """Bytes left for a later run to delete."""
        condemned = self.uses(Fate.CONDEMN) + (self.uses(Fate.REWRITE) if self.method is Method.LOCKLESS else [])
        return self.waiting_bytes + sum(use.length for use in condemned)

    @property
    def dead_bytes(self) -> int:
        """Unneeded bytes that stay in packs which are not worth rewriting."""
        return self.unused_bytes - sum(use.blobs - use.needed for use in self.uses(Fate.REWRITE))


@dataclass(slots=True)
class PruneResult:
    """The outcome of a prune. Sizes are bytes of whole packs."""

    removed: list[Ref] = field(default_factory=list)
    """Snapshots that this run removed."""
    freed_bytes: int = 0
    """Deleted from the store, less what was written instead."""
    condemned_bytes: int = 0
    """To be deleted by a later run, once nobody can need it any more."""
    condemned_until_ms: int = 0
    """The earliest moment at which a later run can delete them; 0 if nothing is condemned."""
    repacked_bytes: int = 0
    """Needed bytes that were rewritten."""
    deleted_packs: int = 0
    deleted_commits: int = 0
    """Commits that an audited checkpoint repeats."""
    live_bytes: int = 0
    """Needed bytes left."""
    dead_bytes: int = 0
    """Unneeded bytes left in packs that were not worth rewriting."""
    waiting: list[str] = field(default_factory=list)
    """Why condemned packs could not be deleted yet."""
    blocked: list[IntegrityError] = field(default_factory=list)
    """Why nothing was deleted in a part of the repository. The exit code is the largest of theirs."""
    damaged: list[IntegrityError] = field(default_factory=list)
    """Snapshots that stay and are not whole. The exit code is at least theirs."""
    revived: list[str] = field(default_factory=list)
    """Names of removed snapshots that are back, because their volume had no whole one left."""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def saw(self, needed: Needed) -> None:
        """Take over what the survey reports, each line once."""
        self.blocked += _new(needed.troubles, self.blocked)
        self.damaged += _new(needed.damaged, self.damaged)
        self.notes += [one for one in (*needed.notes, *needed.cold_notes) if one not in self.notes]


def _new(errors: Iterable[IntegrityError], known: Collection[IntegrityError]) -> list[IntegrityError]:
    said = {(one.message, one.obj) for one in known}
    return [one for one in errors if (one.message, one.obj) not in said]


# -- planning ----------------------------------------------------------------------------------------------------------


def plan_prune(
    repo: Repository,
    removals: Iterable[Ref] | Mapping[Ref, str],
    options: PruneOptions | None = None,
    health: Health | None = None,
) -> PrunePlan:
    """Plan a prune that removes these snapshots (each with its reason); writes nothing.

    `health` is what was judged before with the same history. Raises RepositoryError for an unknown snapshot or a writer
    that cannot be retired, StoreError.
    """
    options = options or PruneOptions()
    method = method_of(repo.store.abilities, dry=True)
    wanted = known_removals(repo, removals)
    troubles = tuple(history_troubles(repo))
    if troubles:
        return PrunePlan(method, undecided=troubles)
    with ExitStack() as held:
        survey = Survey(repo, health or held.enter_context(Health(repo)), options.delays_ms, dry=True)
        removing, refused = plan_removals(survey, wanted, options)
        needed = survey.mark({one.ref for one in removing})
        plan = plan_packs(survey, needed, options)
        if method is Method.LOCKLESS:
            from lamella.operations.prune import lockless  # most destinations have a lock

            plan = lockless.with_condemned(plan, survey, needed, options)
    undecided = (*refused, *_new(plan.undecided, refused))
    return replace(plan, removals=removing, undecided=undecided, revived=survey.revived_names())


def method_of(abilities: Abilities, *, dry: bool = False) -> Method:
    """The way in which a store deletes packs. A `dry` plan treats a store opened for reading as one for writing."""
    may_delete = abilities.delete or (dry and not abilities.write)
    if abilities.immutable or not may_delete:
        return Method.OTHERS
    return Method.ALONE if abilities.exclusive_lock else Method.LOCKLESS


def known_removals(repo: Repository, removals: Iterable[Ref] | Mapping[Ref, str]) -> dict[Ref, str]:
    """The removals of snapshots that are still there. Raises RepositoryError if one never was in the repository."""
    wanted = dict(removals) if isinstance(removals, Mapping) else dict.fromkeys(removals, "named")
    known = {snapshot.ref for snapshot in repo.catalogue.snapshots}
    strange = [ref for ref in wanted if ref not in known and ref not in repo.catalogue.removed]
    if strange:
        raise RepositoryError("a snapshot to be removed is not in the repository", obj=strange[0].snap_id.hex())
    return {ref: reason for ref, reason in wanted.items() if ref in known}


def plan_removals(
    survey: Survey, wanted: Mapping[Ref, str], options: PruneOptions
) -> tuple[tuple[PlannedRemoval, ...], tuple[IntegrityError, ...]]:
    """The snapshots that may go, and the refused ones: the last whole snapshot of a volume, unless `options.last`.

    REMOVE_LAST also names what was removed of the volume before, so that none of it comes back; and what an expelled
    writer published, which nobody wants back.
    """
    catalogue = survey.repo.catalogue
    whole = survey.health.whole_series(one for one in catalogue.snapshots if not (one.ref in wanted or one.expelled))
    suspicion = survey.health.suspicion()
    if suspicion is not None:
        return (), (suspicion,)
    names = catalogue.shown_names()
    going = [one for one in catalogue.snapshots if one.ref in wanted]
    rows = [(one, f"{names[one.added.volume_id]}@{one.name}", wanted[one.ref]) for one in going]
    plain = [
        PlannedRemoval(one.ref, name, why, one.expelled)
        for one, name, why in rows
        if one.series in whole or one.expelled
    ]
    emptied = {one.series for one in going if not one.expelled} - whole
    if not options.last:
        return tuple(plain), tuple(_last_of(names[series.volume_id]) for series in sorted(emptied, key=str))
    final = [PlannedRemoval(one.ref, name, why, True) for one, name, why in rows if one.series in emptied]
    before = [
        PlannedRemoval(ref, f"{names[removal.added.volume_id]}@{removal.added.name}", "removed before", True)
        for ref, removal in sorted(catalogue.removed.items())
        if removal.added is not None and removal.series in emptied and not removal.last
    ]
    return (*plain, *final, *before), ()


def _last_of(name: str) -> IntegrityError:
    text = f"nothing of {name} is removed: no whole snapshot of it would be left"
    return IntegrityError(text, obj=name, hint="look with: lamella verify; add --yes-last to remove it anyway")


def plan_packs(survey: Survey, needed: Needed, options: PruneOptions) -> PrunePlan:
    """Which packs of the closed domains change. Packs that are condemned already are not among them."""
    method = method_of(survey.repo.store.abilities, dry=survey.dry)
    condemned = survey.repo.blobs.condemned if method is Method.LOCKLESS else frozenset()
    live = unused = 0
    dead: list[PackUse] = []
    partly: list[PackUse] = []
    for use in survey.health.usage().packs():
        if use.pack in condemned:
            continue
        if method is Method.LOCKLESS and use.twins:  # who relies on a twin is not known without a lock
            use = use._replace(needed=use.held, twins=())
        live += use.needed
        if use.domain_id not in needed.closed or use.pack in needed.pinned:
            continue
        if not use.held:
            dead.append(use)
            continue
        unused += use.blobs - use.needed
        if use.needed < use.blobs:
            partly.append(use)
    young = _unexplained(survey, needed, [use.pack for use in (*dead, *partly)])
    dead = [use for use in dead if use.pack not in young]
    partly = [use for use in partly if use.pack not in young]
    packs: list[PlannedPack] = []
    fate = Fate.DELETE if method is Method.ALONE else Fate.CONDEMN
    if method is Method.LOCKLESS:
        from lamella.operations.prune import lockless

        dead = lockless.old_enough(survey, dead)
    packs += [PlannedPack(use, fate, "nothing in it is needed") for use in dead]
    if options.repack and method is not Method.OTHERS:
        packs += _rewritten(partly, live, unused, options, _WarmPacks(survey.repo.store, needed))
    return PrunePlan(
        method,
        packs=tuple(packs),
        undecided=tuple(needed.troubles),
        damaged=tuple(needed.damaged),
        notes=(*needed.notes, *needed.cold_notes),
        live_bytes=live,
        unused_bytes=unused,
    )


def _unexplained(survey: Survey, needed: Needed, packs: Collection[bytes]) -> Collection[bytes]:
    """Packs that must stay for now: an unexplained object may have been a commit that needs them, a claim may.

    Such an object delays deletion, and never stops it: of each pack by 30 days from when it was first unneeded.
    """
    history = survey.repo.history
    why = "a claim that cannot be read may need them" if needed.claims else ""
    if history.unexplained or history.strangers:
        why = "an object in w/ may have been a commit that needs them"
    young = survey.first_seen.younger("unneeded", packs if why else [], UNEXPLAINED_MS)
    if young:
        needed.notes.append(f"{len(young)} packs stay for 30 days: {why}")
    return young


class _WarmPacks:
    """Tells the packs that can be read: thawing a pack to rewrite it costs more than it saves."""

    def __init__(self, store: Store, needed: Needed) -> None:
        self._asked = thawable(store)
        self._names = self._asked.cold_names() if self._asked is not None else ()
        self._needed = needed

    def __contains__(self, use: PackUse) -> bool:
        name = pack_name(use.pack) if self._names else ""
        if self._asked is None or name not in self._names or self._asked.warmth(name) is Warmth.READABLE:
            return True
        self._needed.cold[use.pack] = use.length
        return False


def _rewritten(
    partly: Iterable[PackUse], live: int, unused: int, options: PruneOptions, warm: _WarmPacks
) -> Iterator[PlannedPack]:
    """Packs worth rewriting, the most wasteful first: those below the threshold, then until few bytes are unused."""
    for use in sorted(partly, key=lambda use: (use.needed / use.blobs, use.pack)):
        share = 100 * use.needed / use.blobs
        if share >= options.repack_below and unused * 100 <= options.max_unused * live:
            return
        if use not in warm:
            continue
        unused -= use.blobs - use.needed
        # Bodies are sealed again unchanged; of head and directory the same share is taken.
        written = round(use.length * use.needed / use.blobs)
        yield PlannedPack(use, Fate.REWRITE, f"{share:.0f} % of it is needed", written)


def batches(packs: Iterable[PackUse], most_bytes: int) -> Iterator[list[PackUse]]:
    """Batches of packs, in their order, each with at most `most_bytes` of needed bytes."""
    batch: list[PackUse] = []
    size = 0
    for use in packs:
        if batch and size + use.held > most_bytes:
            yield batch
            batch, size = [], 0
        batch.append(use)
        size += use.held
    if batch:
        yield batch
