"""`lamella files backup`, and what comes back: through the command, from the files to the files."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.program import Done, Lamella, environment
from tests.cli.strangers import NOBODY, Stranger
from tests.features import require
from tests.trees import look, seen

MIB = 1 << 20


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with something of every kind."""
    top = tmp_path / "home"
    (top / "letters" / "deep").mkdir(parents=True)
    (top / "letters" / "one.txt").write_text("dear all\n" * 100)
    (top / "letters" / "deep" / "two.txt").write_text("dear you\n")
    (top / "large").write_bytes(random.Random(5).randbytes(700_001))
    (top / "empty").touch()
    (top / "empty folder").mkdir(mode=0o711)
    (top / "program").write_text("#!/bin/sh\n")
    (top / "program").chmod(0o4755)
    os.link(top / "letters" / "one.txt", top / "same.txt")
    (top / "link").symlink_to("letters/one.txt")
    (top / "broken").symlink_to("/nowhere/at/all")
    os.mkfifo(top / "pipe", 0o640)
    with open(os.fsencode(top) + b"/not \xff text\n", "wb") as file:
        file.write(b"by a strange name")
    os.setxattr(top / "large", "user.origin", b"from \0 there")
    with (top / "sparse").open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(40 * MIB)
        file.write(b"in the middle")
    if os.geteuid() == 0:
        os.chown(top / "empty", 1234, 2345)
        os.chown(top / "link", 1234, 2345, follow_symlinks=False)
    settle()
    return top


def settle() -> None:
    """What was written by now is older than a tick when the next run begins."""
    time.sleep(0.15)


def saved(done: Done) -> dict[str, Any]:
    (row,) = done.json["volumes"]
    assert isinstance(row, dict)
    return row


def back(lamella: Lamella, tmp_path: Path, text: str = "home") -> Path:
    """The tree, restored to a new directory."""
    target = tmp_path / f"back{len(list(tmp_path.glob('back*')))}"
    target.mkdir()
    lamella.ok("restore", text, "--to", f"{target}/")
    return target / text.partition("@")[0]


def test_everything_comes_back(empty: Lamella, tree: Path, tmp_path: Path) -> None:
    done = empty.ok("files", "backup", tree, "--json")
    assert saved(done)["mode"] == "full"
    restored = back(empty, tmp_path)
    assert seen(restored) == seen(tree)
    assert look(os.fsencode(restored))[:4] == look(os.fsencode(tree))[:4]
    assert (restored / "sparse").stat().st_blocks * 512 < MIB
    assert os.path.samefile(restored / "same.txt", restored / "letters" / "one.txt")


def test_without_lamella_the_same_comes_back(
    empty: Lamella, tree: Path, place: Path, keyfile: Path, tmp_path: Path
) -> None:
    empty.ok("files", "backup", tree)
    out = tmp_path / "rescued"
    out.mkdir()
    rescue: list[str | Path] = [sys.executable, "-I", "-S", place / "restore.py", "restore", "home", "--repo", place]
    rescue += ["--keyfile", keyfile]
    subprocess.run([*rescue, "--to", out / "image"], check=True, capture_output=True)
    subprocess.run([*rescue, "--document", "unpack.py", "--to", out / "unpack.py"], check=True, capture_output=True)
    unpack: list[str | Path] = [sys.executable, "-I", "-S", out / "unpack.py", out / "image", out / "files"]
    done = subprocess.run(unpack, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("unpacked files:")
    assert seen(out / "files") == seen(back(empty, tmp_path)) == seen(tree)


def test_an_unchanged_tree_costs_nothing(empty: Lamella, tree: Path, tmp_path: Path) -> None:
    empty.ok("files", "backup", tree)
    row = saved(empty.ok("files", "backup", tree, "--json"))
    assert (row["mode"], row["read_bytes"], row["stored_bytes"]) == ("incremental", 0, 0)
    assert seen(back(empty, tmp_path)) == seen(tree)


def test_a_small_change_costs_little(empty: Lamella, tree: Path, tmp_path: Path) -> None:
    empty.ok("files", "backup", tree)
    before = seen(tree)
    first = empty.ok("list", "home", "--json").json["snapshots"][0]["snapshot"]
    (tree / "letters" / "deep" / "two.txt").write_text("dear you, again\n")
    os.truncate(tree / "large", 500_000)
    (tree / "program").unlink()
    settle()
    row = saved(empty.ok("files", "backup", tree, "--json"))
    assert row["read_bytes"] <= 500_000 + 5 * 131_072
    assert seen(back(empty, tmp_path)) == seen(tree)
    # The older snapshot is as it was, although chunks of its volume were used again.
    assert seen(back(empty, tmp_path, f"home@{first}")) == before


def test_a_renamed_top_is_not_read_again(empty: Lamella, tmp_path: Path) -> None:
    top = tmp_path / "home"
    for number in range(40):
        folder = top / "old" / f"folder{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file{number}").write_bytes(random.Random(number).randbytes(50_000))
    settle()
    empty.ok("files", "backup", top)
    (top / "old").rename(top / "new")
    row = saved(empty.ok("files", "backup", top, "--json"))
    assert row["read_bytes"] <= 3 * 131_072
    assert row["stored_bytes"] < 20_000
    assert seen(back(empty, tmp_path)) == seen(top)


