"""Committed repositories, restored by Lamella and by the emergency reader, two programs that share no code."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lamella.crypto.recovery import recovery_key
from lamella.crypto.slots import Secret, key_file, passphrase
from lamella.operations.restore.restore import RestoreOptions, plan_restore
from lamella.operations.shared.selection import select
from lamella.operations.shared.streaming import read_document
from lamella.repository.readme import rescue_source
from lamella.repository.repository import Repository
from lamella.stores.local.store import LocalStore
from tests.fault.world import SECRET, Truth, backup, check_sound, fresh_host, verified, volume

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.tar"))
SECONDS = 120


@dataclass
class Golden:
    """An unpacked repository and what is known about it."""

    repo: Path
    expected: dict[str, Any]
    scratch: Path

    def secrets(self) -> dict[str, Secret]:
        known = self.expected
        return {
            "key file": key_file(bytes.fromhex(known["keyfile"])),
            "writer's key file": key_file(bytes.fromhex(known["writer_keyfile"])),
            "passphrase": passphrase(known["passphrase"]),
            "recovery key": recovery_key(known["recovery"]),
        }

    def rescue_secret(self, kind: str) -> tuple[list[str], dict[str, str]]:
        """Options and environment for the emergency reader."""
        path = self.scratch / "secret"
        if kind == "passphrase":
            path.write_text(self.expected["passphrase"] + "\n", "utf-8")
            return [], {"LAMELLA_PASSPHRASE_FILE": str(path)}
        if kind == "recovery key":
            path.write_text(self.expected["recovery"] + "\n", "utf-8")
            return ["--recovery-key-file", str(path)], {}
        path.write_bytes(bytes.fromhex(self.expected["keyfile" if kind == "key file" else "writer_keyfile"]))
        return ["--keyfile", str(path)], {}

    def rescue(self, kind: str, *words: str) -> str:
        """Run a copy of the emergency reader the safe way; returns what it prints."""
        place = self.scratch / "copy"
        place.mkdir(exist_ok=True)
        copy = place / "reader.py"
        copy.write_bytes(rescue_source())
        options, environment = self.rescue_secret(kind)
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(copy), *words, "--repo", str(self.repo), *options],
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", **environment},
            cwd=place,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    repo = tmp_path / "repository"
    repo.mkdir()
    with tarfile.open(HERE / f"{request.param}.tar") as archive:
        archive.extractall(repo, filter="data")
    return Golden(repo, json.loads((HERE / f"{request.param}.json").read_text("utf-8")), tmp_path)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_they_are_there_and_small() -> None:
    assert NAMES == ["blake-ids", "compacted", "deltas", "hmac-ids"]
    assert sum(path.stat().st_size for path in HERE.iterdir() if path.is_file()) < 256 * 1024


@pytest.mark.parametrize("kind", ["key file", "writer's key file", "passphrase", "recovery key"])
def test_lamella_restores_every_snapshot(golden: Golden, kind: str) -> None:
    store = LocalStore.open(golden.repo, read_only=True)
    with Repository.open(store, golden.secrets()[kind], fresh_host(golden.scratch / "host")) as repo:
        everything = {one.text: one for one in select(repo, [])}
        assert set(everything) == set(golden.expected["snapshots"])
        for text, one in everything.items():
            target = golden.scratch / "out.img"
            plan_restore(repo, one, target, RestoreOptions(overwrite=True)).execute()
            known = golden.expected["snapshots"][text]
            assert (target.stat().st_size, digest(target)) == (known["size"], known["sha256"]), text
            documents = {row.name for row in one.snapshot.added.documents}
            assert documents == set(golden.expected["documents"][text])
            for name, sha256 in golden.expected["documents"][text].items():
                assert hashlib.sha256(read_document(repo, one, name)).hexdigest() == sha256
        result = verified(repo)
        assert not result.findings and not result.unrestorable
    store.close()


def test_both_readers_know_the_tags_and_hide_what_was_removed(golden: Golden) -> None:
    tags = golden.expected.get("tags", {})
    store = LocalStore.open(golden.repo, read_only=True)
    with Repository.open(store, golden.secrets()["writer's key file"], fresh_host(golden.scratch / "host")) as repo:
        assert {one.text: list(one.snapshot.tags) for one in select(repo, []) if one.snapshot.tags} == tags
        assert repo.problems == []
        sessions, removed = len(repo.catalogue.sessions), len(repo.catalogue.removed)
        heads = {chain.writer: chain.begin for chain in repo.history.chains.values()}
    store.close()
    listed = golden.rescue("key file", "list").splitlines()
    assert len(listed) - 2 == len(golden.expected["snapshots"])
    for text, words in tags.items():
        volume = text.partition("@")[0]
        assert all(any(f"^{word}" in line for line in listed) for word in words)
        target = golden.scratch / "tagged.img"
        golden.rescue("key file", "restore", f"{volume}@^{words[0]}", "--to", str(target))
        assert digest(target) == golden.expected["snapshots"][text]["sha256"]
    if tags:  # the one that was compacted
        assert (sessions, removed) == (1, 0)
        assert all(heads.values())


@pytest.mark.parametrize("kind", ["key file", "passphrase", "recovery key"])
def test_the_emergency_reader_restores_every_snapshot(golden: Golden, kind: str) -> None:
    target = golden.scratch / "out.img"
    texts = sorted(golden.expected["snapshots"])
    for text in texts if kind == "key file" else texts[:1]:
        golden.rescue(kind, "restore", text, "--to", str(target), "--overwrite")
        known = golden.expected["snapshots"][text]
        assert (target.stat().st_size, digest(target)) == (known["size"], known["sha256"]), text
        for name, sha256 in golden.expected["documents"][text].items():
            golden.rescue(kind, "restore", text, "--document", name, "--to", str(target), "--overwrite")
            assert digest(target) == sha256
    listed = golden.rescue(kind, "list")
    assert all(text.partition("@")[2] in listed for text in texts)


def test_a_golden_repository_can_be_continued(golden: Golden) -> None:
    """What an old version wrote is a base for new snapshots, by a host that never saw it."""
    work = golden.scratch / "work"
    shutil.copytree(golden.repo, work)
    store, host = LocalStore.open(work), fresh_host(golden.scratch / "host", "later")
    name = sorted(golden.expected["snapshots"])[-1].partition("@")[0]
    before = {path for path in work.rglob("*") if path.is_file()}
    content = b"later" * 30000
    truth = Truth()
    truth.learn(backup(store, host, volume(content, name), secret=SECRET), {name: content})
    assert before < {path for path in work.rglob("*") if path.is_file()}
    with Repository.open(store, SECRET, host) as repo:
        for one in select(repo, []):
            if one.text in golden.expected["snapshots"]:
                target = golden.scratch / "old.img"
                plan_restore(repo, one, target, RestoreOptions(overwrite=True)).execute()
                assert digest(target) == golden.expected["snapshots"][one.text]["sha256"]
                truth.volumes[one.text] = target.read_bytes()
    check_sound(store, host, truth, golden.scratch)
    store.close()
