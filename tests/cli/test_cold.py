"""Packs in a class from which the service must thaw them: asked for, waited for, and never taken for damaged or lost.

The service is real (moto answers as Amazon does, InvalidObjectState included). What its lifecycle would do by night the
tests do by day: they move what the rule of `lamella init` names.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.program import COMMAND, Lamella, environment
from tests.s3_proxy import Proxy, proxied
from tests.s3_services import CREDENTIALS, S3Service, moto
from tests.system import loop_fs

MIB = 1 << 20
PREFIX = "hosts/one/"
_NEVER = 1_000_000


@pytest.fixture(scope="module")
def service() -> Iterator[S3Service]:
    with moto() as found:
        yield found


@pytest.fixture(scope="module")
def proxy(service: S3Service) -> Iterator[Proxy]:
    with proxied(service) as found:
        yield found


@dataclass
class Glacier:
    """A bucket, its repository, and what a night of its lifecycle does."""

    service: S3Service
    bucket: str
    lamella: Lamella
    rule: dict[str, Any]
    home: Path

    def kept(self) -> list[str]:
        """The names of everything that the rule means."""
        wanted = self.rule["Filter"]["And"]
        rows = self.service.client.list_objects_v2(Bucket=self.bucket, Prefix=wanted["Prefix"])["Contents"]
        return [row["Key"] for row in rows if row["Size"] > wanted["ObjectSizeGreaterThan"]]

    def moved(self) -> list[str]:
        """Move all of it; returns the names."""
        cold = self.kept()
        for key in cold:
            self.service.client.copy_object(
                Bucket=self.bucket,
                Key=key,
                CopySource={"Bucket": self.bucket, "Key": key},
                StorageClass=self.rule["Transitions"][0]["StorageClass"],
            )
        return cold

    def thaws_after(self, questions: int) -> None:
        """An object that is asked for is ready after so many questions."""
        body = {"model_name": "s3::keyrestore", "transition": {"progression": "manual", "times": questions}}
        where = f"{self.service.endpoint}/moto-api/state-manager/set-transition"
        with urllib.request.urlopen(urllib.request.Request(where, json.dumps(body).encode())) as answer:
            assert answer.status == 201

    def elsewhere(self, name: str) -> dict[str, str]:
        """Another machine, or this one without its state."""
        return {f"LAMELLA_{one}_DIR": str(self.home / name / one) for one in ("STATE", "CACHE")}


@pytest.fixture
def glacier(service: S3Service, proxy: Proxy, keyfile: Path, tmp_path: Path) -> Glacier:
    bucket = service.new_bucket()
    place = f"s3://{bucket}/{PREFIX}?cold-after=30&storage-class=GLACIER&endpoint={proxy.through.endpoint}"
    lamella = Lamella({**CREDENTIALS, "LAMELLA_REPO": place}, ["--keyfile", str(keyfile)])
    made = lamella.json("init")
    rules = json.loads(made["lifecycle"])["Rules"]
    assert len(rules) == 1 and rules[0]["Transitions"] == [{"Days": 30, "StorageClass": "GLACIER"}]
    proxy.forget()
    return Glacier(service, bucket, lamella, rules[0], tmp_path)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """An image of which nothing can be compressed."""
    path = tmp_path / "big.img"
    path.write_bytes(os.urandom(20 * MIB))
    return path


def asked(proxy: Proxy) -> int:
    """How many objects the service was asked to thaw since it was counted last."""
    count = sum(seen.method == "POST" and "restore" in seen.path for seen in proxy.requests)
    proxy.forget()
    return count


def test_a_restore_lists_asks_waits_and_goes_on_after_ctrl_c(
    glacier: Glacier, proxy: Proxy, big: Path, tmp_path: Path
) -> None:
    lamella, out = glacier.lamella, tmp_path / "out.img"
    lamella.ok("backup", big)
    cold = glacier.moved()
    assert len(cold) >= 2 and all(key.startswith(f"{PREFIX}p/") for key in cold)
    size = sum(glacier.service.client.head_object(Bucket=glacier.bucket, Key=key)["ContentLength"] for key in cold)
    fresh = glacier.elsewhere("fresh")

    for env in ({}, fresh):  # a machine that knows the packs, and one that knows them by their segments alone
        refused = lamella.run("restore", "big", "--to", out, env=env)
        assert refused.code == 1 and "--thaw" in refused.err and f"{len(cold)} packs" in refused.err, refused
        assert all(key.removeprefix(PREFIX) in refused.err for key in cold)
        dry = lamella.run("--json", "restore", "-n", "big", "--to", out, env=env)
        assert (dry.json["thawed_packs"], dry.json["thawed_bytes"]) == (len(cold), size)
        assert asked(proxy) == 0 and not out.exists()

    glacier.thaws_after(_NEVER)
    command = [*COMMAND, *lamella.options, "restore", "big", "--to", str(out), "--thaw"]
    running = subprocess.Popen(command, env=environment({**lamella.env, **fresh}), stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    while "waiting for the service" not in (line := running.stderr.readline()):
        assert line
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and "goes on" in said, said
    assert asked(proxy) == len(cold) and not out.exists()

    glacier.thaws_after(1)  # for those not yet asked; those that are, are ready with the next question
    done = lamella.run("--json", "restore", "big", "--to", out, env=fresh)
    assert done.code == 0, done
    assert asked(proxy) == 0
    assert out.read_bytes() == big.read_bytes()


def test_an_export_has_cold_packs_thawed(glacier: Glacier, proxy: Proxy, big: Path, tmp_path: Path) -> None:
    lamella, out = glacier.lamella, tmp_path / "out.img"
    lamella.ok("backup", big)
    cold = glacier.moved()
    glacier.thaws_after(1)
    assert "--thaw" in lamella.run("export", "big", "--to", out).err
    lamella.ok("export", "big", "--to", out, "--thaw", "--thaw-tier", "bulk", "--thaw-days", "2")
    assert asked(proxy) == len(cold) and out.read_bytes() == big.read_bytes()


def test_packs_that_hold_nothing_but_bases_are_thawed_too(
    glacier: Glacier, proxy: Proxy, big: Path, tmp_path: Path
) -> None:
    """Every chunk is stored as its difference from one in a cold pack."""
    lamella, out = glacier.lamella, tmp_path / "out.img"
    with loop_fs.make("btrfs") as folder:
        image = folder / "big.img"
        image.write_bytes(big.read_bytes())
        lamella.ok("backup", image, "--deltas")
        with image.open("r+b") as file:
            for at in range(0, 20 * MIB, 64 * 1024):
                file.seek(at)
                file.write(os.urandom(100))
        second = lamella.json("backup", image, "--deltas")
        assert second["stored_bytes"] < 4 * MIB, "differences, in packs that stay warm"
        expected = image.read_bytes()
    cold = glacier.moved()
    glacier.thaws_after(1)
    refused = lamella.run("restore", "big", "--to", out)
    assert refused.code == 1 and f"{len(cold)} packs" in refused.err, refused
    lamella.ok("restore", "big", "--to", out, "--thaw")
    assert asked(proxy) == len(cold) and out.read_bytes() == expected


def test_what_is_cold_is_neither_damaged_nor_proven_nor_lost(glacier: Glacier, big: Path, tmp_path: Path) -> None:
    """Verified and pruned here and elsewhere, backed up again; then everything is thawed, and whole."""
    lamella, out = glacier.lamella, tmp_path / "out.img"
    first = lamella.json("backup", big)["snapshot"]
    before = big.read_bytes()
    with big.open("r+b") as file:
        file.write(os.urandom(9 * MIB))
    second = lamella.json("backup", big)
    # Of this volume's packs nothing is needed once its first snapshot is gone; of the other one's a part.
    gone = tmp_path / "gone.img"
    gone.write_bytes(os.urandom(4 * MIB))
    removed = [f"big@{first}", f"gone@{lamella.json('backup', gone)['snapshot']}"]
    gone.write_bytes(bytes(4 * MIB))
    lamella.ok("backup", gone)
    cold = glacier.moved()
    glacier.thaws_after(1)
    fresh, third = glacier.elsewhere("fresh"), glacier.elsewhere("third")
    for env in ({}, fresh):
        found = lamella.run("--json", "verify", "--level", "full", env=env)
        assert found.code == 0 and found.json["unrestorable"] == [] and found.json["recorded"] == 0, found
        assert [row["kind"] for row in found.json["findings"]] == ["cold"]
        assert found.json["cold_packs"] == len(cold) and found.json["cold_bytes"] > 20 * MIB
        listed = lamella.run("--json", "list", env=env).json
        assert listed["volumes"][0]["verified"]["level"] == "structure"

    # A run without a change stores nothing again, wherever its map comes from.
    assert lamella.json("backup", big)["stored_bytes"] == 0
    for env in ({}, third, {}):
        words = ["delete", *removed, "-y", "--remove-delay", "0h"] if removed else ["prune", "--keep-last", "9"]
        done, removed = lamella.run("--json", *words, "--grace", "0h", env=env), []
        assert done.code == 0 and done.json["damaged"] == [] and done.json["revived"] == [], done
    assert len(glacier.kept()) <= len(cold) and set(cold) - set(glacier.kept()), "what nothing needs can go"
    lamella.ok("restore", f"big@{second['snapshot']}", "--to", out, "--thaw", env=fresh)
    assert out.read_bytes() == big.read_bytes() != before
    assert lamella.json("verify", "--level", "structure")["findings"] == []
