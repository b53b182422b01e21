"""The answers of a guest about a disk: words of its script, read as those of a stranger."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from lamella.base.errors import KeyRefused, LamellaError, NothingMatched, UsageError, printable
from lamella.operations.access.guest import Guest
from lamella.operations.access.guest_start import GuestRequest, What
from lamella.operations.access.guest_tar import Taken

LISTING_MOST = 1 << 30
"""Bytes of a listing; what does not fit a pattern is not kept."""
ROWS_MOST = 1_000_000
"""Rows of a listing that are kept: half a GiB of memory."""
WORDS_MOST = 10_000
"""Lines of a guest beside a listing."""
KEY_TRIES = 3
_ROW_MOST = 1 << 19
_SLOT_MOST_KIB = 4 << 20
"""Memory of a key slot (cryptsetup takes no more either)."""
_BESIDE_KEY_MIB = 1024
STATES = {
    "replayed": "as after a crash: the journal was replayed",
    "clean": "there was nothing to replay",
    "none": "this file system has no journal",
    "reset": "the journal was reset, not replayed: what was written last may be missing",
    "not-replayed": "mounted for reading only: the journal was not replayed, what was written last may be missing",
}
NAMES = {"ntfs": "NTFS", "vfat": "FAT", "exfat": "exFAT", "ext4": "ext4", "xfs": "XFS", "btrfs": "Btrfs"}
"""The script's word for a file system -> its name for people."""
_INSIDE = {"RAID": "Linux RAID", "LVM": "LVM", "LUKS": "LUKS"}
_UNIT = re.compile(r"disk|[0-9]{1,3}|[A-Za-z0-9+_.-]{1,60}/[A-Za-z0-9+_.-]{1,60}")
"""A partition, or VG/LV."""
_REMOVED = re.compile(r"([0-9]{1,15}) (-?[0-9]{1,18})", re.ASCII)
_ROW = re.compile(rb"([0-9a-f]{1,8}) ([0-9]{1,20}) (-?[0-9]{1,20}) (.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file, directory or link in a volume. The mode is that of stat(2), the time in seconds since 1970."""

    path: str
    mode: int
    size: int
    time: int


class Removed(NamedTuple):
    """Files and directories that fitted, and bytes that became free."""

    names: int
    freed: int


@dataclass(slots=True)
class GuestAnswer:
    """The file system that a guest mounted, as the guest describes it."""

    partition: str = ""
    file_system: str = ""
    state: str = ""
    """One of STATES."""
    absent: list[str] = field(default_factory=list)
    """The paths that are not there."""
    rows: list[FoundFile] = field(default_factory=list)
    taken: Taken = field(default_factory=Taken)
    scrubbed: Removed | None = None
    """What was removed on request."""
    trouble: str = ""
    """Complaints of the guest's programs; empty if everything was read."""

    @property
    def shown(self) -> str:
        """One line for people."""
        where = "the whole disk" if self.partition == "disk" else f"partition {self.partition}"
        if "/" in self.partition:
            where = f"volume {self.partition}"
        return f"{NAMES.get(self.file_system, self.file_system)} on {where}; {STATES.get(self.state, 'state unknown')}"


class MoreMemory(Exception):
    """A key slot needs a guest with so many MiB."""

    def __init__(self, mib: int) -> None:
        super().__init__(mib)
        self.mib = mib


class GuestLacks(LamellaError):
    """The guest cannot read what the disk holds, which says nothing about the disk."""


@dataclass(frozen=True, slots=True)
class Aid:
    """The material that the host gives a guest on request."""

    supply: Callable[[str], bytes]
    """The archive for a name of `guest_supply.NEEDS`. Raises LamellaError."""
    key: Callable[[str, int], bytes]
    """The key of LUKS on a partition; the number of wrong ones before. Raises LamellaError."""


Receive = Callable[[GuestAnswer, Guest, GuestRequest], None]


class GuestConversation:
    """All that a guest says about a disk; `receive` takes what was asked for, once."""

    def __init__(self, guest: Guest, request: GuestRequest, receive: Receive, aid: Aid) -> None:
        self._guest = guest
        self._request = request
        self._receive = receive
        self._aid = aid
        self._answer = GuestAnswer()
        self._parts: list[str] = []
        self._received = False
        self.is_over = False
        """Whether the guest is ready for the next disk."""
        self._asked: dict[str, int] = {}
        self._words: dict[str, Callable[[str], None]] = {
            "part": self._parts.append,
            "state": self._state,
            "absent": self._absent,
            "rows": self._take,
            "tar": self._take,
            "need": self._need,
            "key": self._key,
            "scrubbed": self._scrubbed,
            "why": self._why,
        }

    def held(self) -> GuestAnswer:
        """Hold it. Raises LamellaError; MoreMemory if another guest is needed."""
        for _ in range(WORDS_MOST):
            word, _, rest = self._guest.word().partition(" ")
            if word == "end":
                self.is_over = True
                self._require_done(rest)
                return self._answer
            if word in self._words:
                self._words[word](rest)
        raise LamellaError("the guest sent an invalid answer")

    def _state(self, rest: str) -> None:
        answer = self._answer
        answer.partition, answer.file_system, answer.state = (*map(printable, rest.split(" ")), "", "", "")[:3]

    def _absent(self, rest: str) -> None:
        self._answer.absent.append(rest.removeprefix("./"))

    def _why(self, rest: str) -> None:
        self._answer.trouble = printable(rest)

    def _take(self, _: str) -> None:
        if not self._received:
            self._received = True
            self._receive(self._answer, self._guest, self._request)

    def _scrubbed(self, rest: str) -> None:
        match = _REMOVED.fullmatch(rest)
        if self._request.what != What.SCRUB or match is None:
            raise LamellaError("the guest sent an invalid answer")
        self._received = True
        # What else was written meanwhile can be more than what was freed.
        self._answer.scrubbed = Removed(int(match[1]), max(0, int(match[2])))

    def _need(self, name: str) -> None:
        if f"need {name}" in self._asked:
            raise LamellaError("the guest sent an invalid answer")
        self._asked[f"need {name}"] = 1
        self._guest.send(self._aid.supply(name))

    def _key(self, name: str) -> None:
        # A person reads the name in a prompt, where a guest must not ask for something else.
        if _UNIT.fullmatch(name) is None:
            raise LamellaError("the guest sent an invalid answer")
        wrong = self._asked.get(name, 0)
        self._asked[name] = wrong + 1
        if wrong >= KEY_TRIES or len(self._asked) > 100:
            raise KeyRefused(f"the key does not open the encrypted partition {name}")
        self._guest.send_counted(self._aid.key(name, wrong))

    def _require_done(self, how: str) -> None:
        word, _, rest = how.partition(" ")
        if word == "done":
            if not self._received and not self._answer.absent:
                raise LamellaError("the guest reported success, but sent nothing")
            if rest != "0":
                self._answer.trouble = self._answer.trouble or "the guest could not read everything"
            return
        if word == "memory":
            raise self._more_memory(rest)
        raise _refusal(word, printable(rest), self._parts) or LamellaError(f"the guest failed: {printable(how)}")

    def _more_memory(self, kib: str) -> Exception:
        if not (kib.isascii() and kib.isdigit() and len(kib) < 12) or int(kib) > _SLOT_MOST_KIB:
            return LamellaError(f"opening the encrypted partition needs too much memory: {printable(kib)} KiB")
        wanted = int(kib) // 1024 + _BESIDE_KEY_MIB
        if wanted <= self._request.memory_mib:
            return LamellaError("the guest sent an invalid answer")
        return MoreMemory(wanted)


def _refusal(word: str, rest: str, parts: list[str]) -> LamellaError | None:
    """Why the guest could not do it, for the words of its script."""
    shown = "; ".join(_part(one) for one in parts[:32]) or "none"
    kind, _, why = rest.partition(" ")
    name = NAMES.get(kind, _INSIDE.get(kind, kind))
    said = f": {why}" if why else ""
    other = "name another kernel with --kernel"
    template = "add it to the template of disposables, or name another one with --in"
    return {
        "several": UsageError(f"several file systems could be meant: {shown}", hint="name one with --partition"),
        "nothing": NothingMatched(f"no file system that can be read, or no such partition: {shown}"),
        "without": GuestLacks(f"the disposable has no {rest}", hint=template),
        "lacks": GuestLacks(f"the guest's kernel cannot read {name}", hint=other),
        "cannot": GuestLacks(f"this version does not read {name} inside a volume", hint="see: lamella export"),
        "newer": GuestLacks(f"this {name} has features that the guest's kernel does not know{said}", hint=other),
        "unmountable": LamellaError(f"the guest does not mount this {name}{said}"),
        "readonly": LamellaError("the guest can mount it for reading only"),
        "untrimmed": LamellaError(f"the guest cannot give back space of this {name}{said}"),
        "mounted": LamellaError(f"the guest cannot unmount this {name}{said}"),
        "unopened": LamellaError(f"the encrypted partition {name} cannot be opened{said}"),
    }.get(word)


def _part(text: str) -> str:
    number, size, kind = (*text.split(" "), "?", "?", "?")[:3]
    if kind == "incomplete":
        return f"{printable(number)} (a part of it is on another disk)"
    gib = f"{int(size) / (1 << 30):.1f} GiB" if size.isascii() and size.isdigit() and len(size) < 20 else "?"
    return f"{printable(number)} ({gib}, {printable(NAMES.get(kind, _INSIDE.get(kind, kind)))})"


def ending(request: GuestRequest) -> bytes:
    """The rest after a listing or an archive: the beginning of the next line of the script."""
    return b"\n" + request.nonce.encode() + b" "


def marked(guest: Guest, request: GuestRequest) -> Iterator[bytes]:
    """The rows of a listing, each of which begins with the secret word: names may hold anything else."""
    mark = f"{request.nonce}=".encode()
    pending = b""
    for piece in chain(guest.until(ending(request), LISTING_MOST), [mark]):
        *whole, pending = (pending + piece).split(mark)
        yield from (raw.removesuffix(b"\n") for raw in whole if raw.strip())
        if len(pending) > _ROW_MOST:
            raise no_listing()


def no_listing() -> LamellaError:
    """The error for rows that are none."""
    return LamellaError("the guest sent a malformed listing")


def require_few(rows: Sized) -> None:
    """Raises LamellaError where the host's memory would be at the guest's mercy."""
    if len(rows) > ROWS_MOST:
        raise LamellaError(f"there are more than {ROWS_MOST} files", hint="name a directory further down")


def take_rows(
    answer: GuestAnswer, guest: Guest, request: GuestRequest, fits: Callable[[str], bool] = lambda path: True
) -> None:
    """The rows whose path fits, sorted. Raises LamellaError."""
    for raw in marked(guest, request):
        row = _row(raw)
        if fits(row.path):
            answer.rows.append(row)
            require_few(answer.rows)
    answer.rows.sort(key=lambda row: row.path)


def shown_path(raw: bytes) -> str:
    """A path as users name it: relative to the root of the file system, `.` for that."""
    return os.fsdecode(raw).removeprefix("./").rstrip("/") or "."


def _row(raw: bytes) -> FoundFile:
    match = _ROW.fullmatch(raw)
    if match is None:
        raise no_listing()
    mode, size = int(match[1], 16), int(match[2])
    return FoundFile(shown_path(match[4]), mode, size if stat.S_ISREG(mode) else 0, int(match[3]))
