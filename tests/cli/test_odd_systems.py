"""What public reports say of odd file systems, through the command: nothing that is complete is called a failure."""

from __future__ import annotations

import os
import pwd
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.program import ROOT, Lamella, environment
from tests.cli.strangers import GROUP, NOBODY, Stranger
from tests.features import require
from tests.odd_calls import OddCalls
from tests.system import loop_fs

RESTORE_PY = ROOT / "src" / "lamella" / "rescue.py"


@pytest.fixture
def odd(tmp_path: Path) -> OddCalls:
    return OddCalls(tmp_path / "struck")


def spoken(name: str) -> str:
    return os.strerror(getattr(__import__("errno"), name))


# --- directories that cannot be synced (CIFS and its kind) ------------------------------------------------------------


@pytest.mark.parametrize("error", ["EINVAL", "ENOTSUP", "ENOSYS"])
def test_every_file_is_written_where_no_directory_can_be_synced(
    lamella: Lamella, image: Path, tmp_path: Path, odd: OddCalls, own_places: Path, error: str
) -> None:
    lamella.env |= odd.fail("fsync-dir", error, tmp_path).fail("fsync-dir", error, own_places).environment
    exported = tmp_path / "exported"
    exported.mkdir()
    lamella.ok("init", "--recovery-sheet", exported / "sheet.txt")
    lamella.ok("backup", f"disk={image}")
    lamella.ok("restore", "disk", "--to", exported / "disk.img")
    assert (exported / "disk.img").read_bytes() == image.read_bytes()
    lamella.ok("restore", "disk", "--to", exported / "disk.img", "--overwrite", "--yes")
    lamella.ok("verify")
    places = {line.split(" ", 2)[2] for line in odd.struck}
    for written in (exported, tmp_path / "repository", own_places / "state"):
        assert any(place.startswith(str(written)) for place in places), written


