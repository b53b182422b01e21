"""Verification with a budget each night, as its user fears it: that the parts never add up to the whole; that an old
part, a new backup, or damage found in between is hidden by the word "full".
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.program import Lamella

MIB = 1 << 20


@pytest.fixture
def filled(empty: Lamella, tmp_path: Path) -> Lamella:
    """Three snapshots of a volume, each with a pack of its own that no night reads together with another one."""
    for _ in range(3):
        (tmp_path / "disk.img").write_bytes(os.urandom(2 * MIB))
        empty.ok("backup", tmp_path / "disk.img")
    return empty


def night(lamella: Lamella, code: int = 0) -> dict[str, Any]:
    return lamella.json("verify", "--budget", "1MiB", code=code)


def row(lamella: Lamella, code: int = 0) -> dict[str, Any]:
    (found,) = lamella.json("status", code=code)["volumes"]
    assert isinstance(found, dict)
    return found


def packs(lamella: Lamella) -> list[Path]:
    folder = Path(lamella.env["LAMELLA_REPO"]) / "p"
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda one: one.stat().st_size)


@pytest.mark.parametrize("budget", ["1MiB", "4MiB", "1GiB"])
def test_the_progress_of_a_night_ends_at_its_end(filled: Lamella, budget: str) -> None:
    """A budget of 1 GiB over 6 MiB of packs stood at 0.6 % when it was done, with hours left."""
    lines = filled.ok("--json-lines", "verify", "--budget", budget).err.splitlines()
    events = [
        one
        for one in map(json.loads, filter(lambda line: line.startswith("{"), lines))
        if one.get("event") == "progress" and one.get("stage") == "packs"
    ]
    assert events and events[-1]["done_bytes"] == events[-1]["total_bytes"]


def test_nights_add_up_to_the_whole(filled: Lamella, tmp_path: Path) -> None:
    documents = [night(filled)]
    assert row(filled)["verified"]["level"] == "sample"
    assert re.search(r"sample, [1-9]\d? % read", filled.ok("status").out)
    while documents[-1]["coverage"]["read_bytes"] < documents[-1]["coverage"]["total_bytes"]:
        before = documents[-1]["coverage"]["read_bytes"]
        documents.append(night(filled))
        assert documents[-1]["coverage"]["read_bytes"] > before
        assert len(documents) < 20
    nights = len(documents)
    assert nights >= 3
    status = row(filled)
    # As of the part that was read longest ago, and not a day newer.
    assert status["verified"] == {"level": "full", "time": documents[0]["coverage"]["oldest"]}
    assert status["read"]["oldest"] == status["verified"]["time"] and status["read"]["runs"] == nights
    day = re.escape(filled.ok("status").out.split("oldest part ")[1][:10])
    assert re.search(rf"full over {nights} nights, oldest part {day}", filled.ok("status").out)
    assert filled.json("list")["volumes"][0]["verified"]["level"] == "full"
    # Reading only what is new makes nothing old newer.
    filled.ok("verify", "--level", "full", "--new-packs")
    night(filled)
    assert row(filled)["verified"]["time"] == row(filled)["read"]["oldest"]
    filled.ok("verify", "disk", "--level", "full", "--new-packs")  # its latest snapshot: reads nothing at all
    assert row(filled)["verified"]["time"] == row(filled)["read"]["oldest"]
    # The snapshots of a volume that was read in full are proven for prune as well.
    assert "unread damage may be" not in filled.ok("prune", "-n", "--keep-last", "2").err
    # A new backup is read before anything is read again.
    (tmp_path / "disk.img").write_bytes(os.urandom(2 * MIB))
    filled.ok("backup", tmp_path / "disk.img")
    for _ in range(3):
        found = night(filled)["coverage"]
    assert found["read_bytes"] == found["total_bytes"]
    assert re.search(r"everything was read in \d+ runs", filled.ok("verify", "--budget", "1MiB").err)


def test_a_night_before_the_whole_says_how_far_it_came(filled: Lamella) -> None:
    done = filled.ok("verify", "--budget", "1MiB")
    assert re.search(r"[1-9]\d? % of the packs were read so far, since \d{4}-\d\d-\d\d; the rest takes about", done.err)
    filled.ok("verify", "--level", "full")
    found = row(filled)
    assert found["read"]["runs"] == 1 and "nights" not in filled.ok("status").out
    day = found["verified"]["time"]
    night(filled)
    # A part that was read again later makes nothing older, and nothing newer.
    assert row(filled)["verified"] == {"level": "full", "time": day}


def test_damage_is_never_hidden_by_what_was_read_before(filled: Lamella) -> None:
    while (found := night(filled)["coverage"])["read_bytes"] < found["total_bytes"]:
        pass
    assert row(filled)["state"] == "ok"
    largest = packs(filled)[-1]
    content = bytearray(largest.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = os.urandom(64)
    largest.write_bytes(content)
    codes = []
    while 20 not in codes:
        codes.append(filled.run("verify", "--budget", "1MiB").code)
        assert len(codes) < 20
    for _ in range(2):  # other parts are read and found sound: the bad news stays
        filled.run("verify", "--budget", "1MiB")
        assert row(filled, code=3)["state"] == "bad"


def test_a_host_that_lost_its_cache_begins_again_and_says_so(filled: Lamella) -> None:
    while (found := night(filled)["coverage"])["read_bytes"] < found["total_bytes"]:
        pass
    shutil.rmtree(os.environ["LAMELLA_CACHE_DIR"])
    assert night(filled)["coverage"]["runs"] == 1
    # What was proved then is as old as it is; how far the new round has come is said beside it.
    found = row(filled)
    assert found["verified"]["level"] == "full" and found["read"]["read_bytes"] < found["read"]["total_bytes"]
    assert "nights" not in filled.ok("status").out