def elsewhere(content: bytes) -> bytes:
    """The list of files with another address for the listing of a directory."""
    at = content.index(b"letters/deep") - 8
    return content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :]


def test_the_cache_is_only_a_cache(empty: Lamella, tree: Path, keyfile: Path, tmp_path: Path) -> None:
    """Lost, damaged, of an older run, of another repository: no more is read than what changed, and all is right."""
    cache = tmp_path / "cache"
    lamella = Lamella({**empty.env, "LAMELLA_CACHE_DIR": str(cache)}, empty.options)
    other = Lamella({**lamella.env, "LAMELLA_REPO": str(tmp_path / "other")}, empty.options)
    other.ok("init", "-q")

    def file(position: int) -> Path:
        return sorted((cache / "trees").iterdir(), key=lambda one: one.stat().st_mtime_ns)[position]

    lamella.ok("files", "backup", tree)
    own, old = file(0), file(0).read_bytes()
    other.ok("files", "backup", tree)
    foreign = next(one for one in (cache / "trees").iterdir() if one != own).read_bytes()
    spoils: list[Callable[[], object]] = [
        own.unlink,
        lambda: own.write_bytes(foreign),
        lambda: own.write_bytes(old),
        lambda: own.write_bytes(elsewhere(own.read_bytes())),
        lambda: own.write_bytes(b""),
    ]
    for number, spoil in enumerate(spoils):
        (tree / "letters" / "deep" / "two.txt").write_text(f"letter {number}\n")
        settle()
        lamella.ok("files", "backup", tree)
        spoil()
        (tree / "letters" / "one.txt").write_text(f"beside it {number}\n")  # so the listing above is written anew
        settle()
        row = saved(lamella.ok("files", "backup", tree, "--json"))
        assert row["mode"] == "incremental", number
        assert row["read_bytes"] <= 5 * 131_072, number
        assert seen(back(lamella, tmp_path)) == seen(tree)
    assert saved(other.ok("files", "backup", tree, "--json"))["read_bytes"] <= 4 * 131_072
    assert seen(back(other, tmp_path)) == seen(tree)


def test_an_emptied_directory_is_told_once(empty: Lamella, tree: Path) -> None:
    """As where its file system is not mounted: the older snapshots stay, but somebody should look."""
    words = ("files", "backup", tree)
    assert empty.json(*words)["warnings"] == []
    aside = tree.with_name("aside")
    tree.rename(aside)
    tree.mkdir()
    assert f"home: nothing is in {tree} any more: is its file system mounted?" in empty.json(*words)["warnings"]
    assert empty.json(*words)["warnings"] == []
    tree.rmdir()
    aside.rename(tree)
    assert empty.json(*words)["warnings"] == []