def test_restore_py_finishes_where_no_directory_can_be_synced(
    saved: Lamella, image: Path, place: Path, keyfile: Path, tmp_path: Path, odd: OddCalls
) -> None:
    out = tmp_path / "rescued"
    odd.fail("fsync-dir", "EINVAL", tmp_path)
    command = [sys.executable, "-I", "-S", str(RESTORE_PY), "--repo", str(place), "--keyfile", str(keyfile)]
    done = subprocess.run(
        [*command, "restore", "disk", "--to", str(out)],
        env={**os.environ, **odd.environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == image.read_bytes()
    assert odd.struck


def test_a_real_error_of_a_directory_is_an_error(saved: Lamella, tmp_path: Path, odd: OddCalls) -> None:
    out = tmp_path / "out"
    out.mkdir()
    done = saved.run("restore", "disk", "--to", out / "disk.img", env=odd.fail("fsync-dir", "EIO", out).environment)
    assert done.code == 1
    assert spoken("EIO") in done.err


def test_a_directory_that_may_be_written_and_not_read_is_restored_to(image: Path, stranger: Stranger) -> None:
    box = stranger.home / "box"
    stranger.lamella.ok("init")
    stranger.lamella.ok("backup", f"disk={stranger.owned(image)}")
    box.mkdir()
    box.chmod(0o333)
    stranger.lamella.ok("restore", "disk", "--to", box / "disk.img")
    assert (box / "disk.img").read_bytes() == image.read_bytes()


# --- targets without permissions, locks or links ----------------------------------------------------------------------


@pytest.mark.parametrize(("call", "error"), [("fchmod", "EPERM"), ("flock", "ENOLCK"), ("link", "EIO")])
def test_a_target_is_restored_to_whatever_its_file_system_lacks(
    saved: Lamella, image: Path, tmp_path: Path, odd: OddCalls, call: str, error: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    saved.ok("restore", "disk", "--to", out / "disk.img", env=odd.fail(call, error, out).environment)
    assert (out / "disk.img").read_bytes() == image.read_bytes()
    assert [found.name for found in out.iterdir()] == ["disk.img"]
    assert odd.struck


def test_a_target_without_permissions_is_told(saved: Lamella, image: Path, tmp_path: Path, odd: OddCalls) -> None:
    out = tmp_path / "out"
    rules = odd.fail("fchmod", "EPERM", out).fail("open-wide", "EPERM", out)
    done = saved.ok("restore", "disk", "--to", out, env=rules.environment)
    assert out.read_bytes() == image.read_bytes()
    assert stat.S_IMODE(out.stat().st_mode) == 0o644
    assert f"keeps no permissions, others may read {out}" in done.err


def test_a_target_without_locks_is_told(saved: Lamella, tmp_path: Path, odd: OddCalls) -> None:
    out = tmp_path / "out"
    done = saved.ok("restore", "disk", "--to", out, env=odd.fail("flock", "ENOLCK", out).environment)
    assert "has no locks" in done.err


# --- what a refused restore leaves ------------------------------------------------------------------------------------


def test_a_restore_refused_for_space_leaves_nothing(saved: Lamella, image: Path, tmp_path: Path) -> None:
    require("root", os.geteuid() == 0, "mounting needs root")
    out = tmp_path / "small"
    out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(out)], check=True)
    try:
        done = saved.run("restore", "disk", "--to", out / "disk.img")
        assert done.code == 1
        assert "not enough space" in done.err
        assert list(out.iterdir()) == []
    finally:
        subprocess.run(["umount", str(out)], check=True)


# --- errors that may pass ---------------------------------------------------------------------------------------------


def test_a_disk_that_fails_is_tried_again_for_seconds_and_told_at_once(
    saved: Lamella, place: Path, tmp_path: Path, odd: OddCalls
) -> None:
    started = time.monotonic()
    done = saved.run("verify", "--level", "full", env=odd.fail("read", "EIO", place / "p").environment)
    assert done.code != 0
    told = [line for line in done.err.splitlines() if "trying again for up to 8 s" in line]
    assert told
    assert str(place) in told[0]
    assert spoken("EIO") in told[0]
    assert time.monotonic() - started < 40


def test_a_failure_that_passes_is_told_and_the_work_goes_on(
    saved: Lamella, image: Path, place: Path, tmp_path: Path, odd: OddCalls
) -> None:
    out = tmp_path / "out.img"
    done = saved.ok("restore", "disk", "--to", out, env=odd.fail("read", "EIO", place / "p", 1).environment)
    assert out.read_bytes() == image.read_bytes()
    assert done.err.count("trying again") == 1


@pytest.mark.parametrize("error", ["EIO", "EINVAL", "EXDEV", "EACCES"])
def test_a_repository_is_written_to_where_no_link_can_be_made(
    empty: Lamella, image: Path, place: Path, odd: OddCalls, error: str
) -> None:
    started = time.monotonic()
    done = empty.ok("backup", f"disk={image}", env=odd.fail("link", error, place).environment)
    assert odd.struck
    assert "trying again" not in done.err
    assert time.monotonic() - started < 30
    empty.ok("verify", "--level", "full")


def test_a_repository_without_locks_is_refused_with_a_way_out(saved: Lamella, place: Path, odd: OddCalls) -> None:
    done = saved.run("list", env=odd.fail("flock", "ENOLCK", place).environment)
    assert done.code == 1
    assert "has no locks; mount it with locks" in done.err


def test_a_state_directory_without_locks_is_named(
    saved: Lamella, image: Path, own_places: Path, odd: OddCalls, tmp_path: Path
) -> None:
    environment = odd.fail("flock", "ENOLCK", own_places).environment
    done = saved.run("backup", f"disk={image}", env=environment)
    assert done.code == 1
    assert str(own_places / "state") in done.err
    assert "LAMELLA_STATE_DIR" in done.err
    saved.ok("restore", "disk", "--to", tmp_path / "out.img", env=environment)


# --- replacing a file -------------------------------------------------------------------------------------------------


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An access control list as the kernel stores it (linux/posix_acl_xattr.h): tag, rights, id."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NONE = 0xFFFFFFFF
LISTED = acl((1, 6, NONE), (2, 4, 1234), (4, 0, NONE), (16, 4, NONE), (32, 0, NONE))
"""The owner reads and writes, user 1234 reads, the group and all others do nothing: the mode shows 0640."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file that is about to be replaced: mode 0640 of which the 4 is an access control list's, and two attributes."""
    path = tmp_path / "out" / "old.img"
    path.parent.mkdir()
    path.write_bytes(b"old")
    try:
        os.setxattr(path, "user.note", b"keep me")
        os.setxattr(path, "system.posix_acl_access", LISTED)
    except OSError as error:
        require("xattr", False, f"no attributes here: {error}")
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
    return path


def rights(path: Path) -> tuple[int, int, int, dict[str, bytes]]:
    found = path.stat()
    attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode), attributes


