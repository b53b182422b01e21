"""The differences between the files of two snapshots, as two guests see them.

Each snapshot has a guest of its own: file systems of one origin carry one identity, and a kernel that meets two disks
with the same one may show the first for both (Btrfs), or refuse the second (XFS, LVM).
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from typing import NamedTuple

from lamella.base.errors import LamellaError
from lamella.base.events import Reporter
from lamella.operations.access.exported import exported
from lamella.operations.access.files import How, aid, requested, with_memory
from lamella.operations.access.guest import Guest
from lamella.operations.access.guest_answers import (
    FoundFile,
    GuestAnswer,
    GuestConversation,
    ending,
    marked,
    no_listing,
    require_few,
    shown_path,
)
from lamella.operations.access.guest_start import GuestRequest, What
from lamella.operations.access.view import Reading
from lamella.operations.shared.kinds import is_tree
from lamella.operations.shared.selection import Selected

_ROW = re.compile(
    rb"([0-9a-f]{1,8}) ([0-9]{1,20}) (-?[0-9]{1,20}) ([0-9]{1,10}:[0-9]{1,10}) (\S+ \S+ \S+) (\S+ \S+ \S+) (.*)",
    re.DOTALL,
)
_SUM = re.compile(rb"[0-9a-f]{64}  ")
_COARSE = {"vfat", "exfat"}
"""Their times count two seconds, and no time tells of a change whose maker put the old time back."""


class _Row(NamedTuple):
    """A file in one of the two listings: its times are texts, which are equal or not."""

    raw: bytes
    mode: int
    size: int
    time: int
    owner: bytes
    modified: bytes
    changed: bytes

    @property
    def kind(self) -> int:
        return stat.S_IFMT(self.mode)

    def found(self) -> FoundFile:
        return FoundFile(shown_path(self.raw), self.mode, self.size, self.time)


@dataclass(frozen=True, slots=True)
class ChangedFile:
    """A path that both snapshots have. `what`: type, size, content, target, mode, owner, time; `unread` where one of
    the two could not be read.
    """

    before: FoundFile
    after: FoundFile
    what: tuple[str, ...]


@dataclass(slots=True)
class FilesDiff:
    """The differences, sorted by path, and what the two guests told about the snapshots."""

    a: GuestAnswer = field(default_factory=GuestAnswer)
    b: GuestAnswer = field(default_factory=GuestAnswer)
    added: list[FoundFile] = field(default_factory=list)
    removed: list[FoundFile] = field(default_factory=list)
    changed: list[ChangedFile] = field(default_factory=list)


def files_differing(
    reading: Reading, pair: tuple[Selected, Selected], path: str, how: How, reporter: Reporter, *, every_byte: bool
) -> FilesDiff:
    """Compare everything below `path` in two snapshots. Content is compared where a size is equal and a time is not.

    The time of the last change of an inode, which no program can put back, is one of those. With `every_byte` content
    is always compared. Raises LamellaError.
    """
    if any(is_tree(one.snapshot) for one in pair):
        from lamella.operations.access import trees  # most volumes are disks

        return trees.differing(reading, pair, path, every_byte=every_byte)
    request = requested(What.COMPARE, [path], how)
    with (
        exported(reading, pair[0], how.folder, reporter) as one,
        exported(reading, pair[1], how.folder, reporter) as other,
    ):
        comparison = _Comparison(how, every_byte)
        with_memory(request, lambda enough: comparison.held([one, other], enough))
    return comparison.diff


class _Comparison:
    """Talks with both guests, which boot at the same time."""

    def __init__(self, how: How, every_byte: bool) -> None:
        self._how = how
        self._every_byte = every_byte
        self.diff = FilesDiff()

    def held(self, uris: list[str], request: GuestRequest) -> GuestAnswer:
        """The answer of the first guest. Raises LamellaError; MoreMemory for larger guests."""
        how = self._how

        def first(answer: GuestAnswer, guest: Guest, request: GuestRequest) -> None:
            a = _Compared(answer, guest, _rows(guest, request))

            def second(theirs: GuestAnswer, their_guest: Guest, request: GuestRequest) -> None:
                self._compare(a, _Compared(theirs, their_guest, _rows(their_guest, request)), request)

            self.diff.b = GuestConversation(guest_b, request, second, aid(how)).held()

        with (
            how.started(uris[:1], request) as guest_a,
            how.started(uris[1:], request) as guest_b,
        ):
            self.diff.a = GuestConversation(guest_a, request, first, aid(how)).held()
        return self.diff.a

    def _compare(self, a: _Compared, b: _Compared, request: GuestRequest) -> None:
        both = sorted(a.rows.keys() & b.rows.keys())
        always = self._every_byte or bool({a.answer.file_system, b.answer.file_system} & _COARSE)
        doubtful = {raw for raw in both if _is_doubtful(a.rows[raw], b.rows[raw], always)}
        for side in (a, b):  # both sum at the same time
            _name(side, doubtful)
        sums_a, sums_b = (_sums(side, request, doubtful) for side in (a, b))
        diff = self.diff
        diff.added = [b.rows[raw].found() for raw in sorted(b.rows.keys() - a.rows.keys())]
        diff.removed = [a.rows[raw].found() for raw in sorted(a.rows.keys() - b.rows.keys())]
        for raw in both:
            sums = (sums_a.get(raw), sums_b.get(raw)) if raw in doubtful else None
            what = _what(a.rows[raw], b.rows[raw], sums)
            if what:
                diff.changed.append(ChangedFile(a.rows[raw].found(), b.rows[raw].found(), what))


class _Compared(NamedTuple):
    """One of the two snapshots."""

    answer: GuestAnswer
    guest: Guest
    rows: dict[bytes, _Row]

    def in_order(self, doubtful: set[bytes]) -> tuple[list[bytes], list[bytes]]:
        """The files and the links among these paths."""
        paths = sorted(doubtful)
        links = [raw for raw in paths if stat.S_ISLNK(self.rows[raw].mode)]
        return [raw for raw in paths if stat.S_ISREG(self.rows[raw].mode)], links


def _rows(guest: Guest, request: GuestRequest) -> dict[bytes, _Row]:
    """The listing of a guest by path. Raises LamellaError."""
    rows: dict[bytes, _Row] = {}
    for raw in marked(guest, request):
        match = _ROW.fullmatch(raw)
        if match is None:
            raise no_listing()
        mode = int(match[1], 16)
        size = 0 if stat.S_ISDIR(mode) else int(match[2])
        rows[match[7]] = _Row(match[7], mode, size, int(match[3]), match[4], match[5], match[6])
        require_few(rows)
    return rows


def _is_doubtful(a: _Row, b: _Row, always: bool) -> bool:
    """Whether only the content tells if a file or a link differs."""
    if a.kind != b.kind or a.size != b.size or a.kind not in (stat.S_IFREG, stat.S_IFLNK):
        return False
    return always or (a.modified, a.changed) != (b.modified, b.changed)


def _name(side: _Compared, doubtful: set[bytes]) -> None:
    """Name the files and links whose content is to be summed."""
    for asked, paths in zip(("files", "links"), side.in_order(doubtful), strict=True):
        while (word := side.guest.word()) != asked:
            if word.startswith("end"):
                raise LamellaError("the guest reported success, but sent nothing")
        side.guest.send_counted(b"".join(path + b"\0" for path in paths))


def _sums(side: _Compared, request: GuestRequest, doubtful: set[bytes]) -> dict[bytes, bytes]:
    """Path -> checksum, as far as the guest could read. Names hold anything, so they are expected one by one."""
    files, links = side.in_order(doubtful)
    expected = [*((path, path) for path in files), *((path, b"-") for path in links)]
    most = sum(len(printed) + 67 for _, printed in expected) + 1
    text = b"".join(side.guest.until(ending(request), most))
    found: dict[bytes, bytes] = {}
    at = 0
    for path, printed in expected:
        if _SUM.match(text, at) and text.startswith(printed + b"\n", at + 66):
            found[path] = text[at : at + 64]
            at += 66 + len(printed) + 1
    if text[at:].strip():
        raise LamellaError("the guest sent malformed checksums")
    return found


def _what(a: _Row, b: _Row, sums: tuple[bytes | None, bytes | None] | None) -> tuple[str, ...]:
    """In what a path differs; `sums` are those of its content, where that was looked at."""
    if a.kind != b.kind:
        return ("type",)
    differs = {
        "size": a.size != b.size,
        "unread": sums is not None and None in sums,
        "target" if stat.S_ISLNK(a.mode) else "content": sums is not None and None not in sums and sums[0] != sums[1],
        "mode": a.mode != b.mode,
        "owner": a.owner != b.owner,
        # The time of a directory follows what is in it.
        "time": not stat.S_ISDIR(a.mode) and a.modified != b.modified,
    }
    return tuple(word for word, is_so in differs.items() if is_so)
