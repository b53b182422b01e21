"""Changing what this host remembers: locks, and tables that are written back. What only reads does not load this."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lamella.base.durable import make_private, write_durably
from lamella.base.errors import Locked, RepositoryError
from lamella.memory.encoding import encode

if TYPE_CHECKING:
    from lamella.memory.host import HostMemory, Table

Record = TypeVar("Record")


@contextmanager
def held_file(path: Path, wait_seconds: float, busy: str) -> Iterator[None]:
    """Hold an exclusive flock on `path` (created when missing).

    Raises Locked with the text `busy`, RepositoryError if the file cannot be made.
    """
    try:
        make_private(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RepositoryError(f"cannot create {path}: {error.strerror}", obj=str(path)) from error
    try:
        _flock(descriptor, path, wait_seconds, busy)
        yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int, path: Path, wait_seconds: float, busy: str) -> None:
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                from lamella.run.holders import holder_of  # only for the one who does not get the lock

                raise Locked(
                    busy + holder_of(descriptor), hint="try again later, or wait with --lock-wait SECONDS"
                ) from None
            time.sleep(0.05)
        except OSError as error:
            hint = "LAMELLA_STATE_DIR may name a directory on a local disk"
            raise RepositoryError(f"cannot lock {path}: {error.strerror}", obj=str(path), hint=hint) from error


@contextmanager
def _changing(memory: HostMemory) -> Iterator[None]:
    """Held while a table is read, changed and written: for milliseconds. Raises Locked, RepositoryError.

    A second lock, because publishing may take as long as a network does, and no listing should wait for that.
    Order: `HostMemory.lock`, then this one.
    """
    with held_file(memory.directory / "tables.lock", 60.0, "another lamella of this host is changing its memory"):
        yield


def replace_file(path: Path, content: bytes) -> None:
    """Write a file durably. Raises RepositoryError."""
    try:
        make_private(path.parent)
        write_durably(path, content)
    except OSError as error:
        raise RepositoryError(f"cannot write {path}: {error.strerror}", obj=str(path)) from error


def changed(table: Table[Record], update: Callable[[Record], Record]) -> Record:
    """Replace a table's value by what `update` makes of it, durably; the new one. Raises RepositoryError."""
    with _changing(table.memory):
        before = _sound(table)
        after = update(before)
        if after != before:
            _write(table, after)
        return after


def set_aside(table: Table[Record]) -> Record:
    """The value; a damaged file is set aside, unless another process did so meanwhile. Raises RepositoryError."""
    with _changing(table.memory):
        return _sound(table)


def _sound(table: Table[Record]) -> Record:
    """The value; what is wrong with the file is set aside first. Raises RepositoryError."""
    try:
        record, content, fault = table.load()
    except OSError as error:
        raise RepositoryError(f"cannot read {table.path}: {error.strerror}", obj=str(table.path)) from error
    if fault:
        aside = table.path.with_name(f"{table.path.name}.damaged")
        # The copy first: killed in between, the file is as damaged as before, and nothing is lost.
        replace_file(aside, content)
        if record != table.empty():
            _write(table, record)
        else:
            with suppress(OSError):  # what stays is set aside again
                table.path.unlink(missing_ok=True)
        table.report(f"is damaged, was set aside as {aside.name}, and is partly forgotten: {fault}")
    return record


def _write(table: Table[Record], record: Record) -> None:
    value = encode(record)
    content = json.dumps({table.under: value} if table.under else value, indent=1, sort_keys=True)
    replace_file(table.path, content.encode("utf-8"))
