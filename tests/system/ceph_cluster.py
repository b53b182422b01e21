"""A Ceph cluster of one machine, on loop-back and below one directory: monitor, manager, one OSD on a file.

Ports are free ones, found when it starts; nothing is written outside of its directory. `radosgw` and further pools are
for whoever needs them: `conf` is what every program of Ceph takes by `-c`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from contextlib import suppress
from pathlib import Path

from tests.features import require

PROGRAMS = ("ceph-mon", "ceph-osd", "ceph-mgr", "ceph", "ceph-authtool", "monmaptool", "rbd")
OSD_BYTES = 32 << 30
_SECONDS = 120

_CONF = """
[global]
fsid = {fsid}
mon initial members = a
mon host = [v2:127.0.0.1:{port}]
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
ms bind msgr1 = false
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
osd pool default pg num = 8
osd pool default pg autoscale mode = off
mon warn on pool no redundancy = false
mon data avail crit = 1
mon data avail warn = 2
mon osd full ratio = .99
mon osd backfillfull ratio = .98
mon osd nearfull ratio = .97
osd objectstore = bluestore
bluestore block size = {size}
osd memory target = 939524096
rgw gc obj min wait = 2
paxos propose interval = .02
paxos min wait = .01
log file = {place}/$name.log
admin socket = {place}/run/$name.asok
run dir = {place}/run
pid file = {place}/run/$name.pid
keyring = {place}/keyring
[client]
admin socket =
log file =
[mon.a]
mon data = {place}/mon
[mgr.x]
mgr data = {place}/mgr
[osd.0]
osd data = {place}/osd
[client.rgw]
rgw data = {place}/rgw
rgw frontends = beast endpoint=127.0.0.1:{s3_port}
"""

_KEYS = {
    "mon.": ["mon", "allow *"],
    "client.admin": ["mon", "allow *", "osd", "allow *", "mgr", "allow *"],
    "mgr.x": ["mon", "allow profile mgr", "osd", "allow *"],
    "osd.0": ["mon", "allow profile osd", "osd", "allow *", "mgr", "allow profile osd"],
    "client.rgw": ["mon", "allow rw", "osd", "allow rwx"],
}
S3_USERS = {"S3RVER": ("--caps", "user-policy=*"), "HOST": ()}
"""Keys of the users of S3, which are their secrets, too, and what else they may do."""


def need_ceph() -> None:
    """Skip or fail the test where Ceph is not installed."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    require("ceph", not missing, f"not installed: {', '.join(missing)}")


class Ceph:
    """The cluster; it runs from `start` to `close`. The pool `rbd` is there."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.conf = place / "ceph.conf"
        self.fsid = str(uuid.uuid4())
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._s3: subprocess.Popen[bytes] | None = None
        self.s3_port = 0

    def start(self) -> None:
        """Make it and start it. Raises AssertionError with what a program said."""
        for name in ("mon", "mgr", "osd", "run"):
            (self.place / name).mkdir(parents=True)
        port = _free_port()
        self.s3_port = _free_port()
        self.conf.write_text(
            _CONF.format(fsid=self.fsid, port=port, s3_port=self.s3_port, place=self.place, size=OSD_BYTES)
        )
        keyring, monmap = self.place / "keyring", self.place / "monmap"
        for number, (name, caps) in enumerate(_KEYS.items()):
            pairs = [word for at in range(0, len(caps), 2) for word in ("--cap", caps[at], caps[at + 1])]
            create = [] if number else ["-C"]
            self.run("ceph-authtool", *create, keyring, "--gen-key", "-n", name, *pairs)
        addresses = f"[v2:127.0.0.1:{port}]"
        self.run("monmaptool", "--create", "--addv", "a", addresses, "--fsid", self.fsid, monmap)
        self.run("ceph-mon", *self._c, "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._daemon("ceph-mon", "-i", "a")
        self._daemon("ceph-mgr", "-i", "x")
        osd = str(uuid.uuid4())
        self.ceph("osd", "new", osd, "0")
        self.run("ceph-osd", *self._c, "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._osd = self._daemon("ceph-osd", "-i", "0")
        self._until(lambda: '"num_up_osds":1' in self.ceph("osd", "stat", "-f", "json"))
        self.ceph("osd", "pool", "create", "rbd", "8")
        self.rbd("pool", "init", "rbd")

    def start_s3(self) -> int:
        """Start the gateway for S3 unless it runs; return its port."""
        if self._s3 is not None:
            return self.s3_port
        (self.place / "rgw").mkdir(exist_ok=True)
        for name, caps in S3_USERS.items():
            key = ("--access-key", name, "--secret-key", name)
            user = ("user", "create", "--uid", name.lower(), "--display-name", name, *key, *caps)
            if f'"{name.lower()}"' not in self.run("radosgw-admin", *self._c, "user", "list"):
                self.run("radosgw-admin", *self._c, *user)
        self._s3 = self._daemon("radosgw", "-n", "client.rgw")
        self._until(self._s3_answers)
        return self.s3_port

    def s3_quota(self, size: int) -> None:
        """Let the first user of S3 store so many bytes in a bucket; -1: as many as there is room for."""
        (first, *_) = S3_USERS
        whom = ("--quota-scope=bucket", "--uid", first.lower())
        self.run("radosgw-admin", *self._c, "quota", "set", *whom, f"--max-size={size}")
        self.run("radosgw-admin", *self._c, "quota", "enable" if size >= 0 else "disable", *whom)

    def kill_s3(self) -> None:
        """Kill the gateway, as a crash of its machine would."""
        assert self._s3 is not None
        self._daemons.remove(self._s3)
        self._s3.kill()
        self._s3.wait()
        self._s3 = None

    def _s3_answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.s3_port), timeout=1):
            return True
        return False

    def ceph(self, *words: str | Path) -> str:
        """Run `ceph`; return what it printed."""
        return self.run("ceph", *self._c, *words)

    def rbd(self, *words: str | Path) -> str:
        """Run `rbd`; return what it printed."""
        return self.run("rbd", *self._c, *words)

    @property
    def _c(self) -> list[str | Path]:
        return ["-c", self.conf]

    def stop_osd(self) -> None:
        """Let the OSD stand still: it answers nobody."""
        self._osd.send_signal(signal.SIGSTOP)

    def continue_osd(self) -> None:
        """Let the OSD go on."""
        self._osd.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End every program of the cluster."""
        for daemon in reversed(self._daemons):
            daemon.kill()
            daemon.wait()
        self._daemons.clear()

    def run(self, *words: str | Path) -> str:
        """Run a program that must succeed; return what it printed."""
        done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=_SECONDS, check=False)
        assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.returncode} {done.stderr}"
        return done.stdout

    def _daemon(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.place / f"{words[0]}.said").open("wb") as said:
            program = subprocess.Popen(
                [words[0], "-f", *map(str, self._c), *words[1:]],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,
            )
        self._daemons.append(program)
        return program

    def _until(self, done: object) -> None:
        assert callable(done)
        end = time.monotonic() + _SECONDS
        while not done():
            assert time.monotonic() < end, "Ceph did not come up"
            time.sleep(0.3)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
