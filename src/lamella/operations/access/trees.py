"""Files inside a snapshot of a tree: no guest is needed, for the tree is Lamella's own (docs/TREES.md)."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator

from lamella.base.errors import IntegrityError, LamellaError, UsageError, shown_bytes
from lamella.operations.access.files_diff import ChangedFile, FilesDiff
from lamella.operations.access.guest_answers import FoundFile, GuestAnswer
from lamella.operations.access.guest_tar import Member, MemberKind, Sink, clean_name, stays_inside
from lamella.operations.access.view import PIECE, Reading, SnapshotView
from lamella.operations.shared.kinds import is_tree
from lamella.operations.shared.selection import Selected
from lamella.sources.tree.reader import FileTree, TreeEntry

_WINDOWS = 4
"""A walk reads files in one place, and the listings of their directories in another."""


class TreeAnswer(GuestAnswer):
    """What a tree itself says, in the form of a guest's answer."""

    @property
    def shown(self) -> str:
        """One line for people."""
        return "files as they were saved"


def opened(reading: Reading, selected: Selected) -> FileTree:
    """The tree in a snapshot. Nothing is read until somebody asks."""
    view = reading.view(selected)

    def stretches(offset: int, length: int) -> Iterator[tuple[int, bool]]:
        return ((one.length, one.zero) for one in view.extents(offset, length))

    return FileTree(_Windows(view).read, view.size, stretches)


class _Windows:
    """Reads small parts out of larger ones: files lie beside each other, in the order in which they are restored."""

    def __init__(self, view: SnapshotView) -> None:
        self._view = view
        self._kept: dict[int, bytes] = {}

    def read(self, offset: int, length: int) -> bytes:
        """As the view reads. Raises LamellaError."""
        number, skip = divmod(offset, PIECE)
        if skip + length > PIECE:
            return self._view.read(offset, length)
        window = self._kept.pop(number, None)
        if window is None:
            try:
                window = self._view.read(number * PIECE, PIECE)
            except IntegrityError:  # of something else in it, perhaps
                return self._view.read(offset, length)
        self._kept[number] = window
        while len(self._kept) > _WINDOWS:
            del self._kept[next(iter(self._kept))]
        return window[skip : skip + length]


def listed(reading: Reading, selected: Selected, paths: list[str]) -> GuestAnswer:
    """The entries of directories, or files themselves. Raises LamellaError."""
    tree, answer = opened(reading, selected), TreeAnswer(file_system="files")
    for entry in _named(tree, paths or [""], answer):
        answer.rows += map(found, tree.entries(entry) if entry.is_folder else [entry])
    return answer


def walked(reading: Reading, selected: Selected, patterns: list[str], fits: Callable[[str, str], bool]) -> GuestAnswer:
    """Everything whose path or last name fits one of the patterns. Raises LamellaError."""
    tree, answer = opened(reading, selected), TreeAnswer(file_system="files")
    for entry in tree.walk(tree.top()):
        if entry.path and any(fits(os.fsdecode(entry.path), pattern) for pattern in patterns):
            answer.rows.append(found(entry))
    return answer


def got(reading: Reading, selected: Selected, paths: list[str], sink: Sink, most_bytes: int) -> GuestAnswer:
    """Put files, and directories with all that is in them, into a sink. Raises LamellaError."""
    tree, answer = opened(reading, selected), TreeAnswer(file_system="files")
    links: dict[tuple[int, int], TreeEntry] = {}
    for start in _named(tree, paths, answer):
        for entry in tree.walk(start):
            if entry.is_absent:
                answer.taken.leave_out(os.fsdecode(entry.path), "it could not be read when it was saved")
                continue
            if entry.is_file and answer.taken.bytes + entry.length > most_bytes:
                hint = "allow more with --max-size, or name fewer paths"
                raise LamellaError(f"the files have more than {shown_bytes(most_bytes)} together", hint=hint)
            try:
                _put(tree, entry, sink, answer, links)
            except OSError as error:
                answer.taken.leave_out(os.fsdecode(entry.path), error.strerror or str(error))
    sink.close()
    return answer


def differing(reading: Reading, pair: tuple[Selected, Selected], path: str, *, every_byte: bool) -> FilesDiff:
    """Compare everything below `path` in two snapshots: see `files_differing`. Raises LamellaError."""
    for one in pair:
        if not is_tree(one.snapshot):
            raise UsageError(f"{one.text} is a disk, and the other snapshot a tree of files", obj=one.text)
    diff, trees = FilesDiff(TreeAnswer(file_system="files"), TreeAnswer(file_system="files")), []
    sides: list[Iterator[TreeEntry]] = []
    for one, answer in zip(pair, (diff.a, diff.b), strict=True):
        trees.append(tree := opened(reading, one))
        starts = list(_named(tree, [path], answer))
        sides.append(tree.walk(starts[0]) if starts else iter(()))
    for before, after in _joined(*sides):
        if after is None:
            diff.removed += [found(before)] if before is not None else []
        elif before is None:
            diff.added.append(found(after))
        elif what := _differences(trees, before, after, every_byte):
            diff.changed.append(ChangedFile(found(before), found(after), tuple(what)))
    return diff


