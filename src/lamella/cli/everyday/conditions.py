"""Whether a run makes sense now: power, network, time of day."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import datetime, time
from pathlib import Path

from lamella.base.errors import LamellaError
from lamella.cli.everyday.profiles import Conditions
from lamella.run.spawn import run

POWER = Path("/sys/class/power_supply")
_SECONDS = 10.0


def unmet(conditions: Conditions, now: datetime, power: Path = POWER) -> list[str]:
    """Why a run has to wait; empty if nothing stands against it. `now` is local time.

    What this machine cannot tell stands against nothing: a desktop has no battery, a server no NetworkManager.
    """
    return list(_unmet(conditions, now, power))


def _unmet(conditions: Conditions, now: datetime, power: Path) -> Iterator[str]:
    if conditions.window is not None and not within(conditions.window, now.time()):
        yield f"it is {now:%H:%M}, outside {conditions.window}"
    if conditions.ac_power and on_battery(power):
        yield "the machine runs on its battery"
    if conditions.unmetered and _asked(["-t", "-f", "GENERAL.METERED", "device", "show"]) & {"yes", "yes (guessed)"}:
        yield "the network is metered"
    if conditions.ssid:
        here = _asked(["-t", "-f", "ACTIVE,SSID", "device", "wifi"], "yes:")
        if not here & set(conditions.ssid):
            yield f"the wireless network is {', '.join(sorted(here)) or 'none'}, not {' or '.join(conditions.ssid)}"


def within(window: str, now: time) -> bool:
    """Whether a time of day lies in `HH:MM-HH:MM`, over midnight if the end is the earlier one."""
    begin, end = (time.fromisoformat(part) for part in window.split("-"))
    return begin <= now < end if begin < end else now >= begin or now < end


def on_battery(power: Path) -> bool:
    """Whether a battery discharges and no mains supply is on line (Documentation/ABI/testing/sysfs-class-power)."""
    supplies = [(_line(one / "type"), _line(one / "online"), _line(one / "status")) for one in _supplies(power)]
    if any(kind != "Battery" and online == "1" for kind, online, _ in supplies):
        return False
    return any(kind == "Battery" and status == "Discharging" for kind, _, status in supplies)


def _supplies(power: Path) -> list[Path]:
    try:
        return sorted(power.iterdir())
    except OSError:
        return []


def _line(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace").strip()
    except OSError:
        return ""


def _asked(arguments: list[str], start: str = "") -> set[str]:
    """The answer of NetworkManager, the part after the last colon or after `start`; empty without NetworkManager."""
    if shutil.which("nmcli") is None:
        return set()
    try:
        lines = run(["nmcli", *arguments], timeout_seconds=_SECONDS).decode("utf-8", "replace").splitlines()
    except LamellaError:
        return set()
    if start:
        return {line.removeprefix(start).replace("\\:", ":") for line in lines if line.startswith(start)}
    return {line.rpartition(":")[2] for line in lines}
