"""A qube that comes back from a file of qvm-backup, through `lamella import qvm` and `lamella qubes restore`.

What its owner fears: data without settings, a firewall that lets everything pass, a history that ends with the change.
"""

from __future__ import annotations

from pathlib import Path

from lamella_kit.fake_qubesd import FakeQubesd
from tests.cli.program import Lamella
from tests.imports.qvm_backups import PASSPHRASE, dated_backups
from tests.qubes.system import content
from tests.qubes.test_command import dom0 as dom0

MIB = 1 << 20


def test_data_settings_and_history_come_back(dom0: Lamella, system: FakeQubesd, tmp_path: Path) -> None:
    system.remove("work")
    system.add("debian-12", "TemplateVM", label="black")
    backups = dated_backups(tmp_path, MIB)
    dom0.env["LAMELLA_FROM_PASSPHRASE"] = PASSPHRASE.decode()
    dom0.ok("import", "qvm", *(path for path, _ in backups.values()))
    (_, newest), (_, oldest) = backups.values()
    listed = {row["qube"]: row for row in dom0.json("qubes", "list")["qubes"]}
    assert listed["work"]["here"] == ""
    dom0.ok("qubes", "restore", "work")
    assert content(system, "work") == newest
    work = system.qubes["work"]
    assert (work.label, work.template, work.properties["memory"]) == ("green", "debian-12", "800")
    assert (work.properties["netvm"], work.properties["debug"]) == ("", "True")
    assert work.firewall == "action=accept proto=tcp\n", "no rule is lost, and none is added"
    assert work.notes == "a note" and "created-by-dom0" in work.tags and work.features["gui"] == "1"
    # The next backup goes on with the imported volumes, and an older state of them is still there.
    system.write("work", b"later")
    dom0.ok("qubes", "backup", "work")
    snapshots = [row["snapshot"] for row in dom0.json("list", "work:private")["snapshots"]]
    assert len(snapshots) == 3
    for number, right in enumerate((oldest, newest, b"later" + newest[5:])):
        target = tmp_path / f"{number}.img"
        dom0.ok("restore", f"work:private@{snapshots[number]}", "--to", target)
        assert target.read_bytes() == right, number
