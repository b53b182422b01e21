"""Restoring through a disposable that opens and decodes: what dom0 believes of it, and what one that lies achieves."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError
from lamella.memory.host import Host
from lamella.qubes.admin import Admin
from lamella.qubes.paranoid import near
from lamella.qubes.paranoid.disposable import NAME, decoded_in_disposables
from lamella.qubes.restore import QubesRestore
from lamella.qubes.restore_plan import RestoreWishes
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from lamella.stores.pipe import bundle
from lamella_kit.fake_qubesd import FakeQubesd
from tests.cli.program import Lamella, environment
from tests.fault.world import SECRET
from tests.qubes import stories
from tests.qubes.conftest import populate
from tests.qubes.disposables import disposables, lying
from tests.qubes.system import back_up, content, essence, planner
from tests.system import loop_fs

OVERWRITE = RestoreWishes(overwrite=True)
_NOBODY = "setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs --inh-caps=-all"
ALONE = f"unshare --net --ipc --uts {_NOBODY} {shlex.join(bundle.ARGV_WITH_LIBRARIES)}" if not os.geteuid() else None
"""What dom0 sends along, run by nobody and without a network: nearer to a disposable than a process like any other."""
SAVED: dict[str, bytes] = {}
"""By qube, what was saved of its private volume."""


@pytest.fixture
def saved(store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd) -> Iterator[Repository]:
    """Two snapshots of `work`, whose volume has changed since."""
    system.write("work", os.urandom(400_000))
    back_up(store, host, admin, "work")
    system.write("work", os.urandom(70_000), offset=800_000)
    back_up(store, host, admin, "work")
    SAVED["work"] = content(system, "work")
    system.write("work", b"newer")
    with Repository.open(store, SECRET, host) as repo:
        yield repo


def attempt(repo: Repository, admin: Admin) -> str | None:
    """Restore `work` through a disposable; what went wrong, None if nothing did."""
    try:
        with decoded_in_disposables(admin, repo, ""):
            rows = planner(repo, admin, ["work"], OVERWRITE).rows()
            (result,) = QubesRestore(repo, admin, rows, OVERWRITE).execute(workers=2)
    except LamellaError as error:
        return error.message
    assert (result.result == "failed") == bool(result.error)
    return result.error or None


@pytest.fixture
def dom0(tmp_path: Path, system: FakeQubesd) -> Lamella:
    """Two snapshots, the second of which leans on packs of the first."""
    lamella = stories.command(system, tmp_path)
    system.write("work", os.urandom(700_000))
    system.write("own", os.urandom(300_000), volume="root")
    lamella.ok("qubes", "backup", "work", "own")
    system.write("work", b"text" * 25_000, offset=300_000)
    lamella.ok("qubes", "backup", "work", "own")
    return lamella


def test_what_comes_through_a_disposable_is_what_was_saved(
    dom0: Lamella, system: FakeQubesd, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: essence(system.qubes[name]) for name in ("work", "own")}
    saved = {(name, volume): content(system, name, volume) for name, volume in (("work", "private"), ("own", "root"))}
    for name in ("work", "own"):
        system.remove(name)
    imports = {"PYTHONPROFILEIMPORTTIME": "1"}  # each import is a line on standard error
    with disposables(monkeypatch, system, ALONE) as bench:
        done = dom0.run("--json", "qubes", "restore", "--paranoid", "work", "own", env=imports)
        assert done.code == 0 and {row["result"] for row in done.json["qubes"]} == {"restored"}, done
        assert "lamella.qubes.paranoid.near" in done.err and "zstd" not in done.err and "zstandard" not in done.err
        calls = bench.calls
    assert {name: essence(system.qubes[name]) for name in before} == before
    assert {place: content(system, *place) for place in saved} == saved
    # Never two domains in one: the settings of both, then the volumes; own's is used for its volumes as well.
    started = [call.split()[-1] for call in system.calls if call.startswith("admin.vm.Start ")]
    assert len(started) == len(set(started)) == 3 and all(name.startswith(NAME) for name in started)
    assert calls == [f"{name} qubes.VMExec" for name in started]
    assert not any(name.startswith(NAME) for name in system.qubes)
    here = dom0.run("qubes", "restore", "work", "--overwrite", "-y", env=imports)
    assert here.code == 0 and "lamella.format.zstd" in here.err and "lamella.packs.blobmap" in here.err, here


@pytest.mark.parametrize("lost", ["nothing", "difference", "base"])
def test_chunks_that_are_stored_as_differences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    """The disposable makes them; dom0 parses no difference. What cannot be made is said, and the old state stays."""
    with (
        loop_fs.make("xfs") as pool,
        FakeQubesd(tmp_path / "run", {"varlibqubes": pool}, volume_size=4 << 20) as system,
    ):
        populate(system)
        dom0 = stories.command(system, tmp_path)
        (tmp_path / "deltas.toml").write_text("[backup]\ndeltas = true\n")
        dom0.env["LAMELLA_CONFIG"] = str(tmp_path / "deltas.toml")
        system.write("work", os.urandom(3 << 20))
        dom0.ok("qubes", "backup", "work")
        packs = {"base": set(_packs(tmp_path))}
        for at in range(0, 3 << 20, 300_000):
            system.write("work", b"newer", offset=at)
        second = dom0.json("qubes", "backup", "work")
        packs["difference"] = set(_packs(tmp_path)) - packs["base"]
        assert second["stored_bytes"] < 200_000, "differences"
        shutil.rmtree(pool / ".lamella")  # or the volume would begin as its checkpoint, and nothing be fetched
        saved = content(system, "work")
        system.write("work", b"now")
        before = old_state(system)
        if lost in packs:
            max(packs[lost], key=lambda pack: pack.stat().st_size).unlink()
        imports = {"PYTHONPROFILEIMPORTTIME": "1"}
        with disposables(monkeypatch, system, ALONE):
            done = dom0.run("qubes", "restore", "--paranoid", "work", "--overwrite", "-y", env=imports)
        if lost == "nothing":
            assert done.code == 0 and content(system, "work") == saved, done
            assert "lamella.format.node" in done.err and "lamella.format.difference" not in done.err
        else:
            assert done.code in (3, 20) and "no pack holds it" in done.out + done.err, done
            assert old_state(system) == before


def _packs(place: Path) -> list[Path]:
    return [one for one in (place / "repository" / "p").rglob("*") if one.is_file()]


LIES = {
    "other": "something else than was requested",
    "replay": "was not believed",
    "longer": "was not believed",
    "shorter": "something else than was requested",
    "die": "ended before it had answered: ?[31mout of ?memory",
    "silence": "did not answer in time",
    "deaf": "data that it does not need",
    "endless": "data that it does not need",
    "foreign": "data that it does not need",
    "more": "more packs than there are",
    "flood": "was not believed",
    "noise": "did not answer in time",
    "swap": "",
    "twice": "",
    "junk": "was not believed",
    "request": "out of turn",
}


def old_state(system: FakeQubesd) -> dict[str, object]:
    """Everything that a restore could change."""
    qubes = {name: (essence(qube), sorted(qube.tags), qube.state) for name, qube in system.qubes.items()}
    files = {path: path.read_bytes() for path in system.pools["varlibqubes"].path("").parent.rglob("*.img*")}
    return {"qubes": qubes, "files": files}


@pytest.mark.parametrize("how", LIES)
def test_a_disposable_that_lies_changes_nothing(
    how: str, saved: Repository, system: FakeQubesd, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(near, "ANSWER_SECONDS", 4.0)
    before = old_state(system)
    with disposables(monkeypatch, system, lying(how)):
        said = attempt(saved, admin)
    assert said is not None, "it was found out"
    assert LIES[how] in said and said.isprintable() and len(said) < 500, said
    assert old_state(system) == before


@pytest.mark.parametrize("seed", range(int(os.environ.get("LAMELLA_LIES", "24"))))
def test_no_mutation_of_what_it_says_changes_anything(
    seed: int, saved: Repository, system: FakeQubesd, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One frame of each: all of the saved state comes, or all of the old stays. LAMELLA_LIES=1000 by hand."""
    monkeypatch.setattr(near, "SILENCE_SECONDS", 1.0)
    before = old_state(system)
    with disposables(monkeypatch, system, lying("random", seed)):
        said = attempt(saved, admin)
    if said is None:
        assert content(system, "work") == SAVED["work"]
    else:
        assert said.isprintable() and len(said) < 500, said
        assert old_state(system) == before


