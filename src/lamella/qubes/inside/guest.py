"""The near side: a disposable qube takes the place of the small guest that mounts a snapshot.

dom0 serves the snapshot with a throw-away overlay, over NBD and qrexec. The disposable's kernel mounts what it finds
there; its answers are read as those of any guest, by the same code with the same bounds. One disposable reads one disk,
has no network, and is killed when the block is left.
"""

from __future__ import annotations

import os
import shlex
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from urllib.parse import parse_qs, urlsplit

from lamella.base.errors import LamellaError
from lamella.operations.access.guest import Guest
from lamella.operations.access.guest_script import SERVE
from lamella.operations.access.guest_start import GuestRequest
from lamella.qubes.paranoid.disposable import Disposables
from lamella.run.beside import Beside
from lamella.run.spawn import Child
from lamella.stores.pipe import bundle
from lamella.stores.pipe.calling import run_in

_MODULES = ("base.nbd", "run.beside", "qubes.inside.attach")
_PIECE = 1 << 18
_END_SECONDS = 2.0
_BASH = """
import os
script = os.memfd_create("script", 0)
os.write(script, {script!r})
os.execvp("bash", ["bash", "/proc/self/fd/%d" % script])
"""
_BEGIN = r"""
B=; MEMORY=999999999; PATH=$PATH:/usr/sbin:/sbin
exec 3>&1 4<&0 0</dev/null 1>&2
say() { printf '%s %s\n' "$NONCE" "$*" >&3; }
finish() { say "end $*"; exit 0; }
fetch() {
    case $1 in LVM) program=lvm ;; LUKS) program=cryptsetup ;; ntfs) program=ntfs-3g ;; *) program= ;; esac
    [ -z "$program" ] || command -v $program >/dev/null || finish "without $program"
    modprobe -q "$1"
}
[ -e /sys/module/nbd ] || modprobe -q nbd nbds_max=1 max_part=15 || finish "without kernel module nbd"
tries=0
while [ "$(blockdev --getsize64 /dev/DEVICE 2>/dev/null || echo 0)" = 0 ] && [ $tries -lt 600 ]; do
    sleep 0.1; tries=$((tries + 1))
done
partx -u /dev/DEVICE 2>/dev/null
say hello
"""
DEVICE = "nbd0"


@contextmanager
def started_in(disposables: Disposables, uris: Sequence[str], request: GuestRequest) -> Iterator[Guest]:
    """A disposable with the disk at this NBD URI, as a guest. Raises LamellaError, SourceError."""
    (uri,) = uris
    deadline = time.monotonic() + request.seconds
    with disposables.running() as name, _attached(name, uri) as attached:
        child = Child(run_in(name, bundle.ARGV, user="root"))
        guest = Guest(child, request.nonce, deadline)
        try:
            guest.send(bundle.packed(_BASH.format(script=script(request))))
            yield guest
        except LamellaError as error:
            attached.drain_stderr()
            if said := attached.said():
                raise LamellaError(f"{error.message}; the disposable says: {said}", hint=error.hint) from error
            raise
        finally:
            guest.end()


def script(request: GuestRequest) -> bytes:
    """What the disposable's shell runs."""
    wanted = shlex.join(["set", "--", *request.paths])
    lines = (request.script(), f"DISKS={DEVICE}", f"wanted={shlex.quote(wanted)}")
    paths = 'PATHS=/tmp/lamella-paths; printf "%s\\n" "$wanted" >$PATHS'
    whole = "\n".join((*lines, _BEGIN.replace("DEVICE", DEVICE), paths, SERVE))
    return whole.encode("utf-8", "surrogateescape")


@contextmanager
def _attached(qube: str, uri: str) -> Iterator[Child]:
    """The program that gives a disposable its disk, joined with the server at a socket of this host."""
    (path,) = parse_qs(urlsplit(uri).query)["socket"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.connect(path)
        child = Child(run_in(qube, bundle.ARGV, user="root"))
        boot = bundle.packed(bundle.program(_MODULES, "qubes.inside.attach"))

        def there() -> None:
            _copy(server.fileno(), child.stdin, boot)

        def back() -> None:
            _copy(child.stdout, server.fileno())

        threads = [Beside(move, "lamella-disk") for move in (there, back)]
        try:
            yield child
        finally:
            child.kill()
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(_END_SECONDS)
            child.end(_END_SECONDS)


def _copy(source: int, sink: int, first: bytes = b"") -> None:
    """Move bytes until either end is gone."""
    with suppress(OSError):
        piece = first or os.read(source, _PIECE)
        while piece:
            left = memoryview(piece)
            while left:
                left = left[os.write(sink, left) :]
            piece = os.read(source, _PIECE)
