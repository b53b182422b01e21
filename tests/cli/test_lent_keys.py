"""A qube saves its own files with a key that was lent to it, and the host publishes them (docs/decisions/0107).

The fears: the qube's key opens what is another's; the host believes a ticket that lies, is old or is another qube's; a
snapshot is published that cannot be restored; an unchanged run costs as much as the first; a prune takes what a
published snapshot needs; nobody but the host can restore, or everybody; the qube dies in the middle.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.program import ROOT, Lamella, environment
from tests.system.qrexec import qrexec
from tests.trees import seen

MIB = 1 << 20


@dataclass
class Bench:
    """The host with its repository, and qubes each with a home, a key and a store of its own."""

    host: Lamella
    place: Path

    def qube(self, name: str, store: Path | str = "") -> Lamella:
        """A qube with the key that is lent as NAME-files; its store is made."""
        home, key = self.place / name, self.place / f"{name}.key"
        (home / "letters").mkdir(parents=True)
        (home / "letters" / "one").write_text(f"a letter of {name}\n" * 50)
        (home / "large").write_bytes(random.Random(name).randbytes(2 * MIB))
        if not key.exists():
            self.host.ok("key", "export-domain", f"{name}-files", "--inside", "--to", key)
        env = {
            "LAMELLA_REPO": str(store or self.place / f"{name}-store"),
            "LAMELLA_STATE_DIR": str(self.place / f"{name}-state"),
            "LAMELLA_CACHE_DIR": str(self.place / f"{name}-cache"),
        }
        qube = Lamella(env, ["--keyfile", str(key)])
        qube.ok("init", "-q")
        return qube

    def save(self, qube: Lamella, name: str, *more: str) -> Path:
        """A backup inside; returns the ticket."""
        time.sleep(0.06)  # what was written is older than a tick
        ticket = self.place / f"{name}.ticket"
        qube.ok("files", "backup", self.place / name, "--ticket", ticket, *more)
        return ticket

    def publishing(self, name: str, ticket: Path, store: Path | str = "") -> list[str | Path]:
        """The words of the host's command."""
        origin = store or self.place / f"{name}-store"
        return ["files", "publish", f"{name}-files", "--ticket", ticket, "--from", origin, "--json"]

    def snapshots(self, name: str) -> int:
        """How many there are of NAME-files."""
        done = self.host.run("list", f"{name}-files", "--json")
        return 0 if done.code else len(done.json["snapshots"])


@pytest.fixture
def bench(empty: Lamella, tmp_path: Path) -> Bench:
    """A host with an empty repository."""
    return Bench(empty, tmp_path)


def back(lamella: Lamella, place: Path, volume: str) -> Path:
    """What a restore writes."""
    target = place / f"back{len(list(place.glob('back*')))}"
    target.mkdir()
    lamella.ok("restore", volume, "--to", f"{target}/")
    return target / volume


