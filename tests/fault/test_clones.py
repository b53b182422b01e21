"""State directories copied, lost or old, repositories copied back, packs lost: what is noticed, and how it goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lamella.base.errors import KeyRefused, NoRepository, NothingMatched, RolledBack
from lamella.crypto.slots import key_file
from lamella.format.commit import parse_name, writer_id
from lamella.format.known import understood
from lamella.format.owners import Succeeds
from lamella.history.acceptance import accept_history
from lamella.memory.host import Host
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from tests.fault.world import (
    CHUNK,
    SECRET,
    Truth,
    backup,
    check_rescue,
    check_sound,
    copy_of,
    fresh_host,
    host_at,
    init,
    restored,
    verified,
    volume,
    with_fresh_cache,
)

ONE, TWO, THREE = (bytes([letter]) * CHUNK + b"rest" * 100 for letter in b"123")


def writers(store: MemoryStore) -> set[bytes]:
    heads = [parse_name(name) for name in store.objects()]
    return {head.writer for head in heads if head is not None}


def started(tmp_path: Path) -> tuple[MemoryStore, Host, Truth]:
    store, host, truth = MemoryStore(), host_at(tmp_path / "host"), Truth()
    init(store, host)
    truth.learn(backup(store, host, volume(ONE)), {"disk": ONE})
    return store, host, truth


def cloned(tmp_path: Path, name: str, machine: str = "one") -> Host:
    shutil.rmtree(tmp_path / name, ignore_errors=True)
    shutil.copytree(tmp_path / "host", tmp_path / name)
    return host_at(tmp_path / name, machine)


def merged(*stores: MemoryStore) -> MemoryStore:
    objects: dict[str, bytes] = {}
    for store in stores:
        objects |= store.objects()
    return MemoryStore(objects)


def forked(tmp_path: Path) -> tuple[MemoryStore, list[Host], Truth]:
    """Two clones published at the same moment, neither seeing the other."""
    store, host, truth = started(tmp_path)
    clone = cloned(tmp_path, "clone")
    here, there = copy_of(store), copy_of(store)
    truth.learn(backup(here, host, volume(TWO)), {"disk": TWO})
    truth.learn(backup(there, clone, volume(THREE)), {"disk": THREE})
    return merged(here, there), [host, clone], truth


def test_clones_on_one_machine_that_take_turns_share_a_chain(tmp_path: Path) -> None:
    store, host, truth = started(tmp_path)
    clone = cloned(tmp_path, "clone")
    for content, who in ((TWO, host), (THREE, clone), (ONE, host)):
        truth.learn(backup(store, who, volume(content)), {"disk": content})
        check_sound(store, who, truth, tmp_path)
    assert len(writers(store)) == 1


def test_a_fork_is_noticed_by_everybody_and_both_branches_count(tmp_path: Path) -> None:
    store, hosts, truth = forked(tmp_path)
    assert len(truth.volumes) == 3
    for host in (*hosts, fresh_host(tmp_path / "stranger")):
        with pytest.raises(RolledBack) as caught:
            backup(store, host, volume(ONE))
        assert caught.value.exit_code == 21 and "fork" in caught.value.message
        check_sound(store, host, truth, tmp_path)  # reading goes on
    check_rescue_of_fork(store, truth, tmp_path)


def check_rescue_of_fork(store: MemoryStore, truth: Truth, tmp_path: Path) -> None:
    """The emergency reader restores both branches too; that the history forked it says by exit code 21."""
    try:
        check_rescue(store.objects(), truth, tmp_path)
    except AssertionError as error:
        assert "restore.py says 21" in str(error)


def test_after_a_fork_was_accepted_each_goes_on_under_a_new_id(tmp_path: Path) -> None:
    store, hosts, truth = forked(tmp_path)
    old = writers(store)
    for number, host in enumerate(hosts, start=1):
        with Repository.open(store, SECRET, host) as repo:
            accepted = accept_history(repo.log)
            assert accepted and all("fork" in problem.message for problem in accepted)
        truth.learn(backup(store, host, volume(ONE)), {"disk": ONE})
        assert len(writers(store) - old) == number
        with Repository.open(store, SECRET, host) as repo:
            own = repo.own_writer
            assert own is not None and own not in old
            seen = [
                known
                for entry in repo.history.chains[own].entries
                if isinstance(known := understood(entry.record), Succeeds)
            ]
            assert {writer_id(one.public) for one in seen} == old
            assert all(volume.own and old | {own} <= volume.owners for volume in repo.catalogue.volumes.values())
        check_sound(store, host, truth, tmp_path)
    for host in hosts:  # and the next runs need nothing more
        truth.learn(backup(store, host, volume(TWO)), {"disk": TWO})
        check_sound(store, host, truth, tmp_path)


def test_a_fork_made_between_reading_and_publishing(tmp_path: Path) -> None:
    """The clone publishes while this host reads its source: noticed at once, and both snapshots are kept."""
    store, host, truth = started(tmp_path)
    clone = cloned(tmp_path, "clone")
    elsewhere = copy_of(store)
    truth.learn(backup(elsewhere, clone, volume(THREE)), {"disk": THREE})

    class Arriving(MemoryStore):
        """The other's commit becomes visible after ours was put: as on a store that is copied in the background."""

        def sync(self) -> None:
            super().sync()
            if any(name not in store.objects() for name in self.objects() if name.startswith("w/")):
                for name, content in elsewhere.objects().items():
                    self._objects.setdefault(name, content)

    racing = Arriving(store.objects())
    with pytest.raises(RolledBack) as caught:
        backup(racing, host, volume(TWO))
    assert caught.value.exit_code == 21
    check_sound(racing, host, truth, tmp_path, others=(TWO,))


