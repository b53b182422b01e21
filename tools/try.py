"""Lamella's main job on a real disk image, with the installed command; `make try` runs this.

It builds an ext4 image from files of this machine, backs it up, changes the file system inside, backs up what changed,
verifies, and restores both moments with Lamella and the newest one with the program that lies in the repository. Every
restored image is compared byte by byte with a copy kept aside. Exit code 0 means that all of it held.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1 << 20
BLOCK = 4096
CONTENT_BYTES = 230 * MIB
FILE_BYTES_MAX = 24 * MIB
FILES_MAX = 12_000
CHANGE_BYTES = 3 * MIB
WORK_BYTES = 2200 * MIB
COMMAND_SECONDS = 120
NAME = "guest"


class Failed(Exception):
    """Something did not hold; the text says what."""


def step(name: str, work: Callable[[], str]) -> None:
    """Do `work` and print one line of the table: name, seconds, and what `work` returns."""
    started = time.perf_counter()
    facts = work()
    print(f"{name:<30} {time.perf_counter() - started:7.2f} s   {facts}", flush=True)


def mib(count: int) -> str:
    """A number of bytes as people read it."""
    return f"{count / MIB:.1f} MiB" if count >= MIB else f"{count / 1024:.1f} KiB"


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
    """Run a program to its end and return its output. Raises Failed if it is not content or takes too long."""
    shown = " ".join(command)
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{shown}: {error}") from error
    if done.returncode != 0:
        raise Failed(f"{shown}\nended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


# --- the image -------------------------------------------------------------------------------------------------------


def public_files(root: Path, seen: set[tuple[int, int]]) -> Iterator[tuple[Path, int]]:
    """Yield the files below `root` that everyone may read, once each, with their sizes."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            try:
                str(path).encode()
                facts = path.lstat()
            except (OSError, UnicodeEncodeError):
                continue
            public = stat.S_ISREG(facts.st_mode) and facts.st_mode & stat.S_IROTH and os.access(path, os.R_OK)
            if public and 0 < facts.st_size <= FILE_BYTES_MAX and (facts.st_dev, facts.st_ino) not in seen:
                seen.add((facts.st_dev, facts.st_ino))
                yield path, facts.st_size


def gather(tree: Path) -> tuple[int, int]:
    """Copy real files of this machine into `tree` up to the limits; return their number and bytes."""
    roots = [Path("/usr/share"), Path(sysconfig.get_path("stdlib")), Path("/usr/bin"), Path("/usr/lib")]
    seen: set[tuple[int, int]] = set()
    count = total = 0
    for number, root in enumerate(roots, 1):
        limit_bytes = CONTENT_BYTES * number // len(roots)
        limit_count = FILES_MAX * number // len(roots)
        for path, size in public_files(root, seen):
            if count >= limit_count:
                break
            if total + size > limit_bytes:
                continue
            target = tree / f"{number}-{root.name}" / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            count, total = count + 1, total + size
            if total > limit_bytes - BLOCK:
                break
    return count, total


