"""Connections that break in the middle: what was acknowledged is not sent again, and lost locks are noticed."""

from __future__ import annotations

import filecmp
import hashlib
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lamella.base.errors import Locked, ObjectNotFound, StoreError, StoreUnavailable
from lamella.base.trust import Sealed
from lamella.stores.local.store import LocalStore
from lamella.stores.pipe.client import PipeStore
from lamella.stores.pipe.link import Call, Link
from lamella.stores.url import open_store
from lamella.stores.wrap.patience import Backoff
from lamella.stores.wrap.retrying import RetryingStore
from lamella_kit.store_reading import listed
from tests.cli.program import Lamella, environment
from tests.system.bad_link import BadLink, bad_link
from tests.system.ssh_server import SshServer, ssh_server

MIB = 1 << 20


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SshServer]:
    """A running sshd, whose `ssh` is first on the PATH."""
    with ssh_server() as running:
        monkeypatch.setenv("PATH", f"{running.bin}:{os.environ['PATH']}")
        yield running


@pytest.fixture
def link(server: SshServer) -> Iterator[BadLink]:
    """A link to the server that can be cut."""
    with bad_link((server.address, server.port)) as running:
        key = (server.place / "host.pub").read_text()
        with (server.place / "known").open("a") as known:
            known.write(f"[127.0.0.1]:{running.port} {key}")
        yield running


def _retrying(store: PipeStore) -> RetryingStore:
    return RetryingStore(store, Backoff(attempts=10, first_seconds=0.01, longest_seconds=0.1))


def _open(link: BadLink, place: Path, *, create: bool = True) -> PipeStore:
    store = open_store(f"ssh://127.0.0.1:{link.port}{place}", create=create)
    assert isinstance(store, PipeStore)
    return store


def _objects(count: int, size: int) -> dict[str, bytes]:
    contents = [os.urandom(size) for _ in range(count)]
    names = [hashlib.sha256(content).hexdigest() for content in contents]
    return {f"p/{name[:2]}/{name}": content for name, content in zip(names, contents, strict=True)}


