"""Archives as a hostile guest could send them: whatever they say, nothing is made outside of the target."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.base.errors import LamellaError
from lamella.operations.access.guest_tar import (
    BLOCK,
    MemberKind,
    Taken,
    TarSink,
    TreeSink,
    clean_name,
    members,
    stays_inside,
    take_archive,
)

Take = Callable[[int], bytes]


def taking(content: bytes) -> Take:
    stream = io.BytesIO(content)

    def take(count: int) -> bytes:
        piece = stream.read(count)
        if len(piece) < count:
            raise LamellaError("the guest ended before it was done")
        return piece

    return take


def entry(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", target: str = "", mode: int = 0o644) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mode = kind, len(content), target, mode
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % BLOCK)


def with_size(field: bytes) -> bytes:
    """An archive of one file whose header has this text as its size."""
    block = bytearray(entry("f"))
    block[124:136] = field.ljust(12, b"\0")
    block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * 0x20)
    return bytes(block) + bytes(2 * BLOCK)


def archive(*entries: bytes) -> bytes:
    return b"".join(entries) + bytes(2 * BLOCK)


def extract(content: bytes, root: Path, most: int = 1 << 20) -> Taken:
    root.mkdir(exist_ok=True)
    return take_archive(taking(content), TreeSink(root), most)


def test_ordinary_entries_arrive(tmp_path: Path) -> None:
    long_name = "d/" + "n" * 200
    made = archive(
        entry("./d", tarfile.DIRTYPE, mode=0o555),
        entry("./d/f", content=b"text", mode=0o6711),
        entry(long_name, content=b"x" * 1000),
        entry("d/l", tarfile.SYMTYPE, target="f"),
        entry("d/h", tarfile.LNKTYPE, target="./d/f"),
    )
    taken = extract(made, tmp_path / "out")
    out = tmp_path / "out"
    assert (taken.files, taken.bytes, taken.left_out_count) == (3, 1004, 0)
    assert (out / "d/f").read_bytes() == b"text" and (out / "d/f").stat().st_mode & 0o7777 == 0o711
    assert (out / long_name).read_bytes() == b"x" * 1000
    assert (out / "d/l").readlink() == Path("f") and (out / "d/h").samefile(out / "d/f")


HOSTILE = {
    "climbs": [entry("../evil", content=b"x")],
    "climbs inside": [entry("a/../../evil", content=b"x")],
    "absolute": [entry("/evil", content=b"x")],
    "through a link": [entry("a", tarfile.SYMTYPE, target=".."), entry("a/evil", content=b"x")],
    "through a good link": [
        entry("d", tarfile.DIRTYPE),
        entry("a", tarfile.SYMTYPE, target="d/.."),
        entry("a/../evil", content=b"x"),
    ],
    "link out": [entry("evil", tarfile.SYMTYPE, target="/etc/passwd")],
    "link up": [entry("a/evil", tarfile.SYMTYPE, target="../../x")],
    "links in a chain": [
        entry("here", tarfile.SYMTYPE, target="."),
        entry("evil", tarfile.SYMTYPE, target="here/.."),
    ],
    "link below a link": [
        entry("d/up", tarfile.SYMTYPE, target=".."),
        entry("d/up/e/evil", tarfile.SYMTYPE, target="../../../outside"),
    ],
    "links one through another": [
        entry("a", tarfile.SYMTYPE, target="."),
        entry("a/a/x", tarfile.SYMTYPE, target="../outside"),
        entry("x/new/evil", tarfile.SYMTYPE, target="../../out/good"),
    ],
    "a link to a name with NUL": [
        entry("evil", b"K", content=b"x\0y\0"),
        entry("evil", tarfile.SYMTYPE),
        entry("../evil"),
    ],
    "hard link out": [entry("evil", tarfile.LNKTYPE, target="/etc/passwd")],
    "hard link up": [entry("evil", tarfile.LNKTYPE, target="../outside")],
    "hard link to a link": [entry("l", tarfile.SYMTYPE, target="x"), entry("evil", tarfile.LNKTYPE, target="l")],
    "device": [entry("evil", tarfile.BLKTYPE)],
    "character device": [entry("evil", tarfile.CHRTYPE)],
    "pipe": [entry("evil", tarfile.FIFOTYPE)],
    "twice": [entry("f", content=b"first"), entry("f", content=b"second")],
    "file as directory": [entry("f", content=b"first"), entry("f/evil", content=b"x")],
    "the target itself": [entry(".", content=b"x")],
    "long component": [entry("n" * 300, content=b"x")],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_entry_is_left_out_and_the_rest_arrives(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_bytes(b"old")
    taken = extract(archive(*HOSTILE[name], entry("good", content=b"good")), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "outside"]
    assert (tmp_path / "outside").read_bytes() == b"old" and (tmp_path / "outside").stat().st_nlink == 1
    assert (tmp_path / "out" / "good").read_bytes() == b"good"
    for path in (tmp_path / "out").rglob("*"):
        assert path.resolve().is_relative_to(tmp_path / "out") and (
            path.is_file() or path.is_dir() or path.is_symlink()
        )
    if name == "absolute":  # taken below the target
        assert (tmp_path / "out" / "evil").exists()
    elif name != "through a good link" or taken.left_out_count:
        assert taken.left_out_count >= 1 and taken.left_out


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (entry("f", content=b"x" * 100)[:-1], "ended"),
        (b"1" * BLOCK, "checksum"),
        (bytes(BLOCK) + b"x" * BLOCK, "zeros"),
        (archive(entry("x" * 5000)), "too long"),
        (archive(entry("f", kind=b"Z")), "unknown kind"),
        (with_size(b"-1000\0"), "a malformed number"),
        (with_size(b"+1000\0"), "a malformed number"),
        (with_size(b"0o10\0"), "a malformed number"),
        (archive(entry("f", kind=tarfile.XHDTYPE, content=b"30 path=../evil\n")), "unknown kind"),
    ],
)
def test_what_is_no_archive_ends_with_one_line(tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(LamellaError, match=why):
        extract(content, tmp_path / "out")


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    made = archive(entry("d", tarfile.DIRTYPE), entry("a", tarfile.SYMTYPE, target="d"), entry("a/f", content=b"x"))
    assert extract(made, tmp_path / "out").left_out_count == 1
    assert not (tmp_path / "out" / "d" / "f").exists() and (tmp_path / "out" / "a").readlink() == Path("d")


def test_a_file_whose_end_never_came_is_not_there(tmp_path: Path) -> None:
    content = entry("whole", content=b"w" * 600_000) + entry("half", content=b"h" * 600_000)[:500_000]
    with pytest.raises(LamellaError, match="ended"):
        extract(content, tmp_path / "out", 1 << 22)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole"]


def test_a_size_that_lies_ends_before_it_fills_the_disk(tmp_path: Path) -> None:
    info = tarfile.TarInfo("huge")
    info.size = 1 << 40
    with pytest.raises(LamellaError, match="more than 1000 B"):
        extract(info.tobuf(tarfile.GNU_FORMAT), tmp_path / "out", 1000)
    with pytest.raises(LamellaError, match="more than 1000 B"):
        extract(archive(*(entry(str(n), content=b"x" * 300) for n in range(4))), tmp_path / "out", 1000)


def test_the_other_archive_is_clean(tmp_path: Path) -> None:
    hostile = [one for name in HOSTILE for one in HOSTILE[name]]
    out = io.BytesIO()
    take_archive(taking(archive(*hostile, entry("good", content=b"x" * 600_000))), TarSink(out), 1 << 20)
    out.seek(0)
    with tarfile.open(fileobj=out) as made:
        rows = {info.name: info for info in made}
        assert all(info.isreg() or info.isdir() or info.issym() or info.islnk() for info in rows.values())
        assert not any(name.startswith("/") or ".." in name.split("/") for name in rows)
        assert all(stays_inside(name, info.linkname) for name, info in rows.items() if info.issym())
        good = made.extractfile("good")
        assert good is not None and good.read() == b"x" * 600_000


@given(st.binary(max_size=4096))
@settings(max_examples=200)
def test_no_bytes_make_the_reader_fail_otherwise(content: bytes) -> None:
    try:
        for member in members(taking(content)):
            assert member.kind in MemberKind
    except LamellaError:
        pass


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b"]), max_size=6), st.sampled_from(["", "/"]))
def test_a_link_that_stays_inside_does_so_for_the_kernel_too(parts: list[str], start: str) -> None:
    target = start + "/".join(parts)
    inside = os.path.normpath(os.path.join("/root/x", target))  # noqa: PTH118 - the rule of path names alone
    deepest = stays_inside("x/l", target)
    if deepest:
        assert inside == "/root" or inside.startswith("/root/")
    assert clean_name(target) is None or ".." not in (clean_name(target) or "").split("/")
