"""Components for a disk that needs more than busybox: modules of the kernel, programs of this host.

The answer is an archive that the guest unpacks over its root. Nothing is downloaded.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from lamella.base.errors import LamellaError, printable
from lamella.operations.access.guest_kernel import GuestKernel
from lamella.operations.access.guest_start import Files, archive, with_modules
from lamella.run import spawn


@dataclass(frozen=True, slots=True)
class Need:
    """Modules of the kernel, and a program with the package that has it."""

    modules: tuple[str, ...]
    program: str = ""
    package: str = ""


NEEDS = {
    "ext4": Need(("ext4",)),
    "xfs": Need(("xfs",)),
    "btrfs": Need(("btrfs",)),
    "vfat": Need(("vfat", "nls_cp437", "nls_iso8859-1", "nls_ascii", "nls_utf8")),
    "exfat": Need(("exfat",)),
    # The kernel's own ntfs3 refuses a volume whose journal is not empty, as that of every running machine is.
    "ntfs": Need(("fuse",), "ntfs-3g", "ntfs-3g"),
    "LVM": Need(("dm_mod", "dm_snapshot", "dm_thin_pool", "dm_mirror", "dm_raid"), "lvm", "lvm2"),
    "LUKS": Need(
        (
            "dm_mod",
            "dm_crypt",
            "algif_skcipher",
            "aes_generic",
            "aesni_intel",
            "xts",
            "cbc",
            "ecb",
            "essiv",
            "sha256_generic",
        ),
        "cryptsetup",
        "cryptsetup-bin (Debian) or cryptsetup (Fedora)",
    ),
}
"""The name that the guest's script asks for -> what is sent."""

_WHAT = {"ntfs": "NTFS"}
_PATH = os.pathsep.join(("/usr/sbin", "/usr/bin", "/sbin", "/bin"))
_LIBRARY = re.compile(r"(?:^|\s)(/\S+)(?=\s+\(0x)", re.MULTILINE)
_OPENED_LATER = ("libgcc_s.so.1",)
"""The C library opens it by itself when a thread ends."""
_SECONDS = 20.0


def supplied(kernel: GuestKernel, name: str) -> bytes:
    """The archive for one of NEEDS. Raises LamellaError, also where a program is not installed here."""
    need = NEEDS.get(name)
    if need is None:
        raise LamellaError(f"the guest asked for an unknown component: {printable(name)}")
    files: Files = {}
    if need.program:
        files = _with_libraries(name, need)
    return archive(with_modules(files, kernel, name, need.modules))


def _with_libraries(name: str, need: Need) -> Files:
    place = shutil.which(need.program) or shutil.which(need.program, path=_PATH)
    if place is None:
        what = _WHAT.get(name, name)
        raise LamellaError(
            f"{what} inside a volume needs {need.program}, which is not installed", hint=f"install {need.package}"
        )
    said = spawn.run(["ldd", place], timeout_seconds=_SECONDS).decode("utf-8", "replace")
    libraries = [Path(one) for one in _LIBRARY.findall(said)]
    folders = dict.fromkeys(one.parent for one in libraries)
    later = (folder / library for library in _OPENED_LATER for folder in folders)
    files: Files = {f"bin/{need.program}": _executable(Path(place))}
    for library in (*libraries, *(one for one in later if one.exists())):
        files[str(library).lstrip("/")] = _executable(library)
    return files


def _executable(place: Path) -> tuple[int, bytes]:
    try:
        return (stat.S_IFREG | 0o755, place.read_bytes())
    except OSError as error:
        raise LamellaError(f"cannot read {place}: {error.strerror}", obj=str(place)) from error
