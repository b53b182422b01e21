"""systemd as the first process of a machine made of namespaces: this machine's files below a layer that is thrown away.

Timers, sandboxing, credentials, and the managers of users work as on a machine of their own. Limits of memory work
where the kernel has that controller in the one hierarchy: tests/guest/test_schedule.py starts the same in a guest.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cli.program import ROOT
from tests.features import require

SYSTEMD = "/lib/systemd/systemd"
_START_SECONDS = 30.0
_SECONDS = 120.0

# What would change the kernel, which is not the machine's own, or cost time.
_MASKED = (
    *("systemd-sysctl.service", "systemd-modules-load.service", "systemd-remount-fs.service", "modprobe@.service"),
    *(
        "systemd-hwdb-update.service",
        "sys-kernel-debug.mount",
        "sys-kernel-tracing.mount",
        "sys-fs-fuse-connections.mount",
    ),
    *("dev-hugepages.mount", "systemd-tmpfiles-clean.timer", "systemd-journal-flush.service"),
)
_UP = r"""
set -e
top=$1; shift; root=$top/root
mount --make-rprivate /
mount -t tmpfs top "$top"
mkdir "$root" "$top/upper" "$top/work"
mount -t overlay overlay -o lowerdir=/,upperdir="$top/upper",workdir="$top/work" "$root"
for name in run tmp; do mount -t tmpfs -o mode=755 $name "$root/$name"; done
chmod 1777 "$root/tmp"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sys "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 dev "$root/dev"
for node in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0"; do
    set -- $node "$@"; mknod -m 666 "$root/dev/$1" c "$2" "$3"; shift 3
done
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue"
mount -t devpts -o newinstance,ptmxmode=0666 pts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
rm -rf "$root"/etc/systemd/system/*.wants "$root/etc/lamella" "$root/var/lib/lamella" "$root/var/cache/lamella"
while [ "$1" != -- ]; do ln -sf /dev/null "$root/etc/systemd/system/$1"; shift; done; shift
mkdir -p "$root/etc/systemd/system.conf.d" "$root/etc/systemd/user.conf.d"
for kind in system user; do
    printf '[Manager]\nDefaultTimerAccuracySec=100ms\n' > "$root/etc/systemd/$kind.conf.d/test.conf"
done
for place in "$@"; do  # the project and its interpreter, wherever they are mounted, and for everybody
    mkdir -p "$root$place"; mount --bind "$place" "$root$place"
    while [ "$place" != / ]; do place=$(dirname "$place"); chmod a+x "$root$place"; done
done
cd "$root"; mkdir -p old; pivot_root . old; umount -l /old
# As systemd does where it is alone: what it mounts for a unit, credentials above all, has to reach its own view.
mount --make-rshared /
exec /usr/bin/env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --log-target=console --unit=basic.target < /dev/null
"""


class SystemdMachine:
    """A running machine; `pid` is its first process as this machine counts. A script may take so many seconds."""

    def __init__(self, pid: int, seconds: float) -> None:
        self.pid = pid
        self._seconds = seconds

    @property
    def command(self) -> list[str]:
        """The command `lamella` inside, for whoever starts it."""
        return [*self._inside(), *shlex.split(_LAMELLA)]

    def _inside(self) -> list[str]:
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", "L": _LAMELLA}
        words = ["nsenter", "-t", str(self.pid), "-a", "env", "-i"]
        return [*words, *(f"{name}={value}" for name, value in environment.items())]

    def run(self, script: str, user: str = "") -> subprocess.CompletedProcess[str]:
        """Run a shell script inside, as root or as a user with the runtime directory of a login."""
        words = self._inside()
        if user:
            login = f"export HOME=/home/{user} XDG_RUNTIME_DIR=/run/user/$(id -u); cd; {script}"
            words += ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "sh", "-c", login]
        else:
            words += ["sh", "-c", script]
        return subprocess.run(words, capture_output=True, text=True, timeout=self._seconds, check=False)

    def ok(self, script: str, user: str = "") -> str:
        """Run a script that must succeed; returns what it printed."""
        done = self.run(f"set -e; {script}", user)
        assert done.returncode == 0, (script, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def until(self, script: str, wanted: Callable[[str], bool], user: str = "", seconds: float = 120.0) -> str:
        """Run a script until what it prints is as wanted; returns that."""
        end = time.monotonic() + seconds
        while not wanted(found := self.run(script, user).stdout):
            assert time.monotonic() < end, f"{found!r}\n{self.run('journalctl --no-pager -n 50').stdout}"
            time.sleep(0.2)
        return found


_LAMELLA = f"{shlex.quote(sys.executable)} -m lamella"


@contextmanager
def systemd_machine(
    place: Path, start_seconds: float = _START_SECONDS, seconds: float = _SECONDS
) -> Iterator[SystemdMachine]:
    """Start one below the empty directory `place`; it is gone afterwards. Needs root, systemd, and an overlay of /.

    Starting and each script may take so many seconds: in a guest the processor is a program.
    """
    require("root", os.geteuid() == 0, "only root can make such namespaces")
    require("systemd", Path(SYSTEMD).exists(), "systemd is not installed")
    places = dict.fromkeys((str(ROOT), sys.prefix, sys.base_prefix))
    # A user's manager sets niceness 0 and may not lower its own; processes of tests are nice (tests/conftest.py).
    words = [
        "nice",
        f"--adjustment={-os.nice(0)}",
        "unshare",
        "--fork",
        "--pid",
        "--mount",
        "--uts",
        "--ipc",
        "--net",
        "--cgroup",
    ]
    words += ["bash", "-c", _UP, "up", str(place), *_MASKED, "--", *places]
    log = place.with_name("systemd.log")
    with log.open("wb") as output:
        outer = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    try:
        pid = _first_process(outer, start_seconds)
        require("systemd", pid != 0, f"it does not start here: {log.read_text('utf-8', 'replace')[-2000:]}")
        yield SystemdMachine(pid, seconds)
    finally:
        for child in _children(outer.pid):
            os.kill(child, signal.SIGKILL)
        outer.kill()
        outer.wait()


def _first_process(outer: subprocess.Popen[bytes], seconds: float) -> int:
    """The first process of the namespace once it answers; 0 if it never does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and outer.poll() is None:
        for pid in _children(outer.pid):
            state = subprocess.run(
                ["nsenter", "-t", str(pid), "-a", "systemctl", "is-system-running"],
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=False,
            )
            if state.stdout.strip() in ("running", "degraded"):
                return pid
        time.sleep(seconds / 300)
    return 0


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