def test_a_clone_on_another_machine_is_another_writer(tmp_path: Path) -> None:
    store, host, truth = started(tmp_path)
    clone = cloned(tmp_path, "clone", "another machine")
    here, there = copy_of(store), copy_of(store)
    truth.learn(backup(here, host, volume(TWO)), {"disk": TWO})
    truth.learn(backup(there, clone, volume(THREE)), {"disk": THREE})
    both = merged(here, there)
    assert len(writers(both)) == 2
    for who in (host, clone, fresh_host(tmp_path / "stranger")):
        check_sound(both, who, truth, tmp_path)
        with Repository.open(both, SECRET, who) as repo:
            assert not repo.problems
    for who in (host, clone):
        truth.learn(backup(both, who, volume(ONE)), {"disk": ONE})
    check_sound(both, host, truth, tmp_path)
    check_rescue(both.objects(), truth, tmp_path)


# -- rollback ---------------------------------------------------------------------------------------------------------


def test_a_repository_copied_back_is_refused_until_accepted(tmp_path: Path) -> None:
    store, host, truth = started(tmp_path)
    old, known = copy_of(store), Truth(dict(truth.volumes))
    backup(store, host, volume(TWO))
    backup(store, host, volume(THREE))
    for _ in range(2):
        with pytest.raises(RolledBack) as caught:
            backup(old, host, volume(ONE))
        assert caught.value.exit_code == 21 and "accept-rollback" in caught.value.hint
    check_sound(old, host, known, tmp_path)
    with Repository.open(old, SECRET, host) as repo:
        assert len(accept_history(repo.log)) == 1
    known.learn(backup(old, host, volume(TWO)), {"disk": TWO})
    check_sound(old, host, known, tmp_path)
    check_rescue(old.objects(), known, tmp_path)


def test_a_host_that_accepted_notices_the_next_rollback(tmp_path: Path) -> None:
    store, host, _ = started(tmp_path)
    old = copy_of(store)
    backup(store, host, volume(TWO))
    with Repository.open(old, SECRET, host) as repo:
        accept_history(repo.log)
    older = copy_of(old)
    backup(old, host, volume(TWO))
    with pytest.raises(RolledBack):
        backup(older, host, volume(THREE))


def test_a_writer_whose_chain_is_gone_is_missed(tmp_path: Path) -> None:
    store, host, truth = started(tmp_path)
    other = host_at(tmp_path / "other", "other")
    truth.learn(backup(store, other, volume(TWO, "second")), {"second": TWO})
    backup(store, host, volume(ONE))
    with Repository.open(store, SECRET, other) as repo:
        gone = repo.own_writer
    assert gone is not None
    objects = {name: content for name, content in store.objects().items() if gone.hex() not in name}
    with pytest.raises(RolledBack, match="is gone"):
        backup(MemoryStore(objects), host, volume(TWO))


def test_an_old_state_directory_is_harmless(tmp_path: Path) -> None:
    store, host, truth = started(tmp_path)
    shutil.copytree(tmp_path / "host", tmp_path / "saved")
    for content in (TWO, THREE, ONE):
        truth.learn(backup(store, host, volume(content)), {"disk": content})
    shutil.rmtree(tmp_path / "host")
    shutil.copytree(tmp_path / "saved", tmp_path / "host")
    truth.learn(backup(store, host, volume(TWO)), {"disk": TWO})
    check_sound(store, host, truth, tmp_path)
    with Repository.open(store, SECRET, host) as repo:
        assert not repo.problems and len(repo.history.chains) == 1


# -- lost memory ------------------------------------------------------------------------------------------------------


