"""The text of systemd units and of a crontab that run a profile (systemd.service(5), systemd.timer(5), crontab(5))."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import PurePath

from lamella.base.errors import LamellaError, UsageError
from lamella.cli.amounts import budget
from lamella.cli.everyday.profiles import Profile
from lamella.run.spawn import run

RETRY_SECONDS = 900
"""After which a run that had to wait, for a disk or a condition, is tried again."""
_SECONDS = 60.0
_MOUNT_WAIT_SECONDS = 86_400
_ANSWER_SECONDS = 10.0
_HANDED_ON = ("LAMELLA_CONFIG", "LAMELLA_STATE_DIR", "LAMELLA_CACHE_DIR")

_SERVICE = """\
# Written by: lamella schedule install {profile}
[Unit]
Description=Lamella: {what} {profile}
Documentation=man:lamella-{command}(1)
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
# Not oneshot: a unit of that type cannot be tried again.
Type=simple
{environment}ExecStart={start}
{more}UMask=0077
Nice=19
CPUSchedulingPolicy=batch
IOSchedulingClass=idle
{privileged}"""

# A user's manager cannot do these, or only without new privileges: then a mail program that is set-group-id fails.
# Left out everywhere: ProtectSystem=strict and PrivateDevices, because checkpoints lie beside the images and LVM makes
# device nodes; MemoryDenyWriteExecute, because Python's foreign functions need it.
_PRIVILEGED = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
ProtectSystem=full
PrivateTmp=yes
ProtectClock=yes
ProtectHostname=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelTunables=yes
RestrictNamespaces=yes
"""

_RUN = f"""\
# Not now: try again, so that a disk that is plugged in, or a charger, is noticed before the next day.
SuccessExitStatus=75
RestartForceExitStatus=75
RestartSec={RETRY_SECONDS}
"""

_MOUNT = """\
# A disk that was removed again, or a condition: the timer of the profile comes back to that.
SuccessExitStatus=75
"""

_ON_MOUNT = """\

[Install]
WantedBy={mounts}
"""

_TIMER = """\
# Written by: lamella schedule install {profile}
[Unit]
Description=Lamella: {what} {profile}

[Timer]
{times}
[Install]
WantedBy=timers.target
"""


def names(profile: str) -> tuple[str, str, str, str, str]:
    """The units of a profile: the run's service and timer, the watch's service and timer, the service on a mount."""
    run, watch = f"lamella-run-{profile}", f"lamella-watch-{profile}"
    return f"{run}.service", f"{run}.timer", f"{watch}.service", f"{watch}.timer", f"lamella-mount-{profile}.service"


def mount_units(places: Iterable[str]) -> list[str]:
    """The units of all mount points that these absolute paths may lie behind (systemd.unit(5), escaping of paths).

    A disk that is away has no mount point yet that could be asked for: units that never come cost nothing.
    """
    points = {str(point) for place in places for point in (PurePath(place), *PurePath(place).parents)}
    return sorted(f"{_escaped(point)}.mount" for point in points - {"/"})


def _escaped(path: str) -> str:
    def one(place: int, byte: int) -> str:
        plain = (chr(byte).isalnum() and byte < 128) or byte in b":_" or (byte == ord(".") and place > 0)
        return chr(byte) if plain else "-" if byte == ord("/") else f"\\x{byte:02x}"

    return "".join(one(place, byte) for place, byte in enumerate(os.fsencode(path.strip("/"))))


def require_time(when: str, where: str) -> None:
    """Raises UsageError that names `where` if systemd does not understand a time; nothing where it is not installed."""
    if shutil.which("systemd-analyze"):
        try:
            run(["systemd-analyze", "calendar", when], timeout_seconds=_SECONDS)
        except LamellaError as error:
            raise UsageError(f"{where}: {when!r} is no time for systemd: {error.message}") from None


