"""Trees whose writer lies: nothing is written outside of the target, nothing goes round, and every error has a name."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from lamella.base.errors import IntegrityError, LamellaError
from lamella.sources.tree.extracting import Extracted, Extraction, ExtractOptions
from lamella.sources.tree.layout import (
    PLACE,
    ROW,
    SUPERBLOCK_BYTES,
    Extra,
    FileStatus,
    Flag,
    Listing,
    OwnerNames,
    Superblock,
    decode_listing,
    extra,
    same_status,
)
from lamella.sources.tree.reader import FileTree
from tests.features import require
from tests.trees import seen

UNPACK = Path(__file__).resolve().parents[2] / "src" / "lamella" / "unpack.py"
FOLDER, FILE, LINK, PIPE = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o600

Row = tuple[bytes, int, tuple[int, int, int], list[tuple[Extra, bytes]]]
"""Name, mode, place, details."""


class Liar:
    """Makes volumes of trees, piece by piece, with whatever it is told."""

    def __init__(self) -> None:
        self.content = bytearray(SUPERBLOCK_BYTES)

    def put(self, content: bytes) -> tuple[int, int, int]:
        """A content; returns its place."""
        self.content += content
        return (len(self.content) - len(content), len(content), 0)

    def file(self, name: bytes, content: bytes = b"content", links: int = 1, mode: int = FILE) -> Row:
        return (name, mode, self.put(content), [])

    def link(self, name: bytes, target: bytes) -> Row:
        return (name, LINK, (0, 0, 0), [(Extra.TARGET, target)])

    def folder(self, name: bytes, *rows: Row) -> Row:
        return (name, FOLDER, self.put(self.listing(*rows)), [])

    def listing(self, *rows: Row) -> bytes:
        """In the order given, whatever the names are."""
        return Listing(
            b"\0".join(name for name, *_ in rows),
            b"".join(ROW.pack(mode, 0, 0, 1, 0, 7, place[1], 5, 6) for _, mode, place, _ in rows),
            b"".join(PLACE.pack(*place) for _, _, place, _ in rows),
            b"".join(extra(at, *one) for at, row in enumerate(rows) for one in row[3]),
        ).encode()

    def volume(self, *rows: Row) -> bytes:
        """A volume with these entries in the directory that was saved."""
        return self.topped(self.folder(b".", *rows))

    def topped(self, top: Row) -> bytes:
        address, length, _ = self.put(self.listing(top))
        owners = self.put(OwnerNames().encode())
        first = Superblock(address, length, owners[0], owners[1], 1, 1, 1).encode()
        return bytes(first + self.content[SUPERBLOCK_BYTES:])


def reader(volume: bytes) -> FileTree:
    return FileTree(lambda at, length: volume[at : at + length], len(volume))


def extracted(volume: bytes, target: Path, *, overwrite: bool = False) -> Extracted:
    """Extract into a directory, as root would."""
    target.mkdir(exist_ok=True)
    opened = os.open(target, os.O_RDONLY)
    tree = reader(volume)
    extraction = Extraction(tree, opened, ExtractOptions(overwrite, is_root=os.geteuid() == 0), lambda _: None)
    try:
        extraction.extract(tree.top())
    finally:
        os.close(opened)
    return extraction.result


def unpacked(volume: bytes, place: Path) -> subprocess.CompletedProcess[str]:
    """The same by the program that comes with every snapshot."""
    image = place / "image"
    image.write_bytes(volume)
    command = [sys.executable, "-I", "-S", str(UNPACK), str(image), str(place / "unpacked")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def everything_outside(tmp_path: Path) -> dict[bytes, object]:
    return {
        name: what for name, what in seen(tmp_path).items() if not name.startswith((b"target", b"unpacked", b"image"))
    }


def test_an_honest_tree_comes_back(tmp_path: Path) -> None:
    liar = Liar()
    volume = liar.volume(liar.folder(b"a", liar.file(b"b")), liar.link(b"c", b"a/b"), (b"p", PIPE, (0, 0, 0), []))
    extracted(volume, tmp_path / "target")
    assert (tmp_path / "target" / "a" / "b").read_bytes() == b"content"
    assert unpacked(volume, tmp_path).returncode == 0
    assert seen(tmp_path / "target") == seen(tmp_path / "unpacked")


BAD_NAMES = [b"..", b".", b"", b"../up", b"a/b", b"/etc/passwd", b"x" * 256]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_elsewhere(tmp_path: Path, name: bytes) -> None:
    liar = Liar()
    volume = liar.volume(liar.file(name, b"planted"))
    before = everything_outside(tmp_path)
    with pytest.raises(IntegrityError):
        extracted(volume, tmp_path / "target")
    assert unpacked(volume, tmp_path).returncode != 0
    assert everything_outside(tmp_path) == before
    assert b"planted" not in [what[6] for what in seen(tmp_path / "unpacked").values()]


def test_a_link_and_a_directory_of_one_name(tmp_path: Path) -> None:
    """Names must ascend, so none comes twice; and what is in the target already is not followed either."""
    outside = tmp_path / "outside"
    outside.mkdir()
    liar = Liar()
    twice = liar.volume(liar.link(b"a", os.fsencode(outside)), liar.folder(b"a", liar.file(b"planted")))
    with pytest.raises(IntegrityError, match="not in order"):
        extracted(twice, tmp_path / "target")
    assert unpacked(twice, tmp_path).returncode != 0
    liar = Liar()
    honest = liar.volume(liar.folder(b"a", liar.file(b"planted")), liar.file(b"b"))
    (tmp_path / "target" / "a").unlink(missing_ok=True)
    (tmp_path / "target" / "a").symlink_to(outside)
    (tmp_path / "target" / "b").symlink_to(outside / "b")
    result = extracted(honest, tmp_path / "target", overwrite=True)
    assert result.left_out.lines == ["a: Not a directory"]
    assert not list(outside.iterdir())
    assert (tmp_path / "target" / "b").read_bytes() == b"content"


def test_a_link_that_takes_the_place_of_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who owns a directory that root fills up sees the new pipe before it has its rights and its name."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"secret")
    victim.chmod(0o600)

    def swapped(name: str, _uid: int, _gid: int, *, dir_fd: int, follow_symlinks: bool) -> None:
        os.unlink(name, dir_fd=dir_fd)
        os.symlink(victim, name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "chown", swapped)
    (tmp_path / "target").mkdir()
    opened = os.open(tmp_path / "target", os.O_RDONLY)
    tree = reader(Liar().volume((b"pipe", stat.S_IFIFO | 0o666, (0, 0, 0), [])))
    extraction = Extraction(tree, opened, ExtractOptions(is_root=True, numeric=True), lambda _: None)
    try:
        extraction.extract(tree.top())
    finally:
        os.close(opened)
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600
    assert extraction.result.left_out.lines == ["pipe: something else took its place"]
    assert os.listdir(tmp_path / "target") == []


def test_a_link_without_a_target(tmp_path: Path) -> None:
    """Both readers say so, and write the rest."""
    liar = Liar()
    volume = liar.volume(liar.file(b"after"), (b"away", LINK, (0, 0, int(Flag.ABSENT)), []))
    found = extracted(volume, tmp_path / "target")
    assert found.left_out.lines == ["away: it could not be read when it was saved"]
    done = unpacked(volume, tmp_path)
    assert (done.returncode, done.stderr) == (3, "'away': it could not be read when it was saved\n")
    assert os.listdir(tmp_path / "unpacked") == os.listdir(tmp_path / "target") == ["after"]
    done = unpacked(liar.volume((b"away", LINK, (0, 0, 0), [])), tmp_path / "target")
    assert (done.returncode, done.stderr) == (1, "unpack.py: the target of a link is none\n")


def test_owners_without_names_and_devices_without_numbers(tmp_path: Path) -> None:
    """Each costs what it is, and no other file."""
    require("root", os.geteuid() == 0, "others give no owners")
    liar = Liar()
    device: Row = (b"device", stat.S_IFCHR | 0o600, (0, 0, 0), [(Extra.DEVICE, b"\xff" * 8)])
    volume = bytearray(liar.volume(device, liar.file(b"file")))
    names = OwnerNames().encode()
    at = volume.rindex(names)
    volume[at : at + len(names)] = b"?" * len(names)
    (tmp_path / "target").mkdir()
    opened = os.open(tmp_path / "target", os.O_RDONLY)
    tree = reader(bytes(volume))
    extraction = Extraction(tree, opened, ExtractOptions(devices=True, is_root=True), lambda _: None)
    try:
        extraction.extract(tree.top())
    finally:
        os.close(opened)
    first, second = extraction.result.left_out.lines
    assert first == "device: a device of an impossible number"
    assert second.startswith(".: names of owners, who come back by their numbers: ")
    assert (tmp_path / "target" / "file").read_bytes() == b"content"


def test_directories_that_contain_themselves(tmp_path: Path) -> None:
    liar = Liar()
    place = (len(liar.content), len(liar.listing((b"again", FOLDER, (0, 0, 0), []))), 0)
    again: Row = (b"again", FOLDER, place, [])
    liar.put(liar.listing(again))
    circle = liar.topped((b".", FOLDER, place, []))
    with pytest.raises(IntegrityError, match="one listing"):
        extracted(circle, tmp_path / "target")
    done = unpacked(circle, tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)


def test_few_bytes_are_no_million_directories(tmp_path: Path) -> None:
    """Each directory twice the one below: 2^40 entries, if listings could be shared."""
    liar = Liar()
    below: Row = (b"a", FOLDER, liar.put(liar.listing()), [])
    for _ in range(40):
        below = (b"a", FOLDER, liar.put(liar.listing(below, (b"b", FOLDER, below[2], []))), [])
    volume = liar.topped((b".", FOLDER, below[2], []))
    with pytest.raises(IntegrityError, match="one listing"):
        list(reader(volume).walk(reader(volume).top()))
    assert unpacked(volume, tmp_path).returncode != 0


@pytest.mark.parametrize("place", [(1 << 63, 10, 0), (0, 1 << 60, 0), (SUPERBLOCK_BYTES, 1 << 31, 0)])
def test_places_beyond_the_end(tmp_path: Path, place: tuple[int, int, int]) -> None:
    for mode in (FILE, FOLDER):
        liar = Liar()
        volume = liar.volume((b"a", mode, place, []), liar.file(b"b"))
        if mode == FILE:
            assert extracted(volume, tmp_path / "target").damaged.count == 1
            assert (tmp_path / "target" / "b").read_bytes() == b"content"
            assert not (tmp_path / "target" / "a").exists()
        else:
            with pytest.raises(IntegrityError):
                extracted(volume, tmp_path / "target2")


def test_listings_that_nobody_writes() -> None:
    liar = Liar()
    good = liar.listing(liar.file(b"a"), liar.link(b"b", b"t"))
    assert decode_listing(good).split_names() == [b"a", b"b"]
    bad = [b"", good[:-1], good + b"\0", good[:4] + b"\2" + good[5:], good[:8] + b"\xff\xff\xff\xff" + good[12:]]
    bad += [liar.listing((b"a", LINK, (0, 0, 0), [(Extra.TARGET, target)])) for target in (b"", b"a\0b", b"x" * 4096)]
    bad += [liar.listing((b"a", FILE, (0, 0, 0), [(Extra.ATTRIBUTE, value)])) for value in (b"", b"\0x", b"user.x")]
    for raw in bad:
        with pytest.raises(IntegrityError):
            decode_listing(raw)


def test_flags_make_a_listing_unsure() -> None:
    liar = Liar()
    rows = [liar.file(b"a"), liar.file(b"b")]
    listing = decode_listing(liar.listing(*rows))
    assert same_status(listing.encode(), listing.names, listing.rows)
    rows[1] = (*rows[1][:2], (*rows[1][2][:2], int(Flag.RECENT)), [])
    again = decode_listing(liar.listing(*rows))
    assert not same_status(again.encode(), again.names, again.rows)
    assert len(ROW.pack(*FileStatus(*range(9)))) == 52


@pytest.mark.parametrize("seed", range(60))
def test_any_damage_has_a_name(tmp_path: Path, seed: int) -> None:
    """Bytes of the tree itself are changed at random: what comes out is a tree or an error, inside of the target."""
    chance, liar = random.Random(seed), Liar()
    rows = [liar.folder(b"d%d" % n, liar.file(b"f"), liar.link(b"l", b"../x")) for n in range(3)]
    volume = bytearray(liar.volume(*rows, liar.file(b"z", bytes(3000))))
    for _ in range(chance.choice([1, 1, 3, 20])):
        volume[chance.choice([chance.randrange(80), chance.randrange(SUPERBLOCK_BYTES, len(volume))])] = (
            chance.randrange(256)
        )
    before = everything_outside(tmp_path)
    with suppress(LamellaError):
        extracted(bytes(volume), tmp_path / "target")
    assert everything_outside(tmp_path) == before
    if seed < 12:
        done = unpacked(bytes(volume), tmp_path)
        assert "Traceback" not in done.stderr, done.stderr
        assert everything_outside(tmp_path) == before
