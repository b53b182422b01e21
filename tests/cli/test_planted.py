"""What somebody plants who can write to the place and has no admin's secret: key slots, and others' containers.

Through `serve --append-only` and directly, as whoever runs the place could.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from lamella.base.names import commit_of
from lamella.base.signed import TRAILER_SIZE, commit_message, enrolment_message, signers_of, trailer_of
from lamella.crypto.sign import public_of, sign
from lamella.format.commit import Head, writer_id
from lamella.format.keyslot import MAX_PASSPHRASES, MAX_SLOTS
from tests.cli.program import COMMAND, Lamella, environment
from tests.fault.pipe_thief import Refused, Thief
from tests.system.ssh_server import ssh_server

PHRASE = "correct horse battery"
OWN = b"o" * 32
JUNK = MAX_PASSPHRASES + 1 + 2 * MAX_SLOTS
SIZE = 200_000


@dataclass
class Place:
    """A repository with a key file, a passphrase and a recovery key, and each of these as the options that give it."""

    root: Path
    image: Path

    @property
    def store(self) -> Path:
        return self.root / "repository"

    def lamella(self, secret: str = "key file", host: str = "one") -> Lamella:
        options, env = self.secrets[secret]
        places = {f"LAMELLA_{word}_DIR": str(self.root / host / word.lower()) for word in ("STATE", "CACHE")}
        return Lamella({"LAMELLA_REPO": str(self.store), **places, **env}, options)

    @property
    def secrets(self) -> dict[str, tuple[list[str], dict[str, str]]]:
        return {
            "key file": (["--keyfile", str(self.root / "key")], {}),
            "writer": (["--keyfile", str(self.root / "writer")], {}),
            "passphrase": ([], {"LAMELLA_PASSPHRASE": PHRASE}),
            "recovery key": (["--recovery-key-file", str(self.root / "recovery")], {}),
        }

    def rescue(self, secret: str, *words: str) -> subprocess.CompletedProcess[str]:
        """The emergency reader, as it lies in the repository."""
        options, env = self.secrets[secret]
        copy = shutil.copy(self.store / "restore.py", self.root / "restore.py")
        argv = [sys.executable, "-I", "-S", str(copy), *words, "--repo", str(self.store), *options]
        return subprocess.run(argv, env=environment(env), capture_output=True, text=True, timeout=120, check=False)

    def objects(self) -> dict[str, bytes]:
        files = (path for path in self.store.rglob("*") if path.is_file() and path.parent.name != "tmp")
        return {str(path.relative_to(self.store)): path.read_bytes() for path in files}

    def plant(self, name: str, content: bytes) -> None:
        (self.store / name).parent.mkdir(parents=True, exist_ok=True)
        (self.store / name).write_bytes(content)

    def thief(self) -> Thief:
        return Thief((*COMMAND, "serve", "--append-only", str(self.store)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("planted")
    place = Place(root, root / "disk.img")
    (place.root / "key").write_bytes(os.urandom(32))
    (place.root / "key").chmod(0o600)
    admin = place.lamella()
    admin.ok("init", "-q")
    (place.root / "phrase").write_text(PHRASE)
    admin.ok("key", "add", "--kdf-cost", "17", "--new-passphrase-file", place.root / "phrase")
    admin.ok("key", "add", "--recovery", "--recovery-sheet", place.root / "sheet")
    admin.ok("key", "add", "--role", "writer", "--new-keyfile", place.root / "writer", "--generate")
    found = re.search(r"(?:[A-Z2-7]{5}-\s*){13}[A-Z2-7]{5}", (place.root / "sheet").read_text())
    assert found is not None
    (place.root / "recovery").write_text(found[0])
    place.image.write_bytes(random.Random(1).randbytes(SIZE))
    admin.ok("backup", place.image)
    return place


@pytest.fixture
def place(made: Place, tmp_path: Path) -> Place:
    shutil.copytree(made.root, tmp_path / "copy")
    place = Place(tmp_path / "copy", made.image)
    place.lamella().ok("list")  # the copy is no unknown place
    return place


def junk_slots(below: str) -> dict[str, bytes]:
    """Well-formed slots with lower names than this one: more than count, for passphrases and of the other types."""
    found: dict[str, bytes] = {}
    chosen = random.Random(7)
    while len(found) < JUNK:
        kind = 1 if len(found) <= MAX_PASSPHRASES else 2 + len(found) % 2
        cost = bytes([15, 8, 1]) if kind == 1 else bytes(3)
        content = b"LMLSLOT\x01" + bytes([kind, 2]) + cost + bytes(3) + chosen.randbytes(224)
        name = "keys/" + hashlib.sha256(content).hexdigest()[:8]
        if name < below:
            found[name] = content
    return found


def test_planted_slots_lock_nobody_out(place: Place) -> None:
    """Not through a server that lets add: it takes none. Planted directly they are never tried."""
    before = place.objects()
    junk = junk_slots(min(name for name in before if name.startswith("keys/")))
    with place.thief() as thief:
        for name, content in junk.items():
            with pytest.raises(Refused, match="no key slots can be added"):
                thief.put(name, content)
    assert place.objects() == before
    for name, content in junk.items():
        place.plant(name, content)
    for secret in place.secrets:
        place.lamella(secret).ok("list")
        listed = place.rescue(secret, "list")
        assert listed.returncode == 0 and "disk" in listed.stdout, listed.stderr
        assert listed.stderr.count("\n") == 1 and f"{JUNK} objects in keys/ that no admin signed" in listed.stderr
    place.lamella("passphrase", "fresh").ok("restore", "disk", "--to", place.root / "out.img")
    restored = place.rescue("recovery key", "restore", "disk", "--to", str(place.root / "rescued.img"))
    assert restored.returncode == 0, restored.stderr
    for name in ("out.img", "rescued.img"):
        assert (place.root / name).read_bytes() == place.image.read_bytes()


def test_planted_slots_are_told_of_in_one_line(place: Place) -> None:
    for name, content in junk_slots("keys/ffffffff").items():
        place.plant(name, content)
    admin = place.lamella()
    text = f"{JUNK} objects in keys/ that no admin signed, ignored: keys/"
    assert admin.ok("key", "list").out.count(text) == 1
    shown = admin.json("key", "list")
    assert len(shown["slots"]) == 4 and shown["ignored"] == JUNK and all(row["signed"] for row in shown["slots"])
    assert admin.ok("doctor").out.count(text) == 1
    assert [row["object"] for row in admin.json("verify", "--level", "structure")["findings"]] == ["keys/"]
    admin.ok("backup", place.image)
    admin.ok("key", "add", "--new-keyfile", place.root / "more", "--generate")
    admin.ok("prune", "--keep-last", "1", "-y")
    mirrored = admin.json("mirror", "--to", place.root / "mirror")
    assert len(list((place.root / "mirror" / "keys").iterdir())) == 5
    assert sum("no admin signed" in row["message"] for row in mirrored["findings"]) == JUNK


def test_names_of_no_object_stop_nobody(place: Place) -> None:
    """In every folder more than any reader once bore: whoever may add objects may choose their names."""
    below = {str(Path(name).parent) for name in place.objects() if name.startswith(("p/", "w/"))}
    folders = ["keys", "p", *sorted(below)]
    for folder in (*folders, "w", "i", "."):
        (place.store / folder).mkdir(exist_ok=True)
        for number in range(1001):
            (place.store / folder / f"!{number}").touch()
    for secret in place.secrets:
        place.lamella(secret).ok("list")
        assert place.rescue(secret, "list").returncode == 0
    for host in ("one", "fresh"):
        lamella = place.lamella(host=host)
        lamella.ok("verify", "--level", "full")
        lamella.ok("backup", place.image)
        lamella.ok("restore", "disk", "--to", place.root / f"{host}.img")
    admin = place.lamella()
    admin.ok("prune", "--keep-last", "1", "-y")
    admin.ok("mirror", "--to", place.root / "mirror")
    rescued = place.rescue("key file", "restore", "disk", "--to", str(place.root / "rescued.img"))
    assert rescued.returncode == 0, rescued.stderr
    for name in ("one.img", "fresh.img", "rescued.img"):
        assert (place.root / name).read_bytes() == place.image.read_bytes()


def test_the_owner_of_a_writers_slot_is_told_who_can_change_its_secret(place: Place) -> None:
    (place.root / "newer").write_bytes(os.urandom(32))
    refused = place.lamella("writer").run("key", "change", "--new-keyfile", place.root / "newer")
    assert refused.code == 2 and "key add --role writer" in refused.err


def test_slots_are_not_added_where_objects_can_only_be_added(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor by their owner: refused before anything is written. A mirror goes on without the slot, and says so."""
    shutil.copytree(place.store, place.root / "mirror")
    with ssh_server() as server:
        monkeypatch.setenv("PATH", f"{server.bin}:{os.environ['PATH']}")
        remote = f"ssh://127.0.0.1:{server.port}/anything"
        server.allow(command=shlex.join((*COMMAND, "serve", "--append-only", str(place.store))))
        before = place.objects()
        add = ("key", "add", "--new-keyfile", place.root / "more", "--generate")
        there = place.lamella().run("-r", remote, *add)
        assert there.code == 1 and "no key slots can be added here" in there.err
        assert place.objects() == before and not (place.root / "more").exists()
        place.lamella().ok(*add)
        server.allow(command=shlex.join((*COMMAND, "serve", "--append-only", str(place.root / "mirror"))))
        mirrored = place.lamella().run("mirror", "--to", remote)
        assert mirrored.code == 0 and mirrored.out.count("no key slots can be added here") == 1, mirrored
    assert len(list((place.root / "mirror" / "keys").iterdir())) == 4
    assert len(list((place.root / "mirror" / "w").glob("*/*"))) == len(list((place.store / "w").glob("*/*")))


