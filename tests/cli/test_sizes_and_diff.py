"""`lamella info --sizes` and `lamella diff` with a live source, as users meet them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.cli.program import Lamella

MIB = 1 << 20


def change(image: Path, offset: int = 0) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(os.urandom(4096))


def test_sizes_of_the_repository_and_of_snapshots(saved: Lamella, place: Path, image: Path) -> None:
    totals = saved.json("info", "--sizes")["sizes"]
    packs = [path.stat().st_size for path in place.glob("p/*/*")]
    objects = (path for path in place.rglob("*") if path.is_file() and path.parent != place / "tmp")
    everything = [path.stat().st_size for path in objects]
    assert (totals["packs"], totals["packs_bytes"]) == (len(packs), sum(packs))
    assert totals["other_bytes"] == sum(everything) - sum(packs)
    assert totals["needed_bytes"] <= totals["packs_bytes"]
    change(image)
    saved.ok("backup", image)
    one = saved.json("info", "disk", "--sizes")["sizes"]
    assert one["apparent_bytes"] == 8 * MIB > one["allocated_bytes"] >= MIB
    assert 0 < one["unique_bytes"] <= one["freed_bytes"] < one["stored_bytes"]
    both = saved.json("info", "disk", "--sizes", "--all")
    assert len(both["snapshots"]) == 2 and both["sizes"]["shared_bytes"] == 0
    assert both["sizes"]["freed_bytes"] == sum(path.stat().st_size for path in place.glob("p/*/*"))
    assert "needed by nothing else" in saved.ok("info", "disk", "--sizes").out
    assert "sizes" not in saved.json("info", "disk")
    assert saved.run("info", "disk", "disk").code == 2
    assert saved.run("info", "nobody", "--sizes").code == 4


def test_difference_to_the_source_as_it_is(saved: Lamella, image: Path, tmp_path: Path) -> None:
    (first,) = saved.json("list")["snapshots"]
    one = f"disk@{first['snapshot']}"
    assert saved.json("diff", one, "--live")["ranges"] == []
    change(image, 3 * MIB)
    for how in (("--live",), ("--source", image)):
        found = saved.json("diff", one, *how)
        assert found["ranges"] == [{"offset": 3 * MIB, "length": found["chunk_size"], "kind": "data"}]
        assert (found["b"], found["size_b"], found["mode"]) == ("", 8 * MIB, "compare")
        assert found["reason"] and found["read_bytes"] > 0
    saved.ok("diff", one, "--live", "--map", tmp_path / "map.json")
    content = json.loads((tmp_path / "map.json").read_text())
    assert content["base"] == first["snapshot"] and len(content["ranges"]) == 1
    # The map is good for a backup.
    saved.ok("backup", "--changes-from", tmp_path / "map.json", "--changes-base", first["snapshot"], image)
    assert saved.json("diff", "disk@latest", "--live")["ranges"] == []
    assert "offset" not in saved.ok("diff", one, "--summary").out
    assert saved.run("diff", one, "--live", "--source", image).code == 2
    assert saved.run("diff", one, "--source", tmp_path / "nothing").code in (3, 4)
    image.rename(tmp_path / "elsewhere")
    assert saved.run("diff", one, "--live").code in (3, 4)
