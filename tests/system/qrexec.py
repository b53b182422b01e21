"""Qubes without Xen: a qube is a directory, and `qrexec-client` runs its services as local processes.

A service gets the environment that the qube's agent would give it, set by dom0 and by nobody else.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ROOT / "src" / "lamella" / "qubes" / "storage_qube" / "lamella.Repo"

_CLIENT = '''\
#!{python}
"""qrexec-client and qrexec-client-vm in one: runs `SERVICE+ARGUMENT` of a qube."""
import os, re, sys

QUBES, PATH = {qubes!r}, {path!r}


def words(text):
    character = lambda match: "-" if match[1] == "-" else chr(int(match[1], 16))
    return [re.sub("-(-|[0-9A-F]{{2}})", character, word) for word in text.split("+")]


if os.path.basename(sys.argv[0]) == "qrexec-client":
    assert sys.argv[1] == "-d" and len(sys.argv) == 4, sys.argv
    qube, (user, kind, service, source) = sys.argv[2], re.fullmatch("(.*?):(.*?) (.*) (.*)", sys.argv[3]).groups()
    assert user in ("DEFAULT", "root") and (kind, source) == ("QUBESRPC", "dom0"), sys.argv
else:
    qube, service = [word for word in sys.argv[1:] if word != "--"]
    source = "caller"
name, _, argument = service.partition("+")
assert re.fullmatch("[a-zA-Z0-9_.+-]*", service), service
home = os.path.join(QUBES, qube)
if not os.path.isdir(home):
    sys.exit("Failed to connect to " + qube)
with open(os.path.join(QUBES, "calls"), "a") as calls:
    calls.write(qube + " " + name + "\\n")
os.chdir(home)
env = dict(PATH=PATH, HOME=home, QREXEC_REMOTE_DOMAIN=source, QREXEC_SERVICE_FULL_NAME=service,
           QREXEC_SERVICE_ARGUMENT=argument, PYTHONPATH={tree!r})
program = os.path.join(home, "rpc", name)
if os.path.exists(program):
    os.execve(program, [program] + ([argument] if argument else []), env)
if name == "qubes.VMExec":
    argv = words(argument)
    os.execvpe(argv[0], argv, env)
sys.stderr.write("Request refused\\n")
sys.exit(126)
'''


@dataclass(frozen=True)
class Qube:
    """A qube: its home directory."""

    home: Path

    def install_service(self) -> None:
        """Install the service that the project ships."""
        (self.home / "rpc").mkdir(exist_ok=True)
        shutil.copy(SERVICE, self.home / "rpc" / "lamella.Repo")

    def map(self, name: str, place: Path | str, *options: str) -> None:
        """Give a destination its directory and options, as the qube's owner would."""
        config = self.home / ".config" / "lamella" / "repos"
        config.mkdir(parents=True, exist_ok=True)
        (config / name).write_text("\n".join((str(place), *options)) + "\n")


@dataclass(frozen=True)
class Bench:
    """All qubes. `client` is the program of dom0 or of a qube."""

    place: Path

    @property
    def client(self) -> Path:
        """`qrexec-client-vm`, as a qube has it."""
        return self.place / "bin" / "qrexec-client-vm"

    @property
    def calls(self) -> list[str]:
        """`QUBE SERVICE` of every call so far."""
        log = self.place / "qubes" / "calls"
        return log.read_text().splitlines() if log.exists() else []

    def qube(self, name: str) -> Qube:
        """A new qube."""
        home = self.place / "qubes" / name
        home.mkdir(parents=True)
        return Qube(home)


@contextmanager
def qrexec(monkeypatch: pytest.MonkeyPatch, *, dom0: bool = False, first: str = "") -> Iterator[Bench]:
    """A bench whose client is first on the PATH: dom0's, or a qube's. `first` comes first on the PATH inside qubes."""
    place = Path(tempfile.mkdtemp(prefix="lamella-qubes-", dir="/tmp"))
    try:
        (place / "bin").mkdir()
        (place / "qubes").mkdir()
        inside = f"{first}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin".lstrip(":")
        text = _CLIENT.format(python=sys.executable, qubes=str(place / "qubes"), path=inside, tree=str(ROOT / "src"))
        for name in ("qrexec-client", "qrexec-client-vm") if dom0 else ("qrexec-client-vm",):
            (place / "bin" / name).write_text(text)
            (place / "bin" / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{place / 'bin'}:{os.environ['PATH']}")
        yield Bench(place)
    finally:
        shutil.rmtree(place)
