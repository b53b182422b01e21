"""What another tool's archive holds, as values: sessions in their order, each with volumes and a claimed time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from lamella.base.clock import END_OF_TIME_MS, iso
from lamella.base.errors import SourceError, printable
from lamella.sources.base import FrozenVolume, Source

ORIGIN_DOCUMENT: Final = "origin.json"
"""The document of an imported volume that says where it came from."""
_MAX_ORIGIN: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class ForeignVolume:
    """One volume at one session. `source` shows that session, and has the same identity in all sessions."""

    name: str
    """As the other tool calls it in this session."""
    source: Source
    size: int | None = None
    """Bytes, where the archive says so without being read."""
    documents: Mapping[str, bytes] = field(default_factory=dict)
    domain: str | None = None
    """The key domain that a new volume belongs to; None: that of the run."""
    proof: str = ""
    """What its content is known by, where the archive says that: its id may be that of another archive, too."""


@dataclass(frozen=True, slots=True)
class ForeignSession:
    """What the other tool saved at one time: it becomes one snapshot."""

    id: str
    """As the other tool calls it; unique in its archive."""
    volumes: tuple[ForeignVolume, ...]
    claimed_ms: int | None = None
    """The moment that it shows, as the archive says, in UTC milliseconds; not to be believed."""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ForeignHistory:
    """An archive of another tool."""

    kind: str
    """The word of the command line: wyng, pbs and so on."""
    archive: str
    """By what the archive is known wherever it lies, such as a UUID."""
    sessions: tuple[ForeignSession, ...]
    """Oldest first, by the archive's own order."""
    warnings: tuple[str, ...] = ()
    """What the user has to know of the archive."""
    lacks: tuple[str, ...] = ()
    """What cannot be read and belongs to no session: an import is not complete."""


class OriginKey(NamedTuple):
    """What makes two origins the same session of the same volume."""

    identity: str
    session: str
    proof: str


class ForeignOrigin(NamedTuple):
    """Where an imported volume came from: the content of its document."""

    kind: str
    archive: str
    session: str
    volume: str
    identity: str
    """The identity of the source, by which the volume is known in all sessions."""
    claimed_ms: int | None
    tags: tuple[str, ...] = ()
    proof: str = ""

    @classmethod
    def made(cls, history: ForeignHistory, session: ForeignSession, volume: ForeignVolume) -> ForeignOrigin:
        """The origin of a volume of a session."""
        texts = history.kind, history.archive, session.id, volume.name, identity_text(volume.source)
        return cls(*texts, session.claimed_ms, session.tags, volume.proof)

    @property
    def key(self) -> OriginKey:
        """What makes this the same session of the same volume."""
        return OriginKey(self.identity, self.session, self.proof)

    def encode(self) -> bytes:
        """The document."""
        claimed = None if self.claimed_ms is None else iso(self.claimed_ms)
        return json.dumps({**self._asdict(), "claimed_time": claimed}, indent=1, sort_keys=True).encode("ascii") + b"\n"


def identity_text(source: Source) -> str:
    """The identity of a source as text."""
    return source.identity.decode("utf-8", "backslashreplace")


def origin_key(document: bytes) -> OriginKey | None:
    """The key of the origin in a document; None if that is no such document."""
    if len(document) > _MAX_ORIGIN:
        return None
    try:
        found = json.loads(document)
        key = OriginKey(found["identity"], found["session"], found.get("proof", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return key if all(isinstance(one, str) for one in key) else None


def claimed(seconds: float) -> int | None:
    """UTC milliseconds of a time that an archive claims in seconds; None for one that no calendar has."""
    milliseconds = seconds * 1000 if -1e13 < seconds < 1e13 else -1
    return int(milliseconds) if 0 < milliseconds <= END_OF_TIME_MS else None


def shown_name(text: str) -> str:
    """A name out of an archive, for messages: one line that moves no cursor, and no longer than a line."""
    shown = printable(text)
    return shown if len(shown) <= 80 else shown[:77] + "..."


class _Opens(Protocol):
    def __call__(self) -> AbstractContextManager[FrozenVolume]: ...


@dataclass(frozen=True, slots=True)
class ForeignSource:
    """A volume at one session as a source: its moments are the sessions themselves, which the archive keeps.

    What is opened names its session as its checkpoint, and tells what changed since an earlier one.
    """

    driver: str
    identity: bytes
    default_name: str
    opens: _Opens

    @property
    def tracks(self) -> bool:
        """The archive knows what changed."""
        return True

    def freeze(self) -> AbstractContextManager[FrozenVolume]:
        """Open the session."""
        return self.opens()

    def keep(self, checkpoint: str) -> None:
        """The archive keeps every session."""

    def drop(self, checkpoint: str) -> None:
        """Nothing of the archive is ever removed."""

    def kept(self) -> list[str]:
        """None of them is this host's."""
        return []


def unreadable(why: str) -> AbstractContextManager[FrozenVolume]:
    """What `opens` is for a session that cannot be read. Raises SourceError."""
    raise SourceError(why)


def volume_sources(history: ForeignHistory) -> Iterator[tuple[ForeignSession, ForeignVolume]]:
    """Every volume of every session, the oldest session first."""
    for session in history.sessions:
        for volume in session.volumes:
            yield session, volume
