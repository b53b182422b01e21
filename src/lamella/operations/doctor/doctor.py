"""Is this host fit to back up to that repository? Each check names its object."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lamella.base.errors import KeyRefused, LamellaError, RolledBack, StoreError
from lamella.crypto.slots import Secret
from lamella.format import zstd_provider
from lamella.format.marker import Marker
from lamella.history.crowding import MAX_WRITERS, active_writers
from lamella.memory.host import Host
from lamella.operations.shared.heads import require_fingerprint
from lamella.operations.shared.ignored_slots import ignored_text
from lamella.operations.shared.probe import probe
from lamella.repository.repository import Repository
from lamella.repository.slots import read_marker, read_slots
from lamella.stores.base import Store


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    name: str
    ok: bool
    message: str
    exit_code: int = 1
    """The exit code if the check is not ok."""


def examine(host: Host, store: Store | None, secret: Secret | None, expected: str | None = None) -> list[Check]:
    """Look at the host, the destination and, with a secret, the repository, which may be expected in a certain state.

    Changes nothing but its own probe object.
    """
    checks = [_python(), _zstd(), _directory("state", host.state_dir), _directory("cache", host.cache_dir)]
    if store is not None:
        checks += _destination(store)
    if store is not None and secret is not None:
        checks += _repository(host, store, secret, expected)
    return checks


_MANY_WRITERS = MAX_WRITERS // 4


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info >= (3, 11), f"Python {version}")


def _zstd() -> Check:
    provider = zstd_provider.provider()
    return Check("zstd", bool(provider), f"zstd from {provider}" if provider else "no zstd provider: only zlib and off")


def _directory(word: str, path: Path) -> Check:
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    ok = place.is_dir() and os.access(place, os.W_OK)
    return Check(f"{word} directory", ok, f"{path} {'can be used' if ok else 'cannot be written'}")


def _destination(store: Store) -> Iterator[Check]:
    try:
        mark = read_marker(store)
    except LamellaError as error:
        yield Check("repository", False, _said(error))
        return
    yield Check("repository", True, f"{store.url} is a repository of format 1.{mark.minor}")
    yield _slots(store, mark)
    lock = store.abilities.exclusive_lock
    text = (
        "locks there are released by the kernel"
        if lock
        else "no reliable locks there: deletion will need a grace period"
    )
    yield Check("locks", True, text)
    yield from (Check("far side", True, text) for text in store.abilities.weaker)
    if store.abilities.write:
        yield from (Check(*finding) for finding in probe(store))


def _slots(store: Store, mark: Marker) -> Check:
    try:
        slots = read_slots(store, mark)
    except StoreError as error:
        return Check("key slots", False, error.message)
    if slots.unreadable or not slots.signed:
        text = "no key slot is there" if not slots.unreadable else f"cannot be read: {slots.unreadable[0].message}"
        return Check("key slots", False, text)
    remark = f"; {ignored_text(slots)}" if slots.ignored else ""
    return Check("key slots", True, f"{len(slots.signed)} signed by an admin{remark}")


def _repository(host: Host, store: Store, secret: Secret, expected: str | None) -> Iterator[Check]:
    try:
        with Repository.open(store, secret, host, whole=True, stored=True) as repo:
            require_fingerprint(repo, expected)
            role = "a writer's" if repo.keys.prune_seed is None else "an admin's"
            yield Check("secret", True, f"the secret opens {role} slot")
            for problem in repo.problems:
                yield Check("history", False, f"{problem.message}; {problem.remedy}", RolledBack.exit_code)
            if not repo.problems:
                yield Check("history", True, "nothing is missing, and nothing was rolled back")
            yield Check("enrolment", True, "open" if repo.history.admission is None else str(repo.history.admission))
            active = active_writers(repo.log)
            if active >= _MANY_WRITERS:
                text = f"{active} hosts write here, of at most {MAX_WRITERS}: each costs every reader a request"
                yield Check("writers", False, f"{text}; lamella check --expel removes those that are not needed")
            for note in repo.catalogue.notes:
                yield Check("history", note in repo.history.notes, note)
    except RolledBack as error:
        yield Check("history", False, error.message, error.exit_code)
    except KeyRefused as error:
        yield Check("secret", False, error.message, error.exit_code)
    except LamellaError as error:
        yield Check("repository", False, _said(error), error.exit_code)


def _said(error: LamellaError) -> str:
    return f"{error.message}; {error.hint}" if error.hint else error.message
