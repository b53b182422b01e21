"""An import that is killed again and again, of each format that Lamella reads itself.

What a user fears of a history of years: that an import which breaks off in the third night begins anew, that sessions
are there twice, or that one is missing in the middle. borg and restic: test_import_programs.py.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.program import Lamella, environment
from tests.imports.pbs_store import PbsStore, filled
from tests.imports.qcow2_chain import chain
from tests.imports.qvm_backups import PASSPHRASE, dated_backups
from tests.imports.wyng_archives import unpacked

KILLS = int(os.environ.get("LAMELLA_KILLS", "1"))
"""By hand 10."""


def words_of(kind: str, tmp_path: Path) -> list[str]:
    """How an archive of a format is imported, which is made first."""
    match kind:
        case "wyng":
            return [kind, str(unpacked("plain", tmp_path))]
        case "pbs":
            return [kind, str(filled(PbsStore(tmp_path / "store")).place), "vm/100"]
        case "qvm":
            return [kind, *(str(path) for path, _ in dated_backups(tmp_path).values())]
    return [kind, str(chain(tmp_path))]


def killed(lamella: Lamella, words: list[str], sessions: int, after: float) -> None:
    """Run an import, and kill it a moment after it began to read one more session."""
    command = [*lamella.command, *lamella.options, "import", *words]
    env = environment({**lamella.env, "PYTHONUNBUFFERED": "1"})
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
        assert run.stdout is not None
        for line in run.stdout:
            sessions -= line.startswith("session ")
            if not sessions:
                break
        time.sleep(after)
        os.kill(run.pid, signal.SIGKILL)


Key = tuple[str, str]


def rows_of(lamella: Lamella, *words: str) -> dict[Key, tuple[str, int]]:
    """By session and volume: the result, and the bytes that were read because they changed, or are new.

    What the archive says did not change is read again by chance, in every run: it shows whether the archive is right.
    """
    rows = lamella.json("import", *words)["sessions"]
    return {(row["session"], row["volume"]): (row["result"], row["read_bytes"] - row["sampled_bytes"]) for row in rows}


@pytest.mark.parametrize("kind", ["wyng", "pbs", "qvm", "qcow2"])
def test_what_is_here_is_never_read_again(empty: Lamella, place: Path, tmp_path: Path, kind: str) -> None:
    empty.env["LAMELLA_FROM_PASSPHRASE"] = PASSPHRASE.decode()
    words, chance = words_of(kind, tmp_path), random.Random(KILLS)
    killed(empty, words, 2, 0.0)
    for turn in range(1, KILLS):
        # Some before the session has its snapshot, some between the snapshot and its label, some a session later.
        killed(empty, words, 1 + turn % 2, chance.uniform(0.0, 0.5))
    done = rows_of(empty, *words)
    before = {key for key, (result, _) in done.items() if result == "present"}
    assert before and set(done.values()) <= {("present", 0), *((("imported", read)) for _, read in done.values())}
    listed = [(row["snapshot"], row["pinned"]) for row in empty.json("list")["snapshots"]]
    assert all(pinned for _, pinned in listed), "and rules of retention take nothing"
    again = empty.json("import", *words)
    assert ({row["result"] for row in again["sessions"]}, again["stored_bytes"]) == ({"present"}, 0)
    assert len({row["snapshot"] for row in again["sessions"]}) == len(listed), "no session is here twice"
    # The same history imported in one go: what is read of each session is the same, or less if it went on half way.
    whole = Lamella({**empty.env, "LAMELLA_REPO": f"{place}-whole"}, empty.options)
    whole.ok("init", "-q")
    right = rows_of(whole, *words)
    assert list(right) == list(done)
    assert all(read <= right[key][1] for key, (_, read) in done.items()), (done, right)
    ours, theirs = ([row["volumes"] for row in one.json("list")["snapshots"]] for one in (empty, whole))
    assert ours == theirs, "in the same order"