def test_a_replaced_file_hands_on_owner_rights_and_attributes(saved: Lamella, old: Path, image: Path) -> None:
    before = rights(old)
    done = saved.ok("restore", "disk", "--to", old, "--overwrite", "--yes")
    assert old.read_bytes() == image.read_bytes()
    assert rights(old) == before
    assert "warning" not in done.err


@pytest.mark.parametrize(("call", "lost"), [("fsetxattr", "access control list"), ("fchown", "owner")])
def test_rights_that_cannot_be_handed_on_become_narrower_and_are_told(
    saved: Lamella, old: Path, odd: OddCalls, call: str, lost: str
) -> None:
    require("root", os.geteuid() == 0, "only root gives files away")
    done = saved.ok(
        "restore", "disk", "--to", old, "--overwrite", "--yes", env=odd.fail(call, "EPERM", old.parent).environment
    )
    _, _, mode, attributes = rights(old)
    assert mode == 0o600
    assert "system.posix_acl_access" not in attributes
    assert lost in done.err


def test_a_list_inherited_from_the_directory_gives_nobody_a_right_that_the_old_file_did_not(
    saved: Lamella, old: Path
) -> None:
    os.removexattr(old, "system.posix_acl_access")
    old.chmod(0o660)
    os.setxattr(old.parent, "system.posix_acl_default", LISTED)
    saved.ok("restore", "disk", "--to", old, "--overwrite", "--yes")
    _, _, mode, attributes = rights(old)
    assert (mode, sorted(attributes)) == (0o660, ["user.note"])


def test_an_immutable_file_is_refused_before_anything_is_written(saved: Lamella, old: Path) -> None:
    made = subprocess.run(["chattr", "+i", str(old)], check=False, capture_output=True)
    require("chattr", made.returncode == 0, "no immutable files here")
    try:
        done = saved.run("restore", "disk", "--to", old, "--overwrite", "--yes")
    finally:
        subprocess.run(["chattr", "-i", str(old)], check=True)
    assert done.code == 2
    assert "immutable" in done.err
    assert "chattr -i" in done.err
    assert list(old.parent.iterdir()) == [old]


def test_a_replaced_file_without_copy_on_write_stays_so(saved: Lamella, image: Path) -> None:
    with loop_fs.make("btrfs") as mount:
        old = mount / "old.img"
        old.touch()
        subprocess.run(["chattr", "+C", str(old)], check=True)
        old.write_bytes(b"old")
        saved.ok("restore", "disk", "--to", old, "--overwrite", "--yes")
        shown = subprocess.run(["lsattr", str(old)], check=True, capture_output=True, text=True).stdout
        assert "C" in shown.split()[0]
        assert old.read_bytes() == image.read_bytes()


# --- a repository that root wrote into --------------------------------------------------------------------------------


def test_what_root_writes_into_a_users_repository_belongs_to_the_user(stranger: Stranger, image: Path) -> None:
    stranger.lamella.ok("init")
    stranger.as_root.ok("backup", f"disk={image}")
    assert stranger.lamella.json("list")["snapshots"]
    stranger.lamella.ok("verify", "--level", "full")
    stranger.lamella.ok("backup", f"own={stranger.owned(image)}")
    for found in [stranger.repository, *stranger.repository.rglob("*")]:
        status = found.stat()
        assert (status.st_uid, status.st_mode & 0o077) == (NOBODY, 0), found


def test_a_shared_repository_stays_shared_for_its_group(stranger: Stranger, image: Path) -> None:
    stranger.repository.mkdir()
    os.chown(stranger.repository, NOBODY, GROUP)
    stranger.repository.chmod(0o2770)
    stranger.lamella.ok("init")
    stranger.lamella.ok("backup", f"disk={stranger.owned(image)}")
    for found in stranger.repository.rglob("*"):
        status = found.stat()
        wanted = 0o070 if found.is_dir() else 0o060
        assert (status.st_gid, status.st_mode & 0o077) == (GROUP, wanted), found


@pytest.mark.parametrize("folder", ["w", "keys"])
def test_a_directory_that_only_root_may_read_is_named_with_its_cure(
    stranger: Stranger, image: Path, folder: str
) -> None:
    stranger.lamella.ok("init")
    stranger.lamella.ok("backup", f"disk={stranger.owned(image)}")
    closed = stranger.repository / folder
    os.chown(closed, 0, 0)
    closed.chmod(0o700)
    for command in ("list", "verify", "doctor"):
        done = stranger.lamella.run(command)
        said = done.err + done.out
        assert done.code == 1, said
        assert f"refuses {closed}: Permission denied" in said
        assert f"chown -R {pwd.getpwuid(NOBODY).pw_name} {stranger.repository}" in said
        assert "secret" not in said