def test_a_lost_state_directory_costs_little(tmp_path: Path) -> None:
    store, host, truth = started(tmp_path)
    noise = ONE + bytes(range(256)) * 2000
    truth.learn(backup(store, host, volume(noise)), {"disk": noise})
    before = store.objects()
    shutil.rmtree(host.state_dir)
    result = backup(store, with_fresh_cache(host, host.cache_dir), volume(noise))
    truth.learn(result, {"disk": noise})
    assert (result.volumes[0].mode, result.stored_bytes) == ("compare", 0)
    added = sum(len(content) for name, content in store.objects().items() if name not in before)
    assert added < 4096, f"{added} bytes for an unchanged volume"
    assert len(writers(store)) == 2
    check_sound(store, host, truth, tmp_path)
    truth.learn(backup(store, host, volume(TWO)), {"disk": TWO})
    check_sound(store, host, truth, tmp_path)
    check_rescue(store.objects(), truth, tmp_path)


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"null", b'{"heads": 3, "accepted": 7, "snapshots": {}}', b"\xff"])
@pytest.mark.parametrize("name", ["writer.json", "pins.json", "confirmed.json"])
def test_a_damaged_memory_is_a_lost_one(tmp_path: Path, name: str, junk: bytes) -> None:
    store, host, truth = started(tmp_path)
    (found,) = host.state_dir.rglob(name)
    found.write_bytes(junk)
    truth.learn(backup(store, host, volume(TWO)), {"disk": TWO})
    check_sound(store, host, truth, tmp_path)


def test_a_lost_cache_is_fine(tmp_path: Path) -> None:
    store, host, truth = started(tmp_path)
    result = backup(store, with_fresh_cache(host, host.cache_dir), volume(ONE))
    truth.learn(result, {"disk": ONE})
    assert result.stored_bytes == 0
    check_sound(store, host, truth, tmp_path)


# -- lost packs -------------------------------------------------------------------------------------------------------


def packs(store: MemoryStore) -> set[str]:
    return {name for name in store.objects() if name.startswith("p/")}


@pytest.mark.parametrize("stranger", [False, True], ids=["warm cache", "fresh cache"])
def test_a_lost_pack_is_named_and_the_next_run_stores_it_again(tmp_path: Path, stranger: bool) -> None:
    store, host, truth = MemoryStore(), host_at(tmp_path / "host"), Truth()
    init(store, host)
    chunks = [bytes([letter]) * CHUNK for letter in b"abcdef"]
    contents = [
        b"".join(chunks[:4]),
        b"".join([*chunks[:3], chunks[4]]),
        b"".join([chunks[5], *chunks[1:3], chunks[4]]),
    ]
    made: list[tuple[str, set[str]]] = []
    for content in contents:
        before = packs(store)
        result = backup(store, host, volume(content))
        truth.learn(result, {"disk": content})
        made.append((f"disk@{result.snapshot}", packs(store) - before))
    for number, (_, written) in enumerate(made):
        (lost,) = written
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(tmp_path / "host", tmp_path / "copy")
        who = host_at(tmp_path / "copy")
        if stranger:
            who = with_fresh_cache(who, who.cache_dir)
        damaged = MemoryStore({name: content for name, content in store.objects().items() if name != lost})
        check_findings(damaged, who, truth, made, number, tmp_path)
        again = backup(damaged, who, volume(contents[2]))
        truth_now = {f"disk@{again.snapshot}": contents[2], made[2][0]: contents[2]}
        with Repository.open(damaged, SECRET, fresh_host(tmp_path / "fresh")) as repo:
            for one in select(repo, []):
                if one.text in truth_now:
                    assert restored(repo, one, tmp_path / "out.img") == truth_now[one.text]


def check_findings(
    damaged: MemoryStore, host: Host, truth: Truth, made: list[tuple[str, set[str]]], number: int, tmp_path: Path
) -> None:
    """Exactly the snapshots that do not restore are named; at least the one whose run wrote the pack."""
    with Repository.open(damaged, SECRET, host) as repo:
        named = set(verified(repo, "structure").unrestorable)
        broken = set()
        for one in select(repo, []):
            try:
                assert restored(repo, one, tmp_path / "out.img") == truth.volumes[one.text]
            except Exception:  # noqa: BLE001 - whatever stops the restore
                broken.add(one.text)
                for left in tmp_path.glob("out.img*"):
                    left.unlink()
        assert named == broken and made[number][0] in named
    # Contents of the first run are needed by all later ones; those of the last by none before it.
    assert broken == {text for text, _ in made[number:]}


# -- the wrong thing altogether ---------------------------------------------------------------------------------------


def test_wrong_key_no_repository_no_match(tmp_path: Path) -> None:
    store, host, _ = started(tmp_path)
    with pytest.raises(KeyRefused) as refused:
        Repository.open(store, key_file(b"another key file of 32 bytes...."), host)
    with pytest.raises(NoRepository) as missing:
        Repository.open(MemoryStore(), SECRET, host)
    with Repository.open(store, SECRET, host) as repo, pytest.raises(NothingMatched) as nothing:
        select(repo, ["nobody"])
    assert (refused.value.exit_code, missing.value.exit_code, nothing.value.exit_code) == (12, 10, 4)
