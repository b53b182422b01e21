"""The secrets that open a repository: listing, adding and removing key slots (FORMAT 3)."""

from __future__ import annotations

from dataclasses import dataclass

from lamella.base.errors import NothingMatched, UsageError
from lamella.base.ids import DomainId
from lamella.crypto.new_slots import DEFAULT_LOG_N, wrap
from lamella.crypto.slots import Secret
from lamella.format.domain_key import ExportedKeys, ExportedTree, encode
from lamella.format.keyslot import MAX_SLOTS, Role
from lamella.format.records import FileGone
from lamella.operations.shared.selection import newest
from lamella.repository.create import file_record
from lamella.repository.repository import Repository
from lamella.repository.slots import read_slots

TYPE_WORDS = {1: "passphrase", 2: "recovery key", 3: "key file"}


@dataclass(frozen=True, slots=True)
class SlotRow:
    """One slot: `current` opened the repository now, `signed` was put there by its owner."""

    name: str
    type: str
    role: str
    current: bool
    signed: bool


def list_slots(repo: Repository) -> list[SlotRow]:
    """All well-formed slots."""
    slots, _ = read_slots(repo.store)
    current = repo.unlocked.slot.name
    expected = repo.catalogue.files
    return [
        SlotRow(slot.name, TYPE_WORDS[slot.type], slot.role.name.lower(), slot.name == current, slot.name in expected)
        for slot in slots
    ]


def _require_admin(repo: Repository) -> bytes:
    seed = repo.keys.prune_seed
    if seed is None:
        raise UsageError(
            "this needs an admin's secret; the one given opens a writer slot", hint="see: lamella key list"
        )
    repo.require_sound_history()
    return seed


def export_domain(repo: Repository, domain_id: DomainId) -> bytes:
    """The key file that opens one domain, with the newest state of each of its volumes (FORMAT 3).

    Whoever has it reads everything that was and will be stored in the domain. Raises NothingMatched.
    """
    shown = repo.catalogue.shown_names()
    trees = []
    for volume in repo.catalogue.volumes.values():
        if any(one.counts and one.added.domain_id == domain_id for one in volume.snapshots):
            added = newest(repo, volume).added
            if added.domain_id == domain_id:
                name = shown[volume.volume_id]
                trees.append(ExportedTree(name, added.volume_id, added.root, added.size, added.chunk_log2))
    if not trees:
        raise NothingMatched("no volume of this domain has a snapshot")
    keys = repo.keys.domain(domain_id)
    exported = ExportedKeys(keys.id_alg, keys.root, domain_id, keys.enc, keys.id_key)
    return encode(exported, sorted(trees))


def add_slot(repo: Repository, secret: Secret, *, admin: bool, log_n: int = DEFAULT_LOG_N) -> str:
    """Add a slot for `secret`; returns its object name. Raises UsageError without an admin's secret."""
    seed = _require_admin(repo)
    slots, others = read_slots(repo.store)
    if len(slots) + len(others) >= MAX_SLOTS:  # no more are read, whatever they are
        raise UsageError(f"a repository has at most {MAX_SLOTS} key slots", hint="remove one: lamella key remove")
    slot = wrap(repo.keys.marker, secret, repo.unlocked.data_root, seed if admin else None, log_n)
    content = slot.encode()
    repo.store.put(slot.name, content)
    repo.store.sync()
    repo.publish([file_record(slot.name, content)])
    repo.reload()
    return slot.name


def remove_slot(repo: Repository, name: str) -> None:
    """Remove a slot by its object name. Raises NothingMatched, UsageError for the last admin slot or no admin's secret.

    It revokes nothing that its holder has already seen: who had the keys may have kept them.
    """
    _require_admin(repo)
    slots, _ = read_slots(repo.store)
    slot = next((one for one in slots if one.name == name), None)
    if slot is None:
        raise NothingMatched(f"there is no key slot {name}", obj=name, hint="see: lamella key list")
    admins = [one for one in slots if one.role == Role.ADMIN and one.name in repo.catalogue.files]
    if admins == [slot]:
        raise UsageError("the last admin slot cannot be removed: nobody could prune or add keys any more", obj=name)
    record = file_record(name, slot.encode())
    # The record first: a slot that is gone without one would be reported as damage for ever.
    repo.publish([FileGone(record.name, record.size, record.sha256)])
    repo.store.delete(name)
    repo.store.sync()
    repo.reload()
