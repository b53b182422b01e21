"""A tar archive from a guest that may be hostile: read with bounds, cleaned, written as a tree or as another archive.

The reader knows what busybox writes (POSIX.1-2001 ustar, and GNU's long names and large numbers), and nothing else.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Protocol

from lamella.base.errors import LamellaError, printable, shown_bytes
from lamella.run.spawn import signals_later

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

BLOCK = 512
NAME_MOST = 4096
"""Bytes of a name (PATH_MAX of linux/limits.h)."""
_PIECE = 1 << 18
_OLDEST, _LATEST = 0, 253_402_300_799
_TOLD_MOST = 20

Take = Callable[[int], bytes]
"""So many bytes of the stream, exactly. Raises LamellaError where it ends before."""


class ArchiveCut(LamellaError):
    """The archive ends in the middle: the program that wrote it met a file that cannot be read."""


class MemberKind(Enum):
    """The type of an entry."""

    FILE = b"0"
    HARD_LINK = b"1"
    LINK = b"2"
    FOLDER = b"5"
    OTHER = b"?"
    """A device, a pipe or a socket."""


@dataclass(frozen=True, slots=True)
class Member:
    """The header of an entry, as the guest wrote it: nothing of it is trusted. Time in seconds since 1970."""

    name: str
    kind: MemberKind
    size: int
    mode: int
    time: int
    target: str


def members(take: Take) -> Iterator[Member]:
    """The headers in order, up to the end of the archive; who gets a header reads its content before the next.

    Raises LamellaError for what is no archive.
    """
    long_name = long_target = b""
    while True:
        block = take(BLOCK)
        if not any(block):
            if any(take(BLOCK)):
                raise _broken("one block of zeros")
            return
        if _sum(block) != _number(block[148:156]):
            raise _broken("a wrong checksum")
        flag, size = block[156:157], _number(block[124:136])
        if flag in (b"L", b"K"):
            if not 0 < size <= NAME_MOST:
                raise _broken("a name that is too long")
            text = _text(take(-(-size // BLOCK) * BLOCK)[:size])
            long_name, long_target = (text, long_target) if flag == b"L" else (long_name, text)
            continue
        kind = {
            b"0": MemberKind.FILE,
            b"\0": MemberKind.FILE,
            b"1": MemberKind.HARD_LINK,
            b"2": MemberKind.LINK,
            b"5": MemberKind.FOLDER,
        }.get(flag)
        if kind is None and flag not in (b"3", b"4", b"6"):
            raise _broken("an entry of an unknown kind")
        name, target = long_name or _ustar_name(block), long_target or _text(block[157:257])
        long_name = long_target = b""
        mode, time = _number(block[100:108]), _number(block[136:148])
        yield Member(
            os.fsdecode(name),
            kind or MemberKind.OTHER,
            size if kind is MemberKind.FILE else 0,
            mode,
            time,
            os.fsdecode(target),
        )


def _ustar_name(block: bytes) -> bytes:
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + _text(block[:100]) if prefix else _text(block[:100])


def _text(raw: bytes) -> bytes:
    return raw.partition(b"\0")[0]


def _number(raw: bytes) -> int:
    """An octal number, or one of GNU's with its first bit set. Raises LamellaError."""
    if raw[0] & 0x80:
        return int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:], "big")
    digits = _text(raw).strip(b" ") or b"0"
    if digits.strip(b"01234567"):  # int() would also take signs, prefixes and underscores
        raise _broken("a malformed number")
    return int(digits, 8)


def _sum(block: bytes) -> int:
    return sum(block) - sum(block[148:156]) + 8 * 0x20


def _broken(why: str) -> LamellaError:
    return LamellaError(f"the guest did not send a proper archive: {why}")


