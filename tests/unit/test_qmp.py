"""What is made of QMP addresses, and of what QEMU says of its disks."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from lamella.base.errors import CheckpointLost, SourceError, UsageError
from lamella.sources.qmp import wire
from lamella.sources.qmp.address import QmpAddress, parse
from lamella.sources.qmp.disks import GRANULARITY, machine_of
from lamella.sources.qmp.wire import Qmp, QmpRefused

UUID = "6c5b1a5e-0f0e-4a3c-9d2b-1d1f9a6f0a11"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("qmp:/run/a", QmpAddress("/run/a")),
        ("qmp:/run/../run/a", QmpAddress("/run/a")),
        ("qmp:/run/a#vda", QmpAddress("/run/a", disk="vda")),
        ("qmp:/run/a?agent=/run/b#d*", QmpAddress("/run/a", "/run/b", "d*")),
    ],
)
def test_addresses(text: str, address: QmpAddress) -> None:
    found = parse(text)
    assert found == address and parse(found.text) == address


@pytest.mark.parametrize("text", ["qmp:", "qmp:#vda", "qmp:?agent=/x", "qmp:/a\0b"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


def test_a_name_is_a_disk_before_it_is_a_pattern() -> None:
    assert parse("qmp:/a#x").fits("x") and not parse("qmp:/a#x").fits("xy")
    assert parse("qmp:/a#x[1]").fits("x[1]") and parse("qmp:/a#x[1]").fits("x1")
    assert parse("qmp:/a").fits("anything")


@contextmanager
def peer(lines: list[bytes]) -> Iterator[Path]:
    """Says these lines to whoever connects, whatever that asks."""
    with TemporaryDirectory(prefix="qmp") as folder, socket.socket(socket.AF_UNIX) as listener:
        place = Path(folder) / "qmp"
        listener.bind(str(place))
        listener.listen(1)

        def talk() -> None:
            client, _ = listener.accept()
            with client, suppress(OSError):  # whoever has heard enough hangs up
                client.sendall(b"".join(lines))
                while client.recv(65536):
                    pass

        thread = threading.Thread(target=talk)
        thread.start()
        yield place
        thread.join(10)
        assert not thread.is_alive()


GREETING = b'{"QMP": {}}\n{"return": {}, "id": 1}\n'


def asked(*lines: object, raw: bytes = b"") -> object:
    """What QEMU's lines are taken for as the answer to a command."""
    with peer([GREETING, *(json.dumps(line).encode() + b"\n" for line in lines), raw]) as place:
        qmp = Qmp(str(place))
        try:
            return qmp.do("x")
        finally:
            qmp.close()


def test_events_are_skipped_and_refusals_are_one_printable_line() -> None:
    assert asked({"event": "STOP"}, {"event": "RESUME", "id": 2}, {"id": 2, "return": [1]}) == [1]
    with pytest.raises(QmpRefused) as caught:
        asked({"id": 2, "error": {"desc": "no\x1b[31m\nroom" + "!" * 5000}})
    assert caught.value.message.isprintable() and len(caught.value.message) < 500


@pytest.mark.parametrize("line", [[], {"id": 1, "return": {}}, {"id": 2}, {}])
def test_answers_that_are_none(line: object) -> None:
    with pytest.raises(SourceError):
        asked(line)


def test_a_line_without_an_end_is_not_gathered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MOST_LINE", 1 << 17)
    with pytest.raises(SourceError, match="without an end"):
        asked(raw=b"x" * (1 << 18))


class Said:
    """QEMU as it describes one disk; the bitmap is changed by `more`."""

    def __init__(self, **more: object) -> None:
        bitmap = {"name": "b", "granularity": GRANULARITY, "recording": True, "busy": False, "persistent": True}
        image = {"virtual-size": 1 << 20, "format-specific": {"type": "qcow2", "data": {"compat": "1.1"}}}
        rows = [bitmap | more, {"granularity": 1, "recording": False}, "junk"]
        self.nodes = [{"node-name": "n", "drv": "qcow2", "image": image, "dirty-bitmaps": rows}]
        device = "/machine/peripheral/disk0/virtio-backend"
        self.blocks: list[dict[str, Any]] = [
            {"device": "", "qdev": device, "inserted": {"node-name": "n", "ro": False}, "removable": False},
            {"device": "cd", "removable": True, "inserted": {"node-name": "n", "ro": True}},
            {"device": "empty", "removable": True},
            {"device": "code", "removable": False, "inserted": {"node-name": "n", "ro": True}},
        ]

    def do(self, command: str) -> dict[str, str]:
        return {"UUID": UUID} if command == "query-uuid" else {}

    def rows(self, command: str) -> list[dict[str, Any]]:
        return self.blocks if command == "query-block" else self.nodes


def test_only_disks_that_can_be_written_to_are_disks() -> None:
    machine = machine_of(Said())  # type: ignore[arg-type]
    assert list(machine.disks) == ["disk0"] and machine.uuid == UUID
    assert machine.disks["disk0"].lasting


@pytest.mark.parametrize(
    "more",
    [
        {"recording": False},
        {"busy": True},
        {"inconsistent": True},
        {"name": "c"},
        {"granularity": 4096},
        {"recording": 1},
    ],
)
def test_a_bitmap_with_any_fault_is_not_believed(more: dict[str, object]) -> None:
    sound = machine_of(Said()).disks["disk0"]  # type: ignore[arg-type]
    checkpoint = sound.token(sound.bitmaps[0]).text
    assert sound.believed(checkpoint) == "b"
    faulty = machine_of(Said(**more)).disks["disk0"]  # type: ignore[arg-type]
    with pytest.raises(CheckpointLost):
        faulty.believed(checkpoint)


@pytest.mark.parametrize("size", [None, -1, "1", 1 << 63])
def test_a_size_that_is_none_is_refused(size: object) -> None:
    said = Said()
    said.nodes[0]["image"] = {"virtual-size": size}
    with pytest.raises(SourceError):
        machine_of(said)  # type: ignore[arg-type]
