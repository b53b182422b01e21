"""`[profiles.NAME]`: what `lamella run NAME` does, when, and whom it tells (docs/guide/everyday.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Final

from lamella.base.errors import UsageError
from lamella.cli.amounts import age, budget
from lamella.cli.configuration_files import Check, boolean, compression, domain, listed, near, text

LEVELS: Final = ("structure", "sample", "full")
_LEAST_MEMORY: Final = 64 << 20
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
    """The receivers of messages: `command` gets JSON, `ping` a request, `mail` a letter, the desktop a notification."""

    command: str | None = None
    ping: str | None = None
    mail: str | None = None
    desktop: bool = False
    apprise: tuple[str, ...] = ()
    """Addresses as apprise reads them."""
    nobody: bool = False
    """That nobody is told is meant: somebody looks by other means."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """When a run makes sense; otherwise it waits. `window` is local time, over midnight if its end is earlier."""

    ac_power: bool = False
    unmetered: bool = False
    ssid: tuple[str, ...] = ()
    window: str | None = None


@dataclass(frozen=True, slots=True)
class QubesStep:
    """The qubes that are saved, as `lamella qubes backup` chooses them; by default those marked for backups."""

    names: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    everything: bool = False
    exclude: tuple[str, ...] = ()
    committed: bool = False
    """Running qubes as they were at their last shutdown."""
    pause: bool = False
    template_roots: bool = True

    @property
    def arguments(self) -> list[str]:
        """As options of `lamella qubes backup`."""
        switches = (("--all", self.everything), ("--committed", self.committed), ("--pause", self.pause))
        found = [option for option, wanted in (*switches, ("--no-template-roots", not self.template_roots)) if wanted]
        for option, values in (("--tag", self.tags), ("--label", self.labels), ("--exclude", self.exclude)):
            found += [word for value in values for word in (option, value)]
        return [*found, "--", *self.names]


@dataclass(frozen=True, slots=True)
class FilesStep:
    """The directories that are saved file by file, as `lamella files backup` takes them."""

    directories: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    exclude_caches: bool = False
    one_file_system: bool = False
    exclude_inside: str = ""

    @property
    def arguments(self) -> list[str]:
        """As options of `lamella files backup`."""
        switches = (("--exclude-caches", self.exclude_caches), ("--one-file-system", self.one_file_system))
        found = [option for option, wanted in switches if wanted]
        found += ["--exclude-inside", self.exclude_inside] if self.exclude_inside else []
        return [*found, *(word for value in self.exclude for word in ("--exclude", value)), "--", *self.directories]


@dataclass(frozen=True, slots=True)
class DrillStep:
    """Which volumes are drilled how often, as `lamella drill` takes it; without `volumes` those that were saved."""

    volumes: tuple[str, ...] = ()
    every: str = "30d"
    budget: str = "15m"
    """No further drill of a run begins after this time."""
    kernel: str | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """`when` and `random_delay` are systemd's: OnCalendar= and RandomizedDelaySec= (systemd.time(7))."""

    when: str = "daily"
    random_delay: str = "30min"
    memory_max: str | None = None
    """The memory that a run may use, drills included, as a size; systemd's MemoryMax= (systemd.resource-control(5))."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One `[profiles.NAME]`. `repositories` empty: the configured destinations of a backup."""

    name: str
    sources: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    scrub: tuple[str, ...] = ()
    """Patterns of files to leave out of the volumes."""
    repositories: tuple[str, ...] = ()
    copy_to: tuple[str, ...] = ()
    compression: str | None = None
    """Instead of that of `[backup]`; None: that one."""
    domain: str | None = None
    require_consistent: bool | None = None
    """Instead of that of `[backup]`; None: that one."""
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
    drill: DrillStep | None = None
    qubes: QubesStep | None = None
    files: FilesStep | None = None

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
    """The notifications in a text that `Profile.messages` made; none for any other text."""
    try:
        content = json.loads(saved)
        notify = content["notify"]
        return Hooks(**content["hooks"]), Notify(**{**notify, "apprise": tuple(notify.get("apprise", ()))})
    except (ValueError, TypeError, KeyError, AttributeError):
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
    word = text(value)
    if not word[0].isdecimal() and word not in LEVELS:
        raise ValueError(f"must be a size such as 10GiB, {', '.join(LEVELS)} or false{near(word, LEVELS)}")
    if word not in LEVELS:
        budget(word)
    return word


