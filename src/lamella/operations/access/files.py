"""Files inside a volume, as its own kernel would show them after the crash that a snapshot looks like.

Nothing of a file system is ever parsed on this host: a guest mounts the snapshot, with its writes in a throw-away
overlay, so that the journal is replayed.
"""

from __future__ import annotations

import fnmatch
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from lamella.base.errors import LamellaError, NothingMatched, UsageError, printable
from lamella.base.events import Reporter
from lamella.operations.access import listening
from lamella.operations.access.guest import Guest, started
from lamella.operations.access.guest_kernel import GuestKernel
from lamella.operations.access.guest_start import GuestRequest, What
from lamella.operations.access.guest_tar import Sink, Taken, clean_name, take_archive
from lamella.operations.access.nbd_server import NbdServer, Served
from lamella.operations.access.overlay import thrown_away
from lamella.operations.access.view import Reading
from lamella.operations.shared.selection import Selected
from lamella.run.beside import Beside

LISTING_MOST = 1 << 30
"""Bytes of a listing; what does not fit a pattern is not kept."""
WORDS_MOST = 10_000
"""Lines of a guest beside a listing."""
_ROW_MOST = 1 << 19
STATES = {
    "replayed": "as after a crash: the journal was replayed",
    "clean": "there was nothing to replay",
    "none": "this file system has no journal",
}
_NAMES = {"ntfs3": "NTFS", "vfat": "FAT", "exfat": "exFAT", "ext4": "ext4", "xfs": "XFS", "btrfs": "Btrfs"}
_ROW = re.compile(rb"([0-9a-f]{1,8}) ([0-9]{1,20}) (-?[0-9]{1,20}) (.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file, directory or link in a volume. The mode is that of stat(2), the time in seconds since 1970."""

    path: str
    mode: int
    size: int
    time: int


@dataclass(slots=True)
class GuestAnswer:
    """What a guest told about the file system that it mounted."""

    partition: str = ""
    file_system: str = ""
    state: str = ""
    """One of STATES."""
    absent: list[str] = field(default_factory=list)
    """The paths that are not there."""
    rows: list[FoundFile] = field(default_factory=list)
    taken: Taken = field(default_factory=Taken)
    trouble: str = ""
    """What the guest's programs complained about; empty if all that is there was read."""

    @property
    def shown(self) -> str:
        """One line for people."""
        where = "the whole disk" if self.partition == "disk" else f"partition {self.partition}"
        return f"{_NAMES.get(self.file_system, self.file_system)} on {where}; {STATES.get(self.state, 'state unknown')}"


@dataclass(frozen=True, slots=True)
class How:
    """Where a guest comes from, and its bounds."""

    kernel: GuestKernel
    memory_file: Path
    """Remembers that KVM does not work here."""
    cache: Path
    """Where an uncompressed kernel is kept."""
    folder: Path
    """Where the overlay is kept, as an unnamed file."""
    partition: str = ""
    seconds: int = 600
    most_bytes: int = 0
    """Bytes of all files together that are taken at most."""


def wanted_path(text: str) -> str:
    """A path as the guest gets it. Raises UsageError."""
    clean = clean_name(text)
    if clean is None:
        raise UsageError(f"not a path in a volume: {printable(text)}", obj=text, hint="leave out `..`")
    return f"./{clean}"


def listed(reading: Reading, selected: Selected, paths: list[str], how: How, reporter: Reporter) -> GuestAnswer:
    """The entries of directories. Raises LamellaError."""
    request = _request(What.LIST, paths or [""], how)
    return _asked(reading, selected, request, how, reporter, take_rows)


def walked(reading: Reading, selected: Selected, patterns: list[str], how: How, reporter: Reporter) -> GuestAnswer:
    """Everything whose path or last name fits one of the patterns (fnmatch). Raises LamellaError."""

    def fitting(answer: GuestAnswer, guest: Guest, request: GuestRequest) -> None:
        take_rows(answer, guest, request, lambda path: any(_fits(path, one) for one in patterns))

    return _asked(reading, selected, _request(What.WALK, [""], how), how, reporter, fitting)


def got(
    reading: Reading, selected: Selected, paths: list[str], how: How, reporter: Reporter, sink: Sink
) -> GuestAnswer:
    """Put files, and directories with all that is in them, into a sink. Raises LamellaError."""

    def taking(answer: GuestAnswer, guest: Guest, request: GuestRequest) -> None:
        answer.taken = take_archive(guest.take, sink, how.most_bytes)

    return _asked(reading, selected, _request(What.GET, paths, how), how, reporter, taking)


def _request(what: What, paths: list[str], how: How) -> GuestRequest:
    return GuestRequest(what, tuple(map(wanted_path, paths)), secrets.token_hex(16), how.partition, how.seconds)


def _fits(path: str, pattern: str) -> bool:
    subject = path if "/" in pattern else path.rpartition("/")[2]
    return fnmatch.fnmatchcase(subject, pattern.removeprefix("/"))


Receive = Callable[[GuestAnswer, Guest, GuestRequest], None]


def _asked(
    reading: Reading, selected: Selected, request: GuestRequest, how: How, reporter: Reporter, receive: Receive
) -> GuestAnswer:
    with (
        _exported(reading, selected, how, reporter) as uri,
        started(how.kernel, uri, request, how.memory_file, how.cache) as guest,
    ):
        return conversation(guest, request, receive)


@contextmanager
def _exported(reading: Reading, selected: Selected, how: How, reporter: Reporter) -> Iterator[str]:
    """The snapshot over NBD, with a throw-away overlay; its URI."""
    try:
        overlay = thrown_away(reading.view(selected), how.folder)
    except OSError as error:
        raise LamellaError(f"cannot keep a guest's writes in {how.folder}: {error.strerror}") from error
    with tempfile.TemporaryDirectory(prefix="lamella-nbd-") as folder:
        try:
            with listening.at_path(Path(folder) / "disk") as (listener, uri):
                server = NbdServer(listener, Served(overlay, "", selected.text), reporter)
                thread = Beside(server.run, "lamella-nbd-listen")
                try:
                    yield uri
                finally:
                    server.stop()
                    thread.join(5.0)
                    server.close()
        finally:
            overlay.close()


def conversation(guest: Guest, request: GuestRequest, receive: Receive) -> GuestAnswer:
    """All that a guest says; `receive` takes what was asked for, once. Raises LamellaError."""
    answer = GuestAnswer()
    parts: list[str] = []
    received = False
    for _ in range(WORDS_MOST):
        word, _, rest = guest.word().partition(" ")
        if word == "part":
            parts.append(rest)
        elif word == "state":
            answer.partition, answer.file_system, answer.state = (*map(printable, rest.split(" ")), "", "", "")[:3]
        elif word == "absent":
            answer.absent.append(rest.removeprefix("./"))
        elif word in ("rows", "tar") and not received:
            received = True
            receive(answer, guest, request)
        elif word == "why":
            answer.trouble = printable(rest)
        elif word == "end":
            _require_done(rest, parts, answer, received)
            return answer
    raise LamellaError("the guest sends nonsense")


def _require_done(how: str, parts: list[str], answer: GuestAnswer, received: bool) -> None:
    word, _, rest = how.partition(" ")
    shown = "; ".join(_part(one) for one in parts[:32]) or "none"
    if word == "done":
        if not received and not answer.absent:
            raise LamellaError("the guest says that it is done, and sent nothing")
        if rest != "0":
            answer.trouble = answer.trouble or "the guest could not read everything"
        return
    if word == "several":
        raise UsageError(
            f"several file systems could be meant: {shown}", hint="name a partition with --partition NUMBER"
        )
    if word == "nothing":
        raise NothingMatched(f"no file system that can be read, or no such partition: {shown}")
    if word == "lacks":
        raise LamellaError(
            f"the guest's kernel cannot read {_NAMES.get(rest, rest)}", hint="name another with --kernel"
        )
    if word == "cannot":
        raise LamellaError(f"this version does not read {printable(rest)} inside a volume", hint="see: lamella export")
    if word == "unmountable":
        kind, _, why = rest.partition(" ")
        said = f": {printable(why)}" if why else ""
        raise LamellaError(f"the guest's kernel does not mount this {_NAMES.get(kind, kind)}{said}")
    raise LamellaError(f"the guest failed: {printable(how)}")


def _part(text: str) -> str:
    number, size, kind = (*text.split(" "), "?", "?", "?")[:3]
    gib = f"{int(size) / (1 << 30):.1f} GiB" if size.isdigit() else "?"
    return f"{printable(number)} ({gib}, {printable(_NAMES.get(kind, kind))})"


def take_rows(
    answer: GuestAnswer, guest: Guest, request: GuestRequest, fits: Callable[[str], bool] = lambda path: True
) -> None:
    """Rows that each begin with the secret word: names may hold anything else."""
    mark = f"{request.nonce}=".encode()
    end = b"\n" + request.nonce.encode() + b" "
    pending = b""
    for piece in chain(guest.until(end, LISTING_MOST), [mark]):
        *whole, pending = (pending + piece).split(mark)
        found = (_row(raw) for raw in whole if raw.strip())
        answer.rows += [row for row in found if fits(row.path)]
        if len(pending) > _ROW_MOST:
            raise LamellaError("the guest sent a listing that is none")
    answer.rows.sort(key=lambda row: row.path)


def _row(raw: bytes) -> FoundFile:
    match = _ROW.fullmatch(raw.removesuffix(b"\n"))
    if match is None:
        raise LamellaError("the guest sent a listing that is none")
    path = os.fsdecode(match[4]).removeprefix("./").rstrip("/")
    mode, size = int(match[1], 16), int(match[2])
    return FoundFile(path or ".", mode, size if stat.S_ISREG(mode) else 0, int(match[3]))
