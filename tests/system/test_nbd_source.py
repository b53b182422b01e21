"""The `nbd` driver against QEMU's servers: the contract of sources, and what a dirty bitmap is believed for."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from lamella.base.errors import CheckpointLost, SourceError
from lamella.sources.base import FrozenVolume, Source
from lamella.sources.nbd.wire import Connection
from lamella.sources.registry import open_source
from lamella_kit.image_files import sparse_file
from lamella_kit.source_contract import ReadOnlySourceContract
from lamella_kit.source_reading import GRAIN, MIB, check_delta, whole
from lamella_kit.volumes import FileVolume
from tests.cli.program import Lamella
from tests.system.qemu_storage import Served, StorageDaemon, need_qemu, storage_daemon

MACHINE = "0123456789abcdef"
SECTOR = 512
ROUNDS = int(os.environ.get("LAMELLA_NBD_ROUNDS", "100"))
SIZE = 24 * MIB


class ExportedFile(FileVolume):
    """An image file that is exported once somebody asks for a source of it."""

    def __init__(self, path: Path, served: Served) -> None:
        super().__init__(path)
        self.served = served

    def fill(self, content: bytes) -> None:
        super().fill(content + bytes(-len(content) % SECTOR))

    def resize(self, size: int) -> None:
        super().resize(-(-size // SECTOR) * SECTOR)

    def remove(self) -> None:
        self.served.stop(self.path)
        super().remove()

    def sibling(self) -> ExportedFile:
        return ExportedFile(self.path.with_name("other.img"), self.served)


class TestNbdContract(ReadOnlySourceContract):
    sizes = (0, 512, 4096, GRAIN, GRAIN + 512, 3 * MIB + 512 * 25)

    @pytest.fixture(autouse=True)
    def place(self) -> Iterator[None]:
        need_qemu()
        self.served = Served()
        with TemporaryDirectory(prefix="nbd") as folder:
            self.folder = Path(folder)
            yield
            self.served.end()

    def volume(self) -> ExportedFile:
        return ExportedFile(self.folder / "disk.img", self.served)

    def make_source(self, image: Path) -> Source:
        return source(self.served.serve(image))


def source(socket: Path, export: str = "disk", *more: str) -> Source:
    parts = "&".join((f"socket={socket}", *more))
    return open_source(f"nbd+unix:///{export}?{parts}", machine=MACHINE)


@pytest.fixture
def short() -> Iterator[Path]:
    """A place whose name is short enough for sockets."""
    with TemporaryDirectory(prefix="nbd") as folder:
        yield Path(folder)


def allocated(frozen: FrozenVolume) -> int:
    return sum(extent.length for extent in frozen.allocated())


def test_holes_of_a_qcow2_are_known(short: Path) -> None:
    with storage_daemon(short, SIZE) as daemon:
        daemon.guest("write -P 65 4M 128k", "write -P 66 20M 64k", "discard 4M 64k")
        with source(daemon.nbd, "guest").freeze() as frozen:
            assert allocated(frozen) == 128 * 1024
            content = whole(frozen)
        assert content[4 * MIB : 4 * MIB + 131072] == bytes(65536) + b"A" * 65536
        assert content[20 * MIB : 20 * MIB + 65536] == b"B" * 65536


def test_a_slow_destination_leaves_the_guest_its_disk(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever paused did not wait for the server: then one request is open at a time, otherwise several."""
    open_requests: list[int] = []
    send, reply = Connection._send, Connection._reply

    def sent(line: Connection, content: bytes) -> None:
        open_requests.append(open_requests[-1] + 1 if open_requests else 1)
        send(line, content)

    def answered(line: Connection, asked: Any) -> None:  # noqa: ANN401 - as the connection's
        before = len(asked)
        reply(line, asked)
        open_requests.append(open_requests[-1] - before + len(asked))

    with storage_daemon(short, SIZE) as daemon:
        daemon.guest("write -P 65 0 16M")
        with source(daemon.nbd, "guest").freeze() as frozen:
            buffer = memoryview(bytearray(4 * MIB))
            frozen.read_into(0, buffer)
            monkeypatch.setattr(Connection, "_send", sent)
            monkeypatch.setattr(Connection, "_reply", answered)
            time.sleep(0.15)
            frozen.read_into(0, buffer)
            assert max(open_requests) == 1 and bytes(buffer) == b"A" * len(buffer)
            open_requests.clear()
            until = time.monotonic() + 60
            while max(open_requests, default=0) < 4 and time.monotonic() < until:
                frozen.read_into(4 * MIB, buffer)
            assert max(open_requests) == 4 and bytes(buffer) == b"A" * len(buffer)


def changes(chance: random.Random) -> list[str]:
    """What a guest may do, as commands of qemu-io."""
    found = []
    for _ in range(chance.choice([1, 3, 10])):
        offset, length = chance.randrange(SIZE - 262144) // 512 * 512, chance.randrange(1, 512) * 512
        kinds = [f"write -P {chance.randrange(1, 255)}", "write -z", "write -zu", "discard", "write -P 7"]
        found.append(f"{chance.choice(kinds)} {offset} {length}")
    return found


def test_random_changes_are_all_in_the_bitmap(short: Path) -> None:
    """LAMELLA_NBD_ROUNDS sets how many rounds there are."""
    chance, touched = random.Random(5), 0
    with storage_daemon(short, SIZE) as daemon:
        before, checkpoint, old = b"", "", ""
        for number in range(ROUNDS):
            new = f"b{number}"
            daemon.new_moment(new, old)
            parts = [f"next={new}", *([f"bitmap={old}"] if old else [])]
            with source(daemon.nbd, "disk", *parts).freeze() as frozen:
                now = whole(frozen)
                if checkpoint:
                    delta = frozen.delta_since(checkpoint, GRAIN)
                    check_delta(delta, before, now, f"round {number}")
                    touched += len(delta.changed)
                    assert len(delta.changed | delta.zeroed) < SIZE // GRAIN // 2
                before, checkpoint = now, frozen.checkpoint
            daemon.end_moment(old)
            old = new
            daemon.guest(*changes(chance))
    assert touched > ROUNDS // 2


