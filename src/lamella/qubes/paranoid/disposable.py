"""A disposable qube without a network for each domain, and what a restore reads through it.

One exists at a time. It is made from a template for disposables, gets the program and the keys of one domain through
its standard input, and is killed as soon as another domain's turn comes. What a killed restore left running is ended by
the next one.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from lamella.base.errors import UsageError
from lamella.base.ids import ChunkId, DomainId
from lamella.base.names import PACKS, Part, part_of
from lamella.base.trust import Opened
from lamella.format.container import Kind
from lamella.memory.host import HostMemory, Table
from lamella.packs.tree import TreeReader
from lamella.qubes.admin import Admin, Refused
from lamella.qubes.names import check_qube
from lamella.qubes.paranoid.near import NearSide
from lamella.repository.repository import Repository
from lamella.run.waking import Ending
from lamella.stores.pipe import bundle
from lamella.stores.pipe.calling import run_in

if TYPE_CHECKING:
    from lamella.packs.packs import Packs

NAME = "disp-lamella-"
"""The prefix of the names of these disposables."""
MODULES = (
    "base.errors",
    "base.ids",
    "base.names",
    "base.signed",
    "base.trust",
    "crypto.chunk_id",
    "crypto.derive",
    "crypto.sign",
    "crypto.unseal",
    "format.compression",
    "format.container",
    "format.cursor",
    "format.difference",
    "format.domain_key",
    "format.layout",
    "format.marker",
    "format.zstd",
    "format.zstd_provider",
    "stores.base",
    "stores.pipe.frames",
    "qubes.paranoid.words",
    "qubes.paranoid.far",
)
"""The modules of the far side."""
_PROPERTIES = (
    ("netvm", ""),
    ("default_dispvm", ""),
    ("auto_cleanup", "True"),
    ("include_in_backups", "False"),
)
"""No way out, not even through another disposable; and gone once it is halted."""


class Running(NamedTuple):
    """A disposable of ours, and the process that made it."""

    qube: str
    process: int


class Disposables:
    """Makes disposables from `template`; empty: from the default one of the system. Raises UsageError without any."""

    def __init__(self, admin: Admin, repo: Repository, template: str, ending: Ending) -> None:
        self._admin, self._repo, self._ending = admin, repo, ending
        self._template = check_qube(template or _default_template(admin))
        self._running = Table(HostMemory(repo.host, repo.host.state_dir), "qubes-disposables.json", tuple[Running, ...])

    def end_left_running(self) -> list[str]:
        """Kill what a killed restore left running; returns their names."""
        left = [row for row in self._running.read() if not Path(f"/proc/{row.process}").exists()]
        for row in left:
            if row.qube.startswith(NAME):
                self._end(check_qube(row.qube))
        return [row.qube for row in left]

    @contextmanager
    def one(self, domain_id: DomainId) -> Iterator[NearSide]:
        """A disposable for one domain, which ends with the block. Raises SourceError."""
        with self.running() as name:
            argv = run_in(name, bundle.ARGV_WITH_LIBRARIES)
            boot = bundle.packed(bundle.program(MODULES, "qubes.paranoid.far"))
            keys, packs = self._repo.keys.domain(domain_id), partial(_packs, self._repo, domain_id)
            near = NearSide(name, argv, boot, keys, self._repo.store, packs, self._ending)
            with closing(near):
                yield near

    @contextmanager
    def running(self) -> Iterator[str]:
        """The name of a new disposable, which is killed when the block is left. Raises SourceError."""
        name = NAME + secrets.token_hex(4)
        self._running.change(lambda rows: (*rows, Running(name, os.getpid())))
        try:
            self._start(name)
            yield name
        finally:
            self._end(name)

    def _start(self, name: str) -> None:
        self._admin.call("admin.vm.Create.DispVM", arg=self._template, payload=f"name={name} label=red".encode("ascii"))
        for prop, value in _PROPERTIES:
            self._admin.call("admin.vm.property.Set", name, prop, value.encode("ascii"))
        self._admin.call("admin.vm.Start", name)

    def _end(self, name: str) -> None:
        for method in ("admin.vm.Kill", "admin.vm.Remove"):
            with suppress(Refused):  # it never ran, or went when it was killed
                self._admin.call(method, name)
        self._running.change(lambda rows: tuple(row for row in rows if row.qube != name))


class DisposablePacks:
    """The packs of one repository, as `packs.packs.Packs` gives them, through a disposable for each domain."""

    def __init__(self, disposables: Disposables) -> None:
        self._disposables = disposables
        self._turn = threading.Lock()
        self._present: tuple[DomainId, NearSide] | None = None
        self._end: Callable[[], object] = lambda: None
        self.contents = self

    def tree_reader(self, domain_id: DomainId) -> TreeReader:
        """Reads the manifests of one domain; a node counts only with the id that a commit, or its parent, names."""
        return TreeReader(partial(self.get, domain_id))

    def get(self, domain_id: DomainId, kind: Kind, id_: ChunkId, length: int | None = None) -> Opened:
        """One content. Raises IntegrityError, SourceError, StoreUnavailable."""
        return self.get_many(domain_id, kind, [(id_, length)])[id_]

    def get_many(
        self, domain_id: DomainId, kind: Kind, wanted: Sequence[tuple[ChunkId, int | None]]
    ) -> dict[ChunkId, Opened]:
        """Several contents. Raises as `get`."""
        return self._near(domain_id).contents(kind, dict(wanted))

    def each(
        self, domain_id: DomainId, kind: Kind, wanted: Sequence[tuple[ChunkId, int | None]], *, identified: bool = True
    ) -> Iterator[tuple[ChunkId, Opened]]:
        """The same one after the other; their ids were recomputed here, whether or not that is asked for."""
        yield from self.get_many(domain_id, kind, wanted).items()

    def close(self) -> None:
        """End the disposable."""
        end, self._end, self._present = self._end, lambda: None, None
        end()

    def _near(self, domain_id: DomainId) -> NearSide:
        with self._turn:
            if self._present is None or self._present[0] != domain_id:
                self.close()
                one = self._disposables.one(domain_id)
                self._present = domain_id, one.__enter__()
                self._end = lambda: one.__exit__(None, None, None)
            return self._present[1]


@contextmanager
def decoded_in_disposables(admin: Admin, repo: Repository, template: str) -> Iterator[list[str]]:
    """While this lasts, volumes and documents of a repository are opened in disposables, and not in this process.

    Gives the names of disposables that an earlier run left, and that were ended. Raises UsageError, SourceError.
    """
    with Ending() as ending:
        disposables = Disposables(admin, repo, template, ending)
        packs = DisposablePacks(disposables)
        left = disposables.end_left_running()
        repo.read_elsewhere(cast("Packs", packs))  # its module would bring the reader of packs into dom0
        try:
            yield left
        finally:
            packs.close()


def _packs(repo: Repository, domain_id: DomainId) -> Iterator[Sequence[bytes]]:
    """The packs that snapshots of the domain name, the newest first; then all others that the store lists."""
    shots = [shot for shot in repo.catalogue.snapshots if shot.added.domain_id == domain_id]
    named = dict.fromkeys(pack for shot in reversed(shots) for pack in shot.added.packs)
    yield list(named)
    names = (entry.name for entry in repo.store.list(PACKS) if part_of(entry.name) == Part.PACK)
    yield [pack for pack in (bytes.fromhex(name[-64:]) for name in names) if pack not in named]


def _default_template(admin: Admin) -> str:
    try:
        found = admin.text("admin.property.Get", arg="default_dispvm").split(" ", 2)[2]
    except (Refused, IndexError):
        found = ""
    if not found:
        raise UsageError("this system has no default template for disposables", hint="name one with --in QUBE")
    return found