def build_image(path: Path, work: Path) -> str:
    """Make the image and describe it. Without mkfs.ext4 it is a tar archive filled up to whole blocks."""
    tree = work / "tree"
    tree.mkdir()
    count, total = gather(tree)
    maker = shutil.which("mkfs.ext4")
    if maker:
        kind = "ext4"
        with path.open("wb") as image:
            image.truncate(max(300, total * 9 // 8 // MIB + 64) * MIB)
        run([maker, "-q", "-F", "-b", str(BLOCK), "-m", "0", "-d", str(tree), str(path)])
    else:
        kind = "tar (no mkfs.ext4 here, so not a file system)"
        with tarfile.open(path, "w") as archive:
            archive.add(tree, NAME)
        with path.open("r+b") as image:
            image.truncate(-(-path.stat().st_size // BLOCK) * BLOCK)
    shutil.rmtree(tree)
    facts = path.stat()
    return f"{kind}, {count} files; {mib(facts.st_size)}, {mib(facts.st_blocks * 512)} allocated"


def change_inside(image: Path, work: Path) -> str:
    """Change the image: by debugfs inside its file system, otherwise block by block. Return what was done."""
    debugfs = shutil.which("debugfs")
    if not debugfs or not shutil.which("mkfs.ext4"):
        return overwrite_blocks(image)
    new, commands, found = work / "new.bin", work / "debugfs.commands", work / "found.bin"
    new.write_bytes(secrets.token_bytes(CHANGE_BYTES))
    commands.write_text(f"mkdir added\nwrite {new} added/new.bin\ndump added/new.bin {found}\n")
    run([debugfs, "-w", "-f", str(commands), str(image)])
    # debugfs ends with 0 whatever happened.
    if not found.exists() or found.read_bytes() != new.read_bytes():
        raise Failed(f"debugfs did not write {new.name} into {image}")
    return f"a new file of {mib(CHANGE_BYTES)} inside the file system"


def overwrite_blocks(image: Path) -> str:
    """Overwrite some runs of blocks, far from each other."""
    runs = 12
    length = CHANGE_BYTES // runs // BLOCK * BLOCK
    stride = image.stat().st_size // runs // BLOCK * BLOCK
    with image.open("r+b") as content:
        for number in range(runs):
            content.seek(number * stride)
            content.write(secrets.token_bytes(length))
    return f"{runs} runs of {mib(length)} overwritten"


def compare(restored: Path, kept: Path) -> None:
    """Raise Failed unless both files hold the same bytes."""
    if restored.stat().st_size != kept.stat().st_size:
        raise Failed(f"{restored.name} has {restored.stat().st_size} bytes, {kept.name} has {kept.stat().st_size}")
    with restored.open("rb") as left, kept.open("rb") as right:
        offset = 0
        while block := left.read(4 * MIB):
            if block != right.read(4 * MIB):
                raise Failed(f"{restored.name} differs from {kept.name} in the 4 MiB from offset {offset}")
            offset += len(block)


# --- the command -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lamella:
    """The installed command, one repository, and places of its own for configuration, state and cache."""

    program: Path
    work: Path
    passphrase: str

    @property
    def repository(self) -> Path:
        """Where the repository lies."""
        return self.work / "repository"

    def environment(self) -> dict[str, str]:
        """The variables of every command: nothing of the user's Lamella is read or written."""
        kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "LC_ALL", "TMPDIR"}}
        places = {
            "HOME": "home",
            "LAMELLA_CONFIG": "config",
            "LAMELLA_STATE_DIR": "state",
            "LAMELLA_CACHE_DIR": "cache",
        }
        return kept | {name: str(self.work / place) for name, place in places.items()} | self.secret()

    def secret(self) -> dict[str, str]:
        """The variable that opens the repository."""
        return {"LAMELLA_PASSPHRASE": self.passphrase}

    def run(self, *arguments: str) -> str:
        """Run `lamella -r REPOSITORY ...` and return what it printed. Raises Failed."""
        return run([str(self.program), "-r", str(self.repository), *arguments], self.environment())

    def document(self, *arguments: str) -> dict[str, Any]:
        """Run a command with --json and return its document. Raises Failed."""
        text = self.run("--json", *arguments)
        try:
            found = json.loads(text)
        except ValueError as error:
            raise Failed(f"lamella --json {arguments[0]} printed no JSON: {text[:300]!r}") from error
        if not isinstance(found, dict) or found.get("schema") != "lamella/1" or found.get("command") != arguments[0]:
            raise Failed(f"lamella --json {arguments[0]} printed something else: {text[:300]!r}")
        return found

    def stored(self) -> str:
        """Size and number of the repository's objects."""
        sizes = [path.stat().st_size for path in self.repository.rglob("*") if path.is_file()]
        return f"repository {mib(sum(sizes))} in {len(sizes)} objects"


class Trial:
    """The main job, step by step, in the order of the methods."""

    def __init__(self, lamella: Lamella) -> None:
        self.lamella = lamella
        self.work = lamella.work
        self.image = self.work / f"{NAME}.img"
        self.snapshots: list[dict[str, Any]] = []

    def prepare(self) -> None:
        """Build the image, keep a copy, make the repository."""
        step("build a disk image", lambda: build_image(self.image, self.work))
        shutil.copyfile(self.image, self.work / "kept-first.img")
        step("init", self._init)

    def _init(self) -> str:
        sheet = self.work / "recovery-sheet.txt"
        self.lamella.run("init", "--recovery-sheet", str(sheet))
        if not sheet.exists() or sheet.stat().st_mode & 0o077:
            raise Failed("init wrote no recovery sheet, or one that others can read")
        return "passphrase and recovery sheet"

    def back_up_twice(self) -> None:
        """A full backup, one with nothing changed, a change, and a backup of that."""
        step("backup, first", self._backup)
        step("backup, nothing changed", self._backup)
        step("change the image", lambda: change_inside(self.image, self.work))
        step("backup, after the change", self._backup)
        first, same, changed = (int(snapshot["stored_bytes"]) for snapshot in self.snapshots)
        if same != 0:
            raise Failed(f"a backup of an unchanged image stored {same} bytes of data")
        if not 0 < changed <= first // 4:
            raise Failed(f"the first backup stored {first} bytes of data, the one after a small change {changed}")

    def _backup(self) -> str:
        made = self.lamella.document("backup", str(self.image))
        (row,) = made["volumes"]
        if made["result"] != "complete" or row["result"] != "complete" or row["volume"] != NAME:
            raise Failed(f"the backup is not complete: {made}")
        if row["source_bytes"] != self.image.stat().st_size:
            raise Failed(f"the backup saw {row['source_bytes']} bytes of {self.image.stat().st_size}")
        self.snapshots.append(made)
        written = f"stored {mib(made['stored_bytes'])} + {mib(made['metadata_bytes'])} metadata"
        return f"{row['mode']}: read {mib(row['read_bytes'])}, {written}; {self.lamella.stored()}"

    def look(self) -> None:
        """Ask the repository what it holds, and prove it."""
        first, last = f"{NAME}@{self.snapshots[0]['snapshot']}", f"{NAME}@{self.snapshots[-1]['snapshot']}"
        step("list", self._list)
        step("diff", lambda: f"{len(self.lamella.run('diff', first, last).splitlines())} lines")
        step("verify everything", self._verify)

    def _list(self) -> str:
        listed = {row["snapshot"] for row in self.lamella.document("list")["snapshots"]}
        made = {snapshot["snapshot"] for snapshot in self.snapshots}
        if listed != made:
            raise Failed(f"listed are {sorted(listed)}, made were {sorted(made)}")
        return f"{len(listed)} snapshots"

    def _verify(self) -> str:
        proof = self.lamella.document("verify", "--level", "full")
        if proof["findings"] or proof["unrestorable"]:
            raise Failed(f"verify found {proof['findings']}, unrestorable {proof['unrestorable']}")
        return f"{proof['checked_chunks']} chunks, {mib(proof['checked_bytes'])}: no findings"

    def restore_all(self) -> None:
        """Restore both moments with Lamella and the newest with the repository's own program; compare every byte."""
        first, last = self.work / "kept-first.img", self.image
        out = self.work / "restored.img"
        moment = f"{NAME}@{self.snapshots[0]['snapshot']}"
        step("restore the first", lambda: self._restore(moment, out))
        step("  compare", lambda: self._settle(out, first))
        step("restore the newest", lambda: self._restore(NAME, out))
        step("  compare", lambda: self._settle(out, last))
        step("restore without Lamella", lambda: self._rescue(out))
        step("  compare", lambda: self._settle(out, last))

    def _restore(self, selection: str, out: Path) -> str:
        self.lamella.run("restore", selection, "--to", str(out))
        return f"{mib(out.stat().st_size)}, {mib(out.stat().st_blocks * 512)} allocated"

    def _rescue(self, out: Path) -> str:
        folder = self.work / "emergency"
        folder.mkdir()
        program = folder / "lamella-restore.py"
        shutil.copyfile(self.lamella.repository / "restore.py", program)
        command = [sys.executable, "-I", "-S", str(program), "restore", NAME]
        command += ["--repo", str(self.lamella.repository), "--to", str(out)]
        run(command, {"PATH": os.environ.get("PATH", os.defpath)} | self.lamella.secret())
        return "bare Python and the restore.py of the repository"

    def _settle(self, out: Path, kept: Path) -> str:
        compare(out, kept)
        checker = shutil.which("e2fsck") if shutil.which("mkfs.ext4") else None
        if checker:
            run([checker, "-f", "-n", str(out)])
        out.unlink()
        return "every byte equal" + ("; the file system inside is sound" if checker else "")


def roomy_folder() -> Path | None:
    """The first usual place for temporary files with enough room, or None."""
    for place in (tempfile.gettempdir(), "/var/tmp", "."):
        if os.access(place, os.W_OK) and shutil.disk_usage(place).free >= WORK_BYTES:
            return Path(place)
    return None


def attempt(work: Path) -> None:
    """Run the whole job in `work`. Raises Failed at the first thing that does not hold."""
    program = Path(sys.executable).with_name("lamella")
    if not program.exists():
        raise Failed(f"{program} is not installed; `make try` installs it")
    trial = Trial(Lamella(program, work, secrets.token_urlsafe(24)))
    for stage in (trial.prepare, trial.back_up_twice, trial.look, trial.restore_all):
        try:
            stage()
        except KeyError as error:
            raise Failed(f"a document of lamella --json lacks the key {error}") from error


def main() -> int:
    """Read the arguments, run the job, clean up; return the exit code."""
    parser = argparse.ArgumentParser(description="Try Lamella on a real disk image.")
    parser.add_argument("--keep", action="store_true", help="leave the images and the repository where they were made")
    parser.add_argument("--work", type=Path, metavar="DIR", help=f"work below DIR, which needs {mib(WORK_BYTES)}")
    arguments = parser.parse_args()
    place = arguments.work or roomy_folder()
    if place is None:
        print(f"no place for temporary files has {mib(WORK_BYTES)} free; name one with --work DIR", file=sys.stderr)
        return 1
    work = Path(tempfile.mkdtemp(prefix="lamella-try-", dir=place))
    started = time.perf_counter()
    try:
        attempt(work)
    except Failed as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    finally:
        if arguments.keep:
            print(f"kept: {work}")
        else:
            shutil.rmtree(work)
    print(f"\nEverything held: {time.perf_counter() - started:.1f} s in all.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
