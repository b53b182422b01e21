"""Names of volumes, and which driver a source gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.base.errors import SourceError, UsageError
from lamella.sources.names import MAX_NAME_BYTES, check_name, name_from, split_name
from lamella.sources.registry import open_source

MACHINE = "0123456789abcdef"
OWNER = "00c0ffee"
ANY_TEXT = st.text(st.characters(), max_size=150)
# What a command line can hold: any bytes but NUL.
ARGUMENTS = st.binary(max_size=200).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))


@pytest.mark.parametrize("name", ["disk", "work:private", "Müller 2", "a.b", "日" * 42, "x" * 128, "a-^.", "~x"])
def test_good_names(name: str) -> None:
    assert check_name(name) == name
    assert name_from(name) == name
    assert split_name(f"{name}=/x=y") == (name, "/x=y")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".hidden",
        "-x",
        "^tag",
        "a@b",
        "a=b",
        "a/b",
        "a\nb",
        "a\x7f",
        "a\x85",
        "a\0",
        "x" * 129,
        "日" * 43,
        "a\udcff",
    ],
)
def test_bad_names(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_name(name)
    caught.value.obj.encode()  # whatever the name was, the error can be printed


@given(ANY_TEXT | ARGUMENTS)
def test_a_name_can_be_made_from_anything_and_stays(text: str) -> None:
    name = name_from(text)
    assert check_name(name) == name
    assert name_from(name) == name
    assert len(name.encode()) <= MAX_NAME_BYTES


@given(ANY_TEXT)
def test_a_valid_name_is_not_altered(text: str) -> None:
    try:
        check_name(text)
    except UsageError:
        assert name_from(text) != text
    else:
        assert name_from(text) == text


@pytest.mark.parametrize(
    ("text", "name"), [(".img", "img"), ("a/b@c", "a_b_c"), ("...", "volume"), ("", "volume"), ("-^.x", "x")]
)
def test_names_made_from_awkward_text(text: str, name: str) -> None:
    assert name_from(text) == name


@pytest.mark.parametrize("text", ["disk.img", "./a=b", "/dev/x=y", ".a=b", "=b", "", "a@b=c"])
def test_without_a_valid_name_all_is_source(text: str) -> None:
    assert split_name(text) == (None, text)


def test_a_path_gets_the_file_driver(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"x")
    source = open_source(str(image), machine=MACHINE)
    assert (source.driver, source.default_name) == ("file", "disk")


def test_an_unknown_driver_is_named() -> None:
    with pytest.raises(UsageError, match="no source driver 'iscsi'"):
        open_source("pool/vol", machine=MACHINE, driver="iscsi")


@pytest.mark.parametrize("text", ["zfs:", "zfs:pool", "zfs:pool/", "zfs:/x", "zfs:a/b@c", "zfs:a/b#c", "zfs:-a/b"])
def test_what_is_no_volume_of_zfs(text: str) -> None:
    with pytest.raises(UsageError, match="not a volume of ZFS"):
        open_source(text, machine=MACHINE, owner=OWNER)


@pytest.mark.parametrize(
    "text", ["rbd:", "rbd:pool", "rbd:pool/", "rbd:a/b/c/d", "rbd:a//b", "rbd:a/b@c", "rbd:a/b?id="]
)
def test_what_is_no_rbd_image(text: str) -> None:
    with pytest.raises(UsageError, match="not an RBD image"):
        open_source(text, machine=MACHINE, owner=OWNER)


def test_without_an_owner_nothing_is_snapshotted() -> None:
    for text in ("zfs:pool/vol", "rbd:pool/image"):
        with pytest.raises(UsageError, match="their owner is not named"):
            open_source(text, machine=MACHINE)


@pytest.mark.parametrize("text", ["lvm:", "lvm:vg", "lvm:vg/", "lvm:/root", "lvm:-a/b", "lvm:a/b/c", "lvm:vg/.."])
def test_what_is_no_logical_volume(text: str) -> None:
    with pytest.raises(UsageError, match="not a logical volume"):
        open_source(text, machine=MACHINE, owner=OWNER)


def test_a_forced_driver_takes_the_text_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lvm:x").write_bytes(b"x")
    for text, driver in (("lvm:x", "file"), ("./lvm:x", None)):
        assert open_source(text, machine=MACHINE, driver=driver).identity.endswith(b"/lvm:x")
    with pytest.raises(UsageError, match="'tape'"):
        open_source("lvm:x", machine=MACHINE, driver="tape")


@pytest.mark.parametrize("driver", ["btrfs", "lvm_thin", "reflink"])
def test_drivers_that_keep_want_an_owner(tmp_path: Path, driver: str) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"x")
    with pytest.raises(UsageError):
        open_source(str(image), machine=MACHINE, driver=driver)


@pytest.mark.parametrize("driver", ["btrfs", "reflink", None])
def test_an_owner_does_not_change_what_is_no_image_file(tmp_path: Path, driver: str | None) -> None:
    with pytest.raises(SourceError, match="No such file or directory"):
        open_source(str(tmp_path / "none.img"), machine=MACHINE, owner=OWNER, driver=driver)
    for odd, word in ((tmp_path, "a directory"), (Path("/dev/null"), "a character device")):
        with pytest.raises(SourceError, match=word):
            open_source(str(odd), machine=MACHINE, owner=OWNER, driver=driver)


def test_an_image_that_may_not_be_cloned_is_read_by_the_file_driver(tmp_path: Path) -> None:
    # /proc: a regular file on a file system that can do nothing of the kind, in a directory nobody can write to.
    source = open_source("/proc/version", machine=MACHINE, owner=OWNER)
    assert (source.driver, source.tracks) == ("file", False)


def test_a_missing_path_is_told_in_the_systems_words(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file or directory"):
        open_source(str(tmp_path / "none.img"), machine=MACHINE)


@pytest.mark.parametrize("text", ["", "a\0b"])
def test_text_that_is_no_path(text: str) -> None:
    with pytest.raises(UsageError):
        open_source(text, machine=MACHINE)