@pytest.mark.slow
def test_what_was_acknowledged_is_not_sent_again(link: BadLink, tmp_path: Path) -> None:
    store = _open(link, tmp_path / "repo")
    retrying = _retrying(store)
    objects = _objects(40, MIB // 2)
    total = sum(map(len, objects.values()))
    choose = random.Random(7)
    for number, (name, content) in enumerate(objects.items()):
        if number % 8 == 4:
            link.cut_after = link.passed + choose.randrange(MIB // 4)
        retrying.put(name, Sealed(content))
    retrying.sync()
    assert link.cuts == 5
    assert store.connections == 6
    assert listed(retrying) == {name: len(content) for name, content in objects.items()}
    assert all(retrying.get(name) == content for name, content in objects.items())
    # At most the one object on its way is sent again at each cut; a connection costs some kilobytes of its own.
    assert link.passed < total + 5 * (MIB // 2) + 6 * 40_000
    retrying.close()


@pytest.mark.parametrize("lost", [False, True], ids=["stored", "lost"])
def test_what_arrived_without_an_acknowledgement_is_not_sent_again(link: BadLink, tmp_path: Path, lost: bool) -> None:
    """The link breaks while the answer is on its way back; the object may be lost with the server all the same."""
    store = _open(link, tmp_path / "repo")
    ((name, content),) = _objects(1, 4 * MIB).items()
    link.delay = 1.0
    before = link.passed

    def cut() -> None:
        while not (tmp_path / "repo" / name).exists():
            time.sleep(0.01)
        link.delay = 0.0
        link.cut()
        if lost:
            (tmp_path / "repo" / name).unlink()

    cutter = threading.Thread(target=cut)
    cutter.start()
    retrying = _retrying(store)
    retrying.put(name, Sealed(content))
    cutter.join()
    sent = link.passed - before
    assert (sent > 2 * len(content)) if lost else (sent < len(content) + MIB), sent
    assert retrying.get(name) == content
    retrying.sync()
    assert (link.cuts, store.connections) == (1, 2)
    retrying.close()


def test_a_server_that_says_why_it_failed_is_not_asked_whether_it_stored(
    link: BadLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _open(link, tmp_path / "repo")
    ((name, content),) = _objects(1, 1000).items()

    def failing(_: Link, call: Call) -> bytes:
        raise StoreUnavailable("the disk failed", obj=call.obj)

    with monkeypatch.context() as patch:
        patch.setattr(Link, "answer", failing)
        with pytest.raises(StoreUnavailable):
            store.put(name, Sealed(content))
    assert not store._link.failed
    monkeypatch.setattr(PipeStore, "_has_arrived", lambda *_: pytest.fail("it was asked"))
    store.put(name, Sealed(content))
    assert store.get(name) == content
    store.close()


def test_sync_after_a_cut_covers_what_was_put_before_it(link: BadLink, tmp_path: Path) -> None:
    """The server that took the objects is gone, perhaps with them: their presence is checked, not assumed."""
    store = _open(link, tmp_path / "repo")
    retrying = _retrying(store)
    objects = _objects(3, 1000)
    for name, content in objects.items():
        retrying.put(name, Sealed(content))
    link.cut()
    retrying.sync()
    (first, *_) = objects
    retrying.delete(first)
    link.cut()
    retrying.sync()
    assert first not in listed(retrying)
    more = _objects(1, 1000)
    for name, content in more.items():
        retrying.put(name, Sealed(content))
        link.cut()
        (tmp_path / "repo" / name).unlink()
    with pytest.raises(StoreError, match="before the connection broke") as caught:
        retrying.sync()
    assert not caught.value.retryable
    retrying.close()


def test_a_shared_lock_that_was_lost_holds_up_commits_only(link: BadLink, tmp_path: Path) -> None:
    store = _open(link, tmp_path / "repo")
    (name, content), (commit, body) = _objects(2, 1000).items()
    commit = f"w/{'0' * 32}/{1:016x}-{commit[5:]}"
    with store.lock(exclusive=False) as lock:
        assert not lock.lost
        link.cut()
        _retrying(store).put(name, Sealed(content))
        assert lock.lost
        with pytest.raises(StoreError, match="lock was lost") as caught:
            store.put(commit, Sealed(body))
        assert not caught.value.retryable
        # It was taken again with the connection.
        with pytest.raises(Locked), LocalStore.open(tmp_path / "repo").lock(exclusive=True):
            pytest.fail("the lock was not taken again")
    store.close()


def test_an_exclusive_lock_that_was_lost_holds_up_everything_that_writes(link: BadLink, tmp_path: Path) -> None:
    store = _open(link, tmp_path / "repo")
    (name, content), (other, more) = _objects(2, 1000).items()
    store.put(name, Sealed(content))
    with store.lock(exclusive=True) as lock:
        link.cut()
        with suppress(StoreUnavailable):  # whether this call or one before it notices the cut is a race
            store.get(name)
        assert _retrying(store).get(name) == content
        assert lock.lost
        with pytest.raises(StoreError, match="lock was lost"):
            store.delete(name)
        with pytest.raises(StoreError, match="lock was lost"):
            store.put(other, Sealed(more))
    assert list(listed(store)) == [name]
    store.close()


def test_a_lock_that_somebody_else_has_now_is_not_had(link: BadLink, tmp_path: Path) -> None:
    store = _open(link, tmp_path / "repo")
    retrying = _retrying(store)
    local = LocalStore.open(tmp_path / "repo")
    with store.lock(exclusive=False):
        link.cut()
        assert store._link._reader.join(20)
        with local.lock(exclusive=True, wait_seconds=20), pytest.raises(Locked):
            retrying.stat("p/x")
        with pytest.raises(ObjectNotFound):
            retrying.stat("p/x")
    store.close()


@pytest.fixture
def lamella(tmp_path: Path, link: BadLink) -> Lamella:
    """The command, and a repository over the link."""
    (tmp_path / "key").write_bytes(os.urandom(32))
    (tmp_path / "key").chmod(0o600)
    place = f"ssh://127.0.0.1:{link.port}{tmp_path}/repo"
    made = Lamella({"LAMELLA_REPO": place}, ["--keyfile", str(tmp_path / "key")])
    made.ok("init", "-q")
    return made


@pytest.mark.slow
def test_a_backup_over_a_link_that_breaks_again_and_again(lamella: Lamella, link: BadLink, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(96 * MIB))
    choose = random.Random(11)

    def again() -> None:
        if link.cuts < 5:
            link.cut_after = link.passed + choose.randrange(8 * MIB, 20 * MIB)

    link.on_cut = again
    link.cut_after = link.passed + 10 * MIB
    lamella.ok("backup", image)
    assert link.cuts == 5
    assert lamella.json("verify", "--level", "full")["findings"] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_of_two_gibibytes_cut_twenty_times_less_than_a_twentieth_is_sent_twice(
    lamella: Lamella, link: BadLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At this size, since a smaller one is mostly the packs before the first cut, and those in ssh's buffers."""
    size, cuts = 2048 * MIB, 20
    monkeypatch.setattr("tests.cli.program.SECONDS", 600)
    image, chance = tmp_path / "disk.img", random.Random(size)
    with image.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    places = sorted(chance.randrange(size) for _ in range(cuts))
    before = link.passed

    def again() -> None:
        link.cut_after = before + places.pop(0) if places else None

    link.on_cut = again
    again()
    lamella.ok("backup", image)
    assert link.cuts == cuts
    stored = sum(path.stat().st_size for path in (tmp_path / "repo" / "p").rglob("?" * 64))
    twice = (link.passed - before) / stored - 1
    sent = (link.passed - before) / MIB
    print(f"{size >> 20} MiB, {cuts} cuts: {sent:.1f} MiB sent for {stored / MIB:.1f} stored, {twice:.1%} twice")
    assert twice < 0.05
    lamella.ok("restore", "disk", "--to", tmp_path / "out")
    assert filecmp.cmp(image, tmp_path / "out", shallow=False)
    for large in (image, tmp_path / "out"):
        large.unlink()
    shutil.rmtree(tmp_path / "repo")


def test_a_pack_that_vanished_while_the_link_was_down_fails_the_run(
    lamella: Lamella, link: BadLink, tmp_path: Path
) -> None:
    """Somebody had the exclusive lock meanwhile: nothing that was known before may be relied on."""
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(40 * MIB))
    lamella.ok("backup", image)
    (victim, *_) = sorted((tmp_path / "repo" / "p").rglob("?" * 64))
    image.write_bytes(image.read_bytes()[: 8 * MIB] + os.urandom(32 * MIB))
    link.on_cut = victim.unlink
    link.cut_after = link.passed + 20 * MIB
    done = lamella.run("backup", image)
    assert (done.code, "before it was back" in done.err) == (1, True), done
    assert len(lamella.json("list")["snapshots"]) == 1


def test_a_server_that_is_restarted_in_the_middle(
    lamella: Lamella, server: SshServer, link: BadLink, tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(40 * MIB))

    def restart() -> None:
        server.stop()
        server.start()

    link.on_cut = restart
    link.cut_after = link.passed + 15 * MIB
    lamella.ok("backup", image)
    assert link.cuts == 1
    assert lamella.json("verify", "--level", "full")["findings"] == []


# --- a connection that is shared and does not answer any more ---------------------------------------------------------


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Lamella, BadLink]]:
    """The command with a repository behind a link, over a connection that stays open for the next command."""
    with ssh_server(reuse=True) as running, bad_link((running.address, running.port)) as link:
        monkeypatch.setenv("PATH", f"{running.bin}:{os.environ['PATH']}")
        key = (running.place / "host.pub").read_text()
        with (running.place / "known").open("a") as known:
            known.write(f"[127.0.0.1]:{link.port} {key}")
        (tmp_path / "key").write_bytes(os.urandom(32))
        (tmp_path / "key").chmod(0o600)
        place = f"ssh://127.0.0.1:{link.port}{tmp_path}/repo"
        lamella = Lamella({"LAMELLA_REPO": place}, ["--keyfile", str(tmp_path / "key")])
        lamella.ok("init", "-q")
        yield lamella, link


@pytest.mark.slow
def test_a_shared_connection_that_is_stuck_is_gone_around(shared: tuple[Lamella, BadLink]) -> None:
    lamella, link = shared
    link.freeze_present()
    started = time.monotonic()
    lamella.ok("list")
    assert time.monotonic() - started < 45


@pytest.mark.slow
def test_a_run_over_a_shared_connection_that_gets_stuck_goes_on_over_a_new_one(
    shared: tuple[Lamella, BadLink], tmp_path: Path
) -> None:
    lamella, link = shared
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(48 * MIB))
    timer = threading.Thread(target=_freeze_at, args=(link, link.passed + 10 * MIB))
    timer.start()
    started = time.monotonic()
    done = subprocess.run(
        [*lamella.command, *lamella.options, "backup", str(image)],
        env=environment(lamella.env),
        capture_output=True,
        text=True,
        timeout=240,
    )
    timer.join()
    assert done.returncode == 0, done.stderr
    assert "trying again" in done.stderr
    assert time.monotonic() - started < 120
    lamella.ok("verify", "--level", "full")


def _freeze_at(link: BadLink, passed: int) -> None:
    while link.passed < passed:
        time.sleep(0.001)
    link.freeze_present()
