"""The remains of a restore, and the use of a checkpoint by a restore, in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lamella.base.errors import SourceError, printable
from lamella.cli.context import Context
from lamella.cli.shown import shown_bytes
from lamella.format.image import Holds, ImageNote
from lamella.operations.restore.restore import RestorePlan
from lamella.operations.shared.selection import Selected


def use_in_words(use: Mapping[str, object], *, asked: bool) -> str:
    """The end of the line that tells of a restored volume; `asked` for --trust-local."""
    kept, sampled = use["kept"], use["sampled_bytes"]
    if use["trusted"] and isinstance(sampled, int):
        sample = f"a sample of {shown_bytes(sampled)}"
        return f"; compared {sample} and what differs from the checkpoint of {kept}, and trusted the rest"
    if asked:
        return f"; everything was compared: {use['reason']}"
    return f"; it began as a clone of the checkpoint of {kept}" if kept else ""


def state_left(plan: RestorePlan) -> str:
    """The state of the target of an interrupted restore."""
    if plan.in_place:
        return f"{plan.target} is now a mixture of old and new"
    state = "is as it was before" if plan.replaces else "is not there yet"
    return f"{plan.target} {state}" + ("" if plan.left is None else f", what was restored lies in {plan.left}")


def image_suffix(selected: Selected) -> str:
    """`.qcow2` for a file that was saved under such a name and begins like an image, else `.img`.

    What a disk begins with its guest may have written: that alone must not make somebody take it for an image.
    """
    note = _image(selected)
    return ".qcow2" if note is not None and note.files[0].endswith(".qcow2") else ".img"


def _image(selected: Selected) -> ImageNote | None:
    note = ImageNote.of(selected.snapshot.added)
    return note if note is not None and note.holds == Holds.FILE and note.files else None


def warn_of_missing_files(context: Context, selected: Selected, path: Path) -> None:
    """Name the files that a restored image needs and that are not where its header says."""
    if _image(selected) is None:
        return
    from lamella.sources.qcow2.chain import PROTOCOL, read_header

    try:
        header = read_header(path)
    except SourceError as error:
        context.out.warn(error.message)
        return
    needed = (header.backing, header.data_file) if header is not None else ()
    for name in filter(None, needed):
        if PROTOCOL.match(name) or "\0" in name or (place := path.absolute().parent / name).exists():
            continue
        text = f"{path} does not start without {printable(str(place))}, which is not there: restore that file, too"
        if header is not None and name == header.backing:
            form = printable(header.backing_format) or "FORMAT"
            text += f", or say where it is: qemu-img rebase -u -f qcow2 -F {form} -b FILE {path}"
        context.out.warn(text)
