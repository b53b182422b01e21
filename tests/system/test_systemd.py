"""What `lamella schedule` installs, under a systemd that is the first process, and under cron.

The fears: the timer starts nothing; an absent disk is an alarm, or is never tried again; the timer of the backup
breaks and nobody hears of it; a user's timers die with the login.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial

import pytest

from tests.cli.program import ROOT, Terminal
from tests.features import require
from tests.system.systemd_machine import SystemdMachine, systemd_machine

_TELL = r"""
printf '#!/bin/sh\ncat >> /srv/told\necho >> /srv/told\n' > /usr/local/bin/tell; chmod 755 /usr/local/bin/tell
mkdir -p /etc/lamella /srv/vm; umask 077; head -c 32 /dev/urandom > /etc/lamella/key
"""
_PROFILE = r"""
cat >> {config} <<'END'
[repositories.{name}]
url = "{place}/repository"
keyfile = "{key}"
[profiles.{name}]
sources = ["{images}/*.img"]
repositories = ["{name}"]
verify = false
[profiles.{name}.notify]
command = "/usr/local/bin/tell"
[profiles.{name}.schedule]
when = "{when}"
random_delay = "0"
END
"""
_EVERY_TWO_SECONDS = "*:*:0/2"
_SAVED = "$L list --json -r {} | grep -c complete || true"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdMachine]:
    place = tmp_path_factory.mktemp("machine") / "top"
    place.mkdir()
    with systemd_machine(place) as found:
        found.ok(_TELL + "head -c 1M /dev/urandom > /srv/vm/disk.img")
        for name, when in {
            "nightly": _EVERY_TWO_SECONDS,
            "usb": "daily",
            "broken": "daily",
            "by-cron": "daily",
        }.items():
            where = {"config": "/etc/lamella/lamella.toml", "key": "/etc/lamella/key", "images": "/srv/vm"}
            found.ok(_PROFILE.format(name=name, when=when, place=f"/srv/{name}", **where))
        # The clock of cron has no seconds: it begins with the first test.
        if shutil.which("cron") and shutil.which("crontab"):
            found.ok("mkdir /srv/by-cron; $L init -q -r by-cron; $L schedule install --cron by-cron")
            found.ok("crontab -l | sed 's/^17 3 . . ./* * * * */; s/^47 ./* */' | crontab -; cron")
        yield found


def _is_more(before: int, text: str) -> bool:
    return int(text) > before


def status(machine: SystemdMachine, unit: str, user: str = "") -> dict[str, str]:
    """What systemd says of a service."""
    scope = "--user" if user else ""
    words = f"systemctl {scope} show -p Result -p SubState -p ExecMainStatus -p NRestarts {unit}"
    return dict(line.split("=", 1) for line in machine.ok(words, user).splitlines())


def test_the_timer_starts_a_backup_in_its_sandbox(machine: SystemdMachine) -> None:
    machine.ok("mkdir /srv/nightly; $L init -q -r nightly; $L schedule install nightly")
    saved = machine.until(_SAVED.format("nightly"), lambda text: int(text or 0) >= 2)
    machine.ok("systemctl stop lamella-run-nightly.timer")
    assert int(saved) >= 2
    journal = machine.ok("journalctl --no-pager -o cat -u lamella-run-nightly.service")
    assert "disk: 1.0 MiB, 1.0 MiB read, 1.0 MiB stored" in journal and "every step was done" in journal
    assert "lamella-watch-nightly.timer" in machine.ok("systemctl list-timers --no-pager")
    assert machine.run("test -e /srv/told").returncode != 0
    # The sandbox holds: the same unit cannot write where the system lies.
    words = "systemctl cat lamella-run-nightly.service | sed 's#^ExecStart=.*#ExecStart=/usr/bin/touch /usr/touched#'"
    machine.ok(f"{words} | grep -v Force > /run/systemd/system/probe.service; systemctl daemon-reload")
    machine.run("systemctl start probe.service")
    machine.until("systemctl show -p ActiveState --value probe.service", lambda text: text.strip() == "failed")
    assert "Read-only file system" in machine.ok("journalctl --no-pager -o cat -u probe.service")
    machine.ok("$L schedule remove nightly; test ! -e /etc/systemd/system/lamella-run-nightly.timer")


def test_an_absent_disk_is_no_failure_and_is_tried_again(machine: SystemdMachine) -> None:
    machine.ok("$L schedule install usb")
    machine.ok("systemctl start lamella-run-usb.service")
    machine.until(
        "systemctl show -p SubState --value lamella-run-usb.service", lambda text: text.strip() == "auto-restart"
    )
    found = status(machine, "lamella-run-usb.service")
    assert (found["Result"], found["ExecMainStatus"]) == ("success", "75")
    assert "lamella-run-usb" not in machine.ok("systemctl list-units --failed --no-pager")
    # The disk is plugged in; the unit's own 15 minutes are shortened, as an administrator can.
    drop_in = "/etc/systemd/system/lamella-run-usb.service.d"
    machine.ok(f"mkdir {drop_in}; printf '[Service]\\nRestartSec=1\\n' > {drop_in}/soon.conf; systemctl daemon-reload")
    machine.ok("mkdir /srv/usb; $L init -q -r usb; systemctl stop lamella-run-usb.service; mv /srv/usb /srv/away")
    machine.ok("systemctl start lamella-run-usb.service")
    machine.until("systemctl show -p NRestarts --value lamella-run-usb.service", lambda text: int(text or 0) >= 1)
    machine.ok("mv /srv/away /srv/usb")
    machine.until(_SAVED.format("usb"), lambda text: int(text or 0) >= 1)
    machine.until("systemctl is-active lamella-run-usb.service", lambda text: text.strip() == "inactive")
    assert status(machine, "lamella-run-usb.service")["ExecMainStatus"] == "0"
    assert machine.run("grep usb /srv/told").returncode != 0


def test_a_disk_that_is_mounted_is_backed_up_to_at_once(machine: SystemdMachine) -> None:
    """Its timer is far away; the mount point had another disk before, and none when the units were installed."""
    where = {"config": "/etc/lamella/lamella.toml", "key": "/etc/lamella/key", "images": "/srv/vm"}
    machine.ok("mkdir -p '/srv/my disk-1' /srv/red /srv/blue")
    ids = {}
    for name in ("red", "blue"):
        machine.ok(_PROFILE.format(name=name, when="yearly", place="/srv/my disk-1", **where))
        machine.ok(f"mount --bind /srv/{name} '/srv/my disk-1'; $L init -q -r {name}")
        ids[name] = json.loads(machine.ok(f"$L info --json -r {name}"))["id"]
        machine.ok("umount '/srv/my disk-1'")
    for name, id_ in ids.items():
        machine.ok(f"sed -i 's/^.repositories.{name}.$/&\\nid = \"{id_}\"/' /etc/lamella/lamella.toml")
    machine.ok('printf \'[media.vault]\\nrepositories = ["red", "blue"]\\n\' >> /etc/lamella/lamella.toml')
    machine.ok("sed -i 's/^repositories = ..red..$/repositories = [\"vault\"]/' /etc/lamella/lamella.toml")
    machine.ok("$L schedule install red --on-mount")
    for name in ("blue", "red", "blue"):
        before = int(machine.run(f"find /srv/{name} -path '*/w/*' -type f | wc -l").stdout)
        machine.ok(f"mount --bind /srv/{name} '/srv/my disk-1'")
        commits = f"find /srv/{name} -path '*/w/*' -type f | wc -l"
        machine.until(commits, partial(_is_more, before))
        machine.until("systemctl is-active lamella-mount-red.service", lambda text: text.strip() == "inactive")
        assert "every step was done" in machine.ok("journalctl --no-pager -o cat -u lamella-mount-red.service")
        machine.ok("umount '/srv/my disk-1'")
    machine.ok("$L schedule remove red; mount --bind /srv/red '/srv/my disk-1'")
    assert machine.run("ls /etc/systemd/system/*.mount.wants/lamella* /etc/systemd/system/lamella-mount-*").stdout == ""
    machine.ok("umount '/srv/my disk-1'")


def test_the_watch_tells_although_the_timer_of_the_backup_is_broken(machine: SystemdMachine) -> None:
    """Installed four days ago; the first timer is damaged, the repository was never there."""
    machine.ok(
        f'{sys.executable} -c "import os; from lamella.cli.places import this_host; '
        "from lamella.memory.runs import Profiles; from lamella.base.clock import now_ms; "
        "Profiles(this_host(os.environ)).see('broken', now_ms() - 4 * 86400000, '')\""
    )
    drop_in = "/etc/systemd/system/lamella-watch-broken.timer.d"
    machine.ok(f"mkdir {drop_in}; printf '[Timer]\\nOnActiveSec=1s\\nRandomizedDelaySec=0\\n' > {drop_in}/soon.conf")
    machine.ok("$L schedule install broken")
    machine.ok("printf '[Timer]\\nOnCalendar=never\\n' > /etc/systemd/system/lamella-run-broken.timer")
    machine.ok(
        "systemctl daemon-reload; systemctl stop lamella-run-broken.timer; systemctl restart lamella-watch-broken.timer"
    )
    told = machine.until("cat /srv/told", lambda text: '"stale"' in text)
    assert "no good backup to broken" in told and told.count('"stale"') == 1
    # The message is out before the watch has ended.
    ended = "systemctl show -p SubState --value lamella-watch-broken.service"
    machine.until(ended, lambda text: text.strip() in ("failed", "dead"))
    assert status(machine, "lamella-watch-broken.service")["ExecMainStatus"] == "3"


def test_a_users_timers_run_without_a_login_if_the_user_lingers(machine: SystemdMachine) -> None:
    require("systemd", shutil.which("loginctl") is not None and shutil.which("dbus-daemon") is not None, "no logind")
    machine.ok("useradd -m ann; systemctl start systemd-logind")
    home = {"config": ".config/lamella/lamella.toml", "key": "/home/ann/key", "images": "/home/ann/vm"}
    machine.ok(
        "umask 077; mkdir -p .config/lamella vm disk;head -c 32 /dev/urandom > key; head -c 1M /dev/urandom > vm/a.img",
        "ann",
    )
    machine.ok(_PROFILE.format(name="mine", when=_EVERY_TWO_SECONDS, place="/home/ann/disk", **home), "ann")
    machine.ok("$L init -q -r mine", "ann")
    refused = machine.run("$L schedule install mine", "ann")  # nobody is logged in: there is no manager to ask
    assert machine.run("test -e .config/systemd", "ann").returncode != 0
    assert refused.returncode == 1 and "Traceback" not in refused.stderr and refused.stderr.count("\n") == 1
    assert "enable-linger" in refused.stderr
    machine.ok("loginctl enable-linger ann")
    machine.until("systemctl is-active user@$(id -u ann).service", lambda text: text.strip() == "active")
    machine.ok("$L schedule install mine", "ann")
    machine.until(_SAVED.format("mine"), lambda text: int(text or 0) >= 1, "ann")
    assert status(machine, "lamella-run-mine.service", "ann")["Result"] == "success"
    machine.ok("$L schedule remove mine", "ann")


def test_setup_leads_to_a_timer_that_saves(machine: SystemdMachine) -> None:
    machine.ok("mkdir /srv/more; head -c 1M /dev/urandom > /srv/more/disk.img")
    machine.ok("$L setup -y --name more -r /srv/backups/more --tell nobody --recovery-sheet /srv/sheet /srv/more")
    assert machine.ok("systemctl is-enabled lamella-run-more.timer lamella-watch-more.timer").split() == ["enabled"] * 2
    # Midnight, and half an hour by chance.
    found = json.loads(machine.ok("$L status --json || true"))
    (coming,) = [row["next"] for row in found["profiles"] if row["profile"] == "more"]
    now = float(machine.ok("date +%s"))
    assert 0 <= datetime.fromisoformat(coming).timestamp() - now <= 25 * 3600, coming
    machine.ok("systemctl start lamella-run-more.service")
    machine.until(_SAVED.format("more"), lambda text: int(text or 0) >= 2)
    machine.until("systemctl is-active lamella-run-more.service", lambda text: text.strip() == "inactive")
    assert status(machine, "lamella-run-more.service")["ExecMainStatus"] == "0"


def test_the_tutorial_does_what_it_says_in_ten_minutes(machine: SystemdMachine) -> None:
    """Its commands alone, typed by somebody who has two images and a disk, by the clock."""
    machine.ok("rm -rf /var/lib/libvirt/images /mnt/backup; mkdir -p /var/lib/libvirt/images /mnt/backup; umask 077")
    machine.ok("mv /etc/lamella /etc/lamella.others; mv /var/lib/lamella /var/lib/lamella.others")
    machine.ok("mv /srv/vm /srv/others")  # a usual place for images, too
    machine.ok("for one in web db; do head -c 32M /dev/urandom > /var/lib/libvirt/images/$one.img; done")
    machine.ok("printf '#!/bin/sh\\ncat > /srv/printed < \"$1\"\\n' > /usr/bin/lp; chmod 755 /usr/bin/lp")
    machine.ok("printf '#!/bin/sh\\ncat > /srv/mail\\n' > /usr/sbin/sendmail; chmod 755 /usr/sbin/sendmail")
    text = (ROOT / "docs" / "guide" / "tutorial.md").read_text("utf-8")
    began = time.monotonic()
    transcript, *_ = re.findall(r"^```\n(\$ lamella setup\n.*?)^```$", text, re.MULTILINE | re.DOTALL)
    with Terminal(["setup"], command=machine.command) as terminal:
        for question, answer in re.findall(r"^(?!lamella:)(\S.*?) \[.*?\]:? ?(.*)$", transcript, re.MULTILINE):
            terminal.expect(question)
            terminal.expect("] ") if question == "Continue?" else terminal.expect("]: ")
            terminal.type(answer)
        assert terminal.end() == 0, terminal.seen
        assert "set up, saved and proved in" in terminal.seen
    commands = re.findall(r"^ {4}(?!lamella setup)(\S.*?)(?: {2,}#.*)?$", text, re.MULTILINE)
    assert len(commands) >= 8
    shown = {
        line: machine.ok(line.replace("lamella ", "$L ", 1) if line[:8] == "lamella " else line) for line in commands
    }
    assert "the same" in "".join(shown.values())
    assert time.monotonic() - began < 600
    marks = [line.partition(" ")[0] for line in shown["lamella status"].splitlines()[1:] if line]
    assert marks == ["ok"] * 4, shown["lamella status"]
    assert machine.ok("$L list --json | grep -c complete").strip() == "2"
    # Scheduled: what the timer starts works too. Reported: a failure tomorrow makes one message.
    assert machine.ok("systemctl is-enabled lamella-run-main.timer").strip() == "enabled"
    machine.ok("printf '#!/bin/sh\\ncat >> /srv/letters\\n' > /usr/sbin/sendmail; chmod 755 /usr/sbin/sendmail")
    machine.ok("mv /var/lib/libvirt/images /var/lib/libvirt/gone; systemctl start lamella-run-main.service")
    letter = machine.until("cat /srv/letters", lambda text: "FAILED" in text)
    assert "main" in letter and letter.count("Subject:") == 1
    # Verified, and back on another machine with nothing but the paper.
    key = re.findall(r"(?:[A-Z2-7]{5}-\s*){13}[A-Z2-7]{5}", machine.ok("cat /srv/printed"))[0]
    machine.ok("mv /etc/lamella /etc/burnt; mv /var/lib/lamella /var/lib/burnt; rm -rf /var/cache/lamella")
    machine.ok(f"echo '{key}' > /srv/typed; mkdir /srv/back")
    machine.ok("$L restore -r /mnt/backup/lamella --recovery-key-file /srv/typed --all --to /srv/back/")
    machine.ok("for one in web db; do cmp /srv/back/$one.img /var/lib/libvirt/gone/$one.img; done")
    machine.ok("mv /etc/lamella.others /etc/lamella; mv /var/lib/lamella.others /var/lib/lamella")
    machine.ok("mv /srv/others /srv/vm")


def test_cron_runs_the_backup_and_the_watch(machine: SystemdMachine) -> None:
    require("cron", shutil.which("cron") is not None and shutil.which("crontab") is not None, "no cron is installed")
    machine.until(_SAVED.format("by-cron"), lambda text: int(text or 0) >= 1, seconds=75)
    machine.ok("$L schedule show --cron by-cron; $L schedule remove --cron by-cron")
    assert machine.run("crontab -l").stdout.strip() == ""
