"""What this machine has that could be saved, and where backups could go. Nothing here changes anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from lamella.base.errors import LamellaError, SourceError
from lamella.cli.commands.setup.plan import QUBES
from lamella.run.spawn import run

SUFFIXES: Final = (".img", ".qcow2", ".raw")
_SYSTEM_PLACES: Final = ("/var/lib/libvirt/images", "/var/lib/machines", "/srv/vm", "/srv/vms", "/srv/images")
_HOME_PLACES: Final = (".local/share/libvirt/images", ".local/share/gnome-boxes/images", "vm", "vms", "VMs", "images")
_REMOVABLE: Final = ("/mnt/", "/media/", "/run/media/")
_SECONDS: Final = 30.0

Asked = TypeVar("Asked")


class Candidate(NamedTuple):
    """Something that could be saved: the sources as `backup` takes them, and what they are in words."""

    sources: tuple[str, ...]
    what: str
    size: int
    """Bytes at most; 0 where nobody says."""


MARKED_QUBES: Final = Candidate((QUBES,), "the qubes that are marked for backups, settings included", 0)


def candidates(env: Mapping[str, str], note: Callable[[str], None]) -> list[Candidate]:
    """Virtual machines, thin volumes, volumes of ZFS, and images in the usual places. `note` hears what did not answer.

    An image that a virtual machine of libvirt uses is offered as a disk of that machine only.
    """
    nothing: tuple[list[Candidate], set[str]] = ([], set())
    machines, used = _answered("libvirt", partial(_machines, env), note) or nothing
    found = [*machines, *(_answered("LVM", _thin_volumes, note) or []), *(_answered("ZFS", _zfs_volumes, note) or [])]
    return [*found, *_images(_places(env), used)]


def _answered(who: str, ask: Callable[[], Asked], note: Callable[[str], None]) -> Asked | None:
    try:
        return ask()
    except LamellaError as error:
        note(f"{who} was not asked for volumes: {error.message}")
        return None


# -- virtual machines, LVM, ZFS ---------------------------------------------------------------------------------------


def _machines(env: Mapping[str, str]) -> tuple[list[Candidate], set[str]]:
    """The domains of libvirt, and the paths of their disks."""
    if find_spec("libvirt") is None or not (env.get("LIBVIRT_DEFAULT_URI") or Path("/run/libvirt").is_dir()):
        return [], set()
    from lamella.sources.virt.domain_xml import parsed
    from lamella.sources.virt.library import library, told

    found: list[Candidate] = []
    used: set[str] = set()
    with told():
        connection = library().open(None)
        try:
            texts = [domain.XMLDesc(0) for domain in connection.listAllDomains()]
        finally:
            connection.close()
    for facts in sorted(map(parsed, texts), key=lambda one: one.name):
        paths = [disk.path for disk in facts.disks.values() if disk.path]
        used.update(str(Path(path).resolve()) for path in paths)
        if facts.disks:
            what = f"virtual machine, {_counted(len(facts.disks), 'disk')}"
            found.append(Candidate((f"libvirt:{facts.name}",), what, sum(map(_size, paths))))
    return found, used


def _thin_volumes() -> list[Candidate]:
    if os.geteuid() != 0 or shutil.which("lvs") is None or not Path("/dev/mapper").is_dir():
        return []
    from lamella.sources.lvm.commands import report

    # "+lam" is in the name of every moment that Lamella keeps.
    rows = [row for row in report() if row.kind == "thin" and "+lam" not in row.name]
    return [Candidate((f"lvm:{row.text}",), "thin volume of LVM", row.size) for row in rows]


def _zfs_volumes() -> list[Candidate]:
    if shutil.which("zfs") is None or not Path("/dev/zfs").exists():
        return []
    words = ["zfs", "list", "-H", "-p", "-t", "volume", "-o", "name,volsize"]
    said = run(words, timeout_seconds=_SECONDS, error=SourceError).decode("utf-8", "replace")
    rows = [line.split("\t") for line in said.splitlines()]
    return [Candidate((f"zfs:{row[0]}",), "volume of ZFS", int(row[1])) for row in rows if len(row) == 2]


# -- images -----------------------------------------------------------------------------------------------------------


def _places(env: Mapping[str, str]) -> list[Path]:
    home = env.get("HOME", "")
    own = [Path(home) / name for name in _HOME_PLACES] if Path(home).is_absolute() else []
    return [*map(Path, _SYSTEM_PLACES), *own]


def _images(places: list[Path], used: Collection[str]) -> Iterator[Candidate]:
    seen: set[Path] = set()
    for place in places:
        files = [] if place.resolve() in seen else _image_files(place)
        seen.add(place.resolve())
        free = [path for path in files if str(path.resolve()) not in used]
        if not free:
            continue
        # A pattern takes in the images of later days as well.
        suffixes = sorted({path.suffix for path in files})
        texts = [f"{place}/*{one}" for one in suffixes] if free == files else list(map(str, free))
        yield Candidate(tuple(texts), _counted(len(free), "image"), sum(map(_size, map(str, free))))


def _image_files(place: Path) -> list[Path]:
    try:
        found = [path for path in place.iterdir() if path.suffix in SUFFIXES and not path.name.startswith(".")]
        return sorted(path for path in found if path.is_file() and os.access(path, os.R_OK))
    except OSError:
        return []


def _size(path: str) -> int:
    with suppress(OSError):
        return Path(path).stat().st_size
    return 0


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


# -- destinations -----------------------------------------------------------------------------------------------------


def destination(env: Mapping[str, str], mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The place that is offered for a repository: the mounted disk with the most room, else a local directory."""
    disks = sorted(_disks(mounts), key=lambda path: shutil.disk_usage(path).free)
    if disks:
        return str(disks[-1] / "lamella")
    home = env.get("HOME", "")
    return "/var/backups/lamella" if os.geteuid() == 0 or not home else f"{home}/lamella-backups"


def _disks(mounts: Path) -> Iterator[Path]:
    """Writable disks below the places for those that come and go (proc_pid_mountinfo(5))."""
    with suppress(OSError):
        for line in mounts.read_text("utf-8", "surrogateescape").splitlines():
            words = line.split(" ")
            point = Path(words[4].replace("\\040", " "))
            is_disk = words[-2].startswith("/dev/")
            if is_disk and str(point).startswith(_REMOVABLE) and os.access(point, os.W_OK):
                yield point


def same_disk(place: str, sources: Collection[str]) -> str:
    """The first source, a path or pattern, that lies on the file system that the place is or will be on; else empty."""
    local = _local(place)
    if local is None:
        return ""
    device = _device(local)
    for text in sources:
        path = Path(text.rpartition("=")[2])
        if path.is_absolute() and _device(path) == device:
            return text
    return ""


def missing_directory(place: str) -> str:
    """The directory around the place, if there is none yet: as where a file system is not mounted; else empty."""
    local = _local(place)
    return "" if local is None or local.absolute().parent.exists() else str(local.absolute().parent)


def _local(place: str) -> Path | None:
    """The path of a place on this machine."""
    place = place.removeprefix("file:")
    return None if ":" in place.partition("/")[0] else Path(place)


def _device(path: Path) -> int:
    """The number of the file system that a path lies on, or would."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.stat().st_dev
