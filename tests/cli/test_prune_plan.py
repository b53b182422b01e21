"""`prune -n` shows the bytes that the run then frees: with the exclusive lock and without a lock."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

from tests.cli.program import Lamella

MIB = 1 << 20
CHUNK = 64 << 10
KEEP = ("prune", "--keep-last", "2")
WITHOUT_A_LOCK = (
    "import lamella.stores.local.store as store; store.LOCKING_FILE_SYSTEMS = frozenset()\n"
    "from lamella.cli.main import entry; entry()"
)


def churn(lamella: Lamella, image: Path, snapshots: int, seed: int = 7) -> None:
    """Snapshots of a volume. Every other one writes the first MiB, so nothing needs the packs of those before it; the
    others write a fifth, in runs of chunks here and there, so that their packs end up needed in part.
    """
    chance = random.Random(seed)
    content = bytearray(image.read_bytes() if image.exists() else chance.randbytes(12 * MIB))
    for number in range(snapshots):
        image.write_bytes(content)
        # One worker: which chunk lies in which pack, and so what becomes of a pack, is the same in every run.
        lamella.ok("backup", image, "--chunk-size", "64K", "--workers", "1")
        starts = [chance.randrange(MIB, 12 * MIB - 4 * CHUNK, CHUNK) for _ in range(10)]
        for start in starts if number % 2 else range(0, MIB, 4 * CHUNK):
            content[start : start + 4 * CHUNK] = chance.randbytes(4 * CHUNK)


def stored(place: Path) -> dict[str, int]:
    """The packs of a repository, by hash, with their bytes."""
    return {path.name: path.stat().st_size for path in (place / "p").rglob("*") if path.is_file()}


def close(planned: int, true: int) -> bool:
    return abs(planned - true) * 100 <= abs(true)


def fates(plan: dict[str, Any]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in plan["packs"]:
        assert row["reason"]
        found.setdefault(row["fate"], set()).add(row["pack"])
    return found


def test_a_plan_has_the_bytes_that_the_run_frees(empty: Lamella, place: Path, tmp_path: Path) -> None:
    churn(empty, tmp_path / "disk.img", 7)
    before = stored(place)
    plan = empty.json(*KEEP, "-n")
    lines = empty.ok(*KEEP, "-n").out.splitlines()
    assert stored(place) == before, "a plan writes nothing"
    chosen = fates(plan)
    assert chosen.keys() == {"delete", "rewrite"}, "the churn makes packs of both kinds"
    done = empty.json(*KEEP)
    after = stored(place)
    freed = sum(before.values()) - sum(after.values())
    assert freed == done["freed_bytes"] > 6 * MIB
    assert close(plan["freed_bytes"], freed), (plan["freed_bytes"], freed)
    assert plan["repacked_bytes"] == done["repacked_bytes"] and plan["deleted_packs"] == done["deleted_packs"]
    assert (plan["live_bytes"], plan["dead_bytes"]) == (done["live_bytes"], done["dead_bytes"])
    assert before.keys() - after.keys() == chosen["delete"] | chosen["rewrite"]
    assert " snapshots and keep 2, and free " in lines[-1] and any(line.startswith("would rewrite ") for line in lines)
    again = empty.json(*KEEP, "-n")
    assert (again["freed_bytes"], again["packs"]) == (0, [])


def test_a_named_snapshot_has_a_plan_too(empty: Lamella, place: Path, tmp_path: Path) -> None:
    churn(empty, tmp_path / "disk.img", 4)
    name = empty.json("list", "disk")["snapshots"][-1]["snapshot"]
    before = stored(place)
    plan = empty.json("delete", f"disk@{name}", "-n", "--no-repack")
    done = empty.json("delete", f"disk@{name}", "--yes", "--no-repack")
    gone = before.keys() - stored(place).keys()
    assert plan["freed_bytes"] == done["freed_bytes"] == sum(before[pack] for pack in gone) > MIB, (
        "exact without copies"
    )
    assert fates(plan) == {"delete": gone}


def test_without_a_lock_it_says_what_is_condemned_and_what_is_deleted(
    empty: Lamella, place: Path, tmp_path: Path
) -> None:
    empty.command = [sys.executable, "-c", WITHOUT_A_LOCK]
    grace = ("--grace", "0h")
    churn(empty, tmp_path / "disk.img", 7)
    before = stored(place)
    plan = empty.json(*KEEP, *grace, "-n")
    chosen = fates(plan)
    assert chosen.keys() == {"condemn", "rewrite"}
    done = empty.json(*KEEP, *grace)
    middle = stored(place)
    grown = sum(middle.values()) - sum(before.values())
    assert done["freed_bytes"] == -grown < 0, "nothing can be deleted yet, and the copies take room"
    assert close(plan["freed_bytes"], done["freed_bytes"])
    assert close(plan["condemned_bytes"], done["condemned_bytes"]) and done["condemned_bytes"] > 6 * MIB
    assert before.keys() <= middle.keys()
    held = empty.json(*KEEP, "-n")
    assert (held["freed_bytes"], held["packs"], held["condemned_bytes"]) == (0, [], done["condemned_bytes"])
    assert ["condemned packs stay until" in line for line in held["waiting"]] == [True], (
        "a day, if nothing else is said"
    )
    second = empty.json(*KEEP, *grace, "-n")
    assert fates(second) == {"delete": chosen["condemn"] | chosen["rewrite"]}
    done = empty.json(*KEEP, *grace)
    freed = sum(middle.values()) - sum(stored(place).values())
    assert second["freed_bytes"] == done["freed_bytes"] == freed > 6 * MIB
    assert second["condemned_bytes"] == done["condemned_bytes"] == 0
    assert empty.json("verify", "--level", "full")["findings"] == []
