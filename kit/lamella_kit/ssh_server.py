"""A real sshd of one's own: unprivileged port, temporary keys, and an `ssh` on the PATH that knows them."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import lamella

PORTS = range(22100, 22160)
_SECONDS = 20
SOURCE = Path(lamella.__file__).parents[1]


def missing() -> str:
    """Why no server can be started here; empty if one can."""
    return "" if _sshd() and shutil.which("ssh") else "no sshd or no ssh here"


def _sshd() -> str:
    """The server's program, which insists on being called by its full path; empty where there is none."""
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or ""


@dataclass
class SshServer:
    """A running sshd. `bin` is to be put first on the PATH: its `ssh` uses this server's keys, not the user's."""

    place: Path
    port: int
    address: str = "127.0.0.1"
    options: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def bin(self) -> Path:
        """The directory with the `ssh` that the test uses."""
        return self.place / "bin"

    def start(self) -> None:
        """Start listening, and wait until it answers."""
        command = [*self.prefix, _sshd(), "-D", "-f", str(self.place / "config"), "-E", str(self.place / "log")]
        self.process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + _SECONDS
        while not self._answers():
            assert self.process.poll() is None, (self.place / "log").read_text()
            assert time.monotonic() < deadline, "sshd does not listen"
            time.sleep(0.02)

    def _answers(self) -> bool:
        if self.prefix:  # in a namespace of its own
            return "listening" in (self.place / "log").read_text() if (self.place / "log").exists() else False
        with suppress(OSError), socket.create_connection((self.address, self.port), timeout=1) as connection:
            return connection.recv(4) == b"SSH-"
        return False

    def stop(self) -> None:
        """Kill it with all its connections, as a crash of the host would."""
        if self.process is None:
            return
        for pid in [*_descendants(self.process.pid), self.process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(_SECONDS)
        self.process = None

    def cut(self) -> None:
        """Kill the connections, not the server."""
        assert self.process is not None
        for pid in _descendants(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def allow(self, *, command: str = "") -> None:
        """Let the key in, for this command only if one is named."""
        key = (self.place / "user.pub").read_text()
        bound = f'restrict,command="{command}" ' if command else ""
        (self.place / "authorized").write_text(bound + key)


def _descendants(pid: int) -> list[int]:
    """Processes below `pid`, deepest first."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[:0:-1]


@contextmanager
def ssh_server(
    *, address: str = "127.0.0.1", prefix: tuple[str, ...] = (), port: int = 0, reuse: bool = False
) -> Iterator[SshServer]:
    """A running server that lets its own key in; `reuse` leaves the reuse of connections to the program under test.

    Raises OSError if there is none here; `missing` says why.
    """
    if reason := missing():
        raise OSError(errno.ENOTSUP, reason)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="lamella-ssh-", dir="/tmp"))
    server = SshServer(place, port or _free_port(address), address, prefix=prefix)
    try:
        for name in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)], check=True, timeout=_SECONDS
            )
        server.allow()
        _write_files(server, reuse)
        server.start()
        yield server
    finally:
        server.stop()
        _removed(place)


def _removed(place: Path) -> None:
    """Masters of connections that were reused remove their own sockets, at their own time."""
    for _ in range(100):
        try:
            shutil.rmtree(place)
            return
        except FileNotFoundError:
            if not place.exists():
                return
            time.sleep(0.1)
    shutil.rmtree(place)


def _write_files(server: SshServer, reuse: bool) -> None:
    place = server.place
    host_key = (place / "host.pub").read_text()
    (place / "known").write_text(f"[{server.address}]:{server.port} {host_key}")
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    (place / "config").write_text(
        f"Port {server.port}\nListenAddress {server.address}\nHostKey {place}/host\nPidFile none\n"
        f"AuthorizedKeysFile {place}/authorized\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        f"KbdInteractiveAuthentication no\nMaxStartups 100\nMaxSessions 100\n"
        f"Subsystem sftp internal-sftp\nSetEnv PATH={path} PYTHONPATH={SOURCE}\n"
    )
    server.bin.mkdir()
    real = shutil.which("ssh")
    control = "" if reuse else "-o ControlMaster=no -o ControlPath=none"
    (server.bin / "ssh").write_text(
        f"#!/bin/sh\nexec {real} -o UserKnownHostsFile={place}/known -o IdentityFile={place}/user "
        f'-o IdentitiesOnly=yes -o IdentityAgent=none {control} "$@"\n'
    )
    (server.bin / "ssh").chmod(0o755)


def _free_port(address: str) -> int:
    for port in random.sample(PORTS, len(PORTS)):  # others may be looking, too
        with socket.socket() as trial, suppress(OSError):
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((address, port))
            return port
    raise AssertionError("no free port")
