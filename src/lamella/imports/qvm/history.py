"""Files of qvm-backup as a history: each file is a session, each qube's volumes and settings are volumes of its own.

Identities are those of `lamella qubes backup`: `lamella qubes restore` finds what was imported, and the next backup of
the same qube continues it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final

from lamella.base.errors import SourceError
from lamella.imports.history import ForeignHistory, ForeignSession, ForeignVolume, claimed, shown_name
from lamella.imports.programs import ForeignStream
from lamella.imports.qvm.archive import QvmBackup, guarded, open_backup
from lamella.imports.qvm.qubes_xml import BackedUpQube, firewall_of, qubes_of
from lamella.qubes.settings import DOCUMENT, SETTINGS
from lamella.qubes.sources import SettingsSource, volume_identity
from lamella.run.user_command import UserCommand
from lamella.sources.base import Consistency
from lamella.sources.stream import FrozenStream

KIND: Final = "qvm"
_ARCHIVE: Final = "qvm-backup"
_NOTES_MOST: Final = 256_000


@dataclass(frozen=True, slots=True)
class InnerStream(ForeignStream):
    """A volume in a backup, decrypted and unpacked while it is read."""

    backup: QvmBackup | None = None
    file: str = ""

    @property
    def identity(self) -> bytes:
        """That of the same volume of the same qube in `lamella qubes backup`."""
        return volume_identity(self.machine, self.name.rpartition(":")[2])

    @contextmanager
    def freeze(self) -> Iterator[FrozenStream]:
        """Nothing is read before the first piece is asked for."""
        frozen = _InnerReading(self)
        try:
            yield frozen
        finally:
            frozen.close()


class _InnerReading(FrozenStream):
    """Pieces of a volume: each part of the backup proves itself before it is decrypted."""

    why_untracked = "a backup of qvm-backup keeps no record of changes"

    def __init__(self, source: InnerStream) -> None:
        super().__init__(source)
        self._inner = source
        self._content: IO[bytes] | None = None

    def consistency(self) -> Consistency:
        """qvm-backup takes what the last shutdown left, also of a qube that runs."""
        return Consistency.COMMITTED

    def _started(self, again: bool) -> UserCommand | None:
        assert self._inner.backup is not None
        opened: AbstractContextManager[IO[bytes]] = self._inner.backup.opened(self._inner.file)
        self._content = self._open.enter_context(opened)
        return None

    def _piece(self, command: UserCommand | None, length: int) -> bytearray:
        assert self._content is not None and self._inner.backup is not None
        with guarded(self._inner.backup.path, self._inner.file):
            return bytearray(self._content.read(length))

    def _failed(self, how: str) -> SourceError:
        said = how.replace(" of --size", " that qubes.xml says")
        return SourceError(f"{shown_name(self._inner.file)} {said}", obj=self._inner.name)


def qvm_history(paths: Sequence[Path], passphrase: bytes) -> ForeignHistory:
    """The backups in these files, the oldest first. Raises SourceError, KeyRefused if any of them cannot be opened."""
    warnings: list[str] = []
    lacks: list[str] = []
    sessions = [_session(open_backup(path, passphrase), warnings, lacks) for path in paths]
    once = {session.id: session for session in sessions}
    if len(once) < len(sessions):
        raise SourceError("two of the files are the same backup", obj=str(paths[0]), hint="name each once")
    ordered = sorted(sessions, key=lambda one: (one.claimed_ms or 0, one.id))
    return ForeignHistory(KIND, _ARCHIVE, tuple(ordered), tuple(warnings), tuple(lacks))


def _session(backup: QvmBackup, warnings: list[str], lacks: list[str]) -> ForeignSession:
    what = f"{backup.path}: qubes.xml"
    if "qubes.xml" not in backup.parts:
        raise SourceError(f"{backup.path} has no qubes.xml", obj=str(backup.path))
    volumes: list[ForeignVolume] = []
    used = {"qubes.xml"}
    for qube in qubes_of(backup.document("qubes.xml"), what):
        volumes += _volumes(backup, qube, used, warnings, lacks)
    rest = sorted(set(backup.parts) - used)
    warnings += [f"{backup.path}: {shown_name(name)} is no volume of a qube, and is not imported" for name in rest]
    return ForeignSession(backup.id, tuple(volumes), claimed(backup.time))


def _volumes(
    backup: QvmBackup, qube: BackedUpQube, used: set[str], warnings: list[str], lacks: list[str]
) -> Iterator[ForeignVolume]:
    name, uuid = qube.settings.name, qube.settings.uuid
    settings, firewall, notes = qube.settings, f"{qube.folder}/firewall.xml", f"{qube.folder}/notes.txt"
    warnings += [f"{backup.path}: {name}: {note}" for note in qube.notes]
    if firewall in backup.parts:
        rules = firewall_of(backup.document(firewall), f"{backup.path}: {firewall}")
        settings = replace(settings, firewall=rules)
    if notes in backup.parts:
        text = backup.document(notes)[:_NOTES_MOST].decode("utf-8", "replace")
        settings = replace(settings, notes=text)
    used |= {firewall, notes, f"{qube.folder}/empty"}
    shown, domain = f"{name}:{SETTINGS}", f"qube {uuid}"  # as in `lamella qubes backup`
    source = SettingsSource(volume_identity(uuid, SETTINGS), shown)
    yield ForeignVolume(shown, source, 0, {DOCUMENT: settings.encode()}, domain)
    for volume, size in qube.volumes.items():
        file = f"{qube.folder}/{volume}.img"
        if file not in backup.parts:
            lacks.append(f"{backup.path}: {name}:{volume} is not in it")
            continue
        used.add(file)
        stream = InnerStream(f"{name}:{volume}", uuid, size=None, backup=backup, file=file)
        yield ForeignVolume(f"{name}:{volume}", stream, size, domain=domain)