def clean_name(name: str) -> str | None:
    """The name below a target; None for what leads out of it, empty for the target itself."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if ".." in parts or "\0" in name else "/".join(parts)


def stays_inside(name: str, target: str) -> bool:
    """Whether a symbolic link at the clean `name` with this target leads nowhere out of the root of the tree.

    `..` may come first alone: behind a name, which may be a link itself, nobody knows where it leads.
    """
    parts = [part for part in target.split("/") if part not in ("", ".")]
    climbs = next((at for at, part in enumerate(parts) if part != ".."), len(parts))
    return not target.startswith("/") and climbs <= name.count("/") and ".." not in parts[climbs:]


class Sink(Protocol):
    """Where cleaned entries go. Names are clean. Raises OSError for an entry that cannot be made."""

    takes_back: bool
    """Whether an entry whose content ends too soon leaves nothing."""

    def folder(self, name: str, member: Member) -> None:
        """Make a directory."""

    def file(self, name: str, member: Member, content: Iterator[bytes]) -> None:
        """Make a file; all of `content` is read, whatever happens."""

    def link(self, name: str, member: Member) -> None:
        """Make a symbolic link, which stays inside."""

    def hard_link(self, name: str, member: Member, target: str) -> None:
        """Make another name of a file that was made before."""

    def close(self) -> None:
        """Finish."""


@dataclass(slots=True)
class Taken:
    """The result of reading an archive."""

    files: int = 0
    bytes: int = 0
    left_out: list[str] = field(default_factory=list)
    """Lines about entries that were not taken, the first of them."""
    left_out_count: int = 0

    def leave_out(self, name: str, why: str) -> None:
        """Count an entry that is not taken."""
        self.left_out_count += 1
        if len(self.left_out) < _TOLD_MOST:
            self.left_out.append(f"{printable(name.removeprefix('./'))}: {why}")


def take_archive(take: Take, sink: Sink, most_bytes: int) -> Taken:
    """Read an archive to its end into a sink. Raises LamellaError if it is none, or has more than `most_bytes`."""
    taken = Taken()
    known: dict[str, MemberKind] = {}
    begun = ""
    try:
        for member in members(take):
            begun = member.name
            _take_next(member, take, sink, most_bytes, taken, known)
            begun = ""
    except ArchiveCut:
        name = printable(begun.removeprefix("./")) or "the next file"
        if not sink.takes_back:
            raise LamellaError(f"{name} cannot be read; the archive ends there", obj=name) from None
        taken.leave_out(name, "it cannot be read, and nothing that comes after it was copied: name other paths")
    sink.close()
    return taken


def _take_next(
    member: Member, take: Take, sink: Sink, most_bytes: int, taken: Taken, known: dict[str, MemberKind]
) -> None:
    if taken.bytes + member.size > most_bytes:
        hint = "allow more with --max-size, or name fewer paths"
        raise LamellaError(f"the files have more than {shown_bytes(most_bytes)} together", hint=hint)
    content = _content(take, member.size)
    name = clean_name(member.name)
    try:
        _take(member, name, content, sink, taken, known)
    except OSError as error:
        taken.leave_out(member.name, error.strerror or str(error))
    for _ in content:  # what nobody wanted
        pass


def _take(
    member: Member, name: str | None, content: Iterator[bytes], sink: Sink, taken: Taken, known: dict[str, MemberKind]
) -> None:
    """Take one entry; `known` are those that were taken before."""
    if name is None or (not name and member.kind is not MemberKind.FOLDER):
        taken.leave_out(member.name, "its name leads out of the target")
    elif _is_below_a_link(name, known):
        # Where that lies is not what its name says: a link there could lead out of the target.
        taken.leave_out(member.name, "a directory of its name is a link")
    elif member.kind is MemberKind.FOLDER:
        if name:
            sink.folder(name, member)
    elif member.kind is MemberKind.FILE:
        taken.bytes += member.size
        sink.file(name, member, content)
        taken.files += 1
        known.setdefault(name, member.kind)
    elif member.kind is MemberKind.LINK:
        if stays_inside(name, member.target):
            sink.link(name, member)
            known[name] = member.kind
        else:
            taken.leave_out(member.name, f"a link that leads out of the target, to {printable(member.target)}")
    elif member.kind is MemberKind.HARD_LINK and known.get(clean_name(member.target) or "") is MemberKind.FILE:
        sink.hard_link(name, member, clean_name(member.target) or "")
        taken.files += 1
    else:
        taken.leave_out(member.name, "neither a file, a directory nor a link")


def _is_below_a_link(name: str, known: Mapping[str, MemberKind]) -> bool:
    return any(known.get(str(parent)) is MemberKind.LINK for parent in PurePosixPath(name).parents)


def _content(take: Take, size: int) -> Iterator[bytes]:
    """The content of an entry in pieces, and its padding."""
    left = size
    while left:
        piece = take(min(left, _PIECE))
        left -= len(piece)
        yield piece
    if size % BLOCK:
        take(BLOCK - size % BLOCK)


class TreeSink:
    """A new directory. No link exists before everything else is written, so nothing is written through one."""

    takes_back = True

    def __init__(self, root: Path) -> None:
        self._root = root
        self._links: list[tuple[str, Member]] = []
        self._folders: list[tuple[str, Member]] = []

    def folder(self, name: str, member: Member) -> None:
        """Make a directory; it gets its rights and its time at the end."""
        (self._root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folders.append((name, member))

    def file(self, name: str, member: Member, content: Iterator[bytes]) -> None:
        """Make a file that only this user can read before it is complete."""
        path = self._root / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        made: IO[bytes] | None = None
        try:
            with signals_later():  # an interrupted run knows that the file is its own
                made = os.fdopen(os.open(path, flags, 0o600), "wb")
            with made as file:
                for piece in content:
                    file.write(piece)
                file.flush()
                os.fchmod(file.fileno(), member.mode & 0o777)
                os.utime(file.fileno(), (_time(member), _time(member)))
        except BaseException:
            if made is not None:
                made.close()
                with suppress(OSError):
                    path.unlink()  # a part of a file looks like a file
            raise

    def link(self, name: str, member: Member) -> None:
        """Remember a link."""
        self._links.append((name, member))

    def hard_link(self, name: str, member: Member, target: str) -> None:
        """Make another name of a file."""
        (self._root / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.link(self._root / target, self._root / name, follow_symlinks=False)

    def close(self) -> None:
        """Make the links, then give directories their rights."""
        for name, member in self._links:
            path = self._root / name
            with suppress(OSError):  # two entries of one name: the first stays
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.symlink_to(member.target)
        for name, member in reversed(self._folders):
            with suppress(OSError):
                (self._root / name).chmod(member.mode & 0o777 | 0o700)
                os.utime(self._root / name, (_time(member), _time(member)))


class TarSink:
    """Another archive, of cleaned entries, on an open stream."""

    takes_back = False

    def __init__(self, stream: IO[bytes]) -> None:
        self._archive = tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - `close`

    def folder(self, name: str, member: Member) -> None:
        """Add a directory."""
        self._archive.addfile(_info(name, member, tarfile.DIRTYPE))

    def file(self, name: str, member: Member, content: Iterator[bytes]) -> None:
        """Add a file."""
        self._archive.addfile(_info(name, member, tarfile.REGTYPE), _Pieces(content))

    def link(self, name: str, member: Member) -> None:
        """Add a link."""
        info = _info(name, member, tarfile.SYMTYPE)
        info.linkname = member.target
        self._archive.addfile(info)

    def hard_link(self, name: str, member: Member, target: str) -> None:
        """Add another name."""
        info = _info(name, member, tarfile.LNKTYPE)
        info.linkname = target
        self._archive.addfile(info)

    def close(self) -> None:
        """Write the end."""
        self._archive.close()


class _Pieces(io.RawIOBase):
    """Pieces as a file that can be read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Buffer) -> int:
        """Fill a buffer as far as a piece goes."""
        view = memoryview(buffer).cast("B")
        self._rest = self._rest or next(self._pieces, b"")
        count = min(len(view), len(self._rest))
        view[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def read(self, size: int = -1) -> bytes:
        """Exactly so many bytes, if there are."""
        found = b""
        while len(found) < size:
            piece = super().read(size - len(found))
            if not piece:
                break
            found += piece
        return found


def _info(name: str, member: Member, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = kind, member.mode & 0o777, _time(member)
    info.size = member.size if kind == tarfile.REGTYPE else 0
    return info


def _time(member: Member) -> int:
    return min(max(member.time, _OLDEST), _LATEST)
