"""A small repository in which everything has a place of its own, a list of what may rot in it, and the oracle.

Three snapshots of `v` (three levels of nodes, documents) and of `w` by the maker, one of `x` by another host. Each
snapshot of `v` has a chunk, a leaf, an inner node, a document and a pack that only it needs; there are others that all
of them need.
Commands run in this process, the oracle (rescue.py, and the bytes that were backed up) in one of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from lamella import rescue
from lamella.cli.main import main
from tests.cli.program import Done
from tests.fault.world import CHUNK, KEY

DAY_MS = 86_400_000
NOW_MS = 1_782_907_200_000
"""2026-07-01T12:00:00Z: three snapshots within one year, whenever the tests run."""
DAYS = {"oldest": 40, "middle": 20, "newest": 0}
AGES = (*DAYS, "shared")
HOSTS = ("maker", "other", "fresh")
FAR = 64 * 64
"""A chunk below another inner node than chunk 0."""

Chunks = Mapping[int, bytes]
SHARED: Chunks = {0: b"shared", 1: b"common", 70: b"all"}


def contents(age: str) -> dict[str, Chunks]:
    """What the maker's volumes hold at one age: by volume, its chunks."""
    return {
        "v": {**SHARED, FAR: age.encode() + b"!", FAR + 1: b"2 " + age.encode()},
        "w": {0: b"w", 1: b"w" + age.encode()},
    }


def write_volume(path: Path, chunks: Chunks) -> Path:
    """An image that is a hole but for these chunks, each filled with its text."""
    with path.open("wb") as file:
        file.truncate((max(chunks) + 3) * CHUNK - 1000)
        for number, word in chunks.items():
            file.seek(number * CHUNK)
            file.write((word * CHUNK)[:CHUNK])
    return path


def same(one: Path, other: Path) -> bool:
    """Whether two files have equal bytes; holes are skipped."""
    if not one.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        return all(
            os.pread(first.fileno(), end - start, start) == os.pread(second.fileno(), end - start, start)
            for start, end in {*_extents(first.fileno()), *_extents(second.fileno())}
        )


def _extents(held: int) -> Iterator[tuple[int, int]]:
    end = 0
    with contextlib.suppress(OSError):  # no data from there on
        while True:
            start = os.lseek(held, end, os.SEEK_DATA)
            end = os.lseek(held, start, os.SEEK_HOLE)
            yield start, end


_DRIVER = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("restore", sys.argv[1])
reader = importlib.util.module_from_spec(spec)
sys.modules["restore"] = reader
spec.loader.exec_module(reader)
print(json.dumps([reader.main(words) for words in json.load(sys.stdin)]))
"""


@dataclass(frozen=True)
class Wanted:
    """What was backed up once: a volume's image, or a document of it."""

    volume: str
    age: str
    document: str = ""


