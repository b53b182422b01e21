"""Labels of snapshots and volumes: TAG, PIN and RENAME (FORMAT 8, docs/decisions/0023)."""

from __future__ import annotations

from collections.abc import Sequence

from lamella.base.errors import UsageError
from lamella.format.labels import Pin, Tag
from lamella.format.records import RawRecord, Rename, Signed
from lamella.history.catalogue import VolumeState
from lamella.operations.shared.selection import Selected
from lamella.repository.repository import Repository
from lamella.sources.names import check_name

MAX_TAG = 128


def check_tag(text: str) -> str:
    """A tag as it may be written: printable, at most 128 bytes, without `@`, `^` and commas. Raises UsageError."""
    if not text or not text.isprintable() or text != text.strip() or len(text.encode("utf-8")) > MAX_TAG:
        raise UsageError(f"not a tag: {text!r}", obj=text, hint="a tag is printable text of at most 128 bytes")
    if any(letter in text for letter in "@^,"):
        raise UsageError(f"not a tag: {text!r}", obj=text, hint="a tag has no @, ^ and no comma")
    return text


def require_may_label(repo: Repository, chosen: Sequence[Selected]) -> None:
    """Raises UsageError naming the first snapshot that is another writer's, unless the secret is an admin's."""
    for one in chosen:
        if repo.keys.prune_seed is None and not (one.volume.own or (one.snapshot.claim and one.snapshot.counts)):
            hint = "use an admin's passphrase, key file or recovery key"
            raise UsageError(
                f"{one.text} is another writer's: its labels need an admin's secret", obj=one.text, hint=hint
            )


def label_records(
    chosen: Sequence[Selected], add: Sequence[str], remove: Sequence[str], pin: str | None, unpin: bool
) -> list[Signed]:
    """The records for these changes, without those that would change nothing."""
    made: list[Signed] = []
    for one in chosen:
        ref, tags = one.snapshot.ref, one.snapshot.tags
        made += [Tag(ref, False, tag) for tag in dict.fromkeys(add) if tag not in tags]
        made += [Tag(ref, True, tag) for tag in dict.fromkeys(remove) if tag in tags]
        if pin is not None and one.snapshot.pinned != pin:
            made.append(Pin(ref, False, pin))
        if unpin and one.snapshot.pinned is not None:
            made.append(Pin(ref, True, ""))
    return made


def still_labelled(repo: Repository, chosen: Sequence[Selected], remove: Sequence[str], unpin: bool) -> list[str]:
    """The labels that could not be removed: another writer gave them, and this secret has no prune key."""
    found: list[str] = []
    now = {snapshot.ref: snapshot for snapshot in repo.catalogue.snapshots}
    for one in chosen:
        snapshot = now.get(one.snapshot.ref)
        if snapshot is not None:
            found += [f"{one.text} ^{tag}" for tag in remove if tag in snapshot.tags]
            found += [f"{one.text} (pinned)"] if unpin and snapshot.pinned is not None else []
    return found


def same_run(repo: Repository, one: Selected) -> list[Selected]:
    """This snapshot in every volume of its run."""
    shown = repo.catalogue.shown_names()
    return [
        Selected(shown[volume.volume_id], volume, snapshot)
        for volume in repo.catalogue.volumes.values()
        for snapshot in volume.snapshots
        if (snapshot.ref.writer, snapshot.name) == (one.snapshot.ref.writer, one.snapshot.name)
    ]


def rename_record(repo: Repository, volume: VolumeState, name: str) -> RawRecord | Signed:
    """The record that renames a volume. Raises UsageError if this host may not, or the name is taken or impossible."""
    check_name(name)
    known = repo.catalogue.own_volumes() if volume.own else repo.catalogue.volumes.values()
    taken = [one for one in known if one.name == name and one is not volume and one.snapshots]
    if taken:
        raise UsageError(f"another volume is called {name}", obj=name, hint="choose another name")
    if not volume.own and repo.keys.prune_seed is None:
        hint = "use an admin's passphrase, key file or recovery key"
        raise UsageError(f"renaming {volume.name} needs an admin's secret: another writer made it", obj=name, hint=hint)
    return Rename(volume.volume_id, name)
