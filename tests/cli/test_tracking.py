"""The command line of change tracking: monitor, hooks, change maps, what doctor says of checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from lamella.sources.checkpoint_files import DIRECTORY
from tests.cli.program import Lamella
from tests.system import loop_fs

MIB = 1 << 20
CHUNK = 1 << 16
_numbers = count()


@pytest.fixture(scope="module")
def top() -> Iterator[Path]:
    with loop_fs.make("btrfs") as mount:
        yield mount


@pytest.fixture
def tracked(top: Path) -> Path:
    """An image of 4 MiB on a file system that tracks changes."""
    place = top / f"machine-{next(_numbers)}"
    place.mkdir()
    path = place / "vm.img"
    path.write_bytes(os.urandom(4 * MIB))
    return path


def write(path: Path, chunk: int, content: bytes = b"changed") -> None:
    with path.open("r+b") as file:
        file.seek(chunk * CHUNK)
        file.write(content)


def restored(lamella: Lamella, selector: str, place: Path) -> bytes:
    out = place / "restored.img"
    lamella.ok("restore", selector, "--to", out, "--overwrite")
    return out.read_bytes()


# -- incremental, monitor --------------------------------------------------------------------------------------------


def test_backup_says_what_it_read(empty: Lamella, tracked: Path, tmp_path: Path) -> None:
    first = empty.json("backup", tracked, "--chunk-size", "64K")
    assert first["volumes"][0]["mode"] == "full"
    write(tracked, 3)
    assert "vm: only changes are read" in empty.ok("backup", "-n", tracked).out
    second = empty.json("backup", tracked)
    (row,) = second["volumes"]
    assert (row["mode"], row["reason"], row["driver"]) == ("incremental", "", "btrfs")
    assert row["read_bytes"] - row["sampled_bytes"] == CHUNK
    assert restored(empty, "vm", tmp_path) == tracked.read_bytes()
    info = empty.json("info", "vm")
    assert (info["mode"], info["sampled_bytes"], info["map_refuted"]) == ("incremental", row["sampled_bytes"], None)
    assert [one["map_refuted"] for one in empty.json("list")["snapshots"]] == [False, False]
    everything = empty.json("backup", tracked, "--reread", "1G")["volumes"][0]
    assert everything["sampled_bytes"] == everything["read_bytes"] == 4 * MIB
    assert empty.run("backup", tracked, "--reread", "much").code == 2


def test_deltas_through_the_command(empty: Lamella, tracked: Path, tmp_path: Path) -> None:
    """By the option, by the configuration, and read by everything that reads."""
    empty.json("backup", tracked, "--chunk-size", "64K", "--deltas")
    first = tracked.read_bytes()
    write(tracked, 3)
    (row,) = empty.json("backup", tracked, "--deltas")["volumes"]
    assert (row["delta_chunks"], row["stored_bytes"] < 8192) == (1, True)
    second = tracked.read_bytes()
    write(tracked, 5)
    config = tmp_path / "deltas.toml"
    config.write_text("[backup]\ndeltas = true\n")
    empty.env["LAMELLA_CONFIG"] = str(config)
    assert empty.json("backup", tracked, "--no-deltas")["volumes"][0]["delta_chunks"] == 0
    write(tracked, 7)
    (row,) = empty.json("backup", tracked)["volumes"]
    assert row["delta_chunks"] == 1
    names = [one["snapshot"] for one in empty.json("list")["snapshots"]]
    assert restored(empty, "vm", tmp_path) == tracked.read_bytes()
    assert empty.json("diff", f"vm@{names[0]}", f"vm@{names[1]}")["changed_bytes"] == CHUNK
    empty.ok("delete", f"vm@{names[0]}", "-y")
    empty.ok("prune", "--keep-last", "9", "--max-unused", "1")
    for level in ("full", "restore"):
        assert empty.json("verify", "--level", level)["findings"] == []
    assert restored(empty, f"vm@{names[1]}", tmp_path) == second != first


def test_monitor(empty: Lamella, tracked: Path) -> None:
    for arguments in (["monitor", tracked], ["monitor"]):
        done = empty.run(*arguments)
        # Nothing is tracked yet: a named source is no error, nothing to do at all is.
        assert done.code == (0 if len(arguments) == 2 else 4)
    empty.ok("backup", tracked, "--chunk-size", "64K")
    write(tracked, 5)
    without = Lamella()  # neither a repository nor a secret
    (row,) = without.json("monitor")["sources"]
    assert (row["driver"], row["intervals"], row["dropped"]) == ("btrfs", 1, 1)
    assert 0 < row["changed_bytes"] <= CHUNK
    write(tracked, 6)
    assert "KiB may have changed; checkpoints removed: 1" in without.ok("monitor", tracked).out
    write(tracked, 7)
    (saved,) = empty.json("backup", tracked)["volumes"]
    assert (saved["mode"], saved["changed_chunks"]) == ("incremental", 3)
    assert saved["read_bytes"] - saved["sampled_bytes"] == 3 * CHUNK


def test_monitor_goes_on_after_a_source_that_fails(empty: Lamella, tracked: Path, tmp_path: Path) -> None:
    empty.ok("backup", tracked)
    done = empty.json("monitor", tmp_path / "missing.img", tracked, code=3)
    assert [row["source"] for row in done["failed"]] == [str(tmp_path / "missing.img")]
    assert [row["intervals"] for row in done["sources"]] == [1]
    assert empty.run("monitor", tmp_path / "missing.img").code in (3, 4)


# -- hooks -----------------------------------------------------------------------------------------------------------


def test_hooks_run_around_the_freeze(empty: Lamella, tracked: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    before = f"sh -c 'echo before >> {log}; echo settled | dd of={tracked} conv=notrunc status=none'"
    after = f"sh -c 'echo after >> {log}; echo running | dd of={tracked} conv=notrunc status=none'"
    (row,) = empty.json("backup", tracked, "--before", before, "--after", after)["volumes"]
    assert log.read_text().split() == ["before", "after"]
    assert row["consistency"] == "quiesced"
    # The moment lies between the two, and is read after both.
    assert restored(empty, "vm", tmp_path).startswith(b"settled\n")
    assert tracked.read_bytes().startswith(b"running\n")
    assert empty.json("info", "vm")["consistency"] == "quiesced"
    assert empty.json("backup", tracked)["volumes"][0]["consistency"] == "live"


@pytest.mark.parametrize("before", ["false", "/no/such/program", "sleep 60"])
def test_nothing_is_frozen_if_the_first_command_fails(empty: Lamella, image: Path, tmp_path: Path, before: str) -> None:
    done = empty.run(
        "backup", image, "--before", before, "--after", f"touch {tmp_path / 'ran'}", "--hook-timeout", "0.2"
    )
    assert done.code == 1
    assert before.split()[0] in done.err
    assert (tmp_path / "ran").exists()
    assert empty.json("list")["snapshots"] == []


def test_the_second_command_runs_when_a_source_fails(empty: Lamella, image: Path, tmp_path: Path) -> None:
    before = f"rm {image}"
    done = empty.run("backup", image, "--before", before, "--after", f"touch {tmp_path / 'ran'}")
    assert done.code == 3
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("after", ["false", "sleep 60"])
def test_a_failing_second_command_is_a_warning(empty: Lamella, image: Path, after: str) -> None:
    done = empty.json("backup", image, "--after", after, "--hook-timeout", "0.2")
    assert done["result"] == "complete"
    assert "the command after the freeze failed" in done["warnings"][0]


def configure(lamella: Lamella, place: Path, text: str) -> None:
    path = place / "lamella.toml"
    path.write_text(text)
    lamella.env["LAMELLA_CONFIG"] = str(path)


def test_hooks_from_the_configuration(empty: Lamella, image: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    text = f"""[backup]\nbefore = "sh -c 'echo configured >> {log}'"\nafter = "sleep 60"\nhook_seconds = 0.2\n"""
    configure(empty, tmp_path, text)
    warnings = empty.json("backup", image)["warnings"]
    assert "did not end within 0.2 s" in warnings[0]
    empty.json("backup", image, "--before", f"sh -c 'echo given >> {log}'", "--after", "true")
    assert log.read_text().split() == ["configured", "given"]


@pytest.mark.parametrize(
    "line", ["before = 5", "after = ''", "hook_seconds = 0", "hook_seconds = 'x'", "checkpoint_dir = 'relative'"]
)
def test_wrong_settings_are_found(lamella: Lamella, tmp_path: Path, line: str) -> None:
    configure(lamella, tmp_path, f"[backup]\n{line}\n")
    done = lamella.run("config", "validate")
    assert done.code == 2
    assert line.split()[0] in done.out + done.err


def test_checkpoints_go_where_the_configuration_says(empty: Lamella, tracked: Path, top: Path, tmp_path: Path) -> None:
    place = top / "elsewhere" / "kept"
    configure(empty, tmp_path, f'[backup]\ncheckpoint_dir = "{place}"\n')
    empty.ok("backup", tracked)
    assert len(list(place.iterdir())) == 1
    assert empty.json("backup", tracked)["volumes"][0]["mode"] == "incremental"
    found = empty.json("doctor")
    assert str(next(place.iterdir())) in [row["file"] for row in found["checkpoints"]]


# -- change maps -----------------------------------------------------------------------------------------------------


def names(lamella: Lamella) -> list[str]:
    return [str(row["snapshot"]) for row in lamella.json("list")["snapshots"]]


def change_map(place: Path, *ranges: list[object], size: int = 8 * MIB, base: str = "") -> Path:
    path = place / "map.json"
    path.write_text(json.dumps({"schema": "lamella-map/1", "size": size, "base": base, "ranges": ranges}))
    return path


def test_only_what_the_map_names_is_read(saved: Lamella, image: Path, tmp_path: Path) -> None:
    (base,) = names(saved)
    size = saved.json("info", "disk")["chunk_size"]
    with image.open("r+b") as file:
        file.seek(2 * size)
        file.write(b"changed")
    path = change_map(tmp_path, [2 * size, 7, "data"], base=base)
    (row,) = saved.json("backup", image, "--changes-from", path, "--changes-base", base)["volumes"]
    assert (row["mode"], row["changed_chunks"]) == ("incremental", 1)
    assert row["read_bytes"] - row["sampled_bytes"] == size
    assert restored(saved, "disk", tmp_path) == image.read_bytes()


@pytest.mark.parametrize("lie", ["nothing changed", "zero"])
def test_a_lying_map_is_refuted(saved: Lamella, image: Path, tmp_path: Path, lie: str) -> None:
    (base,) = names(saved)
    with image.open("r+b") as file:
        file.write(b"changed")
    ranges = [[0, MIB, "zero"]] if lie == "zero" else []
    path = change_map(tmp_path, *ranges, base=base)
    done = saved.json("backup", image, "--changes-from", path, "--changes-base", base, "--reread", "1G")
    (row,) = done["volumes"]
    assert (row["mode"], row["reason"]) == ("compare", "the change map was wrong")
    assert "everything is compared instead" in done["warnings"][0]
    assert restored(saved, "disk", tmp_path) == image.read_bytes()
    info = saved.json("info", "disk")
    assert info["map_refuted"]["offset"] == 0
    assert [one["map_refuted"] for one in saved.json("list")["snapshots"]] == [False, True]
    assert "a change map was wrong" in saved.ok("list").out
    assert "offset=0" in saved.ok("info", "disk").out


def test_a_map_from_another_base_is_not_used(saved: Lamella, image: Path, tmp_path: Path) -> None:
    write(image, 0)
    saved.ok("backup", image)
    first, _ = names(saved)
    write(image, 1)
    lying = change_map(tmp_path, base=first)
    (row,) = saved.json("backup", image, "--changes-from", lying, "--changes-base", first)["volumes"]
    assert (row["mode"], row["changed_chunks"]) == ("compare", 1)
    assert "is not the latest usable one" in row["reason"]
    write(image, 1, b"again")
    third = names(saved)[-1]
    (row,) = saved.json("backup", image, "--changes-from", lying, "--changes-base", third)["volumes"]
    assert (row["mode"], row["changed_chunks"]) == ("compare", 1)
    assert row["reason"] == f"the change map says that it starts from {first}"
    assert restored(saved, "disk", tmp_path) == image.read_bytes()
    assert saved.run("backup", image, "--changes-from", lying, "--changes-base", "20200101").code == 4


def test_a_map_of_another_size_is_not_used(saved: Lamella, image: Path, tmp_path: Path) -> None:
    (base,) = names(saved)
    os.truncate(image, 7 * MIB)
    path = change_map(tmp_path, base=base)
    (row,) = saved.json("backup", image, "--changes-from", path, "--changes-base", base)["volumes"]
    assert row["mode"] == "compare"
    assert "the change map is of a volume of" in row["reason"]


def test_the_json_of_rbd(saved: Lamella, image: Path, tmp_path: Path) -> None:
    (base,) = names(saved)
    with image.open("r+b") as file:
        file.write(bytes(MIB))
    path = tmp_path / "rbd.json"
    path.write_text(json.dumps([{"offset": 0, "length": MIB, "exists": "false"}]))
    (row,) = saved.json("backup", image, "--changes-from", path, "--changes-base", base)["volumes"]
    assert (row["mode"], row["read_bytes"] - row["sampled_bytes"]) == ("incremental", 0)
    assert restored(saved, "disk", tmp_path) == image.read_bytes()


def test_a_map_from_diff_leads_from_one_snapshot_to_the_next(saved: Lamella, image: Path, tmp_path: Path) -> None:
    """What diff writes about one repository, backup reads for another with the same snapshot of the volume."""
    (base,) = names(saved)
    size = saved.json("info", "disk")["chunk_size"]
    write(image, 0)
    with image.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(bytes(CHUNK))
    saved.ok("backup", image)
    path = tmp_path / "out.json"
    saved.ok("diff", f"disk@{base}", "--map", path)
    found = json.loads(path.read_text())
    assert (found["schema"], found["size"], found["base"]) == ("lamella-map/1", 8 * MIB, base)
    assert [0, size, "data"] in found["ranges"]
    assert saved.run("diff", f"disk@{base}", "--map", path).code == 2, "a file that exists is not replaced"
    lines = tmp_path / "out.txt"
    saved.ok("diff", f"disk@{base}", "--map", lines, "--map-format", "lines")
    assert lines.read_text().splitlines()[0] == f"0 {size} data"
    assert sum(int(line.split()[1]) for line in lines.read_text().splitlines()) == 8 * MIB
    # Going back to the first state and forward again: the same ranges describe it.
    for content, form in ((b"another", path), (b"the next", lines)):
        write(image, 0, content)
        base = names(saved)[-1]
        found["base"] = base
        path.write_text(json.dumps(found))
        (row,) = saved.json("backup", image, "--changes-from", form, "--changes-base", base)["volumes"]
        assert (row["mode"], row["changed_chunks"]) == ("incremental", 1)
        assert restored(saved, "disk", tmp_path) == image.read_bytes()


def test_the_options_of_a_map_go_together(saved: Lamella, image: Path, tmp_path: Path) -> None:
    (base,) = names(saved)
    path = change_map(tmp_path, base=base)
    assert saved.run("backup", image, "--changes-from", path).code == 2
    assert saved.run("backup", image, "--changes-base", base).code == 2
    other = tmp_path / "other.img"
    other.write_bytes(b"x" * CHUNK)
    done = saved.run("backup", image, other, "--changes-from", path, "--changes-base", base)
    assert done.code == 2
    assert "one source" in done.err
    path.write_text("no map")
    assert saved.run("backup", image, "--changes-from", path, "--changes-base", base).code == 2
    assert len(names(saved)) == 1


# -- doctor ----------------------------------------------------------------------------------------------------------


def test_doctor_lists_and_removes_leftovers(empty: Lamella, tracked: Path, top: Path) -> None:
    empty.ok("backup", tracked)
    before = empty.json("doctor")
    (own,) = [row for row in before["checkpoints"] if row["image"] == str(tracked)]
    assert (own["state"], own["bytes"]) == ("needed", 4 * MIB)
    assert own["age_seconds"] < 600
    needed = Path(own["file"])
    assert needed.parent == top / DIRECTORY
    source, owner, _ = needed.name.split("-")
    leftover, foreign = (needed.with_name(f"{source}-{who}-9") for who in (owner, "0badcafe"))
    for path in (leftover, foreign, needed.with_name("notes.txt")):
        path.write_bytes(b"x")
    found = empty.json("doctor", code=1)
    states = {Path(row["file"]): row["state"] for row in found["checkpoints"] if row["image"] == str(tracked)}
    assert states == {needed: "needed", leftover: "leftover", foreign: "other owner"}
    assert "0badcafe" in empty.run("doctor").out
    fixed = empty.json("doctor", "--fix")
    assert [row["file"] for row in fixed["removed"]] == [str(leftover)]
    assert foreign.exists()
    fixed = empty.json("doctor", "--fix", "--owner", "0badcafe")
    assert [row["file"] for row in fixed["removed"]] == [str(foreign)]
    assert needed.exists()
    assert needed.with_name("notes.txt").read_bytes() == b"x"
    assert empty.json("backup", tracked)["volumes"][0]["mode"] == "incremental"


def test_doctor_refuses_half_an_order(empty: Lamella) -> None:
    assert empty.run("doctor", "--owner", "0badcafe").code == 2
    for owner in ("", "0BADCAFE", "0badcaf", "../../xx"):
        assert empty.run("doctor", "--fix", "--owner", owner).code == 2
