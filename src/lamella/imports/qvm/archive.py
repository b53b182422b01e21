"""The outer tar of a qvm-backup, and what its members hold.

The tar itself is hostile: only its headers are read, for the places of members. Every member proves itself before
anything in it is looked at.
"""

from __future__ import annotations

import bz2
import lzma
import os
import re
import stat
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from lamella.base.errors import KeyRefused, SourceError, UsageError
from lamella.imports.history import shown_name
from lamella.imports.qvm.scrypt_file import decrypted, scrypt_key

_BLOCK: Final = 512
_MEMBERS_MOST: Final = 1 << 20
_HEADER_MOST: Final = 1 << 16
PART_MOST: Final = 128 << 20
"""Bytes of a member: qvm-backup cuts after 100 MiB."""
_DOCUMENT_MOST: Final = 16 << 20
_NAME: Final = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_.+-]+)*")
_PART: Final = re.compile(r"(.+)\.([0-9]{3,6})\.enc")
_LINE: Final = re.compile(r"([A-Za-z0-9-]+)=([A-Za-z0-9-]*)")
_HEADER: Final = "backup-header"


class MemberPlace(NamedTuple):
    """Where a member lies in the file."""

    offset: int
    size: int


@dataclass(slots=True)
class QvmBackup:
    """An open backup whose header was authenticated. Everything may raise SourceError."""

    path: Path
    passphrase: bytes
    id: str
    filter: str
    """The program that compressed; empty without one."""
    time: int
    """When its header was written, in seconds since 1970, as the tar claims."""
    parts: dict[str, list[MemberPlace]] = field(default_factory=dict)
    """By the name of a file in it: its pieces in order."""

    def document(self, name: str) -> bytes:
        """The content of a small file in the backup."""
        with self.opened(name) as file:
            content = file.read(_DOCUMENT_MOST + 1)
        if len(content) > _DOCUMENT_MOST:
            raise SourceError(f"{shown_name(name)} is larger than its kind can be", obj=str(self.path))
        return content

    @contextmanager
    def opened(self, name: str) -> Iterator[IO[bytes]]:
        """The one file in an inner tar: a stream of its content, holes as zeros."""
        with guarded(self.path, name):
            stream: Any = _PieceStream(self.pieces(name))  # tarfile asks for `read` alone
            with tarfile.open(fileobj=stream, mode="r|") as inner:
                member = inner.next()
                if member is None or not (member.isreg() or member.issparse()):
                    raise SourceError(f"{shown_name(name)} holds no file", obj=str(self.path))
                file = inner.extractfile(member)
                assert file is not None
                yield file

    def pieces(self, name: str) -> Iterator[bytes]:
        """The inner tar of a file, decompressed."""
        sealed = self._plain(name)
        if not self.filter:
            yield from map(bytes, sealed)
            return
        if self.filter in ("zstd", "zstdmt"):
            yield from _unzstd(sealed)
            return
        yield from _decompressed(self.filter, sealed, name)

    def _plain(self, name: str) -> Iterator[memoryview]:
        for number, place in enumerate(self.parts[name]):
            part = f"{name}.{number:03}"
            content = _read(self.path, place, part)
            key = scrypt_key(f"{self.id}!{part}!".encode() + self.passphrase)
            try:
                yield from decrypted(content, key, f"{self.path}: {part}")
            except KeyRefused as error:  # the header proved the passphrase
                raise SourceError(f"{self.path}: {part} is damaged, or was changed", obj=str(self.path)) from error


@contextmanager
def guarded(path: Path, name: str) -> Iterator[None]:
    """What the standard library says of damage becomes a SourceError. Whoever has the passphrase made it, or a disk."""
    try:
        yield
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, OverflowError) as error:
        raise SourceError(f"{path}: {shown_name(name)} cannot be read: {error}", obj=str(path)) from error


