"""S3 as Ceph's gateway speaks it: the contract, crash, thief and prune suites of S3 on a real cluster.

Most tests are those of the other services; only the service is another one.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lamella.base.errors import ObjectNotFound, StoreRefused, StoreUnavailable
from lamella.base.trust import Sealed
from lamella.stores.base import Store
from lamella.stores.s3 import client
from lamella.stores.wrap.retrying import RetryingStore
from lamella_kit.store_contract import StoreContract
from tests.cli import test_s3, test_s3_thief
from tests.cli.conftest import image, keyfile
from tests.cli.program import COMMAND, Lamella, environment
from tests.cli.test_s3_thief import BUCKET, POLICY, Guarded, _client
from tests.fault import test_s3_faults
from tests.s3_proxy import Answer, Fault, Proxy, Seen
from tests.s3_services import CREDENTIALS, S3Service
from tests.system.busy_bucket import Busy, bucket_at
from tests.system.ceph_cluster import Ceph, need_ceph

__all__ = ["image", "keyfile"]
HOST = {"AWS_ACCESS_KEY_ID": "HOST", "AWS_SECRET_ACCESS_KEY": "HOST"}


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    need_ceph()
    cluster = Ceph(tmp_path_factory.mktemp("ceph"))
    try:
        cluster.start()
        cluster.start_s3()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def service(ceph: Ceph) -> S3Service:
    """The gateway, in place of the other services."""
    return S3Service(ceph.s3_port, enforces_conditions=True)


@pytest.fixture
def guarded(service: S3Service) -> Iterator[Guarded]:
    """The set-up that docs/guide/destinations.md describes, by the policy of a user."""
    iam = _client(service, "iam", CREDENTIALS)
    iam.put_user_policy(UserName="host", PolicyName="rights", PolicyDocument=json.dumps(json.loads(POLICY.read_text())))
    s3 = service.client
    s3.create_bucket(Bucket=BUCKET)
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    yield Guarded(service, CREDENTIALS, HOST)
    listed = s3.list_object_versions(Bucket=BUCKET)
    for row in [*listed.get("Versions", ()), *listed.get("DeleteMarkers", ())]:
        s3.delete_object(Bucket=BUCKET, Key=row["Key"], VersionId=row["VersionId"])
    s3.delete_bucket(Bucket=BUCKET)


class TestContract(StoreContract):
    @pytest.fixture(autouse=True)
    def _at(self, service: S3Service) -> Iterator[None]:
        self.service = service
        self.opened: list[Store] = []
        yield
        for store in self.opened:
            store.close()

    def make_store(self) -> Store:
        self.opened.append(self.service.store())
        return self.opened[-1]


# The suites of the other services, with the fixtures of this module.
proxy, bucket, lamella = test_s3_faults.proxy, test_s3.bucket, test_s3.lamella
admin, host = test_s3_thief.admin, test_s3_thief.host
test_an_answer_cut_off_is_never_taken = test_s3_faults.test_an_answer_cut_off_is_never_taken_for_the_object
test_a_put_whose_answer_was_lost = test_s3_faults.test_a_put_whose_answer_was_lost_finds_its_own_bytes
test_a_bucket_that_is_gone = test_s3_faults.test_a_bucket_that_is_gone_is_no_missing_object
test_a_run_ended_anywhere = test_s3_faults.test_a_run_ended_anywhere_is_followed_by_one_that_works
test_space_comes_back_without_a_lock = test_s3.test_space_comes_back_without_a_lock
test_the_host_can_do_its_work_and_no_more = test_s3_thief.test_the_host_can_do_its_work_and_no_more


@pytest.mark.long
def test_what_a_thief_lays_over_objects(
    admin: Lamella, host: Lamella, guarded: Guarded, image: Path, tmp_path: Path
) -> None:
    test_s3_thief.test_what_a_thief_lays_over_objects_is_seen_through(admin, host, guarded, image, tmp_path)


def test_a_cluster_that_stands_still_ends_the_call_within_its_deadline(ceph: Ceph, service: S3Service) -> None:
    """As a full Ceph does: the gateway takes requests and never answers."""
    store = RetryingStore(service.store(timeout="2"))
    store.put("p/ab/before", Sealed(b"before"))
    ceph.stop_osd()
    try:
        for calls in (2, 1):  # a silence is waited for once more, and then not again
            begun = time.monotonic()
            with pytest.raises(StoreUnavailable, match="does not answer"):
                store.put("p/ab/after", Sealed(b"after"))
            assert time.monotonic() - begun < calls * 2 + 4
    finally:
        ceph.continue_osd()
    store.put("p/ab/after", Sealed(b"after"))
    assert store.get("p/ab/after") == b"after"
    store.close()


def test_a_quota_ends_the_run_at_once_in_the_words_of_the_service(
    ceph: Ceph, service: S3Service, bucket: str, lamella: Lamella, tmp_path: Path
) -> None:
    big = tmp_path / "big.img"
    big.write_bytes(os.urandom(40 << 20))
    lamella.ok("init", "-q")
    ceph.s3_quota(20 << 20)
    try:
        begun = time.monotonic()
        done = lamella.run("backup", big)
        assert (done.code, "QuotaExceeded" in done.err, "None" in done.err) == (1, True, False), done
        assert time.monotonic() - begun < 45
    finally:
        ceph.s3_quota(-1)
    lamella.ok("backup", big)
    assert lamella.json("verify", "--level", "full")["findings"] == []


def test_a_put_whose_bytes_are_not_those_that_were_signed_is_refused(service: S3Service) -> None:
    """The hash is signed, so the gateway compares it, whatever it does with checksum headers."""

    class Wrong(client.HashedBody):
        def __init__(self, content: bytes) -> None:
            super().__init__(content)
            self.sha256 = hashlib.sha256(content + b"other")

    with pytest.MonkeyPatch.context() as patch, closing(service.store()) as store:
        patch.setattr(client, "HashedBody", Wrong)
        with pytest.raises(StoreRefused, match="XAmzContentSHA256Mismatch"):
            store.put("p/ab/x", Sealed(b"bytes"))
        with pytest.raises(ObjectNotFound):
            store.stat("p/ab/x")


def test_a_gateway_that_is_killed_in_the_middle_is_waited_for(ceph: Ceph, lamella: Lamella, tmp_path: Path) -> None:
    """Killed within a backup and started again: the run goes on, and everything is there."""
    big = tmp_path / "big.img"
    big.write_bytes(os.urandom(40 << 20))
    lamella.ok("init", "-q")
    command = [*COMMAND, *lamella.options, "--limit-rate", "10M", "backup", str(big)]
    running = subprocess.Popen(command, env=environment(lamella.env), stderr=subprocess.PIPE, text=True)
    time.sleep(2.5)
    ceph.kill_s3()
    time.sleep(1)
    ceph.start_s3()
    _, said = running.communicate(timeout=120)
    assert running.returncode == 0 and "trying again" in said, said
    assert lamella.json("verify", "--level", "full")["findings"] == []


def test_writers_and_pruners_of_one_bucket_killed_at_random(service: S3Service, tmp_path: Path) -> None:
    """The short form of `python -m tests.system.busy_bucket`."""
    busy = Busy(bucket_at(service, tmp_path, 1), writers=2, pruners=2)
    busy.pause = 0.0
    busy.go(1.5, rounds=1)
    busy.judge()
    assert busy.counts["restored"] >= 2


def crash(ceph: Ceph) -> Fault:
    """The gateway does what it was asked, is killed before it answers, and comes back."""

    def fault(seen: Seen, passed: Callable[[], Answer]) -> None:
        passed()
        ceph.kill_s3()
        ceph.start_s3()

    return fault


def test_a_gateway_killed_within_prune_and_copy_costs_nothing_but_time(
    ceph: Ceph, proxy: Proxy, bucket: str, lamella: Lamella, image: Path, keyfile: Path, tmp_path: Path
) -> None:
    """While a removal is published, while packs are deleted, while a copy stores its packs."""
    through = Lamella({**lamella.env, "AWS_ENDPOINT_URL": proxy.through.endpoint}, lamella.options)
    lamella.ok("init", "-q")
    for _ in range(2):
        image.write_bytes(os.urandom(2 << 20))
        lamella.ok("backup", image)
    prune = ("prune", "--keep-last", "1", "--grace", "0h")
    proxy.faults = [("PUT", crash(ceph))]
    assert len(through.json(*prune)["removed"]) == 1 and not proxy.faults
    proxy.faults = [("DELETE", crash(ceph))]
    assert through.json(*prune)["freed_bytes"] > 1 << 20 and not proxy.faults
    assert lamella.json("verify", "--level", "full")["findings"] == []
    place = f"s3://{bucket}/copies"
    lamella.ok("init", "-q", "-r", place)
    passed: Fault = lambda seen, passed: passed()  # noqa: E731
    proxy.faults = [("PUT", passed), ("PUT", passed), ("PUT", crash(ceph))]
    assert through.json("copy", "--to", place, "--to-keyfile", keyfile)["copied"] == 1 and not proxy.faults
    lamella.ok("restore", "-r", place, "disk", "--to", tmp_path / "out.img")
    assert (tmp_path / "out.img").read_bytes() == image.read_bytes()
    assert lamella.json("verify", "-r", place, "--level", "full")["findings"] == []
