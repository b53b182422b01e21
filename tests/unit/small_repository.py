"""A real repository in memory, with hosts that back up small real files into it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from lamella.base.ids import ChunkId, DomainId, SnapId, VolumeId, WriterId
from lamella.crypto.slots import Secret, key_file
from lamella.format.records import NO_REF, AddSnap, File, RawRecord, Ref, Volume, volume_id
from lamella.memory.host import Host, machine_name
from lamella.operations.backup.story import BackupOptions, BackupResult, Request, plan_backup
from lamella.repository.create import SlotWanted, create_repository
from lamella.repository.repository import Repository
from lamella.sources.file import FileSource
from lamella.stores.base import Store
from lamella.stores.memory import MemoryStore

ADMIN = key_file(b"a" * 32)
WRITER = key_file(b"w" * 32)
CHUNK = 1 << 16
OPTIONS = BackupOptions(chunk_log2=16, workers=2)
_ticks = count(1_800_000_000_000, 1000)


def tick() -> int:
    """A clock that moves one second whenever it is asked."""
    return next(_ticks)


@dataclass
class Small:
    """One repository; `place` holds the hosts' state and cache directories."""

    place: Path
    store: MemoryStore = field(default_factory=MemoryStore)

    @classmethod
    def make(cls, place: Path) -> Small:
        """Create it, with an admin's and a writer's slot, from the host "one"."""
        small = cls(place)
        slots = [SlotWanted(ADMIN, True), SlotWanted(WRITER, False)]
        create_repository(small.store, small.host(), slots, tick, id_alg=1)
        return small

    def host(self, name: str = "one") -> Host:
        """A host with places of its own."""
        return Host(machine_name(name), name, self.place / name / "state", self.place / name / "cache")

    @contextmanager
    def opened(
        self,
        host: str = "one",
        secret: Secret = ADMIN,
        store: Store | None = None,
        *,
        whole: bool = False,
        exclusive: bool = False,
    ) -> Iterator[Repository]:
        """The repository as a host sees it."""
        place, owner = store or self.store, self.host(host)
        with Repository.open(place, secret, owner, clock=tick, whole=whole, exclusive=exclusive) as repo:
            yield repo

    def source(self, path: Path, host: str = "one") -> FileSource:
        """An image file as the host's source."""
        return FileSource(path, self.host(host).machine)

    def backup(
        self,
        path: Path,
        host: str = "one",
        options: BackupOptions = OPTIONS,
        *,
        name: str | None = None,
        secret: Secret = ADMIN,
    ) -> BackupResult:
        """Back up one image file, which must succeed."""
        with self.opened(host, secret) as repo:
            result = plan_backup(repo, [Request(name, self.source(path, host))], options).execute()
        assert result.complete, result
        return result

    def own(self, host: str = "one") -> WriterId:
        """The writer as which a host publishes, from now on if it never did."""
        with self.opened(host) as repo:
            return repo.memory.creator().id

    def publish(self, records: Sequence[RawRecord | File | Volume], host: str = "one") -> None:
        """Publish records as they are from a host."""
        with self.opened(host) as repo:
            repo.publish(records)


def image(path: Path, chunks: str, fill: int = 0, tail: int = 0) -> Path:
    """A file of 64 KiB chunks: `.` a hole, `0` zeros, any other letter data of its own. `tail` more bytes of data."""
    with path.open("wb") as file:
        file.truncate(len(chunks) * CHUNK + tail)
        for position, letter in enumerate(chunks):
            if letter != ".":
                file.seek(position * CHUNK)
                file.write(bytes(CHUNK) if letter == "0" else data(letter, fill))
        if tail:
            file.seek(len(chunks) * CHUNK)
            file.write(data("~", fill)[:tail])
    return path


def data(letter: str, fill: int = 0) -> bytes:
    """The content of a chunk."""
    return f"{letter}{fill:07}".encode("ascii") * (CHUNK // 8)


def volume_record(writer: WriterId, number: int, name: str = "disk", identity: bytes = b"file:x") -> Volume:
    """A VOLUME that this writer creates, in the domain of `snapshot_record`."""
    nonce = number.to_bytes(16, "big")
    domain = DomainId(bytes([7] * 16))
    return Volume(volume_id(writer, nonce), domain, 16, name, "", identity, writer, nonce)


def snapshot_record(
    number: int,
    *,
    volume: int | VolumeId = 1,
    parent: Ref | None = None,
    packs: tuple[bytes, ...] = (),
    time_ms: int = 0,
) -> AddSnap:
    """An ADD_SNAP with ids made of numbers; its tree does not exist."""
    return AddSnap(
        SnapId(number.to_bytes(16, "big")),
        VolumeId(volume.to_bytes(16, "big")) if isinstance(volume, int) else volume,
        DomainId(bytes([7] * 16)),
        16,
        1,
        CHUNK,
        ChunkId(bytes(24)),
        time_ms or 1_800_000_000_000 + number,
        parent or NO_REF,
        f"snap-{number:04}",
        packs=packs,
    )
