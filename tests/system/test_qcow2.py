"""Disks in qcow2 images: the content as a guest sees it, and no other file of the host.

What a user fears: a restored disk that lacks what its backing file held, and an image from somebody else whose header
names /etc/shadow: the next backup would hold that file, and whoever may restore the image could read it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamella.base.errors import SourceError
from lamella.sources.base import Source
from lamella.sources.qcow2.chain import read_chain
from lamella.sources.registry import open_source
from lamella_kit.source_contract import ReadOnlySourceContract
from lamella_kit.source_reading import GRAIN
from lamella_kit.volumes import FileVolume
from tests.cli.program import COMMAND, SECONDS, Lamella, environment
from tests.system.qemu_storage import need_qemu

MIB = 1 << 20
SECRET = b"root:$6$nobody-may-read-this:1:0:99999:7:::\n" * 100


def ran(*words: str | Path) -> None:
    subprocess.run(list(map(str, words)), check=True, capture_output=True, timeout=SECONDS)


def create(path: Path, size: int | None, *options: str | Path) -> Path:
    ran("qemu-img", "create", "-q", "-f", "qcow2", *options, path, *([] if size is None else [str(size)]))
    return path


def over(path: Path, backing: str | Path, form: str, *options: str | Path) -> Path:
    return create(path, None, "-b", str(backing), "-F", form, *options)


def forged(path: Path, backing: str, form: str = "raw", size: int = MIB) -> Path:
    """An image whose header names anything at all; without `form` not the format of the backing file."""
    create(path, size, "-u", "-b", "placeholder", "-F", "raw")
    head = bytearray(path.read_bytes()[:65536])
    at, length = int.from_bytes(head[8:16], "big"), int.from_bytes(head[16:20], "big")
    head[at : at + length] = bytes(length)
    name = backing.encode()
    head[8:20] = (4096).to_bytes(8, "big") + len(name).to_bytes(4, "big")
    head[4096 : 4096 + len(name)] = name
    extension = head.index((0xE2792ACA).to_bytes(4, "big"))
    head[extension + 4 : extension + 16] = len(form).to_bytes(4, "big") + form.encode().ljust(8, b"\0")
    if not form:
        head[extension : extension + 4] = bytes(4)
    with path.open("r+b") as file:
        file.write(head)
    return path


def write(image: Path, form: str, seed: int, size: int) -> None:
    """Data, zeros and discarded ranges at some places, by QEMU."""
    chance = random.Random(seed)
    commands: list[str] = []
    for _ in range(12):
        at = chance.randrange(size // 512) * 512
        length = min(size - at, chance.randrange(1, 200) * 512)
        commands += [
            "-c",
            chance.choice([f"write -P {chance.randrange(1, 255)}", "write -z", "discard"]) + f" {at} {length}",
        ]
    ran("qemu-io", "-f", form, *commands, image)


@pytest.fixture
def lamella(tmp_path: Path) -> Lamella:
    need_qemu()
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    config = tmp_path / "config.toml"
    config.write_text("")
    env = {"LAMELLA_REPO": str(tmp_path / "repository"), "LAMELLA_CONFIG": str(config)}
    made = Lamella(env, ["--keyfile", str(key)])
    made.ok("init", "-q")
    return made


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def content(image: Path) -> bytes:
    """What a guest sees, as QEMU says."""
    raw = image.with_name(image.name + ".raw")
    ran("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw)
    try:
        return raw.read_bytes()
    finally:
        raw.unlink()


def restored(lamella: Lamella, volume: str) -> bytes:
    place = Path(lamella.env["LAMELLA_REPO"]).with_name("restored")
    lamella.ok("restore", volume, "--to", place, "--overwrite")
    return place.read_bytes()


class DiskInImage(FileVolume):
    """A disk in a qcow2 image, changed while no machine runs."""

    def _raw(self) -> Path:
        return self.path.with_suffix(".raw")

    def fill(self, content: bytes) -> None:
        self._raw().write_bytes(content + bytes(-len(content) % 512))
        self._made()

    def _made(self) -> None:
        ran("qemu-img", "convert", "-f", "raw", "-O", "qcow2", self._raw(), self.path)

    def write(self, offset: int, content: bytes) -> None:
        self.content()
        with self._raw().open("r+b") as file:
            file.seek(offset)
            file.write(content)
        self._made()

    def resize(self, size: int) -> None:
        self.content()
        os.truncate(self._raw(), -(-size // 512) * 512)
        self._made()

    def content(self) -> bytes:
        ran("qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.path, self._raw())
        return self._raw().read_bytes()

    def sibling(self) -> DiskInImage:
        return DiskInImage(self.path.with_name("other.qcow2"))


class TestQcow2Contract(ReadOnlySourceContract):
    sizes = (0, 512, GRAIN, GRAIN + 512, 3 * MIB + 512 * 25)

    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        need_qemu()
        self.folder = tmp_path

    def volume(self) -> DiskInImage:
        return DiskInImage(self.folder / "disk.qcow2")

    def make_source(self, image: Path) -> Source:
        return open_source(f"qcow2:{image}", machine="0123456789abcdef")


SIZE = 9 * MIB + 512


def kinds(images: Path) -> Iterator[Path]:
    """Images of every kind that QEMU makes: formats, grids, chains, data in a file of their own."""
    old = create(images / "old.qcow2", SIZE, "-o", "compat=0.10")
    small = create(images / "small.qcow2", SIZE, "-o", "cluster_size=512")
    large = create(images / "large.qcow2", SIZE, "-o", "cluster_size=2M,lazy_refcounts=on")
    parts = create(images / "parts.qcow2", SIZE, "-o", "extended_l2=on,cluster_size=128k")
    data = create(images / "data.qcow2", SIZE, "-o", f"data_file={images}/data.raw")
    for seed, one in enumerate((old, small, large, parts, data)):
        write(one, "qcow2", seed, SIZE)
    yield from (old, small, large, parts, data)
    packed = images / "packed.qcow2"
    ran("qemu-img", "convert", "-O", "qcow2", "-c", "-o", "compression_type=zstd", old, packed)
    yield packed
    raw = images / "base.raw"
    raw.write_bytes(random.Random(9).randbytes(5 * MIB))
    first = create(images / "first.qcow2", SIZE, "-b", "base.raw", "-F", "raw")
    write(first, "qcow2", 10, SIZE)
    (images / "deeper").mkdir()
    second = over(images / "deeper" / "second.qcow2", "../first.qcow2", "qcow2")
    write(second, "qcow2", 11, SIZE)
    yield first
    yield second
    yield create(images / "empty.qcow2", SIZE)


def test_a_disk_is_what_its_guest_sees(lamella: Lamella, images: Path) -> None:
    (images.parent / "config.toml").write_text(f'[backup]\nbacking_dirs = ["{images}"]\n')
    found = {image.stem: image for image in kinds(images)}
    rows = lamella.json("backup", *(f"qcow2:{image}" for image in found.values()))["volumes"]
    assert {row["driver"] for row in rows} == {"qcow2"} and {row["source_bytes"] for row in rows} == {SIZE}
    for name, image in found.items():
        assert restored(lamella, name) == content(image), name
    assert lamella.json("info", "second")["image"]["files"] == [
        str(images / name) for name in ("deeper/second.qcow2", "first.qcow2", "base.raw")
    ]
    # What changed above the base is all that is stored; a restore to qcow2 is an image of its own.
    write(found["second"], "qcow2", 12, SIZE)
    (row,) = lamella.json("backup", f"qcow2:{found['second']}")["volumes"]
    assert row["mode"] == "compare" and 0 < row["changed_chunks"] < 60, row
    assert restored(lamella, "second") == content(found["second"])
    lamella.ok("export", "second", "--to", images / "out.qcow2")
    assert content(images / "out.qcow2") == content(found["second"])
    source = f"qcow2:{found['second']}"
    assert lamella.json("verify", "second", "--level", "source", "--source", source)["findings"] == []


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "shadow"
    path.write_bytes(SECRET)
    return path


def hostile(images: Path, secret: Path) -> Iterator[tuple[str, Path]]:
    """Images that make QEMU open something else, by name; with what is said of each."""
    elsewhere = "lies elsewhere"
    yield elsewhere, forged(images / "absolute.qcow2", str(secret))
    yield elsewhere, forged(images / "relative.qcow2", "../shadow")
    (images / "link").symlink_to(secret)
    yield elsewhere, forged(images / "linked.qcow2", "link")
    (images / "folder").symlink_to(secret.parent)
    yield elsewhere, forged(images / "folder.qcow2", "folder/shadow")
    asked = json.dumps({"driver": "raw", "file": {"driver": "file", "filename": str(secret)}})
    for number, name in enumerate(
        [
            f"json:{asked}",
            f"file:{secret}",
            f"raw:{secret}",
            "nbd://127.0.0.1:10809/x",
            "fat:rw:/etc",
            "http://127.0.0.1/x",
        ]
    ):
        yield "no plain path", forged(images / f"protocol{number}.qcow2", name)
    yield "does not guess", forged(images / "guessed.qcow2", "guessed.raw", "")
    yield "does not guess", forged(images / "vmdk.qcow2", "base.vmdk", "vmdk")
    nested = forged(images / "nested.qcow2", str(secret))
    yield elsewhere, forged(images / "outer.qcow2", nested.name, "qcow2")
    yield "circle", forged(images / "self.qcow2", "self.qcow2", "qcow2")
    forged(images / "one.qcow2", "two.qcow2", "qcow2")
    yield "circle", forged(images / "two.qcow2", "one.qcow2", "qcow2")
    data = create(images / "data.qcow2", 2 * len(SECRET), "-o", f"data_file={images}/data.raw,data_file_raw=on")
    ran("qemu-img", "amend", "-f", "qcow2", "-o", f"data_file={secret},data_file_raw=on", data)
    yield elsewhere, data
    os.mkfifo(images / "pipe")
    yield "neither a file", forged(images / "pipe.qcow2", "pipe")
    yield "neither a file", forged(images / "directory.qcow2", "../images")
    yield "cannot read", forged(images / "missing.qcow2", "missing.raw")
    (images / "guest.raw").write_bytes((images / "absolute.qcow2").read_bytes() + bytes(MIB))
    yield elsewhere, images / "guest.raw"


def test_no_header_leads_out_of_its_directory(lamella: Lamella, images: Path, secret: Path) -> None:
    refused = list(hostile(images, secret))
    good = create(images / "good.qcow2", MIB)
    rows = lamella.json("backup", f"good=qcow2:{good}", *(f"qcow2:{image}" for _, image in refused), code=3)["volumes"]
    errors = {row["volume"]: row["error"] for row in rows if row["result"] == "failed"}
    assert set(errors) == {image.stem for _, image in refused}
    for said, image in refused:
        assert said in errors[image.stem], (image, errors[image.stem])
    assert [row["volume"] for row in rows if row["result"] != "failed"] == ["good"]
    # Saved as the files they are, they hold nothing of it either: that is what happens if nobody says qcow2:.
    raw = images / "guest.raw"
    lamella.ok("backup", raw)
    assert restored(lamella, "guest") == raw.read_bytes()


_BACK = """
for word; do
    case $word in --socket=*) socket=${word#--socket=}; word=$word.early ;; esac
    set -- "$@" "$word"; shift
done
(until [ -S $socket.early ]; do sleep 0.01; done; mv $kept $base; mv $socket.early $socket) &
"""
"""Everything is as it was before anybody can speak to the server."""


@pytest.mark.parametrize("what", ["link", "folder", "link and back", "another backing file", "another header"])
def test_nothing_is_exchanged_between_the_look_and_the_opening(
    lamella: Lamella, images: Path, secret: Path, tmp_path: Path, what: str
) -> None:
    """A program in the place of qemu-nbd exchanges a file, and then is qemu-nbd."""
    (images / "folder").mkdir()
    base, other = images / "folder" / "shadow", images / "other"
    base.write_bytes(bytes(MIB))
    other.write_bytes(b"o" * MIB)
    image = over(images / "web.qcow2", base, "raw")
    real = shutil.which("qemu-nbd")
    moved = f"mv {images}/folder {images}/before"
    swap = {
        "link": f"ln -sf {secret} {base}",
        "folder": f"{moved}; ln -s {secret.parent} {images}/folder",
        "link and back": f"kept={images}/kept base={base}; mv $base $kept; ln -s {secret} $base",
        "another backing file": f"qemu-img rebase -u -f qcow2 -b {other} -F raw {image}",
        "another header": f"qemu-img create -q -f qcow2 {image} {MIB}",
    }[what]
    program = tmp_path / "bin" / "qemu-nbd"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n{swap}\n{_BACK if what == "link and back" else ""}\nexec {real} "$@"\n')
    program.chmod(0o755)
    done = lamella.run("backup", f"qcow2:{image}", env={"PATH": f"{program.parent}:{os.environ['PATH']}"})
    assert (done.code, "while it was opened" in done.err or "lies elsewhere" in done.err) == (3, True), done
    assert lamella.json("list")["snapshots"] == []


def test_what_the_administrator_allows_is_opened(lamella: Lamella, images: Path, tmp_path: Path) -> None:
    bases = tmp_path / "bases"
    bases.mkdir()
    base = create(bases / "base.qcow2", SIZE)
    write(base, "qcow2", 1, SIZE)
    image = over(images / "web.qcow2", base, "qcow2")
    refused = lamella.run("backup", f"qcow2:{image}")
    assert refused.code == 3 and f'backing_dirs = ["{bases}"]' in refused.err, refused
    (tmp_path / "config.toml").write_text(f'[backup]\nbacking_dirs = ["{bases}"]\n')
    lamella.ok("backup", f"qcow2:{image}")
    assert restored(lamella, "web") == content(image)


def test_names_are_found_where_qemu_finds_them(images: Path, tmp_path: Path) -> None:
    """Two files of one name, beside a link and beside the image that it leads to: QEMU takes that of the link."""
    need_qemu()
    pool = tmp_path / "pool"
    pool.mkdir()
    for folder, fill in ((images, b"a"), (pool, b"b")):
        (folder / "base.raw").write_bytes(fill * MIB)
    over(pool / "web.qcow2", "base.raw", "raw")
    (images / "web.qcow2").symlink_to(pool / "web.qcow2")
    assert content(images / "web.qcow2") == b"a" * MIB
    assert [link.path for link in read_chain(images / "web.qcow2", ())][-1] == images / "base.raw"
    assert [link.path for link in read_chain(pool / "web.qcow2", ())][-1] == pool / "base.raw"


def test_an_encrypted_or_damaged_image_is_refused_by_name(lamella: Lamella, images: Path) -> None:
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    for tries_left in range(50, -1, -1):  # QEMU: "Unable to get accurate CPU usage", on some machines every third time
        try:
            create(images / "luks.qcow2", MIB, "--object", "secret,id=s,data=abc", "-o", options)
        except subprocess.CalledProcessError:
            if not tries_left:
                raise
        else:
            break
    torn = create(images / "torn.qcow2", MIB)
    with torn.open("r+b") as file:
        file.truncate(70)
    rows = lamella.json("backup", f"qcow2:{images}/luks.qcow2", f"qcow2:{torn}", code=3)["volumes"]
    errors = {row["volume"]: row["error"] for row in rows}
    assert "encrypted (LUKS)" in errors["luks"] and "no sound qcow2 image" in errors["torn"], errors
    with pytest.raises(SourceError):
        read_chain(images / "absent.qcow2", ())
    missing = lamella.run("backup", f"qcow2:{images}/absent.qcow2")
    assert missing.code in (3, 4) and "there is no image" in missing.err, missing


@contextmanager
def held(image: Path) -> Iterator[None]:
    """A QEMU that has the image open for writing."""
    words = ["--blockdev", f"driver=file,node-name=f,filename={image}", "--blockdev", "driver=qcow2,node-name=d,file=f"]
    place = image.with_suffix(".sock")
    serve = ["--nbd-server", f"addr.type=unix,addr.path={place}", "--export", "nbd,id=e,node-name=d,writable=on"]
    with subprocess.Popen(["qemu-storage-daemon", *words, *serve]) as program:
        end = time.monotonic() + SECONDS
        while not place.exists():
            assert time.monotonic() < end and program.poll() is None
            time.sleep(0.02)
        try:
            yield
        finally:
            program.terminate()


def test_what_a_running_qemu_holds_is_left_alone(lamella: Lamella, images: Path) -> None:
    image = create(images / "web.qcow2", MIB)
    below = over(images / "top.qcow2", "web.qcow2", "qcow2")
    with held(image):
        for one in (image, below):
            refused = lamella.run("backup", f"qcow2:{one}")
            assert refused.code == 3 and "in use by QEMU" in refused.err, refused
    lamella.ok("backup", f"qcow2:{image}")


def test_a_file_that_is_an_image_says_so(lamella: Lamella, images: Path) -> None:
    """Saved as a file an overlay is 192 KiB, and without its backing file nothing: that was never said."""
    base = create(images / "base.qcow2", SIZE)
    write(base, "qcow2", 1, SIZE)
    image = over(images / "web.qcow2", "base.qcow2", "qcow2")
    alone = lamella.ok("backup", image)
    assert "cannot be used without base.qcow2" in alone.err and "qcow2:" in alone.err, alone
    facts = lamella.json("info", "web")["image"]
    assert facts == {"format": "qcow2", "holds": "file", "size": SIZE, "files": ["web.qcow2", "base.qcow2"]}
    assert "qcow2" in lamella.ok("info", "web").out
    assert restored(lamella, "web") == image.read_bytes()
    # With the base in the same run, or in the repository, there is nothing to warn of.
    for sources in ([images], [image]):
        done = lamella.ok("backup", *sources)
        assert "cannot be used" not in done.err, done
    assert lamella.json("info", "base")["image"]["files"] == ["base.qcow2"]
    raw = images / "plain.img"
    raw.write_bytes(b"QFI" + bytes(MIB))
    lamella.ok("backup", raw)
    assert lamella.json("info", "plain")["image"] is None


def test_a_pattern_or_a_directory_of_disks(lamella: Lamella, images: Path) -> None:
    for name in ("web", "mail"):
        write(create(images / f"{name}.qcow2", MIB), "qcow2", len(name), MIB)
    (images / "note.txt").write_text("x")
    rows = lamella.json("backup", f"qcow2:{images}/*.qcow2")["volumes"]
    assert {row["volume"]: (row["driver"], row["source_bytes"]) for row in rows} == {
        "mail": ("qcow2", MIB),
        "web": ("qcow2", MIB),
    }
    again = lamella.json("backup", "--exclude", "*.txt", f"qcow2:{images}")["volumes"]
    assert {row["volume"]: row["mode"] for row in again} == {"mail": "compare", "web": "compare"}
    assert restored(lamella, "mail") == content(images / "mail.qcow2")


def test_the_same_image_as_a_disk_is_another_volume(lamella: Lamella, images: Path) -> None:
    image = create(images / "web.qcow2", MIB)
    lamella.ok("backup", image)
    taken = lamella.run("backup", f"qcow2:{image}")
    assert taken.code == 2 and "--adopt" in taken.err
    lamella.ok("backup", f"web-disk=qcow2:{image}")
    assert lamella.json("info", "web-disk")["size"] == MIB != lamella.json("info", "web")["size"]


def test_an_image_that_is_touched_meanwhile(lamella: Lamella, images: Path) -> None:
    image = create(images / "web.qcow2", 64 * MIB)
    write(image, "qcow2", 3, 64 * MIB)
    os.utime(image, (1, 1))
    time.sleep(2.1)
    assert lamella.json("backup", f"qcow2:{image}")["volumes"][0]["consistency"] == "live"
    after = ["--after", f"touch {image}"]
    assert lamella.json("backup", *after, f"qcow2:{image}")["volumes"][0]["consistency"] == "changed"


def test_no_server_is_left_behind(lamella: Lamella, images: Path, tmp_path: Path) -> None:
    image = create(images / "web.qcow2", 512 * MIB)
    ran("qemu-io", "-f", "qcow2", "-c", f"write -P 5 0 {256 * MIB}", image)

    def servers() -> list[str]:
        found = []
        for one in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = one.read_bytes()
            except OSError:
                continue
            found += [words.decode()] if b"qemu-nbd" in words and os.fsencode(image) in words else []
        return found

    def wait(condition: bool) -> None:
        end = time.monotonic() + SECONDS
        while bool(servers()) != condition:
            assert time.monotonic() < end
            time.sleep(0.02)

    lamella.ok("backup", "--read-rate", "1G", f"qcow2:{image}")
    assert not servers()
    for number in (signal.SIGKILL, signal.SIGINT):
        words = [*COMMAND, *lamella.options, "backup", "--read-rate", "1M", f"qcow2:{image}"]
        scratch = {"TMPDIR": str(tmp_path)}
        with subprocess.Popen(words, env=environment({**lamella.env, **scratch}), stderr=subprocess.DEVNULL) as program:
            wait(True)
            time.sleep(0.3)
            program.send_signal(number)
        wait(False)
    assert len(list(tmp_path.glob("lamella-*"))) <= 1, "only what was killed leaves its directory"


def test_without_qemu_it_is_said(lamella: Lamella, images: Path, tmp_path: Path) -> None:
    image = create(images / "web.qcow2", MIB)
    (tmp_path / "bin").mkdir()
    env = {"PATH": str(tmp_path / "bin")}
    refused = lamella.run("backup", f"qcow2:{image}", env=env)
    assert refused.code == 3 and "qemu-nbd is not installed" in refused.err, refused
    assert shutil.which("qemu-nbd")
