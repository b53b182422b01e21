"""The start of a guest: a request, and the initramfs of busybox, the modules of its devices and a script.

The guest mounts one file system of the disk for writing, so that its journal is replayed, and sends what was asked for
through a serial port of virtio. Lines of ours begin with a word that nobody who wrote the disk could know.
"""

from __future__ import annotations

import shlex
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from lamella.base.errors import LamellaError
from lamella.operations.access.guest_kernel import BASE, GuestKernel
from lamella.operations.access.guest_script import START

Files = dict[str, tuple[int, bytes]]
"""Path in an archive -> mode and content."""


class What(Enum):
    """The kinds of questions to a guest."""

    LIST = "list"
    """The entries of directories."""
    WALK = "walk"
    """Everything below directories."""
    GET = "get"
    """Files and directories with all that is in them."""
    COMPARE = "compare"
    """Everything below directories, with all times; then checksums of the content of files that the host names."""
    SCRUB = "scrub"
    """Nothing: what fits the patterns in place of paths is removed, and the space is given back to the disk."""


@dataclass(frozen=True, slots=True)
class GuestRequest:
    """A request to a guest. `paths` are relative to the root of the file system, and begin with `./`, or patterns."""

    what: What
    paths: tuple[str, ...]
    nonce: str
    partition: str = ""
    """A partition's number, VG/LV, or `disk` for the whole disk; empty where only one file system can be meant."""
    seconds: int = 600
    """The guest ends by itself after this time."""
    memory_mib: int = 512
    disks: int = 1
    """Disks that are served one after the other, each with an answer of its own."""

    def script(self) -> str:
        """The request as the guest's shell reads it."""
        disks = " ".join(f"vd{chr(ord('a') + number)}" for number in range(self.disks))
        words = {"NONCE": self.nonce, "WHAT": self.what.value, "PARTITION": self.partition, "DISKS": disks}
        lines = [f"{name}={shlex.quote(word)}" for name, word in words.items()]
        lines.append(f"SECONDS_MOST={self.seconds}")
        return "\n".join(lines) + "\n"


def initramfs(kernel: GuestKernel, request: GuestRequest) -> bytes:
    """The archive that the kernel unpacks and starts. Raises LamellaError for what is missing on this host."""
    files: Files = {name: (stat.S_IFDIR | 0o755, b"") for name in ("bin", "dev", "order", "modules", "tmp")}
    files["bin/busybox"] = (stat.S_IFREG | 0o755, _busybox())
    files["init"] = (stat.S_IFREG | 0o755, START.encode())
    files["request"] = (stat.S_IFREG | 0o600, request.script().encode())
    wanted = shlex.join(["set", "--", *request.paths])
    files["paths"] = (stat.S_IFREG | 0o600, f"{wanted}\n".encode("utf-8", "surrogateescape"))
    return archive(with_modules(files, kernel, "base", BASE))


def with_modules(files: Files, kernel: GuestKernel, name: str, modules: Sequence[str]) -> Files:
    """Add these modules with all that they need, and their order under a name that the guest's script knows."""
    paths = kernel.order(modules)
    names = [path.rpartition("/")[2].partition(".ko")[0] + ".ko" for path in paths]
    files[f"order/{name}"] = (stat.S_IFREG | 0o644, "".join(f"{one}\n" for one in names).encode())
    files |= {
        f"modules/{one}": (stat.S_IFREG | 0o644, kernel.module(path)) for one, path in zip(names, paths, strict=True)
    }
    return files


def archive(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """A cpio archive, `newc` (Linux: Documentation/driver-api/early-userspace/buffer-format.rst): name, mode, bytes."""
    rows: Sequence[tuple[str, tuple[int, bytes]]] = [*files.items(), ("TRAILER!!!", (0, b""))]
    out = bytearray()
    for number, (name, (mode, content)) in enumerate(rows, 1):
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)
    return bytes(out)


def _busybox() -> bytes:
    hint = "install busybox-static (Debian) or busybox (Fedora)"
    place = shutil.which("busybox")
    if place is None:
        raise LamellaError("busybox, the program of the guest, is not installed", hint=hint)
    program = Path(place).read_bytes()
    if b"/ld-linux" in program[:4096] or b"/ld-musl" in program[:4096]:
        raise LamellaError(f"{place} needs libraries, which a guest does not have", obj=place, hint=hint)
    return program
