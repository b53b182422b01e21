"""Real S3 services on this computer, each a process of its own, and buckets in them."""

from __future__ import annotations

import itertools
import random
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config

from lamella.stores.s3.store import S3Store

PORTS = range(22200, 22300)
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "S3RVER", "AWS_SECRET_ACCESS_KEY": "S3RVER"}
"""Any will do for the services started here; these are the ones the pickier one knows."""
S3RVER = Path(sys.prefix) / "s3rver" / "node_modules" / ".bin" / "s3rver"
_SECONDS = 30


def free_port() -> int:
    """A port of the range for these tests that nothing listens on."""
    for port in random.sample(PORTS, len(PORTS)):  # others may be looking, too
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"no free port in {PORTS}")


@dataclass
class S3Service:
    """A running service."""

    port: int
    enforces_conditions: bool
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @cached_property
    def client(self) -> Any:  # noqa: ANN401 - botocore has no types
        """A client that is not ours."""
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
        )

    def new_bucket(self, **options: object) -> str:
        """Make a bucket; returns its name."""
        name = f"bucket-{next(self._numbers)}"
        self.client.create_bucket(Bucket=name, **options)
        return name

    def place(self, bucket: str, prefix: str = "pre/fix", **options: str) -> str:
        """What follows `s3:` in a REPO."""
        more = "".join(f"&{name.replace('_', '-')}={value}" for name, value in options.items())
        return f"//{bucket}/{prefix}?endpoint={self.endpoint}{more}"

    def store(self, bucket: str | None = None, *, read_only: bool = False, **options: str) -> S3Store:
        """Our store in a bucket, a new one if none is named."""
        place = self.place(bucket or self.new_bucket(), **options)
        return S3Store.open(place, read_only=read_only, environment=CREDENTIALS)


@contextmanager
def _running(command: list[str], ready: str, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL, env=environment
    )
    assert process.stdout is not None
    try:
        seen: list[str] = []
        while not any(ready in line for line in seen[-1:]):
            line = process.stdout.readline()
            assert line, f"{command[0]} ended: {''.join(seen)}"
            seen.append(line)
        # Nobody may be kept waiting by a full pipe.
        drain = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)
        process.stdout.close()
        yield
    finally:
        process.kill()
        process.wait(_SECONDS)
        drain.wait(_SECONDS)


@contextmanager
def moto() -> Iterator[S3Service]:
    """The `moto` server, which enforces conditions, policies of users excepted."""
    port = free_port()
    command = [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, "Running on"):
        yield S3Service(port, enforces_conditions=True)


@contextmanager
def s3rver(directory: Path) -> Iterator[S3Service]:
    """The `s3rver` server, which ignores conditions: a put replaces."""
    port = free_port()
    command = [str(S3RVER), "--directory", str(directory), "--address", "127.0.0.1", "--port", str(port)]
    with _running(command, "listening"):
        yield S3Service(port, enforces_conditions=False)
