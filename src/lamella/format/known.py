"""From a record's type to its meaning (FORMAT 8): every record this version understands."""

from __future__ import annotations

from lamella.format import deletion, lost, owners, records
from lamella.format.cursor import Cursor
from lamella.format.records import RawRecord, Record

Known = Record

_BASIC = (records.Writer, records.Volume, records.AddSnap, records.Confirm, records.File, records.FileGone, records.Run)
_LABELS = (records.Tag, records.Rename, records.Pin)
_SESSIONS = (records.Session, records.Abandon)
_CHAINS = (records.Checkpoint, records.Seen, deletion.Retire, deletion.Audited, deletion.Forgo)
_DELETION = (deletion.Remove, deletion.RemoveLast, deletion.Revive, deletion.Condemn, deletion.Rescue, deletion.Reaped)
_DAMAGE = (lost.Lost, lost.Bad)
_OWNERS = (owners.Succeeds, owners.Join, owners.Give, owners.Expel, owners.Readmit, owners.Admit)
KINDS: tuple[type[Record], ...] = (*_BASIC, *_LABELS, *_SESSIONS, *_CHAINS, *_DELETION, *_DAMAGE, *_OWNERS)
_BY_TYPE = {kind.TYPE: kind for kind in KINDS}


def is_known(record: RawRecord) -> bool:
    """Whether this version knows the type of a record, however malformed the record may be."""
    return record.type in _BY_TYPE


def understood(record: RawRecord) -> Record | None:
    """The record's meaning; None for a type this version does not know. Raises IntegrityError when malformed."""
    kind = _BY_TYPE.get(record.type)
    if kind is None:
        return None
    cursor = Cursor(record.value, kind.__name__)
    value = kind.decode(cursor)
    cursor.end()
    return value