@pytest.mark.parametrize("how", ["foreign", "absent", "size", "unnamed", "garbage"])
def test_a_bitmap_that_need_not_hold_everything_is_not_believed(how: str, short: Path) -> None:
    with storage_daemon(short, SIZE) as daemon:
        daemon.new_moment("ours")
        with source(daemon.nbd, "disk", "next=ours").freeze() as frozen:
            checkpoint = frozen.checkpoint
        daemon.end_moment()
        daemon.guest("write -P 1 0 64k")
        if how == "size":
            daemon.do("block-export-del", id="guest", mode="hard")
            daemon.do("block_resize", **{"node-name": "disk", "size": SIZE + MIB})
        daemon.new_moment("next", "ours" if how not in ("absent", "foreign") else "")
        if how == "foreign":
            daemon.end_moment()
            daemon.do("block-dirty-bitmap-add", node="disk", name="theirs")
            daemon.new_moment("another", "theirs")
        name = {"foreign": ["bitmap=theirs"], "unnamed": []}.get(how, ["bitmap=ours"])
        with source(daemon.nbd, "disk", *name).freeze() as frozen, pytest.raises(CheckpointLost) as caught:
            frozen.delta_since("{}" if how == "garbage" else checkpoint, GRAIN)
        assert caught.value.message


def test_a_bitmap_that_was_in_use_when_qemu_was_killed_is_not_believed(short: Path) -> None:
    """Persistent and flagged in-use: qemu-nbd refuses to export it, so there is no server; without it, no bitmap."""
    need_qemu()
    image = short / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "16M"], check=True)
    subprocess.run(["qemu-img", "bitmap", "--add", "-f", "qcow2", str(image), "b0"], check=True)
    with subprocess.Popen(["qemu-io", "-f", "qcow2", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as io:
        assert io.stdin is not None and io.stdout is not None
        io.stdin.write(b"write 0 64k\n")
        io.stdin.flush()
        while b"ops/sec" not in io.stdout.readline():
            pass
        io.kill()
    served = Served()
    try:
        socket = served.serve(image, form="qcow2")
        with source(socket, "disk", "bitmap=b0", "next=b1").freeze() as frozen, pytest.raises(CheckpointLost):
            frozen.delta_since('{"bitmap":"b0","size":16777216,"version":1}', GRAIN)
    finally:
        served.end()


def test_a_server_that_takes_one_client_is_read_over_one_connection(short: Path) -> None:
    need_qemu()
    image, served = sparse_file(short / "a.img", 8 * MIB, {0: os.urandom(8 * MIB)}), Served()
    try:
        with source(served.serve(image, "--shared=1")).freeze() as frozen:
            assert whole(frozen) == image.read_bytes()
    finally:
        served.end()


def test_a_server_that_dies_is_an_error_at_once(short: Path) -> None:
    need_qemu()
    image, served = sparse_file(short / "a.img", 8 * MIB, {0: os.urandom(8 * MIB)}), Served()
    with source(served.serve(image)).freeze() as frozen:
        frozen.read_into(0, memoryview(bytearray(4096)))
        served.end()
        for _ in range(2):
            with pytest.raises(SourceError):
                frozen.read_into(0, memoryview(bytearray(4096)))


def incremental(lamella: Lamella, daemon: StorageDaemon, new: str, old: str) -> dict[str, object]:
    daemon.new_moment(new, old)
    bitmaps = f"&next={new}" + (f"&bitmap={old}" if old else "")
    document = lamella.json("backup", f"vm=nbd+unix:///disk?socket={daemon.nbd}{bitmaps}")
    daemon.end_moment(old)
    (row,) = document["volumes"]
    assert isinstance(row, dict)
    return row


def test_a_virtual_machine_is_saved_by_its_bitmaps_and_restored(short: Path) -> None:
    (short / "key").write_bytes(os.urandom(32))
    (short / "key").chmod(0o600)
    lamella = Lamella({"LAMELLA_REPO": str(short / "repo")}, ["--keyfile", str(short / "key")])
    lamella.ok("init", "-q")
    with storage_daemon(short, SIZE) as daemon:
        daemon.guest("write -P 1 0 4M")
        assert incremental(lamella, daemon, "b1", "")["mode"] == "full"
        daemon.guest("write -P 2 1M 64k", "discard 2M 1M")
        row = incremental(lamella, daemon, "b2", "b1")
        assert (row["mode"], row["driver"]) == ("incremental", "nbd")
        assert int(str(row["read_bytes"])) - int(str(row["sampled_bytes"])) == 128 * 1024
        daemon.guest("write -P 3 3M 64k")
        row = incremental(lamella, daemon, "b4", "")  # the bitmap was lost
        assert (row["mode"], row["consistency"]) == ("compare", "unknown")
    lamella.ok("restore", "vm", "--to", short / "out.img")
    content = (short / "out.img").read_bytes()
    assert (content[0], content[MIB], content[2 * MIB], content[3 * MIB], len(content)) == (1, 2, 0, 3, SIZE)
    refused = lamella.run("backup", f"new=nbd+unix:///disk?socket={short}/none")
    assert refused.code != 0 and "No such file" in refused.err
