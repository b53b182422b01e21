"""`[profiles.NAME]`: what `lamella run NAME` does, when, and whom it tells (docs/guide/everyday.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from lamella.base.errors import UsageError
from lamella.cli.amounts import age, budget
from lamella.cli.configuration_files import Check, boolean, listed, text

LEVELS: Final = ("structure", "sample", "full")
_WINDOW: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True, slots=True)
class Hooks:
    """Commands of the user, by the event; each gets the event as JSON on standard input."""

    before: str | None = None
    after: str | None = None
    success: str | None = None
    failure: str | None = None
    stale: str | None = None


@dataclass(frozen=True, slots=True)
class Notify:
    """Who hears of troubles: `command` gets JSON, `ping` a request, `mail` a letter, the desktop a notification."""

    command: str | None = None
    ping: str | None = None
    mail: str | None = None
    desktop: bool = False


@dataclass(frozen=True, slots=True)
class Conditions:
    """When a run makes sense; otherwise it waits. `window` is local time, over midnight if its end is earlier."""

    ac_power: bool = False
    unmetered: bool = False
    ssid: tuple[str, ...] = ()
    window: str | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """`when` and `random_delay` are systemd's: OnCalendar= and RandomizedDelaySec= (systemd.time(7))."""

    when: str = "daily"
    random_delay: str = "30min"


@dataclass(frozen=True, slots=True)
class Profile:
    """One `[profiles.NAME]`. `repositories` empty: the configured destinations of a backup."""

    name: str
    sources: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()
    copy_to: tuple[str, ...] = ()
    domain: str | None = None
    prune: Mapping[str, object] | None = None
    """Rules as they are written, instead of those of `[prune]`; empty: those of `[prune]`; None: nothing is pruned."""
    verify: str | None = "1GiB"
    """A budget a run, a level of `verify`, or None for no verification."""
    stale_after: int = 3 * 86_400_000
    """Milliseconds without a good snapshot after which the profile is stale."""
    hooks: Hooks = field(default_factory=Hooks)
    notify: Notify = field(default_factory=Notify)
    conditions: Conditions = field(default_factory=Conditions)
    schedule: Schedule = field(default_factory=Schedule)

    @property
    def rules(self) -> list[str]:
        """The rules as options of `lamella prune`."""
        found: list[str] = []
        for key, value in (self.prune or {}).items():
            option = "--" + key.removesuffix("s" if key == "keep_tags" else "").replace("_", "-")
            for one in value if isinstance(value, list) else [value]:
                found += [option, str(one)]
        return found

    @property
    def messages(self) -> str:
        """Hooks and notifications as JSON."""
        return json.dumps({"hooks": asdict(self.hooks), "notify": asdict(self.notify)})


def is_profile_name(name: str) -> bool:
    """Whether a profile may be called so: its name becomes part of file names and units."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name) is not None


def messages_from(saved: str) -> tuple[Hooks, Notify]:
    """What `Profile.messages` said; nothing where it says something else."""
    try:
        content = json.loads(saved)
        return Hooks(**content["hooks"]), Notify(**content["notify"])
    except (ValueError, TypeError, KeyError):
        return Hooks(), Notify()


def require_profile(profiles: Mapping[str, Profile], name: str) -> Profile:
    """The profile of that name. Raises UsageError with the nearest one."""
    found = profiles.get(name)
    if found is not None:
        return found
    if not profiles:
        raise UsageError(f"no profile is called {name}: none is configured", obj=name, hint="see: lamella config init")
    from difflib import get_close_matches

    near = get_close_matches(name, profiles, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(profiles))}"
    raise UsageError(f"no profile is called {name}", obj=name, hint=hint)


# -- reading ----------------------------------------------------------------------------------------------------------


def _verify(value: object) -> str | None:
    if value is False:
        return None
    if isinstance(value, str) and value not in LEVELS:
        budget(value)
    return text(value)


def _prune(value: object) -> Mapping[str, object] | None:
    """`true`, or a table of rules as in `[prune]`."""
    from lamella.cli.policy import KEYS, read_rules

    if isinstance(value, bool):
        return {} if value else None
    if not isinstance(value, dict) or not value:
        raise ValueError("must be true, false, or a table of rules such as keep_daily")
    unknown = sorted(value.keys() - set(KEYS))
    if unknown:
        raise ValueError(f"has no rule {unknown[0]!r}; rules are {', '.join(KEYS)}")
    read_rules(value)
    return value


def _window(value: object) -> str:
    found = text(value)
    match = _WINDOW.fullmatch(found)
    if match is None or match.group(1, 2) == match.group(3, 4):
        raise ValueError("must be two times of day, such as 22:00-06:00")
    return found


def _ping(value: object) -> str:
    found = text(value)
    if not re.match(r"https?://[^/\s]", found):
        raise ValueError("must be an address that begins with https:// or http://")
    return found


def _age(value: object) -> int:
    return age(text(value))


def _sources(value: object) -> tuple[str, ...]:
    found = listed(value)
    for one in found:
        place = one.partition("=")[2] if re.match(r"[^/=:]+=", one) else one
        # A service has no directory that a relative path could mean.
        if not place.startswith("/") and ":" not in place:
            raise ValueError(f"{one!r} must be an absolute path or pattern, or begin with a driver such as lvm:")
    return found


_TABLES: Final[Mapping[str, tuple[type[Any], Mapping[str, Check]]]] = {
    "hooks": (Hooks, dict.fromkeys(("before", "after", "success", "failure", "stale"), text)),
    "notify": (Notify, {"command": text, "ping": _ping, "mail": text, "desktop": boolean}),
    "conditions": (Conditions, {"ac_power": boolean, "unmetered": boolean, "ssid": listed, "window": _window}),
    "schedule": (Schedule, {"when": text, "random_delay": text}),
}
_VALUES: Final[Mapping[str, Check]] = {
    "sources": _sources,
    "exclude": listed,
    "repositories": listed,
    "copy_to": listed,
    "domain": text,
    "prune": _prune,
    "verify": _verify,
    "stale_after": _age,
}


def read_profile(name: str, values: Any, table: object) -> Profile | None:  # noqa: ANN401 - the reader's method
    """The profile in a table; `values` (where, table, checks) reads one table and reports what is wrong in it."""
    where = f"profiles.{name}"
    if not isinstance(table, dict):
        values(where, table, {})
        return None
    inner = {key: one for key, one in table.items() if key in _TABLES}
    outer = {key: one for key, one in table.items() if key not in inner}
    found = values(where, outer, {**_VALUES, **dict.fromkeys(_TABLES, text)})
    for key, one in inner.items():
        kind, checks = _TABLES[key]
        found[key] = kind(**values(f"{where}.{key}", one, checks))
    if outer.get("verify") is False:
        found["verify"] = None
    return Profile(name, **found) if "sources" in found else None