def test_saved_inside_published_outside_restored_on_both_sides(
    bench: Bench, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with qrexec(monkeypatch) as qubes:
        vault = qubes.qube("vault")
        vault.install_service()
        vault.map("work", vault.home / "of-work")  # the one prefix that the storage qube gives this qube
        store = "qubes://vault/work"
        work = bench.qube("work", store)
        first = bench.host.ok(*bench.publishing("work", bench.save(work, "work"), store)).json
        assert (first["published"], first["mode"]) == (True, "full")
        assert first["stored_bytes"] > 2 * MIB
        # Unchanged, it costs a commit; a small change costs its chunk, the listings and the path of the manifest.
        same = bench.host.ok(*bench.publishing("work", bench.save(work, "work"), store)).json
        assert (same["mode"], same["stored_bytes"], same["new_chunks"]) == ("incremental", 0, 0)
        assert same["metadata_bytes"] < 4096
        (tmp_path / "work" / "letters" / "two").write_text("another letter\n")
        ticket = bench.save(work, "work")
        third = bench.host.ok(*bench.publishing("work", ticket, store)).json
        assert 0 < third["stored_bytes"] < 8192
        again = bench.host.ok(*bench.publishing("work", ticket, store)).json
        assert (again["published"], again["snapshot"]) == (False, third["snapshot"])
        files = seen(tmp_path / "work")
        # What is needed stays when the host prunes, and when the qube prunes its store.
        bench.host.ok("prune", "--keep-last", "1", "-y")
        work.ok("prune", "--keep-last", "1", "-y")
        assert seen(back(work, tmp_path, "work")) == files
        assert set(qubes.calls) == {"vault lamella.Repo"}
    bench.host.ok("verify", "--level", "full")
    assert seen(back(bench.host, tmp_path, "work-files")) == files
    assert seen(rescued(bench, place, "work", bench_key(bench, "work"))) == files


def bench_key(bench: Bench, name: str) -> Path:
    """The key of the same domain with the newest state in it, as a person gets it for an emergency."""
    key = bench.place / f"{name}.later"
    bench.host.ok("key", "export-domain", f"{name}-files", "--to", key)
    return key


def rescued(bench: Bench, place: Path, name: str, key: Path) -> Path:
    """The tree, by the two emergency programs and the domain's key alone."""
    python: list[str | Path] = [sys.executable, "-I", "-S"]
    image, files = bench.place / f"{key.name}.image", bench.place / f"{key.name}.files"
    rescue: list[str | Path] = [
        *python,
        place / "restore.py",
        "restore",
        f"{name}-files",
        "--repo",
        place,
        "--domain-key",
        key,
    ]
    subprocess.run([*rescue, "--to", image], check=True, capture_output=True)
    subprocess.run([*python, ROOT / "src/lamella/unpack.py", image, files], check=True, capture_output=True)
    return files


def test_one_key_opens_the_files_of_one_qube_and_tickets_that_lie_are_refused(
    bench: Bench, place: Path, tmp_path: Path, image: Path
) -> None:
    work, bank = bench.qube("work"), bench.qube("bank")
    bench.host.ok("backup", image)
    bench.host.ok(*bench.publishing("bank", bench.save(bank, "bank")))
    old = bench.save(work, "work").read_bytes()
    bench.host.ok(*bench.publishing("work", bench.save(work, "work")))
    key = bench_key(bench, "work")
    assert seen(rescued(bench, place, "work", key)) == seen(tmp_path / "work")
    # It opens neither the repository nor the other qube's store, and names nothing but its own volume.
    for where in (place, tmp_path / "bank-store"):
        stranger = Lamella({"LAMELLA_REPO": str(where), "LAMELLA_STATE_DIR": str(tmp_path / "s")}, work.options)
        assert stranger.run("list").code == 12
    words: list[str | Path] = [sys.executable, "-I", "-S", place / "restore.py"]
    for name in ("bank-files", "disk"):
        out = tmp_path / f"{name}.stolen"
        more: list[str | Path] = ["restore", name, "--repo", place, "--domain-key", key, "--to", out]
        done = subprocess.run([*words, *more], capture_output=True, text=True)
        assert (done.returncode, out.exists()) == (4, False), done
    # A volume of the host cannot join the domain of a key that was lent, and no name is lent twice.
    assert bench.host.run("backup", f"work-files={small_image(tmp_path)}", "--adopt").code == 2
    assert bench.host.run("key", "export-domain", "disk", "--inside", "--to", tmp_path / "no.key").code == 2
    # A key that was lent makes no further secrets for the store, whose names they would open.
    assert work.run("key", "add", "--recovery", "--recovery-sheet", tmp_path / "sheet").code == 2

    def refused(content: bytes, name: str = "work", store: str = "work") -> str:
        (tmp_path / "ticket").write_bytes(content)
        done = bench.host.run(*bench.publishing(name, tmp_path / "ticket", tmp_path / f"{store}-store"))
        assert done.code == 3, done
        return done.err

    assert "not of a later moment" in refused(old)
    theirs = bench.save(bank, "bank").read_bytes()
    assert "not the key that was lent as work" in refused(theirs, store="bank")
    assert "not the key" in refused(theirs[:-1] + bytes([theirs[-1] ^ 1]), "bank", "bank")
    (tmp_path / "work" / "new").write_bytes(os.urandom(MIB))
    good = bench.save(work, "work")
    # Another store has none of it; and too much is too much.
    assert "is in no pack" in refused(good.read_bytes(), store="bank")
    assert bench.host.run(*bench.publishing("work", good), "--max-size", "512K").code == 3
    assert bench.snapshots("work") == 1
    assert bench.host.ok(*bench.publishing("work", good)).json["published"]


def small_image(place: Path) -> Path:
    """A small image."""
    path = place / "other.img"
    path.write_bytes(os.urandom(1000))
    return path


def test_a_qube_that_dies_goes_on_and_one_that_lost_its_state_does_too(bench: Bench, tmp_path: Path) -> None:
    work = bench.qube("work")
    (tmp_path / "work" / "huge").write_bytes(os.urandom(24 * MIB))
    words = [*work.command, *work.options, "files", "backup", str(tmp_path / "work")]
    dying = subprocess.Popen([*words, "--read-rate", "4M"], env=environment(work.env), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not list((tmp_path / "work-store" / "p").glob("*/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    dying.send_signal(signal.SIGKILL)
    dying.wait()
    ticket = bench.save(work, "work")
    bench.host.ok(*bench.publishing("work", ticket))
    # A disposable remembers nothing: the files are read again, and nothing is stored twice, here or there.
    for name in ("state", "cache"):
        (tmp_path / f"work-{name}").rename(tmp_path / f"gone-{name}")
    ticket = bench.save(work, "work", "--adopt")
    assert bench.host.ok(*bench.publishing("work", ticket)).json["stored_bytes"] < 8192
    # The store is lost as well: it is begun anew, and the volume goes on.
    (tmp_path / "work-store").rename(tmp_path / "gone-store")
    work.ok("init", "-q")
    ticket = bench.save(work, "work")
    assert bench.host.ok(*bench.publishing("work", ticket)).json["stored_bytes"] < 8192
    assert bench.snapshots("work") == 3
    assert seen(back(bench.host, tmp_path, "work-files")) == seen(tmp_path / "work")
