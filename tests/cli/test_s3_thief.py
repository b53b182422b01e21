"""A stolen credential that may only add: what its holder cannot do, tried against a service that checks rights."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.cli.program import Lamella
from tests.s3_services import S3Service, moto

POLICY = Path(__file__).resolve().parents[2] / "docs" / "guide" / "s3-append-only-policy.json"
ADMIN = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
BUCKET = "my-backups"


@dataclass
class Guarded:
    """A service that checks signatures and rights, a bucket with versions in it, and two users' credentials."""

    service: S3Service
    admin: dict[str, str]
    host: dict[str, str]

    def client(self, user: dict[str, str]) -> Any:  # noqa: ANN401 - botocore has no types
        """A client that is not ours."""
        return _client(self.service, "s3", user)


def _client(service: S3Service, kind: str, user: dict[str, str]) -> Any:  # noqa: ANN401 - botocore has no types
    return botocore.session.Session().create_client(
        kind,
        endpoint_url=service.endpoint,
        region_name="us-east-1",
        aws_access_key_id=user["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=user["AWS_SECRET_ACCESS_KEY"],
        config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
    )


def _user(iam: Any, name: str, policy: object) -> dict[str, str]:  # noqa: ANN401 - botocore has no types
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="rights", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    """The set-up that docs/guide/destinations.md describes."""
    with moto() as service:
        anybody = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        iam = _client(service, "iam", anybody)
        users = [_user(iam, "admin", ADMIN), _user(iam, "host", json.loads(POLICY.read_text()))]
        made = Guarded(service, *users)
        s3 = made.client(made.admin)
        s3.create_bucket(Bucket=BUCKET)
        s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        # From here on every request is checked.
        where = f"{service.endpoint}/moto-api/reset-auth"
        request = urllib.request.Request(where, data=b"0", headers={"Content-Type": "text/plain"}, method="POST")
        urllib.request.urlopen(request).close()
        yield made


@pytest.fixture
def admin(guarded: Guarded, keyfile: Path) -> Lamella:
    """The command with the right to do everything."""
    return Lamella({**guarded.admin, **_place(guarded)}, ["--keyfile", str(keyfile)])


@pytest.fixture
def host(guarded: Guarded, keyfile: Path) -> Lamella:
    """The command on the host that is backed up."""
    env = {**guarded.host, **_place(guarded)}
    env["LAMELLA_REPO"] += "?append-only=yes"
    return Lamella(env, ["--keyfile", str(keyfile)])


def _place(guarded: Guarded) -> dict[str, str]:
    return {"LAMELLA_REPO": f"s3://{BUCKET}/lamella", "AWS_ENDPOINT_URL": guarded.service.endpoint}


def test_the_host_can_do_its_work_and_no_more(
    admin: Lamella, host: Lamella, guarded: Guarded, image: Path, tmp_path: Path
) -> None:
    admin.ok("init")
    host.ok("backup", image)
    host.ok("verify", "--level", "full")
    thief = guarded.client(guarded.host)
    rows = thief.list_object_versions(Bucket=BUCKET)["Versions"]
    assert rows
    for row in rows:
        for which in ({}, {"VersionId": row["VersionId"]}):
            with pytest.raises(ClientError, match="AccessDenied"):
                thief.delete_object(Bucket=BUCKET, Key=row["Key"], **which)
    for call in (thief.put_bucket_versioning, thief.delete_bucket, thief.put_bucket_policy):
        more: dict[str, object] = {}
        more |= {"VersioningConfiguration": {"Status": "Suspended"}} if "versioning" in call.__name__ else {}
        more |= {"Policy": "{}"} if "policy" in call.__name__ else {}
        with pytest.raises(ClientError, match="AccessDenied"):
            call(Bucket=BUCKET, **more)
    out = tmp_path / "out.img"
    host.ok("restore", "disk", "--to", out)
    assert out.read_bytes() == image.read_bytes()


def test_what_a_thief_lays_over_objects_is_seen_through(
    admin: Lamella, host: Lamella, guarded: Guarded, image: Path, tmp_path: Path
) -> None:
    admin.ok("init")
    host.ok("backup", image)
    thief = guarded.client(guarded.host)
    # Key slots are closed to the host. A credential with more rights, or a service without policies, may lay over them.
    stronger = guarded.client(guarded.admin)
    laid = 0
    for row in thief.list_object_versions(Bucket=BUCKET)["Versions"]:
        name, body = row["Key"].removeprefix("lamella/"), os.urandom(row["Size"] + (laid % 2))
        if name.startswith("keys/"):
            with pytest.raises(ClientError, match="AccessDenied"):
                thief.put_object(Bucket=BUCKET, Key=row["Key"], Body=body)
            stronger.put_object(Bucket=BUCKET, Key=row["Key"], Body=body)
            laid += 1
        elif name.startswith(("p/", "w/")):
            thief.put_object(Bucket=BUCKET, Key=row["Key"], Body=body)
            laid += 1
    assert laid >= 4
    # Two markers over the genuine one: another repository's, and none.
    genuine = thief.get_object(Bucket=BUCKET, Key="lamella/lamella")["Body"].read()
    for marker in (genuine[:16] + os.urandom(80), b"nothing of the kind"):
        thief.put_object(Bucket=BUCKET, Key="lamella/lamella", Body=marker)
    # The host itself, with its cache, and a machine that never saw the repository.
    for number, env in enumerate(({}, _fresh(tmp_path))):
        out = tmp_path / f"out-{number}.img"
        host.run("restore", "disk", "--to", out, env=env)
        assert out.read_bytes() == image.read_bytes()
    # And the next run goes on.
    with image.open("r+b") as file:
        file.write(b"changed")
    host.ok("backup", image)
    out = tmp_path / "after.img"
    host.ok("restore", "disk", "--to", out, env=_fresh(tmp_path / "again"))
    assert out.read_bytes() == image.read_bytes()


def _fresh(place: Path) -> dict[str, str]:
    return {"LAMELLA_STATE_DIR": str(place / "fresh-state"), "LAMELLA_CACHE_DIR": str(place / "fresh-cache")}


def test_doctor_proves_what_each_credential_can_do(
    admin: Lamella, host: Lamella, guarded: Guarded, image: Path
) -> None:
    admin.ok("init")
    host.ok("backup", image)
    for _ in range(2):  # the probe cannot be removed; it is found again
        checks = {row["name"]: row for row in host.json("doctor")["checks"]}
        assert checks["immutable names"]["ok"]
        assert checks["append-only"]["ok"]
        assert "cannot delete" in checks["append-only"]["message"]
    checks = {row["name"]: row for row in admin.json("doctor")["checks"]}
    assert "can delete" in checks["append-only"]["message"]
    # Whoever says append-only must be given it.
    careless = Lamella({**admin.env, "LAMELLA_REPO": host.env["LAMELLA_REPO"]}, admin.options)
    found = careless.json("doctor", code=1)
    assert [row["name"] for row in found["checks"] if not row["ok"]] == ["append-only"]
    names = [row["Key"] for row in guarded.client(guarded.admin).list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert not [name for name in names if "probe" in name]
    assert host.json("verify")["findings"] == []


def test_prune_is_refused_to_the_host(admin: Lamella, host: Lamella, guarded: Guarded, image: Path) -> None:
    admin.ok("init")
    host.ok("backup", image)
    before = guarded.client(guarded.admin).list_object_versions(Bucket=BUCKET)["Versions"]
    snapshot = host.json("list")["snapshots"][0]["snapshot"]
    host.run("delete", "--yes", f"disk@{snapshot}")
    after = guarded.client(guarded.admin).list_object_versions(Bucket=BUCKET)
    kept = {(row["Key"], row["VersionId"]) for row in after["Versions"]}
    assert {(row["Key"], row["VersionId"]) for row in before} <= kept
    assert "DeleteMarkers" not in after
