"""Makes what the tests of ZFS use in the guest: `.guest/zfs`, modules for its kernel and Debian's `zfs` programs.

    python3 tools/guest_zfs.py

Debian has ZFS as source only (zfs-dkms, component contrib), so the modules are built here: about four minutes on two
quiet processors. Needs what tools/guest_kernel.py made and needs, gcc and make; every package is downloaded and
unpacked, none is installed, and apt's own lists of sources stay as they are. Standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GUEST = ROOT / ".guest"
PLACE = GUEST / "zfs"

MODULES = ["spl", "zavl", "znvpair", "zunicode", "zcommon", "icp", "zlua", "zzstd", "zfs"]
"""In the order they are loaded."""
PROGRAMS = ["zfs-dkms", "zfsutils-linux", "libzfs4linux", "libzpool5linux", "libnvpair3linux", "libuutil3linux"]


_FLAGS = {"KCFLAGS": "-g0 -O1"}
"""For the compiler: tests need neither debugging data nor speed, and without them a fifth of the time goes."""


def main() -> int:
    """Build, unless it is there already for the guest's kernel."""
    version = kernel_version()
    if not version or not all(map(shutil.which, ("apt-get", "dpkg-deb", "gcc", "make", "strip"))):
        print("guest zfs: needs the guest's kernel, apt-get, dpkg-deb, gcc, make and binutils", file=sys.stderr)
        return 1
    made = PLACE / "made-for"
    if made.exists() and made.read_text() == version:
        return 0
    with tempfile.TemporaryDirectory(prefix="lamella-zfs-") as place:
        tree = unpacked(Path(place), version)
        source = built(tree, version)
        shutil.rmtree(PLACE, ignore_errors=True)
        keep(tree, source)
        made.write_text(version)
    return 0


def kernel_version() -> str:
    """The version of the guest's kernel, as its modules' directory says; empty if there is none."""
    found = sorted((GUEST / "lib/modules").glob("*"))
    return found[-1].name if found else ""


def unpacked(place: Path, version: str) -> Path:
    """Download the headers of the kernel and all of ZFS; unpack them below one directory."""
    place.chmod(0o755)
    common = version.rpartition("-")[0] + "-common"
    kbuild = "linux-kbuild-" + ".".join(version.split(".")[:2])
    _download(place, [], [f"linux-headers-{version}", f"linux-headers-{common}", kbuild])
    _download(place, contrib(place), PROGRAMS)
    tree = place / "tree"
    for package in sorted(place.glob("*.deb")):
        _run("dpkg-deb", "-x", str(package), str(tree))
    headers = tree / "usr/src" / f"linux-headers-{version}"
    (headers / "Makefile").write_text(f"include {tree}/usr/src/linux-headers-{common}/Makefile\n")
    return tree


def contrib(place: Path) -> list[str]:
    """Options that make apt know Debian's component contrib, from wherever this machine gets its component main."""
    words = ["--format", "$(SITE) $(CODENAME) $(SUITE)", "Created-By: Packages", "Component: main", "Origin: Debian"]
    for line in _run("apt-get", "indextargets", *words).splitlines():
        site, codename, _ = line.split()
        if "-" not in codename:
            break
    else:
        raise SystemExit("guest zfs: apt knows no source of Debian")
    lists, sources = place / "lists", place / "contrib.list"
    (lists / "partial").mkdir(parents=True)
    key = "/usr/share/keyrings/debian-archive-keyring.gpg"
    sources.write_text(f"deb [signed-by={key}] {site} {codename} contrib\n")
    options = ["-o", f"Dir::Etc::sourcelist={sources}", "-o", "Dir::Etc::sourceparts=/dev/null"]
    options += ["-o", f"Dir::State::lists={lists}"]
    # PROGRAMS have libraries of the component main only outside of ZFS; those are this machine's own.
    _run("apt-get", *options, "-o", "APT::Sandbox::User=root", "update", "-q")
    return options


def built(tree: Path, version: str) -> Path:
    """Configure and make the modules; return the directory of the source."""
    (source,) = (tree / "usr/src").glob("zfs-*")
    headers = tree / "usr/src" / f"linux-headers-{version}"
    common = headers.with_name(f"linux-headers-{version.rpartition('-')[0]}-common")
    (source / "configure").chmod(0o755)
    for script in (source / "config").glob("*"):
        script.chmod(0o755)
    _run("./configure", "--with-config=kernel", f"--with-linux={common}", f"--with-linux-obj={headers}", cwd=source)
    _run("make", "-s", f"-j{os.cpu_count() or 1}", cwd=source)
    return source


def keep(tree: Path, source: Path) -> None:
    """Copy modules without debugging data, programs and libraries to `.guest/zfs`."""
    (PLACE / "lib").mkdir(parents=True)
    for name in MODULES:
        (path,) = source.glob(f"module/*/{name}.ko")
        _run("strip", "--strip-debug", "-o", str(PLACE / f"{name}.ko"), str(path))
    for library in tree.glob("**/*.so.*"):
        if library.is_file() and library.name.count(".") == 2:  # the names that programs ask for
            shutil.copyfile(library, PLACE / "lib" / library.name)
    for name in ("zfs", "zpool"):
        (path,) = (one for one in tree.glob(f"**/sbin/{name}") if one.is_file())
        shutil.copy(path, PLACE / name)


def _download(place: Path, options: list[str], packages: list[str]) -> None:
    _run("apt-get", *options, "-o", "APT::Sandbox::User=root", "download", "-q", *packages, cwd=place)


def _run(*words: str, cwd: Path | None = None) -> str:
    environment = {**os.environ, **_FLAGS}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-5:]
        raise SystemExit(f"guest zfs: {' '.join(words)}: {' | '.join(said)}")
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
