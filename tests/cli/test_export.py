"""`lamella export` from the outside: what programs of others make of it, how it ends, and what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.cli.program import Lamella, environment
from tests.features import require
from tests.unit.nbd_client import NbdClient, Refused

MIB = 1 << 20
SECONDS = 60


def tool(name: str) -> str:
    """A program of others. Their sizes and formats are what the tests are about."""
    found = shutil.which(name)
    require(name, found is not None, f"there is no {name}")
    return found or name


def ran(*arguments: str | Path, code: int = 0) -> str:
    done = subprocess.run([str(one) for one in arguments], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    return done.stdout


class Server:
    """A running `lamella export`."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log
        assert process.stdout is not None
        self.uri = process.stdout.readline().strip()
        assert self.uri, log.read_text()

    @property
    def said(self) -> str:
        return self._log.read_text()

    @property
    def socket(self) -> str:
        return self.uri.partition("socket=")[2]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(SECONDS)

    def peak_kib(self) -> int:
        """The most memory the server has had."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@contextmanager
def exporting(
    lamella: Lamella, tmp_path: Path, *arguments: str | Path, fds: Sequence[int] = (), prefix: Sequence[str] = ()
) -> Iterator[Server]:
    place = tmp_path / "s.sock"
    words = arguments if "--listen" in arguments or fds else (*arguments, "--socket", place)
    log = tmp_path / "export.log"
    with log.open("w") as err:
        process = subprocess.Popen(
            [*prefix, *lamella.command, *lamella.options, "export", *map(str, words)],
            env=environment(lamella.env),
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            pass_fds=fds,
        )
    try:
        yield Server(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(SECONDS)
        assert process.stdout is not None
        process.stdout.close()


def test_other_programs_read_what_the_source_holds(saved: Lamella, image: Path, tmp_path: Path) -> None:
    qemu_img, nbdcopy, nbdinfo = tool("qemu-img"), tool("nbdcopy"), tool("nbdinfo")
    with exporting(saved, tmp_path, "disk") as server:
        assert (tmp_path / "s.sock").stat().st_mode & 0o777 == 0o600
        ran(qemu_img, "compare", "-f", "raw", "-F", "raw", image, server.uri)
        ran(nbdcopy, server.uri, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == image.read_bytes()
        told = json.loads(ran(nbdinfo, "--json", server.uri))["exports"][0]
        assert told["export-size"] == image.stat().st_size and told["is_read_only"] and told["can_multi_conn"]
        ours = json.loads(ran(nbdinfo, "--json", "--map", server.uri))
        holes = sum(row["length"] for row in ours if row["type"] & 1)
        assert holes == 6 * MIB + MIB - -(-50000 // 65536) * 65536 or holes > 6 * MIB
        assert server.end() == 0
        assert not (tmp_path / "s.sock").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_with_clients_connected(saved: Lamella, tmp_path: Path, number: int) -> None:
    with exporting(saved, tmp_path, "disk") as server, NbdClient(server.socket).go() as client:
        client.read(0, 10)
        assert server.end(number) == 0
        assert not (tmp_path / "s.sock").exists()
        with pytest.raises((EOFError, ConnectionError)):
            client.read(0, 10)


def test_a_socket_that_a_killed_server_left_is_replaced_and_one_in_use_is_not(saved: Lamella, tmp_path: Path) -> None:
    with exporting(saved, tmp_path, "disk") as server:
        busy = saved.run("export", "disk", "--socket", tmp_path / "s.sock")
        assert (busy.code, "another server listens" in busy.err) == (2, True)
        server.end(signal.SIGKILL)
    assert (tmp_path / "s.sock").exists()
    with exporting(saved, tmp_path, "disk") as server, NbdClient(server.socket).go() as client:
        assert client.size == 8 * MIB
    (tmp_path / "file").write_text("mine")
    refused = saved.run("export", "disk", "--socket", tmp_path / "file")
    assert (refused.code, (tmp_path / "file").read_text()) == (2, "mine")


def test_only_this_machine_reaches_it_unless_it_is_told_otherwise(saved: Lamella, tmp_path: Path) -> None:
    refused = saved.run("export", "disk", "--listen", "0.0.0.0:0")
    assert (refused.code, "--allow-network" in refused.err) == (2, True), refused.err
    with exporting(saved, tmp_path, "disk", "--listen", "127.0.0.1:0") as server:
        port = int(server.uri.rpartition(":")[2])
        with NbdClient(("127.0.0.1", port)).go() as client:
            assert client.size == 8 * MIB
        assert server.end() == 0


def test_it_takes_a_socket_that_was_handed_over(saved: Lamella, image: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "given"))
        given = listener.fileno()
        shell = ["/bin/bash", "-c", f'exec 3<&{given}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"', "sh"]
        with exporting(saved, tmp_path, "disk", "--once", fds=(given,), prefix=shell) as server:
            with NbdClient(str(tmp_path / "given")).go() as client:
                assert client.read(0, MIB) == image.read_bytes()[:MIB]
            assert server.process.wait(SECONDS) == 0, "--once: it ends with its last client"


def test_what_does_not_go_together_is_refused_before_a_repository_is_looked_for(lamella: Lamella) -> None:
    for words in (
        "",
        "disk",
        "disk --all .",
        "disk --socket a --listen 127.0.0.1:0",
        "disk --socket a --overlay b --throw-away",
        "disk --socket a --format raw",
        "disk --to x --throw-away",
        "disk --to x --once",
        f"disk --socket {'x' * 200}",
        "disk --to - --json",
    ):
        done = lamella.run("export", *words.split())
        assert done.code == 2 and done.err.count("\n") == 1, (words, done.err)
    assert not (Path("x").exists() or Path("a").exists())


def test_what_is_not_there_is_refused(saved: Lamella, tmp_path: Path) -> None:
    assert saved.run("export", "other", "--socket", tmp_path / "s").code == 4
    assert saved.run("export", "disk@1999", "--to", tmp_path / "x").code == 4
    assert not (tmp_path / "s").exists()


def test_a_writer_keeps_or_throws_away_what_it_wrote(saved: Lamella, image: Path, tmp_path: Path) -> None:
    qemu_io, qemu_img = tool("qemu-io"), tool("qemu-img")
    kept = tmp_path / "kept"
    with exporting(saved, tmp_path, "disk", "--throw-away") as server:
        ran(qemu_io, "-f", "raw", "-c", "write -P 7 1000000 5000", "-c", "flush", server.uri)
        ran(qemu_io, "-f", "raw", "-c", "read -P 7 1000000 5000", server.uri)
        assert server.end() == 0
    with exporting(saved, tmp_path, "disk", "--overlay", kept) as server:
        ran(qemu_img, "compare", "-f", "raw", "-F", "raw", image, server.uri)
        ran(
            qemu_io,
            "-f",
            "raw",
            "-c",
            "write -P 7 1000000 5000",
            "-c",
            "write -z 3M 1M",
            "-c",
            "discard 2M 1M",
            server.uri,
        )
        server.end(signal.SIGKILL)
    with exporting(saved, tmp_path, "disk", "--overlay", kept) as server:
        ran(qemu_io, "-f", "raw", "-c", "read -P 7 1000000 5000", "-c", "read -P 0 3M 1M", server.uri)
        busy = saved.run("export", "disk", "--socket", tmp_path / "t", "--overlay", kept)
        assert busy.code == 11, busy.err
    image.write_bytes(os.urandom(8 * MIB))
    saved.ok("backup", image)
    before = kept.read_bytes()
    other = saved.run("export", "disk", "--socket", tmp_path / "t", "--overlay", kept)
    assert (other.code, "another snapshot" in other.err) == (2, True), other.err
    assert kept.read_bytes() == before


def test_an_overlay_that_is_full_is_an_error_to_that_write_alone(saved: Lamella, image: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", small], capture_output=True, text=True)
    require("mount", done.returncode == 0, done.stderr.strip())
    try:
        saved.env["TMPDIR"] = str(small)
        for options in (["--throw-away"], ["--overlay", str(small / "kept")]):
            with exporting(saved, tmp_path, "disk", *options) as server, NbdClient(server.socket).go() as client:
                client.write(0, b"a" * 4096)
                failures = 0
                for start in range(MIB, 4 * MIB, 65536):
                    try:
                        client.write(start, b"b" * 65536)
                    except Refused as refused:
                        assert refused.number == 28
                        failures += 1
                assert failures
                assert client.read(0, 4096) == b"a" * 4096
                assert client.read(5 * MIB, 1000) == image.read_bytes()[5 * MIB : 5 * MIB + 1000]
                client.write(100, b"room was there")
    finally:
        subprocess.run(["umount", small], check=True)


def test_bad_clients_cost_little_memory(saved: Lamella, image: Path, tmp_path: Path) -> None:
    with exporting(saved, tmp_path, "disk") as server:
        with NbdClient(server.socket).go() as client:
            client.read(0, 8 * MIB)
        before = server.peak_kib()
        clients = []
        for _ in range(60):
            client = NbdClient(server.socket).go()
            client.socket.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    client.send(0, 0, 8 * MIB)
            clients.append(client)
        with NbdClient(server.socket).go() as client:
            assert client.read(0, MIB) == image.read_bytes()[:MIB]
        assert server.peak_kib() - before < 40 * 1024
        for client in clients:
            client.socket.close()


def test_packs_that_are_gone_are_an_error_until_they_are_back(
    saved: Lamella, image: Path, place: Path, tmp_path: Path
) -> None:
    with exporting(saved, tmp_path, "disk") as server, NbdClient(server.socket).go() as client:
        packs = place / "p"
        packs.rename(tmp_path / "away")
        with pytest.raises(Refused) as caught:
            client.read(0, 4096)
        assert caught.value.number == 5
        (tmp_path / "away").rename(packs)
        time.sleep(11)  # damage is looked at again after ten seconds
        assert client.read(0, 4096) == image.read_bytes()[:4096]
        assert "lamella: warning:" in server.said


# -- images ----------------------------------------------------------------------------------------------------


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("tail", [0, 1, 70_000])
def test_an_image_is_the_volume(empty: Lamella, image: Path, tmp_path: Path, tail: int) -> None:
    qemu_img, qemu_io = tool("qemu-img"), tool("qemu-io")
    with image.open("r+b") as file:
        file.seek(3 * MIB)
        file.write(bytes(MIB))
        file.seek(8 * MIB)
        file.write(b"t" * tail)
    empty.ok("backup", image)
    plain, qcow2 = tmp_path / "out.img", tmp_path / "out.qcow2"
    empty.ok("export", "disk", "--to", plain)
    assert plain.read_bytes() == image.read_bytes()
    empty.ok("export", "disk", "--to", qcow2, "--format", "qcow2")
    assert "No errors" in ran(qemu_img, "check", "-f", "qcow2", qcow2)
    padded = tmp_path / "padded"
    padded.write_bytes(image.read_bytes() + bytes(-image.stat().st_size % 512))
    ran(qemu_img, "compare", "-f", "raw", "-F", "qcow2", padded, qcow2)
    mapped = json.loads(ran(qemu_img, "map", "--output=json", "-f", "qcow2", qcow2))
    zeros = sum(row["length"] for row in mapped if row["zero"])
    assert 6 * MIB < zeros < 7 * MIB + 65536
    for path in (plain, qcow2):
        assert path.stat().st_mode & 0o777 == 0o600 and blocks(path) < 3 * MIB
    ran(qemu_io, "-f", "qcow2", "-c", "write -P 5 2M 1M", "-c", "write -P 6 0 64k", qcow2)
    assert "No errors" in ran(qemu_img, "check", "-f", "qcow2", qcow2), "an image that can be written to"
    again = empty.run("export", "disk", "--to", plain)
    assert (again.code, "exists already" in again.err) == (2, True)


def test_an_image_of_a_large_volume_with_data_far_apart(empty: Lamella, image: Path, tmp_path: Path) -> None:
    """Several tables of the qcow2 image, some of them without any data."""
    qemu_img, gib = tool("qemu-img"), 1 << 30
    with image.open("r+b") as file:
        for offset in (700 * MIB, 3 * gib - 5, 39 * gib + 12345):
            file.seek(offset)
            file.write(os.urandom(200_000))
        file.truncate(40 * gib)
    empty.ok("backup", image)
    target = tmp_path / "out.qcow2"
    empty.ok("export", "disk", "--to", target, "--format", "qcow2")
    assert "No errors" in ran(qemu_img, "check", "-f", "qcow2", target)
    ran(qemu_img, "compare", "-f", "raw", "-F", "qcow2", image, target)
    assert blocks(target) < 4 * MIB
    with exporting(empty, tmp_path, "disk") as server:
        ran(qemu_img, "compare", "-f", "raw", "-F", "raw", image, server.uri)


def test_an_empty_volume_has_images(empty: Lamella, image: Path, tmp_path: Path) -> None:
    image.write_bytes(b"")
    empty.ok("backup", image)
    for kind in ("raw", "qcow2", "tar"):
        empty.ok("export", "disk", "--to", tmp_path / kind, "--format", kind)
    assert (tmp_path / "raw").read_bytes() == b""
    assert "No errors" in ran(tool("qemu-img"), "check", "-f", "qcow2", tmp_path / "qcow2")
    with exporting(empty, tmp_path, "disk") as server, NbdClient(server.socket).go() as client:
        assert client.size == 0


def test_a_stream_is_the_same_image(empty: Lamella, image: Path, tmp_path: Path) -> None:
    with image.open("ab") as file:
        file.write(b"an end within a cluster")
    empty.ok("backup", image)
    saved = empty
    for kind in ("raw", "qcow2", "tar"):
        saved.ok("export", "disk", "--to", tmp_path / kind, "--format", kind)
        with (tmp_path / "stream").open("wb") as target:
            arguments = [*saved.command, *saved.options, "export", "disk", "--to", "-", "--format", kind]
            subprocess.run(arguments, env=environment(saved.env), stdout=target, check=True, timeout=SECONDS)
        assert (tmp_path / "stream").read_bytes() == (tmp_path / kind).read_bytes()


def test_a_tar_holds_the_volume_and_its_documents(empty: Lamella, image: Path, tmp_path: Path) -> None:
    (tmp_path / "settings").write_text("<domain/>")
    empty.ok("backup", image, "--document", f"settings.xml={tmp_path / 'settings'}")
    empty.ok("export", "disk", "--to", tmp_path / "out.tar", "--format", "tar")
    assert (tmp_path / "out.tar").stat().st_size < 3 * MIB
    with tarfile.open(tmp_path / "out.tar") as found:
        assert found.getnames() == ["disk/disk.img", "disk/documents/settings.xml"]
        disk = found.extractfile("disk/disk.img")
        assert disk is not None and disk.read() == image.read_bytes()
        settings = found.extractfile("disk/documents/settings.xml")
        assert settings is not None and settings.read() == b"<domain/>"
    (tmp_path / "gnu").mkdir()
    ran(tool("tar"), "-C", tmp_path / "gnu", "-xf", tmp_path / "out.tar")
    unpacked = tmp_path / "gnu/disk/disk.img"
    assert unpacked.read_bytes() == image.read_bytes() and blocks(unpacked) < 3 * MIB


def test_a_full_disk_leaves_nothing_behind(saved: Lamella, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", small], capture_output=True, text=True)
    require("mount", done.returncode == 0, done.stderr.strip())
    try:
        for kind in ("raw", "qcow2", "tar"):
            full = saved.run("export", "disk", "--to", small / "x", "--format", kind)
            assert (full.code, "No space" in full.err) == (1, True), full.err
            assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_image_that_was_interrupted_is_written_anew(
    saved: Lamella, image: Path, tmp_path: Path, number: int
) -> None:
    target, partial = tmp_path / "x.img", tmp_path / "x.img.lamella-export"
    words = [*saved.command, *saved.options, "--limit-rate", "200K", "export", "disk", "--to", str(target)]
    with subprocess.Popen(words, env=environment(saved.env), stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + SECONDS
        while not partial.exists() and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(SECONDS) == (130 if number == signal.SIGINT else -number)
    assert not target.exists() and partial.exists() == (number == signal.SIGKILL)
    saved.ok("export", "disk", "--to", target)
    assert target.read_bytes() == image.read_bytes() and not partial.exists()


def test_two_that_write_one_file_are_told_and_neither_is_mixed(saved: Lamella, image: Path, tmp_path: Path) -> None:
    """A restore goes on with the file that an earlier attempt left: an export must not be what it finds there."""
    target, partial = tmp_path / "x.img", tmp_path / "x.img.lamella-export"
    words = [*saved.command, *saved.options, "--limit-rate", "200K", "export", "disk", "--to", str(target)]
    with subprocess.Popen(words, env=environment(saved.env), stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + SECONDS
        while not partial.exists() and time.monotonic() < until:
            time.sleep(0.02)
        second = saved.run("export", "disk", "--to", target, "--format", "qcow2")
        assert (second.code, "another export is writing" in second.err) == (11, True), second.err
        saved.ok("restore", "disk", "--to", target)
        process.wait(SECONDS)
    assert process.returncode == 2 and target.read_bytes() == image.read_bytes() and not partial.exists()


def test_a_reader_that_leaves_is_an_error(saved: Lamella) -> None:
    words = " ".join([*saved.command, *saved.options, "export", "disk", "--to", "-", "-q"])
    done = subprocess.run(
        ["/bin/bash", "-c", f"set -o pipefail; {words} | head -c 100 | wc -c"],
        env=environment(saved.env),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.stdout.strip() == "100" and done.returncode == 1
    assert done.stderr.count("\n") == 1 and "cannot write the image" in done.stderr


# -- a guest -------------------------------------------------------------------------------------------------------

# The guest fills a sector, writes it to its disk at sector 100, reads it back elsewhere, compares, and says so.
BOOT_SECTOR = """
.code16
.globl _start
_start:
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7000, %sp
    mov %dl, drive
    mov $0x8000, %di
    mov $0x5aa5, %ax
    mov $256, %cx
    cld
    rep stosw
    mov $0x43, %ah
    call disk
    movw $0x9000, packet + 4
    mov $0x42, %ah
    call disk
    mov $0x8000, %si
    mov $0x9000, %di
    mov $256, %cx
    repe cmpsw
    jne failed
    mov $good, %si
    jmp say
