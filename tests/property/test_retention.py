"""Retention: the laws of the rules, and calendars on the days that are 23 and 25 hours long."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.base.errors import UsageError
from lamella.memory.pins import Sight
from lamella.operations.prune.retention import (
    ALL,
    HOUR_MS,
    Age,
    DatedSnapshot,
    Period,
    Retention,
    Ruling,
    Thinning,
    judge,
    judge_until_stable,
)

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 22, 18, 45, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
ages = st.builds(
    lambda number, unit: Age.parse(f"{number}{unit}"), st.integers(0, 40), st.sampled_from(["h", "d", "w", "m", "y"])
)
counts = st.one_of(st.integers(0, 5), st.just(ALL))
policies = st.builds(
    Retention,
    last=counts,
    hourly=counts,
    daily=counts,
    weekly=counts,
    monthly=counts,
    yearly=counts,
    within=st.one_of(st.none(), ages),
    tags=st.frozensets(st.sampled_from(["a", "b"])),
    thin=st.lists(st.builds(Thinning, ages, st.sampled_from(list(Period))), max_size=2).map(tuple),
)
zones = st.sampled_from([UTC, BERLIN, ZoneInfo("America/St_Johns"), ZoneInfo("Australia/Lord_Howe")])
past = st.one_of(
    st.integers(NOW_MS - 3 * 365 * 86_400_000, NOW_MS), st.integers(NOW_MS - 40 * HOUR_MS, NOW_MS + 40 * HOUR_MS)
)


@st.composite
def lives(draw: st.DrawFn) -> list[DatedSnapshot]:
    """Snapshots of two volumes."""
    found = []
    for number in range(draw(st.integers(0, 25))):
        time_ms = draw(past)
        found.append(
            DatedSnapshot(
                draw(st.sampled_from(["v", "w"])),
                f"s{number:02}",
                time_ms,
                good=draw(st.sampled_from([True, True, True, False])),
                arrived_ms=draw(st.one_of(st.none(), st.just(time_ms))),
                tags=draw(st.frozensets(st.sampled_from(["a", "b"]), max_size=1)),
                pinned=draw(st.sampled_from([None, None, None, "why"])),
            )
        )
    return found


def kept(
    moments: list[DatedSnapshot], rules: Retention, zone: object = UTC, *, spare_last: bool = True
) -> list[DatedSnapshot]:
    assert isinstance(zone, UTC.__class__ | ZoneInfo)
    return [row.moment for row in judge(moments, lambda _: rules, NOW_MS, zone, spare_last=spare_last) if row.keep]


@given(lives(), policies, zones, st.booleans())
def test_every_snapshot_has_one_verdict_and_a_reason(
    moments: list[DatedSnapshot], rules: Retention, zone: object, spare: bool
) -> None:
    verdicts = judge(moments, lambda _: rules, NOW_MS, UTC, spare_last=spare)
    assert sorted(row.moment.snapshot for row in verdicts) == sorted(row.snapshot for row in moments)
    assert all(row.reasons for row in verdicts)


@given(lives(), policies, zones, st.booleans())
def test_what_was_kept_is_kept_again(moments: list[DatedSnapshot], rules: Retention, zone: object, spare: bool) -> None:
    once = kept(moments, rules, zone, spare_last=spare)
    assert kept(once, rules, zone, spare_last=spare) == once


@given(lives(), policies, policies, zones)
def test_a_further_rule_never_removes_anything(
    moments: list[DatedSnapshot], rules: Retention, more: Retention, zone: object
) -> None:
    fields = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
    both = replace(
        rules,
        **{name: max(getattr(rules, name), getattr(more, name)) for name in fields},
        within=rules.within or more.within,
        tags=rules.tags | more.tags,
        thin=rules.thin or more.thin,
    )
    if not rules.empty:
        assert set(kept(moments, rules, zone)) <= set(kept(moments, both, zone))


@given(lives(), policies, zones)
def test_no_volume_is_emptied(moments: list[DatedSnapshot], rules: Retention, zone: object) -> None:
    left = kept(moments, rules, zone)
    assert {row.volume for row in left} == {row.volume for row in moments}
    for volume in {row.volume for row in moments}:
        good = [row for row in moments if row.volume == volume and row.good and row.time_ms <= NOW_MS + HOUR_MS]
        if good:
            newest = max(good, key=lambda row: (row.time_ms, row.snapshot))
            assert newest in left


@given(lives(), policies, st.integers(NOW_MS + HOUR_MS + 1, 1 << 62), zones)
def test_the_future_stays_and_changes_nothing(
    moments: list[DatedSnapshot], rules: Retention, time_ms: int, zone: object
) -> None:
    future = DatedSnapshot("v", "future", time_ms)
    left = kept([*moments, future], rules, zone)
    assert future in left
    assert [row for row in left if row is not future] == kept(moments, rules, zone)


@given(lives(), policies, st.lists(past, max_size=5), zones)
def test_what_is_not_whole_pushes_no_whole_one_out(
    moments: list[DatedSnapshot], rules: Retention, times: list[int], zone: object
) -> None:
    broken = [DatedSnapshot("v", f"x{at}", time_ms, good=False) for at, time_ms in enumerate(times)]
    whole = [row for row in moments if row.good]
    assert set(kept(whole, rules, zone)) <= set(kept([*moments, *broken], rules, zone))


# -- health ------------------------------------------------------------------------------------------------------------


def names(rows: Iterable[DatedSnapshot | Ruling]) -> set[str]:
    """The snapshots, of verdicts those that stay."""
    moments = (
        row if isinstance(row, DatedSnapshot) else row.moment
        for row in rows
        if isinstance(row, DatedSnapshot) or row.keep
    )
    return {row.snapshot for row in moments}


def taken_as(moments: Iterable[DatedSnapshot], bad: Collection[str]) -> list[DatedSnapshot]:
    """The same snapshots, all of them good but for these."""
    return [replace(row, good=row.snapshot not in bad) for row in moments]


class Looker:
    """Looks into snapshots, and remembers into which."""

    def __init__(self, bad: Collection[str]) -> None:
        self.bad = bad
        self.asked: list[str] = []

    def __call__(self, rows: Sequence[DatedSnapshot]) -> list[DatedSnapshot]:
        self.asked += [row.snapshot for row in rows]
        return [row for row in rows if row.snapshot in self.bad]


def hold_the_laws(moments: list[DatedSnapshot], bad: Collection[str], rules: Retention, zone: object) -> None:
    """The laws of 0036, for a history in which `bad` are not whole."""
    assert isinstance(zone, UTC.__class__ | ZoneInfo)
    healthy, sick = taken_as(moments, ()), taken_as(moments, bad)
    whole = [row for row in sick if row.good]
    stays = names(kept(sick, rules, zone))
    assert names(kept(healthy, rules, zone)) <= stays  # no verdict removes what the rules keep of a healthy volume
    assert names(kept(whole, rules, zone)) <= stays
    assert names(kept(healthy, rules, zone, spare_last=False)) <= names(kept(sick, rules, zone, spare_last=False))
    for volume in {row.volume for row in moments}:
        mine = {row.snapshot for row in moments if row.volume == volume}
        good = {row.snapshot for row in whole} & mine
        assert good & stays or (not good and mine <= stays)
    look = Looker(bad)
    lazy = judge_until_stable(healthy, lambda _: rules, NOW_MS, zone, look)
    assert len(look.asked) == len(set(look.asked))
    assert names(row.moment for row in lazy if row.keep and row.moment.good) <= set(look.asked) - set(bad)
    assert stays <= names(lazy)
    if not any(row.doubtful for row in moments):
        assert stays == names(lazy)  # as if all had been looked into
    unbroken = Looker(())
    assert names(judge_until_stable(healthy, lambda _: rules, NOW_MS, zone, unbroken)) == set(unbroken.asked)


@given(lives(), policies, zones)
def test_health(moments: list[DatedSnapshot], rules: Retention, zone: object) -> None:
    hold_the_laws(moments, {row.snapshot for row in moments if not row.good}, rules, zone)


@given(lives(), policies, zones, st.sets(st.integers(0, 24)))
def test_one_more_that_is_not_whole_costs_no_other(
    moments: list[DatedSnapshot], rules: Retention, zone: object, more: set[int]
) -> None:
    """Where nothing is counted by the hour of arrival or by bands of age, both of which the newest one shifts."""
    plain = [replace(row, arrived_ms=None) for row in moments]
    rules = replace(rules, thin=())
    bad = {row.snapshot for row in moments if not row.good}
    new = {f"s{number:02}" for number in more} - bad
    before = names(kept(taken_as(plain, bad), rules, zone))
    assert before - new <= names(kept(taken_as(plain, bad | new), rules, zone))


def random_history(random: Random) -> tuple[list[DatedSnapshot], set[str], Retention]:
    """Some snapshots of a volume within three weeks, who of them is not whole, and rules."""
    moments = []
    for number in range(random.randrange(1, 11)):
        time_ms = NOW_MS - random.randrange(-3, 500) * HOUR_MS
        arrived = random.random() < 0.3
        moments.append(
            DatedSnapshot(
                "v",
                f"s{number}",
                time_ms,
                arrived_ms=time_ms if arrived else None,
                doubtful=arrived and random.random() < 0.3,
                tags=frozenset({"a"}) if random.random() < 0.1 else frozenset(),
                latest=random.random() < 0.1,
            )
        )
    bad = {row.snapshot for row in moments if random.random() < 0.4}
    age = [Age.parse(text) for text in ("1d", "40h", "7d", "17d")]
    fields = {name: random.randrange(4) for name in ("last", "hourly", "daily", "weekly") if random.random() < 0.3}
    rules = Retention(
        **fields,
        within=random.choice(age) if random.random() < 0.3 else None,
        tags=frozenset({"a"}) if random.random() < 0.3 else frozenset(),
        thin=tuple(Thinning(one, random.choice(list(Period)[1:4])) for one in random.sample(age, random.randrange(3))),
    )
    return moments, bad, rules


@pytest.mark.parametrize("histories", [2_000, pytest.param(200_000, marks=pytest.mark.long)])
def test_health_in_many_histories(histories: int) -> None:
    random = Random(36)
    for _ in range(histories):
        hold_the_laws(*random_history(random), UTC)


def day(number: int, *, good: bool = True, latest: bool = False) -> DatedSnapshot:
    """A snapshot so many days old."""
    return DatedSnapshot("v", f"d{number:02}", NOW_MS - number * 24 * HOUR_MS, good=good, latest=latest)


def test_a_whole_one_beyond_the_age_stays_beside_a_newer_broken_one() -> None:
    week = Retention(within=Age.parse("7d"))
    assert names(kept([day(17, good=True), day(2, good=False)], week)) == {"d17", "d02"}
    assert names(kept([day(30), day(17), day(2, good=False)], week)) == {"d17", "d02"}


def test_where_nothing_is_whole_everything_stays_unless_agreed() -> None:
    rows = [day(number, good=False) for number in (1, 2, 3)]
    verdicts = judge(rows, lambda _: Retention(last=1), NOW_MS, UTC)
    assert {row.moment.snapshot: row.reasons for row in verdicts if row.keep} == {
        "d01": ("last 1 (not whole)",),
        "d02": ("nothing of the volume is whole",),
        "d03": ("nothing of the volume is whole",),
    }
    assert names(kept(rows, Retention(last=1), spare_last=False)) == {"d01"}


def test_the_newest_whole_one_is_spared_the_latest_by_the_chain_first() -> None:
    tags = Retention(tags=frozenset({"a"}))
    rows = [day(1, good=False), day(2), day(3), day(4)]
    assert names(kept(rows, tags)) == {"d01", "d02"}
    assert names(kept([*rows[:2], day(3, latest=True), rows[3]], tags)) == {"d03"}
    assert names(kept([*rows[:2], day(3, latest=True, good=False), rows[3]], tags)) == {"d03", "d02"}
    assert names(kept(rows, tags, spare_last=False)) == set()


def test_what_no_rule_keeps_is_not_looked_into() -> None:
    rows = [day(number) for number in range(1, 9)]
    look = Looker({"d01", "d03"})
    verdicts = judge_until_stable(rows, lambda _: Retention(last=2), NOW_MS, UTC, look)
    assert names(verdicts) == {"d01", "d02", "d04"}
    assert look.asked == ["d01", "d02", "d03", "d04"]
    assert [(row.moment.good, row.reasons) for row in verdicts if row.keep] == [
        (False, ("last 1 (not whole)",)),
        (True, ("last 2",)),
        (True, ("last 2 of the whole ones",)),
    ]


def test_the_search_for_a_whole_one_goes_on_to_the_oldest_and_no_further() -> None:
    rows = [replace(day(number), tags=frozenset("a") if number == 2 else frozenset()) for number in range(1, 7)]
    tags = Retention(tags=frozenset("a"))
    look = Looker({"d01", "d02", "d03"})
    assert names(judge_until_stable(rows, lambda _: tags, NOW_MS, UTC, look)) == {"d01", "d02", "d04"}
    assert look.asked == ["d01", "d02", "d03", "d04"]
    look = Looker(names(rows))
    assert names(judge_until_stable(rows, lambda _: tags, NOW_MS, UTC, look)) == names(rows)
    assert look.asked == [f"d{number:02}" for number in range(1, 7)]
    look = Looker(names(rows))
    assert names(judge_until_stable(rows, lambda _: tags, NOW_MS, UTC, look, spare_last=False)) == {"d02"}
    assert look.asked == ["d02"]


def test_what_is_known_not_to_be_whole_is_not_looked_into_again() -> None:
    look = Looker(())
    judge_until_stable([day(1, good=False), day(2)], lambda _: Retention(last=1), NOW_MS, UTC, look)
    assert look.asked == ["d02"]


# -- calendars ---------------------------------------------------------------------------------------------------------


def hourly(start: datetime, hours: int) -> list[DatedSnapshot]:
    return [
        DatedSnapshot("v", f"s{hour:04}", int((start + timedelta(hours=hour)).timestamp() * 1000))
        for hour in range(hours)
    ]


def left(moments: list[DatedSnapshot], rules: Retention, now: datetime, zone: ZoneInfo = BERLIN) -> list[str]:
    now_ms = int(now.timestamp() * 1000)
    rows = judge(moments, lambda _: rules, now_ms, zone)
    return [
        datetime.fromtimestamp(row.moment.time_ms / 1000, zone).strftime("%d %H:%M %Z")
        for row in reversed(rows)
        if row.keep
    ]


def test_the_hour_that_comes_twice_is_two_hours_of_one_day() -> None:
    """On 25 October 2026 clocks in Berlin go from 3:00 back to 2:00."""
    start = datetime(2026, 10, 24, 22, 30, tzinfo=UTC)  # 00:30 on the 25th
    moments = hourly(start, 26)
    assert left(moments, Retention(hourly=ALL), start + timedelta(days=2)) == left(
        moments, Retention(last=26), start + timedelta(days=2)
    )
    assert "25 02:30 CEST" in left(moments, Retention(hourly=ALL), start + timedelta(days=2))
    assert "25 02:30 CET" in left(moments, Retention(hourly=ALL), start + timedelta(days=2))
    assert left(moments, Retention(daily=2), start + timedelta(days=2)) == ["25 23:30 CET", "26 00:30 CET"]


def test_the_day_of_23_hours_is_one_day() -> None:
    """On 29 March 2026 clocks in Berlin go from 2:00 to 3:00."""
    start = datetime(2026, 3, 28, 22, 30, tzinfo=UTC)  # 23:30 on the 28th
    moments = hourly(start, 25)
    assert left(moments, Retention(daily=ALL), start + timedelta(days=2)) == [
        "28 23:30 CET",
        "29 23:30 CEST",
        "30 00:30 CEST",
    ]
    assert len(left(moments, Retention(hourly=ALL), start + timedelta(days=2))) == 25


@pytest.mark.parametrize(
    ("age", "moment", "want"),
    [
        ("1d", datetime(2026, 10, 25, 11, tzinfo=UTC), datetime(2026, 10, 24, 10, tzinfo=UTC)),  # 12:00 to 12:00: 25 h
        ("24h", datetime(2026, 10, 25, 11, tzinfo=UTC), datetime(2026, 10, 24, 11, tzinfo=UTC)),
        ("1d", datetime(2026, 3, 29, 10, tzinfo=UTC), datetime(2026, 3, 28, 11, tzinfo=UTC)),  # 12:00 to 12:00: 23 h
        ("1m", datetime(2026, 3, 31, 10, tzinfo=UTC), datetime(2026, 2, 28, 11, tzinfo=UTC)),
        ("1y", datetime(2028, 2, 29, 11, tzinfo=UTC), datetime(2027, 2, 28, 11, tzinfo=UTC)),
        ("1y1m1w1d1h", datetime(2026, 6, 15, 10, tzinfo=UTC), datetime(2025, 5, 7, 9, tzinfo=UTC)),
        ("9999y", datetime(2026, 6, 15, 10, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)),
        ("999999d", datetime(2026, 6, 15, 10, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_ages_are_civil_time(age: str, moment: datetime, want: datetime) -> None:
    found = Age.parse(age).before(int(moment.timestamp() * 1000), BERLIN)
    assert datetime.fromtimestamp(found / 1000, UTC) == want


@pytest.mark.parametrize("text", ["", "3", "d", "3x", "3h2d", "-1d", "1.5d", "1d 2h"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(UsageError):
        Age.parse(text)


def test_calendar_thinning_as_time_machine_does() -> None:
    rules = Retention(thin=(Thinning(Age.parse("1d"), Period.DAY), Thinning(Age.parse("30d"), Period.WEEK)))
    moments = hourly(NOW - timedelta(days=90), 90 * 24 + 1)
    rows = [row for row in judge(moments, lambda _: rules, NOW_MS, BERLIN) if row.keep]
    young = [row for row in rows if NOW_MS - row.moment.time_ms <= 24 * HOUR_MS]
    middle = [row for row in rows if 24 * HOUR_MS < NOW_MS - row.moment.time_ms <= 30 * 24 * HOUR_MS]
    assert (len(young), len(middle)) == (25, 30)
    assert len(rows) - len(young) - len(middle) == 9
    assert young[0].reasons == ("younger than 1d",)
    assert middle[0].reasons == ("one each day beyond 1d",)
    assert rows[-1].reasons == ("one each week beyond 30d",)


def test_a_machine_that_stands_still_loses_nothing() -> None:
    moments = hourly(NOW - timedelta(days=400), 48)
    for rules in (Retention(within=Age.parse("3d")), Retention(thin=(Thinning(Age.parse("3d"), Period.YEAR),))):
        assert len(kept(moments, rules)) == 48


def test_a_flood_pushes_nothing_out() -> None:
    """Another writer publishes many in one hour; only one of them counts."""
    good = [
        DatedSnapshot("v", f"g{day}", NOW_MS - day * 24 * HOUR_MS, arrived_ms=NOW_MS - day * 24 * HOUR_MS)
        for day in (1, 2)
    ]
    flood = [DatedSnapshot("v", f"x{number}", NOW_MS - number, arrived_ms=NOW_MS) for number in range(50)]
    assert set(good) <= set(kept([*good, *flood], Retention(last=3)))
    assert good[1] not in kept([*good, *flood], Retention(last=2))
    own = [replace(row, arrived_ms=None) for row in flood]
    assert len(kept(own, Retention(last=2))) == 2


def test_the_rules_of_a_volume_are_its_own() -> None:
    moments = hourly(NOW - timedelta(hours=5), 5)
    other = [replace(row, volume="w") for row in moments]
    rows = judge([*moments, *other], lambda name: Retention(last=1) if name == "v" else Retention(), NOW_MS, UTC)
    assert [row.moment.volume for row in rows if row.keep] == ["v", *["w"] * 5]
    assert {row.reasons for row in rows if row.moment.volume == "w"} == {("no rule for this volume",)}


def test_reasons() -> None:
    moments = [
        DatedSnapshot("v", "old", NOW_MS - 50 * HOUR_MS, pinned="trial"),
        DatedSnapshot("v", "mid", NOW_MS - 30 * HOUR_MS, tags=frozenset({"a"})),
        DatedSnapshot("v", "gone", NOW_MS - 29 * HOUR_MS),
        DatedSnapshot("v", "new", NOW_MS - HOUR_MS),
        DatedSnapshot("v", "waiting", NOW_MS, good=False),
        DatedSnapshot("v", "later", NOW_MS + 3 * HOUR_MS),
    ]
    rows = judge(moments, lambda _: Retention(last=1, tags=frozenset({"a"})), NOW_MS, UTC)
    found = {row.moment.snapshot: (row.keep, row.reasons) for row in rows}
    assert found == {
        "old": (True, ("pinned: trial",)),
        "mid": (True, ("tag a",)),
        "gone": (False, ("no rule keeps it",)),
        "new": (True, ("last 1 of the whole ones",)),
        "waiting": (True, ("last 1 (not whole)",)),
        "later": (True, ("from the future",)),
    }
    assert [row.moment.snapshot for row in rows if not row.judged] == ["later"]


def test_copies_that_arrive_together_are_not_taken_for_one_days_snapshots() -> None:
    """Their own times cannot be true, and the time of arrival says nothing about them."""
    copies = [DatedSnapshot("v", f"c{number}", NOW_MS, arrived_ms=NOW_MS, doubtful=True) for number in range(30)]
    rows = judge(copies, lambda _: Retention(daily=7), NOW_MS, UTC)
    assert all(row.keep for row in rows)
    assert [row.reasons for row in rows if row.judged] == [("daily 1",)]
    assert {row.reasons for row in rows if not row.judged} == {("its time cannot be true",)}


def test_the_latest_by_the_chain_is_spared_whatever_its_clock_said() -> None:
    moments = [DatedSnapshot("v", "odd", 0, latest=True), *hourly(NOW - timedelta(hours=3), 3)]
    assert "odd" in [row.snapshot for row in kept(moments, Retention(last=2))]


@pytest.mark.parametrize(
    ("time_ms", "first", "before", "want"),
    [
        (5 * HOUR_MS, 6 * HOUR_MS, 6 * HOUR_MS, 5 * HOUR_MS),
        (5 * HOUR_MS, 6 * HOUR_MS + 1, 6 * HOUR_MS + 1, 6 * HOUR_MS + 1),
        (5 * HOUR_MS, 40 * HOUR_MS, 4 * HOUR_MS, 5 * HOUR_MS),  # it can have been published then
        (2 * HOUR_MS, 40 * HOUR_MS, 4 * HOUR_MS, 40 * HOUR_MS),  # it was not there at the look before
        (42 * HOUR_MS, 40 * HOUR_MS, 4 * HOUR_MS, 40 * HOUR_MS),  # it says a moment after it was seen
        (5 * HOUR_MS, 5 * HOUR_MS, 40 * HOUR_MS, 5 * HOUR_MS),  # this host's clock went back
    ],
)
def test_the_time_that_is_believed(time_ms: int, first: int, before: int, want: int) -> None:
    assert Sight(first, before).believed_ms(time_ms) == want


# -- what stays besides, and what others claim -------------------------------------------------------------------------


@given(
    lives(),
    policies,
    zones,
    st.lists(st.sampled_from([None, 0, 1, 2, 8]), min_size=25, max_size=25),
    st.integers(0, 24),
)
def test_what_stays_besides_only_adds_and_holds_the_laws(
    moments: list[DatedSnapshot], rules: Retention, zone: object, data: list[int | None], proven: int
) -> None:
    rows = [replace(row, data=data[at], proven=at == proven) for at, row in enumerate(moments)]
    assert names(kept(moments, rules, zone)) <= names(kept(rows, rules, zone))
    assert all(row in kept(rows, rules, zone) for row in rows if row.proven)
    hold_the_laws(rows, {row.snapshot for row in rows if not row.good}, rules, zone)


@given(lives(), lives(), policies, zones)
def test_claims_change_nothing_for_the_owners(
    moments: list[DatedSnapshot], others: list[DatedSnapshot], rules: Retention, zone: object
) -> None:
    claims = [
        replace(row, volume=f"{row.volume}, claimed by writer 01234567", snapshot=f"c{row.snapshot}") for row in others
    ]
    together = kept([*moments, *claims], rules, zone)
    assert [row for row in together if row in moments] == kept(moments, rules, zone)
    assert names(row for row in together if row not in moments) == names(kept(claims, rules, zone))


def test_the_last_snapshot_before_a_volume_was_emptied_stays_for_90_days() -> None:
    day_ms = 24 * HOUR_MS
    rows = [DatedSnapshot("v", f"d{n:03}", NOW_MS - n * day_ms, data=0 if n < 10 else 40) for n in range(20)]
    assert names(kept(rows, Retention(last=3))) == {"d000", "d001", "d002", "d010"}
    damaged = [replace(row, good=row.snapshot != "d010") for row in rows]
    assert names(kept(damaged, Retention(last=3))) == {"d000", "d001", "d002", "d010", "d011"}
    later = [replace(row, time_ms=row.time_ms - 81 * day_ms) for row in rows]
    assert names(kept(later, Retention(last=3))) == {"d000", "d001", "d002"}
    less = [replace(row, data=20 if row.data == 0 else row.data) for row in rows]
    assert names(kept(less, Retention(last=3))) == {"d000", "d001", "d002"}  # half is not less than half
