"""The guest is what the other tests take it for."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.guest.machine import DISK, DISK_BYTES, ROOT


def test_the_guest_has_device_mapper_a_disk_and_this_tree(record_property: Callable[[str, object], None]) -> None:
    targets = subprocess.run(["dmsetup", "targets"], check=True, capture_output=True, text=True, timeout=60).stdout
    assert {"thin", "thin-pool"} <= {line.split()[0] for line in targets.splitlines()}
    assert int(Path("/sys/block", DISK.name, "size").read_text()) * 512 == DISK_BYTES
    assert (ROOT / "pyproject.toml").exists()
    record_property("seconds from power on", Path("/proc/uptime").read_text().split()[0])