def test_a_repository_that_may_only_be_read_says_so_when_it_is_written_to(stranger: Stranger, image: Path) -> None:
    stranger.lamella.ok("init")
    stranger.repository.joinpath("tmp").chmod(0o500)
    done = stranger.lamella.run("backup", f"disk={stranger.owned(image)}")
    assert done.code == 1
    assert f"refuses {stranger.repository / 'tmp'}: Permission denied" in done.err
    assert f"its mode is 0500: chmod -R u+rwX {stranger.repository}" in done.err


# --- this host --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kibibytes", [96, 128, 192])
def test_a_cache_with_little_room_stops_nothing(saved: Lamella, image: Path, tmp_path: Path, kibibytes: int) -> None:
    require("root", os.geteuid() == 0, "mounting needs root")
    cache = tmp_path / "small"
    cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k,mode=700", "none", str(cache)], check=True)
    try:
        environment = {"LAMELLA_CACHE_DIR": str(cache)}
        with image.open("r+b") as file:
            file.write(os.urandom(4 << 20))
        saved.ok("backup", f"disk={image}", env=environment)
        saved.ok("restore", "disk", "--to", tmp_path / "out.img", env=environment)
        saved.ok("verify", "--level", "full", env=environment)
    finally:
        subprocess.run(["umount", str(cache)], check=True)
    assert (tmp_path / "out.img").read_bytes() == image.read_bytes()


def test_a_read_only_cache_and_state_stop_no_reader(saved: Lamella, image: Path, tmp_path: Path) -> None:
    require("root", os.geteuid() == 0, "mounting needs root")
    fixed = tmp_path / "fixed"
    fixed.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(fixed)], check=True)
    try:
        environment = {"LAMELLA_CACHE_DIR": str(fixed / "cache"), "LAMELLA_STATE_DIR": str(fixed / "state")}
        saved.ok("restore", "disk", "--to", tmp_path / "out.img", env=environment)
        for command in (["list"], ["info", "disk"], ["verify"]):
            saved.ok(*command, env=environment)
    finally:
        subprocess.run(["umount", str(fixed)], check=True)
    assert (tmp_path / "out.img").read_bytes() == image.read_bytes()


def test_without_home_the_account_says_where_it_is(stranger: Stranger) -> None:
    stranger.lamella.ok("init")
    kept = {name: "" for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME")}
    kept |= {name: "" for name in ("LAMELLA_CONFIG", "LAMELLA_STATE_DIR", "LAMELLA_CACHE_DIR")}
    stranger.lamella.ok("list", env=kept)


@pytest.mark.parametrize("variables", [{"LC_ALL": "de_DE.ISO-8859-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_names_are_the_same_whatever_the_locale(
    empty: Lamella, image: Path, tmp_path: Path, variables: dict[str, str]
) -> None:
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(tmp_path / "de_DE.ISO-8859-1")],
        capture_output=True,
        check=False,
    )
    require("localedef", made.returncode in {0, 1}, "locales cannot be made here")
    odd = {**variables, "LOCPATH": str(tmp_path), "PYTHONCOERCECLOCALE": "0"}
    named = image.rename(image.with_name("möbel.img"))
    out = tmp_path / "süß.img"
    empty.ok("backup", named, env=odd)
    assert "möbel" in empty.ok("list").out
    empty.ok("restore", "möbel", "--to", out, env=odd)
    assert out.read_bytes() == named.read_bytes()
    assert "möbel" in empty.ok("list", env={**odd, "PYTHONIOENCODING": ""}).out


# --- secrets from files, and memory for them --------------------------------------------------------------------------


@pytest.fixture
def passphrase(place: Path) -> Lamella:
    """The command with a repository that a passphrase opens, without any secret."""
    lamella = Lamella({"LAMELLA_REPO": str(place)})
    lamella.ok("init", "-q", env={"LAMELLA_PASSPHRASE": "größe 7"})
    return lamella


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("after", [b"", b"\n", b"\r\n"])
def test_what_editors_add_is_no_part_of_a_passphrase(
    passphrase: Lamella, place: Path, tmp_path: Path, before: bytes, after: bytes
) -> None:
    file = tmp_path / "secret.txt"
    file.write_bytes(before + "größe 7".encode() + after)
    file.chmod(0o600)
    given = {"LAMELLA_PASSPHRASE_FILE": str(file)}
    passphrase.ok("list", env=given)
    passphrase.ok("list", env={"LAMELLA_PASSPHRASE_COMMAND": f"cat {file}"})
    rescued = subprocess.run(
        [sys.executable, "-I", "-S", str(RESTORE_PY), "--repo", str(place), "list"],
        env={**os.environ, **given},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert rescued.returncode == 0, rescued.stderr


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        ("größe 7\n".encode("utf-16"), 2, "UTF-16"),
        ("größe 7 \n".encode(), 12, "begins or ends with white space"),
        ("größe 7\n\n".encode(), 12, "begins or ends with white space"),
    ],
)
def test_what_is_the_matter_with_a_passphrase_file_is_said(
    passphrase: Lamella, tmp_path: Path, content: bytes, code: int, says: str
) -> None:
    file = tmp_path / "secret.txt"
    file.write_bytes(content)
    done = passphrase.run("list", env={"LAMELLA_PASSPHRASE_FILE": str(file)})
    assert (done.code, says in done.err) == (code, True), done


