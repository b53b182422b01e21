"""Targets of a restore, on real files, devices and full file systems."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError, Locked, SourceError, UsageError
from lamella.run.spawn import run
from lamella.sources.local_target import NewFile
from lamella.sources.target import Target
from lamella.sources.targets import choose_target
from lamella.sources.used_target import BlockDevice, InPlaceFile, uses_of_device, uses_of_file
from lamella_kit.image_files import loop_device, mounted, partition, sparse_file
from tests.features import require
from tests.unit.real_devices import need_devices

MIB = 1 << 20
SIZE = 4 * MIB


def restore(target: Target, size: int = SIZE) -> None:
    """Write a little, clear two ranges that start and end anywhere, compare, finish."""
    target.prepare(size, 2 * MIB)
    target.write(0, b"head")
    target.write(MIB, memoryview(b"x" * MIB))
    target.zero(MIB + 10, MIB + 5000)
    target.punch(MIB + 100_000, MIB + 300_001)
    target.settle()
    got = bytearray(size)
    target.read_into(0, memoryview(got))
    assert got[MIB + 10 : MIB + 5000] == bytes(4990)
    target.finish()


def restored(before: bytes) -> bytes:
    """What `restore` makes of a volume with these bytes."""
    expected = bytearray(before)
    expected[:4] = b"head"
    expected[MIB : 2 * MIB] = b"x" * MIB
    expected[MIB + 10 : MIB + 5000] = bytes(4990)
    expected[MIB + 100_000 : MIB + 300_001] = bytes(200_001)
    return bytes(expected)


# --- a new file -------------------------------------------------------------------------------------------------------


def test_a_new_file_appears_complete_and_private(tmp_path: Path) -> None:
    path = tmp_path / "out.img"
    restore(NewFile(path, overwrite=False))
    assert path.read_bytes() == restored(bytes(SIZE))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.img"]
    assert path.stat().st_nlink == 1


def test_a_new_file_is_sparse(tmp_path: Path) -> None:
    target = NewFile(tmp_path / "out.img", overwrite=False)
    assert target.starts_zeroed
    target.prepare(1 << 34, 1)
    target.write((1 << 34) - 1, b"x")
    target.finish()
    found = (tmp_path / "out.img").stat()
    assert (found.st_size, found.st_blocks * 512 < MIB) == (1 << 34, True)


@pytest.mark.parametrize("how", ["the target", "a directory above", "over two links"])
@pytest.mark.parametrize("kind", [NewFile, InPlaceFile])
def test_another_users_link_in_a_public_directory_is_not_followed(
    tmp_path: Path, how: str, kind: Callable[..., Target]
) -> None:
    """A restore of root's to /tmp/disk.img must not replace whatever file another user points it at."""
    require("root", os.geteuid() == 0, "a link that belongs to another user")
    victim, public = tmp_path / "victim", tmp_path / "public"
    (victim / "etc").mkdir(parents=True)
    (victim / "etc" / "disk.img").write_bytes(b"precious")
    public.mkdir()
    public.chmod(0o1777)
    link = public / ("disk.img" if how == "the target" else "etc")
    link.symlink_to(victim / "etc" / "disk.img" if how == "the target" else victim / "etc")
    os.lchown(link, 65534, 65534)
    given = link if how == "the target" else link / "disk.img"
    if how == "over two links":
        (tmp_path / "own").symlink_to(given)
        given = tmp_path / "own"
    made = kind(given, overwrite=True) if kind is NewFile else kind(given)
    with pytest.raises(UsageError, match="another user's link"):
        made.prepare(SIZE, 0)
    assert (victim / "etc" / "disk.img").read_bytes() == b"precious"
    os.lchown(link, 0, 0)
    restore(kind(given, overwrite=True) if kind is NewFile else kind(given))
    assert (victim / "etc" / "disk.img").stat().st_size == SIZE
    assert link.is_symlink()


def test_until_it_is_finished_only_the_partial_name_exists(tmp_path: Path) -> None:
    path = tmp_path / "out.img"
    target = NewFile(path, overwrite=False)
    target.prepare(10, 10)
    target.write(0, b"0123456789")
    assert not path.exists()
    assert target.abandon() == tmp_path / "out.img.lamella-partial"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.img.lamella-partial"]