def forged_enrolments(place: Place) -> dict[str, bytes]:
    """Signatures that everybody can make who has no key slot."""
    root = signers_of((place.store / "lamella").read_bytes()).root
    message = enrolment_message(root, public_of(OWN))
    exported = place.root / "exported"
    place.lamella().ok("key", "export-domain", "disk", "--to", exported)
    content = exported.read_bytes()
    enc, id_key = content[64:96], content[96:128]
    stolen = trailer_of(next(one for name, one in place.objects().items() if name.startswith("w/"))).enrolment
    seeds = {"own": OWN, "domain's enc": enc, "domain's id key": id_key}
    return {word: sign(seed, message) for word, seed in seeds.items()} | {"stolen": stolen, "none": bytes(64)}


def resigned(place: Place, content: bytes, seq: int, enrolment: bytes) -> tuple[str, bytes]:
    """The container of somebody's commit, with a trailer by a key of one's own."""
    root = signers_of((place.store / "lamella").read_bytes()).root
    writer = writer_id(public_of(OWN))
    trailer = trailer_of(content)._replace(public=public_of(OWN), enrolment=enrolment)
    signature = sign(OWN, commit_message(root, writer, seq, trailer))
    made = content[:-TRAILER_SIZE] + b"".join(trailer._replace(signature=signature))
    return Head(writer, seq, hashlib.sha256(made).digest()).name, made


