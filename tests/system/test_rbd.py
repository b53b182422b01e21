"""RBD images on a real Ceph of one machine: the contract of sources, whole backups and restores, what goes wrong."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from lamella.base.errors import CheckpointLost
from lamella.sources.base import FrozenVolume, Keeping, Source
from lamella.sources.rbd.address import parse
from lamella.sources.rbd.cluster import RbdPool, opened
from lamella.sources.registry import open_kept_source
from lamella_kit.source_changes import CHANGES, SIZE
from lamella_kit.source_contract import SourceContract
from lamella_kit.source_reading import GRAIN, MIB, check_delta, pattern, whole
from tests.cli.program import COMMAND, Lamella, environment
from tests.system.ceph_cluster import Ceph, need_ceph

MACHINE = "0123456789abcdef"
OWNER = "00c0ffee"
ORDER = 16
"""Objects of 64 KiB: small images have many."""
ROUNDS = int(os.environ.get("LAMELLA_RBD_ROUNDS", "20"))
SEED = int(os.environ.get("LAMELLA_RBD_SEED", "1"))
_numbers = count(1)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    need_ceph()
    ceph = Ceph(tmp_path_factory.mktemp("ceph"))
    try:
        ceph.start()
        yield ceph
    finally:
        ceph.close()


@pytest.fixture
def ceph(running: Ceph, monkeypatch: pytest.MonkeyPatch) -> Ceph:
    """The cluster, where Ceph's own configuration finds it."""
    monkeypatch.setenv("CEPH_CONF", str(running.conf))
    return running


@contextmanager
def cluster() -> Iterator[RbdPool]:
    with opened(parse("rbd:rbd/any")) as pool:
        yield pool


class Image:
    """An image of the contract (lamella_kit.volumes), changed as a guest and an administrator would."""

    def __init__(self, name: str = "", *, order: int = ORDER) -> None:
        self.name = name or f"disk-{next(_numbers)}"
        self.order = order

    @property
    def path(self) -> Path:
        return Path(f"rbd:rbd/{self.name}")

    def fill(self, content: bytes) -> None:
        with cluster() as pool:
            if self.name not in pool.rbd.RBD().list(pool.io):
                pool.rbd.RBD().create(pool.io, self.name, len(content), order=self.order)
        with self.open() as image:
            image.resize(0)
            image.resize(len(content))
            if content:
                image.write(content, 0)

    def write(self, offset: int, content: bytes) -> None:
        with self.open() as image:
            if offset + len(content) > image.size():
                image.resize(offset + len(content))
            image.write(content, offset)

    def resize(self, size: int) -> None:
        with self.open() as image:
            image.resize(size)

    def content(self) -> bytes:
        with self.open() as image:
            return bytes(image.read(0, image.size())) if image.size() else b""

    def remove(self) -> None:
        """An image that has snapshots can only be moved to the trash."""
        with cluster() as pool, pool.image(self.name) as image:
            id = image.id()
        with cluster() as pool:
            pool.rbd.RBD().trash_move(pool.io, self.name, 0)
            assert id

    def replace(self, content: bytes) -> None:
        new = Image(order=self.order)
        new.fill(content)
        self.remove()
        with cluster() as pool:
            pool.rbd.RBD().rename(pool.io, new.name, self.name)

    def sibling(self) -> Image:
        return Image()

    @contextmanager
    def open(self) -> Iterator[Any]:
        with cluster() as pool, pool.image(self.name, read_only=False) as image:
            yield image

    def snapshots(self) -> list[str]:
        with self.open() as image:
            return [one["name"] for one in image.list_snaps()]

    def source(self, owner: str = OWNER) -> Source:
        return open_kept_source(str(self.path), MACHINE, Keeping(owner))


