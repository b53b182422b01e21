"""`lamella import qcow2`: every state is what qemu-img itself makes of it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError
from lamella.imports.history import volume_sources
from lamella.imports.qcow2 import qcow2_history
from tests.cli.program import Lamella
from tests.imports.qcow2_chain import chain, ran

MIB = 1 << 20
CASES = int(os.environ.get("LAMELLA_MUTATIONS", "30"))
"""By hand 2,000."""


@pytest.fixture(name="chain")
def _chain(tmp_path: Path) -> Path:
    """An image over another one; both have snapshots, two of one name."""
    return chain(tmp_path)


def test_every_state_is_what_qemu_makes_of_it(empty: Lamella, chain: Path, tmp_path: Path) -> None:
    base = chain.with_name("base.qcow2")
    right = [(base, ["-l", "snapshot.id=1"]), (base, [])]
    right += [(chain, ["-l", "snapshot.id=1"]), (chain, ["-l", "snapshot.id=2"]), (chain, [])]
    done = empty.json("import", "qcow2", chain)
    names = [row["session"].partition("state of")[0] for row in done["sessions"]]
    assert names == ["base.qcow2@old", "base.qcow2@base", "top.qcow2@same", "top.qcow2@same~2", "top.qcow2@"]
    for number, (row, (image, options)) in enumerate(zip(done["sessions"], right, strict=True)):
        ran("qemu-img", "convert", *options, "-O", "raw", image, tmp_path / "right")
        empty.ok("restore", f"top@{row['snapshot']}", "--to", tmp_path / f"out{number}")
        assert (tmp_path / f"out{number}").read_bytes() == (tmp_path / "right").read_bytes(), row["session"]
        assert row["read_bytes"] < 5 * MIB, "holes are not read"
    ran("qemu-io", "-c", "write -P 6 9M 64k", chain)
    again = empty.json("import", "qcow2", chain)
    assert [row["result"] for row in again["sessions"]] == ["present"] * 4 + ["imported"]


def test_files_that_lie_elsewhere_are_not_opened(empty: Lamella, chain: Path, tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    ran("qemu-img", "create", "-q", "-f", "raw", tmp_path / "else/secret", "8M")
    ran("qemu-img", "rebase", "-u", "-b", "else/../../" + tmp_path.name + "/else/secret", "-F", "raw", chain)
    assert empty.json("import", "qcow2", "--list", chain)["sessions"], "below its directory"
    ran("qemu-img", "rebase", "-u", "-b", "/etc/passwd", "-F", "raw", chain)
    refused = empty.run("import", "qcow2", chain)
    assert (refused.code, "not opened" in refused.err, refused.err.count("\n")) == (3, True, 1), refused.err
    missing = empty.run("import", "qcow2", tmp_path / "none")
    assert (missing.code, "there is no image" in missing.err, missing.err.count("\n")) == (10, True, 1), missing.err


def test_mutated_images_end_in_a_list_or_one_line(chain: Path) -> None:
    content, chance = chain.read_bytes(), random.Random(9)
    for _ in range(CASES):
        changed = bytearray(content)
        for _ in range(chance.randrange(1, 4)):
            # The header, and whatever it leads to.
            at = chance.randrange(chance.choice([112, 600, len(changed)]))
            changed[at : at + 4] = chance.choice([b"\xff" * 4, bytes(4), bytes([chance.randrange(256)]) * 2])
        chain.write_bytes(changed)
        try:
            found = qcow2_history(chain, "machine")
        except LamellaError as error:
            assert "\n" not in error.message and len(error.message) < 2000
            continue
        assert len(list(volume_sources(found))) < 70_000
