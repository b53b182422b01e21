"""Importing a datastore of Proxmox Backup that was written by hand after its documentation.

What a user fears: a disk that differs from what was saved; encrypted snapshots that cannot be taken along, or that
somebody without the key can forge; the machine's configuration lost; everything read again for each snapshot.
"""

from __future__ import annotations

import os
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.cli.program import Lamella
from tests.imports.pbs_store import CHUNK, PbsStore, filled


@pytest.mark.parametrize("encrypted", [False, True])
def test_every_snapshot_is_what_was_saved(empty: Lamella, tmp_path: Path, encrypted: bool) -> None:
    store = filled(PbsStore(tmp_path / "store", os.urandom(32) if encrypted else None))
    words: list[str | Path] = ["import", "pbs", store.place, "vm/100", "--trust-times"]
    if encrypted:
        (tmp_path / "pbs-key").write_bytes(store.key_file(b"a pbs passphrase"))
        words += ["--from-keyfile", tmp_path / "pbs-key"]
        empty.env["LAMELLA_FROM_PASSPHRASE"] = "a pbs passphrase"
    done = empty.json(*words)
    assert [row["session"] for row in done["sessions"]] == [name for name in store.snapshots for _ in range(2)]
    for row in done["sessions"]:
        empty.ok("restore", f"{row['volume']}@{row['snapshot']}", "--to", tmp_path / "out")
        disk = row["volume"].partition(":")[2]
        assert (tmp_path / "out").read_bytes() == store.snapshots[row["session"]][disk], row
        (tmp_path / "out").unlink()
        assert row["claimed_time"] == row["session"][:-1] + ".000Z"
    # The moment chooses, and the configuration came along.
    selected = "100:drive-scsi0@2025-03-30T01:45:00"
    empty.ok("restore", selected, "--document", "qemu-server.conf", "--to", tmp_path / "conf", env={"TZ": "UTC0"})
    assert (tmp_path / "conf").read_bytes() == b"cores: 1\n"
    # Later there is one more, and only that is read.
    state = store.snapshots[list(store.snapshots)[-1]]["drive-scsi0"]
    name = store.snapshot(
        datetime(2025, 4, 1, tzinfo=UTC), {"drive-scsi0": state[:CHUNK] + b"new" + state[CHUNK + 3 :]}
    )
    again = empty.json(*words)
    assert [row["session"] for row in again["sessions"] if row["result"] == "imported"] == [name]


def test_an_encrypted_snapshot_needs_its_own_key(empty: Lamella, tmp_path: Path) -> None:
    store = filled(PbsStore(tmp_path / "store", os.urandom(32)), disks=1)
    without = empty.json("import", "pbs", store.place, "vm/100", code=3)
    assert {row["result"] for row in without["sessions"]} == {"failed"}
    assert "--from-keyfile" in without["sessions"][0]["error"]
    other = PbsStore(tmp_path / "other", os.urandom(32))
    (tmp_path / "other-key").write_bytes(other.key_file())
    wrong = empty.run("import", "pbs", store.place, "vm/100", "--from-keyfile", tmp_path / "other-key")
    assert wrong.code == 3
    assert wrong.err.count("another key") == 3
    assert empty.json("list")["snapshots"] == []
    (tmp_path / "pbs-key").write_bytes(store.key_file(b"right"))
    empty.env["LAMELLA_FROM_PASSPHRASE"] = "wrong"
    refused = empty.run("import", "pbs", store.place, "vm/100", "--from-keyfile", tmp_path / "pbs-key")
    assert (refused.code, refused.err.count("\n")) == (12, 1)


def test_what_is_no_group_or_no_datastore_is_said(empty: Lamella, tmp_path: Path) -> None:
    store = filled(PbsStore(tmp_path / "store"), disks=1)
    wrong = ((tmp_path, "vm/100", 10), (store.place, "vm/101", 10), (store.place, "../store/vm/100", 2))
    for place, group, code in wrong:
        done = empty.run("import", "pbs", place, group, "--list")
        assert (done.code, done.err.count("\n")) == (code, 1), done.err
    unfinished = store.place / "vm/100" / "2025-03-30T09:00:00Z"
    unfinished.mkdir()
    done = empty.run("import", "pbs", store.place, "vm/100", "--list")
    assert done.code == 0
    assert "did not end" in done.err


def test_a_datastore_of_the_same_name_is_not_taken_for_the_first(empty: Lamella, tmp_path: Path) -> None:
    """Whoever imports two servers fears that a machine of the second is said to be there, or mixed with the first's."""
    chance, moment = random.Random(3), datetime(2025, 3, 30, 2, 30, tzinfo=UTC)
    ours, others = (chance.randbytes(6 * CHUNK) for _ in range(2))
    later = others[:CHUNK] + b"changed" + others[CHUNK + 7 :]
    first, second = PbsStore(tmp_path / "a/store"), PbsStore(tmp_path / "b/store")
    first.snapshot(moment, {"drive-scsi0": ours})
    second.snapshot(moment, {"drive-scsi0": others})
    empty.ok("import", "pbs", first.place, "vm/100")
    second.snapshot(moment + timedelta(hours=1), {"drive-scsi0": later})
    done = empty.json("import", "pbs", second.place, "vm/100")
    assert [row["result"] for row in done["sessions"]] == ["imported", "imported"]
    names = [row["snapshot"] for row in empty.json("list")["snapshots"]]
    for number, content in enumerate((ours, others, later)):
        out = tmp_path / f"{number}.img"
        empty.ok("restore", f"100:drive-scsi0@{names[number]}", "--to", out)
        assert out.read_bytes() == content, number
    again = empty.json("import", "pbs", second.place, "vm/100")
    assert [row["result"] for row in again["sessions"]] == ["present", "present"]
