"""Why no volume, or more than one, is meant by what a user wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lamella.base.errors import NothingMatched
from lamella.history.catalogue import VolumeState
from lamella.repository.repository import Repository

_NAMED: Final = 10
"""So many volumes are named to who named none of them."""


def no_volume(repo: Repository, found: Sequence[VolumeState], text: str) -> NothingMatched:
    """The error for a text that means none of the volumes; `found` are those that share it as a name."""
    from difflib import get_close_matches  # only for a mistake

    shown = repo.catalogue.shown_names()
    if found:  # a name may look like another volume's `NAME~4hex`, or like its id
        ids = ", ".join(sorted(volume.volume_id.hex() for volume in found))
        return NothingMatched(f"several volumes are shown as {text}", obj=text, hint=f"write one of: {ids}")
    same = [volume for volume in repo.catalogue.volumes.values() if volume.name == text]
    if same:
        names = ", ".join(sorted(f"{shown[one.volume_id]} (of {_writer_of(repo, one)})" for one in same))
        return NothingMatched(f"{text} does not say which volume is meant", obj=text, hint=f"write one of: {names}")
    if "@" in text:
        hint = f"this names a snapshot; see: lamella info {text}"
    elif near := get_close_matches(text, shown.values(), 3, 0.6):
        hint = f"did you mean {' or '.join(near)}?"
    else:
        known = sorted(shown.values())
        hint = f"volumes: {', '.join(known[:_NAMED]) or 'none'}" + (" and more" if len(known) > _NAMED else "")
    return NothingMatched(f"no volume is called {text}", obj=text, hint=hint)


def _writer_of(repo: Repository, volume: VolumeState) -> str:
    """The writer that a volume belongs to, by the writer's own label."""
    if volume.record is None or volume.record.creator not in volume.owners:
        return "nobody known"
    creator = volume.record.creator
    writer = repo.catalogue.writers.get(creator)
    return f"writer {creator.hex()[:8]}" + (f" {writer.label}" if writer is not None and writer.label else "")
