"""Which qubes a repository holds, and what of one qube belongs together: its settings and volumes of one run."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field, fields
from typing import Any

from lamella.base.errors import IntegrityError, NothingMatched, UsageError
from lamella.base.ids import WriterId
from lamella.history.catalogue import Snapshot, VolumeState
from lamella.operations.shared.selection import Selected, find_snapshot, split_selector
from lamella.operations.shared.streaming import read_document
from lamella.qubes.inventory import ADMIN_CLASS
from lamella.qubes.names import (
    DOM0,
    FEATURE,
    check_label,
    check_qube,
    check_uuid,
    check_volume,
    check_word,
    claimed_owner,
)
from lamella.qubes.settings import DOCUMENT, SCHEMA, SETTINGS, Property, QubeSettings
from lamella.repository.repository import Repository

_MAX_NOTES = 256_000


@dataclass(slots=True)
class SavedQube:
    """A qube in the repository: its newest name, what owns its identity, and its volumes by their names in the qube."""

    name: str
    owner: str
    volumes: dict[str, VolumeState] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QubeSnapshot:
    """One qube as one run saved it."""

    name: str
    owner: str
    snapshot: str
    settings: QubeSettings
    volumes: dict[str, Selected]
    failed: tuple[str, ...]
    """The volumes that the run meant to save of it and did not."""


def saved_qubes(repo: Repository) -> list[SavedQube]:
    """Every qube of which something was saved, by name: of one identity this host's own, else each owner's apart."""
    found: dict[tuple[str, frozenset[WriterId]], SavedQube] = {}
    volumes = repo.catalogue.volumes.values()
    own = {volume.identity for volume in volumes if volume.own}
    for volume in volumes:
        if volume.identity in own and not volume.own:
            continue
        kind, _, rest = volume.identity.decode("utf-8", "backslashreplace").partition(":")
        owner, _, what = rest.partition(":")
        if kind != "qubes" or not what:
            continue
        key = owner, frozenset() if volume.own else volume.owners
        qube = found.setdefault(key, SavedQube(volume.name.partition(":")[0], owner))
        qube.volumes[what] = volume
    return sorted(found.values(), key=lambda qube: (qube.name, qube.owner))


def find_qube(repo: Repository, text: str) -> SavedQube:
    """The qube of this name or UUID. Raises NothingMatched, also when several had the name."""
    qubes = saved_qubes(repo)
    found = [qube for qube in qubes if text in (qube.name, qube.owner)]
    if len(found) == 1:
        return found[0]
    if found:
        owners = ", ".join(sorted({qube.owner for qube in found}))
        raise NothingMatched(f"several qubes were called {text}", obj=text, hint=f"write the UUID: {owners}")
    known = ", ".join(sorted({qube.name for qube in qubes})[:10]) or "none"
    raise NothingMatched(f"no qube called {text} was saved", obj=text, hint=f"saved qubes: {known}")


def read_snapshot(repo: Repository, selector: str) -> QubeSnapshot:
    """`QUBE[@SNAPSHOT]`: its settings, and every volume of it in that run. Raises NothingMatched, IntegrityError."""
    name, text = split_selector(selector)
    qube = find_qube(repo, name)
    described = qube.volumes.get(SETTINGS)
    if described is None or not described.snapshots:
        raise NothingMatched(f"no settings of {qube.name} were saved", obj=qube.name)
    chosen = find_snapshot(repo, described, text)
    selected = Selected(f"{qube.name}:{SETTINGS}", described, chosen)
    settings = decode_settings(read_document(repo, selected, DOCUMENT), selected.text)
    claimed = claimed_owner(settings.uuid, settings.features.get(FEATURE))
    if not qube.owner.startswith(DOM0) and claimed != qube.owner:
        raise IntegrityError("the settings are those of another qube", obj=selected.text)
    return QubeSnapshot(
        qube.name, qube.owner, chosen.name, settings, _volumes(qube, chosen), _failed(repo, qube.name, chosen.name)
    )


def _volumes(qube: SavedQube, chosen: Snapshot) -> dict[str, Selected]:
    run, claimant = chosen.name, chosen.series.claimant
    found: dict[str, list[Selected]] = defaultdict(list)
    for what, volume in qube.volumes.items():
        for snapshot in volume.snapshots:
            if snapshot.name == run and snapshot.series.claimant == claimant and what != SETTINGS:
                found[what].append(Selected(f"{qube.name}:{what}", volume, snapshot))
    for what, several in found.items():
        if len(several) > 1:
            raise IntegrityError(f"{qube.name}:{what} was saved twice in one run", obj=run)
    return {what: several[0] for what, several in sorted(found.items())}


def _failed(repo: Repository, name: str, run: str) -> tuple[str, ...]:
    record = repo.catalogue.runs.get(run)
    rows = record.volumes if record is not None else ()
    return tuple(row.name for row in rows if row.failed and row.name.partition(":")[0] == name)


def decode_settings(content: bytes, what: str) -> QubeSettings:
    """Read a document of `encode` again. Raises IntegrityError for anything that qubesd could not have said."""
    try:
        found = json.loads(content)
        if not isinstance(found, dict) or found.pop("schema", None) != SCHEMA:
            raise ValueError("another kind of document")
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # escapes can name half a character, which no call can
        return _checked(_built(found))
    except (ValueError, TypeError, KeyError, RecursionError, UsageError) as error:
        raise IntegrityError(f"the settings in {what} cannot be used: {error}", obj=what) from error


def _built(found: dict[str, Any]) -> QubeSettings:
    wanted = {one.name for one in fields(QubeSettings)}
    if set(found) != wanted:
        raise ValueError(f"fields {sorted(set(found) ^ wanted)}")
    properties = {name: Property(**row) for name, row in _table(found.pop("properties")).items()}
    devices = {name: tuple(_texts(rows)) for name, rows in _table(found.pop("devices")).items()}
    volumes = {name: _words(_table(row)) for name, row in _table(found.pop("volumes")).items()}
    defaults, features = _words(_table(found.pop("defaults"))), _words(_table(found.pop("features")))
    tags = tuple(_texts(found.pop("tags")))
    return QubeSettings(
        **_words(found),
        properties=properties,
        devices=devices,
        volumes=volumes,
        defaults=defaults,
        features=features,
        tags=tags,
    )


def _checked(settings: QubeSettings) -> QubeSettings:
    if settings.klass != ADMIN_CLASS:
        check_qube(settings.name)
        check_uuid(settings.uuid)
        check_label(settings.label)
    check_word(settings.klass)
    for name in [*settings.properties, *settings.features, *settings.tags, *settings.devices]:
        check_word(name)
    for name in settings.volumes:
        check_volume(name)
    _words({name: row.value for name, row in settings.properties.items()})
    _words({name: row.type for name, row in settings.properties.items()})
    if len(settings.notes.encode("utf-8", "surrogatepass")) > _MAX_NOTES:
        raise ValueError("notes beyond 256,000 bytes")
    return settings


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("not a table")
    return value


def _texts(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TypeError("not a list of texts")
    return value


def _words(value: dict[str, Any]) -> dict[str, str]:
    if not all(isinstance(one, str) for one in value.values()):
        raise TypeError("not all of it is text")
    return value
