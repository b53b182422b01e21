"""Retention rules as users write them: options of `prune`, and `[prune]` in the configuration."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from datetime import UTC, tzinfo
from typing import TYPE_CHECKING

from lamella.base.errors import UsageError
from lamella.cli.configuration import PruneSettings
from lamella.operations.prune.retention import ALL, Age, Period, Retention, Thinning

if TYPE_CHECKING:  # not needed to read the configuration
    from lamella.operations.prune.retaining import Policy

_COUNTS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
KEYS = (*(f"keep_{name}" for name in _COUNTS), "keep_within", "keep_tags", "thin_older")
"""The keys of `[prune]` and `[prune.volumes.NAME]`."""


def count(text: str) -> int:
    """A number of snapshots to keep: 1 or more, or `all`. Raises ArgumentTypeError."""
    if text == "all":
        return ALL
    if not text.isdecimal() or not 1 <= int(text) <= ALL:
        raise argparse.ArgumentTypeError(f"not a number of snapshots: {text!r}; write 1 or more, or all")
    return int(text)


def age(text: str) -> Age:
    """A length of time. Raises ArgumentTypeError."""
    try:
        return Age.parse(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(f"{error.message}; {error.hint}") from error


def thinning(text: str) -> Thinning:
    """`AGE:PERIOD`, or AGE alone for one a day. Raises ArgumentTypeError."""
    length, _, period = text.partition(":")
    try:
        return Thinning(age(length), Period(period or "day"))
    except ValueError:
        names = ", ".join(one.value for one in Period)
        raise argparse.ArgumentTypeError(f"not a period: {period!r}; write one of {names}") from None


def zone(name: str) -> tzinfo:
    """A time zone of the system's database. Raises UsageError."""
    if name.upper() == "UTC":
        return UTC
    from zoneinfo import ZoneInfo  # most runs have no other zone

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        hint = "write a name like Europe/Berlin, or UTC; the system's time zone data must be installed"
        raise UsageError(f"no time zone is called {name}", obj=name, hint=hint) from error


def zone_name(text: str) -> str:
    """A time zone's name. Raises ArgumentTypeError."""
    try:
        zone(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(f"{error.message}; {error.hint}") from error
    return text


def add_rules(parser: argparse.ArgumentParser) -> None:
    """The options that say what to keep."""
    group = parser.add_argument_group("what to keep (instead of the rules in the configuration)")
    for name in _COUNTS:
        what = "newest snapshots" if name == "last" else f"snapshots, the newest of each {_period(name)}"
        group.add_argument(f"--keep-{name}", type=count, default=0, metavar="N", help=f"keep N {what} (or all)")
    group.add_argument(
        "--keep-within",
        type=age,
        metavar="AGE",
        help="keep snapshots that are at most AGE old, for example 30d or 1y6m",
    )
    group.add_argument("--keep-tag", action="append", default=[], metavar="TAG", help="keep snapshots with this tag")
    group.add_argument(
        "--thin-older",
        action="append",
        type=thinning,
        default=[],
        metavar="AGE[:PERIOD]",
        help="keep all snapshots younger than AGE, and of older ones one for each PERIOD (hour, day, week, month, "
        "year; default day)",
    )
    parser.add_argument("--zone", type=zone_name, metavar="ZONE", help="time zone of days and hours (default UTC)")


def _period(name: str) -> str:
    return "day" if name == "daily" else name.removesuffix("ly")


def given_rules(args: argparse.Namespace) -> Retention:
    """The rules from the command line."""
    counts = {name: getattr(args, f"keep_{name}") for name in _COUNTS}
    tags = frozenset(tag.removeprefix("^") for tag in args.keep_tag)
    return Retention(**counts, within=args.keep_within, tags=tags, thin=tuple(args.thin_older))


def policy_of(settings: PruneSettings, given: Retention | None = None, zone_text: str | None = None) -> Policy:
    """The configured policy, or the rules given instead. Raises UsageError."""
    from lamella.operations.prune.retaining import Policy

    found = zone(zone_text or settings.zone)
    if given is not None and not given.empty:
        return Policy(given, {}, found)
    rules = {name: read_rules(table) for name, table in settings.rules.items()}
    return Policy(rules.pop("", Retention()), rules, found)


def read_rules(table: Mapping[str, object]) -> Retention:
    """Rules from a table of the configuration, whose keys are KEYS. Raises ValueError naming the key."""
    found: dict[str, object] = {}
    for key, value in table.items():
        try:
            found[_FIELDS[key]] = _value(key, value)
        except (argparse.ArgumentTypeError, UsageError, TypeError) as error:
            raise ValueError(f"{key}: {error}") from error
    return Retention(**found)  # type: ignore[arg-type]


def rule(key: str, value: object) -> object:
    """The value of one rule as it is written, if it is right. Raises ValueError."""
    try:
        read_rules({key: value})
    except ValueError as error:
        raise ValueError(str(error).removeprefix(f"{key}: ")) from error
    return value


_FIELDS = {
    **{f"keep_{name}": name for name in _COUNTS},
    "keep_within": "within",
    "keep_tags": "tags",
    "thin_older": "thin",
}


def _value(key: str, value: object) -> object:
    if key in ("keep_tags", "thin_older"):
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise TypeError("must be a list of texts")
        return frozenset(value) if key == "keep_tags" else tuple(thinning(one) for one in value)
    if key == "keep_within":
        if not isinstance(value, str):
            raise TypeError('must be a length of time like "30d"')
        return age(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError('must be a number of snapshots, or "all"')
    return count(str(value))