def test_files_that_change_while_they_are_read(empty: Lamella, tmp_path: Path) -> None:
    top = tmp_path / "home"
    (top / "logs").mkdir(parents=True)
    for name in ("cut", "grows", "stays", "goes"):
        (top / "logs" / name).write_bytes(random.Random(name).randbytes(4 * MIB))
    settle()
    command = [*empty.command, *empty.options, "files", "backup", str(top), "--json"]
    command += ["--read-rate", "8M", "--workers", "1"]
    run = subprocess.Popen(command, env=environment(empty.env), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(1)
    with (top / "logs" / "grows").open("ab") as grows:
        while run.poll() is None:
            grows.write(b"x" * 1000)
            grows.flush()
            if (top / "logs" / "goes").exists():
                os.truncate(top / "logs" / "stays", 4 * MIB)  # no change but of its ctime
                os.truncate(top / "logs" / "cut", 100_000)
                (top / "logs" / "goes").unlink()
            time.sleep(0.02)
    out, err = run.communicate()
    assert run.returncode == 0, err
    warnings = "\n".join(json.loads(out)["warnings"])
    assert "changed while it was read: logs/grows" in warnings
    target = tmp_path / "torn"
    target.mkdir()
    done = empty.run("restore", "home", "--to", f"{target}/")
    restored = target / "home" / "logs"
    assert "mixed: logs/grows: it changed while it was saved" in done.err
    grown = (restored / "grows").read_bytes()
    assert grown[: 4 * MIB] == random.Random("grows").randbytes(4 * MIB)
    assert not grown[4 * MIB :].strip(b"x")
    # Whatever was seen of it: nothing is filled up with zeros behind the new end.
    assert not (restored / "cut").exists() or not (restored / "cut").read_bytes().endswith(bytes(100))
    settle()
    empty.ok("files", "backup", top)
    assert seen(back(empty, tmp_path)) == seen(top)


def test_no_two_runs_at_once(empty: Lamella, tmp_path: Path) -> None:
    top = tmp_path / "home"
    top.mkdir()
    (top / "large").write_bytes(random.Random(1).randbytes(6 * MIB))
    command = [*empty.command, *empty.options, "files", "backup", str(top), "--read-rate", "2M"]
    run = subprocess.Popen(command, env=environment(empty.env), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(1)
    done = empty.run("files", "backup", top)
    assert done.code == 11, done.err
    _, err = run.communicate()
    assert run.returncode == 0, err
    assert seen(back(empty, tmp_path)) == seen(top)


def test_killed_at_any_moment(empty: Lamella, tmp_path: Path) -> None:
    top, chance = tmp_path / "home", random.Random(7)
    for number in range(300):
        folder = top / f"folder{number % 20}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file{number}").write_bytes(random.Random(number).randbytes(20_000))
    command = [*empty.command, *empty.options, "files", "backup", str(top)]
    for number in range(8):
        run = subprocess.Popen(
            command, env=environment(empty.env), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(chance.uniform(0.1, 0.9))
        run.send_signal(signal.SIGKILL)
        run.wait()
        (top / "folder3" / f"file{number * 20 + 3}").write_bytes(random.Random(-number).randbytes(30_000))
    settle()
    empty.ok("files", "backup", top)
    assert seen(back(empty, tmp_path)) == seen(top)
    empty.ok("verify", "--level", "full")


def test_what_is_left_out(empty: Lamella, tmp_path: Path) -> None:
    top = tmp_path / "home"
    kept = ["a.txt", "deep/b.txt", "deep/core", "[x]", "caches/CACHEDIR.TAG", "#note", "build.txt", "spaces  two"]
    gone = ["a.tmp", "deep/b.tmp", "x", "deep/down/core", "build/one", "new\nline", "caches/large", "back\\slash"]
    for name in [*kept, *gone]:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    (top / "caches/CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# why")
    with open(os.fsencode(top) + b"/strange\xff", "wb"):
        pass
    listener = socket.socket(socket.AF_UNIX)
    opened = os.open(top, os.O_PATH)
    listener.bind(f"/proc/self/fd/{opened}/socket")
    os.close(opened)
    patterns = tmp_path / "patterns"
    patterns.write_bytes(b"# a comment\n\n[x]\nbuild/\nback[\\]slash\nstrange\xff\r\n")
    options = ["--exclude", "*.tmp", "--exclude", "deep/down/*", "--exclude", f"{top}/new*line"]
    done = empty.ok("files", "backup", top, *options, "--exclude-from", patterns, "--exclude-caches")
    listener.close()
    assert "left out: socket: a socket" in done.err
    restored = {os.fsdecode(name) for name, what in seen(back(empty, tmp_path)).items() if what[6] is not None}
    assert restored == set(kept)


def test_directories_say_themselves_what_is_left_out(empty: Lamella, tmp_path: Path) -> None:
    """Only below themselves, only if this was asked for; what cannot be believed leaves nothing out, and is told."""
    top = tmp_path / "home"
    kept = ["a.tmp", "work/b.txt", "work/deep/old/c", "odd/a.tmp", "other/old/f", "long/x.tmp"]
    gone = ["work/d.tmp", "work/deep/e.tmp", "work/old/g", "work/deep/gone"]
    for name in [*kept, *gone]:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    (top / "work/.leave").write_text("# mine\n*.tmp\n/old/\n")
    (top / "work/deep/.leave").write_text("gone\n")
    (top / "odd/.leave").symlink_to("../work/.leave")
    (top / "long/.leave").write_text("*.tmp\n" + "#" * 70_000)
    files = ["work/.leave", "work/deep/.leave", "odd/.leave", "long/.leave"]
    done = empty.run("files", "backup", top, "--exclude-inside", ".leave")
    assert done.code == 3 and "long/.leave: more than 64 KiB of patterns" in done.err, done
    assert "odd/.leave: Too many levels of symbolic links" in done.err
    restored = {os.fsdecode(name) for name, what in seen(back(empty, tmp_path)).items() if what[6] is not None}
    assert restored == {*kept, *files}
    empty.ok("files", "backup", top)
    assert seen(back(empty, tmp_path)) == seen(top)
    done = empty.run("files", "backup", top, "--exclude-inside", "a/b")
    assert done.code == 2 and "not a path" in done.err


def test_files_that_cannot_be_read(stranger: Stranger) -> None:
    user, top = stranger.lamella, stranger.home / "docs"
    (top / "secret").mkdir(parents=True)
    (top / "secret" / "inside").write_text("nobody sees it")
    (top / "shut").write_text("nobody reads it")
    (top / "open").write_text("everybody reads it")
    (top / "secret").chmod(0)
    (top / "shut").chmod(0)
    user.ok("init", "-q")
    done = user.run("files", "backup", top, "--json")
    assert done.code == 3, done.err
    warnings = "\n".join(done.json["warnings"])
    assert "cannot read secret: Permission denied" in warnings
    assert "cannot read shut: Permission denied" in warnings
    target = stranger.home / "back"
    target.mkdir()
    os.chown(target, NOBODY, NOBODY)
    done = user.run("restore", "docs", "--to", f"{target}/")
    assert done.code == 3, done.err
    assert sorted(os.listdir(target / "docs")) == ["open", "secret"]
    (top / "secret").chmod(0o755)
    (top / "shut").chmod(0o644)
    assert user.ok("files", "backup", top, "--json").json["warnings"] == []


def test_attributes_of_what_its_owner_may_not_write(stranger: Stranger) -> None:
    user, top = stranger.lamella, stranger.home / "docs"
    (top / "folder").mkdir(parents=True)
    (top / "file").write_text("read only")
    for one, mode in ((top / "file", 0o444), (top / "folder", 0o555)):
        os.setxattr(one, "user.note", b"kept")
        one.chmod(mode)
    os.chown(top, NOBODY, NOBODY)
    user.ok("init", "-q")
    user.ok("files", "backup", top)
    target = stranger.home / "back"
    target.mkdir()
    os.chown(target, NOBODY, NOBODY)
    user.ok("restore", "docs", "--to", f"{target}/")
    assert [os.getxattr(target / "docs" / name, "user.note") for name in ("file", "folder")] == [b"kept"] * 2
    assert [stat.S_IMODE((target / "docs" / name).stat().st_mode) for name in ("file", "folder")] == [0o444, 0o555]


def test_restoring_replaces_nothing_unasked(empty: Lamella, tree: Path, tmp_path: Path) -> None:
    empty.ok("files", "backup", tree)
    target, outside = tmp_path / "target", tmp_path / "outside"
    (target / "home").mkdir(parents=True)
    outside.mkdir()
    (target / "home" / "large").write_text("mine")
    (target / "home" / "letters").symlink_to(outside)
    (target / "home" / "empty").mkdir()
    (target / "home" / "other").write_text("stays")
    done = empty.run("restore", "home", "--to", f"{target}/")
    assert (done.code, "is not empty" in done.err) == (2, True)
    done = empty.run("restore", "home", "--to", f"{target}/", "--overwrite")
    # A link in the place of a directory is not followed, and a directory does not make way for a file.
    assert done.code == 3
    assert "letters: Not a directory" in done.err
    assert "empty: File exists" in done.err
    assert not list(outside.iterdir())
    assert (target / "home" / "large").read_bytes() == (tree / "large").read_bytes()
    assert (target / "home" / "other").read_text() == "stays"
    assert not [name for name in os.listdir(target / "home") if "partial" in name]


def test_looking_into_a_tree(empty: Lamella, tree: Path, tmp_path: Path) -> None:
    empty.ok("files", "backup", tree)
    names = {row["path"] for row in empty.ok("files", "list", "home", "--json").json["entries"]}
    assert {"letters", "large", "link", "pipe", "not \\xff text\n"} <= names
    found = empty.ok("files", "find", "home", "*.txt", "--json").json["entries"]
    assert [row["path"] for row in found] == ["letters/deep/two.txt", "letters/one.txt", "same.txt"]
    assert empty.run("files", "list", "home", "nothing").code == 4
    empty.ok("files", "get", "home", "letters", "large", "--to", tmp_path / "got")
    assert (tmp_path / "got" / "letters" / "deep" / "two.txt").read_text() == "dear you\n"
    assert (tmp_path / "got" / "large").read_bytes() == (tree / "large").read_bytes()
    first = empty.ok("list", "home", "--json").json["snapshots"][0]["snapshot"]
    (tree / "letters" / "deep" / "two.txt").write_text("dear You\n")
    (tree / "new").write_text("new")
    (tree / "empty").unlink()
    empty.ok("files", "backup", tree)
    said = empty.ok("files", "diff", f"home@{first}", "home", "--json").json
    assert [row["path"] for row in said["added"]] == ["new"]
    assert [row["path"] for row in said["removed"]] == ["empty"]
    assert [(row["path"], row["what"]) for row in said["changed"]] == [("letters/deep/two.txt", ["content", "time"])]


def test_a_tree_is_a_volume_like_any_other(empty: Lamella, tree: Path, tmp_path: Path) -> None:
    for number in range(4):
        (tree / "letters" / "one.txt").write_text(f"letter {number}\n" * 1000)
        settle()
        empty.ok("files", "backup", tree)
    empty.ok("prune", "--keep-last", "1")
    second = Lamella({**empty.env, "LAMELLA_REPO": str(tmp_path / "second")}, empty.options)
    second.ok("init", "-q")
    empty.ok("copy", "home", "--to", tmp_path / "second", "--to-keyfile", empty.options[1])
    for one in (empty, second):
        one.ok("verify", "--level", "full")
        assert seen(back(one, tmp_path)) == seen(tree)
    image = tmp_path / "home.img"
    said = empty.ok("restore", "home", "--to", image).err
    assert "home holds files" in said and "--to DIR/" in said  # nobody shall wonder where the files are
    live = empty.run("diff", "home@latest", "--live")
    assert live.code == 2 and "lamella files diff" in live.err and "not on this machine" not in live.err
    wrong = empty.run("restore", "hmoe", "--to", tmp_path / "other.img")
    assert wrong.code == 4 and "did you mean home?" in wrong.err
    assert image.read_bytes()[:8] == b"LMLFILES"


def test_twenty_thousand_names(empty: Lamella, tmp_path: Path) -> None:
    top = tmp_path / "home"
    for number in range(20_000):
        folder = top / f"d{number % 7}" / (f"e{number % 50}" if number % 7 else ".")
        if number < 700:
            folder.mkdir(parents=True, exist_ok=True)
        os.close(os.open(folder / f"file number {number}", os.O_CREAT | os.O_WRONLY))
    with (top / "sparse").open("wb") as file:
        file.truncate(4 << 30)
        file.seek(3 << 30)
        file.write(b"far away")
    settle()
    row = saved(empty.ok("files", "backup", top, "--json"))
    assert row["read_bytes"] < 8 * MIB
    assert row["stored_bytes"] < MIB
    os.unlink(top / "d0" / "file number 0")
    row = saved(empty.ok("files", "backup", top, "--json"))
    assert row["read_bytes"] < MIB
    restored = back(empty, tmp_path)
    assert sum(len(files) for _, _, files in os.walk(restored)) == 20_000
    assert (restored / "sparse").stat().st_size == 4 << 30
    assert (restored / "sparse").stat().st_blocks * 512 < MIB
    with (restored / "sparse").open("rb") as file:
        file.seek(3 << 30)
        assert file.read(8) == b"far away"


def in_own_mounts(lamella: Lamella, script: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script with mounts that nobody else sees; `lamella` in it is the command with its options."""
    require("root", os.geteuid() == 0, "only root can mount")
    command = shlex.join([*lamella.command, *lamella.options])
    return subprocess.run(
        ["unshare", "--mount", "sh", "-ec", f'lamella() {{ {command} "$@"; }}\n{script}', "sh", *map(str, words)],
        env=environment(lamella.env),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_mounts_in_a_tree(empty: Lamella, tree: Path, tmp_path: Path) -> None:
    """A directory that is mounted in itself ends; another file system is entered, unless that is not wanted."""
    (tree / "letters" / "again").mkdir()
    (tree / "letters" / "mounted").mkdir()
    script = """
    mount --bind "$1" "$1/letters/again"
    mount -t tmpfs none "$1/letters/mounted"
    echo inside > "$1/letters/mounted/file"
    sleep 0.2
    lamella files backup "$1" --name all
    lamella files backup "$1" --name some --one-file-system --adopt
    """
    done = in_own_mounts(empty, script.replace("--name some", "--name all"), tree)
    assert done.returncode == 0, done.stderr
    rows = empty.ok("list", "all", "--json").json["snapshots"]
    names = [
        {row["path"] for row in empty.ok("files", "find", f"all@{one['snapshot']}", "*", "--json").json["entries"]}
        for one in rows
    ]
    both, one = sorted(names, key=len, reverse=True)
    assert "letters/mounted/file" in both
    assert max(path.count("again") for path in both) == 1
    assert both - one == {"letters/mounted/file"}


def test_a_full_disk_leaves_whole_files(empty: Lamella, tmp_path: Path) -> None:
    top = tmp_path / "home"
    top.mkdir()
    for number in range(40):
        (top / f"file{number:02}").write_bytes(random.Random(number).randbytes(100_000))
    empty.ok("files", "backup", top)
    small = tmp_path / "small"
    small.mkdir()
    script = """
    mount -t tmpfs -o size=2m none "$1"
    lamella restore home --to "$1/" && exit 99
    code=$?
    cp -r "$1/home" "$2"
    exit $code
    """
    done = in_own_mounts(empty, script, small, tmp_path / "copied")
    assert done.returncode == 1, done.stderr
    assert "No space left on device" in done.stderr
    copied = {path.name: path.read_bytes() for path in (tmp_path / "copied").iterdir()}
    assert len(copied) > 10
    assert all(content == (top / name).read_bytes() for name, content in copied.items())
    # The list of files that this host keeps does not fit: that costs the next run time, and nothing else.
    script = """
    mount -t tmpfs -o size=1m none "$1"
    dd if=/dev/zero of="$1/full" bs=4096 2>/dev/null || true
    mkdir -p "$2"
    mount --bind "$1" "$2"
    lamella files backup "$3"
    """
    (tmp_path / "cache" / "trees").mkdir(parents=True)
    (top / "file00").write_bytes(b"new")
    settle()
    lamella = Lamella({**empty.env, "LAMELLA_CACHE_DIR": str(tmp_path / "cache")}, empty.options)
    done = in_own_mounts(lamella, script, small, tmp_path / "cache" / "trees", top)
    assert done.returncode == 0, done.stderr
    assert "the next run reads its list of files from the repository" in done.stderr
    assert seen(back(lamella, tmp_path)) == seen(top)


def test_damage_costs_the_damaged_files_alone(empty: Lamella, place: Path, tmp_path: Path) -> None:
    top = tmp_path / "home"
    top.mkdir()
    for number in range(5):
        (top / f"file{number}").write_bytes(random.Random(number).randbytes(400_000))
    empty.ok("files", "backup", top)
    pack = max((place / "p").rglob("*"), key=lambda one: one.stat().st_size if one.is_file() else 0)
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content)
    target = tmp_path / "target"
    target.mkdir()
    done = empty.run("restore", "home", "--to", f"{target}/")
    assert done.code == 20, done.err
    restored = seen(target / "home", times=False)
    assert len(restored) == 4
    assert restored.items() <= seen(top, times=False).items()


def test_another_writer_is_not_believed(empty: Lamella, tree: Path, tmp_path: Path) -> None:
    """Whoever can write could say of a file that it did not change."""
    empty.ok("files", "backup", tree)
    places = {"LAMELLA_STATE_DIR": str(tmp_path / "state2"), "LAMELLA_CACHE_DIR": str(tmp_path / "cache2")}
    other = Lamella({**empty.env, **places}, empty.options)
    row = saved(other.ok("files", "backup", tree, "--json"))
    assert row["mode"] == "compare"
    assert row["read_bytes"] > 700_000
    assert saved(other.ok("files", "backup", tree, "--json"))["read_bytes"] == 0


def test_devices_come_back_if_root_wants_them(empty: Lamella, tmp_path: Path) -> None:
    top = tmp_path / "home"
    top.mkdir()
    try:
        os.mknod(top / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        require("root", False, "only root can make devices")
    settle()
    empty.ok("files", "backup", top)
    for more, code in (((), 3), (("--devices",), 0)):
        target = tmp_path / f"target{code}"
        target.mkdir()
        done = empty.run("restore", "home", "--to", f"{target}/", *more)
        assert done.code == code, done.err
    assert "null: a device: root restores them with --devices" not in done.err
    assert os.lstat(tmp_path / "target0" / "home" / "null").st_rdev == os.makedev(1, 3)
    assert not (tmp_path / "target3" / "home" / "null").exists()


def test_a_restore_that_is_interrupted_leaves_whole_files(empty: Lamella, tmp_path: Path) -> None:
    top = tmp_path / "home"
    top.mkdir()
    for number in range(60):
        (top / f"file{number:02}").write_bytes(random.Random(number).randbytes(500_000))
    settle()
    empty.ok("files", "backup", top)
    target = tmp_path / "target"
    target.mkdir()
    command = [*empty.command, *empty.options, "--limit-rate", "8M", "restore", "home", "--to", f"{target}/"]
    run = subprocess.Popen(command, env=environment(empty.env), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not list(target.glob("home/file*")):
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate()
    assert run.returncode == 130, err
    assert b"are whole; to go on, add --overwrite" in err
    found = seen(target / "home")
    assert 0 < len(found) < 60
    assert found.items() <= seen(top).items()
    empty.ok("restore", "home", "--to", f"{target}/", "--overwrite")
    assert seen(target / "home") == seen(top)


def test_two_repositories_at_once(empty: Lamella, tree: Path, tmp_path: Path) -> None:
    """Each has a list of its own of what it has, also where one missed a run."""
    second = Lamella({**empty.env, "LAMELLA_REPO": str(tmp_path / "second")}, empty.options)
    second.ok("init", "-q")
    both = ["-r", empty.env["LAMELLA_REPO"], "-r", str(tmp_path / "second")]
    empty.ok("files", "backup", tree, *both)
    (tree / "letters" / "one.txt").write_text("to one only")
    settle()
    empty.ok("files", "backup", tree)
    (tree / "letters" / "deep" / "two.txt").write_text("to both")
    settle()
    rows = empty.ok("files", "backup", tree, *both, "--json").json["repositories"]
    assert [row["volumes"][0]["mode"] for row in rows] == ["incremental"] * 2
    assert all(row["volumes"][0]["read_bytes"] < 5 * 131_072 for row in rows)
    for one in (empty, second):
        assert seen(back(one, tmp_path)) == seen(tree)
