"""The directories of this host for configuration, state and cache, and its name (design: places)."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lamella.base.errors import UsageError
from lamella.memory.host import Host, machine_name

MACHINE_ID = Path("/etc/machine-id")
_MIN_ID = 16


def config_place(env: Mapping[str, str]) -> Path:
    """The configuration: a file, or a directory of *.toml."""
    named = env.get("LAMELLA_CONFIG")
    if named:
        return Path(named)
    return Path("/etc/lamella") if _is_root() else _base(env, "XDG_CONFIG_HOME", ".config")


def state_place(env: Mapping[str, str]) -> Path:
    """The state directory: nothing can rebuild it, and its loss costs time."""
    return _place(env, "LAMELLA_STATE_DIR", "/var/lib/lamella", "XDG_STATE_HOME", ".local/state")


def cache_place(env: Mapping[str, str]) -> Path:
    """The cache directory: anybody may delete it."""
    return _place(env, "LAMELLA_CACHE_DIR", "/var/cache/lamella", "XDG_CACHE_HOME", ".cache")


def this_host(env: Mapping[str, str], machine_file: Path = MACHINE_ID) -> Host:
    """This host. Raises LamellaError when it has no machine id and none can be kept."""
    state = state_place(env)
    return Host(machine_name(_machine_id(machine_file, state)), os.uname().nodename, state, cache_place(env))


def is_name(text: str) -> bool:
    """Whether a REPO is written as a configured name may be: without slash and colon."""
    return bool(text) and "/" not in text and ":" not in text and text not in {".", ".."}


def _place(env: Mapping[str, str], variable: str, system: str, xdg: str, below_home: str) -> Path:
    named = env.get(variable)
    if named:
        return _owned(Path(named).absolute(), variable)
    return _owned(Path(system) if _is_root() else _base(env, xdg, below_home), variable)


def _owned(place: Path, variable: str) -> Path:
    """Raises UsageError for a place where another user could put what this host would believe."""
    for path in (place, *place.parents):
        with suppress(OSError):  # what is missing is made, for its owner alone
            found = path.stat()
            # Above the place the sticky bit is enough: nobody replaces what belongs to somebody else.
            others = 0o022 if path == place else 0 if found.st_mode & stat.S_ISVTX else stat.S_IWOTH
            if found.st_uid not in (0, os.geteuid()) or found.st_mode & others:
                hint = f"take it over (chown, chmod go-w), or set {variable} to a directory of your own"
                raise UsageError(f"other users can change what is in {path}", obj=str(place), hint=hint)
    return place


def _base(env: Mapping[str, str], xdg: str, below_home: str) -> Path:
    # The XDG specification: a relative path there is ignored.
    base = Path(env.get(xdg, ""))
    if base.is_absolute():
        return base / "lamella"
    try:
        home = Path(env.get("HOME") or "~").expanduser()  # services and cron may start without HOME
    except RuntimeError:
        raise UsageError(f"there is no home directory to keep files in: set HOME or {xdg}") from None
    return home / below_home / "lamella"


def _is_root() -> bool:
    return os.geteuid() == 0


def _machine_id(machine_file: Path, state: Path) -> str:
    """The system's machine id; where there is none, a random one that is kept in the state directory."""
    found = _read_id(machine_file) or _read_id(state / "machine")
    if not found:
        from lamella.cli.machine import new_id  # once, and where the system has no machine id

        found = new_id(state)
    return found


def _read_id(path: Path) -> str:
    try:
        text = path.read_text("ascii").strip()
    except (OSError, ValueError):
        return ""
    # systemd writes "uninitialized" into images before their first start
    return text if len(text) >= _MIN_ID and text != "uninitialized" else ""
