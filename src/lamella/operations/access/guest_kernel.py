"""The kernel that a guest boots, and its modules: this host's own, or those the user names."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lamella.base.durable import make_private, write_durably
from lamella.base.errors import LamellaError, UsageError

BASE = ("crc32c_generic", "virtio_pci", "virtio_blk", "virtio_console")
"""What every guest needs. A module that a kernel does not have is taken to be built into it."""
FILE_SYSTEMS = {
    "ext4": ("ext4",),
    "xfs": ("xfs",),
    "btrfs": ("btrfs",),
    "vfat": ("vfat", "nls_cp437", "nls_iso8859-1", "nls_ascii"),
    "exfat": ("exfat",),
    "ntfs3": ("ntfs3",),
}
"""The kernel's name of a file system -> the modules that read it."""

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
    """The kernel that the user names, or the one that runs here. Raises UsageError, LamellaError."""
    release = os.uname().release
    candidates = [named] if named else [Path(f"/boot/vmlinuz-{release}"), Path(f"/lib/modules/{release}/vmlinuz")]
    image = next((path for path in candidates if path.is_file()), None)
    if image is None:
        if named is not None:
            raise UsageError(f"there is no kernel {named}", obj=str(named))
        hint = "name a kernel with --kernel FILE; its modules are looked for in lib/modules beside it or above it"
        raise LamellaError(f"the kernel that runs here, {release}, is not in /boot", hint=hint)
    version = _version(image)
    places = (image.parent, image.parent.parent, Path("/"))
    modules = next((p for top in places for p in _places(top, version) if (p / "modules.dep").is_file()), None)
    return GuestKernel(image, modules)


def _payload(image: bytes) -> bytes | None:
    """The kernel inside an image (boot.rst: setup_sects, payload_offset, payload_length) if it starts by itself."""
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
    return plain if plain.startswith(b"\x7fELF") and any(note in plain for note in _PVH_NOTES) else None


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
