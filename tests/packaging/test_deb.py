"""The Debian package: installed by dpkg in a machine of its own, used, upgraded, removed, purged.

The machine is made of namespaces over this one (tests/system/systemd_machine.py), so nothing is installed here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.features import require
from tests.system.systemd_machine import SystemdMachine, systemd_machine

ROOT = Path(__file__).resolve().parents[2]
MODULES = "/usr/lib/python3/dist-packages"
PROFILE = """\
default_repository = "r"
[repositories.r]
url = "/var/backups/r"
keyfile = "/etc/lamella/key"
[profiles.nightly]
sources = ["/srv/disk.img"]
repositories = ["r"]
[profiles.nightly.notify]
nobody = true
[profiles.nightly.schedule]
when = "daily"
"""


def build(folder: Path, version: str = "") -> Path:
    """The package of what git has committed."""
    command = [str(ROOT / "packaging/deb/build.sh"), str(folder), *([version] if version else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("lamella_*_all.deb")
    return found


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("dpkg", shutil.which("dpkg-deb") is not None, "dpkg-deb is not installed")
    require("dpkg", (ROOT / ".git").exists(), "the package is made from a git checkout")
    return build(tmp_path_factory.mktemp("deb"))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[SystemdMachine]:
    require("dpkg", Path(MODULES, "zstandard").is_dir(), "python3-zstandard is not installed")
    place = tmp_path / "machine"
    place.mkdir()
    with systemd_machine(place) as running:
        yield running


def put(machine: SystemdMachine, file: Path, place: str) -> None:
    """Copy a file into the machine."""
    words = ["nsenter", "-t", str(machine.pid), "-a", "dd", f"of={place}", "status=none"]
    subprocess.run(words, input=file.read_bytes(), timeout=60, check=True)


def test_it_is_used_upgraded_removed_and_purged(package: Path, machine: SystemdMachine, tmp_path: Path) -> None:
    put(machine, package, "/root/first.deb")
    put(machine, build(tmp_path / "next", "9.9.9"), "/root/next.deb")
    (tmp_path / "profile.toml").write_text(PROFILE)

    machine.ok("dpkg -i /root/first.deb")
    assert machine.ok("command -v lamella").strip() == "/usr/bin/lamella"
    assert machine.ok(f"ls {MODULES}/lamella/cli/__pycache__ | grep -c pyc").strip() != "0"
    for file in (
        "man/man1/lamella-backup.1.gz",
        "man/man7/lamella-emergency.7.gz",
        "bash-completion/completions/lamella",
        "doc/lamella/guide/start.md",
    ):
        machine.ok(f"test -s /usr/share/{file}")
    machine.ok("mkdir -p /etc/lamella /srv; head -c 3000000 /dev/urandom > /srv/disk.img")
    machine.ok("head -c 32 /dev/urandom > /etc/lamella/key")
    put(machine, tmp_path / "profile.toml", "/etc/lamella/profile.toml")
    machine.ok("cd /; lamella init -q; lamella run nightly; lamella restore disk --to /root/out.img")
    machine.ok("cmp /srv/disk.img /root/out.img")
    machine.ok("lamella schedule install nightly")
    assert "ExecStart=/usr/bin/lamella run nightly" in machine.ok("cat /etc/systemd/system/lamella-run-nightly.service")

    machine.ok("dpkg -i /root/next.deb")
    assert machine.ok("lamella --version").split() == ["lamella", "9.9.9"]
    machine.ok("systemctl start lamella-run-nightly.service")
    machine.until("lamella list", lambda shown: len([one for one in shown.splitlines() if "disk" in one]) >= 2)
    assert machine.run("lamella status").returncode == 0
    machine.ok("lamella schedule show nightly")

    removed = machine.run("dpkg -r lamella")
    assert "the schedule lamella-run-nightly.timer is stopped and removed" in removed.stderr, removed
    assert "doctor --forget-host" in removed.stderr
    assert machine.run("ls /etc/systemd/system/lamella-*").returncode != 0
    assert "lamella" not in machine.ok("systemctl list-timers --all --no-legend")
    assert machine.run(f"ls -d {MODULES}/lamella*").returncode != 0
    purged = machine.run("dpkg --purge lamella")
    assert purged.returncode == 0
    assert "/etc/lamella stays" in purged.stderr
    machine.ok("test -s /etc/lamella/key; test ! -e /var/cache/lamella")
    left = machine.run("find /usr /etc /var -iname '*lamella*' -newer /root/first.deb")
    known = ("/etc/lamella", "/var/lib/lamella", "/var/backups", "/var/log")
    assert [path for path in left.stdout.splitlines() if not path.startswith(known)] == []


def test_the_same_commit_makes_the_same_package(package: Path, tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        again = build(tmp_path)
    finally:
        os.umask(umask)
    assert again.read_bytes() == package.read_bytes()


def test_what_a_removed_host_leaves_is_what_forget_host_takes(package: Path, machine: SystemdMachine) -> None:
    put(machine, package, "/root/lamella.deb")
    machine.ok(
        "dpkg -i /root/lamella.deb; head -c 32 /dev/urandom > /root/key; head -c 1000 /dev/urandom > /root/a.img"
    )
    machine.ok("cd /root; L='lamella -r /root/r --keyfile /root/key'; $L init -q; $L backup a.img; $L list")
    machine.ok("lamella doctor --forget-host -y; test ! -e /var/lib/lamella; test ! -e /var/cache/lamella")
    silent = machine.run("dpkg --purge lamella")
    assert "lamella:" not in silent.stderr
