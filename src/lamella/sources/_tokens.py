"""The text by which a driver knows a kept moment again: a flat record, written in one way and read strictly."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, TypeVar

from lamella.base.errors import CheckpointLost

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    _Record = TypeVar("_Record", bound=DataclassInstance)

_VERSION = 1
_LONGEST_TEXT = 1024


def token_text(record: DataclassInstance) -> str:
    """As the ledger keeps it; equal records give equal texts. Fields are numbers and texts."""
    return json.dumps({"version": _VERSION, **asdict(record)}, sort_keys=True, separators=(",", ":"))


def parse_token(kind: type[_Record], text: str) -> _Record:
    """Read a text again. Raises CheckpointLost if it is none of this kind."""
    lost = CheckpointLost("the record of the checkpoint cannot be read")
    if len(text) > _LONGEST_TEXT:
        raise lost
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise lost from None
    if not isinstance(found, dict) or found.pop("version", None) != _VERSION:
        raise lost
    kinds = {field.name: int if field.type == "int" else str for field in fields(kind)}
    if set(found) != set(kinds) or any(type(found[name]) is not kinds[name] for name in kinds):
        raise lost
    return kind(**found)