def test_a_passphrase_for_a_repository_of_key_files_is_told_so(saved: Lamella) -> None:
    done = Lamella(saved.env).run("list", env={"LAMELLA_PASSPHRASE": "any"})
    assert done.code == 12
    assert "no passphrase opens this repository; a key file opens it" in done.err


def test_no_memory_for_a_passphrase_is_not_a_wrong_one(passphrase: Lamella, place: Path) -> None:
    given = {"LAMELLA_PASSPHRASE": "größe 7"}
    for command in (
        [*passphrase.command, "list"],
        [sys.executable, "-I", "-S", str(RESTORE_PY), "--repo", str(place), "list"],
    ):
        done = subprocess.run(
            ["prlimit", f"--as={200 << 20}", *command],
            env=environment({**passphrase.env, **given}),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1, done.stderr
        assert "not enough memory: a passphrase needs" in done.stderr


def test_many_sources_need_no_larger_limit_than_the_hard_one(empty: Lamella, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(150):
        (images / f"v{number}.img").write_bytes(os.urandom(4096))
    done = subprocess.run(
        ["prlimit", "--nofile=128:4096", *empty.command, *empty.options, "backup", *map(str, images.iterdir())],
        env=environment(empty.env),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert len(empty.json("list")["volumes"]) == 150


# --- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "share"), [(0, "0"), (3 << 20, "38")])
def test_an_image_that_shrank_is_told(saved: Lamella, image: Path, size: int, share: str) -> None:
    os.truncate(image, size)
    done = saved.ok("backup", f"disk={image}")
    assert f"disk: the source shrank to {share} % of its size in the last snapshot" in done.err
    assert "shrank" not in saved.ok("backup", f"disk={image}").err


def test_an_image_that_grew_or_shrank_a_little_is_not_remarked_on(saved: Lamella, image: Path) -> None:
    for size in (6 << 20, 9 << 20):
        os.truncate(image, size)
        assert "shrank" not in saved.ok("backup", f"disk={image}").err


def test_holes_are_not_read_to_be_compared_with_holes(empty: Lamella, tmp_path: Path, odd: OddCalls) -> None:
    sparse, size = tmp_path / "sparse.img", 4 << 30
    with sparse.open("wb") as file:
        file.truncate(size)
        for offset in (0, size // 2, size - 4096):
            file.seek(offset)
            file.write(os.urandom(4096))
    empty.ok("backup", f"disk={sparse}")
    empty.env |= odd.note("read", sparse).environment
    assert empty.json("verify", "--level", "source")["findings"] == []
    assert 3 <= len(odd.struck) <= 10
    with sparse.open("r+b") as file:
        file.write(bytes(4096))
        file.seek(size // 4)
        file.write(b"new")
        file.truncate(size + 5000)
    found = [one["message"] for one in empty.json("verify", "--level", "source")["findings"]]
    assert len(found) == 3, found
    assert any(text.startswith("bytes 0 to ") for text in found)
    assert any(text.startswith(f"bytes {size // 4} to ") for text in found)
    assert "the source is 4.9 KiB larger than the snapshot" in found