@dataclass
class World:
    """The repository, its hosts and its truth, all below one place: hosts know a repository by where it lies."""

    place: Path
    patches: Mapping[str, object] = field(default_factory=dict)
    """Constants of the product, by name, that make small repositories have what large ones have."""
    names: dict[str, str] = field(default_factory=dict)
    """The snapshot of each age."""
    truth: dict[Wanted, Path] = field(default_factory=dict)
    called: dict[str, str] = field(default_factory=dict)
    """Volumes that have another name now."""
    days_ago: float = 0

    @property
    def repo(self) -> Path:
        return self.place / "live" / "repository"

    @property
    def key(self) -> Path:
        return self.place / "key"

    @property
    def second(self) -> Path:
        """Another repository, empty, that the same key opens."""
        return self.place / "live" / "second"

    def at(self, volume: str, age: str) -> str:
        """VOLUME@FULLNAME."""
        return f"{self.called.get(volume, volume)}@{self.names[age if volume != 'x' else 'x']}"

    # -- running -------------------------------------------------------------------------------------------------------

    def run(self, host: str, *words: str | Path) -> Done:
        """One command on a host, in this process."""
        env = {
            "HOME": str(self.place),
            "LAMELLA_REPO": str(self.repo),
            "LAMELLA_CONFIG": str(self.place / "no-configuration"),
            "LAMELLA_STATE_DIR": str(self.place / "live" / host / "state"),
            "LAMELLA_CACHE_DIR": str(self.place / "live" / host / "cache"),
        }
        out, err = io.StringIO(), io.StringIO()
        with self._patched(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["--keyfile", str(self.key), *map(str, words)], env)
        assert "internal error" not in err.getvalue(), err.getvalue()
        return Done(code, out.getvalue(), err.getvalue())

    def ok(self, host: str, *words: str | Path) -> Done:
        """A command that must end with 0."""
        done = self.run(host, *words)
        assert done.code == 0, (words, done)
        return done

    @contextlib.contextmanager
    def _patched(self) -> Iterator[None]:
        moment_ns = NOW_MS * 1_000_000 - int(self.days_ago * DAY_MS) * 1_000_000
        clock = SimpleNamespace(
            time_ns=lambda: moment_ns,
            clock_gettime=lambda clock: moment_ns / 1e9,
            CLOCK_BOOTTIME=0,
            CLOCK_REALTIME=0,
        )
        with contextlib.ExitStack() as held:
            held.enter_context(mock.patch("lamella.base.clock.time", clock))
            for name, value in self.patches.items():
                held.enter_context(mock.patch(name, value))
            yield

    def rescue(self, *words: str | Path) -> Done:
        """The emergency reader as a person runs it: alone, without this project and its environment."""
        program = self.place / "restore.py"
        done = subprocess.run(
            [sys.executable, "-I", "-S", program, *words, "--repo", self.repo, "--keyfile", self.key],
            capture_output=True,
            text=True,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def whole(self, repo: Path | None = None) -> dict[Wanted, bool]:
        """Of everything that was ever backed up: whether the oracle gives its right bytes now."""
        out = self.place / "oracle"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        calls = []
        for number, wanted in enumerate(self.truth):
            words = [
                "restore",
                self.at(wanted.volume, wanted.age),
                "--to",
                str(out / str(number)),
                "--repo",
                str(repo or self.repo),
            ]
            words += ["--document", wanted.document] if wanted.document else []
            calls.append([*words, "--keyfile", str(self.key)])
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _DRIVER, self.place / "restore.py"],
            input=json.dumps(calls),
            capture_output=True,
            text=True,
            check=True,
        )
        codes = json.loads(done.stdout)
        return {
            wanted: codes[number] in {0, 21} and same(out / str(number), image)
            for number, (wanted, image) in enumerate(self.truth.items())
        }

    # -- building ------------------------------------------------------------------------------------------------------

    def build(self) -> World:
        """Make it, and keep a copy to begin again from."""
        self.place.mkdir(parents=True, exist_ok=True)
        self.key.write_bytes(KEY)
        self.key.chmod(0o600)
        shutil.copy(rescue.__file__, self.place / "restore.py")
        (self.place / "truth").mkdir()
        self.days_ago = 60
        self.repo.parent.mkdir()
        self.ok("maker", "init", "-q", "--recovery-sheet", self.place / "sheet")
        self.ok("maker", "init", "-q", "--recovery-sheet", self.place / "sheet2", "-r", self.second)
        self.sources("shared")
        self.ok("maker", *self.backup_words())
        first = self._newest("v")
        for age, days in DAYS.items():
            self.days_ago = days
            if age == "newest":
                self._others_volume()
            self.names[age] = self.back_up(age)
            if age == "oldest":
                self.ok("maker", "delete", f"v@{first}", f"w@{first}", "-y")
        self.ok("other", "list")
        shutil.copytree(self.place / "live", self.place / "base")
        return self

    def back_up(self, age: str) -> str:
        """The maker saves what its volumes hold at that age. Returns the snapshot's name."""
        self.sources(age)
        self.ok("maker", *self.backup_words())
        for path in (self.place / "src").iterdir():
            wanted = Wanted("v", age, path.name) if path.suffix != ".img" else Wanted(path.stem, age)
            if wanted.volume != "x":
                self.truth[wanted] = self.place / "truth" / f"{age}-{path.name}"
                subprocess.run(["cp", "--sparse=always", path, self.truth[wanted]], check=True)
        return self._newest("v")

    def sources(self, age: str) -> None:
        """Let the maker's volumes be what they were at that age."""
        folder = self.place / "src"
        folder.mkdir(exist_ok=True)
        for name, chunks in contents(age).items():
            write_volume(folder / f"{name}.img", chunks)
        (folder / "own").write_text(f"<settings of='{age}'/>" * 9)
        (folder / "same").write_text("<never changes/>" * 9)

    def backup_words(self) -> list[str | Path]:
        """The command that saves the maker's volumes."""
        folder = self.place / "src"
        documents = [word for name in ("own", "same") for word in ("--document", f"{name}={folder / name}")]
        # Another host saves them as the maker: else its volumes would be others of the same names.
        words: list[str | Path] = [
            "backup",
            folder / "v.img",
            folder / "w.img",
            "--adopt",
            "--chunk-size",
            "64K",
            "--workers",
            "1",
        ]
        return [*words, *documents]

    def _others_volume(self) -> None:
        self.days_ago += 10
        image = write_volume(self.place / "truth" / "x.img", {0: b"x"})
        self.ok("other", "backup", image, "--chunk-size", "64K", "--workers", "1")
        self.names["x"] = self._newest("x")
        self.truth[Wanted("x", "newest")] = image
        self.days_ago -= 10

    def _newest(self, volume: str) -> str:
        rows = json.loads(self.ok("maker", "list", volume, "--json").out)["snapshots"]
        return str(rows[-1]["snapshot"])

    def reset(self, state: str = "base") -> None:
        """Begin again from a kept state."""
        self.called.clear()
        shutil.rmtree(self.place / "live")
        shutil.copytree(self.place / state, self.place / "live")

    def keep(self, state: str) -> None:
        """Keep the state as it is now under a name."""
        shutil.rmtree(self.place / state, ignore_errors=True)
        shutil.copytree(self.place / "live", self.place / state)

    def objects(self) -> dict[str, bytes]:
        """Every object of the repository but the reserve."""
        files = [path for path in self.repo.rglob("*") if path.is_file() and "tmp" not in path.parts]
        return {str(path.relative_to(self.repo)): path.read_bytes() for path in files}