def test_what_an_earlier_attempt_wrote_is_kept_until_it_is_cleared(tmp_path: Path) -> None:
    partial = tmp_path / "out.img.lamella-partial"
    partial.write_bytes(b"o" * 9 * MIB)
    partial.chmod(0o644)
    target = NewFile(tmp_path / "out.img", overwrite=False)
    target.prepare(SIZE, SIZE)
    assert target.holds and not target.starts_zeroed
    got = bytearray(SIZE)
    target.read_into(0, memoryview(got))
    assert got == b"o" * SIZE
    target.zero(MIB, 2 * MIB)
    target.punch(2 * MIB, 3 * MIB - 77)
    target.finish()
    left = b"o" * MIB + bytes(2 * MIB - 77) + b"o" * (MIB + 77)
    assert (tmp_path / "out.img").read_bytes() == left
    assert (tmp_path / "out.img").stat().st_blocks * 512 <= 2 * MIB + 8192, "cleared ranges are holes, as in a new file"
    assert stat.S_IMODE((tmp_path / "out.img").stat().st_mode) == 0o600
    assert not partial.exists()


def test_a_partial_name_left_beside_a_finished_file_does_not_harm_it(tmp_path: Path) -> None:
    path, partial = tmp_path / "out.img", tmp_path / "out.img.lamella-partial"
    path.write_bytes(b"finished")
    partial.hardlink_to(path)
    target = NewFile(path, overwrite=True)
    target.prepare(10, 10)
    assert path.read_bytes() == b"finished"
    target.abandon()


def test_two_restores_do_not_write_one_file(tmp_path: Path) -> None:
    first, second = (NewFile(tmp_path / "out.img", overwrite=False) for _ in range(2))
    first.prepare(10, 10)
    first.write(0, b"0123456789")
    with pytest.raises(Locked):
        second.prepare(20, 20)
    first.finish()
    assert (tmp_path / "out.img").read_bytes() == b"0123456789"


def test_a_planted_partial_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "out.img.lamella-partial").symlink_to(tmp_path / "precious")
    with pytest.raises(UsageError):
        NewFile(tmp_path / "out.img", overwrite=True).prepare(10, 10)
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_an_existing_file_needs_consent(tmp_path: Path) -> None:
    path = tmp_path / "out.img"
    path.write_bytes(b"old")
    with pytest.raises(UsageError, match="exists already"):
        NewFile(path, overwrite=False).prepare(10, 10)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.img"]


def test_overwriting_keeps_mode_owner_and_the_link_to_it(tmp_path: Path) -> None:
    path, link = tmp_path / "out.img", tmp_path / "link"
    path.write_bytes(b"old")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
    before = path.stat()
    link.symlink_to("out.img")
    restore(NewFile(link, overwrite=True))
    after = path.stat()
    assert path.read_bytes() == restored(bytes(SIZE))
    assert link.is_symlink()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino


def test_a_target_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.img"
    target = NewFile(path, overwrite=False)
    target.prepare(3, 3)
    target.write(0, b"new")
    path.write_bytes(b"somebody else's")
    with pytest.raises(UsageError, match="exists already"):
        target.finish()
    assert path.read_bytes() == b"somebody else's"
    assert target.abandon().read_bytes() == b"new"


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), os.mkfifo, lambda path: path.symlink_to("/dev/null")])
@pytest.mark.parametrize("in_place", [False, True])
def test_what_is_no_file_is_no_target(make: Callable[[Path], None], in_place: bool, tmp_path: Path) -> None:
    make(tmp_path / "odd")
    with pytest.raises(UsageError, match="not a regular file"):
        choose_target(tmp_path / "odd", overwrite=True, in_place=in_place).prepare(10, 10)


def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file or directory"):
        NewFile(tmp_path / "none" / "out.img", overwrite=False).prepare(10, 10)


def test_writes_stay_inside_the_volume(tmp_path: Path) -> None:
    target = NewFile(tmp_path / "out.img", overwrite=False)
    with pytest.raises(ValueError, match="not open"):
        target.write(0, b"")
    target.prepare(10, 10)
    calls: list[Callable[[], None]] = [
        lambda: target.write(8, b"abc"),
        lambda: target.write(-1, b"a"),
        lambda: target.zero(5, 11),
        lambda: target.punch(6, 5),
        lambda: target.read_into(10, memoryview(bytearray(1))),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="not inside"):
            call()
    target.abandon()


# --- space ------------------------------------------------------------------------------------------------------------


def test_space_is_counted_before_anything_is_written(tmp_path: Path) -> None:
    there = os.statvfs(tmp_path)
    with pytest.raises(SourceError, match="not enough space"):
        NewFile(tmp_path / "out.img", overwrite=False).prepare(1 << 40, there.f_blocks * there.f_frsize + 1)


