"""What SESSION and ABANDON records add up to: which runs are open, and what they pin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lamella.base.ids import ChunkId, DomainId, VolumeId
from lamella.format.records import NO_REF, RawRecord, raw
from lamella.format.sessions import Abandon, PartialRoot, Session, SessionVolume
from lamella.history.history import Chain
from lamella.history.open_sessions import open_sessions
from lamella.repository.repository import Repository
from tests.unit.small_repository import WRITER, Small

VOLUME = VolumeId(b"v" * 16)
DOMAIN = DomainId(b"d" * 16)
ONE, TWO, THREE = (bytes([number]) * 32 for number in (1, 2, 3))


def session(letter: bytes, packs: tuple[bytes, ...], done: int) -> Session:
    volumes = (SessionVolume(VOLUME, "disk", NO_REF, ChunkId(bytes(24))),)
    partial = PartialRoot(VOLUME, DOMAIN, ChunkId(bytes([done]) * 24), 1 << 20, 16, done)
    return Session(letter * 16, "20260101T000000Z-aaaa", volumes, packs, (partial,))


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small.make(tmp_path)


@pytest.fixture
def repo(small: Small) -> Iterator[Repository]:
    with small.opened() as repo:
        yield repo


def test_records_of_one_session_are_one(repo: Repository) -> None:
    repo.publish([raw(session(b"a", (ONE, TWO), 1))])
    repo.publish([raw(session(b"b", (THREE,), 5))])
    repo.publish([raw(session(b"a", (TWO, THREE), 2))])
    repo.reload()
    b, a = repo.catalogue.sessions
    assert (a.session_id, a.packs, a.seq) == (b"a" * 16, (ONE, TWO, THREE), repo.history.heads[0].seq)
    assert [one.done for one in a.partial_roots] == [2]
    assert (b.session_id, b.packs, b.writer) == (b"b" * 16, (THREE,), repo.own_writer)
    assert a.volumes == b.volumes == session(b"a", (), 1).volumes


def test_abandon_closes_the_own_session_and_nobody_elses(small: Small, repo: Repository) -> None:
    repo.publish([raw(session(b"a", (ONE,), 1)), raw(session(b"b", (TWO,), 1))])
    with small.opened("two", WRITER) as other:
        other.publish([raw(Abandon(b"a" * 16))])
    repo.reload()
    assert len(repo.catalogue.sessions) == 2
    repo.publish([raw(Abandon(b"a" * 16))])
    repo.reload()
    assert [one.session_id for one in repo.catalogue.sessions] == [b"b" * 16]
    repo.publish([raw(session(b"a", (THREE,), 1))])
    repo.reload()
    assert repo.catalogue.sessions[-1].packs == (THREE,), "what was closed pins nothing any more"


def test_on_the_branches_of_a_fork_nothing_is_closed(repo: Repository) -> None:
    repo.publish([raw(session(b"a", (ONE,), 1))])
    repo.publish([raw(Abandon(b"a" * 16))])
    repo.reload()
    (chain,) = repo.history.chains.values()
    assert open_sessions([chain]) == []
    forked = replace(chain, forked_at=chain.entries[-1].seq)
    assert [one.packs for one in open_sessions([forked])] == [(ONE,)]


def test_a_malformed_record_is_left_out(repo: Repository) -> None:
    (chain,) = repo.history.chains.values()
    broken = chain.entries[0]._replace(record=RawRecord(Session.TYPE, b"short"))
    assert open_sessions([Chain(chain.writer, entries=[broken])]) == []


def test_packs_of_an_open_session_are_the_writers_own(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.publish([raw(session(b"a", (ONE, TWO), 1))])
    repo.reload()
    marked: list[list[bytes]] = []

    def refresh(packs: list[bytes], reaped: object) -> int:
        marked.append(packs)
        return 1

    monkeypatch.setattr(repo.blobs, "refresh", refresh)
    repo.refresh_map()
    assert marked == [[ONE, TWO]]
