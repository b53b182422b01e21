"""Mutated archives through the command itself: `python -m tests.imports.mutated_imports --cases 2000 wyng ct pbs qvm`.

By hand; every case imports into an empty repository, in this process. Whatever somebody changed: the command ends with
a code of its table and with errors of one line; what it says is stored is what is stored; and every tenth time all of
that is restored, and must be what was saved.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lamella.cli.main import main as command
from lamella.imports.wyng import keys
from tests.imports import qvm_backups, wyng_archives
from tests.imports.pbs_store import PbsStore, filled
from tests.imports.test_wyng_reading import mutated

_CODES = {0, 2, 3, 10, 12}
Words = Sequence[str | Path]
Saved = set[tuple[str, bytes]]


class _Archive(NamedTuple):
    words: Words
    files: list[Path]
    """What may be changed."""
    secret: str


class _Case(NamedTuple):
    """A repository of its own; `key` opens it."""

    place: Path
    key: Path
    secret: str

    def run(self, *words: str | Path) -> tuple[int, dict[str, Any], str]:
        """Exit code, document and standard error of a command."""
        places = {f"LAMELLA_{name}": str(self.place / name) for name in ("REPO", "STATE_DIR", "CACHE_DIR", "CONFIG")}
        env = {"PATH": os.environ["PATH"], "HOME": str(self.place), "LAMELLA_FROM_PASSPHRASE": self.secret, **places}
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command(["--json", "--keyfile", str(self.key), *map(str, words)], env)
        return code, json.loads(out.getvalue()), err.getvalue()

    def contents(self, rows: Sequence[dict[str, Any]]) -> Saved:
        """What was stored, by session."""
        found, target = Saved(), self.place / "out"
        for row in rows:
            if not row["volume"].endswith(":settings"):
                selected = f"{row['volume']}@{row['snapshot']}"
                assert self.run("restore", selected, "--to", target, "--overwrite")[0] == 0, row
                found.add((row["session"], target.read_bytes()))
        return found


def _made(kind: str, place: Path) -> _Archive:
    place.mkdir()
    secret = qvm_backups.PASSPHRASE.decode()
    if kind == "qvm":
        files = [path for path, _ in qvm_backups.dated_backups(place, 1 << 20).values()]
        return _Archive(["qvm", *files], files, secret)
    if kind == "pbs":
        store = filled(PbsStore(place / "store", os.urandom(32)))
        (place / "key").write_bytes(store.key_file())
        root = store.place
        words: Words = ["pbs", root, "vm/100", "--from-keyfile", place / "key"]
    else:
        root, secret = wyng_archives.unpacked("plain" if kind == "wyng" else kind, place), wyng_archives.PASSPHRASE
        words = ["wyng", root]
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.stat().st_size]
    # The root of a wyng archive without encryption is not authentic: it may name other sizes and volumes.
    return _Archive(words, [path for path in files if kind != "wyng" or path.name != "archive.ini"], secret)


def _imported(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in document.get("sessions", []) if row["result"] == "imported"]


def _try(case: _Case, archive: _Archive, right: Saved, *, restores: bool) -> int:
    """Import, and judge; returns the exit code."""
    code, document, err = case.run("import", *archive.words)
    assert code in _CODES and "Traceback" not in err, (code, err)
    assert "\n" not in json.dumps(document.get("error", "")).replace("\\n", "\n"), document
    rows = _imported(document)
    listed = case.run("list")[1]["snapshots"]
    assert {row["snapshot"] for row in rows} == {row["snapshot"] for row in listed}, (rows, listed)
    assert not restores or case.contents(rows) <= right
    return code


def main() -> None:
    """Try every kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", nargs="+", choices=("wyng", "ct", "pbs", "qvm"))
    parser.add_argument("--cases", type=int, default=2000)
    args = parser.parse_args()
    keys._scrypt = functools.cache(keys._scrypt)  # a pure function that costs a second
    with tempfile.TemporaryDirectory(prefix="mutated-") as folder:
        for kind in args.kind:
            _all(kind, Path(folder), args.cases)


def _all(kind: str, folder: Path, cases: int) -> None:
    key, empty = folder / "key", folder / f"{kind}-empty"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    archive = _made(kind, folder / kind)
    empty.mkdir()
    assert _Case(empty, key, "").run("init")[0] == 0

    def fresh() -> _Case:
        place = folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(empty, place)
        return _Case(place, key, archive.secret)

    case = fresh()
    code, document, err = case.run("import", *archive.words)
    assert code == 0, err
    right, codes, begun = case.contents(_imported(document)), Counter[int](), time.monotonic()
    for seed in range(cases):
        numbers = random.Random(seed)
        path = numbers.choice(archive.files)
        before = path.read_bytes()
        path.write_bytes(mutated(numbers, before))
        codes[_try(fresh(), archive, right, restores=seed % 10 == 0)] += 1
        path.write_bytes(before)
    print(f"{kind}: {cases} cases, exit codes {dict(codes)}, {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
