"""Files inside a volume, as its own kernel would show them after the crash that a snapshot looks like.

Nothing of a file system is ever parsed on this host: a guest mounts the snapshot, with its writes in a throw-away
overlay, so that the journal is replayed.
"""

from __future__ import annotations

import fnmatch
import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from lamella.base.errors import LamellaError, UsageError, printable
from lamella.base.events import Reporter
from lamella.operations.access.exported import exported
from lamella.operations.access.guest import Guest, spare_mib, started
from lamella.operations.access.guest_answers import (
    Aid,
    GuestAnswer,
    GuestConversation,
    MoreMemory,
    Receive,
    ending,
    take_rows,
)
from lamella.operations.access.guest_kernel import GuestKernel
from lamella.operations.access.guest_start import GuestRequest, What
from lamella.operations.access.guest_supply import supplied
from lamella.operations.access.guest_tar import Sink, clean_name, take_archive
from lamella.operations.access.view import Reading
from lamella.operations.shared.kinds import is_tree
from lamella.operations.shared.selection import Selected


def without_key(name: str, wrong: int) -> bytes:
    """Where nobody can be asked for a key. Raises UsageError."""
    raise UsageError(f"partition {name} is encrypted", obj=name, hint="see: lamella files get --luks-key-file")


@dataclass(frozen=True, slots=True)
class How:
    """Where a guest comes from, and its bounds."""

    find_kernel: Callable[[], GuestKernel]
    """Raises LamellaError where this host has none that suits."""
    memory_file: Path
    """Remembers that KVM does not work here."""
    cache: Path
    """Where an uncompressed kernel is kept."""
    folder: Path
    """Where the overlay is kept, as an unnamed file."""
    key: Callable[[str, int], bytes] = without_key
    """The key of an encrypted partition, by its name for people and the number of wrong keys before."""
    partition: str = ""
    seconds: int = 600
    most_bytes: int = 0
    """Bytes of all files together that are taken at most."""
    elsewhere: Callable[[Sequence[str], GuestRequest], AbstractContextManager[Guest]] | None = None
    """Starts what takes the place of a small guest, such as a disposable qube."""

    @property
    def kernel(self) -> GuestKernel:
        """The guest's kernel. Raises LamellaError."""
        return self.find_kernel()

    def started(self, uris: Sequence[str], request: GuestRequest) -> AbstractContextManager[Guest]:
        """A guest with the disks at these NBD URIs. Raises LamellaError."""
        if self.elsewhere is not None:
            return self.elsewhere(uris, request)
        return started(self.kernel, uris, request, self.memory_file, self.cache)


def wanted_path(text: str) -> str:
    """A path as the guest gets it. Raises UsageError."""
    clean = clean_name(text)
    if clean is None:
        raise UsageError(f"not a path in a volume: {printable(text)}", obj=text, hint="leave out `..`")
    return f"./{clean}"


def listed(reading: Reading, selected: Selected, paths: list[str], how: How, reporter: Reporter) -> GuestAnswer:
    """The entries of directories. Raises LamellaError."""
    if is_tree(selected.snapshot):
        from lamella.operations.access import trees  # most volumes are disks

        return trees.listed(reading, selected, paths)
    return _asked(reading, selected, requested(What.LIST, paths or [""], how), how, reporter, take_rows)


def walked(reading: Reading, selected: Selected, patterns: list[str], how: How, reporter: Reporter) -> GuestAnswer:
    """Everything whose path or last name fits one of the patterns (fnmatch). Raises LamellaError."""
    if is_tree(selected.snapshot):
        from lamella.operations.access import trees  # most volumes are disks

        return trees.walked(reading, selected, patterns, _fits)

    def fitting(answer: GuestAnswer, guest: Guest, request: GuestRequest) -> None:
        take_rows(answer, guest, request, lambda path: any(_fits(path, one) for one in patterns))

    return _asked(reading, selected, requested(What.WALK, [""], how), how, reporter, fitting)


def got(
    reading: Reading, selected: Selected, paths: list[str], how: How, reporter: Reporter, sink: Sink
) -> GuestAnswer:
    """Put files, and directories with all that is in them, into a sink. Raises LamellaError."""
    if is_tree(selected.snapshot):
        from lamella.operations.access import trees  # most volumes are disks

        return trees.got(reading, selected, paths, sink, how.most_bytes)

    def taking(answer: GuestAnswer, guest: Guest, request: GuestRequest) -> None:
        answer.taken = take_archive(guest.archive(ending(request)), sink, how.most_bytes)

    return _asked(reading, selected, requested(What.GET, paths, how), how, reporter, taking)


def requested(what: What, paths: list[str], how: How) -> GuestRequest:
    """A request with a secret word of its own. Raises UsageError for a path that is none."""
    return GuestRequest(what, tuple(map(wanted_path, paths)), secrets.token_hex(16), how.partition, how.seconds)


def _fits(path: str, pattern: str) -> bool:
    subject = path if "/" in pattern else path.rpartition("/")[2]
    return fnmatch.fnmatchcase(subject, pattern.removeprefix("/"))


def _asked(
    reading: Reading, selected: Selected, request: GuestRequest, how: How, reporter: Reporter, receive: Receive
) -> GuestAnswer:
    with exported(reading, selected, how.folder, reporter) as uri:
        return with_memory(request, lambda enough: _held(uri, enough, how, receive))


def with_memory(request: GuestRequest, ask: Callable[[GuestRequest], GuestAnswer]) -> GuestAnswer:
    """The result of `ask`; with a larger guest where the key slot of an encrypted partition needs one."""
    try:
        return ask(request)
    except MoreMemory as wish:
        _require_memory(wish.mib)
        return ask(replace(request, memory_mib=wish.mib))


def _held(uri: str, request: GuestRequest, how: How, receive: Receive) -> GuestAnswer:
    with how.started([uri], request) as guest:
        return GuestConversation(guest, request, receive, aid(how)).held()


def aid(how: How) -> Aid:
    """The components that a guest of this kernel may ask for."""
    return Aid(lambda name: supplied(how.kernel, name), how.key)


def _require_memory(mib: int) -> None:
    """Raises LamellaError where this host has less to spare: a guest that is ended for that would not say why."""
    if (spare := spare_mib()) < mib:
        raise LamellaError(f"opening the encrypted partition needs a guest with {mib} MiB; only {spare} MiB are free")
