"""Profiles in dom0, as their users fear them: a qube that nobody saves, one that is gone and takes the others' backup
along, "good" although only half was saved; and a setup that stops in front of Qubes OS.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lamella_kit.fake_qubesd import FakeQubesd
from tests.cli.program import Lamella
from tests.qubes.system import content


@dataclass
class Dom0:
    """dom0 with two repositories, a directory of its own and an image."""

    folder: Path
    lamella: Lamella

    def configure(self, body: str, more: str = "") -> None:
        """The configuration with the body of [profiles.nightly] and further tables."""
        repositories = "".join(
            f'[repositories.{name}]\nurl = "{self.folder}/{name}"\nkeyfile = "{self.folder}/key"\n'
            for name in ("main", "usb")
        )
        told = f"[profiles.nightly.notify]\ncommand = \"sh -c 'cat >> {self.folder}/told'\"\n"
        (self.folder / "etc").mkdir(exist_ok=True)
        text = f"{repositories}[profiles.nightly]\n{body}\n{told}{more}\n"
        (self.folder / "etc/nightly.toml").write_text(text)

    def run(self, code: int = 0) -> list[tuple[str, str, str]]:
        rows = self.document(code)["steps"]
        return [(row["step"], row["repository"], row["result"]) for row in rows]

    def document(self, code: int = 0) -> dict[str, Any]:
        return self.lamella.json("run", "nightly", code=code)

    def volumes(self, repository: str = "main") -> set[str]:
        return {row["volume"] for row in self.lamella.json("list", "-r", repository)["volumes"]}


@pytest.fixture
def dom0(tmp_path: Path, system: FakeQubesd) -> Dom0:
    (tmp_path / "key").write_bytes(os.urandom(32))
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter").write_text("dear")
    env = {f"LAMELLA_{what}_DIR": str(tmp_path / what) for what in ("STATE", "CACHE")}
    env |= {"LAMELLA_CONFIG": str(tmp_path / "etc"), "LAMELLA_QUBESD_SOCKET": str(system.place), "HOME": str(tmp_path)}
    made = Dom0(tmp_path, Lamella(env))
    made.configure("", "[profiles.nightly.qubes]")
    for name in ("main", "usb"):
        made.lamella.ok("init", "-q", "-r", name)
    return made


def test_qubes_by_tag_without_those_that_are_excluded(dom0: Dom0, system: FakeQubesd) -> None:
    system.qubes["vault"].tags.add("keep")
    system.qubes["own"].tags.add("keep")
    body = 'repositories = ["main", "usb"]\nprune = { keep_last = 1 }\nverify = "sample"'
    dom0.configure(body, '[profiles.nightly.qubes]\ntags = ["keep"]\nexclude = ["own", "deleted-long-ago"]')
    steps = dom0.run()
    assert steps == [
        *(("qubes backup", name, "done") for name in ("main", "usb")),
        *((step, name, "done") for name in ("main", "usb") for step in ("prune", "verify")),
    ]
    for name in ("main", "usb"):
        assert {one.partition(":")[0] for one in dom0.volumes(name)} == {"work", "vault"}
    (row,) = dom0.lamella.json("status")["profiles"]
    assert set(row["good"]) == {"main", "usb"} and row["state"] == "ok"
    dom0.run()
    listed = dom0.lamella.json("list", "-r", "main")
    assert {row["snapshots"] for row in listed["volumes"]} == {1}, "the qubes' volumes were not pruned"
    shown = dom0.lamella.ok("run", "nightly", "-n").out
    assert "lamella qubes backup --if-available -r main --tag keep --exclude own" in shown
    assert "profiles.nightly.qubes.tags" in dom0.lamella.ok("config", "show").out
    system.write("work", b"back?")
    system.stop("work")
    dom0.lamella.ok("qubes", "restore", "-r", "usb", "work", "--overwrite", "-y")
    assert content(system, "work")[:5] != b"back?"


def test_a_qube_that_is_gone_fails_alone_and_is_told(dom0: Dom0, system: FakeQubesd) -> None:
    dom0.configure('repositories = ["main"]\nverify = false', '[profiles.nightly.qubes]\nnames = ["work", "vault"]')
    dom0.run()
    system.remove("work")
    system.write("vault", b"later")
    assert dom0.run(3) == [("qubes backup", "main", "incomplete")]
    assert "there is no qube called work" in (dom0.folder / "told").read_text()
    rows = {row["volume"]: row["snapshots"] for row in dom0.lamella.json("list", "-r", "main")["volumes"]}
    assert rows["vault:private"] == 2 and rows["work:private"] == 1
    profile = dom0.lamella.json("status", code=3)["profiles"][0]
    assert profile["state"] == "bad"
    system.remove("vault")
    assert dom0.run(3) == [("qubes backup", "main", "failed")]


def test_half_a_run_is_not_good(dom0: Dom0, system: FakeQubesd, tmp_path: Path) -> None:
    """Images, qubes and directories in one profile: each is a step, and all of them make it good."""
    (tmp_path / "disk.img").write_bytes(os.urandom(1 << 20))
    tables = f'[profiles.nightly.qubes]\nnames = ["work"]\n[profiles.nightly.files]\ndirectories = ["{tmp_path}/home"]'
    dom0.configure(f'sources = ["{tmp_path}/disk.img"]\nrepositories = ["main"]\nverify = false', tables)
    saves = ["backup", "qubes backup", "files backup"]
    assert dom0.run() == [(step, "main", "done") for step in saves]
    assert {"disk", "work:private", "home"} <= dom0.volumes()
    first = dom0.lamella.json("status", code=3)["profiles"][0]["good"]["main"]
    system.path("work", "private").unlink()
    found = dom0.run(3)
    assert found == [(step, "main", "incomplete" if step == "qubes backup" else "done") for step in saves]
    assert dom0.lamella.json("status", code=3)["profiles"][0]["good"]["main"] == first


def test_setup_saves_the_marked_qubes_and_proves_it(dom0: Dom0, system: FakeQubesd, tmp_path: Path) -> None:
    system.write("vault", b"precious")
    for name in ("work", "vault"):
        system.qubes[name].properties["include_in_backups"] = "True"
    for path in (tmp_path / "etc").iterdir():
        path.unlink()
    done = dom0.lamella.json("setup", "-y", "-r", tmp_path / "disk/lamella", "--when", "never", "--tell", "nobody")
    assert done["result"] == "complete"
    results = {row["step"]: row["result"] for row in done["steps"]}
    assert results["run"] == results["restore"] == "done" and "compare" not in results
    assert {"work:private", "vault:private", "vault:settings"} <= {
        row["volume"] for row in dom0.lamella.json("list", "-r", "main")["volumes"]
    }
    again = dom0.lamella.run("setup", "-y")
    assert again.code == 0, again.err
