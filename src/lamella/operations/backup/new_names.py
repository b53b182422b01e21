"""Names of volumes that a pattern or a directory meant: nobody chose one, so another one will do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lamella.history.catalogue import VolumeState


def free_name(names: Sequence[str], volumes: Iterable[VolumeState], notes: list[str], *, adopt: bool) -> str:
    """The first of `names` that none of the volumes has; the first of all if each is taken, or if it is to be adopted.

    A note says which one was taken.
    """
    best, taken = names[0], {volume.name for volume in volumes}
    name = best if adopt else next((name for name in names if name not in taken), best)
    if name != best:
        notes.append(f"{best} is the name of another source; to continue that volume, back this source up with --adopt")
    return name
