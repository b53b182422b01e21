"""Makes what the tests of ZFS use in the guest: `.guest/zfs`, modules for its kernel and Debian's `zfs` programs.

    python3 tools/guest_zfs.py

Debian has ZFS as source only (zfs-dkms, component contrib), so the modules are built here: about four minutes of two
processors. What was built is kept in `~/.cache/lamella-guest`, by the versions of ZFS and of the kernel and by this
program; any of it may be deleted. Needs what tools/guest_kernel.py made and needs, gcc and make; every package is
downloaded and unpacked, none is installed, and apt's own lists of sources stay as they are. Standard library only.
"""

from __future__ import annotations

import hashlib
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
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    made = PLACE / "made-for"
    if made.exists() and made.read_text() == f"{version}-{recipe}":
        return 0
    with tempfile.TemporaryDirectory(prefix="lamella-zfs-") as place:
        kept = cached(Path(place), f"{version}-{recipe}")
        if not (kept / "made-for").exists():
            tree = unpacked(Path(place), version)
            keep(tree, built(tree, version), kept, f"{version}-{recipe}")
        shutil.rmtree(PLACE, ignore_errors=True)
        shutil.copytree(kept, PLACE)
    return 0


def cached(place: Path, ending: str) -> Path:
    """The directory for what is built of the newest ZFS; the newest that was built, if apt cannot say which it is."""
    place.chmod(0o755)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lamella-guest"
    try:
        lines = _run("apt-cache", *contrib(place), "policy", "zfs-dkms").splitlines()
        newest = next(line.split()[1] for line in lines if line.strip().startswith("Candidate:"))
    except SystemExit:
        found = sorted(cache.glob(f"zfs-*-{ending}"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise
        return found[-1]
    return cache / f"zfs-{newest}-{ending}"


def kernel_version() -> str:
    """The version of the guest's kernel, as its modules' directory says; empty if there is none."""
    found = sorted((GUEST / "lib/modules").glob("*"))
    return found[-1].name if found else ""


def unpacked(place: Path, version: str) -> Path:
    """Download the headers of the kernel and all of ZFS; unpack them below one directory."""
    common = version.rpartition("-")[0] + "-common"
    kbuild = "linux-kbuild-" + ".".join(version.split(".")[:2])
    _download(place, [], [f"linux-headers-{version}", f"linux-headers-{common}", kbuild])
    _download(place, contrib_options(place), PROGRAMS)
    tree = place / "tree"
    for package in sorted(place.glob("*.deb")):
        _run("dpkg-deb", "-x", str(package), str(tree))
    headers = tree / "usr/src" / f"linux-headers-{version}"
    (headers / "Makefile").write_text(f"include {tree}/usr/src/linux-headers-{common}/Makefile\n")
    return tree


def contrib(place: Path) -> list[str]:
    """Options by which apt knows Debian's component contrib, from wherever this machine gets its component main."""
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
    options = contrib_options(place)
    _run("apt-get", *options, "-o", "APT::Sandbox::User=root", "update", "-q")
    return options


def contrib_options(place: Path) -> list[str]:
    """Those options, when `contrib` has made what they name."""
    # PROGRAMS have libraries of the component main only outside of ZFS; those are this machine's own.
    options = ["-o", f"Dir::Etc::sourcelist={place / 'contrib.list'}", "-o", "Dir::Etc::sourceparts=/dev/null"]
    return [*options, "-o", f"Dir::State::lists={place / 'lists'}"]


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


def keep(tree: Path, source: Path, place: Path, made_for: str) -> None:
    """Copy modules without debugging data, programs and libraries to a new directory, which is whole or not there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".new-", dir=place.parent))
    (aside / "lib").mkdir()
    for name in MODULES:
        (path,) = source.glob(f"module/*/{name}.ko")
        _run("strip", "--strip-debug", "-o", str(aside / f"{name}.ko"), str(path))
    for library in tree.glob("**/*.so.*"):
        if library.is_file() and library.name.count(".") == 2:  # the names that programs ask for
            shutil.copyfile(library, aside / "lib" / library.name)
    for name in ("zfs", "zpool"):
        (path,) = (one for one in tree.glob(f"**/sbin/{name}") if one.is_file())
        shutil.copy(path, aside / name)
    (aside / "made-for").write_text(made_for)
    shutil.rmtree(place, ignore_errors=True)
    aside.rename(place)


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