class _PieceStream:
    """Pieces as a file that is read in order."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, count: int) -> bytes:
        """Exactly so many bytes, fewer at the end."""
        found, have = [self._rest], len(self._rest)
        while have < count and (piece := next(self._pieces, None)) is not None:
            found.append(piece)
            have += len(piece)
        whole = b"".join(found)
        self._rest = whole[count:]
        return whole[:count]


_MOST: Final = 1 << 20


def _decompressed(filter_: str, sealed: Iterator[memoryview], name: str) -> Iterator[bytes]:
    inflate: Any
    if filter_ in ("gzip", "pigz"):
        inflate = zlib.decompressobj(wbits=31)
        for piece in sealed:
            data: Any = piece
            while data:
                yield inflate.decompress(data, _MOST)
                data = inflate.unconsumed_tail
    else:
        inflate = bz2.BZ2Decompressor() if filter_ in ("bzip2", "pbzip2") else lzma.LZMADecompressor()
        for piece in sealed:
            yield inflate.decompress(piece, _MOST)
            while not inflate.needs_input and not inflate.eof:
                yield inflate.decompress(b"", _MOST)
            if inflate.eof and inflate.unused_data and filter_ == "pbzip2":  # it writes one stream after the other
                rest = inflate.unused_data
                inflate = bz2.BZ2Decompressor()
                yield inflate.decompress(rest, _MOST)
    if not inflate.eof:
        raise EOFError("it ends too soon")


def _unzstd(sealed: Iterator[memoryview]) -> Iterator[bytes]:
    from lamella.format import zstd_provider

    provider, module = zstd_provider.load()
    failed: Any = module.ZstdError
    stream: Any = _PieceStream(bytes(piece) for piece in sealed)
    try:
        if provider == "zstandard":
            with module.ZstdDecompressor(max_window_size=1 << 27).stream_reader(stream) as reader:
                while piece := reader.read(_MOST):
                    yield piece
        else:
            frame = module.ZstdDecompressor()
            while not frame.eof and (piece := stream.read(_MOST)):
                yield frame.decompress(piece, _MOST)
                while not frame.needs_input and not frame.eof:
                    yield frame.decompress(b"", _MOST)
            if not frame.eof:
                raise EOFError("it ends too soon")
    except failed as error:
        raise ValueError(str(error)) from error


def open_backup(path: Path, passphrase: bytes) -> QvmBackup:
    """Find the members of a backup, and believe its header once it has proven itself.

    Raises SourceError, KeyRefused; UsageError for another format of qvm-backup, or a filter that is not known here.
    """
    members = _members(path)
    if not {_HEADER, f"{_HEADER}.hmac"} <= set(members):
        raise SourceError(f"{path} is no backup of qvm-backup", obj=str(path))
    place, time = members[f"{_HEADER}.hmac"]
    sealed = _read(path, place, _HEADER)
    # The plain header is only a copy for people: this one has the passphrase's word.
    pieces = decrypted(sealed, scrypt_key(f"{_HEADER}!".encode() + passphrase), f"{path}: {_HEADER}")
    fields = _fields(b"".join(pieces), path)
    found = QvmBackup(path, passphrase, fields["backup-id"], fields.get("compression-filter", "gzip"), time)
    if fields.get("compressed") != "True":
        found.filter = ""
    if found.filter not in ("", "gzip", "pigz", "bzip2", "pbzip2", "xz", "lzma", "zstd", "zstdmt"):
        raise UsageError(f"{path} was compressed by {found.filter}, which is not known here", obj=str(path))
    found.parts = _parts(path, members)
    return found


def _fields(header: bytes, path: Path) -> dict[str, str]:
    """The header's lines. Raises SourceError, UsageError."""
    fields: dict[str, str] = {}
    for line in header.decode("ascii", "replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None or match[1] in fields:
            raise SourceError(f"the header of {path} is malformed", obj=str(path))
        fields[match[1]] = match[2]
    if fields.get("version") != "4":
        version = shown_name(fields.get("version", "?"))
        hint = "restore it with qvm-backup-restore, and save it with: lamella qubes backup"
        raise UsageError(f"{path} is a backup of format {version}: only 4 is known", obj=str(path), hint=hint)
    if not fields.get("backup-id") or fields.get("encrypted") != "True":
        raise SourceError(f"the header of {path} lacks what format 4 requires", obj=str(path))
    return fields


def _parts(path: Path, members: dict[str, tuple[MemberPlace, int]]) -> dict[str, list[MemberPlace]]:
    """The pieces of each file: 000, 001 and so on, none missing."""
    numbered: dict[str, dict[int, MemberPlace]] = {}
    for name, (place, _) in members.items():
        match = _PART.fullmatch(name)
        if match is not None:
            numbered.setdefault(match[1], {})[int(match[2])] = place
    found: dict[str, list[MemberPlace]] = {}
    for name, places in numbered.items():
        if sorted(places) != list(range(len(places))):
            raise SourceError(f"{path}: a part of {shown_name(name)} is missing", obj=str(path))
        found[name] = [places[number] for number in range(len(places))]
    return found


# -- the outer tar ---------------------------------------------------------------------------------------------------


def _members(path: Path) -> dict[str, tuple[MemberPlace, int]]:
    """Every regular file in the tar: where it lies, and its time. Raises SourceError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb", buffering=0) as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise SourceError(f"{path} is no regular file", obj=str(path))
            return dict(_walked(file, status.st_size, path))
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}", obj=str(path)) from error


def _walked(file: IO[bytes], size: int, path: Path) -> Iterator[tuple[str, tuple[MemberPlace, int]]]:
    # Each member is a tar of its own, with blocks of zeros behind it (tar calls them --ignore-zeros).
    at, seen = 0, set[str]()
    while at < size:
        block = os.pread(file.fileno(), _BLOCK, at)
        if len(block) < _BLOCK:
            raise SourceError(f"{path} ends too soon: the backup was never finished, or was cut", obj=str(path))
        if not any(block):
            at += _BLOCK
            continue
        name, length, time, kind = _head(block, path)
        at += _BLOCK
        if kind in (b"0", b"\0"):
            if name in seen or len(seen) >= _MEMBERS_MOST:
                raise SourceError(f"{path} has a member twice, or too many", obj=str(path))
            seen.add(name)
            if length > size - at:
                raise SourceError(f"{path} ends too soon: the backup was never finished, or was cut", obj=str(path))
            yield name, (MemberPlace(at, length), time)
        at += -(-length // _BLOCK) * _BLOCK


def _head(block: bytes, path: Path) -> tuple[str, int, int, bytes]:
    """Name, bytes, time and type of a member (POSIX.1-1988 ustar). Raises SourceError."""
    kind = block[156:157]
    numbers = [block[start:end].strip(b" \0") for start, end in ((124, 136), (136, 148), (148, 156))]
    if not all(number and not number.strip(b"01234567") for number in numbers):
        raise SourceError(f"{path} is no tar, or is damaged", obj=str(path))
    length, time, expected = (int(number, 8) for number in numbers)
    if sum(block[:148]) + 8 * 32 + sum(block[156:]) != expected:
        raise SourceError(f"{path} is no tar, or is damaged", obj=str(path))
    plain = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    name = prefix + b"/" + plain if prefix else plain
    if kind in (b"0", b"\0") and not _NAME.fullmatch(name):
        raise SourceError(f"{path} has a member of a name that qvm-backup never gives", obj=str(path))
    return name.decode("ascii", "replace"), length, time, kind


def _read(path: Path, place: MemberPlace, name: str) -> bytes:
    if place.size > PART_MOST or (name == _HEADER and place.size > _HEADER_MOST):
        raise SourceError(f"{path}: {shown_name(name)} is larger than its kind can be", obj=str(path))
    try:
        with path.open("rb") as file:
            content = os.pread(file.fileno(), place.size, place.offset)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}", obj=str(path)) from error
    if len(content) != place.size:
        raise SourceError(f"{path} became shorter", obj=str(path))
    return content
