"""From a record's type to its meaning (FORMAT 8): every record this version understands.

Records that few repositories have are loaded when the first is met.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lamella.format import records
from lamella.format.cursor import Cursor
from lamella.format.records import RawRecord, Record

Known = Record

_BASIC = (records.Writer, records.Volume, records.AddSnap, records.Confirm, records.File, records.FileGone, records.Run)
_CHAINS = (records.Rename, records.Checkpoint, records.Seen)
_LOADED: dict[int, type[Record]] = {kind.TYPE: kind for kind in (*_BASIC, *_CHAINS)}

AUDITED, FORGO, CONDEMN, REAPED, ADMIT, EXPEL, LOST, BAD = 0x15, 0x16, 0x11, 0x13, 0x1D, 0x1B, 0x8002, 0x8004
"""Types of records that are looked for before any is loaded."""
RARE: dict[int, str] = {
    0x10: "deletion.Remove",
    CONDEMN: "deletion.Condemn",
    0x12: "deletion.Rescue",
    REAPED: "deletion.Reaped",
    0x14: "deletion.Retire",
    AUDITED: "deletion.Audited",
    FORGO: "deletion.Forgo",
    0x17: "deletion.Revive",
    0x18: "deletion.RemoveLast",
    0x0D: "owners.Succeeds",
    0x19: "owners.Join",
    0x1A: "owners.Give",
    EXPEL: "owners.Expel",
    0x1C: "owners.Readmit",
    ADMIT: "owners.Admit",
    LOST: "lost.Lost",
    BAD: "lost.Bad",
}
"""Type -> where the class of its records is, for all that say what was deleted, given away or lost."""
LABELS: dict[int, str] = {0x05: "labels.Tag", 0x07: "labels.Pin"}
SESSIONS: dict[int, str] = {0x0A: "sessions.Session", 0x0B: "sessions.Abandon"}
_HOMES = {**LABELS, **SESSIONS, **RARE}


def kind_of(type_: int) -> type[Record] | None:
    """The class of a record's type; None for a type this version does not know."""
    if type_ not in _LOADED and type_ in _HOMES:
        module, _, name = _HOMES[type_].partition(".")
        found: Any = getattr(import_module(f"lamella.format.{module}"), name)
        _LOADED[type_] = found
    return _LOADED.get(type_)


def kinds() -> list[type[Record]]:
    """The classes of all records that this version understands."""
    found = map(kind_of, sorted({*_LOADED, *_HOMES}))
    return [kind for kind in found if kind is not None]


def is_known(record: RawRecord) -> bool:
    """Whether this version knows the type of a record, however malformed the record may be."""
    return record.type in _LOADED or record.type in _HOMES


def understood(record: RawRecord) -> Record | None:
    """The record's meaning; None for a type this version does not know. Raises IntegrityError when malformed."""
    kind = kind_of(record.type)
    if kind is None:
        return None
    cursor = Cursor(record.value, kind.__name__)
    value = kind.decode(cursor)
    cursor.end()
    return value
