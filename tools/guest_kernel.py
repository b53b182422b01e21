"""Makes what the tests in tests/guest boot: `.guest/vmlinuz` and `.guest/initrd`, from a kernel package of Debian.

    python3 tools/guest_kernel.py

Needs apt-get, dpkg-deb, depmod and busybox-static; the package is downloaded and unpacked, not installed. The initrd
holds busybox and the modules for a root file system shared by 9p and for thin volumes. Standard library only.
"""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / ".guest"
META_PACKAGE = "linux-image-amd64"

# crc32c_generic first: libcrc32c asks for the algorithm when it is loaded.
MODULES = [
    "crc32c_generic", "virtio_pci", "virtio_blk", "9pnet_virtio", "9p", "overlay", "loop", "ext4",
    "dm-mod", "dm-thin-pool", "dm-snapshot", "dm-flakey", "nbd",
]  # fmt: skip

# Kept beside the kernel for `lamella files`, which makes an initramfs of its own.
FOR_FILES = [
    "virtio_console", "xfs", "btrfs", "vfat", "nls_cp437", "nls_iso8859-1", "nls_ascii", "nls_utf8", "exfat", "fuse",
    "dm-mirror", "dm-raid", "dm-crypt", "algif_skcipher", "aes_generic", "aesni_intel", "xts", "cbc", "ecb", "essiv",
    "sha256_generic",
]  # fmt: skip

INIT = r"""#!/bin/sh
B=/bin/busybox
$B mount -t proc proc /proc; $B mount -t sysfs sys /sys; $B mount -t devtmpfs dev /dev
for m in $($B cat /order); do $B insmod /modules/$m || echo "insmod $m failed"; done
$B mount -t tmpfs tmpfs /rw; $B mkdir /rw/upper /rw/work
$B mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 hostroot /host || $B poweroff -f
$B mount -t overlay -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work overlay /new
for d in proc sys dev; do $B mkdir -p /new/$d; $B mount --move /$d /new/$d; done
$B mount -t tmpfs run /new/run
$B mkdir -p /new/dev/pts /new/dev/shm /new/run/out
$B mount -t devpts pts /new/dev/pts; $B mount -t tmpfs shm /new/dev/shm
$B mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 out /new/run/out || $B poweroff -f
$B cp $B /new/run/busybox
exec $B switch_root /new /run/busybox sh /run/out/start
"""


def main() -> int:
    """Build, unless it is there already."""
    if all((PLACE / name).exists() for name in ("vmlinuz", "initrd", "lib")) and _listed() == _list():
        return 0
    if os.uname().machine != "x86_64" or not all(map(shutil.which, ("apt-get", "dpkg-deb", "depmod", "busybox"))):
        print("guest kernel: needs Debian on amd64 with dpkg-deb, depmod and busybox", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="lamella-kernel-") as place:
        tree = unpacked_package(Path(place))
        PLACE.mkdir(exist_ok=True)
        (kernel,) = (tree / "boot").glob("vmlinuz-*")
        initrd = archive(initrd_files(tree))
        for name, content in (("vmlinuz", kernel.read_bytes()), ("initrd", gzip.compress(initrd, 1))):
            aside = PLACE / f"{name}.new"
            aside.write_bytes(content)
            aside.rename(PLACE / name)
        keep_modules(tree)
    return 0


def keep_modules(tree: Path) -> None:
    """Copy the modules of file systems, and all they need, to `.guest/lib/modules`."""
    modules = _modules_of(tree)
    text = (modules / "modules.dep").read_text()
    place = PLACE / "lib/modules" / modules.name
    shutil.rmtree(PLACE / "lib", ignore_errors=True)
    place.mkdir(parents=True)
    for path in load_order(text, [*MODULES, *FOR_FILES]):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(modules / path, place / path)
    kept = [line for line in text.splitlines() if (place / line.partition(":")[0]).exists()]
    (place / "modules.dep").write_text("".join(f"{line}\n" for line in kept))
    (PLACE / "lib" / "list").write_text(_list())


