"""Typed values as JSON: what `codec` reads, written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final

from lamella.memory.codec import LEAVES, Faults, Value, fields_of, is_flat

_WRITERS: Final[dict[type, Callable[[Any], object]]] = {}


def register(kind: type[Value], read: Callable[[Any, Faults], Value], write: Callable[[Value], object]) -> None:
    """Teach the codec a type that few records hold. `read` raises Unfit for what does not fit."""
    LEAVES[kind], _WRITERS[kind] = read, write


def encode(value: Any) -> Any:  # noqa: ANN401 - what JSON can hold
    """The value as JSON's types."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {encode(key): encode(one) for key, one in value.items()}
    if dataclasses.is_dataclass(value):
        return _encoded(value)
    if isinstance(value, tuple):
        return [encode(one) for one in value]
    write = _WRITERS.get(type(value))
    return value if write is None else write(value)


def _encoded(value: Any) -> dict[str, Any]:  # noqa: ANN401 - a dataclass or a named tuple
    found: dict[str, Any] = {}
    for name, kind, _ in fields_of(value.__class__):
        part = getattr(value, name)
        found.update(_encoded(part) if is_flat(kind) else {name: encode(part)})
    return found