def test_a_single_volume_through_a_disposable(
    dom0: Lamella, system: FakeQubesd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dom0.ok("restore", "work:settings", "--document", "settings.json", "--to", tmp_path / "here")
    with disposables(monkeypatch, system, ALONE) as bench:
        dom0.ok("restore", "work:private", "--to", tmp_path / "out.img", "--in", "dvm")
        dom0.ok("restore", "work:settings", "--document", "settings.json", "--to", tmp_path / "there", "--in", "dvm")
        assert len(bench.calls) == 2
    assert (tmp_path / "out.img").read_bytes() == content(system, "work"), settings
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    refused = dom0.run("restore", "work:private", "--to", tmp_path / "no.img", "--in", "vault")
    assert refused.code == 1 and "template_for_dispvms" in refused.err and not (tmp_path / "no.img").exists(), refused
    assert not any(name.startswith(NAME) for name in system.qubes)


def test_from_a_storage_qube_through_a_disposable(
    system: FakeQubesd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dom0 stands between two qubes, and neither reaches the other."""
    with disposables(monkeypatch, system, ALONE) as bench:
        vault = bench.qube("vault")
        vault.install_service()
        vault.map("main", vault.home / "store", "--append-only")
        dom0 = stories.command(system, tmp_path, "qubes://vault/main")
        system.write("work", os.urandom(300_000))
        dom0.ok("qubes", "backup", "work")
        wanted = content(system, "work")
        system.write("work", b"newer")
        dom0.ok("qubes", "restore", "--paranoid", "work", "--overwrite", "-y")
        assert content(system, "work") == wanted
        (one,) = {call.split()[0] for call in bench.calls} - {"vault"}
        assert {call for call in bench.calls if call.startswith(one)} == {f"{one} qubes.VMExec"}


# -- what ends it early -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_ends_dom0s_command_leaves_the_old_state(
    how: signal.Signals, dom0: Lamella, system: FakeQubesd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed outright, it tidies nothing up: the next restore ends the disposable with the key, and the import."""
    wanted = content(system, "work")
    system.write("work", b"newer")
    old = content(system, "work")
    words = [*dom0.command, *dom0.options, "qubes", "restore", "--paranoid", "work", "--overwrite", "-y"]
    with disposables(monkeypatch, system, lying("silence-late")):
        running = subprocess.Popen(words, env=environment(dom0.env), stderr=subprocess.PIPE, text=True)
        while not system.qubes["work"].importing and running.poll() is None:
            time.sleep(0.05)
        time.sleep(0.2)
        running.send_signal(how)
        _, said = running.communicate(timeout=30)
        assert "Traceback" not in said, said
        left = [name for name in system.qubes if name.startswith(NAME)]
        assert content(system, "work") == old
        assert bool(left) == bool(system.qubes["work"].importing) == (how == signal.SIGKILL)
        assert ("backup-restore-in-progress" in system.qubes["work"].tags) == (how == signal.SIGKILL)
    with disposables(monkeypatch, system):
        said = dom0.ok("qubes", "restore", "--paranoid", "work", "--overwrite", "-y").err
    assert all(f"{name}: left by an earlier run, ended" in said for name in left)
    assert content(system, "work") == wanted
    assert not any(name.startswith(NAME) for name in system.qubes)


def test_what_is_missing_in_the_template_is_said(
    dom0: Lamella, system: FakeQubesd, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = shlex.join(word for word in bundle.ARGV)  # without the libraries of that Python
    with disposables(monkeypatch, system, bare):
        done = dom0.run("qubes", "restore", "--paranoid", "work", "--overwrite", "-y")
    assert done.code == 3 and "install python3-cryptography and python3-zstandard in its template" in done.err, done
    assert done.err.count("\n") == 1, done
    del system.globals["default_dispvm"]
    done = dom0.run("qubes", "restore", "--paranoid", "work", "--overwrite", "-y")
    assert done.code == 2 and "--in QUBE" in done.err, done


def test_damage_in_the_repository_is_named_as_such(
    dom0: Lamella, system: FakeQubesd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.write("work", b"newer")
    before = old_state(system)
    for pack in (tmp_path / "repository/p").glob("*/*"):
        pack.chmod(0o600)
        damaged = bytearray(pack.read_bytes())
        damaged[-1000] ^= 1
        pack.write_bytes(damaged)
    with disposables(monkeypatch, system):
        done = dom0.run("qubes", "restore", "--paranoid", "work", "own", "--overwrite", "-y")
    assert done.code in (3, 20) and "no pack holds it" in done.out + done.err, done
    assert old_state(system)["files"] == before["files"]
