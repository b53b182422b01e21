"""`lamella import qvm`: files as qvm-backup writes them, and files that somebody changed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError, SourceError
from lamella.imports.qvm.archive import open_backup
from lamella.imports.qvm.history import qvm_history
from lamella.imports.qvm.qubes_xml import qubes_of
from tests.cli.program import Lamella
from tests.features import require
from tests.imports.qvm_backups import PASSPHRASE, UUID, files_of, inner_tar, qubes_xml, sealed, write_backup

MIB = 1 << 20
CASES = int(os.environ.get("LAMELLA_MUTATIONS", "150"))
"""By hand 2,000."""
SECRET = {"LAMELLA_FROM_PASSPHRASE": PASSPHRASE.decode()}


@pytest.fixture
def backups(tmp_path: Path, image: Path) -> dict[str, tuple[Path, bytes]]:
    """Session -> file and content of the private volume; each compressed in another way, the newest first."""
    found = {}
    for number, how in enumerate(("gzip", "bzip2", "xz", "zstd", "")):
        if how == "zstd" and shutil.which("zstd") is None:
            continue
        with image.open("r+b") as file:
            file.seek(number * 5000)
            file.write(os.urandom(3000))
        id_ = f"2026010{number}T000000-1234"
        path = write_backup(
            tmp_path / f"backup{number}", files_of(tmp_path, image), id_=id_, filter_=how, time=1_700_000_000 + number
        )
        found[id_] = path, image.read_bytes()
    return dict(reversed(found.items()))


def test_dated_files_become_a_history_with_settings(
    empty: Lamella, backups: Mapping[str, tuple[Path, bytes]], tmp_path: Path
) -> None:
    empty.env.update(SECRET)
    words: list[str | Path] = ["import", "qvm", *(path for path, _ in backups.values())]
    done = empty.json(*words)
    order = [row["session"] for row in done["sessions"]][::2]
    assert order == sorted(backups) and {row["volume"] for row in done["sessions"]} == {"work:private", "work:settings"}
    assert sum(row["stored_bytes"] for row in done["sessions"][2:]) < MIB
    for row in done["sessions"]:
        target = tmp_path / f"out-{row['session']}"
        if row["volume"] == "work:private":
            empty.ok("restore", f"work:private@{row['snapshot']}", "--to", target)
            assert target.read_bytes() == backups[row["session"]][1]
    empty.ok("restore", "work:settings", "--document", "settings.json", "--to", tmp_path / "settings")
    settings = json.loads((tmp_path / "settings").read_text())
    assert settings["properties"]["label"] == {"type": "label", "value": "green"}
    assert (settings["uuid"], settings["features"], settings["tags"]) == (UUID, {"gui": "1"}, ["created-by-dom0"])
    assert (settings["firewall"], settings["notes"]) == ("action=accept proto=tcp\n", "a note")
    again = empty.json(*words)
    assert {row["result"] for row in again["sessions"]} == {"present"}


def test_what_was_changed_or_cut_is_refused_and_nothing_is_stored(
    empty: Lamella, backups: Mapping[str, tuple[Path, bytes]], tmp_path: Path
) -> None:
    path = next(iter(backups.values()))[0]
    wrong = empty.run("import", "qvm", path, env={"LAMELLA_FROM_PASSPHRASE": "another"})
    assert (wrong.code, "passphrase is wrong" in wrong.err, wrong.err.count("\n")) == (12, True, 1), wrong.err
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    (tmp_path / "changed").write_bytes(whole)
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 3])
    empty.env.update(SECRET)
    for words in ((tmp_path / "none",), ("none",), (path, tmp_path / "none")):
        missing = empty.run("import", "qvm", *words)
        assert (missing.code, "there is no file" in missing.err, missing.err.count("\n")) == (10, True, 1), missing.err
    cut = empty.run("import", "qvm", tmp_path / "cut")
    assert (cut.code, "ends too soon" in cut.err) == (3, True), cut.err
    changed = empty.json("import", "qvm", tmp_path / "changed", "work:private", code=3)
    assert "damaged, or was changed" in changed["sessions"][0]["error"]
    assert empty.json("list")["snapshots"] == []


def test_a_volume_that_was_saved_here_gets_no_older_states(
    empty: Lamella, backups: Mapping[str, tuple[Path, bytes]], tmp_path: Path, image: Path
) -> None:
    """An imported volume continues as a qube's own: what is imported later would be taken for the latest."""
    empty.env.update(SECRET)
    files = [path for path, _ in backups.values()]
    empty.json("import", "qvm", files[-1])
    late = empty.json("import", "qvm", files[0])
    assert {row["result"] for row in late["sessions"]} == {"imported"}
    older = empty.json("import", "qvm", files[1], code=3)
    assert {row["result"] for row in older["sessions"]} == {"left out"}


