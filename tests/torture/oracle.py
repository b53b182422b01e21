"""What can be restored now: asked of the emergency reader, which shares no code with what is under test."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lamella import rescue
from tests.fault.rot import same


class Key(NamedTuple):
    """A snapshot of one volume, by its volume's id and the snapshot's name."""

    volume_id: str
    name: str


@dataclass(frozen=True)
class Saved:
    """What a backup saved, as this process knows."""

    key: Key
    number: int
    """Of all that was saved, in the order in which it happened."""
    volume: str
    host: str
    writer: str
    image: Path
    settings: bytes


@dataclass(frozen=True)
class View:
    """What the emergency reader sees."""

    times: Mapping[Key, int] = field(default_factory=dict)
    """Every snapshot that stands, and when it says that it was made."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What each volume is called."""
    whole: frozenset[Key] = frozenset()
    """Of those that this process knows: which have their right bytes, document included."""
    lost: frozenset[Key] = frozenset()
    """Those of which a record says that parts are lost."""
    writers: Mapping[Key, str] = field(default_factory=dict)
    missing: bool = False
    """History is missing."""
    opens: bool = True


class Oracle:
    """Looks at the repository of one place."""

    def __init__(self, place: Path, repo: Path, key: Path) -> None:
        self._words = ["--repo", str(repo), "--keyfile", str(key)]
        self._out = place / "oracle"

    def look(self, saved: Mapping[Key, Saved], whole: frozenset[Key] = frozenset()) -> View:
        """Restore everything that stands and is known, but for what is known to be `whole`."""
        shutil.rmtree(self._out, ignore_errors=True)
        self._out.mkdir()
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            try:
                session = rescue.Session(rescue.parse(["list", *self._words]), rescue.Reporter())
            except (rescue.Problem, OSError):
                return View(opens=False)
            history = session.history
            assert history is not None
            volumes = history.volumes()
            repeated = history.repeated()
            rows = {
                Key(volume_id.hex(), one.name): one for volume_id, volume in volumes.items() for one in volume.snapshots
            }
            opened = _Opened(session, self._out)
            found = View(
                {key: one.when for key, one in rows.items()},
                {volume_id.hex(): volume.name for volume_id, volume in volumes.items()},
                frozenset(
                    key for key, one in rows.items() if key in saved and (key in whole or opened.right(one, saved[key]))
                ),
                frozenset(key for key, one in rows.items() if "parts-lost" in history.state(one, repeated)),
                {key: one.commit.writer.hex() for key, one in rows.items()},
                bool(history.missing),
            )
        return found

    def restore(self, wanted: str, target: Path) -> int:
        """What a person does in an emergency; returns the exit code."""
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return rescue.main(["restore", wanted, "--to", str(target), *self._words])


class _Opened:
    """The blobs of each domain, looked up once."""

    def __init__(self, session: rescue.Session, out: Path) -> None:
        self._session = session
        self._out = out / "restored"
        self._blobs: dict[bytes, rescue.Blobs] = {}

    def right(self, one: rescue.Snapshot, saved: Saved) -> bool:
        """Whether a snapshot gives the bytes that were saved."""
        domain_id = one.tree.domain_id
        if domain_id not in self._blobs:
            self._blobs[domain_id] = rescue.Blobs(self._session.repo, domain_id).scan()
        blobs = self._blobs[domain_id]
        content = rescue.VolumeContent(self._session.report, blobs, one.tree)
        if not self._filled(content) or not same(self._out, saved.image):
            return False
        try:
            document = rescue.document_content(blobs, one, "settings")
        except rescue.Problem:
            return False
        return self._filled(document) and self._out.read_bytes() == saved.settings

    def _filled(self, content: rescue.VolumeContent | rescue.DocumentContent) -> bool:
        held = os.open(self._out, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            content.fill(held)
        except (rescue.Problem, rescue.Bad):
            return False
        finally:
            os.close(held)
        return True
