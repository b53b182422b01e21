"""Mending objects as such: clear files and commits get their right bytes back, bad packs are emptied and moved aside.

Nothing is deleted: an object whose name is needed, or that nothing needs any more, is moved to `quarantine/`, and only
under the exclusive lock. What cannot be moved stays, and this host remembers that it is bad.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from functools import partial

from lamella.base.errors import IntegrityError, ObjectNotFound, StoreError, UnknownFormat
from lamella.base.ids import CATALOGUE, ChunkId, DomainId
from lamella.base.names import KEYS, README, RESCUE, pack_hash, pack_name
from lamella.base.trust import Clear, Sealed
from lamella.format import commit
from lamella.format.commit import Head
from lamella.format.container import Blob, Header, Kind, check_padding
from lamella.format.records import File
from lamella.operations.repair.donors import Donors
from lamella.operations.repair.heal import Depot
from lamella.operations.repair.result import ASIDE, BACK, LEFT, STORED, RepairResult
from lamella.operations.shared.aside import may_set_aside, set_aside
from lamella.operations.shared.findings import DAMAGE, Finding
from lamella.packs.containers import PackHead, open_blob, open_commit, open_head
from lamella.packs.reach import require_alive
from lamella.repository.readme import readme_text, rescue_source
from lamella.repository.repository import Repository


class ObjectRepair:
    """Mends one repository's objects. With `dry` it only says what it would do."""

    def __init__(self, repo: Repository, donors: Donors, result: RepairResult) -> None:
        self._repo = repo
        self._donors = donors
        self._result = result
        abilities = repo.store.abilities
        # A dry run has opened the store for reading only; it is about the run that will not.
        self._moves = may_set_aside(repo.store) or (result.dry and abilities.exclusive_lock and not abilities.immutable)

    # -- clear files --------------------------------------------------------------------------------------------------

    def files(self, findings: Iterable[Finding]) -> None:
        """Marker, key slots and texts that are missing or not what the owner signed."""
        for name in _damaged(findings, "file"):
            record = self._repo.catalogue.files.get(name)
            if record is None:
                self._result.did(LEFT, name, "no signed record says what it must be")
                continue
            if self._is_right(record):
                continue
            content = self._file(name, record.sha256)
            if content is None:
                hint = "; add one anew: lamella key add" if name.startswith(KEYS) else ""
                self._result.did(LEFT, name, f"nobody here has its bytes{hint}")
            else:
                self._replace(name, partial(self._repo.store.put, name, Clear(content)))

    def _is_right(self, record: File) -> bool:
        store = self._repo.store
        try:
            if store.stat(record.name) != record.size:
                return False
            return hashlib.sha256(store.get(record.name)).digest() == record.sha256
        except StoreError as error:
            require_alive(self._repo.store, error)
            return False

    def _file(self, name: str, sha256: bytes) -> bytes | None:
        own: dict[str, Callable[[], bytes]] = {README: readme_text, RESCUE: rescue_source}
        candidates = [own[name]] if name in own else []
        candidates += [partial(other.store.get, name) for other in self._donors.twins()]
        return _first(candidates, lambda content: hashlib.sha256(content).digest() == sha256)

    def ensure(self, name: str, content: Clear) -> bool:
        """Give a clear file these bytes, if it has others or none; whether it has them now."""
        try:
            if self._repo.store.get(name) == content:
                return True
        except StoreError as error:
            require_alive(self._repo.store, error)
        had = len(self._result.actions)
        self._replace(name, lambda: self._repo.store.put(name, content))
        return all(one.did != LEFT for one in self._result.actions[had:])

    def _replace(self, name: str, put: Callable[[], None]) -> None:
        """Give an object its right bytes; other bytes under its name are moved aside first."""
        there = self._exists(name)
        if there and not self._aside(name):
            return
        self._result.did(BACK, name)
        if not self._result.dry:
            put()
            self._repo.store.sync()

    def _exists(self, name: str) -> bool:
        try:
            self._repo.store.stat(name)
        except ObjectNotFound:
            return False
        except StoreError as error:
            require_alive(self._repo.store, error)
        return True

    def _aside(self, name: str) -> bool:
        if not self._moves:
            self._result.did(LEFT, name, "it cannot be moved aside there: no lock proves that nobody uses it")
            return False
        if self._result.dry:
            self._result.did(ASIDE, name)
            return True
        try:
            self._result.did(ASIDE, name, set_aside(self._repo.store, name))
        except StoreError as error:
            require_alive(self._repo.store, error)
            self._result.did(LEFT, name, f"it cannot be moved aside: {error.message}")
            return False
        return True

    # -- commits ------------------------------------------------------------------------------------------------------

    def commits(self, findings: Iterable[Finding]) -> None:
        """Commits that are damaged, or missing where the history lacks some: from this host's cache, or a copy."""
        bad = {name for name in _damaged(findings, "commit") if commit.parse_name(name) is not None}
        bad |= set(self._missing())
        # What nothing shows to have been a commit was one all the same if somebody has it.
        junk = {one.head.name for one in self._repo.history.unreadable} - bad
        for name in sorted(bad | junk):
            head = commit.parse_name(name)
            content = None if head is None else self._commit(head)
            if content is None and name in bad:
                self._result.did(LEFT, name, "nobody here has its bytes")
            elif content is not None:
                self._replace(name, partial(self._repo.store.put, name, Sealed(content)))

    def _missing(self) -> Iterator[str]:
        """Names of commits that are known and not listed although their chain lacks something.

        This host's cache does not bring back what its user accepted as gone; a copy named for this repair does.
        """
        history = self._repo.history
        lost = not history.heads or any(problem.kind == "seen" for problem in history.problems)
        listed = {entry.name for entry in self._repo.store.list(commit.PREFIX)}
        copied = [entry.name for other in self._donors.twins() for entry in other.store.list(commit.PREFIX)]
        for names, problems in ((self._repo.cache.commit_names(), self._repo.problems), (copied, history.problems)):
            lacking = {problem.writer for problem in problems}
            for name in {*names} - listed:
                head = commit.parse_name(name)
                if head is not None and (lost or head.writer in lacking):
                    yield name

    def _commit(self, head: Head) -> bytes | None:
        def opens(content: bytes) -> bool:
            try:
                open_commit(self._repo.keys, head, content)
            except (IntegrityError, UnknownFormat):
                return False
            return True

        candidates: list[Callable[[], bytes]] = [lambda: self._repo.cache.commit(head.name) or b""]
        candidates += [partial(other.store.get, head.name) for other in self._donors.twins()]
        return _first(candidates, opens)

    # -- packs --------------------------------------------------------------------------------------------------------

    def whole_packs(self, domain_id: DomainId, blobs: Iterable[tuple[Kind, ChunkId]]) -> None:
        """Packs that hold these blobs and are missing here, byte by byte from a copy of this repository."""
        done: set[bytes] = set()
        for other in self._donors.twins():
            for kind, id_ in blobs:
                for place in other.blobs.find(kind, id_):
                    if place.domain_id == domain_id and place.pack not in done:
                        done.add(place.pack)
                        self._whole_pack(other, place.pack)

    def _whole_pack(self, other: Repository, pack: bytes) -> None:
        name = pack_name(pack)
        if self._exists(name):
            return
        content = _first([lambda: other.store.get(name)], lambda found: hashlib.sha256(found).digest() == pack)
        if content is None:
            return
        self._result.did(BACK, name, f"from {other.store.url}")
        if not self._result.dry:
            self._repo.store.put(name, Sealed(content))

    def catalogue_segments(self, depot: Depot) -> None:
        """Segments that checkpoints name and no pack has, from a copy; else the next checkpoint is complete."""
        for chain in self._repo.history.chains.values():
            for place in chain.carried.segments if chain.carried is not None else ():
                try:
                    self._repo.contents.get(CATALOGUE, Kind.SEGMENT, place.id)
                except IntegrityError:
                    content = self._donors.by_id(CATALOGUE, Kind.SEGMENT, place.id)
                    if content is not None:
                        depot.store(CATALOGUE, Kind.SEGMENT, place.id, content)
                        self._result.did(STORED, pack_name(place.pack), "a catalogue segment")

    def salvage(self, findings: Iterable[Finding], depot: Depot) -> list[str]:
        """Store what still opens in bad packs and lies nowhere else; returns the packs that were gone through."""
        through: list[str] = []
        damaged = _damaged(findings, "pack")
        bad = {pack_hash(name) for name in damaged}
        for name in damaged:
            if pack_hash(name) is None:
                continue
            try:
                content = self._repo.store.get(name)
            except StoreError as error:
                require_alive(self._repo.store, error)
                if not isinstance(error, ObjectNotFound):
                    self._result.did(LEFT, name, f"it cannot be read: {error.message}")
                continue
            if self._is_sound(name, content):
                continue  # it could not be read for a moment
            saved = self._salvage(name, content, depot, bad)
            if saved:
                self._result.did(STORED, name, f"{saved} blobs that still open in it")
            through.append(name)
        return through

    def _is_sound(self, name: str, content: bytes) -> bool:
        if hashlib.sha256(content).digest() != pack_hash(name):
            return False
        try:
            head = open_head(self._repo.keys, name, content)
            check_padding(content, head.header, head.blobs, name)
            domain = self._repo.keys.domain(head.domain_id)
            for blob in head.blobs:  # one at a time: together they may be more than a machine has memory
                sealed = content[blob.offset : blob.offset + blob.sealed_length]
                open_blob(domain, head.header, blob, sealed, name)
        except (IntegrityError, UnknownFormat):
            return False
        return True

    def _salvage(self, name: str, content: bytes, depot: Depot, bad: Collection[bytes | None]) -> int:
        """Content that lies only in other `bad` packs is stored again, too: all of them are moved aside."""
        saved = 0
        for domain_id, kind, id_, opened in self._opened(name, content):
            others = [place for place in self._repo.blobs.find(kind, id_) if place.pack not in bad]
            if not others and not depot.has(domain_id, kind, id_):
                depot.store(domain_id, kind, id_, opened)
                saved += 1
        return saved

    def _opened(self, name: str, content: bytes) -> Iterator[tuple[DomainId, Kind, ChunkId, bytes]]:
        """Every blob of a bad pack that opens: each is authenticated on its own (FORMAT 5)."""
        for domain_id, header, blobs in self._directories(name, content):
            domain = self._repo.keys.domain(domain_id)
            for blob in filter(_belongs(domain_id), blobs):
                sealed = content[blob.offset : blob.offset + blob.sealed_length]
                try:
                    yield domain_id, blob.kind, blob.id, open_blob(domain, header, blob, sealed, name)
                except (IntegrityError, UnknownFormat):
                    continue

    def _directories(self, name: str, content: bytes) -> Iterator[tuple[DomainId, Header, list[Blob]]]:
        """What the bytes themselves say, which may be those of another pack, and what this host knew of the name."""
        own: Header | None = None
        head = self._head(name, content)
        if head is not None:
            own = head.header
            yield head.domain_id, own, head.blobs
        pack = pack_hash(name) or b""
        known = self._repo.blobs.directory(pack)
        if known is not None and known.header != own:
            yield known.domain_id, known.header, [*known.blobs, *self._repo.suspects.blobs(pack)]

    def _head(self, name: str, content: bytes) -> PackHead | None:
        """The head as it is, or with the right hint: nothing but a hint says which domain's pack it is (FORMAT 5)."""
        domains = sorted({one.added.domain_id for one in self._repo.catalogue.snapshots})
        hints = (self._repo.keys.hint(domain_id, content[16:48]) for domain_id in domains)
        for mended in (content, *(content[:48] + hint + content[72:] for hint in hints)):
            with suppress(IntegrityError, UnknownFormat):
                return open_head(self._repo.keys, name, mended)
        return None

    def packs_aside(self, names: Iterable[str]) -> None:
        """Move bad packs aside; what was good in them is stored again by now."""
        for name in names:
            if self._exists(name):
                self._aside(name)


def _belongs(domain_id: DomainId) -> Callable[[Blob], bool]:
    kinds = {Kind.SEGMENT} if domain_id == CATALOGUE else {Kind.CHUNK, Kind.LEAF, Kind.INNER, Kind.DOCUMENT}
    return lambda blob: blob.kind in kinds


def _damaged(findings: Iterable[Finding], kind: str) -> list[str]:
    return sorted({one.obj for one in findings if one.kind == kind and one.severity == DAMAGE})


def _first(candidates: Iterable[Callable[[], bytes]], fits: Callable[[bytes], bool]) -> bytes | None:
    """The first content that can be had and fits."""
    for candidate in candidates:
        try:
            content = candidate()
        except StoreError:
            continue
        if fits(content):
            return content
    return None