class Changes:
    """Random changes to an image, by a guest and its administrator; `kinds` names them."""

    KINDS = ("write",) * 8 + ("again", "zeroes", "discard", "discard", "resize", "rollback", "snapshot", "remove")

    def __init__(self, image: Image, chance: random.Random, most: int = SIZE) -> None:
        self.image, self.most = image, most
        self.done: Counter[str] = Counter()
        self._random = chance

    def __enter__(self) -> Changes:
        self.image.fill(self._random.randbytes(self.most // 2))
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def change(self, count: int, earlier: Path | None = None) -> None:
        """Make `count` changes."""
        with self.image.open() as image:
            for _ in range(count):
                name = self._random.choice(self.KINDS)
                self.done[name] += 1
                self._make(image, name)

    def _make(self, image: Any, name: str) -> None:  # noqa: ANN401 - the bindings have no types
        if name == "resize":
            image.resize(self._random.randrange(1, self.most))
        elif name == "snapshot":
            image.create_snap(f"administrators-{next(_numbers)}")
        elif name in ("rollback", "remove"):
            names = [one["name"] for one in image.list_snaps()]
            names = [one for one in names if name == "rollback" or one.startswith("administrators")]
            if names:
                act = image.rollback_to_snap if name == "rollback" else image.remove_snap
                act(self._random.choice(names))
        elif not image.size():
            image.resize(self.most)
        else:
            offset = self._random.randrange(image.size())
            length = min(self._random.choice([1, 512, 4096, GRAIN, 5 * GRAIN]), image.size() - offset)
            content = image.read(offset, length) if name == "again" else self._random.randbytes(length)
            if name == "zeroes":
                image.write_zeroes(offset, length)
            elif name == "discard":
                image.discard(offset, length)
            else:
                image.write(content, offset)


OTHER_IMAGES = {name for name in CHANGES if name.startswith(("made anew", "replaced by a"))}
"""Changes after which the name means another image, which has another identity."""


TELLING = {
    "nothing",
    "one byte",
    "all of it with the same bytes",
    "shrunk within a chunk",
    "grown by data after a hole",
    "shrunk then grown",
    "replaced by zeros",
}


def some(names: set[str]) -> list[Any]:
    """All changes to an image as parameters; those not named are for the long run."""
    assert names <= set(CHANGES)
    found = sorted(set(CHANGES) - OTHER_IMAGES)
    return [pytest.param(name, marks=[] if name in names else [pytest.mark.long]) for name in found]


class TestRbdContract(SourceContract):
    sizes = (0, 1, GRAIN, 3 * MIB + 12345)
    small_sizes = (0, GRAIN + 1)

    @pytest.fixture(autouse=True)
    def _image(self, ceph: Ceph) -> None:
        self.ceph = ceph
        self.mine = Image()

    def volume(self) -> Image:
        return self.mine

    def make_source(self, image: Path) -> Source:
        return open_kept_source(str(image), MACHINE, Keeping(OWNER))

    def changes(self, volume: object, chance: random.Random) -> Changes:
        assert isinstance(volume, Image)
        return Changes(volume, chance)

    def test_a_volume_made_anew_is_the_same_volume(self) -> None:
        """It is another image: Ceph gives every image an id of its own."""
        volume = self.filled(b"old")
        before = self.source_of(volume).identity
        volume.remove()
        volume.fill(b"new!")
        assert self.source_of(volume).identity != before

    def bytes_read(self) -> int:
        """From the OSD."""
        said = self.ceph.run("ceph", "--admin-daemon", self.ceph.place / "run" / "osd.0.asok", "perf", "dump", "osd")
        return int(json.loads(said)["osd"]["op_r_out_bytes"])

    @pytest.mark.parametrize("name", some({"one byte", "all of it", "shrunk to nothing"}))
    def test_a_frozen_volume_does_not_change(self, name: str) -> None:
        super().test_a_frozen_volume_does_not_change(name)

    @pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))])
    def test_random_changes(self, seed: int) -> None:
        super().test_random_changes(seed)

    @pytest.mark.parametrize("name", some(TELLING))
    def test_nothing_outside_a_delta_changed(self, name: str) -> None:
        super().test_nothing_outside_a_delta_changed(name)

    @pytest.mark.parametrize("name", sorted(OTHER_IMAGES))
    def test_another_image_of_the_name_is_compared(self, name: str) -> None:
        volume = self.filled(pattern(SIZE, 4))
        checkpoint = self.base(self.source_of(volume))
        CHANGES[name](volume)
        self.assert_lost(volume, checkpoint)

    def test_a_frozen_volume_outlives_the_volume(self) -> None:
        """An image cannot be removed while it has a snapshot; from the trash it is read to the end."""
        super().test_a_frozen_volume_outlives_the_volume()


# -- what Ceph says of changes ---------------------------------------------------------------------------------------


