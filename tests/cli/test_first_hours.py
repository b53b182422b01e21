"""What a newcomer runs into: a command that promises what it cannot do, or does something else than was meant.

What such a user fears: to believe in a backup, a deletion or a restore that never happened.
"""

from __future__ import annotations

from pathlib import Path

from tests.cli.program import Lamella


def test_a_writer_hears_at_once_that_its_secret_deletes_nothing(lamella: Lamella, image: Path, tmp_path: Path) -> None:
    lamella.ok("init", "--append-only", "--recovery-sheet", tmp_path / "sheet")
    for _ in range(2):
        lamella.ok("backup", image)
    plan = lamella.run("prune", "-n", "--keep-last", "1")
    assert plan.code == 0 and "remove" in plan.out, plan
    assert plan.err.count("this secret may not delete") == 1, plan
    refused = lamella.run("prune", "--keep-last", "1")
    assert refused.code == 1 and "admin's" in refused.err, refused
    assert "remove  disk@" not in refused.out, "no list of what will not happen"
    assert len(lamella.json("list")["snapshots"]) == 2


def test_an_admin_hears_nothing_of_that(saved: Lamella) -> None:
    assert "may not delete" not in saved.ok("prune", "-n", "--keep-last", "1").err


def test_restore_makes_no_file_called_minus(saved: Lamella, image: Path, tmp_path: Path) -> None:
    here = Lamella(saved.env, saved.options, ["env", "-C", str(tmp_path), *saved.command])
    for words in ((), ("-n",), ("--overwrite",), ("--in-place",)):
        refused = here.run("restore", "disk", "--to", "-", *words)
        assert refused.code == 2, (words, refused)
        assert "lamella export disk --to -" in refused.err and "./-" in refused.err, refused
    assert not (tmp_path / "-").exists()
    here.ok("restore", "disk", "--to", "./-")
    assert (tmp_path / "-").read_bytes() == image.read_bytes()
