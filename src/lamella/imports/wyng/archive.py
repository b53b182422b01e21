"""The metadata of a wyng archive: archive.ini, then each volume's `volinfo`, then each session's `info`.

Every file is authenticated, or at least hashed, by the one above it before it is unpacked and parsed; archive.ini is
authentic only in an encrypted archive.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from configparser import Error as IniError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lamella.base.errors import KeyRefused, NoRepository, SourceError, UsageError
from lamella.imports.foreign_files import NotThere, read_foreign, unpacked
from lamella.imports.history import shown_name
from lamella.imports.wyng.keys import CIPHERS, SALT_FILE, WyngKeys

MAX_VOLUME: Final = 1 << 47
_MAGIC: Final = b"[WYNG03]\n"
_MAX_INI, _MAX_VOLINFO, _MAX_INFO = 1 << 20, 4 << 20, 64 << 10
_MAX_MANIFEST: Final = 1 << 30
_SEALED: Final = 40
_VOLUME_ID: Final = re.compile(r"Vol_[0-9a-fA-F]{1,64}")
_SESSION: Final = re.compile(r"S_\d{8}-\d{6}")
_UUID: Final = re.compile(r"[0-9a-fA-F-]{8,64}")
_CHUNK_SIZES: Final = frozenset(1 << log2 for log2 in range(16, 22))
_HASHES: Final[dict[str, Callable[[bytes], bytes]]] = {
    "blake2b": lambda content: hashlib.blake2b(content, digest_size=32).digest(),
    "sha256": lambda content: hashlib.sha256(content).digest(),
}


@dataclass(frozen=True, slots=True)
class WyngSession:
    """A session of a volume, as its `info` says."""

    name: str
    """`S_YYYYMMDD-HHMMSS` in the local time of the machine that saved it."""
    size: int
    sequence: int
    local_time: str
    """Nanoseconds since 1970, or a local time in old archives."""
    previous: str
    """The session before, `None` for the oldest."""
    manifest_hash: str
    """`0` if nothing changed."""
    tags: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class WyngVolume:
    """A volume, and its sessions in their order."""

    id: str
    name: str
    sessions: tuple[WyngSession, ...]
    """Those that follow one another without a gap: what a later one shows, nobody knows."""
    broken: tuple[tuple[str, str], ...]
    """The other sessions, and why they cannot be read."""


@dataclass(frozen=True, slots=True)
class WyngArchive:
    """An archive that was opened: its root is read, its volumes are read by `volumes`."""

    place: Path
    uuid: str
    chunk_size: int
    codec: str
    hash_name: str
    keys: WyngKeys | None
    volume_hashes: dict[str, str]
    interrupted: bool
    """An operation of wyng did not end."""
    lacks: list[str] = field(default_factory=list)
    """What cannot be read at all."""

    def chunk_hash(self, content: bytes) -> bytes:
        """The hash by which a manifest knows a compressed chunk."""
        if self.keys is not None and self.keys.hashes:
            return self.keys.chunk_hash(content)
        return _HASHES[self.hash_name](content)

    def volumes(self) -> Iterator[WyngVolume]:
        """Every volume that can be read; `lacks` names any other."""
        for id_, digest in self.volume_hashes.items():
            try:
                yield self._volume(id_, digest)
            except SourceError as error:
                self.lacks.append(f"volume {shown_name(id_)} of the archive cannot be read: {error.message}")

    def _volume(self, id_: str, digest: str) -> WyngVolume:
        text = self._text(self.place / id_ / "volinfo", digest, _MAX_VOLINFO)
        fields = list(_fields(text))
        name = next((value for key, value in fields if key == "name"), "")
        if not name or not name.isprintable() or len(name) > 4000:
            raise SourceError("its name is none", obj=id_)
        sessions: list[WyngSession] = []
        broken: list[tuple[str, str]] = []
        for key, value in fields:
            if _SESSION.fullmatch(key):
                try:
                    sessions.append(self._session(id_, key, value))
                except SourceError as error:
                    broken.append((key, error.message))
        sessions.sort(key=lambda one: one.sequence)
        names = ["None", *(one.name for one in sessions)]
        whole = next((at for at, one in enumerate(sessions) if one.previous != names[at]), len(sessions))
        broken += [(one.name, f"it builds on session {shown_name(one.previous)}") for one in sessions[whole:]]
        return WyngVolume(id_, name, tuple(sessions[:whole]), tuple(broken))

    def _session(self, id_: str, name: str, digest: str) -> WyngSession:
        text = self._text(self.place / id_ / name / "info", digest, _MAX_INFO)
        fields = dict(_fields(text))
        try:
            size, sequence = int(fields["volsize"]), int(fields["sequence"])
            local_time, previous, manifest = fields["localtime"], fields["previous"], fields["manifesthash"]
        except (KeyError, ValueError) as error:
            raise SourceError("its info lacks a field", obj=name) from error
        if not 0 <= size <= MAX_VOLUME or not 0 <= sequence < 1 << 62:
            raise SourceError(f"its size or number is out of range: {size}, {sequence}", obj=name)
        tags = tuple(value.split(" ", 1)[0] for key, value in _fields(text) if key == "tag" and value)
        return WyngSession(name, size, sequence, local_time, previous, manifest, tags, text)

    def manifest(self, volume: str, session: WyngSession) -> bytes:
        """The manifest of a session: lines `HASH xADDRESS`, ascending. Raises SourceError."""
        if session.manifest_hash == "0":
            return b""
        limit = min(_MAX_MANIFEST, (session.size // self.chunk_size + 1) * 80)
        return self._opened(self.place / volume / session.name / "manifest.z", session.manifest_hash, limit)

    def _text(self, path: Path, digest: str, limit: int) -> str:
        return _decoded(self._opened(path, digest, limit), path)

    def _opened(self, path: Path, digest: str, limit: int) -> bytes:
        """A file of metadata whose hash is known, unpacked to at most `limit` bytes. Raises SourceError."""
        packed = read_foreign(path, limit + 1024 + _SEALED)
        if self.keys is not None:
            opened = self.keys.open_metadata(packed)
            if opened is None:
                raise SourceError(f"{_inside(path)} is not authentic", obj=str(path))
            packed = opened
        # Metadata is hashed without a key, also where chunks are hashed with one.
        hashed = _HASHES["blake2b" if self.hash_name == "hmac-sha256" else self.hash_name]
        if not hmac.compare_digest(hashed(packed), raw_hash(digest)):
            raise SourceError(f"{_inside(path)} is not what the archive says of it", obj=str(path))
        return unpacked(self.codec, packed, limit, _inside(path))


def _inside(path: Path) -> str:
    return "/".join(path.parts[-3:] if path.name in ("info", "manifest.z") else path.parts[-2:])


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(f"{_inside(path)} is not text", obj=str(path)) from error


def _fields(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            yield key.strip(), value.strip()


def raw_hash(text: str) -> bytes:
    """The 32 bytes of a hash. Raises SourceError."""
    try:
        found = base64.b64decode(text.encode("ascii"), b"-_", validate=True)
    except (binascii.Error, ValueError):
        found = b""
    if len(found) != 32:
        raise SourceError(f"no hash: {shown_name(text)!r}")
    return found


def open_archive(place: Path, passphrase: Callable[[], bytes]) -> WyngArchive:
    """The archive in a directory; `passphrase` is asked if it is encrypted.

    Raises NoRepository where there is none, UsageError for another format, KeyRefused for a wrong passphrase,
    SourceError for a damaged archive.
    """
    content = _root(place)
    cipher = CIPHERS.get(content[14:16])
    if not content.startswith(_MAGIC + b"ci = ") or content[16:17] != b"\n" or cipher is None:
        hint = "wyng 0.8 makes format 3; `wyng arch-check --upgrade-format` brings an older archive to it"
        raise UsageError(f"{place} is no wyng archive of format 3", obj=str(place), hint=hint)
    body, keys = content[17:], None
    if cipher != "off":
        keys = WyngKeys(passphrase(), cipher, read_foreign(place / "archive.salt", SALT_FILE))
        opened = keys.open_metadata(body)
        if opened is None:
            raise KeyRefused("the passphrase does not open the archive, or archive.ini is damaged", obj=str(place))
        body = opened
    ini = place / "archive.ini"
    text = _decoded(unpacked("gzip", body, _MAX_INI, _inside(ini)), ini)
    return _parsed(place, text, keys)


def _root(place: Path) -> bytes:
    try:
        return read_foreign(place / "archive.ini", _MAX_INI)
    except NotThere as error:
        hint = "name the directory that holds archive.ini"
        where = shown_name(str(place))
        raise NoRepository(f"there is no wyng archive at {where}", obj=str(place), hint=hint) from error


def _parsed(place: Path, text: str, keys: WyngKeys | None) -> WyngArchive:
    parser = ConfigParser(interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(text)
        var = parser["var"]
        chunk_size, codec, hash_name, uuid = int(var["chunksize"]), var["compression"], var["hashtype"], var["uuid"]
        volumes = dict(parser["volumes"]) if parser.has_section("volumes") else {}
        interrupted = parser.has_section("in_process") and bool(parser["in_process"])
    except (IniError, KeyError, ValueError) as error:
        raise SourceError("archive.ini is not what wyng writes", obj=str(place)) from error
    known = codec in ("zstd", "zlib", "bz2") and (hash_name in _HASHES or hash_name == "hmac-sha256")
    if chunk_size not in _CHUNK_SIZES or not known or not _UUID.fullmatch(uuid):
        raise SourceError("archive.ini names sizes, methods or an id that wyng does not use", obj=str(place))
    if hash_name == "hmac-sha256" and not (keys is not None and keys.hashes):
        raise SourceError("archive.ini names a keyed hash without a key", obj=str(place))
    good = {id_: digest for id_, digest in volumes.items() if _VOLUME_ID.fullmatch(id_)}
    lacks = [f"{shown_name(id_)!r} is no id of a volume" for id_ in volumes if id_ not in good]
    return WyngArchive(place, uuid.lower(), chunk_size, codec, hash_name, keys, good, interrupted, lacks)