def test_a_part_that_does_not_open_costs_its_volume_alone(
    empty: Lamella, backups: Mapping[str, tuple[Path, bytes]]
) -> None:
    path = next(iter(backups.values()))[0]
    whole = bytearray(path.read_bytes())
    place = open_backup(path, PASSPHRASE).parts["vm20/private.img"][0]
    whole[place.offset + 70] ^= 1  # in the proof of the key
    path.write_bytes(whole)
    empty.env.update(SECRET)
    done = empty.json("import", "qvm", path, code=3)
    found = {row["volume"]: (row["result"], row["error"]) for row in done["sessions"]}
    assert found["work:settings"][0] == "imported" and found["work:private"][0] == "failed"
    assert "damaged, or was changed" in found["work:private"][1]


def test_parts_cannot_be_exchanged(tmp_path: Path, image: Path) -> None:
    """Each is sealed under its own name, so one in the place of another does not open; nor does a missing one pass."""
    files = files_of(tmp_path, image)
    one = write_backup(tmp_path / "one", files, id_="1-1", filter_="")
    opened = open_backup(one, PASSPHRASE)
    parts = opened.parts["vm20/private.img"]
    assert len(parts) > 1
    parts[0], parts[1] = parts[1], parts[0]
    with pytest.raises(SourceError, match="damaged, or was changed"):  # the passphrase is right: the header said so
        opened.document("vm20/private.img")
    parts[0], parts[1] = parts[1], parts[0]
    assert opened.document("vm20/private.img") == image.read_bytes()
    del parts[-1]
    with pytest.raises(LamellaError):
        opened.document("vm20/private.img")


def test_what_scrypt_itself_wrote_is_read(tmp_path: Path, image: Path) -> None:
    program = shutil.which("scrypt")
    require("scrypt", program is not None, "there is no scrypt")
    (tmp_path / "in").write_bytes(image.read_bytes()[:200_000])
    words: list[str | Path] = [
        program or "",
        "enc",
        "--passphrase",
        "env:P",
        "-t",
        "0.1",
        tmp_path / "in",
        tmp_path / "out",
    ]
    subprocess.run(words, env={**os.environ, "P": "x"}, check=True, capture_output=True)
    from lamella.imports.qvm.scrypt_file import decrypted, scrypt_key

    found = b"".join(decrypted((tmp_path / "out").read_bytes(), scrypt_key(b"x"), "out"))
    assert found == (tmp_path / "in").read_bytes()
    (tmp_path / "ours").write_bytes(sealed(found, b"x", log2=10))
    words = [program or "", "dec", "--passphrase", "env:P", tmp_path / "ours"]
    assert subprocess.run(words, env={**os.environ, "P": "x"}, check=True, capture_output=True).stdout == found


def test_mutated_files_end_in_one_line(tmp_path: Path, image: Path) -> None:
    """Without the passphrase nobody makes a file that is believed; what fails says so in a line."""
    image.write_bytes(os.urandom(20_000))
    path = write_backup(tmp_path / "whole", files_of(tmp_path, image, 20_000), id_="1-1")
    content, chance, right = path.read_bytes(), random.Random(5), image.read_bytes()
    for _ in range(CASES):
        changed = bytearray(content)
        at = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                del changed[at:]
            case 2:
                changed[at : at + 512] = changed[chance.randrange(len(changed)) :][:512]
            case 3:
                start = at // 512 * 512 + chance.choice([0, 100, 124, 136, 148, 156, 257, 345])
                changed[start : start + 8] = chance.choice(
                    [b"\xff" * 8, b"77777777", b"../../x\0", bytes(8), b"00000000"]
                )
        path.write_bytes(changed)
        try:
            found = qvm_history([path], PASSPHRASE)
            opened = open_backup(path, PASSPHRASE)
            if "vm20/private.img" in opened.parts:
                assert opened.document("vm20/private.img") == right
            assert found.sessions
        except LamellaError as error:
            assert "\n" not in error.message and len(error.message) < 1000


def test_older_releases_write_labels_and_features_in_another_way(tmp_path: Path) -> None:
    content = qubes_xml({"work": (UUID, 20, {"private": 1})})
    content = content.replace(b'"label">green', b'"label">label-4').replace(b'content">1<', b'content">True<')
    (qube,) = qubes_of(content.replace(b">vm20/<", b">appvms/work<"), "qubes.xml")
    assert (qube.settings.label, qube.settings.label_color, qube.folder) == ("green", "0x73d216", "appvms/work")


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE x [<!ENTITY a 'b'>]><qubes/>",
        b"<qubes",
        b"<qubes>" * 100_000,
        qubes_xml({"-rm": (UUID, 1, {})}),
        qubes_xml({"work": ("../../etc", 1, {})}),
        qubes_xml({"work": (UUID, 1, {"../x": 1})}),
        qubes_xml({"a": (UUID, 1, {}), "b": (UUID, 2, {})}),
        b'<?xml version="1.0" encoding="nonsense"?><qubes/>',
    ],
)
def test_a_qubes_xml_that_no_system_has_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "qubes.xml").write_bytes(content)
    files = {"qubes.xml": inner_tar(tmp_path / "qubes.xml", "qubes.xml")}
    path = write_backup(tmp_path / "odd", files, id_="1-1")
    with pytest.raises(LamellaError) as caught:
        qvm_history([path], PASSPHRASE)
    assert "\n" not in caught.value.message
