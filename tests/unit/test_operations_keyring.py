"""Key slots: adding, removing, who may, and what verify says about slots nobody signed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lamella.base.errors import KeyRefused, NothingMatched, StoreError, UsageError
from lamella.base.ids import DomainId
from lamella.base.signed import slot_message
from lamella.base.trust import Clear
from lamella.crypto.new_slots import wrap
from lamella.crypto.recovery import new_recovery_key
from lamella.crypto.sign import sign
from lamella.crypto.slots import Secret, key_file, passphrase, unwrap
from lamella.format.keyslot import MAX_PASSPHRASES, MAX_SLOTS, MIN_LOG_N, SIZE
from lamella.operations.keyring import SlotRow, add_slot, list_slots, remove_slot, slots_of
from lamella.operations.shared.ignored_slots import ignored_text
from lamella.operations.verify.verify import VerifyOptions, verify
from lamella.repository.repository import Repository
from lamella.repository.slots import unlock
from lamella.stores.base import Store
from lamella.stores.wrap.wrapper import Wrapper
from lamella_kit.fault_store import FaultStore, Method
from tests.unit.small_repository import ADMIN, WRITER, Small

NEW = key_file(b"n" * 40)
DOMAIN = DomainId(b"d" * 16)


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small.make(tmp_path)


def slot_of(repo: Repository, role: str) -> str:
    """The name of the only slot of a role."""
    (name,) = [row.name for row in list_slots(repo) if row.role == role]
    return name


def flagged(repo: Repository) -> list[str]:
    return [finding.obj for finding in verify(repo, [], VerifyOptions("structure")).findings]


def opens(small: Small, secret: Secret) -> bool:
    try:
        unlock(small.store, secret)
    except KeyRefused:
        return False
    return True


def list_slots_of(small: Small) -> list[SlotRow]:
    with small.opened() as repo:
        return list_slots(repo)


def test_the_slots_are_listed(small: Small) -> None:
    with small.opened() as repo:
        rows = {row.role: row for row in list_slots(repo)}
        assert (rows["admin"].current, rows["writer"].current) == (True, False)
        assert all(row.recorded and row.type == "key file" for row in rows.values())
        assert sorted(row.name for row in rows.values()) == sorted(entry.name for entry in small.store.list("keys/"))
    with small.opened(secret=WRITER) as repo:
        assert [row.role for row in list_slots(repo) if row.current] == ["writer"]


@pytest.mark.parametrize("admin", [True, False])
def test_a_new_secret_opens_with_its_role(small: Small, admin: bool) -> None:
    with small.opened() as repo:
        name = add_slot(repo, NEW, admin=admin)
        assert [row.role for row in list_slots(repo) if row.name == name] == ["admin" if admin else "writer"]
        assert flagged(repo) == []
        want = repo.keys
    with small.opened("two", NEW) as repo:
        assert (repo.keys.prune_seed is not None) is admin
        assert repo.keys.domain(DOMAIN) == want.domain(DOMAIN)
        assert repo.unlocked.slot.name == name


def test_recovery_keys_and_passphrases_are_slots_too(small: Small) -> None:
    recovery = new_recovery_key()
    with small.opened() as repo:
        name = add_slot(repo, recovery, admin=True)
        assert [row.type for row in list_slots(repo) if row.name == name] == ["recovery key"]
    assert opens(small, recovery)
    assert not opens(small, new_recovery_key())


def test_one_secret_may_have_two_slots(small: Small) -> None:
    with small.opened() as repo:
        assert add_slot(repo, NEW, admin=False) != add_slot(repo, NEW, admin=False)


def test_after_removal_the_secret_opens_nothing(small: Small) -> None:
    with small.opened() as repo:
        name = add_slot(repo, NEW, admin=True)
        assert opens(small, NEW)
        remove_slot(repo, name)
        assert not opens(small, NEW)
        assert name not in {row.name for row in list_slots(repo)}
        assert flagged(repo) == []
    assert opens(small, ADMIN)


def test_a_removed_slot_that_comes_back_is_flagged(small: Small) -> None:
    with small.opened() as repo:
        name = slot_of(repo, "writer")
        content = small.store.objects()[name]
        remove_slot(repo, name)
        small.store.put(name, Clear(content))
        assert flagged(repo) == [name]
        assert [row.recorded for row in list_slots(repo) if row.name == name] == [False]


def test_a_slot_that_vanished_is_flagged(small: Small) -> None:
    with small.opened() as repo:
        name = slot_of(repo, "writer")
        small.store.delete(name)
        assert flagged(repo) == [name]


def test_a_slot_that_no_record_names_is_flagged_and_can_be_removed(small: Small) -> None:
    """As an adding leaves it that was killed before its commit."""
    with small.opened() as repo:
        planted = wrap(repo.keys.marker, NEW, repo.keys.bundle, admin=True)
        small.store.put(planted.name, planted.encode())
        assert flagged(repo) == [planted.name]
        assert [row.recorded for row in list_slots(repo) if row.name == planted.name] == [False]
        remove_slot(repo, planted.name)
        assert flagged(repo) == []


@pytest.mark.parametrize("by", ["nobody", "a writer", "another repository"])
def test_a_slot_that_no_admin_signed_is_never_tried(small: Small, by: str) -> None:
    with small.opened() as repo:
        mark, bundle = repo.keys.marker, repo.keys.bundle
    slot = wrap(mark, NEW, bundle, admin=True)
    message = slot_message(mark.root, slot.encode())
    signature = {
        "nobody": bytes(64),
        "a writer": sign(bundle.enrol_seed, message),
        "another repository": sign(bundle.prune_seed or b"", slot_message(bytes(32), slot.encode())),
    }[by]
    planted = replace(slot, signature=signature)
    small.store.put(planted.name, planted.encode())
    assert not opens(small, NEW)
    with small.opened() as repo:
        assert planted.name not in {row.name for row in list_slots(repo)}
        assert ignored_text(slots_of(repo)) == f"1 object in keys/ that no admin signed, ignored: {planted.name}"
        assert flagged(repo) == ["keys/"]
    small.store.put(slot.name, slot.encode())
    assert opens(small, NEW)


def test_what_cannot_be_read_is_no_wrong_secret(small: Small) -> None:
    with small.opened() as repo:
        name = slot_of(repo, "writer")
    store = Unreadable(small.store, name)
    unlock(store, ADMIN)
    for secret in (WRITER, NEW):
        with pytest.raises(StoreError, match="Input/output"):
            unlock(store, secret)


class Unreadable(Wrapper):
    """A store that cannot read one object."""

    def __init__(self, inner: Store, name: str) -> None:
        super().__init__(inner)
        self._name = name

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if name == self._name:
            raise StoreError("Input/output error", obj=name)
        return super().get(name, offset, length)


def test_the_last_admin_slot_stays(small: Small) -> None:
    with small.opened() as repo:
        with pytest.raises(UsageError, match="last admin"):
            remove_slot(repo, slot_of(repo, "admin"))
        # An admin slot that no record names is no reason to let the recorded one go.
        planted = wrap(repo.keys.marker, NEW, repo.keys.bundle, admin=True)
        small.store.put(planted.name, planted.encode())
        first = repo.unlocked.slot.name
        with pytest.raises(UsageError, match="last admin"):
            remove_slot(repo, first)
        second = add_slot(repo, key_file(b"s" * 32), admin=True)
        remove_slot(repo, first)
        with pytest.raises(UsageError, match="last admin"):
            remove_slot(repo, second)
    assert not opens(small, ADMIN)


def test_a_writer_changes_no_slots(small: Small) -> None:
    before = small.store.objects()
    with small.opened("two", WRITER) as repo:
        with pytest.raises(UsageError, match="admin's secret"):
            add_slot(repo, NEW, admin=False)
        with pytest.raises(UsageError, match="admin's secret"):
            remove_slot(repo, slot_of(repo, "writer"))
    assert small.store.objects() == before


def test_a_name_that_is_no_slot(small: Small) -> None:
    with small.opened() as repo:
        for name in ("keys/00000000", "lamella", ""):
            with pytest.raises(NothingMatched, match="no key slot"):
                remove_slot(repo, name)


def test_no_more_slots_than_count(small: Small) -> None:
    with small.opened() as repo:
        for number in range(2 * MAX_SLOTS):
            small.store.put(f"keys/{number:08x}", Clear(bytes(SIZE)))  # junk takes no place
        mark, bundle = repo.keys.marker, repo.keys.bundle
        for number in range(MAX_SLOTS - 3):
            slot = wrap(mark, key_file(b"%032d" % number), bundle, admin=False)
            small.store.put(slot.name, slot.encode())
        last = add_slot(repo, NEW, admin=False)
        assert opens(small, NEW)
        with pytest.raises(UsageError, match=f"at most {MAX_SLOTS}"):
            add_slot(repo, key_file(b"z" * 32), admin=False)
        assert last in {row.name for row in list_slots(repo)}


def test_no_more_passphrases_than_are_tried(small: Small) -> None:
    with small.opened() as repo:
        phrases: dict[str, Secret] = {}
        for number in range(MAX_PASSPHRASES):
            phrase = passphrase(f"number {number}")
            phrases[add_slot(repo, phrase, admin=False, log_n=MIN_LOG_N)] = phrase
        with pytest.raises(UsageError, match=f"at most {MAX_PASSPHRASES}"):
            add_slot(repo, passphrase("one more"), admin=False, log_n=MIN_LOG_N)
        add_slot(repo, NEW, admin=False)
        slots = {slot.name: slot for slot in slots_of(repo).signed}
        mark = repo.keys.marker
    # Each try costs a run of scrypt. Slots are tried in the order of their names: the last one opens if all are tried.
    assert all(unwrap(mark, phrase, slots[name]) for name, phrase in phrases.items())
    assert opens(small, phrases[max(phrases)]) and opens(small, NEW)


def test_the_same_secret_of_another_type_does_not_open(small: Small) -> None:
    assert not opens(small, Secret(new_recovery_key().type, ADMIN.value))


# -- what fails on the way --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("method", ["put", "sync", "delete", "get", "list"])
@pytest.mark.parametrize("lost", [False, True])
def test_a_slot_that_was_not_recorded_does_not_stay(small: Small, method: Method, after: int, lost: bool) -> None:
    """Wherever a call fails, or only its answer is lost: a new secret opens the repository if `add_slot` says so."""
    store = FaultStore(small.store)
    with small.opened(store=store) as repo:
        fault = store.lose_reply if lost and method != "list" else store.fail
        fault(method, StoreError("a bad moment"), after=after)
        try:
            add_slot(repo, NEW, admin=True)
            added = True
        except StoreError as error:
            added = False
            assert "may have stayed" not in error.hint
    with small.opened() as repo:
        assert [row.name for row in list_slots(repo) if not row.recorded] == []
        assert flagged(repo) == []
    assert opens(small, NEW) == added


def test_a_slot_that_cannot_be_taken_back_is_named(small: Small) -> None:
    store = FaultStore(small.store)
    with small.opened(store=store) as repo:
        store.fail("put", StoreError("a bad moment"), after=1)
        store.fail("delete", StoreError("a bad moment"))
        with pytest.raises(StoreError, match="a bad moment") as caught:
            add_slot(repo, NEW, admin=True)
    (name,) = [row.name for row in list_slots_of(small) if not row.recorded]
    assert f"lamella key remove {name.removeprefix('keys/')}" in caught.value.hint
