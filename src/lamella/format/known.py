"""From a record's type to its meaning (FORMAT 8): every record this version understands."""

from __future__ import annotations

from lamella.format.cursor import Cursor
from lamella.format.deletion import Audited, Condemn, Forgo, Reaped, Remove, RemoveLast, Rescue, Retire, Revive
from lamella.format.labels import Pin, Rename, Tag
from lamella.format.lost import Bad, Lost
from lamella.format.records import (
    AddSnap,
    Checkpoint,
    Confirm,
    File,
    FileGone,
    ForkSeen,
    RawRecord,
    Run,
    Volume,
    Writer,
)
from lamella.format.seen import Seen
from lamella.format.sessions import Abandon, Session

Signed = (
    Volume
    | File
    | FileGone
    | Tag
    | Rename
    | Pin
    | Remove
    | Condemn
    | Rescue
    | Reaped
    | Retire
    | Audited
    | Forgo
    | Revive
    | RemoveLast
    | Lost
)
"""Records that end in the prune key's signature, or in 64 zero bytes."""

Known = Signed | Writer | AddSnap | Confirm | Session | Abandon | ForkSeen | Run | Checkpoint | Seen | Bad

KINDS: tuple[type[Known], ...] = (
    Writer,
    Volume,
    AddSnap,
    Confirm,
    Tag,
    Rename,
    Pin,
    File,
    FileGone,
    Session,
    Abandon,
    Checkpoint,
    ForkSeen,
    Remove,
    Condemn,
    Rescue,
    Reaped,
    Retire,
    Audited,
    Forgo,
    Revive,
    RemoveLast,
    Run,
    Lost,
    Seen,
    Bad,
)
_BY_TYPE = {kind.TYPE: kind for kind in KINDS}


def is_known(record: RawRecord) -> bool:
    """Whether this version knows the type of a record, however malformed the record may be."""
    return record.type in _BY_TYPE


def understood(record: RawRecord) -> Known | None:
    """The record's meaning; None for a type this version does not know. Raises IntegrityError when malformed."""
    kind = _BY_TYPE.get(record.type)
    if kind is None:
        return None
    cursor = Cursor(record.value, kind.__name__)
    value = kind.decode(cursor)
    cursor.end()
    return value