def test_a_file_system_that_fills_up(tmp_path: Path) -> None:
    with need_devices(), mounted("lamella-test", tmp_path, kind="tmpfs", options="size=1m"):
        target = NewFile(tmp_path / "out.img", overwrite=False)
        target.prepare(SIZE, MIB // 2)
        with pytest.raises(SourceError, match="No space left") as caught:
            target.write(0, bytes(2 * MIB))
        assert caught.value.hint
        assert target.abandon().name == "out.img.lamella-partial"
        assert not (tmp_path / "out.img").exists()


def test_space_held_by_an_earlier_attempt_counts_as_free(tmp_path: Path) -> None:
    with need_devices(), mounted("lamella-test", tmp_path, kind="tmpfs", options="size=1m"):
        (tmp_path / "out.img.lamella-partial").write_bytes(bytes(MIB * 3 // 4))
        target = NewFile(tmp_path / "out.img", overwrite=False)
        target.prepare(MIB, MIB * 3 // 4)
        target.abandon()


def test_space_of_the_file_itself_counts_as_free_in_place(tmp_path: Path) -> None:
    with need_devices(), mounted("lamella-test", tmp_path, kind="tmpfs", options="size=1m"):
        path = tmp_path / "disk.img"
        path.write_bytes(bytes(MIB * 3 // 4))
        target = InPlaceFile(path)
        target.prepare(MIB * 3 // 4, MIB * 3 // 4)
        target.write(0, b"x" * (MIB * 3 // 4))
        target.finish()
        with pytest.raises(SourceError, match="not enough space"):
            InPlaceFile(path).prepare(2 * MIB, 2 * MIB)
        assert path.read_bytes() == b"x" * (MIB * 3 // 4)


# --- in place ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old_size", [SIZE, SIZE // 4 + 77, SIZE * 2])
def test_in_place_keeps_the_inode_and_the_bytes_not_written(old_size: int, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"o" * old_size)
    inode = path.stat().st_ino
    target = InPlaceFile(path)
    assert not target.starts_zeroed
    restore(target)
    assert path.read_bytes() == restored((b"o" * old_size)[:SIZE].ljust(SIZE, b"\0"))
    assert path.stat().st_ino == inode


def test_in_place_punching_gives_space_back_and_zeroing_keeps_it(tmp_path: Path) -> None:
    def blocks_after(name: str) -> int:
        path = tmp_path / name
        path.write_bytes(b"o" * SIZE)
        target = InPlaceFile(path)
        target.prepare(SIZE, 0)
        getattr(target, name)(0, SIZE)
        target.finish()
        assert path.read_bytes() == bytes(SIZE)
        return path.stat().st_blocks * 512

    assert blocks_after("punch") < MIB
    assert blocks_after("zero") >= SIZE


def test_in_place_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        InPlaceFile(tmp_path / "disk.img").prepare(10, 10)


def test_in_place_respects_another_restore(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"old")
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Locked):
            InPlaceFile(path).prepare(10, 10)
    assert path.read_bytes() == b"old"


def test_in_place_refuses_the_file_of_a_loop_device(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "disk.img", MIB, {})
    with need_devices(), loop_device(image) as device:
        assert uses_of_file(image) == [f"shown as {device}"]
        with pytest.raises(UsageError, match="in use"):
            InPlaceFile(image).prepare(MIB, 0)
    assert uses_of_file(image) == []


def test_the_image_of_a_running_guest_is_refused(tmp_path: Path) -> None:
    """QEMU would write what it remembers of the old content over the restored one, or into a file without a name."""
    require("qemu-io", shutil.which("qemu-io") is not None, "qemu-utils is not installed")
    image = sparse_file(tmp_path / "disk.img", MIB, {0: b"old"})
    guest = ["qemu-io", "-f", "raw", str(image)]
    with subprocess.Popen(guest, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as running:
        assert running.stdin is not None and running.stdout is not None
        running.stdin.write("read 0 512\n")
        assert "read 512/512" in running.stdout.readline() + running.stdout.readline()
        for made in (InPlaceFile(image), NewFile(image, overwrite=True)):
            with pytest.raises(UsageError, match="in use: QEMU"):
                made.prepare(MIB, 0)
        running.stdin.write("quit\n")
    assert image.read_bytes()[:3] == b"old"
    restore(InPlaceFile(image))


# --- block devices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SIZE, SIZE - 777])
def test_a_device_is_written_and_its_tail_left_alone(size: int, tmp_path: Path) -> None:
    old = os.urandom(SIZE)
    image = tmp_path / "backing"
    image.write_bytes(old)
    with need_devices(), loop_device(image) as device:
        target = choose_target(device, overwrite=True, in_place=False)
        restore(target, size)
        assert target.tail_bytes == SIZE - size
        assert device.read_bytes() == restored(old)


def test_a_device_is_cleared_whole(tmp_path: Path) -> None:
    image = tmp_path / "backing"
    for act in ("zero", "punch"):
        image.write_bytes(os.urandom(SIZE))
        with need_devices(), loop_device(image) as device:
            target = BlockDevice(device)
            target.prepare(SIZE, 0)
            getattr(target, act)(0, SIZE)
            target.finish()
            assert device.read_bytes() == bytes(SIZE), act


def test_a_device_needs_consent(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "backing", SIZE, {})
    with need_devices(), loop_device(image) as device, pytest.raises(UsageError, match="overwritten"):
        choose_target(device, overwrite=False, in_place=True)


def test_a_device_may_not_be_smaller(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "backing", SIZE, {})
    with need_devices(), loop_device(image) as device:
        target = BlockDevice(device)
        with pytest.raises(SourceError, match="too small"):
            target.prepare(SIZE + 1, 0)
        target.abandon()


def make_file_system(device: Path) -> None:
    run(["mkfs.ext4", "-q", str(device)], timeout_seconds=60)


def test_a_mounted_device_is_refused_and_named(tmp_path: Path) -> None:
    image, place = sparse_file(tmp_path / "backing", 8 * MIB, {}), tmp_path / "a place"
    place.mkdir()
    with need_devices(), loop_device(image) as device:
        make_file_system(device)
        with mounted(str(device), place, kind="ext4"), pytest.raises(UsageError, match=f"mounted at {place}"):
            BlockDevice(device).prepare(MIB, 0)
        target = BlockDevice(device)  # free again
        target.prepare(MIB, 0)
        with pytest.raises(LamellaError), mounted(str(device), place, kind="ext4"):
            pass  # while the restore runs it cannot be mounted
        target.finish()


def test_a_disk_with_a_mounted_partition_is_refused(tmp_path: Path) -> None:
    image, place = sparse_file(tmp_path / "backing", 16 * MIB, {}), tmp_path / "place"
    place.mkdir()
    with need_devices(), loop_device(image) as disk, partition(disk, MIB, 8 * MIB) as part:
        make_file_system(part)
        with mounted(str(part), place, kind="ext4"), pytest.raises(UsageError, match=f"mounted at {place}"):
            BlockDevice(disk).prepare(MIB, 0)


def test_a_device_the_kernel_holds_is_refused_though_no_mount_is_seen(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "backing", 8 * MIB, {})
    with need_devices(), loop_device(image) as device:
        holder = os.open(device, os.O_RDWR | os.O_EXCL)
        try:
            with pytest.raises(UsageError, match="the kernel holds it"):
                BlockDevice(device).prepare(MIB, 0)
        finally:
            os.close(holder)


def test_a_file_is_no_device(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a block device"):
        BlockDevice(sparse_file(tmp_path / "a", 10, {})).prepare(10, 0)


def test_holders_partitions_mounts_and_swaps_are_followed(tmp_path: Path) -> None:
    """A disk (8:0) with a partition (8:1) that holds LVM (253:0), as the kernel would show them."""
    disk = tmp_path / "sys/dev/block/8:0"
    for place, number in ((disk / "sda1", "8:1"), (tmp_path / "sys/dev/block/8:1/holders/dm-0", "253:0")):
        place.mkdir(parents=True)
        (place / "dev").write_text(number + "\n")
    (disk / "sda1" / "partition").write_text("1\n")
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "mountinfo").write_text(
        "27 1 253:0 / /srv/a\\040b rw,relatime shared:1 master:2 - ext4 /dev/none rw\n"
        "28 1 8:16 / /other rw - ext4 /dev/none rw\n"
    )
    (proc / "swaps").write_text("Filename Type Size Used Priority\n/nowhere/swap file 1 0 -2\n")
    found = uses_of_device(os.makedev(8, 0), proc=proc, sys=tmp_path / "sys")
    assert found == ["held by /dev/dm-0", "mounted at /srv/a b"]
    assert uses_of_device(os.makedev(8, 32), proc=proc, sys=tmp_path / "sys") == []


def test_swap_and_mounts_under_another_number_are_found_by_their_device(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "backing", MIB, {})
    with need_devices(), loop_device(image) as device:
        proc = tmp_path / "proc"
        (proc / "self").mkdir(parents=True)
        (proc / "self" / "mountinfo").write_text(f"27 1 0:55 /sub /pool rw - btrfs {device} rw\n")
        (proc / "swaps").write_text(f"Filename Type Size Used Priority\n{device} partition 1 0 -2\n")
        found = uses_of_device(device.stat().st_rdev, proc=proc)
    assert found == ["mounted at /pool", f"used as swap: {device}"]