def units(
    profile: Profile, program: Sequence[str], env: Mapping[str, str], *, user: bool, mounts: Sequence[str] = ()
) -> dict[str, str]:
    """File name -> text. `program` is how Lamella is started; variables that say where its files lie go along.

    With `mounts`, units of mount points, another service runs the profile as soon as one of these is mounted.
    """
    environment = "".join(f"Environment={_quoted(f'{name}={env[name]}')}\n" for name in _HANDED_ON if env.get(name))
    privileged = "" if user else _PRIVILEGED

    def service(command: str, what: str, words: Sequence[str], more: str) -> str:
        return _SERVICE.format(
            profile=profile.name,
            command=command,
            what=what,
            start=" ".join(map(_quoted, [*program, *words])),
            environment=environment,
            more=more,
            privileged=privileged,
        )

    def timer(what: str, times: str) -> str:
        return _TIMER.format(profile=profile.name, what=what, times=times)

    limit = "" if profile.schedule.memory_max is None else f"MemoryMax={budget(profile.schedule.memory_max)}\n"
    run_service, run_timer, watch_service, watch_timer, mount_service = names(profile.name)
    schedule = profile.schedule
    when = f"OnCalendar={schedule.when}\nPersistent=true\nRandomizedDelaySec={schedule.random_delay}\n"
    # Counted from the start of the machine as well: a clock that is set back stops no such timer.
    hourly = "OnCalendar=hourly\nOnBootSec=15min\nOnUnitActiveSec=1h\nRandomizedDelaySec=5min\n"
    # A run that goes on already may be one that began before the disk was there.
    words = ["run", profile.name, "--lock-wait", str(_MOUNT_WAIT_SECONDS)]
    on_mount = (
        {mount_service: service("run", "a disk was mounted: run the profile", words, limit + _MOUNT)} if mounts else {}
    )
    for name in on_mount:
        after = "After=network-online.target"
        text = on_mount[name].replace(after, f"{after} {' '.join(mounts)}", 1)
        on_mount[name] = text + _ON_MOUNT.format(mounts=" ".join(mounts))
    return {
        run_service: service("run", "run the profile", ["run", profile.name], limit + _RUN),
        run_timer: timer("run the profile", when),
        watch_service: service("status", "watch the profile", ["status", "--notify", profile.name], ""),
        watch_timer: timer("watch the profile", hourly),
        **on_mount,
    }


def next_run(profile: str) -> int:
    """When systemd starts the profile's run next, in ms since 1970; 0: it does not, or there is no systemd here."""
    if shutil.which("systemctl") is None:
        return 0
    whose = ["--user"] if os.geteuid() else []
    asked = ["show", "--value", "--property=NextElapseUSecRealtime", names(profile)[1]]
    try:
        raw = run(["env", "TZ=UTC", "systemctl", *whose, *asked], timeout_seconds=_ANSWER_SECONDS)
    except LamellaError:
        return 0
    found = re.fullmatch(r"[A-Z][a-z]{2} (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC", raw.decode("ascii", "replace").strip())
    try:
        return int(datetime.fromisoformat(f"{found[1]}+00:00").timestamp()) * 1000 if found else 0
    except ValueError:
        return 0


def _quoted(word: str) -> str:
    """One word of a command line in a unit: percent signs and dollars mean something there (systemd.syntax(7))."""
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{plain}"' if any(one in plain for one in " \"'\\\t;") else plain


# -- cron -------------------------------------------------------------------------------------------------------------

_BEGIN, _END = "# begin lamella schedule {}", "# end lamella schedule {}"
CRON = {"hourly": "17 * * * *", "daily": "17 3 * * *", "weekly": "17 3 * * 1", "monthly": "17 3 1 * *"}


def crontab_lines(profile: Profile, program: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """The lines of a crontab. A time that only systemd understands runs daily; cron has no random delay."""
    places = [f"{name}={shlex.quote(env[name])}" for name in _HANDED_ON if env.get(name)]
    start = " ".join([*places, *map(shlex.quote, program)]).replace("%", "\\%")
    when = CRON.get(profile.schedule.when, CRON["daily"])
    return [
        _BEGIN.format(profile.name),
        f"{when} {start} run -q {profile.name}",
        f"47 * * * * {start} status -q --notify {profile.name}",
        _END.format(profile.name),
    ]


def without(lines: Sequence[str], profile: str) -> list[str]:
    """A crontab's lines without those of the profile."""
    kept, inside = [], False
    for line in lines:
        inside = inside or line == _BEGIN.format(profile)
        if not inside:
            kept.append(line)
        inside = inside and line != _END.format(profile)
    return kept
