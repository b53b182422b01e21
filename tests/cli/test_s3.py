"""The main job with a repository in S3: a real service, the real command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.program import COMMAND, SECONDS, Lamella, environment
from tests.s3_services import CREDENTIALS, S3Service, moto

MIB = 1 << 20


@pytest.fixture(scope="module")
def service() -> Iterator[S3Service]:
    """A running service."""
    with moto() as found:
        yield found


@pytest.fixture
def bucket(service: S3Service) -> str:
    """A new bucket."""
    return service.new_bucket()


@pytest.fixture
def lamella(service: S3Service, bucket: str, keyfile: Path) -> Lamella:
    """The command, told the place in S3 by the usual variables."""
    env = {**CREDENTIALS, "AWS_ENDPOINT_URL": service.endpoint, "LAMELLA_REPO": f"s3://{bucket}/hosts/one"}
    return Lamella(env, ["--keyfile", str(keyfile)])


def test_init_backup_verify_restore(lamella: Lamella, image: Path, tmp_path: Path) -> None:
    lamella.ok("init")
    assert lamella.json("backup", image)["volumes"][0]["mode"] == "full"
    with image.open("r+b") as file:
        file.seek(MIB // 2)
        file.write(os.urandom(1000))
    second = lamella.json("backup", image)
    assert second["volumes"][0]["new_chunks"] == 1
    assert second["stored_bytes"] < MIB
    assert lamella.json("verify", "--level", "full")["findings"] == []
    out = tmp_path / "out.img"
    lamella.ok("restore", "disk", "--to", out)
    assert out.read_bytes() == image.read_bytes()


def test_another_machine_restores(lamella: Lamella, image: Path, tmp_path: Path) -> None:
    lamella.ok("init")
    lamella.ok("backup", image)
    out = tmp_path / "out.img"
    fresh = {"LAMELLA_STATE_DIR": str(tmp_path / "fresh-state"), "LAMELLA_CACHE_DIR": str(tmp_path / "fresh-cache")}
    lamella.ok("restore", "disk", "--to", out, env=fresh)
    assert out.read_bytes() == image.read_bytes()


def test_space_comes_back_without_a_lock(
    lamella: Lamella, service: S3Service, bucket: str, image: Path, tmp_path: Path
) -> None:
    """Condemned, waited for every writer, looked at again, deleted."""
    elsewhere = {"LAMELLA_STATE_DIR": str(tmp_path / "other-state"), "LAMELLA_CACHE_DIR": str(tmp_path / "other-cache")}
    other = image.with_name("other.img")
    other.write_bytes(os.urandom(MIB))
    lamella.ok("init")
    lamella.ok("backup", other, env=elsewhere)
    lamella.ok("backup", image)
    image.write_bytes(os.urandom(2 * MIB))
    lamella.ok("backup", image)

    def packs() -> set[str]:
        rows = service.client.list_objects_v2(Bucket=bucket, Prefix="hosts/one/p/").get("Contents", [])
        return {row["Key"] for row in rows}

    before = packs()
    first = lamella.json("prune", "--keep-last", "1", "--grace", "0h")
    assert len(first["removed"]) == 1
    assert first["freed_bytes"] == 0 and first["condemned_bytes"] > MIB
    assert packs() == before
    held = lamella.json("prune", "--keep-last", "1", "--grace", "0h")
    assert packs() >= before and any("has not written since" in line for line in held["waiting"])
    lamella.ok("backup", other, env=elsewhere)
    last = lamella.json("prune", "--keep-last", "1", "--grace", "0h")
    assert last["freed_bytes"] > MIB and last["deleted_packs"] >= 1
    assert before - packs()
    assert lamella.json("verify", "--level", "full")["findings"] == []
    lamella.ok("restore", "disk", "--to", tmp_path / "out.img")
    assert (tmp_path / "out.img").read_bytes() == image.read_bytes()


def test_only_names_of_the_format_are_in_the_bucket(lamella: Lamella, service: S3Service, bucket: str) -> None:
    lamella.ok("init")
    keys = [row["Key"] for row in service.client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert sorted({key.removeprefix("hosts/one/").split("/")[0] for key in keys}) == [
        "keys",
        "lamella",
        "readme.txt",
        "restore.py",
        "w",
    ]


def test_a_missing_bucket_and_a_missing_repository_are_exit_10(lamella: Lamella, image: Path) -> None:
    for place in ("s3://no-such-bucket/x", lamella.env["LAMELLA_REPO"]):
        done = lamella.run("-r", place, "backup", image)
        assert done.code == 10, done.err
        assert len(done.err.splitlines()) == 1
    done = lamella.run("-r", "s3://no-such-bucket/x", "init")
    assert done.code == 10
    assert "no-such-bucket" in done.err


def test_credentials_are_never_shown(lamella: Lamella, service: S3Service, image: Path) -> None:
    secret = {"AWS_ACCESS_KEY_ID": "AKSHOWNNEVER", "AWS_SECRET_ACCESS_KEY": "SKSHOWNNEVER", "AWS_SESSION_TOKEN": "TK"}
    missing = f"s3://no-such-bucket/x?endpoint={service.endpoint}"
    for arguments in (["init"], ["-v", "backup", image], ["-r", missing, "list"], ["doctor"]):
        done = lamella.run(*arguments, env=secret)
        assert "SHOWNNEVER" not in done.out + done.err


@pytest.mark.parametrize(
    ("place", "word"),
    [
        ("s3:/bucket/x", "s3://BUCKET/PREFIX"),
        ("s3://b/x", "bucket"),
        ("s3://key:secret@bucket/x", "credentials"),
        ("s3://bucket/a/../b", "prefix"),
        ("s3://bucket/x?colour=red", "colour"),
        ("s3://bucket/x?storage-class=GLACIER", "GLACIER"),
        ("s3://bucket/x?endpoint=ftp://host", "endpoint"),
        ("s3://bucket/x?addressing=odd", "odd"),
        ("s3://bucket/x?region=a&region=b", "twice"),
        ("s3://bucket/x?profile=nobody-has-this", "nobody-has-this"),
    ],
)
def test_a_place_that_makes_no_sense_is_exit_2(lamella: Lamella, place: str, word: str) -> None:
    done = lamella.run("-r", place, "list")
    assert done.code == 2, done.err
    assert word in done.err
    assert "secret" not in done.err


def test_nothing_of_s3_is_loaded_for_other_stores(lamella: Lamella, tmp_path: Path) -> None:
    lamella.ok("-r", tmp_path / "local", "init")
    done = lamella.run("-r", tmp_path / "local", "list", env={"PYTHONVERBOSE": "1"})
    assert "lamella.stores.local.store" in done.err
    assert "botocore" not in done.err


def test_an_absent_bucket_or_host_is_75_before_any_secret_is_asked_for(lamella: Lamella, image: Path) -> None:
    nothing = [word for word in lamella.options if not word.startswith(("--keyfile", "/"))]
    without_key = Lamella(lamella.env, nothing)
    for place in ("s3://no-such-bucket/x", "s3://bucket/x?endpoint=http://127.0.0.1:1", lamella.env["LAMELLA_REPO"]):
        for command in (["backup", image], ["verify"]) if "such" in place else (["backup", image],):
            done = without_key.run("-r", place, "--if-available", *command)
            assert done.code == 75, done.err
            assert len(done.err.splitlines()) == 1
            assert "is not available" in done.err


def test_a_rate_limit_holds_for_s3(lamella: Lamella, image: Path) -> None:
    lamella.ok("--limit-rate", "500M", "init")
    lamella.ok("backup", "--limit-rate", "500M/s", image)
    assert lamella.run("--limit-rate", "12", "list").code == 2


@pytest.mark.parametrize("answered", [False, True], ids=["no answer", "half an answer"])
def test_ctrl_c_ends_a_call_that_waits(lamella: Lamella, answered: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hole:
        place = f"s3://bucket/x?endpoint=http://127.0.0.1:{hole.getsockname()[1]}"
        process = subprocess.Popen(
            [*COMMAND, *lamella.options, "-r", place, "list"],
            env=environment(lamella.env),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = hole.accept()
        with connection:
            connection.recv(1)
            if answered:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\nhalf")
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, said
    assert "interrupted" in said


def test_a_service_that_never_answers_ends_the_run_within_its_timeout(lamella: Lamella, image: Path) -> None:
    """It takes the connection and then says nothing; the default would outlast the patience of this test."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"s3://bucket/hosts?endpoint=http://127.0.0.1:{silent.getsockname()[1]}&timeout=2"
        done = lamella.run("backup", "-r", place, image)
    assert done.code == 1 and "does not answer" in done.err, done
    assert lamella.run("backup", "-r", "s3://bucket/hosts?timeout=0", image).code == 2
