"""dom0's own files as one archive, and laid out again in a folder beside, to be compared with what is there now.

Nothing of dom0 is overwritten: an old policy or Salt state that took effect by itself could do more harm than none.
"""

from __future__ import annotations

import filecmp
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lamella.base.durable import make_private
from lamella.base.errors import IntegrityError, LamellaError, SourceError
from lamella.run.spawn import run

KEPT: Final = (
    "etc/qubes",
    "etc/qubes-rpc",
    "etc/salt",
    "home",
    "srv/salt",
    "srv/pillar",
    "usr/local",
    "var/lib/qubes/qubes.xml",
)
"""The files of dom0 that are kept, below its root."""
PACKAGES: Final = "packages.txt"
"""The installed packages, one a line, in the archive's top folder."""

_QUERY: Final = ("rpm", "-qa", "--qf", "%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}\\n")
_MAX_PACKAGES: Final = 4 << 20


def write_archive(target: Path, root: Path) -> Path:
    """Archive what is kept of the system below `root` into `target`; returns it. Raises SourceError."""
    try:
        make_private(target.parent)
        target.unlink(missing_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with (
            os.fdopen(descriptor, "wb") as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for place in _members(root):
                _add(tar, root, place)
            _add_text(tar, PACKAGES, _packages())
    except OSError as error:
        raise SourceError(f"dom0's files cannot be archived: {error.strerror}", obj=str(error.filename)) from error
    return target


def _members(root: Path) -> Iterator[str]:
    """Every file below what is kept, in one order, so that equal trees make equal archives."""
    for kept in KEPT:
        top = root / kept
        if top.is_symlink() or top.is_file():
            yield kept
            continue
        for directory, names, files in os.walk(top):
            names.sort()
            here = Path(directory).relative_to(root)
            yield str(here)
            links = [name for name in names if (Path(directory) / name).is_symlink()]
            yield from (str(here / name) for name in sorted([*files, *links]))


def _add(tar: tarfile.TarFile, root: Path, place: str) -> None:
    try:
        entry = tar.gettarinfo(root / place, arcname=f"files/{place}")
    except FileNotFoundError:
        return
    if entry is None or not (entry.isreg() or entry.isdir() or entry.issym()):
        return
    if not entry.isreg():
        tar.addfile(entry)
        return
    try:
        # Read whole first: a file that shrinks while it is read would leave an archive that ends in the middle.
        content = (root / place).read_bytes()
    except FileNotFoundError:
        return
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _add_text(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o600
    tar.addfile(entry, io.BytesIO(content))


def _packages() -> bytes:
    try:
        rows = run(_QUERY, timeout_seconds=120, max_output=_MAX_PACKAGES)
    except LamellaError:
        return b""  # a system without rpm has no such list, and everything else is still worth having
    return b"".join(sorted(rows.splitlines(keepends=True)))


def lay_out(archive: Path, target: Path) -> None:
    """Unpack an archive into the new folder `target`, which only its owner may enter.

    Raises SourceError, IntegrityError.
    """
    try:
        target.mkdir(mode=0o700)
        with tarfile.open(archive, "r:") as tar:
            for entry in tar:
                _extract(tar, entry, target)
    except tarfile.TarError as error:
        raise IntegrityError(f"dom0's archive cannot be read: {error}", obj=str(archive)) from error
    except OSError as error:
        raise SourceError(f"dom0's files cannot be laid out: {error.strerror}", obj=str(target)) from error


def _extract(tar: tarfile.TarFile, entry: tarfile.TarInfo, target: Path) -> None:
    parts = Path(entry.name).parts
    if not parts or entry.name.startswith("/") or ".." in parts:
        raise IntegrityError(f"dom0's archive has a member outside of it: {entry.name!r}", obj=entry.name)
    place = target.joinpath(*parts)
    if place.parent.resolve() != target.resolve().joinpath(*parts[:-1]):
        raise IntegrityError(f"dom0's archive has a member behind a link: {entry.name!r}", obj=entry.name)
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if entry.isdir():
        place.mkdir(exist_ok=True)
        place.chmod(entry.mode & 0o777)
    elif entry.issym():
        place.symlink_to(entry.linkname)
    elif entry.isreg():
        content = tar.extractfile(entry)
        place.write_bytes(b"" if content is None else content.read())
        place.chmod(entry.mode & 0o777)


def differences(target: Path, root: Path) -> list[str]:
    """One line for each laid-out file that the system does not have, or has otherwise."""
    top = target / "files"
    lines: list[str] = []
    for directory, _, files in os.walk(top):
        for name in sorted(files):
            saved = Path(directory) / name
            place = saved.relative_to(top)
            present = root / place
            if not os.path.lexists(present):
                lines.append(f"missing now: /{place}")
            elif _differ(saved, present):
                lines.append(f"different now: /{place}")
    return sorted(lines)


def _differ(saved: Path, present: Path) -> bool:
    if saved.is_symlink() or present.is_symlink():
        return not (saved.is_symlink() and present.is_symlink() and saved.readlink() == present.readlink())
    try:
        return not filecmp.cmp(saved, present, shallow=False)
    except OSError:
        return True
