"""Files that a pattern or a directory means: each is a volume with a name of its own, and the same one in every run.

What a user fears: one more file of a name that exists already, and from then on no backup at all; or a history that
goes on with another machine's disk.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.cli.program import Lamella

SIZE = 100_000


@pytest.fixture
def vms(tmp_path: Path) -> Path:
    return tmp_path / "vms"


def make(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.Random(seed or str(path)).randbytes(SIZE))
    return path


def saved(lamella: Lamella, *sources: str | Path) -> dict[str, str]:
    """Back up; the mode of each volume."""
    return {row["volume"]: row["mode"] for row in lamella.json("backup", *sources)["volumes"]}


def restored(lamella: Lamella, volume: str, to: Path) -> bytes:
    lamella.ok("restore", volume, "--to", to)
    return to.read_bytes()


def test_equal_names_in_one_pattern(empty: Lamella, vms: Path, tmp_path: Path) -> None:
    files = {f"{vm}_disk": make(vms / vm / "disk.img") for vm in ("db", "web")}
    files["other"] = make(vms / "web" / "other.img")
    pattern = f"{vms}/*/*.img"
    assert saved(empty, pattern) == dict.fromkeys(files, "full")
    assert set(saved(empty, pattern).values()) == {"compare"} and set(saved(empty, pattern)) == set(files)
    for name, file in files.items():
        assert restored(empty, name, tmp_path / f"{name}.out") == file.read_bytes()
    # One that comes later takes nobody's place, not even where it is the only one of its name that is there.
    later = make(vms / "ab" / "other.img")
    files["web"] = files.pop("web_disk")
    files["web"].unlink()
    found = saved(empty, pattern)
    assert found == {"db_disk": "compare", "other": "compare", "ab_other": "full"}
    (vms / "web" / "other.img").unlink()
    assert saved(empty, pattern) == {"db_disk": "compare", "ab_other": "compare"}
    assert restored(empty, "ab_other", tmp_path / "later.out") == later.read_bytes()


def test_equal_names_in_a_directory(empty: Lamella, vms: Path) -> None:
    """Told apart by what the names end with; a link to a file that is there, too, is that file."""
    for name in ("disk.img", "disk.qcow2", "other.img", "a=b.img"):
        make(vms / name)
    (vms / "alias.img").symlink_to("disk.img")
    names = {"disk.img", "disk.qcow2", "other", "a_b"}
    for mode in ("full", "compare"):
        assert saved(empty, vms) == dict.fromkeys(names, mode)


def test_names_given_by_hand_come_first(empty: Lamella, vms: Path, tmp_path: Path) -> None:
    single, named = make(tmp_path / "single" / "disk.img"), make(tmp_path / "named.img")
    for vm in ("a", "b_c"):
        make(vms / vm / "disk.img")
    make(vms / "a_b" / "c" / "x.img"), make(vms / "a" / "b_c" / "x.img")
    sources = (single, f"a_disk={named}", f"{vms}/*/*.img", f"{vms}/*/*/x.img")
    names = {"disk", "a_disk", "vms_a_disk", "b_c_disk", "c_x", "b_c_x"}
    for mode in ("full", "compare"):
        assert saved(empty, *sources) == dict.fromkeys(names, mode)


def test_a_new_file_of_a_known_name(empty: Lamella, vms: Path) -> None:
    """It is saved beside the volume that has the name, and the user hears how to go on with that one instead."""
    (first,) = saved(empty, make(vms / "old" / "disk.img", 1))
    (vms / "old").rename(vms / "new")
    pattern = f"{vms}/*/disk.img"
    assert empty.json("backup", "--adopt", "-n", pattern)["volumes"][0]["volume"] == first
    said = empty.ok("backup", pattern)
    assert "disk is the name of another source" in said.err and "--adopt" in said.err and "new_disk" in said.out
    assert saved(empty, pattern) == {"new_disk": "compare"}
