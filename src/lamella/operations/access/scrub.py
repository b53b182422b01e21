"""Leaving files out of a volume: a guest removes them from a clone, and the clone is what is backed up.

The host parses no file system. What the guest writes goes into an overlay of limited size; only what differs from the
frozen moment in a block of 4 KiB is then put into a clone of that moment, so that the next delta is small. If anything
fails, the volume is saved as it is, with everything in it, and the run says so.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from lamella.base.errors import LamellaError, UsageError, printable, shown_bytes
from lamella.base.events import Reporter
from lamella.format.cursor import clipped
from lamella.format.records import RawRecord
from lamella.format.scrubbed import MOST_PATTERNS, ScrubbedNote
from lamella.operations.access.exported import at_an_address
from lamella.operations.access.files import How, aid, with_memory
from lamella.operations.access.guest import Guest
from lamella.operations.access.guest_answers import GuestAnswer, GuestConversation
from lamella.operations.access.guest_start import GuestRequest, What
from lamella.operations.access.moment_disk import MomentDisk
from lamella.operations.access.overlay import Overlay, thrown_away
from lamella.operations.access.view import PIECE
from lamella.sources.base import FrozenVolume, Source
from lamella.sources.editing import Change, can_be_edited, edited, no_clone

CACHES = "@caches"
"""The word that stands for CACHE_PATTERNS."""
CACHE_PATTERNS = (
    "/home/*/.cache",
    "/root/.cache",
    "/home/*/.mozilla/firefox/*/cache2",
    "/var/cache/apt/archives",
    "/var/cache/dnf",
    "/var/tmp",
    "/tmp",
    # The private volume of a qube: its home directories lie in `home`, other bound directories in `rw`.
    "/bind-dirs/*/.cache",
)
"""Caches and temporary files at their usual places (XDG Base Directory; FHS). Nothing that a person put there, such as
the trash, and nothing that a repair of the file system saved."""
MOST_WRITTEN = 1 << 30
"""Bytes that a guest may write. Removing files writes metadata alone; a guest that writes more is not believed."""
_BLOCK = 4096


def scrub_patterns(texts: list[str]) -> tuple[str, ...]:
    """The patterns (fnmatch(3)) that texts name; one with a slash fits the whole path. Raises UsageError."""
    found: list[str] = []
    for text in texts:
        if text == CACHES:
            found += CACHE_PATTERNS
            continue
        if text.startswith("@"):
            raise UsageError(f"no such set of patterns: {printable(text)}", obj=text, hint=f"there is {CACHES}")
        if not text.strip("/.") or "\0" in text or "\n" in text or ".." in text.split("/") or text.startswith("./"):
            hint = "a name such as .cache, or a path from the root of the file system such as /home/*/.cache"
            raise UsageError(f"not a pattern of files in a volume: {printable(text)}", obj=text, hint=hint)
        found.append(text.rstrip("/"))
    if len(found) > MOST_PATTERNS:
        raise UsageError(f"more than {MOST_PATTERNS} patterns")
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Scrubber:
    """Takes files out of frozen volumes before they are read."""

    patterns: tuple[str, ...]
    how: How
    reporter: Reporter
    say: Callable[[str], None]

    def __call__(
        self, held: ExitStack, source: Source, frozen: FrozenVolume, warn: Callable[[str], None]
    ) -> tuple[FrozenVolume, tuple[RawRecord, ...]]:
        """The moment without what fits, held by `held`, and the note of that; the moment as it is where it fails."""
        name = source.default_name
        try:
            if not can_be_edited(source, frozen):
                raise LamellaError(no_clone(source))
            with self._cleaned(frozen, name) as (answer, disk, overlay):
                removed = answer.scrubbed
                if removed is None or not removed.names:
                    self.say(f"{name}: nothing fits what is to be left out")
                    return frozen, ()
                clone = edited(source, frozen, _changes(disk, overlay), held)
        except LamellaError as error:
            hint = f" ({error.hint})" if error.hint else ""
            warn(f"{name}: nothing could be left out, so everything is saved: {error.message}{hint}")
            return frozen, ()
        except OSError as error:
            warn(f"{name}: nothing could be left out, so everything is saved: {error.strerror}")
            return frozen, ()
        if answer.trouble:
            warn(f"{name}: not everything that fits was left out: {answer.trouble}")
        self.say(f"{name}: {removed.names} names left out, {shown_bytes(removed.freed)}")
        left_out = tuple(map(clipped, self.patterns))
        return clone, (ScrubbedNote(*removed, clipped(answer.file_system), left_out).encode(),)

    @contextmanager
    def _cleaned(self, frozen: FrozenVolume, name: str) -> Iterator[tuple[GuestAnswer, MomentDisk, Overlay]]:
        """The answer of a guest that removed what fits, the disk, and what the guest wrote. Raises LamellaError."""
        disk = MomentDisk(frozen)
        overlay = thrown_away(disk, self.how.folder)
        overlay.room = MOST_WRITTEN
        try:
            how, secret = self.how, secrets.token_hex(16)
            request = GuestRequest(What.SCRUB, self.patterns, secret, how.partition, how.seconds)
            with at_an_address(overlay, name, self.reporter) as uri:
                yield with_memory(request, lambda enough: self._asked(uri, enough)), disk, overlay
        finally:
            overlay.close()

    def _asked(self, uri: str, request: GuestRequest) -> GuestAnswer:
        with self.how.started([uri], request) as guest:
            return GuestConversation(guest, request, _nothing, aid(self.how)).held()


def _nothing(answer: GuestAnswer, guest: Guest, request: GuestRequest) -> None:
    raise LamellaError("the guest sent an invalid answer")


def _changes(disk: MomentDisk, overlay: Overlay) -> Iterator[Change]:
    """The blocks in which the disk with the guest's writes differs from the disk without."""
    for start, end, zeros in overlay.changes():
        if zeros:
            if not disk.is_hole(start, end - start):
                yield start, end - start
            continue
        while start < end:
            step = min(PIECE, end - start)
            yield from _differing(start, disk.read(start, step), overlay.read(start, step))
            start += step


def _differing(offset: int, before: bytes, now: bytes) -> Iterator[Change]:
    """Neighbouring blocks that differ, together."""
    first = -1
    for at in range(0, len(now), _BLOCK):
        same = before[at : at + _BLOCK] == now[at : at + _BLOCK]
        if same and first >= 0:
            yield offset + first, now[first:at]
            first = -1
        elif not same and first < 0:
            first = at
    if first >= 0:
        yield offset + first, now[first:]
