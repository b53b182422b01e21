"""What a newcomer runs into: a command that promises what it cannot do, or does something else than was meant.

What such a user fears: to believe in a backup, a deletion or a restore that never happened.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from lamella.cli.arguments import build
from lamella_kit.image_files import mounted
from tests.cli.program import Lamella
from tests.cli.strangers import Stranger
from tests.features import require


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
        assert "lamella export VOLUME --to -" in refused.err and "./-" in refused.err, refused
    assert not (tmp_path / "-").exists()
    here.ok("restore", "disk", "--to", "./-")
    assert (tmp_path / "-").read_bytes() == image.read_bytes()


def test_what_a_directory_leaves_out_is_told(empty: Lamella, tmp_path: Path) -> None:
    vms = tmp_path / "vms"
    for folder in ("a", "b", "skipped", ".hidden"):
        (vms / folder).mkdir(parents=True)
        (vms / folder / f"{folder}.img").write_bytes(folder.encode() * 1000)
    words = (vms, "--exclude", "skipped")
    none = empty.run("backup", *words)
    assert none.code == 4 and f"it holds only directories; for the files in these write '{vms}/*/*'" in none.err, none
    assert f"lamella files backup {vms}" in none.err, none
    (vms / "disk.img").write_bytes(b"disk" * 1000)
    for how in ((), ("-n",)):
        told = empty.ok("backup", *words, *how)
        assert told.err.count("left out") == 1 and "2 directories in it are left out" in told.err, told
    assert f"add '{vms}/*/*'" in told.err
    everything = empty.ok("backup", f"{vms}/*/*", *words)
    assert {"a", "b", "disk"} <= {row["volume"] for row in empty.json("list")["volumes"]}, everything
    for folder in ("a", "b"):
        (vms / folder / f"{folder}.img").unlink()
        (vms / folder).rmdir()
    assert "left out" not in empty.ok("backup", *words).err


def test_a_full_repository_is_named_once_with_what_to_do(lamella: Lamella, image: Path, tmp_path: Path) -> None:
    require("root", os.geteuid() == 0, "only root may mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted("none", disk, kind="tmpfs", options="size=1m,mode=700"):
        here = Lamella({"LAMELLA_REPO": str(disk / "R")}, lamella.options)
        here.ok("init")
        full = here.run("backup", image)
        (told,) = [line for line in full.err.splitlines() if "no space left" in line.lower()]
        assert full.code == 1 and told.startswith(f"lamella: no space left in {disk}/R; make room there"), full
        assert "prune" not in full.err, "no prune frees anything where there is nothing to remove"
        small = tmp_path / "small.img"
        for number in range(2):
            small.write_bytes(os.urandom(4096))
            here.ok("backup", f"small={small}")
            full = here.run("backup", image)
            assert full.code == 1 and ("lamella prune -n" in full.err) == bool(number), (number, full)
        assert here.json("backup", image, code=1)["error"]["object"].startswith("p/")


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_a_place_that_cannot_be_made_keeps_the_real_cause(keyfile: Path, below: str) -> None:
    failed = Lamella({}, ["--keyfile", str(keyfile)]).run("init", f"/proc/made{below}")
    assert ("no directory can be made in /proc" in failed.err) == (not below), failed
    assert ("make the directory above it first" in failed.err) == bool(below), failed
    assert failed.code == (10 if below else 1)


def test_a_place_where_the_account_may_make_nothing(stranger: Stranger, tmp_path: Path) -> None:
    failed = stranger.lamella.run("init", "/etc/lamella-made-by-a-stranger")
    assert failed.code == 1 and "no directory can be made in /etc: Permission denied" in failed.err, failed


def test_what_is_missing_is_named_as_the_help_names_it(lamella: Lamella) -> None:
    """No error asks for an argument that is optional, or that no help shows."""
    waiting = [build()]
    for parser in waiting:
        parser.fill()
        for action in parser._actions:
            optional = action.nargs in ("*", "?") or action.help == argparse.SUPPRESS
            others = [one for one in parser._actions if one.required and one is not action]
            assert not (optional and action.required and others), (parser.prog, action)
            if isinstance(action, argparse._SubParsersAction):
                waiting += action.choices.values()
    assert len(waiting) > 40
    for command, needed, left in (
        (["completion"], "shell", "words"),
        (["key", "rekey"], "--to", "VOLUME"),
        (["tag"], "VOLUME", "TAG"),
    ):
        said = lamella.run(*command)
        assert said.code == 2 and needed in said.err and left not in said.err, said


def test_list_of_one_snapshot_names_info(saved: Lamella) -> None:
    said = saved.run("list", "disk@latest")
    assert said.code == 4 and "lamella info disk@latest" in said.err, said
    saved.ok("info", "disk@latest")
