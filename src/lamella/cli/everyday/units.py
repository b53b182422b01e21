"""The text of systemd units and of a crontab that run a profile (systemd.service(5), systemd.timer(5), crontab(5))."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from lamella.cli.everyday.profiles import Profile

RETRY_SECONDS = 900
"""After which a run that had to wait, for a disk or a condition, is tried again."""
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

_TIMER = """\
# Written by: lamella schedule install {profile}
[Unit]
Description=Lamella: {what} {profile}

[Timer]
{times}
[Install]
WantedBy=timers.target
"""


def names(profile: str) -> tuple[str, str, str, str]:
    """The units of a profile: the run's service and timer, the watch's service and timer."""
    run, watch = f"lamella-run-{profile}", f"lamella-watch-{profile}"
    return f"{run}.service", f"{run}.timer", f"{watch}.service", f"{watch}.timer"


def units(profile: Profile, program: Sequence[str], env: Mapping[str, str], *, user: bool) -> dict[str, str]:
    """File name -> text. `program` is how Lamella is started; variables that say where its files lie go along."""
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

    run_service, run_timer, watch_service, watch_timer = names(profile.name)
    schedule = profile.schedule
    when = f"OnCalendar={schedule.when}\nPersistent=true\nRandomizedDelaySec={schedule.random_delay}\n"
    # Counted from the start of the machine as well: a clock that is set back stops no such timer.
    hourly = "OnCalendar=hourly\nOnBootSec=15min\nOnUnitActiveSec=1h\nRandomizedDelaySec=5min\n"
    return {
        run_service: service("run", "run the profile", ["run", profile.name], _RUN),
        run_timer: timer("run the profile", when),
        watch_service: service("status", "watch the profile", ["status", "--notify", profile.name], ""),
        watch_timer: timer("watch the profile", hourly),
    }


def _quoted(word: str) -> str:
    """One word of a command line in a unit: percent signs and dollars mean something there (systemd.syntax(7))."""
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{plain}"' if any(one in plain for one in " \"'\\\t;") else plain


# -- cron -------------------------------------------------------------------------------------------------------------

_BEGIN, _END = "# begin lamella schedule {}", "# end lamella schedule {}"
_CRON = {"hourly": "17 * * * *", "daily": "17 3 * * *", "weekly": "17 3 * * 1", "monthly": "17 3 1 * *"}


def crontab_lines(profile: Profile, program: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """The lines of a crontab. A time that only systemd understands runs daily; cron has no random delay."""
    places = [f"{name}={shlex.quote(env[name])}" for name in _HANDED_ON if env.get(name)]
    start = " ".join([*places, *map(shlex.quote, program)]).replace("%", "\\%")
    when = _CRON.get(profile.schedule.when, _CRON["daily"])
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
