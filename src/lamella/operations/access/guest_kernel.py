"""The kernel that a guest boots, and its modules: this host's own, or those the user names."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from lamella.base.durable import make_private, write_durably
from lamella.base.errors import LamellaError, UsageError

BOOT, MODULES = Path("/boot"), Path("/lib/modules")
"""Where distributions keep kernels, and modules with or without their kernel."""
BASE = ("crc32c_generic", "virtio_pci", "virtio_blk", "virtio_console")
"""Modules that every guest needs. A module that a kernel lacks is taken to be built in."""
_DEVICES = BASE[1:]
"""Without these a guest finds neither its disk nor its port; how checksums are built in has changed over the years."""
_BOOT_MAGIC = b"HdrS"
_PVH_NOTES = tuple(struct.pack("<III4s", 4, width, 18, b"Xen") for width in (4, 8))
"""The ELF note of a kernel that starts uncompressed (XEN_ELFNOTE_PHYS32_ENTRY of xen/interface/elfnote.h)."""


class GuestKernel:
    """A kernel image and the directory of its modules; None where everything is built in."""

    def __init__(self, image: Path, modules: Path | None) -> None:
        self.image = image
        self.modules = modules
        self._needs: dict[str, list[str]] = {}
        if modules is not None:
            try:
                lines = (modules / "modules.dep").read_text("utf-8", "replace").splitlines()
            except OSError as error:
                raise LamellaError(f"cannot read {modules}/modules.dep: {error.strerror}", obj=str(modules)) from error
            self._needs = {path: rest.split() for path, _, rest in (line.partition(":") for line in lines)}
        self._places = {_module_name(path): path for path in self._needs}

    def absent_devices(self) -> list[str]:
        """What a guest needs of this kernel that is neither a module nor built in, as far as that can be told."""
        built_in = ""
        if self.modules is not None:
            with suppress(OSError):
                built_in = (self.modules / "modules.builtin").read_text("utf-8", "replace")
        known = {*self._places, *map(_module_name, built_in.splitlines())}
        absent = [name for name in _DEVICES if name not in known]
        if not absent:
            return []
        # The names of drivers stand in the kernel that they are built into.
        plain = _unpacked(self.image.read_bytes())
        return [name for name in absent if plain and not re.search(name.replace("_", "[_-]").encode(), plain)]

    def uncompressed(self, cache: Path) -> Path:
        """The kernel as QEMU starts it fastest: a guest without KVM takes seconds to decompress itself.

        Kept in the directory `cache`, which may be lost. Where this kernel has no such form, the image itself.
        """
        try:
            content = self.image.read_bytes()
            kept = cache / hashlib.sha256(content).hexdigest()
            if not kept.exists():
                plain = _payload(content)
                if plain is None:
                    return self.image
                make_private(cache)
                for old in cache.iterdir():
                    old.unlink()
                write_durably(kept, plain)
        except OSError:  # no room, or no right: the image does
            return self.image
        return kept

    def order(self, names: Sequence[str]) -> list[str]:
        """The files of these modules and of all that they need, below `modules`, in the order of loading."""
        found: list[str] = []
        for name in names:
            path = self._places.get(name.replace("-", "_"))
            if path is not None:  # otherwise built in, or not to be had: the guest will tell
                found += [one for one in (*reversed(self._needs[path]), path) if one not in found]
        return found

    def module(self, path: str) -> bytes:
        """The content of a module, decompressed. Raises LamellaError."""
        assert self.modules is not None
        place = self.modules / path
        try:
            return _plain(place.read_bytes(), place)
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise LamellaError(f"cannot read the module {place}: {error}", obj=str(place)) from error


def find_kernel(named: Path | None) -> GuestKernel:
    """The kernel that the user names, the one that runs here, or the newest that is installed.

    A container runs the kernel of its host, which it does not have. Raises UsageError, LamellaError.
    """
    image = named or next(_installed(os.uname().release), None)
    if image is None:
        hint = "install linux-image-amd64 (Debian) or kernel-core (Fedora), or name a kernel with --kernel FILE"
        raise LamellaError(f"there is no kernel in {BOOT}, as in most containers", obj=str(BOOT), hint=hint)
    if not image.is_file():
        raise UsageError(f"there is no kernel {image}", obj=str(image))
    version = _version(image)
    places = (image.parent, image.parent.parent, Path("/"))
    modules = next((p for top in places for p in _places(top, version) if (p / "modules.dep").is_file()), None)
    kernel = GuestKernel(image, modules)
    if absent := kernel.absent_devices():
        where = modules or image.parent / "lib/modules" / version
        hint = f"put the modules of this kernel in {where}, or name another kernel with --kernel FILE"
        raise UsageError(f"{image} has no modules {', '.join(absent)} for a guest", obj=str(image), hint=hint)
    return kernel


def _installed(release: str) -> Iterator[Path]:
    """The kernels of this host, best first."""
    found = [*BOOT.glob("vmlinuz-*"), *MODULES.glob("*/vmlinuz")]
    names = {path: path.name.removeprefix("vmlinuz-") if path.parent == BOOT else path.parent.name for path in found}
    kernels = [path for path in found if path.is_file() and "rescue" not in names[path]]
    yield from sorted(kernels, key=lambda path: (names[path] == release, _numbers(names[path])), reverse=True)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"[0-9]{1,9}", version)]


def _payload(image: bytes) -> bytes | None:
    """The kernel inside an image if it starts by itself."""
    plain = _unpacked(image)
    return plain if any(note in plain for note in _PVH_NOTES) else None


def _unpacked(image: bytes) -> bytes:
    """The kernel inside an image (boot.rst: setup_sects, payload_offset, payload_length); empty if nobody can tell."""
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = ((image[0x1F1] or 4) + 1) * 512 + offset
    packed = image[start : start + length]
    plain = b""
    with suppress(lzma.LZMAError, zlib.error, EOFError, LamellaError):
        if packed.startswith(b"\xfd7zXZ"):
            plain = lzma.LZMADecompressor().decompress(packed)  # the length follows it
        elif packed.startswith(b"\x1f\x8b"):
            plain = zlib.decompressobj(31).decompress(packed)
        elif packed.startswith(b"\x28\xb5\x2f\xfd"):
            plain = _unzstd(packed[:-4])
    return plain if plain.startswith(b"\x7fELF") else b""


def _places(top: Path, version: str) -> tuple[Path, ...]:
    return (top / "lib/modules" / version, top / "usr/lib/modules" / version)


def _version(image: Path) -> str:
    """The release in the header of a kernel image (Linux: Documentation/arch/x86/boot.rst). Raises LamellaError."""
    try:
        with image.open("rb") as file:
            head = file.read(0x10000)
    except OSError as error:
        hint = "run the command as root, or name a readable kernel with --kernel FILE"
        raise LamellaError(f"cannot read {image}: {error.strerror}", obj=str(image), hint=hint) from error
    if head[0x202:0x206] != _BOOT_MAGIC:
        raise UsageError(f"{image} is no kernel for this kind of processor", obj=str(image))
    start = struct.unpack_from("<H", head, 0x20E)[0] + 0x200
    return (head[start : start + 256].partition(b"\0")[0].split() or [b"?"])[0].decode("ascii", "replace")


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def _plain(content: bytes, place: Path) -> bytes:
    if place.suffix == ".xz":
        return lzma.decompress(content)
    if place.suffix == ".gz":
        return gzip.decompress(content)
    if place.suffix == ".zst":
        return _unzstd(content)
    return content


def _unzstd(content: bytes) -> bytes:
    from lamella.format.zstd_provider import load  # some distributions only

    name, provider = load()
    if name == "zstandard":
        return bytes(provider.ZstdDecompressor().decompressobj().decompress(content))
    return bytes(provider.decompress(content))