def harmless(place: Place, names: Sequence[str]) -> None:
    """Every command goes on with its exit code, and `check` has a note on each of these objects."""
    for host in ("one", "fresh"):
        lamella = place.lamella(host=host)
        for arguments in (("list",), ("verify", "--level", "structure"), ("doctor",), ("info",)):
            lamella.ok(*arguments)
        notes = lamella.json("check")["notes"]
        assert all(any(name in note for note in notes) for name in names)
        lamella.ok("restore", "disk", "--to", place.root / f"{host}.img")
    admin = place.lamella()
    admin.ok("backup", place.image)
    admin.ok("prune", "--keep-last", "1", "-y")
    mirrored = admin.json("mirror", "--to", place.root / "mirror")
    assert {row["object"] for row in mirrored["findings"]} >= set(names)
    assert not any((place.root / "mirror" / name).exists() for name in names)
    rescued = place.rescue("key file", "restore", "disk", "--to", str(place.root / "rescued.img"))
    assert rescued.returncode == 0, rescued.stderr
    for name in ("one.img", "fresh.img", "rescued.img"):
        assert (place.root / name).read_bytes() == place.image.read_bytes()


def test_a_container_signed_anew_is_refused_by_servers_and_harms_no_reader(place: Place) -> None:
    before = place.objects()
    commits = {name: commit_of(name) for name in before if name.startswith("w/")}
    planted: dict[str, bytes] = {}
    with place.thief() as thief:
        for enrolment in forged_enrolments(place).values():
            for name, parsed in commits.items():
                assert parsed is not None
                made = resigned(place, before[name], parsed.seq, enrolment)
                planted |= dict([made])
                with pytest.raises(Refused, match="nobody enrolled"):
                    thief.put(*made)
    assert place.objects() == before
    for name, content in planted.items():
        place.plant(name, content)
    harmless(place, sorted(planted))


def test_nothing_of_another_repository_with_the_same_secret_counts(place: Place) -> None:
    """Its commits and slots, byte for byte: every signature says for which repository it was made."""
    other = Place(place.root / "other", place.root / "other" / "disk.img")
    other.root.mkdir()
    shutil.copy(place.root / "key", other.root / "key")
    other.lamella().ok("init", "-q")
    other.image.write_bytes(b"other" * 9000)
    other.lamella().ok("backup", other.image)
    foreign = {name: one for name, one in other.objects().items() if name.startswith(("w/", "keys/"))}
    before = place.objects()
    with place.thief() as thief:
        for name, content in foreign.items():
            with pytest.raises(Refused):
                thief.put(name, content)
    assert place.objects() == before
    for name, content in foreign.items():
        place.plant(name, content)
    assert place.lamella().json("key", "list")["ignored"] == 1
    harmless(place, sorted(name for name in foreign if name.startswith("w/")))


def test_where_only_admitted_writers_may_write(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host that made the repository is one, with any secret; another is, once an admin's secret was used there."""
    with ssh_server() as server:
        monkeypatch.setenv("PATH", f"{server.bin}:{os.environ['PATH']}")
        server.allow(command=shlex.join((*COMMAND, "serve", "--append-only", "--admitted", str(place.store))))
        remote = f"ssh://127.0.0.1:{server.port}/anything"

        def backup(secret: str, host: str) -> tuple[int, str]:
            (place.root / f"{host}.img").write_bytes(host.encode() * 9000)
            done = place.lamella(secret, host).run("-r", remote, "backup", place.root / f"{host}.img")
            return done.code, done.err

        assert backup("writer", "one")[0] == 0
        commits = len(list(place.store.glob("w/*/*")))
        code, text = backup("writer", "two")
        assert code != 0 and "only writers that an admin enrolled may write here" in text
        assert len(list(place.store.glob("w/*/*"))) == commits
        assert backup("key file", "two")[0] == 0
        assert backup("writer", "two")[0] == 0
