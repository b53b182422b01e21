"""Which snapshots stay and which go, each with its reasons: policy over plain values, nothing else.

Rules are independent of each other: a snapshot stays if any of them keeps it, so a further rule never removes anything.
They look at a volume twice: at all its snapshots, as if each were whole, and at the whole ones only. What either look
keeps stays, so no verdict on a snapshot's health removes what the rules keep of a healthy volume (docs/decisions/0036).
Ages are counted from the newest snapshot looked at, not from now: a machine that stands still loses nothing.
Snapshots from the future are neither kept by a rule nor counted; they stay, and are shown. So do those that arrived
together with others of the volume and whose times cannot be true: one of them is judged, by the time of its arrival.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from enum import Enum
from functools import partial
from itertools import pairwise

from lamella.base.clock import END_OF_TIME_MS, moment_of
from lamella.base.errors import UsageError

HOUR_MS = 3_600_000
FALL_KEPT_MS = 90 * 24 * HOUR_MS
"""How long the last snapshot stays that was taken before a volume lost half of its data."""
ALL = 1 << 40
"""As many as there are."""


class Period(Enum):
    """A stretch of civil time in the declared zone. Weeks are those of ISO 8601."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"

    def of(self, local: datetime) -> Hashable:
        """What is equal for two moments of the zone exactly if they lie in the same period.

        When clocks are set back an hour comes twice: these are two hours, told apart by their distance from UTC.
        """
        if self is Period.HOUR:
            return (local.date(), local.hour, local.utcoffset())
        if self is Period.DAY:
            return local.date()
        if self is Period.WEEK:
            return tuple(local.isocalendar())[:2]
        return (local.year, local.month if self is Period.MONTH else 0)


_AGE = re.compile(r"(?:(\d{1,4})y)?(?:(\d{1,5})m)?(?:(\d{1,5})w)?(?:(\d{1,6})d)?(?:(\d{1,7})h)?")


@dataclass(frozen=True, slots=True)
class Age:
    """A length of time as calendars count it: `30d` ends at the same time of day, `1m` on the same day of the month."""

    text: str
    months: int
    days: int
    hours: int

    @classmethod
    def parse(cls, text: str) -> Age:
        """From `1y6m2w3d12h`, any of these in this order. Raises UsageError."""
        match = _AGE.fullmatch(text.strip().lower())
        if match is None or not any(match.groups()):
            hint = "write for example 48h, 30d, 8w, 6m or 1y6m (y years, m months, w weeks, d days, h hours)"
            raise UsageError(f"not a length of time: {text!r}", hint=hint)
        years, months, weeks, days, hours = (int(group or 0) for group in match.groups())
        return cls(match[0], years * 12 + months, weeks * 7 + days, hours)

    def before(self, moment_ms: int, zone: tzinfo) -> int:
        """The moment so long before another one, in UTC milliseconds; 0 if that is before there were any.

        Years to days are civil time, hours are hours that pass, whatever the clocks do meanwhile.
        """
        start_ms = moment_ms
        if self.months or self.days:
            local = local_time(moment_ms, zone)
            year, month = divmod(local.year * 12 + local.month - 1 - self.months, 12)
            try:
                day = min(local.day, calendar.monthrange(year, month + 1)[1])
                civil = local.replace(year=year, month=month + 1, day=day) - timedelta(days=self.days)
                start_ms = (civil - _EPOCH) // timedelta(milliseconds=1)
            except (ValueError, OverflowError):
                return 0
        return max(0, start_ms - self.hours * HOUR_MS)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def local_time(moment_ms: int, zone: tzinfo) -> datetime:
    """A moment as the zone's calendar and clock show it; at the latest a day before the end of the year 9999."""
    return moment_of(min(moment_ms, END_OF_TIME_MS - 24 * HOUR_MS)).astimezone(zone)


@dataclass(frozen=True, slots=True)
class Thinning:
    """Of the snapshots older than `age` one stays in each `period`."""

    age: Age
    period: Period


@dataclass(frozen=True, slots=True)
class Retention:
    """The rules of a volume. `last` to `yearly` are numbers of snapshots, 0 for no such rule, ALL for no limit."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: Age | None = None
    tags: frozenset[str] = frozenset()
    thin: tuple[Thinning, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is no rule at all: such a policy would keep nothing and is never carried out."""
        return self == Retention()


