"""The `qmp` driver against QEMU: disks of one moment, bitmaps that may be believed, and nothing left behind."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from lamella.base.errors import CheckpointLost, LamellaError, NothingMatched, SourceAtRisk, SourceError
from lamella.sources.base import Consistency, FrozenVolume, Keeping, Source
from lamella.sources.qmp import wire
from lamella.sources.qmp.leftovers import prefix_of
from lamella.sources.qmp.source import disks_at
from lamella.sources.registry import open_kept_source
from lamella_kit.source_reading import GRAIN, check_delta, whole
from tests.cli.program import Lamella
from tests.features import require
from tests.system.qemu_machine import MIB, Monitor, QemuMachine, qemu_machine

HASH, OWNER = "0123456789abcdef", "01234567"
ROUNDS = int(os.environ.get("LAMELLA_QMP_ROUNDS", "30"))
SIZE = 16 * MIB


@pytest.fixture
def short() -> Iterator[Path]:
    """A place whose name is short enough for sockets."""
    with TemporaryDirectory(prefix="qmp") as folder:
        yield Path(folder)


def opened(machine: QemuMachine, *disks: str, scratch: Path | None = None, agent: Path | None = None) -> list[Source]:
    keeping = Keeping(OWNER, scratch, records=machine.place / "records")
    ask = f"?agent={agent}" if agent else ""
    return [open_kept_source(f"qmp:{machine.qmp}{ask}#{disk}", HASH, keeping) for disk in disks or ("root", "data")]


@contextmanager
def frozen(sources: Sequence[Source]) -> Iterator[list[FrozenVolume]]:
    with ExitStack() as held:
        yield [held.enter_context(source.freeze()) for source in sources]


class Model:
    """What the disks of a machine must hold, kept beside it. Random changes."""

    def __init__(self, machine: QemuMachine, seed: int) -> None:
        self.machine, self.chance = machine, random.Random(seed)
        self.content = {name: bytearray(machine.size) for name in machine.images}

    def change(self, most: int) -> None:
        for _ in range(self.chance.randrange(1, most + 1)):
            disk = self.chance.choice(sorted(self.content))
            offset = self.chance.randrange(self.machine.size - 262144) // 512 * 512
            length, value = self.chance.randrange(1, 512) * 512, self.chance.randrange(1, 255)
            kind = self.chance.choice([f"write -P {value}"] * 3 + ["write -z", "write -z -u"])
            self.machine.guest(disk, f"{kind} {offset} {length}")
            self.content[disk][offset : offset + length] = bytes([value if "-P" in kind else 0]) * length


@pytest.mark.parametrize("data", ["qcow2", "raw"])
def test_random_changes_are_all_read_and_both_disks_are_of_one_moment(short: Path, data: str) -> None:
    """LAMELLA_QMP_ROUNDS sets how many rounds there are, for both kinds of disks together."""
    touched = 0
    with qemu_machine(short, SIZE, data=data) as machine:
        model, before, checkpoints = Model(machine, ROUNDS + len(data)), [b"", b""], ["", ""]
        for number in range(ROUNDS // 2):
            sources = opened(machine)
            with frozen(sources) as volumes:
                expected = [bytes(model.content[name]) for name in ("root", "data")]
                model.change(8)  # while it is read
                for index, (source, volume) in enumerate(zip(sources, volumes, strict=True)):
                    content = whole(volume)
                    assert content == expected[index], f"round {number}: not the moment"
                    if checkpoints[index]:
                        delta = volume.delta_since(checkpoints[index], GRAIN)
                        check_delta(delta, before[index], content, f"round {number}")
                        touched += len(delta.changed)
                    assert volume.consistency() == Consistency.LIVE
                    before[index], old, checkpoints[index] = content, checkpoints[index], volume.checkpoint
                    source.keep(volume.checkpoint)
                    source.drop(old)
                model.change(3)
            assert machine.leftovers() == []
            assert [len(machine.bitmaps(name)) for name in ("root", "data")] == [1, 1]
    assert touched > ROUNDS // 2


def test_a_failed_run_costs_nothing(short: Path) -> None:
    """The bitmap of the last good run goes on recording while another run reads it and fails."""
    with qemu_machine(short, SIZE) as machine:
        (source,) = opened(machine, "root")
        machine.guest("root", "write -P 1 0 1M")
        with source.freeze() as volume:
            kept, before = volume.checkpoint, whole(volume)
            source.keep(kept)
        machine.guest("root", "write -P 2 2M 64k")
        with source.freeze() as volume:
            assert len(machine.bitmaps("root")) == 2
            machine.guest("root", "write -P 3 4M 64k")
        assert [one["name"] in kept for one in machine.bitmaps("root")] == [True]
        with source.freeze() as volume:
            now = whole(volume)
            delta = volume.delta_since(kept, GRAIN)
            check_delta(delta, before, now, "after a failed run")
            assert len(delta.changed) == 2 * MIB // 16 // GRAIN


def lost(machine: QemuMachine, checkpoint: str) -> str:
    """Why a checkpoint of the disk root is not believed."""
    (source,) = opened(machine, "root")
    with source.freeze() as volume, pytest.raises(CheckpointLost) as caught:
        volume.delta_since(checkpoint, GRAIN)
    assert machine.leftovers() == []
    return caught.value.message


@pytest.mark.parametrize("how", ["absent", "disabled", "size", "granularity", "garbage", "foreign"])
def test_a_bitmap_that_need_not_hold_everything_is_not_believed(how: str, short: Path) -> None:
    with qemu_machine(short, SIZE) as machine:
        (source,) = opened(machine, "root")
        with source.freeze() as volume:
            checkpoint = volume.checkpoint
            source.keep(checkpoint)
        (bitmap,) = [one["name"] for one in machine.bitmaps("root")]
        at = {"node": "node-root", "name": bitmap}
        if how in ("absent", "granularity", "foreign"):
            machine.own.do("block-dirty-bitmap-remove", **at)
        if how == "granularity":
            machine.own.do("block-dirty-bitmap-add", granularity=32768, **at)
        if how == "foreign":
            machine.own.do("block-dirty-bitmap-add", node="node-root", name=prefix_of(OWNER) + "0" * 16)
        if how == "disabled":
            machine.own.do("block-dirty-bitmap-disable", **at)
        if how == "size":
            machine.own.do("block_resize", node_name="node-root", size=SIZE + MIB)
        assert lost(machine, "{}" if how == "garbage" else checkpoint)


def test_what_others_made_is_left_alone(short: Path) -> None:
    """A bitmap of our name's form, and another owner's; an idle NBD server."""
    with qemu_machine(short, SIZE) as machine:
        theirs = [prefix_of("89abcdef") + "0" * 16, "backup"]
        for name in theirs:
            machine.own.do("block-dirty-bitmap-add", node="node-root", name=name)
        (source,) = opened(machine, "root")
        assert source.kept() == []
        machine.own.do("nbd-server-start", addr={"type": "unix", "data": {"path": str(short / "other")}})
        with pytest.raises(SourceError, match="NBD server already running"), source.freeze():
            pass
        assert machine.leftovers() == []
        machine.own.do("nbd-server-stop")  # it was not stopped
        with source.freeze():
            pass
        assert sorted(one["name"] for one in machine.bitmaps("root")) == sorted(theirs)


@pytest.mark.parametrize("how", ["orderly", "killed", "killed later", "rolled back", "replaced"])
def test_what_a_bitmap_is_worth_when_qemu_has_ended(how: str, short: Path) -> None:
    with qemu_machine(short, SIZE) as machine:
        (source,) = opened(machine, "root")
        image, copy = machine.images["root"], short / "copy"
        if how == "replaced":
            machine.quit()
            shutil.copy(image, copy)
            machine.start()
        machine.guest("root", "write -P 1 0 1M")
        with source.freeze() as volume:
            checkpoint, before = volume.checkpoint, whole(volume)
            source.keep(checkpoint)
        machine.guest("root", "write -P 2 1M 64k")
        if how == "killed":
            machine.kill()
        else:
            machine.quit()
        if how == "killed later":  # the bitmap has been written to the image, and is in use again
            machine.start()
            machine.guest("root", "write -P 3 2M 64k")
            machine.kill()
        if how == "replaced":
            shutil.copy(copy, image)
        if how == "rolled back":
            # QEMU's own tool refuses to go back under a bitmap; going back outside of it takes the bitmap along.
            subprocess.run(["qemu-img", "snapshot", "-c", "s", str(image)], check=True)
            refused = subprocess.run(["qemu-img", "snapshot", "-a", "s", str(image)], capture_output=True)
            assert refused.returncode != 0
        machine.start()
        if how not in ("orderly", "rolled back"):
            assert lost(machine, checkpoint)
            return
        with source.freeze() as volume:
            now = whole(volume)
            check_delta(volume.delta_since(checkpoint, GRAIN), before, now, how)
            assert now[MIB] == 2


def test_a_disk_of_another_image_at_the_same_place_has_no_bitmap_of_ours(short: Path) -> None:
    """An overlay, made while the machine runs, records nothing; its base stays as it is."""
    with qemu_machine(short, SIZE) as machine:
        (source,) = opened(machine, "root")
        with source.freeze() as volume:
            checkpoint = volume.checkpoint
            source.keep(checkpoint)
        overlay = {"node_name": "node-root", "snapshot_file": str(short / "overlay"), "format": "qcow2"}
        machine.own.do("blockdev-snapshot-sync", **overlay, snapshot_node_name="node-over")
        machine.guest("root", "write -P 9 0 64k")
        assert "no longer has the bitmap" in lost(machine, checkpoint)


def test_qemu_that_dies_is_an_error_and_not_a_hang(short: Path) -> None:
    with qemu_machine(short, SIZE) as machine:
        machine.guest("root", "write -P 1 0 8M")
        with frozen(opened(machine)) as volumes:
            machine.kill()
            with pytest.raises(SourceError):
                whole(volumes[0])
            with pytest.raises(SourceError):
                volumes[1].consistency()


def test_a_moment_that_somebody_ends_is_not_taken_for_one(short: Path) -> None:
    with qemu_machine(short, SIZE) as machine, frozen(opened(machine)) as volumes:
        (job,) = [row["id"] for row in machine.own.do("query-jobs")][:1]
        machine.own.do("job-cancel", id=job)
        while len(machine.own.do("query-jobs")) > 1:
            time.sleep(0.01)
        ends: list[Consistency | None] = []
        for volume in volumes:
            try:
                ends.append(volume.consistency())
            except SourceError:
                ends.append(None)
        assert sorted(ends, key=str) == [Consistency.LIVE, None]


def test_a_guest_waits_for_no_flush_of_the_scratch_images(short: Path) -> None:
    """QEMU flushes what it closes, in the loop that serves the guest: 60 ms and more at the end of a moment."""
    with qemu_machine(short, SIZE) as machine, frozen(opened(machine)):
        nodes = machine.own.do("query-named-block-nodes")
        ours = [
            node for node in nodes if str(node["node-name"]).startswith("lamella-") and node["drv"] in ("qcow2", "file")
        ]
        assert len(ours) == 4 and all(node["cache"]["no-flush"] for node in ours), ours


@contextmanager
def small_place(place: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes."""
    require("root", os.getuid() == 0, "not root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True)
    require("mount", done.returncode == 0, done.stderr.decode())
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_scratch_that_runs_full_ends_the_moment_and_never_the_guest(short: Path) -> None:
    (short / "small").mkdir()
    with small_place(short / "small", 16 * MIB) as place, qemu_machine(short, 64 * MIB) as machine:
        machine.guest("root", "write -P 1 0 64M")
        (source,) = opened(machine, "root", scratch=place)
        with source.freeze() as volume:
            machine.guest("root", "write -P 2 0 8M")
            assert os.statvfs(place).f_bavail < os.statvfs(place).f_blocks * 0.6
            buffer = memoryview(bytearray(MIB))
            volume.read_into(0, buffer)
            assert bytes(buffer) == bytes([1]) * MIB
            machine.guest("root", "write -P 3 8M 7616k")
            until = time.monotonic() + 20
            while machine.leftovers() and time.monotonic() < until:
                time.sleep(0.05)
            machine.guest("root", "write -P 4 16M 48M")
            with pytest.raises(SourceError, match="scratch space is full"):
                volume.read_into(60 * MIB, buffer)
            with pytest.raises(SourceError, match="scratch space is full"):
                volume.consistency()
        assert os.statvfs(place).f_bavail > os.statvfs(place).f_blocks * 0.9
        (place / "other").write_bytes(bytes(15 * MIB + MIB // 2))
        with pytest.raises(SourceAtRisk), source.freeze():
            pass
        assert machine.leftovers() == []


# -- who else is there -------------------------------------------------------------------------------------------------


def test_other_clients_and_missing_machines_are_told_in_one_line(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with qemu_machine(short, SIZE) as machine:
        other = Monitor(machine.qmp)
        with monkeypatch.context() as patch, pytest.raises(SourceError, match="another program may be connected"):
            patch.setattr(wire, "GREETING_SECONDS", 0.5)
            opened(machine, "root")
        other.close()
        assert [text.rpartition("#")[2] for text in disks_at(f"qmp:{machine.qmp}", Keeping(OWNER))] == ["root", "data"]
        with pytest.raises(NothingMatched, match="no disk nope"):
            opened(machine, "nope")
        (source,) = opened(machine, "root")
    with pytest.raises(SourceError, match="No such file"), source.freeze():
        pass


# -- the agent ---------------------------------------------------------------------------------------------------------


@contextmanager
def agent(place: Path, answers: dict[str, object]) -> Iterator[list[str]]:
    """Stands for the agent of a guest: answers each command as told, by silence where None; the list says what came."""
    code = f"""
import json, socket, sys
answers = {answers!r}
listener = socket.socket(socket.AF_UNIX); listener.bind({str(place)!r}); listener.listen(8)
print(flush=True)
while True:
    client, _ = listener.accept()
    for line in client.makefile("rb"):
        asked = json.loads(line.lstrip(b"\\xff"))
        print(asked["execute"], flush=True)
        answer = answers.get(asked["execute"], asked.get("arguments", {{}}).get("id"))
        if answer is not None:
            client.sendall(b"\\xff" + json.dumps({{"return": answer}}).encode() + b"\\n")
    client.close()
"""
    code = code.replace('b"\\xff" + json', '(b"\\xff" if "sync" in asked["execute"] else b"") + json')
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    program.stdout.readline()
    heard: list[str] = []
    try:
        yield heard
    finally:
        program.kill()
        program.wait()
        heard += program.stdout.read().split()
        program.stdout.close()
        place.unlink()


def test_a_guest_with_an_agent_is_frozen_for_the_moment_and_always_thawed(short: Path) -> None:
    with qemu_machine(short, SIZE) as machine:
        place = short / "agent"
        (source,) = opened(machine, "root", agent=place)
        with source.freeze() as volume:  # no agent
            assert volume.consistency() == Consistency.LIVE
        with agent(place, {"guest-fsfreeze-freeze": 2, "guest-fsfreeze-thaw": 2}) as heard, source.freeze() as volume:
            assert volume.consistency() == Consistency.QUIESCED
        assert heard == ["guest-sync-delimited", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]
        with agent(place, {"guest-fsfreeze-freeze": 2, "guest-fsfreeze-thaw": 0}), source.freeze() as volume:
            assert volume.consistency() == Consistency.LIVE  # somebody else thawed it, perhaps before the moment
        (note,) = (machine.place / "records").glob("*.lock")
        note.with_suffix(".frozen").touch()  # as a run leaves it that was killed while the guest was frozen
        with agent(place, {"guest-fsfreeze-freeze": 1, "guest-fsfreeze-thaw": 1}) as heard, source.freeze():
            pass
        assert heard[:3] == ["guest-sync-delimited", "guest-fsfreeze-thaw", "guest-sync-delimited"]
        assert not note.with_suffix(".frozen").exists()


# -- through the command -----------------------------------------------------------------------------------------------


def program(short: Path, **env: str) -> Lamella:
    (short / "key").write_bytes(b"k" * 32)
    (short / "key").chmod(0o600)
    places = {"LAMELLA_REPO": str(short / "repo"), "LAMELLA_STATE_DIR": str(short / "st")}
    return Lamella({**places, "LAMELLA_CACHE_DIR": str(short / "cache"), **env}, ["--keyfile", str(short / "key")])


def restored(lamella: Lamella, volume: str, place: Path) -> bytes:
    lamella.ok("restore", volume, "--to", place, "--overwrite")
    return place.read_bytes()


def test_all_disks_are_saved_by_one_command_and_restored(short: Path) -> None:
    lamella = program(short)
    lamella.ok("init", "-q")
    with qemu_machine(short, SIZE) as machine:
        model = Model(machine, 9)
        model.change(20)
        document = lamella.json("backup", f"qmp:{machine.qmp}")
        assert [row["volume"] for row in document["volumes"]] == ["vm:root", "vm:data"]
        model.change(5)
        before = {name: bytes(content) for name, content in model.content.items()}
        (bitmap,) = [one["name"] for one in machine.bitmaps("data")]
        machine.own.do("block-dirty-bitmap-remove", node="node-data", name=bitmap)
        rows = lamella.json("backup", f"qmp:{machine.qmp}")["volumes"]
        assert [(row["mode"], row["consistency"]) for row in rows] == [("incremental", "live"), ("compare", "live")]
        model.change(5)
        only = lamella.json("backup", f"qmp:{machine.qmp}#r*", "--require-consistent")["volumes"]
        assert [(row["volume"], row["mode"]) for row in only] == [("vm:root", "incremental")]
        for name in ("root", "data"):
            assert [one["recording"] for one in machine.bitmaps(name)] == [True]
        assert restored(lamella, "vm:root", short / "out") == bytes(model.content["root"])
        assert restored(lamella, "vm:data", short / "out") == before["data"]
        refused = lamella.run("backup", f"x=qmp:{machine.qmp}")
        assert refused.code == 2 and "one name cannot stand for several disks" in refused.err
        refused = lamella.run("backup", f"qmp:{machine.qmp}#other")
        assert refused.code == 4 and "root, data" in refused.err
        assert machine.leftovers() == []
    refused = lamella.run("backup", f"qmp:{machine.qmp}")
    assert refused.code == 1 and len(refused.err.splitlines()) == 1


KILLED = """
import os, signal, sys
from contextlib import nullcontext
from pathlib import Path
from lamella.sources.base import Keeping
from lamella.sources.qmp import source, wire
from lamella.sources.registry import open_kept_source
socket, machine, owner, records, *needed = sys.argv[1:]
do = wire.Qmp.do
def step(last):
    def counting(self, command, *more):
        nonlocal last
        last -= not command.startswith("query")
        if last < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return do(self, command, *more)
    wire.Qmp.do = counting
    source.guarded = lambda *_: nullcontext()  # the next run has to clean up
    keeping = Keeping(owner, records=Path(records))
    sources = [open_kept_source(f"qmp:{socket}#{disk}", machine, keeping) for disk in ("root", "data")]
    for one in sources:
        for kept in one.kept():
            if kept not in needed:
                one.drop(kept)
    with sources[0].freeze() as one, sources[1].freeze() as two:
        for volume, checkpoint in zip((one, two), needed):
            volume.read_into(0, memoryview(bytearray(65536)))
            volume.delta_since(checkpoint, 65536)
            volume.consistency()
for line in sys.stdin:
    child = os.fork()
    if not child:
        step(int(line))
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def test_a_kill_at_any_step_is_cleaned_up_by_the_next_run(short: Path) -> None:
    with qemu_machine(short, 4 * MIB, data="raw") as machine:
        machine.own.do("cont")  # QEMU closes descriptors only while its machine runs; the BIOS finds nothing to boot
        model, sources = Model(machine, 3), opened(machine)
        model.change(4)
        with frozen(sources) as volumes:
            needed, before = [one.checkpoint for one in volumes], [whole(one) for one in volumes]
            for source, checkpoint in zip(sources, needed, strict=True):
                source.keep(checkpoint)
        words = [sys.executable, "-c", KILLED, str(machine.qmp), HASH, OWNER, str(short / "records"), *needed]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as steps:
            assert steps.stdin is not None and steps.stdout is not None
            step, dirty, status = 0, 0, "9"
            while status == "9" and step < 100:
                step += 1
                steps.stdin.write(f"{step}\n")
                status = steps.stdout.readline().strip()
                dirty += bool(machine.leftovers())
                model.change(1)  # the guest goes on
                assert all(len(machine.bitmaps(name)) <= 2 for name in ("root", "data"))
            steps.stdin.close()
        assert (status, machine.leftovers(), machine.own.do("query-fdsets")) == ("0", [], [])
        assert step > 30 and dirty > 20
        assert [source.kept() for source in sources] == [[one] for one in needed]
        with frozen(sources) as volumes:
            for volume, checkpoint, then, name in zip(volumes, needed, before, ("root", "data"), strict=True):
                now = whole(volume)
                assert now == bytes(model.content[name])
                check_delta(volume.delta_since(checkpoint, GRAIN), then, now, name)


HOLDING = """
import os, subprocess, sys
from pathlib import Path
from lamella.sources.base import Keeping
from lamella.sources.registry import open_kept_source
address, machine, owner, records = sys.argv[1:]
with open_kept_source(address, machine, Keeping(owner, records=Path(records))).freeze():
    # A dying process gives its lock back when it likes: here some time after it is dead.
    fds = [fd for fd in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{fd}").endswith("lock")]
    subprocess.Popen(["sleep", "1"], pass_fds=[int(fd) for fd in fds], stdin=subprocess.DEVNULL)
    print(*fds, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("thaws", [True, False])
def test_a_killed_backup_lets_the_guest_go_at_once(short: Path, thaws: bool) -> None:
    """Without a further run: the scratch file of a killed run must not grow, nor a frozen guest stay so."""
    with qemu_machine(short, SIZE) as machine, agent(short / "agent", {"guest-fsfreeze-thaw": 1}) as heard:
        machine.own.do("cont")
        ask = f"?agent={short}/agent" if thaws else ""
        words = [f"qmp:{machine.qmp}{ask}#root", HASH, OWNER, str(short / "records")]
        command = [sys.executable, "-c", HOLDING, *words]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as held:
            if thaws:  # it dies while it waits for the guest's answer, which does not come
                while not list((short / "records").glob("*.frozen")):
                    time.sleep(0.01)
            else:
                assert held.stdout is not None
                assert held.stdout.readline().strip()
                assert machine.leftovers()
            held.kill()
        until = time.monotonic() + 30
        while left := [*machine.leftovers(), *map(str, (short / "records").glob("*.frozen"))]:
            assert time.monotonic() < until, left
            time.sleep(0.05)
        machine.guest("root", "write -P 1 0 1M")
    assert ("guest-fsfreeze-thaw" in heard) == thaws


def test_a_kill_of_qemu_leaves_disks_that_start_and_are_saved_again(short: Path) -> None:
    lamella = program(short)
    lamella.ok("init", "-q")
    with qemu_machine(short, SIZE) as machine:
        machine.guest("root", "write -P 1 0 1M")
        lamella.ok("backup", f"qmp:{machine.qmp}")
        with frozen(opened(machine)):
            machine.kill()
        subprocess.run(["qemu-img", "check", "-q", str(machine.images["root"])], check=True)
        machine.start()
        rows = lamella.json("backup", f"qmp:{machine.qmp}")["volumes"]
        assert [row["mode"] for row in rows] == ["compare", "compare"]
        rows = lamella.json("backup", f"qmp:{machine.qmp}")["volumes"]
        assert [row["mode"] for row in rows] == ["incremental", "incremental"]


# -- a peer that is no QEMU --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [b"", b"\n", b"[]\n", b"{}\n", b"[" * 100000 + b"\n", b'{"QMP": 1}\n{"return": {}}\n', b'{"QMP": {}}\n{"id": 2}\n'],
)
def test_what_is_no_monitor_is_refused(said: bytes, short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "GREETING_SECONDS", 1.0)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short / "qmp"))
        listener.listen(1)
        program = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import socket,sys; s=socket.socket(fileno=0); c,_=s.accept(); c.sendall({said!r}); c.recv(9)",
            ],
            stdin=listener.fileno(),
        )
        try:
            with pytest.raises(LamellaError):
                open_kept_source(f"qmp:{short}/qmp#x", HASH, Keeping(OWNER))
        finally:
            program.kill()
            program.wait()
