"""The secrets that open a repository: listing, adding and removing key slots (FORMAT 3)."""

from __future__ import annotations

from dataclasses import dataclass

from lamella.base.errors import LamellaError, NothingMatched, UsageError
from lamella.base.ids import NO_CHUNK, DomainId
from lamella.crypto.new_slots import DEFAULT_LOG_N, wrap
from lamella.crypto.slots import Secret
from lamella.format.domain_key import ExportedKeys, ExportedTree, encode
from lamella.format.keyslot import MAX_PASSPHRASES, MAX_SLOTS, Role, SlotType
from lamella.format.node import MIN_CHUNK_LOG2
from lamella.format.records import FileGone
from lamella.operations.shared.lending import lend
from lamella.operations.shared.newest import newest
from lamella.repository.create import file_record
from lamella.repository.repository import Repository
from lamella.repository.slots import Slots, read_slots

_REMOVE = "remove one: lamella key remove"
TYPE_WORDS = {1: "passphrase", 2: "recovery key", 3: "key file"}


@dataclass(frozen=True, slots=True)
class SlotRow:
    """One slot that an admin made: `current` opened the repository now, `recorded` is still to be there."""

    name: str
    type: str
    role: str
    current: bool
    recorded: bool


def slots_of(repo: Repository) -> Slots:
    """The slots that count, and what is ignored. Raises StoreError, also where one cannot be read."""
    slots = read_slots(repo.store, repo.keys.marker)
    if slots.unreadable:
        raise slots.unreadable[0]
    return slots


def list_slots(repo: Repository, slots: Slots | None = None) -> list[SlotRow]:
    """All slots that count."""
    slots = slots or slots_of(repo)
    current = repo.unlocked.slot.name
    expected = repo.catalogue.files
    return [
        SlotRow(slot.name, TYPE_WORDS[slot.type], slot.role.name.lower(), slot.name == current, slot.name in expected)
        for slot in slots.signed
    ]


def _require_admin(repo: Repository) -> None:
    if repo.keys.prune_seed is None:
        raise writers_slot()
    repo.require_sound_history()


def writers_slot() -> UsageError:
    """Why a writer's secret makes and removes no key slots, its own included: the prune key signs slots."""
    hint = "an admin adds a slot for a new secret, and removes the old one: lamella key add --role writer"
    return UsageError("this needs an admin's secret; the one given opens a writer slot", hint=hint)


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


def export_inside(repo: Repository, name: str) -> bytes:
    """The key file for one qube's own files, in the volume `name` (docs/decisions/0107).

    It opens that volume and nothing else, now and later. Raises UsageError, RepositoryError.
    """
    found = lend(repo, name)
    if found.volume is not None and any(one.counts for one in found.volume.snapshots):
        return export_domain(repo, found.ids.domain_id)
    keys = repo.keys.domain(found.ids.domain_id)
    exported = ExportedKeys(keys.id_alg, keys.root, keys.domain_id, keys.enc, keys.id_key)
    return encode(exported, [ExportedTree(name, found.ids.volume_id, NO_CHUNK, 0, MIN_CHUNK_LOG2)])


def add_slot(repo: Repository, secret: Secret, *, admin: bool, log_n: int = DEFAULT_LOG_N) -> str:
    """Add a slot for `secret`; returns its object name. Raises UsageError without an admin's secret."""
    _require_admin(repo)
    if repo.keys.lent is not None:
        raise UsageError("what lies in this store opens with the lent key alone: another secret would open its names")
    slots = slots_of(repo).signed
    if len(slots) >= MAX_SLOTS:
        raise UsageError(f"a repository has at most {MAX_SLOTS} key slots", hint=_REMOVE)
    if secret.type == SlotType.PASSPHRASE and sum(slot.type == secret.type for slot in slots) >= MAX_PASSPHRASES:
        raise UsageError(f"at most {MAX_PASSPHRASES} of the key slots are for passphrases", hint=_REMOVE)
    slot = wrap(repo.keys.marker, secret, repo.keys.bundle, admin=admin, log_n=log_n)
    content = slot.encode()
    try:
        repo.store.put(slot.name, content)
        repo.store.sync()
        repo.publish([file_record(slot.name, content)])
        repo.reload()
    except (LamellaError, KeyboardInterrupt) as error:
        if not _recorded_after_all(repo, slot.name, error):
            raise
    return slot.name


def _recorded_after_all(repo: Repository, name: str, error: BaseException) -> bool:
    """Whether the record of a slot is there although publishing failed; else the slot is taken back.

    A slot without a record would open the repository, and nobody would know of it.
    """
    try:
        repo.reload()
        if name in repo.catalogue.files:
            return isinstance(error, LamellaError)
        repo.store.delete(name)
        repo.store.sync()
    except LamellaError:
        if isinstance(error, LamellaError):
            error.hint = f"the new slot may have stayed: see lamella key list, and lamella key remove {name[5:]}"
    return False


def remove_slot(repo: Repository, name: str) -> None:
    """Remove a slot by its object name. Raises NothingMatched, UsageError for the last admin slot or no admin's secret.

    It revokes nothing that its holder has already seen: who had the keys may have kept them.
    """
    _require_admin(repo)
    slots = slots_of(repo).signed
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
