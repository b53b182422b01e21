"""`lamella qubes` as dom0 would run it, against a qubesd that speaks the real protocol."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella_kit.fake_qubesd import FakeQubesd
from tests.cli.program import Lamella
from tests.qubes.system import content


@pytest.fixture
def dom0(tmp_path: Path, system: FakeQubesd) -> Iterator[Lamella]:
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    (tmp_path / "dom0root/etc/qubes").mkdir(parents=True)
    (tmp_path / "dom0root/etc/qubes/note").write_text("policy\n")
    env = {
        "LAMELLA_REPO": str(tmp_path / "repository"),
        "LAMELLA_QUBESD_SOCKET": str(system.place),
        "LAMELLA_DOM0_ROOT": str(tmp_path / "dom0root"),
        "LAMELLA_STATE_DIR": str(tmp_path / "state"),
        "LAMELLA_CACHE_DIR": str(tmp_path / "cache"),
    }
    command = Lamella(env, ["--keyfile", str(key)])
    command.ok("init", "-q")
    yield command


def test_the_main_job(dom0: Lamella, system: FakeQubesd, tmp_path: Path) -> None:
    system.write("work", b"first")
    system.start("work")
    system.write("work", b"live!")
    done = dom0.json("qubes", "backup", "--all")
    assert done["result"] == "complete"
    assert "dom0" in done["qubes"]
    assert {row["volume"] for row in done["volumes"]} >= {"work:private", "work:settings", "dom0:config", "tpl:root"}
    system.stop("work")
    for name in ("work", "disp1"):
        system.remove(name)
    listed = {row["qube"]: row for row in dom0.json("qubes", "list")["qubes"]}
    assert (listed["work"]["here"], listed["vault"]["here"]) == ("", "vault")

    plan = dom0.json("qubes", "restore", "work", "-n")
    assert [(row["qube"], row["action"]) for row in plan["qubes"]] == [("work", "create")]
    assert "work" not in system.qubes
    dom0.ok("qubes", "restore", "work", "disp1")
    assert content(system, "work")[:5] == b"live!"
    assert (system.qubes["work"].label, system.qubes["work"].properties["netvm"]) == ("mine", "sys-net")

    (tmp_path / "dom0root/etc/qubes/note").write_text("changed\n")
    laid = dom0.ok("qubes", "restore", "dom0", "--dom0-to", tmp_path / "beside")
    assert "different now: /etc/qubes/note" in laid.out
    assert (tmp_path / "beside/files/etc/qubes/note").read_text() == "policy\n"


def test_what_is_asked_for_wrongly(dom0: Lamella, system: FakeQubesd, tmp_path: Path) -> None:
    dom0.ok("qubes", "backup", "vault")
    for arguments, code in (
        (["backup", "nobody"], 4),
        (["backup", "--label", "pink"], 4),
        (["restore", "nobody"], 4),
        (["restore", "vault@1999"], 4),
        (["restore", "vault"], 2),
        (["restore", "vault", "--overwrite", "--skip-conflicting"], 2),
        (["restore", "dom0"], 4),
        (["backup", "vault", "--live", "--committed"], 2),
    ):
        done = dom0.run("qubes", *arguments)
        assert (done.code, done.err.count("\n")) == (code, 1), (arguments, done)
    elsewhere = dom0.run("qubes", "backup", env={"LAMELLA_QUBESD_SOCKET": str(tmp_path / "none")})
    assert elsewhere.code == 2
    assert "not dom0" in elsewhere.err


def test_a_qube_that_cannot_be_read_does_not_stop_the_others(dom0: Lamella, system: FakeQubesd) -> None:
    system.path("vault", "private").unlink()
    done = dom0.json("qubes", "backup", "vault", "own", code=3)
    results = {row["volume"]: row["result"] for row in done["volumes"]}
    assert (results["vault:private"], results["own:root"]) == ("failed", "complete")
    assert "backup_timestamp" not in system.qubes["vault"].properties
    assert "backup_timestamp" in system.qubes["own"].properties
    plan = dom0.json("qubes", "restore", "vault", "--rename-conflicting", "-n")
    assert "vault:private is not in this snapshot" in plan["qubes"][0]["notes"]


def test_one_qubes_exported_key_opens_that_qube_only(dom0: Lamella, system: FakeQubesd, tmp_path: Path) -> None:
    system.write("work", b"work's own")
    system.write("vault", b"the vault's")
    dom0.ok("qubes", "backup", "work", "vault")
    key = tmp_path / "work.key"
    dom0.ok("key", "export-domain", "work:private", "--to", key)
    assert key.stat().st_mode & 0o777 == 0o600
    assert dom0.run("key", "export-domain", "work:private", "--to", key).code == 2

    def rescue(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        program = tmp_path / "repository/restore.py"
        fixed = ["--repo", str(tmp_path / "repository"), "--domain-key", str(key)]
        command = [sys.executable, "-I", "-S", str(program), *fixed, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    listed = rescue("list").stdout
    assert "work:private" in listed
    assert "vault" not in listed
    assert rescue("restore", "work:private", "--to", tmp_path / "out.img").returncode == 0
    assert (tmp_path / "out.img").read_bytes()[:10] == b"work's own"
    assert rescue("restore", "vault:private", "--to", tmp_path / "no.img").returncode == 4
    assert not (tmp_path / "no.img").exists()


def test_one_qube_set_back_to_an_older_state_is_noticed(dom0: Lamella, system: FakeQubesd, tmp_path: Path) -> None:
    """Each run is a commit: whoever hides the newest hides it for everybody who saw it, and is found out."""
    dom0.ok("qubes", "backup", "vault")
    system.write("vault", b"newer")
    dom0.ok("qubes", "backup", "vault")
    (newest,) = sorted((tmp_path / "repository/w").glob("*/*"))[-1:]
    newest.unlink()
    done = dom0.run("qubes", "restore", "vault", "--overwrite", "-y")
    assert done.code == 21
    assert content(system, "vault")[:5] == b"newer"
    assert not any("tag.Set" in call for call in system.calls)


def test_paused_qubes_go_on(dom0: Lamella, system: FakeQubesd) -> None:
    system.start("work")
    done = dom0.json("qubes", "backup", "work", "--pause")
    row = next(row for row in done["volumes"] if row["volume"] == "work:private")
    assert row["consistency"] in ("unknown", "quiesced")
    assert system.qubes["work"].state == "Running"
    assert "admin.vm.Pause work" in system.calls
