"""`lamella export --all DIR`: every snapshot of every volume as files that need no Lamella."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lamella.base.clock import iso
from lamella.base.errors import Interrupted, LamellaError, printable
from lamella.cli.chosen import thaw_first
from lamella.cli.commands._images import image_of
from lamella.cli.context import Context
from lamella.cli.output import INCOMPLETE
from lamella.cli.shown import shown_bytes
from lamella.operations.access.image_file import CannotWrite
from lamella.operations.access.image_folder import SUMS, ImageFolder, image_folder, portable
from lamella.operations.access.images import Image
from lamella.operations.access.shown import distinct
from lamella.operations.access.tree_tar import tree_tar
from lamella.operations.access.trees import opened
from lamella.operations.access.view import Reading
from lamella.operations.look.listing import claimed_time, consistency
from lamella.operations.shared.kinds import is_tree
from lamella.operations.shared.selection import Selected
from lamella.operations.shared.streaming import read_document
from lamella.repository.repository import Repository

_TOLD_MOST = 20


class _Leaving(NamedTuple):
    """A snapshot, and the beginning of the names of its files."""

    selected: Selected
    name: str


def run(context: Context, reading: Reading) -> int:
    """Write what is missing; a snapshot that cannot be read does not stop the others."""
    rows: list[dict[str, object]] = []
    out, place = context.out, context.args.all
    with image_folder(place) as folder:
        wanted = list(_wanted(reading.repo, folder))
        thaw_first(context, reading.repo, [one.selected for one in wanted])
        try:
            for number, one in enumerate(wanted, 1):
                out.say(f"{number} of {len(wanted)}: {one.selected.text}")
                rows.append(_row(context, reading, folder, one))
        except KeyboardInterrupt:
            hint = "what has a name is whole; the same command goes on from there"
            raise Interrupted("interrupted", hint=hint) from None
        except CannotWrite as error:
            error.hint = error.hint or "what has a name is whole; the same command goes on once there is room"
            raise
        folder.write_index()
    return _told(context, rows)


def _wanted(repository: Repository, folder: ImageFolder) -> Iterator[_Leaving]:
    """Every snapshot that counts, by volume, oldest first. What an expelled writer or a stranger added is left out."""
    shown = repository.catalogue.shown_names()
    volumes = sorted(repository.catalogue.volumes.values(), key=lambda one: shown[one.volume_id])
    held = [one for one in volumes if any(snapshot.counts for snapshot in one.snapshots)]
    folders = folder.name_volumes((one.volume_id.hex(), shown[one.volume_id]) for one in held)
    for volume in held:
        counting = [one for one in volume.snapshots if one.counts]
        names = distinct((portable(one.name), one.ref.snap_id.hex()) for one in counting)
        for name, snapshot in zip(names, counting, strict=True):
            selected = Selected(shown[volume.volume_id], volume, snapshot)
            yield _Leaving(selected, f"{folders[volume.volume_id.hex()]}/{name}")


def _row(context: Context, reading: Reading, folder: ImageFolder, one: _Leaving) -> dict[str, object]:
    """Write the files of one snapshot. Raises CannotWrite."""
    selected, out = one.selected, context.out
    ending = _ending(context, selected)
    name = f"{one.name}.{ending}"
    row = {"volume": selected.volume_name, "snapshot": selected.snapshot.name, "target": str(folder.path / name)}
    try:
        new = _write(context, reading, folder, one, name)
    except CannotWrite:
        raise
    except LamellaError as error:
        out.warn(f"{selected.text}: {error.message}", error.obj)
        return {**row, "error": error.message}
    size = (folder.path / name).stat().st_size
    out.line(f"{'exported' if new else 'there already'}: {selected.text} as {name}, {shown_bytes(size)}")
    return {**row, "bytes": size, "new": new, "sha256": folder.sum_of(name)}


def _ending(context: Context, selected: Selected) -> str:
    if is_tree(selected.snapshot):
        return "tar"
    return {"qcow2": "qcow2", "tar": "tar"}.get(context.args.format, "img")


def _write(context: Context, reading: Reading, folder: ImageFolder, one: _Leaving, name: str) -> bool:
    """Whether the image had to be written. Raises LamellaError."""
    selected, report = one.selected, context.out.report
    if not selected.snapshot.added.usable:
        raise LamellaError("this snapshot needs a newer version of lamella")
    documents = _documents(context, reading, folder, one)
    left_out: list[str] = []
    new = not folder.is_there(name)
    if new:
        new = folder.add(name, _image(context, reading, selected, left_out), selected.volume_name, report)
    for line in left_out[:_TOLD_MOST]:
        context.out.warn(f"left out: {printable(line)}")
    if len(left_out) > _TOLD_MOST:
        context.out.warn(f"left out: {len(left_out)} entries in all")
    folder.describe(name, _description(selected, documents))
    return new


def _image(context: Context, reading: Reading, selected: Selected, left_out: list[str]) -> Image:
    if is_tree(selected.snapshot):
        return tree_tar(opened(reading, selected), left_out)
    return image_of(context, reading, selected)


def _documents(context: Context, reading: Reading, folder: ImageFolder, one: _Leaving) -> dict[str, str]:
    """The documents of a snapshot, written: name -> file."""
    rows = one.selected.snapshot.added.documents
    names = distinct((portable(row.name), f"document-{number}") for number, row in enumerate(rows))
    found = {row.name: f"{one.name}.documents/{name}" for row, name in zip(rows, names, strict=True)}
    for document, name in found.items():
        if not folder.is_there(name):
            content = read_document(reading.repo, one.selected, document)
            folder.add(name, Image(len(content), iter([content])), one.selected.volume_name, context.out.report)
    return found


def _description(selected: Selected, documents: dict[str, str]) -> dict[str, object]:
    snapshot = selected.snapshot
    return {
        "volume": selected.volume_name,
        "snapshot": snapshot.name,
        "time": iso(snapshot.added.time_ms),
        "claimed_time": claimed_time([snapshot]),
        "size": snapshot.added.size,
        "consistency": consistency([snapshot]),
        "tags": sorted(snapshot.tags),
        "pinned": snapshot.pinned,
        "documents": documents,
    }


def _told(context: Context, rows: list[dict[str, object]]) -> int:
    out, failed = context.out, sum("error" in row for row in rows)
    new = sum(bool(row.get("new")) for row in rows)
    check = f"cd {context.args.all} && sha256sum -c {SUMS}"
    out.say(f"{new} written, {len(rows) - new - failed} there already; to check: {check}")
    if failed:
        out.warn(f"{failed} snapshots could not be exported")
    out.document({"exports": rows})
    return INCOMPLETE if failed else 0
