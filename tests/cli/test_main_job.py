"""Back up, look, restore: what people use Lamella for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lamella.cli.sheet import SheetFacts, sheet_text
from lamella.crypto.recovery import recovery_key
from tests.cli.program import COMMAND, Lamella, Terminal
from tests.features import require

MIB = 1 << 20
SNAPSHOT = re.compile(r"\d{8}T\d{6}Z-[a-z2-7]{4}")
FINGERPRINT = re.compile(r"[A-Z2-7]{4}(-[A-Z2-7]{4}){3}")


def tree(*places: Path) -> dict[str, tuple[int, bytes]]:
    """Every path below the places, with its mode and content."""
    found = [path for place in places for path in [place, *place.rglob("*")] if path.exists()]
    return {str(path): (path.stat().st_mode, path.read_bytes() if path.is_file() else b"") for path in found}


def test_init_backup_restore(lamella: Lamella, image: Path, tmp_path: Path) -> None:
    made = lamella.ok("init", "--recovery-sheet", tmp_path / "sheet")
    assert FINGERPRINT.search(made.out)
    saved = lamella.ok("backup", image)
    assert SNAPSHOT.search(saved.out)
    assert FINGERPRINT.search(saved.out)
    assert saved.err.startswith("lamella: disk: everything is read: first backup")
    out = tmp_path / "out.img"
    lamella.ok("restore", "disk", "--to", out)
    assert out.read_bytes() == image.read_bytes()
    assert out.stat().st_blocks * 512 < 3 * MIB


def test_backup_document(empty: Lamella, image: Path) -> None:
    first = empty.json("backup", image)
    assert SNAPSHOT.fullmatch(first["snapshot"])
    assert (first["command"], first["result"]) == ("backup", "complete")
    (row,) = first["volumes"]
    assert (row["volume"], row["driver"], row["mode"], row["result"]) == ("disk", "file", "full", "complete")
    assert row["source_bytes"] == 8 * MIB
    assert MIB < row["read_bytes"] < 3 * MIB
    assert row["stored_bytes"] == first["stored_bytes"] > MIB
    assert row["changed_chunks"] >= row["new_chunks"] > 0
    assert {"reason", "sampled_bytes", "consistency", "error"} <= row.keys()
    assert 0 < first["metadata_bytes"] < MIB
    assert {"seconds", "fingerprint", "warnings"} <= first.keys()
    second = empty.json("backup", image)
    assert (second["stored_bytes"], second["volumes"][0]["mode"]) == (0, "compare")
    assert second["fingerprint"] != first["fingerprint"]


def test_list_document(saved: Lamella, image: Path) -> None:
    saved.ok("backup", image, f"other={image.parent / 'key'}")
    listed = saved.json("list")
    assert [row["volume"] for row in listed["volumes"]] == ["disk", "other"]
    assert [row["volumes"] for row in listed["snapshots"]] == [["disk"], ["disk", "other"]]
    for row in listed["snapshots"]:
        assert SNAPSHOT.fullmatch(row["snapshot"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row["time"])
        assert (row["tags"], row["result"]) == ([], "complete")
    only = saved.json("list", "other")
    assert [row["volume"] for row in only["volumes"]] == ["other"]
    assert len(only["snapshots"]) == 1
    assert listed["snapshots"][1]["snapshot"] in saved.ok("list").out


def test_empty_repository_lists_nothing(empty: Lamella) -> None:
    listed = empty.json("list")
    assert (listed["volumes"], listed["snapshots"]) == ([], [])


def test_older_snapshot_by_prefix(saved: Lamella, image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    (first,) = saved.json("list")["snapshots"]
    with image.open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"changed")
    changed = saved.json("backup", image)
    assert changed["volumes"][0]["changed_chunks"] == 1
    for selector, content in ((f"disk@{first['snapshot']}", before), ("disk@latest", image.read_bytes())):
        out = tmp_path / "out"
        restored = saved.json("restore", selector, "--to", out)
        assert restored["compared_bytes"] == len(content)
        assert out.read_bytes() == content
        out.unlink()
    found = saved.json("diff", f"disk@{first['snapshot']}")
    assert found["changed_bytes"] == found["chunk_size"]
    assert found["ranges"] == [{"offset": 3 * MIB, "length": found["chunk_size"], "kind": "data"}]


def test_documents(empty: Lamella, image: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.xml"
    settings.write_text("<domain/>")
    empty.ok("backup", image, "--document", f"settings={settings}")
    out = tmp_path / "out.xml"
    empty.ok("restore", "disk", "--document", "settings", "--to", out)
    assert out.read_text() == "<domain/>"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert empty.run("restore", "disk", "--document", "settings", "--to", out).code == 2
    empty.ok("restore", "disk", "--document", "settings", "--to", out, "--overwrite")
    assert empty.run("restore", "disk", "--document", "other", "--to", tmp_path / "none").code == 4
    assert not (tmp_path / "none").exists()
    assert [row["name"] for row in empty.json("info", "disk")["documents"]] == ["settings"]


def test_target_is_replaced_only_with_consent(saved: Lamella, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"precious")
    assert saved.run("restore", "disk", "--to", out).code == 2
    assert out.read_bytes() == b"precious"
    saved.ok("restore", "disk", "--to", out, "--overwrite")
    assert out.read_bytes() == image.read_bytes()
    with out.open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"x" * MIB)
    saved.ok("restore", "disk", "--to", out, "--in-place")
    assert out.read_bytes() == image.read_bytes()


def test_verify_document(saved: Lamella) -> None:
    proof = saved.json("verify", "--level", "full")
    assert (proof["findings"], proof["unrestorable"]) == ([], [])
    assert proof["checked_chunks"] > 0
    assert proof["checked_bytes"] > MIB
    whole = saved.json("verify", "disk", "--level", "sample", "--percent", "100")
    assert whole["checked_bytes"] > MIB
    assert saved.json("verify", "--level", "structure")["checked_bytes"] == 0
    again = saved.json("verify", "--level", "restore")
    assert again["checked_bytes"] == whole["checked_bytes"]
    assert again["checked_objects"] > 0
    (row,) = saved.json("list")["volumes"]
    assert (row["verified"]["level"], row["verified"]["result"]) == ("restore", "ok")
    assert "restore: ok" in saved.ok("list").out
    assert saved.json("verify", "--budget", "1K")["checked_chunks"] > 0, "one pack at least"


def test_verify_against_the_source(saved: Lamella, image: Path, tmp_path: Path) -> None:
    assert saved.json("verify", "disk", "--level", "source")["findings"] == []
    with image.open("r+b") as file:
        file.write(b"changed")
    (note,) = saved.json("verify", "disk", "--level", "source")["findings"]
    assert note["severity"] == "note"
    other = tmp_path / "other"
    shutil.copy(image, other)
    with other.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"changed, too")
    found = saved.json("verify", "disk", "--level", "source", "--source", other)["findings"]
    assert len(found) == 2


@pytest.mark.parametrize("how", ["bytes", "shorter", "longer"])
def test_what_differs_from_a_file_is_not_recorded_as_compared(
    saved: Lamella, image: Path, tmp_path: Path, how: str
) -> None:
    """Who reads `source: ok` in a list believes that the volume is what the file was."""
    other = tmp_path / "other"
    content = bytearray(image.read_bytes())
    content[5 * MIB] ^= how == "bytes"
    other.write_bytes({"bytes": content, "shorter": content[:-1], "longer": content + b"1"}[how])
    done = saved.run("verify", "disk", "--against", other)
    assert (done.code, "DIFFERENT" in done.out) == (20, True)
    assert "source: ok" not in saved.ok("list").out
    (row,) = saved.json("list")["volumes"]
    assert (row["verified"]["level"], row["verified"]["result"]) == ("structure", "ok"), "the repository is not damaged"
    saved.ok("verify", "disk", "--against", image)
    assert "source: ok" in saved.ok("list").out


def test_info(saved: Lamella) -> None:
    facts = saved.json("info")
    assert (facts["role"], facts["volumes"], facts["snapshots"]) == ("admin", 1, 1)
    assert FINGERPRINT.fullmatch(facts["fingerprint"])
    assert saved.json("info", "disk")["size"] == 8 * MIB
    assert facts["fingerprint"] in saved.ok("info").out


def test_sheet_restores_without_lamella(lamella: Lamella, image: Path, place: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet"
    made = lamella.json("init", "--recovery-sheet", sheet)
    assert stat.S_IMODE(sheet.stat().st_mode) == 0o600
    text = sheet.read_text()
    rescue = (place / "restore.py").read_bytes()
    for fact in (made["repository_id"], made["fingerprint"], hashlib.sha256(rescue).hexdigest(), str(place)):
        assert fact in text
    lamella.ok("backup", image)
    (key,) = re.findall(r"^ +((?:[A-Z2-7]{5}-\s*){13}[A-Z2-7]{5})$", text, re.MULTILINE)
    (tmp_path / "KEY").write_text(key.lower() + "\n")
    # The commands, as somebody would type them from the paper.
    typed = "\n".join(line for line in text.splitlines() if re.match("    (REPO=|mkdir|cp|python3| {4}--)", line))
    typed = typed.replace("python3", sys.executable).replace("VOLUME", "disk").replace("FILE", "out.img")
    subprocess.run(["sh", "-ec", typed], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "emergency" / "copy.py").read_bytes() == rescue
    assert (tmp_path / "out.img").read_bytes() == image.read_bytes()
    other = Lamella({"LAMELLA_REPO": str(place), "LAMELLA_RECOVERY_KEY_FILE": str(tmp_path / "KEY")})
    assert [row["volume"] for row in other.json("list")["volumes"]] == ["disk"]


@pytest.mark.parametrize(
    ("place", "words"),
    [("ssh://b@nas/srv/x", "scp -r"), ("rclone:drive:x", "rclone copy"), ("s3://bucket/x", "for S3")],
)
def test_the_sheet_of_a_place_elsewhere_begins_with_a_copy(place: str, words: str) -> None:
    """`cp rclone:drive:x/restore.py` would be the first command that somebody in an emergency sees fail."""
    text = sheet_text(SheetFacts("KEY", place, True, "id", "print", "hash"))
    assert words in text and "    REPO=DIRECTORY\n" in text and f"cp {place}" not in text
    assert max(map(len, text.splitlines())) <= 78 and len(text.splitlines()) <= 58
    local = sheet_text(SheetFacts("KEY", "file:/mnt/x", True, "id", "print", "hash"))
    assert "    REPO=/mnt/x\n" in local and "REPO=DIRECTORY" not in local


def test_the_sheet_fits_on_a_page_and_a_camera_reads_its_key(lamella: Lamella, tmp_path: Path) -> None:
    lamella.ok("init", "-r", tmp_path / "R", "--recovery-sheet", tmp_path / "sheet")
    text = (tmp_path / "sheet").read_text().replace(str(tmp_path), "/mnt/backup")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 78 and len(lines) <= 58  # A4 at 10 characters and 6 lines an inch
    require("zbarimg", shutil.which("zbarimg") is not None, "zbar-tools is not installed")
    square = [line for line in lines if set(line) & set("\u2580\u2584\u2588")]
    if subprocess.run([COMMAND[0], "-c", "import qrcode"], capture_output=True, check=False).returncode:
        assert COMMAND[0] != sys.executable and not square  # that interpreter has no extras
        return
    assert square
    halves = {" ": "00", "\u2580": "10", "\u2584": "01", "\u2588": "11"}
    rows = [[halves[one][half] for one in line.ljust(48)] for line in ["", *square, ""] for half in (0, 1)]
    picture = f"P1 {48 * 4} {len(rows) * 4}\n" + "\n".join(
        " ".join(bit for bit in row for _ in range(4)) for row in rows for _ in range(4)
    )
    (tmp_path / "square.pbm").write_text(picture)
    done = subprocess.run(
        ["zbarimg", "-q", "--raw", tmp_path / "square.pbm"], capture_output=True, text=True, timeout=60, check=True
    )
    (key,) = re.findall(r"^ +((?:[A-Z2-7]{5}-\s*){13}[A-Z2-7]{5})$", text, re.MULTILINE)
    assert done.stdout.strip() == "".join(key.split())
    assert recovery_key(done.stdout) == recovery_key(key)


def test_sheet_must_not_exist(lamella: Lamella, place: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet"
    sheet.write_text("precious")
    assert lamella.run("init", "--recovery-sheet", sheet).code == 2
    assert sheet.read_text() == "precious"
    assert not place.exists()


def test_sheet_of_a_failed_init_is_taken_back(lamella: Lamella, place: Path, tmp_path: Path) -> None:
    place.mkdir()
    (place / "stranger").write_text("something else")
    sheet = tmp_path / "sheet"
    assert lamella.run("init", "--recovery-sheet", sheet).code == 1
    assert not sheet.exists()
    assert [path.name for path in place.iterdir() if path.name != "tmp"] == ["stranger"]


def test_init_without_a_place_for_the_recovery_key_warns(lamella: Lamella) -> None:
    made = lamella.run("init")
    assert made.code == 0
    assert "warning: there is no recovery key" in made.err
    assert [row["type"] for row in lamella.json("key", "list")["slots"]] == ["key file"]


@pytest.mark.parametrize("command", ["init", "backup", "restore", "document", "add", "change", "remove", "accept"])
def test_dry_run_changes_nothing(command: str, saved: Lamella, image: Path, place: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    saved.ok("list")
    slot = saved.json("key", "list")["slots"][0]["name"]
    arguments: dict[str, list[str | Path]] = {
        "init": ["init", "-r", new, "--recovery-sheet", tmp_path / "sheet"],
        "backup": ["backup", image],
        "restore": ["restore", "disk", "--to", new],
        "document": ["backup", image, "--document", f"d={image.parent / 'key'}"],
        "add": ["key", "add", "--new-keyfile", new, "--generate"],
        "change": ["key", "change", "--new-keyfile", new, "--generate"],
        "remove": ["key", "remove", slot],
        "accept": ["check", "--accept-rollback"],
    }
    state = Path(os.environ["LAMELLA_STATE_DIR"])
    before = tree(tmp_path, place, state)
    for form in (["-n"], ["--dry-run", "--json"]):
        assert saved.ok(*arguments[command], *form).out
        after = tree(tmp_path, place, state)
        assert after == before


def test_options_before_and_after_the_command(saved: Lamella, place: Path, keyfile: Path) -> None:
    plain = Lamella()
    options = ["-r", str(place), "--keyfile", str(keyfile), "--json"]
    outputs = {plain.ok(*options, "list").out, plain.ok("list", *options).out}
    outputs.add(plain.ok(*options[:2], "list", *options[2:]).out)
    assert len(outputs) == 1
    assert plain.ok(*options, "key", "list").json == plain.ok("key", "list", *options).json


def test_progress_as_json_lines(empty: Lamella, image: Path) -> None:
    done = empty.ok("backup", image, "--json-lines", "--json")
    assert done.json["result"] == "complete"
    events = [json.loads(line) for line in done.err.splitlines()]
    assert {event["schema"] for event in events} == {"lamella/1"}
    last = [event for event in events if event["event"] == "progress"][-1]
    assert (last["volume"], last["done_bytes"], last["total_bytes"]) == ("disk", 8 * MIB, 8 * MIB)


def test_quiet_and_verbose(empty: Lamella, image: Path) -> None:
    assert empty.ok("-q", "backup", image).err == ""
    assert "compare" in empty.ok("-v", "backup", image).err


def test_names_cannot_speak_to_the_terminal(empty: Lamella, image: Path) -> None:
    empty.ok("backup", f"right\u202eleft={image}")
    listed = empty.ok("list").out
    assert "\u202e" not in listed
    assert "right\\u202eleft" in listed


def test_chunk_size(empty: Lamella, image: Path) -> None:
    empty.ok("backup", image, "--chunk-size", "64K")
    assert empty.json("info", "disk")["chunk_size"] == 65536
    assert empty.run("backup", image, "--chunk-size", "1M").code == 2
    assert empty.run("backup", image, "--chunk-size", "100K").code == 2


def test_name_of_another_source(saved: Lamella, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    other = tmp_path / "b" / "disk.img"
    other.write_bytes(b"another disk")
    refused = saved.run("backup", other)
    assert refused.code == 2
    assert "--adopt" in refused.err
    saved.ok("backup", f"second={other}")
    assert [row["volume"] for row in saved.json("list")["volumes"]] == ["disk", "second"]


def test_progress_is_drawn_on_a_terminal(empty: Lamella, image: Path) -> None:
    arguments: list[str | Path] = [*empty.options, "backup", image]
    with Terminal(arguments, empty.env) as terminal:
        assert terminal.end() == 0
        before, _, result = terminal.seen.partition("\r\x1b[K")
        assert re.search(r"\rbackup disk +\d+\.\d %", before)
        assert "snapshot " in result
    with Terminal([*arguments, "--quiet"], empty.env) as terminal:
        assert terminal.end() == 0
        assert "\x1b" not in terminal.seen


def test_name_that_is_not_utf8(empty: Lamella, image: Path, tmp_path: Path) -> None:
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \x1b[31m.img"))
    shutil.copy(image, strange)
    (row,) = empty.json("backup", strange)["volumes"]
    assert row["result"] == "complete"
    assert row["volume"].isprintable()
    empty.ok("restore", row["volume"], "--to", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == image.read_bytes()
    strange.unlink()
    gone = empty.run("backup", strange)
    assert gone.code == 4
    assert "\x1b" not in gone.err


def test_the_place_of_a_new_repository_may_follow_the_command(lamella: Lamella, tmp_path: Path) -> None:
    lamella.ok("init", "-q", tmp_path / "here")
    assert (tmp_path / "here" / "lamella").is_file()
    both = lamella.run("init", tmp_path / "there", "-r", tmp_path / "elsewhere")
    assert both.code == 2 and "two places" in both.err and not (tmp_path / "there").exists()


def test_sizes_and_the_figures_of_the_run_have_names_of_their_own(saved: Lamella) -> None:
    names = [line.split("  ")[0] for line in saved.ok("info", "disk", "--sizes").out.splitlines()]
    assert len(set(names)) == len(names) and {"stored bytes", "space they need"} <= set(names)