@dataclass(frozen=True, slots=True)
class DatedSnapshot:
    """A snapshot of a volume as retention sees it."""

    volume: str
    snapshot: str
    time_ms: int
    """UTC milliseconds, believed (see `Sight.believed_ms`)."""
    number: int = 0
    """The caller's, to find the snapshot again."""
    good: bool = True
    """Whole and of use. Taken as so for a snapshot that nobody has looked into."""
    arrived_ms: int | None = None
    """When another writer's snapshot was first seen here: at most one an hour of these counts against `last`."""
    doubtful: bool = False
    """Its own time could not be believed: `time_ms` is that of its arrival."""
    tags: frozenset[str] = frozenset()
    pinned: str | None = None
    """Why it is pinned; None if it is not."""
    latest: bool = False
    """No other snapshot of the volume is known to come after it, whatever the clocks said."""
    proven: bool = False
    """The newest of the volume that passed a full verification on this host."""
    data: int | None = None
    """Chunks of the volume that hold data; None: not known."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """The verdict on a snapshot, and the reasons."""

    moment: DatedSnapshot
    keep: bool
    reasons: tuple[str, ...]
    judged: bool = True
    """False if its time makes no sense, so that no rule looked at it."""


def judge(
    moments: Iterable[DatedSnapshot],
    rules_of: Callable[[str], Retention],
    now_ms: int,
    zone: tzinfo,
    *,
    spare_last: bool = True,
) -> list[Ruling]:
    """A verdict on every snapshot, by volume and newest first.

    `spare_last` keeps the latest good snapshot of each volume whatever the rules say, and everything of a volume that
    has none. A volume for which there is no rule keeps everything.
    """
    by_volume: dict[str, list[DatedSnapshot]] = {}
    for moment in moments:
        by_volume.setdefault(moment.volume, []).append(moment)
    verdicts: list[Ruling] = []
    for volume in sorted(by_volume):
        rows = sorted(by_volume[volume], key=lambda row: (row.time_ms, row.snapshot), reverse=True)
        verdicts += _judge_volume(rows, partial(_Look, rules=rules_of(volume), now_ms=now_ms, zone=zone), spare_last)
    return verdicts


def judge_until_stable(
    moments: Iterable[DatedSnapshot],
    rules_of: Callable[[str], Retention],
    now_ms: int,
    zone: tzinfo,
    find_bad: Callable[[Sequence[DatedSnapshot]], Collection[DatedSnapshot]],
    *,
    spare_last: bool = True,
) -> list[Ruling]:
    """The same verdicts where looking into a snapshot costs much: only those that stay are looked into.

    `find_bad` gets snapshots that would stay, by volume and newest first, none of them twice, and returns those that
    are not good. The others take their places, until every good one that stays was looked into.
    """
    rows = list(moments)
    asked: set[DatedSnapshot] = set()
    bad: set[DatedSnapshot] = set()
    while True:
        now = [replace(row, good=False) if row in bad else row for row in rows]
        verdicts = judge(now, rules_of, now_ms, zone, spare_last=spare_last)
        unknown = [row.moment for row in verdicts if row.keep and row.moment.good and row.moment not in asked]
        if not unknown:
            return verdicts
        asked.update(unknown)
        bad.update(find_bad(unknown))


_WHOLE = " of the whole ones"
_WHOLE_AGE = ", counted from the newest whole one"


def _judge_volume(
    rows: Sequence[DatedSnapshot], look: Callable[[Sequence[DatedSnapshot]], _Look], spare_last: bool
) -> list[Ruling]:
    whole = [at for at, row in enumerate(rows) if row.good]
    everything, good = look(rows), look([rows[at] for at in whole])
    kept = everything.kept(spare_last)
    if len(whole) < len(rows):
        among = good.kept(spare_last, _WHOLE, _WHOLE_AGE)
        kept = {whole[at]: reasons for at, reasons in among.items()} | kept
    nothing = ("nothing of the volume is whole",) if spare_last and not good.present else ()
    return [
        Ruling(
            row,
            at in kept or bool(nothing),
            tuple(reason if row.good else f"{reason} (not whole)" for reason in kept.get(at, ()))
            or nothing
            or ("no rule keeps it",),
            at not in everything.strange,
        )
        for at, row in enumerate(rows)
    ]


@dataclass
class _Look:
    """The rules, applied to some snapshots of a volume, newest first, as if each of them were whole."""

    rows: Sequence[DatedSnapshot]
    rules: Retention
    now_ms: int
    zone: tzinfo
    strange: dict[int, str] = field(default_factory=dict)
    """By position in `rows`: what no rule looks at, and why."""
    present: list[int] = field(default_factory=list)
    """The other positions."""
    _reasons: dict[int, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.strange = self._strange()
        self.present = [at for at in range(len(self.rows)) if at not in self.strange]

    def kept(self, spare_last: bool, among: str = "", ages: str = "") -> dict[int, tuple[str, ...]]:
        """The snapshots that stay, by position in `rows`, and why.

        `spare_last` keeps the latest one, too. `among` ends the reasons of rules that count, `ages` those of rules that
        compare with the newest one.
        """
        self._labels()
        self._before_fall()
        if self.rules.empty:
            self._keep(range(len(self.rows)), "no rule for this volume")
        else:
            self._count(among)
            self._calendar(among)
            self._within(ages)
            self._thin(ages)
        for at, reason in self.strange.items():
            self._keep([at], reason)
        if spare_last:
            self._spare()
        return {at: tuple(reasons) for at, reasons in self._reasons.items()}

    def _strange(self) -> dict[int, str]:
        found: dict[int, str] = {}
        arrivals: set[int] = set()
        for at, row in enumerate(self.rows):
            if row.time_ms > self.now_ms + HOUR_MS:
                found[at] = "from the future"
            elif row.doubtful:
                hour = row.time_ms // HOUR_MS
                if hour in arrivals:
                    found[at] = "its time cannot be true"
                arrivals.add(hour)
        return found

    def _keep(self, positions: Iterable[int], reason: str) -> None:
        for at in positions:
            self._reasons.setdefault(at, []).append(reason)

    def _labels(self) -> None:
        for at, row in enumerate(self.rows):
            if row.pinned is not None:
                self._keep([at], f"pinned: {row.pinned}" if row.pinned else "pinned")
            if row.proven:
                self._keep([at], "the newest that passed a full verification here")
            for tag in sorted(row.tags & self.rules.tags):
                self._keep([at], f"tag {tag}")

    def _before_fall(self) -> None:
        """The newest snapshot that holds more than twice the data of the newest one stays a while (0041).

        Nobody may have noticed yet that an image was truncated or emptied, and every later run is a success.
        """
        rows = [(at, self.rows[at]) for at in self.present]
        for (_, after), (at, row) in pairwise(rows):
            least = rows[0][1].data
            if least is not None and row.data is not None and row.data > 2 * least:
                if self.now_ms - after.time_ms < FALL_KEPT_MS:
                    self._keep([at], "the volume then fell to less than half of its data")
                return

    def _count(self, among: str) -> None:
        """keep-last. What came in the same hour as a counted one stays uncounted: a flood cannot push anything out."""
        counted: set[Hashable] = set()
        for at in self.present:
            row = self.rows[at]
            hour: Hashable = ("own", at) if row.arrived_ms is None else row.arrived_ms // HOUR_MS
            if hour in counted:
                self._keep([at], f"last (same hour of arrival){among}")
            elif len(counted) < self.rules.last:
                self._keep([at], f"last {len(counted) + 1}{among}")
                counted.add(hour)

    def _calendar(self, among: str) -> None:
        limits = {
            Period.HOUR: ("hourly", self.rules.hourly),
            Period.DAY: ("daily", self.rules.daily),
            Period.WEEK: ("weekly", self.rules.weekly),
            Period.MONTH: ("monthly", self.rules.monthly),
            Period.YEAR: ("yearly", self.rules.yearly),
        }
        for period, (word, limit) in limits.items():
            filled: set[Hashable] = set()
            for at in self.present if limit else ():
                key = period.of(local_time(self.rows[at].time_ms, self.zone))
                if key in filled:
                    continue
                if len(filled) >= limit:
                    break
                self._keep([at], f"{word} {len(filled) + 1}{among}")
                filled.add(key)

    @property
    def _newest_ms(self) -> int:
        return self.rows[self.present[0]].time_ms if self.present else 0

    def _within(self, ages: str) -> None:
        if self.rules.within is not None:
            start = self.rules.within.before(self._newest_ms, self.zone)
            young = [at for at in self.present if self.rows[at].time_ms >= start]
            self._keep(young, f"within {self.rules.within.text}{ages}")

    def _thin(self, ages: str) -> None:
        if not self.rules.thin:
            return
        newest_ms = self._newest_ms
        bands = sorted(
            ((one.age.before(newest_ms, self.zone), one) for one in self.rules.thin), key=lambda band: band[0]
        )
        filled: set[Hashable] = set()
        for at in self.present:
            row = self.rows[at]
            band = next((one for start_ms, one in bands if row.time_ms < start_ms), None)
            if band is None:
                self._keep([at], f"younger than {bands[-1][1].age.text}{ages}")
                continue
            key = (band, band.period.of(local_time(row.time_ms, self.zone)))
            if key not in filled:
                self._keep([at], f"one each {band.period.value} beyond {band.age.text}{ages}")
                filled.add(key)

    def _spare(self) -> None:
        """The latest one stays: by the chain if that says which it is, else by time."""
        last = next((at for at in self.present if self.rows[at].latest), next(iter(self.present), None))
        if last is not None and last not in self._reasons:
            self._keep([last], f"last {'good ' if self.rows[last].good else ''}snapshot of the volume")
