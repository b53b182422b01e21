"""The hosts of the fleet: a file for each, in `fleet` beside the configuration (decision 0086).

A file that cannot be understood is that host's trouble and nobody else's.
"""

from __future__ import annotations

import json
import re
import tomllib
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamella.base.errors import LamellaError, NothingMatched, UsageError
from lamella.cli.amounts import age, budget
from lamella.cli.configuration import RepositorySettings
from lamella.cli.configuration_files import REPOSITORY, Check, near, text
from lamella.cli.places import config_place
from lamella.cli.shown import shown
from lamella.cli.toml_lines import line_of

SCHEME = "fleet:"
STALE_MS = 2 * 86_400_000
"""A host is stale after two days, unless its file says otherwise."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SECRETS = ("keyfile", "passphrase_file", "passphrase_command")
_OWN: Mapping[str, Check] = {
    "quota": lambda value: budget(text(value)),
    "stale_after": lambda value: age(text(value)),
    "mirror": REPOSITORY["url"],
}
KEYS = (*REPOSITORY, *_OWN)
"""The keys of a host's file: those of `[repositories.NAME]`, and the fleet's own."""


@dataclass(frozen=True, slots=True)
class FleetHost:
    """One host: where its repository is, what opens it, and what is expected of it."""

    name: str
    path: Path
    settings: RepositorySettings
    quota_bytes: int | None = None
    stale_ms: int = STALE_MS
    mirror: str | None = None
    problem: str = ""
    """Why its file cannot be understood: nothing is done with this host until it can."""

    @property
    def has_key(self) -> bool:
        """Whether this machine can open the repository."""
        return any(getattr(self.settings, name) for name in _SECRETS)


def fleet_place(env: Mapping[str, str]) -> Path:
    """The directory of the hosts' files."""
    place = config_place(env)
    return (place.parent if place.suffix == ".toml" else place) / "fleet"


def check_name(name: str) -> str:
    """Return a name that a host may have; raise UsageError otherwise."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"not a name for a host: {name!r}", obj=name, hint="letters, digits, dot, dash, _; at most 64")
    return name


def all_hosts(env: Mapping[str, str]) -> list[FleetHost]:
    """All hosts, by name."""
    found = sorted(fleet_place(env).glob("*.toml"))
    return [read_host(path) for path in found if _NAME.fullmatch(path.stem)]


def chosen(env: Mapping[str, str], names: Sequence[str]) -> list[FleetHost]:
    """The hosts with these names, all of them without any. Raises UsageError for an empty fleet, NothingMatched."""
    hosts = all_hosts(env)
    if not hosts:
        hint = "add one: lamella fleet add HOST -r REPO"
        raise NothingMatched("there is no host in the fleet", obj=str(fleet_place(env)), hint=hint)
    known = {one.name: one for one in hosts}
    for name in names:
        if name not in known:
            raise NothingMatched(f"the fleet has no host {name}", obj=name, hint="see: lamella fleet list")
    return [known[name] for name in dict.fromkeys(names)] if names else hosts


def place_of(env: Mapping[str, str], repo: str) -> tuple[str, RepositorySettings]:
    """The URL and the settings of `fleet:HOST`. Raises NothingMatched, UsageError."""
    (host,) = chosen(env, [repo.removeprefix(SCHEME)])
    if host.problem:
        raise UsageError(host.problem, obj=str(host.path))
    return host.settings.url, host.settings


def read_host(path: Path) -> FleetHost:
    """What a file says; what is wrong with it is the host's `problem`."""
    nowhere = RepositorySettings("")
    try:
        values, problem = _checked(path.read_text("utf-8"))
    except OSError as error:
        return FleetHost(path.stem, path, nowhere, problem=f"its file cannot be read: {error.strerror}")
    except ValueError as error:
        return FleetHost(path.stem, path, nowhere, problem=shown(f"its file is not valid TOML: {error}"))
    if not problem and "url" not in values:
        problem = "its file has no url"
    if not problem and len(values.keys() & set(_SECRETS)) > 1:
        problem = "its file names more than one secret"
    if problem:
        return FleetHost(path.stem, path, nowhere, problem=problem)
    settings = RepositorySettings(**{name: value for name, value in values.items() if name in REPOSITORY})
    quota, stale = values.get("quota"), values.get("stale_after", STALE_MS)
    return FleetHost(path.stem, path, settings, quota, stale, values.get("mirror"))


def _checked(content: str) -> tuple[dict[str, Any], str]:
    """The values, and the first thing that is wrong. Raises ValueError for what is not TOML."""
    checks, found = {**REPOSITORY, **_OWN}, dict[str, Any]()
    for key, value in tomllib.loads(content).items():
        try:
            if key not in checks:
                return found, f"{_line(content, key)}: unknown key {shown(key)}{near(key, checks)}"
            found[key] = checks[key](value)
        except (ValueError, ArgumentTypeError) as error:
            return found, f"{_line(content, key)}: {key} {error}"
        except LamellaError as error:
            return found, f"{_line(content, key)}: {key}: {error.message}"
    return found, ""


def _line(content: str, key: str) -> str:
    return f"line {line_of(content, key)} of its file"


def host_file(values: Mapping[str, str]) -> bytes:
    """The text of a host's file."""
    # A basic string of TOML, which JSON's are where they are all ASCII.
    lines = (f"{key} = {json.dumps(value)}\n" for key, value in values.items())
    return "".join(lines).replace("\x7f", "\\u007f").encode("ascii")
