"""Speed of a store behind a pipe: against the pipe itself, and against `ssh host 'cat > file'` with the same cipher."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from bench.measure import MIB, BenchError, Sample, Series
from bench.report import Target
from lamella.base.trust import Sealed
from lamella.run.pipeline import Outbox
from lamella.stores.base import Store
from lamella.stores.pipe import bundle
from lamella.stores.pipe.client import PipeStore
from lamella.stores.pipe.frames import Hello
from lamella.stores.pipe.link import Route
from lamella.stores.url import open_store
from lamella_kit.ssh_server import ssh_server

_PACK = 16 * MIB
_UPLOADS = 3


def measure(work: Path, repeats: int, size: int) -> dict[str, Series]:
    """Put and get `size` MiB of incompressible packs, over a local pipe and over ssh on the loop-back interface."""
    if shutil.which("sshd", path="/usr/sbin:/usr/local/sbin") is None:
        raise BenchError("there is no sshd here")
    objects = list(_objects(max(1, size * MIB // _PACK)))
    series: dict[str, Series] = {}

    def timed(key: str, work: Callable[[], None]) -> None:
        before, children, started = time.process_time(), _children(), time.perf_counter()
        work()
        wall = time.perf_counter() - started
        cpu = time.process_time() - before + _children() - children
        one = series.setdefault(key, Series())
        one.samples.append(Sample(wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
        one.facts["mib_a_second"] = round(len(objects) * _PACK / MIB / one.wall)

    def emptied(place: Path) -> Path:
        """What the step before wrote goes only now: memory that lies free may be taken from a virtual machine."""
        for one in work.iterdir():
            shutil.rmtree(one) if one.is_dir() else one.unlink()
        return place

    with ssh_server() as server:
        os.environ["PATH"] = f"{server.bin}:{os.environ['PATH']}"
        ssh = ["ssh", "-c", "aes256-gcm@openssh.com", "-p", str(server.port), "127.0.0.1"]
        for number in range(repeats):
            file = emptied(work / "file")
            timed("pipe/cat", lambda: _sent(["sh", "-c", f"cat > {file}"], objects))  # noqa: B023
            place = emptied(work / f"pipe-{number}")
            route = Route((sys.executable, *bundle.ARGV[1:]), bundle.boot())
            with closing(PipeStore("pipe:", route, Hello(str(place), True, False, True))) as store:
                timed("pipe/put", lambda store=store: _put(store, objects))  # type: ignore[misc]
                timed("pipe/get", lambda store=store: _got(store, objects))  # type: ignore[misc]
            for key, more in (("ssh/cat", ""), ("ssh/cat, sync", f" && sync {work}/file")):
                command = f"cat > {emptied(work / 'file')}{more}"
                timed(key, lambda: _sent([*ssh, command], objects))  # noqa: B023
            place = emptied(work / f"ssh-{number}")
            with closing(open_store(f"ssh://127.0.0.1:{server.port}{place}", create=True)) as far:
                timed("ssh/put", lambda store=far: _put(store, objects))  # type: ignore[misc]
                timed("ssh/get", lambda store=far: _got(store, objects))  # type: ignore[misc]
        emptied(work)
    return series


def targets(series: dict[str, Series], size: int) -> Iterator[Target]:
    """What was promised: the local pipe in MB a second, ssh as a part of what ssh itself does."""
    speed = size * MIB / series["pipe/put"].wall / 1e6
    yield Target("put over a local pipe", f"{speed:.0f} MB/s", ">= 700 MB/s", speed >= 700)
    part = series["ssh/cat"].wall / series["ssh/put"].wall
    yield Target("put over ssh, against ssh 'cat > file'", f"{part:.0%}", ">= 85 %", part >= 0.85)


def _objects(count: int) -> Iterator[tuple[str, Sealed]]:
    content = os.urandom(_PACK)
    for number in range(count):
        turned = content[number:] + content[:number]
        name = hashlib.sha256(turned).hexdigest()
        yield f"p/{name[:2]}/{name}", Sealed(turned)


def _put(store: Store, objects: list[tuple[str, Sealed]]) -> None:
    with Outbox(_UPLOADS) as outbox:
        for name, content in objects:
            outbox.submit(lambda name=name, content=content: store.put(name, content))  # type: ignore[misc]
        outbox.drain()
    store.sync()


def _got(store: Store, objects: list[tuple[str, Sealed]]) -> None:
    for name, content in objects:
        if len(store.get(name)) != len(content):
            raise BenchError("a wrong object came back")


def _sent(argv: list[str], objects: list[tuple[str, Sealed]]) -> None:
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as program:
        assert program.stdin is not None
        for _, content in objects:
            program.stdin.write(content)
    if program.returncode:
        raise BenchError(f"{argv[0]} ended with {program.returncode}")


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