def found(entry: TreeEntry) -> FoundFile:
    """An entry for a listing."""
    size = entry.length if entry.is_file else len(entry.target)
    return FoundFile(os.fsdecode(entry.path) or ".", entry.status.mode, size, entry.status.mtime_ns // 1_000_000_000)


def _named(tree: FileTree, paths: Iterable[str], answer: GuestAnswer) -> Iterator[TreeEntry]:
    """What is at these paths; the answer says which are not there. Raises UsageError for what is no path."""
    for text in paths:
        clean = clean_name(text)
        if clean is None:
            raise UsageError(f"not a path in a volume: {text}", obj=text, hint="leave out `..`")
        entry = tree.find(os.fsencode(clean))
        if entry is None:
            answer.absent.append(text)
        else:
            yield entry


def _put(
    tree: FileTree, entry: TreeEntry, sink: Sink, answer: GuestAnswer, links: dict[tuple[int, int], TreeEntry]
) -> None:
    """Put one entry into a sink. Raises OSError, LamellaError."""
    name, taken, status = os.fsdecode(entry.path), answer.taken, entry.status
    target = os.fsdecode(entry.target)
    member = Member(name, MemberKind.FILE, entry.length, status.mode, status.mtime_ns // 1_000_000_000, target)
    if entry.is_folder:
        if name:
            sink.folder(name, member)
    elif entry.is_file:
        first = links.setdefault((status.device, status.inode), entry) if status.links > 1 else entry
        if first is not entry and (first.status, first.length) == (status, entry.length):
            sink.hard_link(name, member, os.fsdecode(first.path))
        else:
            taken.bytes += entry.length
            sink.file(name, member, _filled(tree, entry))
        taken.files += 1
    elif not stat.S_ISLNK(status.mode):
        taken.leave_out(name, "neither a file, a directory nor a link")
    elif stays_inside(name, target):
        sink.link(name, member)
    else:
        taken.leave_out(name, f"a link that leads out of the target, to {target}; lamella restore writes such links")


def _filled(tree: FileTree, entry: TreeEntry) -> Iterator[bytes]:
    """All bytes of a file in order, zeros included."""
    at = 0
    for offset, piece in tree.content(entry):
        yield from _zeros(offset - at)
        yield piece
        at = offset + len(piece)
    yield from _zeros(entry.length - at)


_ZEROS = bytes(1 << 18)


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield _ZEROS[:count]
        count -= len(_ZEROS)


def _key(entry: TreeEntry) -> list[bytes]:
    """The order of a walk: what is in a directory comes before its next neighbour."""
    return entry.path.split(b"/")


def _joined(
    one: Iterator[TreeEntry], other: Iterator[TreeEntry]
) -> Iterator[tuple[TreeEntry | None, TreeEntry | None]]:
    """The entries of two walks, those of one path together."""
    a, b = next(one, None), next(other, None)
    while a is not None or b is not None:
        if b is None or (a is not None and _key(a) < _key(b)):
            yield a, None
            a = next(one, None)
        elif a is None or _key(b) < _key(a):
            yield None, b
            b = next(other, None)
        else:
            yield a, b
            a, b = next(one, None), next(other, None)


def _differences(trees: list[FileTree], a: TreeEntry, b: TreeEntry, every_byte: bool) -> list[str]:
    """The words for what differs, as `ChangedFile` has them."""
    before, after = a.status, b.status
    if stat.S_IFMT(before.mode) != stat.S_IFMT(after.mode):
        return ["type"]
    what = {
        "size": a.length != b.length,
        "content": a.is_file and a.length == b.length and _content_differs(trees, a, b, every_byte),
        "target": a.target != b.target,
        "mode": before.mode != after.mode,
        "owner": (before.uid, before.gid) != (after.uid, after.gid),
        "time": before.mtime_ns != after.mtime_ns and not a.is_folder,
        "unread": a.is_absent != b.is_absent,
    }
    return [word for word, differs in what.items() if differs]


def _content_differs(trees: list[FileTree], a: TreeEntry, b: TreeEntry, every_byte: bool) -> bool:
    if a.status == b.status and not every_byte:
        return False
    pieces = (_filled(tree, entry) for tree, entry in zip(trees, (a, b), strict=True))
    one, other = (_digest(content) for content in pieces)
    return one != other


def _digest(content: Iterator[bytes]) -> bytes:
    digest = hashlib.sha256()
    for piece in content:
        digest.update(piece)
    return digest.digest()
