"""What changed between checkpoints, so that the older ones can be given up (docs/decisions/0006).

An interval leads from one checkpoint of a source to a later one and holds the delta between them. It is bound by hash
to both moments and to the intervals that end where it begins, and by a MAC to this host. A backup follows the intervals
from its repository's base to a moment that still exists. A gap, a foreign or an edited link ends the walk: everything
is compared.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost, RepositoryError
from lamella.memory import codec
from lamella.memory.codec import FLAT
from lamella.memory.encoding import encode, register
from lamella.memory.host import Host, HostMemory

GRAIN = 64 * 1024
"""Intervals are kept on the finest grid any volume may have."""
_MOST_LINKS = 100_000
_KEY_SIZE = 32


class _Run(NamedTuple):
    """The chunks from `first` on, before `end`."""

    first: int
    end: int


def _chunks(content: Any, faults: codec.Faults) -> ChunkSet:  # noqa: ANN401
    if type(content) is not list:
        raise codec.Unfit("no list of runs")
    return ChunkSet(codec.decode(_Run, run, faults) for run in content)


register(ChunkSet, _chunks, lambda chunks: [list(run) for run in chunks.runs()])


@dataclass(frozen=True, slots=True)
class Interval:
    """One link: from a checkpoint to a later one, with what may have changed between them."""

    begin: str
    end: str
    previous: tuple[str, ...]
    """Hashes of the links that end at `begin`."""
    delta: Annotated[Delta, FLAT]

    @property
    def digest(self) -> str:
        """Names the link with everything in it."""
        return hashlib.sha256(_canonical(self)).hexdigest()


@dataclass(frozen=True, slots=True)
class LinkRow:
    """A link and its MAC: one file."""

    interval: object
    """As it was read: believed, and decoded, only if the MAC is right."""
    mac: Annotated[bytes, 32]


class Intervals:
    """The links of one source on this host. The source's lock is held while they are changed."""

    def __init__(self, host: Host, identity: bytes) -> None:
        self._memory = HostMemory(host, host.state_dir / "intervals")
        self._directory = self._memory.directory / hashlib.sha256(identity).hexdigest()[:16]
        self._identity = identity

    def link(self, begin: str) -> Interval | None:
        """The link that leads on from a moment, None if there is none.

        Raises CheckpointLost for a damaged or foreign one: taken for absent, it would end the walk where none ends.
        """
        link = self._read(self._path(begin))
        if link is not None and link.begin != begin:
            raise CheckpointLost("the record of an interval was altered")
        return link

    def _read(self, path: Path) -> Interval | None:
        try:
            row = codec.parse(LinkRow, path.read_bytes(), "", [])
            if not hmac.compare_digest(row.mac, self._mac(row.interval)):
                raise CheckpointLost("the record of an interval was altered or belongs to another host or source")
            return codec.decode(Interval, row.interval, [])
        except FileNotFoundError:
            return None
        except (OSError, codec.Unfit, RecursionError) as error:
            raise CheckpointLost("the record of an interval cannot be read") from error

    def walk(self, begin: str) -> list[Interval]:
        """The links from a moment to the newest one reached, in order. Raises CheckpointLost at any doubt."""
        links: list[Interval] = []
        moment = begin
        while (link := self.link(moment)) is not None:
            if links and links[-1].digest not in link.previous:
                raise CheckpointLost("the intervals since the last backup do not belong together")
            if len(links) >= _MOST_LINKS:
                raise CheckpointLost("the intervals since the last backup run in a circle")
            links.append(link)
            moment = link.end
        return links

    def add(self, begin: str, end: str, delta: Delta) -> None:
        """Write a link, durably. Raises RepositoryError."""
        previous = tuple(sorted(link.digest for link in self._all() if link.end == begin))
        link = Interval(begin, end, previous, delta)
        row = encode(LinkRow(encode(link), self._mac(link)))
        self._memory.replace(self._path(begin), json.dumps(row).encode("utf-8"))

    def keep_only(self, bases: Iterable[str]) -> set[str]:
        """Remove the links that lead on from none of `bases`; returns the moments at which the others end.

        A base without a link ends at itself.
        """
        needed: set[str] = set()
        ends: set[str] = set()
        for base in bases:
            moment = base
            with suppress(CheckpointLost):
                for link in self.walk(base):
                    needed.add(self._path(link.begin).name)
                    moment = link.end
            ends.add(moment)
        for path in self._files():
            if path.name not in needed:
                with suppress(OSError):  # one link too many is harmless, and the next run tries again
                    path.unlink(missing_ok=True)
        return ends

    def _all(self) -> list[Interval]:
        links: list[Interval] = []
        for path in self._files():
            with suppress(CheckpointLost):
                link = self._read(path)
                if link is not None and path == self._path(link.begin):
                    links.append(link)
        return links

    def _files(self) -> list[Path]:
        return sorted(self._directory.glob("*.json")) if self._directory.is_dir() else []

    def _path(self, begin: str) -> Path:
        return self._directory / f"{hashlib.sha256(begin.encode('utf-8')).hexdigest()[:32]}.json"

    def _mac(self, link: object) -> bytes:
        return hmac.digest(_host_key(self._memory), self._identity + b"\0" + _canonical(link), "sha256")


def _canonical(link: object) -> bytes:
    return json.dumps(encode(link), sort_keys=True, separators=(",", ":")).encode("utf-8")


def _host_key(memory: HostMemory) -> bytes:
    """A secret of this host's state directory; links of another host's state are foreign. Raises RepositoryError.

    A damaged key goes: every link is foreign then.
    """
    path = memory.directory / "key"
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        key = b""
    except OSError as error:
        raise RepositoryError(f"cannot read {path}: {error.strerror}", obj=str(path)) from error
    if len(key) != _KEY_SIZE:
        key = os.urandom(_KEY_SIZE)
        memory.replace(path, key)
    return key


def compose(links: Sequence[Interval], last: Delta) -> Delta:
    """The deltas of the links and the one after them, as one. Raises CheckpointLost if they do not meet."""
    try:
        whole = None
        for delta in (*(link.delta for link in links), last):
            whole = delta if whole is None else whole.then(delta)
        return last if whole is None else whole
    except ValueError as error:
        raise CheckpointLost("the intervals since the last backup do not meet") from error
