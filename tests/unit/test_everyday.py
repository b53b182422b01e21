"""Conditions, units and messages of profiles."""

from __future__ import annotations

import shutil
import subprocess
from datetime import datetime, time
from pathlib import Path

import pytest

from lamella.cli.everyday.conditions import on_battery, unmet, within
from lamella.cli.everyday.profiles import Conditions, Hooks, Notify, Profile, Schedule, messages_from
from lamella.cli.everyday.troubles import staleness
from lamella.cli.everyday.units import crontab_lines, mount_units, names, units, without
from lamella.memory.runs import ProfileRecord
from tests.features import require

DAY = 86_400_000
NOW = 1_700_000_000_000


@pytest.mark.parametrize(
    ("window", "now", "inside"),
    [
        ("09:00-17:00", "09:00", True),
        ("09:00-17:00", "16:59", True),
        ("09:00-17:00", "17:00", False),
        ("09:00-17:00", "08:59", False),
        ("22:00-06:00", "23:30", True),
        ("22:00-06:00", "05:59", True),
        ("22:00-06:00", "06:00", False),
        ("22:00-06:00", "12:00", False),
    ],
)
def test_windows_of_time_also_over_midnight(window: str, now: str, inside: bool) -> None:
    assert within(window, time.fromisoformat(now)) is inside


def supply(power: Path, name: str, **files: str) -> None:
    (power / name).mkdir(parents=True)
    for file, text in files.items():
        (power / name / file).write_text(text + "\n")


def test_a_battery_counts_only_while_nothing_else_feeds_the_machine(tmp_path: Path) -> None:
    assert not on_battery(tmp_path / "nothing")  # a server
    supply(tmp_path, "BAT0", type="Battery", status="Discharging")
    assert on_battery(tmp_path)
    supply(tmp_path, "AC", type="Mains", online="0")
    assert on_battery(tmp_path)
    supply(tmp_path, "USB", type="USB", online="1")
    assert not on_battery(tmp_path)


def test_a_battery_that_is_full_postpones_nothing(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", type="Battery", status="Full")
    now = datetime(2026, 11, 29, 12, 0)
    assert unmet(Conditions(ac_power=True, window="11:00-13:00"), now, tmp_path) == []
    assert unmet(Conditions(window="13:00-14:00"), now, tmp_path) == ["it is 12:00, outside 13:00-14:00"]


@pytest.mark.parametrize(
    ("record", "word"),
    [
        (ProfileRecord(first_ms=NOW - 2 * DAY), ""),
        (ProfileRecord(first_ms=NOW - 4 * DAY), "yet"),
        (ProfileRecord(first_ms=1, good={"nas": NOW - 2 * DAY}), ""),
        (ProfileRecord(first_ms=1, good={"nas": NOW - 4 * DAY}), "for 4.0 days"),
        (ProfileRecord(first_ms=1, good={"usb": NOW}), "yet"),
        (ProfileRecord(first_ms=1, good={"nas": NOW + DAY}), "set back"),
        (ProfileRecord(), ""),
    ],
)
def test_when_a_repository_counts_as_stale(record: ProfileRecord, word: str) -> None:
    why = staleness(record, "nas", 3 * DAY, NOW)
    assert word in why and bool(why) is bool(word)


def test_how_people_are_told_survives_a_broken_configuration() -> None:
    hooks, notify = Hooks(failure="x y"), Notify(mail="root", desktop=True)
    assert messages_from(Profile("p", ("/a",), hooks=hooks, notify=notify).messages) == (hooks, notify)
    for broken in ("", "[]", '{"hooks": {"no": 1}}', "null"):
        assert messages_from(broken) == (Hooks(), Notify())


PROFILE = Profile("nightly", ("/a",), schedule=Schedule("Mon..Fri 02:00", "5min", "1G"))
PROGRAM = ["/opt/a b/50%/lamella"]


@pytest.mark.parametrize("user", [False, True])
def test_systemd_understands_the_units(tmp_path: Path, user: bool) -> None:
    mounts = mount_units(["/mnt/my disk-1/repository"])
    made = units(PROFILE, ["/bin/true"], {"LAMELLA_CONFIG": "/etc/with blank/c.toml"}, user=user, mounts=mounts)
    assert tuple(made) == names("nightly")
    assert tuple(units(PROFILE, ["/bin/true"], {}, user=user)) == names("nightly")[:-1]
    for name, text in made.items():
        (tmp_path / name).write_text(text)
    assert ["MemoryMax=1073741824" in text for text in made.values()] == [True, False, False, False, True]
    require("systemd-analyze", shutil.which("systemd-analyze") is not None, "systemd is not installed")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in made)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and str(tmp_path) not in done.stderr, done.stderr


def test_a_users_units_hinder_no_mail_program() -> None:
    """A sandbox that takes away set-group-id makes sendmail fail in silence."""
    for user in (True, False):
        text = "".join(units(PROFILE, PROGRAM, {}, user=user).values())
        for sandbox in ("NoNewPrivileges", "RestrictSUIDSGID", "SystemCallArchitectures", "RestrictAddressFamilies"):
            assert (f"{sandbox}=" in text) is not user


def test_words_of_a_unit_are_quoted() -> None:
    service = units(PROFILE, PROGRAM, {}, user=False)["lamella-run-nightly.service"]
    assert 'ExecStart="/opt/a b/50%%/lamella" run nightly\n' in service
    assert "RestartForceExitStatus=75" in service and "OnCalendar" not in service
    timers = units(PROFILE, PROGRAM, {}, user=False)
    assert "OnCalendar=Mon..Fri 02:00\nPersistent=true" in timers["lamella-run-nightly.timer"]
    # The watch depends on no calendar alone: a clock that jumps stops it no more than a day.
    assert "OnBootSec" in timers["lamella-watch-nightly.timer"]


def test_the_mount_points_that_a_place_may_lie_behind() -> None:
    """As `systemd-escape --path --suffix=mount` names them."""
    assert mount_units(["/mnt/my disk-1/.a_b:é/./x", "/mnt"]) == [
        "mnt-my\\x20disk\\x2d1-.a_b:\\xc3\\xa9-x.mount",
        "mnt-my\\x20disk\\x2d1-.a_b:\\xc3\\xa9.mount",
        "mnt-my\\x20disk\\x2d1.mount",
        "mnt.mount",
    ]
    assert mount_units(["/.snapshots"]) == ["\\x2esnapshots.mount"]
    assert mount_units(["/"]) == []


def test_lines_for_cron_are_replaced_and_leave_others_alone() -> None:
    lines = crontab_lines(PROFILE, PROGRAM, {})
    assert any("50\\%" in line and " run -q nightly" in line for line in lines)
    mine = ["# mine", "1 2 3 4 5 date"]
    assert without([*mine, *lines, "@daily true"], "nightly") == [*mine, "@daily true"]
    assert without([*mine, *lines], "night") == [*mine, *lines]