def _prune(value: object) -> Mapping[str, object] | None:
    """`true` or `false`; a table of rules is read key by key."""
    if not isinstance(value, bool):
        raise ValueError("must be true, false, or a table of rules such as keep_daily")
    return {} if value else None


def _rules() -> Mapping[str, Check]:
    """What checks each rule, as in `[prune]`."""
    from lamella.cli.policy import KEYS, rule

    return {key: partial(rule, key) for key in KEYS}


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


def _addresses(value: object) -> tuple[str, ...]:
    found = listed(value)
    for one in found:
        if not re.match(r"[a-z0-9]+://[^\s]", one):
            raise ValueError(f"{one.partition('://')[0]!r} is no address such as ntfys://ntfy.sh/topic")
    return found


def _age(value: object) -> int:
    return age(text(value))


def _every(value: object) -> str:
    age(text(value))
    return text(value)


def _memory(value: object) -> str:
    if budget(text(value)) < _LEAST_MEMORY:
        raise ValueError("must be a size of 64M or more: a run with less is killed by the kernel")
    return text(value)


def _minutes(value: object) -> str:
    found = text(value)
    if not re.fullmatch(r"[0-9]{1,6}[smh]", found):
        raise ValueError("must be a time such as 90s, 15m or 1h")
    return found


def _sources(value: object) -> tuple[str, ...]:
    found = listed(value)
    for one in found:
        place = one.partition("=")[2] if re.match(r"[^/=:]+=", one) else one
        # A service has no directory that a relative path could mean.
        if not place.startswith(("/", "!")) and ":" not in place:
            raise ValueError(f"{one!r} must be an absolute path or pattern, or begin with a driver such as lvm:")
    return found


def _directories(value: object) -> tuple[str, ...]:
    found = listed(value)
    for one in found:
        if not one.startswith("/"):
            raise ValueError(f"{one!r} must be an absolute path")
    return found


_TABLES: Final[Mapping[str, tuple[type[Any], Mapping[str, Check]]]] = {
    "hooks": (Hooks, dict.fromkeys(("before", "after", "success", "failure", "stale"), text)),
    "notify": (
        Notify,
        {"command": text, "ping": _ping, "mail": text, "desktop": boolean, "apprise": _addresses, "nobody": boolean},
    ),
    "conditions": (Conditions, {"ac_power": boolean, "unmetered": boolean, "ssid": listed, "window": _window}),
    "schedule": (Schedule, {"when": text, "random_delay": text, "memory_max": _memory}),
    "qubes": (
        QubesStep,
        {
            **dict.fromkeys(("names", "tags", "labels", "exclude"), listed),
            **dict.fromkeys(("everything", "committed", "pause", "template_roots"), boolean),
        },
    ),
    "files": (
        FilesStep,
        {
            "directories": _directories,
            "exclude": listed,
            "exclude_inside": text,
            **dict.fromkeys(("exclude_caches", "one_file_system"), boolean),
        },
    ),
    "drill": (DrillStep, {"volumes": listed, "every": _every, "budget": _minutes, "kernel": text}),
}
_VALUES: Final[Mapping[str, Check]] = {
    "sources": _sources,
    "exclude": listed,
    "scrub": listed,
    "repositories": listed,
    "copy_to": listed,
    "compression": compression,
    "domain": domain,
    "require_consistent": boolean,
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
    if isinstance(files := inner.get("files"), dict):
        inner["files"] = {"directories": [], **files}
    rules = one if isinstance(one := table.get("prune"), dict) and one else None
    outer = {key: one for key, one in table.items() if key not in inner and (key != "prune" or rules is None)}
    found = values(where, outer, {**_VALUES, **dict.fromkeys(_TABLES, text)})
    for key, one in inner.items():
        kind, checks = _TABLES[key]
        read = values(f"{where}.{key}", one, checks)
        found[key] = kind(**({"directories": ()} | read if kind is FilesStep else read))
    if rules is not None:
        found["prune"] = values(f"{where}.prune", rules, _rules())
    if outer.get("verify") is False:
        found["verify"] = None
    return Profile(name, **found) if found.keys() & {"sources", "qubes", "files"} else None