disk:
    mov $0, %al
    mov drive, %dl
    mov $packet, %si
    int $0x13
    jc failed
    ret
failed:
    mov $bad, %si
say:
    lodsb
    test %al, %al
    jz end
    mov $0x3f8, %dx
    out %al, %dx
    jmp say
end:
    mov $0xf4, %dx
    mov $1, %al
    out %al, %dx
    hlt
packet:
    .byte 16, 0
    .word 1, 0x8000, 0
    .quad 100
drive: .byte 0
good: .asciz "booted, wrote and read back"
bad: .asciz "failed"
.org 510
.word 0xaa55
"""


def test_a_guest_boots_from_an_export_and_its_writes_stay_out_of_the_snapshot(
    empty: Lamella, image: Path, tmp_path: Path
) -> None:
    qemu = tool("qemu-system-x86_64")
    (tmp_path / "boot.s").write_text(BOOT_SECTOR)
    ran(tool("as"), "--32", "-o", tmp_path / "boot.o", tmp_path / "boot.s")
    words = ("-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary")
    ran(tool("ld"), *words, "-o", tmp_path / "boot", tmp_path / "boot.o")
    sector = (tmp_path / "boot").read_bytes()
    assert len(sector) == 512
    with image.open("r+b") as file:
        file.write(sector)
    empty.ok("backup", image)
    kept, console = tmp_path / "kept", tmp_path / "console"
    with exporting(empty, tmp_path, "disk", "--overlay", kept) as server:
        machine = ("-machine", "pc,accel=tcg", "-m", "64", "-nodefaults", "-display", "none", "-no-reboot")
        devices = ("-serial", f"file:{console}", "-device", "isa-debug-exit,iobase=0xf4,iosize=1")
        ran(qemu, *machine, *devices, "-drive", f"file={server.uri},format=raw,if=ide", code=3)
        assert console.read_text() == "booted, wrote and read back"
        with NbdClient(server.socket).go() as client:
            assert client.read(100 * 512, 512) == b"\xa5\x5a" * 256
        assert server.end() == 0
    with exporting(empty, tmp_path, "disk") as server:
        ran(tool("qemu-img"), "compare", "-f", "raw", "-F", "raw", image, server.uri)


def test_the_suffix_of_the_file_says_which_image_is_written(saved: Lamella, image: Path, tmp_path: Path) -> None:
    for name, words, magic in (
        ("a.qcow2", (), b"QFI\xfb"),
        ("b.QCOW2", (), b"QFI\xfb"),
        ("c.img", (), image.read_bytes()[:4]),
        ("d.qcow2", ("--format", "raw"), image.read_bytes()[:4]),
        ("e.img", ("--format", "qcow2"), b"QFI\xfb"),
    ):
        saved.ok("export", "disk", "--to", tmp_path / name, *words)
        assert (tmp_path / name).read_bytes()[:4] == magic, name
    saved.ok("export", "disk", "--to", tmp_path / "f.tar")
    with tarfile.open(tmp_path / "f.tar") as archive:
        assert archive.getnames()