def _list() -> str:
    return "".join(f"{name}\n" for name in (*MODULES, *FOR_FILES))


def _listed() -> str:
    """The modules for which the kernel that is there was made."""
    place = PLACE / "lib" / "list"
    return place.read_text() if place.exists() else ""


def unpacked_package(place: Path) -> Path:
    """Download the kernel package that Debian's meta package stands for, and unpack it."""
    place.chmod(0o755)
    names = kernel_packages()
    if not names and os.geteuid() == 0:
        _run("apt-get", "update", "-q", "-o", "DPkg::Lock::Timeout=120")
        names = kernel_packages()
    if not names:
        raise SystemExit(f"guest kernel: no package {META_PACKAGE} is known; run apt-get update")
    _run("apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", names[0], cwd=place)
    (package,) = place.glob("*.deb")
    tree = place / "tree"
    _run("dpkg-deb", "-x", str(package), str(tree))
    return tree


def kernel_packages() -> list[str]:
    """The package that the meta package stands for, as far as the lists of packages say."""
    done = subprocess.run(["apt-cache", "depends", META_PACKAGE], capture_output=True, text=True, check=False)
    lines = [line.strip() for line in done.stdout.splitlines()]
    return [line.split()[1] for line in lines if line.startswith("Depends: linux-image-")]


def initrd_files(tree: Path) -> dict[str, tuple[int, bytes]]:
    """Path -> mode and content of everything in the initrd."""
    modules = _modules_of(tree)
    files: dict[str, tuple[int, bytes]] = {}
    for directory in ("bin", "dev", "proc", "sys", "host", "rw", "new", "modules"):
        files[directory] = (stat.S_IFDIR | 0o755, b"")
    busybox = shutil.which("busybox")
    assert busybox is not None
    program = Path(busybox).read_bytes()
    if b"/ld-linux" in program[:4096]:
        raise SystemExit("guest kernel: busybox needs libraries; install busybox-static instead")
    files["bin/busybox"] = (stat.S_IFREG | 0o755, program)
    files["bin/sh"] = (stat.S_IFLNK | 0o777, b"busybox")
    files["init"] = (stat.S_IFREG | 0o755, INIT.encode())
    order = load_order((modules / "modules.dep").read_text())
    for path in order:
        files[f"modules/{_plain_name(path)}"] = (stat.S_IFREG | 0o644, _module(modules / path))
    files["order"] = (stat.S_IFREG | 0o644, "".join(f"{_plain_name(path)}\n" for path in order).encode())
    return files


def _modules_of(tree: Path) -> Path:
    top = next(path for path in (tree / "lib/modules", tree / "usr/lib/modules") if path.is_dir())
    (modules,) = top.iterdir()
    if not (modules / "modules.dep").exists():
        _run("depmod", "-b", str(top.parents[1] if top.parts[-3] == "usr" else tree), modules.name)
    return modules


def load_order(dependencies: str, names: list[str] = MODULES) -> list[str]:
    """The files of these modules and all they need, each after what it needs, from the text of modules.dep."""
    needs = {path: rest.split() for path, _, rest in (line.partition(":") for line in dependencies.splitlines())}
    places = {_plain_name(path).removesuffix(".ko").replace("_", "-"): path for path in needs}
    order: list[str] = []
    for name in names:
        path = places.get(name.replace("_", "-"))
        if path is None:  # built into this kernel
            continue
        order += [one for one in (*reversed(needs[path]), path) if one not in order]
    return order


def archive(files: dict[str, tuple[int, bytes]]) -> bytes:
    """A cpio archive as the kernel unpacks it (Linux: driver-api/early-userspace/buffer-format.rst, `newc`)."""
    out = bytearray()
    for number, (name, (mode, content)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)
    return bytes(out)


def _plain_name(path: str) -> str:
    return Path(path).name.partition(".ko")[0] + ".ko"


def _module(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def _run(*words: str, cwd: Path | None = None) -> str:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"guest kernel: {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
