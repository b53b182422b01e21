"""The real wyng, wherever it is on the PATH (or LAMELLA_TEST_WYNG names it): archives that nobody saw before.

As root, with Btrfs. The fixtures of tests/imports/wyng stand for it everywhere else.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import empty as empty
from tests.cli.conftest import keyfile as keyfile
from tests.cli.conftest import lamella as lamella
from tests.cli.conftest import place as place
from tests.cli.program import Lamella
from tests.features import require
from tests.imports.make_wyng_archives import PASSPHRASE, Wyng, file_system, plain, sealed

WYNG = os.environ.get("LAMELLA_TEST_WYNG") or shutil.which("wyng")


@pytest.mark.skipif(WYNG is None, reason="there is no wyng")
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kind", ["plain", "xchacha20-dgr"])
def test_every_session_is_what_this_wyng_restores(empty: Lamella, tmp_path: Path, kind: str) -> None:
    require("mkfs.btrfs", shutil.which("mkfs.btrfs") is not None, "there is no mkfs.btrfs")
    empty.env["LAMELLA_FROM_PASSPHRASE"] = PASSPHRASE
    with file_system() as folder:
        wyng = Wyng(Path(WYNG or ""), folder, "live")
        (plain if kind == "plain" else sealed(kind, "zstd:3"))(wyng)
        right = {
            (session, name): tuple(row)
            for name, sessions in wyng.restored().items()
            for session, row in sessions.items()
        }
        done = empty.json("import", "wyng", wyng.archive)
    names = {name.replace("/", "_"): name for _, name in right}
    found = {}
    for number, row in enumerate(done["sessions"]):
        target = tmp_path / f"{number}.img"
        empty.ok("restore", f"{row['volume']}@{row['snapshot']}", "--to", target)
        content = target.read_bytes()
        found[row["session"], names[row["volume"]]] = hashlib.sha256(content).hexdigest(), len(content)
    assert found == right and len(found) >= 2