def features(image: Image, what: str) -> None:
    """Make an image one whose object map says nothing, or is not to be believed, or that is a clone."""
    with cluster() as pool, image.open() as open_image:
        maps = pool.rbd.RBD_FEATURE_OBJECT_MAP | pool.rbd.RBD_FEATURE_FAST_DIFF
        if what in ("no object map", "invalid object map"):
            open_image.update_features(maps, False)
        if what == "invalid object map":
            open_image.update_features(maps, True)
            assert open_image.flags()


@pytest.mark.parametrize("what", ["object map", "no object map", "invalid object map", "striped", "clone"])
def test_nothing_that_changed_is_missed(ceph: Ceph, what: str) -> None:
    """Each moment against all that are kept, under guest and administrator. LAMELLA_RBD_ROUNDS sets the rounds."""
    chance = random.Random(f"{SEED} {what}")
    image = made(what, chance)
    bases: dict[str, bytes] = {}
    changes = Changes(image, chance)
    for number in range(max(1, ROUNDS // 4)):
        source = image.source()
        when = f"{what}, seed {SEED}, round {number}, {dict(changes.done)}"
        with source.freeze() as frozen:
            now = whole(frozen)
            assert now == image.content(), when
            for extent, after in gaps(frozen):
                assert not any(now[extent:after]), when
            for checkpoint, content in bases.items():
                try:
                    delta = frozen.delta_since(checkpoint, chance.choice([GRAIN, 4 * GRAIN]))
                except CheckpointLost as lost:
                    assert "parent" in lost.message, lost
                else:
                    check_delta(delta, content, now, when)
            source.keep(frozen.checkpoint)
            bases[frozen.checkpoint] = now
        if len(bases) > 3:
            gone = chance.choice(list(bases))
            source.drop(gone)
            del bases[gone]
        changes.change(chance.choice([1, 3, 10]))
    assert set(source.kept()) == set(bases)


def gaps(frozen: FrozenVolume) -> Iterator[tuple[int, int]]:
    """What lies between the allocated ranges."""
    end = 0
    for extent in frozen.allocated():
        yield end, extent.start
        end = extent.end
    yield end, frozen.size


def made(what: str, chance: random.Random) -> Image:
    """An image of a kind, full of data in its first half."""
    image = Image()
    if what == "striped":
        with cluster() as pool:
            unit = {"stripe_unit": 4096, "stripe_count": 3}
            pool.rbd.RBD().create(pool.io, image.name, SIZE, order=ORDER, **unit)
    if what == "clone":
        parent = Image()
        parent.fill(chance.randbytes(SIZE // 2))
        with cluster() as pool, parent.open() as open_parent:
            open_parent.create_snap("golden")
            open_parent.protect_snap("golden")
            pool.rbd.RBD().clone(pool.io, parent.name, "golden", pool.io, image.name, order=ORDER)
        return image
    image.fill(chance.randbytes(SIZE // 2))
    features(image, what)
    return image


# -- through the command ---------------------------------------------------------------------------------------------


@pytest.fixture
def lamella(ceph: Ceph, tmp_path: Path) -> Lamella:
    """The command with an empty repository."""
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    found = Lamella({"LAMELLA_REPO": str(tmp_path / "repository")}, ["--keyfile", str(key)])
    found.ok("init", "-q")
    return found


def saved(lamella: Lamella, image: Image, *more: str) -> tuple[str, dict[str, Any]]:
    """Back an image up; returns the snapshot's name and the volume's row."""
    done = lamella.json("backup", f"disk=rbd:rbd/{image.name}", *more)
    (row,) = done["volumes"]
    assert row["driver"] == "rbd"
    return done["snapshot"], row


def restored(lamella: Lamella, snapshot: str) -> bytes:
    """Restore to a new image, and read that by Ceph's own program."""
    image = Image()
    lamella.ok("restore", f"disk@{snapshot}", "--to", image.path)
    try:
        return image.content()
    finally:
        with cluster() as pool:
            pool.rbd.RBD().remove(pool.io, image.name)


def small(content: bytes) -> Image:
    image = Image()
    image.fill(content)
    return image


def test_twenty_incrementals_restore_to_what_they_read(lamella: Lamella) -> None:
    """Guest and administrator change the image between backups; every fifth snapshot and the last are restored."""
    chance = random.Random(SEED)
    image = small(chance.randbytes(SIZE))
    assert saved(lamella, image, "--chunk-size", "64K")[1]["mode"] == "full"
    changes, truth = Changes(image, chance), {}
    for number in range(ROUNDS):
        changes.change(chance.choice([1, 3, 10]))
        content = image.content()
        snapshot, row = saved(lamella, image)
        assert (row["mode"], row["reason"]) == ("incremental", ""), row
        assert row["source_bytes"] == len(content)
        if number % 5 == 4 or number == ROUNDS - 1:
            truth[snapshot] = content
    for snapshot, content in truth.items():
        assert restored(lamella, snapshot) == content, dict(changes.done)
    assert [name for name in image.snapshots() if name.startswith("lamella")] == [image.snapshots()[-1]]
    assert lamella.json("verify", "disk", "--level", "source")["findings"] == []


def test_an_incremental_reads_what_changed(lamella: Lamella) -> None:
    image = Image(order=22)
    image.fill(pattern(40 * MIB, 1))
    saved(lamella, image, "--chunk-size", "64K")
    image.write(9 * MIB, b"!")
    _, row = saved(lamella, image)
    assert row["mode"] == "incremental"
    assert row["read_bytes"] - row["sampled_bytes"] == 4 * MIB, "an object"
    assert row["new_chunks"] == 1


@pytest.mark.parametrize("what", ["removed", "made anew", "another image"])
def test_a_lost_snapshot_means_comparing(lamella: Lamella, what: str) -> None:
    image = small(pattern(SIZE, 1))
    saved(lamella, image, "--chunk-size", "64K")
    (name,) = image.snapshots()
    if what == "another image":
        other = Image()
        with cluster() as pool, image.open() as open_image:
            open_image.deep_copy(pool.io, other.name)
        image.remove()
        with cluster() as pool:
            pool.rbd.RBD().rename(pool.io, other.name, image.name)
        refused = lamella.run("backup", f"disk=rbd:rbd/{image.name}")
        assert refused.code == 2 and "--adopt" in refused.err
    else:
        with image.open() as open_image:
            open_image.remove_snap(name)
            image.write(5, b"missed by whoever believes the new one")
            if what == "made anew":
                open_image.create_snap(name)
    image.write(2 * MIB, b"!")
    snapshot, row = saved(lamella, image, *(["--adopt"] if what == "another image" else []))
    assert row["mode"] == "compare" and row["reason"]
    assert restored(lamella, snapshot) == image.content()
    assert saved(lamella, image)[1]["mode"] == "incremental"
    assert len([name for name in image.snapshots() if name.startswith("lamella")]) == 1


KILLER = """
import os, signal, sys
from lamella.__main__ import entry
from lamella.sources.rbd import source
name, after = os.environ["KILL"].split()
owner = source.FrozenRbd if hasattr(source.FrozenRbd, name) else source.RbdSource
real = getattr(owner, name)
def killed(*words):
    if after == "after":
        real(*words)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, killed)
entry()
"""
"""Runs the command, and is killed where KILL says: at the first call of a method of the driver."""


def test_what_a_kill_leaves_is_removed_by_the_next_run(lamella: Lamella) -> None:
    image = small(pattern(SIZE, 1))
    saved(lamella, image, "--chunk-size", "64K")
    steps = ("__init__ before", "read_into before", "keep before", "keep after")
    for number, step in enumerate((*steps, "_remove before", "_remove after")):
        image.write(number * 300_000, pattern(70_000, number + 2))
        command = [COMMAND[0], "-c", KILLER, *lamella.options, "backup", f"disk=rbd:rbd/{image.name}"]
        done = subprocess.run(command, env=environment({**lamella.env, "KILL": step}), capture_output=True, timeout=60)
        assert done.returncode == -signal.SIGKILL, (step, done)
        left = len(image.snapshots())
        assert left == (1 if step == "_remove after" else 2), step
        image.write(number * 300_000 + 80_000, b"after the kill")
        snapshot, row = saved(lamella, image)
        assert (row["mode"], row["reason"]) == ("incremental", ""), step
        assert len(image.snapshots()) == 1, step
        if number % 3 == 0:
            assert restored(lamella, snapshot) == image.content(), step


def test_restoring_into_an_image(lamella: Lamella) -> None:
    """It keeps its id and snapshots, gets the size, and is not written without consent or while it is used."""
    image = small(pattern(SIZE, 1))
    saved(lamella, image, "--chunk-size", "64K")
    target = small(pattern(2 * SIZE, 2))
    with target.open() as open_target:
        open_target.create_snap("mine")
        id = open_target.id()
    refused = lamella.run("restore", "disk", "--to", target.path)
    assert refused.code == 2 and "--overwrite" in refused.err
    with target.open() as open_target:
        open_target.write(b"somebody writes", 0)
        used = lamella.run("restore", "disk", "--to", target.path, "--overwrite", "-y")
        assert used.code == 2 and "in use" in used.err
    lamella.ok("restore", "disk", "--to", target.path, "--overwrite", "-y")
    assert target.content() == image.content()
    with target.open() as open_target:
        assert open_target.id() == id
        assert target.snapshots() == ["mine"]


def test_a_restore_that_was_broken_off_goes_on(lamella: Lamella) -> None:
    image = small(pattern(SIZE, 1) + bytes(MIB))
    saved(lamella, image, "--chunk-size", "64K")
    name = f"restored-{image.name}"
    partial = Image(f"{name}.lamella-partial")
    partial.fill(pattern(SIZE // 2, 1) + b"junk" * 1000 + bytes(SIZE // 2 + MIB - 4000) + b"more" * 9000)
    assert "will create" in lamella.ok("restore", "-n", "disk", "--to", f"rbd:rbd/{name}").out
    done = lamella.json("restore", "disk", "--to", f"rbd:rbd/{name}")
    assert done["bytes_written"] < SIZE * 3 // 4
    assert done["target"] == f"rbd:rbd/{name}"
    assert Image(name).content() == image.content()
    with cluster() as pool:
        assert partial.name not in pool.rbd.RBD().list(pool.io)


def test_a_namespace_and_a_user_of_its_own(lamella: Lamella, ceph: Ceph) -> None:
    ceph.rbd("namespace", "create", "rbd/team")
    caps = ("mon", "profile rbd", "osd", "profile rbd pool=rbd namespace=team", "mgr", "profile rbd pool=rbd")
    key = ceph.ceph("auth", "get-or-create", "client.backup", *caps)
    with (ceph.place / "keyring").open("a") as keyring:
        keyring.write(key)
    ceph.rbd("create", "rbd/team/disk", "--size", "3M")
    assert lamella.json("backup", "rbd:rbd/team/disk?id=backup")["volumes"][0]["volume"] == "disk"
    lamella.ok("restore", "disk", "--to", "rbd:rbd/team/other?id=backup")
    denied = lamella.run("backup", "rbd:rbd/none?id=backup")
    assert denied.code == 4 and "rbd:rbd/none" in denied.err


def test_what_cannot_be_read_is_said_in_one_line(lamella: Lamella, ceph: Ceph, tmp_path: Path) -> None:
    for source, env, code, said in (
        ("rbd:rbd/missing", {}, 4, "RBD image not found"),
        ("rbd:none/missing", {}, 4, "none"),
        ("rbd:rbd", {}, 2, "write rbd:POOL/IMAGE"),
        ("rbd:rbd/x@y", {}, 2, "write rbd:POOL/IMAGE"),
        ("rbd:rbd/x", {"CEPH_CONF": str(tmp_path / "absent")}, 4, "CEPH_CONF"),
        ("rbd:rbd/x?id=stranger", {}, 4, "user of Ceph"),
    ):
        done = lamella.run("backup", source, env=env)
        assert done.code == code, (source, done)
        assert said in done.err, (source, done)


def test_a_cluster_that_stands_still_does_not_hang_for_ever(lamella: Lamella, ceph: Ceph, tmp_path: Path) -> None:
    image = small(pattern(SIZE, 1))
    impatient = tmp_path / "ceph.conf"
    impatient.write_text(ceph.conf.read_text() + "\n[client]\nrados osd op timeout = 3\n")
    ceph.stop_osd()
    try:
        started = time.monotonic()
        done = lamella.run("backup", f"rbd:rbd/{image.name}", env={"CEPH_CONF": str(impatient)})
        assert time.monotonic() - started < 40
    finally:
        ceph.continue_osd()
    assert done.code == 4 and image.name in done.err
    assert lamella.json("backup", f"rbd:rbd/{image.name}")["result"] == "complete"
