"""Typed values as JSON: the schema of a record is its dataclass, and this codec alone checks what a file says.

A record is a dataclass, a row a named tuple. Bytes are hexadecimal text, named tuples lists, mappings objects. A part
of a mapping or list that does not fit its type is left out, a field that has a default takes it, and both are
reported; anything else that does not fit makes the value around it unfit. `Annotated[int, range(9)]` limits a type to
what a container holds, `Annotated[bytes, 32]` to a length.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, Final, NewType, TypeVar, get_args, get_origin, get_type_hints

from lamella.base.ids import ChunkId, DomainId, SnapId, VolumeId, WriterId

Value = TypeVar("Value")
Faults = list[str]
Reader = Callable[[Any, Faults], Any]

FLAT: Final = object()
"""Marks a field whose own fields are written beside the others: `Annotated[Ref, FLAT]`."""


_SIZES: Final[dict[object, int]] = {WriterId: 16, VolumeId: 16, DomainId: 16, SnapId: 16, ChunkId: 24}
_NUMBERS: Final = range(1 << 64)


class Unfit(ValueError):
    """Content that is not of its type."""


def parse(kind: type[Value], text: bytes, under: str, faults: Faults) -> Value:
    """The value that a file's content stands for, or its member `under`; the empty value if it has no such member.

    What was left out is appended to `faults`. Raises Unfit.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unfit("it is no JSON") from error
    if under:
        rows = _expected(dict, content)
        _note_unknown(rows, {under}, faults)
        if under not in rows:
            return kind()
        content = rows[under]
    return decode(kind, content, faults)


def decode(kind: type[Value], content: object, faults: Faults) -> Value:
    """The value of this type that `content` stands for; what was left out is appended to `faults`. Raises Unfit."""
    hashable: Any = kind
    value: Value = _reader(hashable)(content, faults)
    return value


@cache
def _reader(kind: Any) -> Reader:  # noqa: ANN401 - a type, or what stands for one in an annotation
    made = {Annotated: _limited, dict: _mapping, tuple: _list}.get(get_origin(kind))
    if made is not None:
        return made(*get_args(kind))
    if isinstance(kind, NewType):
        return _limited(bytes, _SIZES[kind])
    if dataclasses.is_dataclass(kind):
        return _by_name(kind)
    return LEAVES.get(kind) or _by_position(kind)


def _limited(kind: object, limit: Any) -> Reader:  # noqa: ANN401 - a container, or FLAT
    if limit is FLAT:
        return _by_name(kind, alone=False)
    inner = _reader(kind)

    def read(content: Any, faults: Faults) -> Any:  # noqa: ANN401
        value = inner(content, faults)
        if len(value) != limit if isinstance(limit, int) else value not in limit:
            raise Unfit("a value out of its range")
        return value

    return read


def _mapping(key: object, value: object) -> Reader:
    read_key, read_value = _reader(key), _reader(value)

    def read(content: Any, faults: Faults) -> dict[Any, Any]:  # noqa: ANN401
        found: dict[Any, Any] = {}
        for name, part in _expected(dict, content).items():
            try:
                found[read_key(name, faults)] = read_value(part, faults)
            except Unfit as error:
                faults.append(f"{name}: {error}")
        return found

    return read


def _list(kind: object, more: object) -> Reader:
    assert more is Ellipsis, "a tuple of different things is a named tuple"
    read_part = _reader(kind)

    def read(content: Any, faults: Faults) -> tuple[Any, ...]:  # noqa: ANN401
        found: list[Any] = []
        for number, part in enumerate(_expected(list, content)):
            try:
                found.append(read_part(part, faults))
            except Unfit as error:
                faults.append(f"{number}: {error}")
        return tuple(found)

    return read


def _by_name(kind: Any, *, alone: bool = True) -> Reader:  # noqa: ANN401
    names = _names(kind)
    fields = [(name, _reader(part), is_flat(part), needed) for name, part, needed in fields_of(kind)]

    def read(content: Any, faults: Faults) -> Any:  # noqa: ANN401
        rows, values = _expected(dict, content), {}
        if alone:
            _note_unknown(rows, names, faults)
        for name, read_part, is_flat, needed in fields:
            if not needed and name not in rows:
                continue
            try:
                values[name] = read_part(rows if is_flat else rows.get(name), faults)
            except Unfit as error:
                if needed:
                    raise Unfit(f"{name}: {error}") from error
                faults.append(f"{name}: {error}")
        return kind(**values)

    return read


def _by_position(kind: Any) -> Reader:  # noqa: ANN401
    readers = [_reader(part) for _, part, _ in fields_of(kind)]

    def read(content: Any, faults: Faults) -> Any:  # noqa: ANN401
        if len(_expected(list, content)) != len(readers):
            raise Unfit("a row of another length")
        return kind(*(read_part(part, faults) for read_part, part in zip(readers, content, strict=True)))

    return read


@cache
def fields_of(kind: Any) -> list[tuple[str, Any, bool]]:  # noqa: ANN401
    """What a dataclass or a named tuple holds: name, type, and whether there must be a value."""
    hints = get_type_hints(kind, include_extras=True)
    if not dataclasses.is_dataclass(kind):
        return [(name, hints[name], True) for name in kind._fields]
    return [(one.name, hints[one.name], one.default is one.default_factory) for one in dataclasses.fields(kind)]


def _names(kind: Any) -> set[str]:  # noqa: ANN401
    """Under which an object has the parts of the type."""
    fields = fields_of(kind)
    return {name for name, part, _ in fields if not is_flat(part)}.union(
        *(_names(get_args(part)[0]) for _, part, _ in fields if is_flat(part))
    )


def _note_unknown(rows: Mapping[str, object], known: set[str], faults: Faults) -> None:
    """A name that nothing has was another one, before it was damaged."""
    faults.extend(f"{name}: no such member" for name in rows if name not in known)


def is_flat(kind: object) -> bool:
    """Whether the fields of this part are written beside the others."""
    return get_origin(kind) is Annotated and get_args(kind)[1] is FLAT


def _expected(kind: type[Value], content: object) -> Value:
    if type(content) is not kind:
        raise Unfit(f"{type(content).__name__} where {kind.__name__} belongs")
    return content


def _bytes(content: Any, faults: Faults) -> bytes:  # noqa: ANN401
    try:
        value = bytes.fromhex(_expected(str, content))
    except ValueError as error:
        raise Unfit("no hexadecimal text") from error
    if value.hex() != content:
        raise Unfit("hexadecimal text in another form")
    return value


def _number(content: Any, faults: Faults) -> int:  # noqa: ANN401
    if type(content) is not int or content not in _NUMBERS:
        raise Unfit("no number from 0 to 2^64")
    return content


LEAVES: Final[dict[object, Reader]] = {
    bool: lambda content, faults: _expected(bool, content),
    str: lambda content, faults: _expected(str, content),
    int: _number,
    bytes: _bytes,
    object: lambda content, faults: content,
}
