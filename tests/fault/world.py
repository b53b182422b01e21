"""What the fault tests share: small repositories driven through the real operations, and one judge of soundness."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lamella import rescue
from lamella.base.clock import now_ms
from lamella.base.trust import Clear
from lamella.crypto.slots import Secret, key_file
from lamella.memory.host import Host, machine_name
from lamella.operations.backup.story import BackupOptions, BackupResult, Request, plan_backup
from lamella.operations.restore.restore import RestoreOptions, plan_restore
from lamella.operations.shared.findings import VerifyResult
from lamella.operations.shared.selection import Selected, select
from lamella.operations.verify.verify import VerifyOptions, verify
from lamella.repository.create import SlotWanted, create_repository
from lamella.repository.repository import Repository
from lamella.sources.base import Source
from lamella.stores.base import Store
from lamella.stores.memory import MemoryStore
from lamella_kit.scripted_source import ScriptedSource

KEY = b"a key file for tests, 32+ bytes."
SECRET = key_file(KEY)
CHUNK = 1 << 16
SMALL_RESCUE = Clear(b"print('stands for the emergency reader')\n")


def host_at(place: Path, machine: str = "one") -> Host:
    """A host whose state and cache lie below `place`."""
    return Host(machine_name(machine), f"box-{machine}", place / "state", place / "cache")


def fresh_host(place: Path, machine: str = "stranger") -> Host:
    """A host that remembers nothing, and whose cache is empty."""
    shutil.rmtree(place, ignore_errors=True)
    return host_at(place, machine)


def with_fresh_cache(host: Host, place: Path) -> Host:
    """The same host with an empty cache."""
    shutil.rmtree(place, ignore_errors=True)
    return Host(host.machine, host.label, host.state_dir, place)


def init(store: Store, host: Host, *, id_alg: int = 1) -> None:
    """Make a repository opened by the tests' key file."""
    create_repository(store, host, [SlotWanted(SECRET, True)], now_ms, id_alg=id_alg)


@contextlib.contextmanager
def short_rescue(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Repositories made meanwhile carry a few bytes as `restore.py`, so that every one of them can be damaged."""
    with monkeypatch.context() as patch:
        patch.setattr("lamella.repository.create.rescue_source", lambda: SMALL_RESCUE)
        yield


def backup(
    store: Store,
    host: Host,
    *sources: Source,
    options: BackupOptions | None = None,
    names: Sequence[str | None] = (),
    secret: Secret = SECRET,
) -> BackupResult:
    """One run over `sources`, with one worker unless the options say otherwise."""
    options = options or BackupOptions(chunk_log2=16, workers=1)
    chosen = [*names, *([None] * (len(sources) - len(names)))]
    requests = [Request(name, source) for name, source in zip(chosen, sources, strict=True)]
    with Repository.open(store, secret, host) as repo:
        return plan_backup(repo, requests, options).execute()


def volume(content: bytes, name: str = "disk") -> ScriptedSource:
    """A source that holds `content`, all of it allocated."""
    return ScriptedSource(name, content)


def restored(repo: Repository, one: Selected, target: Path) -> bytes:
    """The bytes a restore of `one` writes to a new file."""
    target.unlink(missing_ok=True)
    plan_restore(repo, one, target, RestoreOptions(workers=1)).execute()
    content = target.read_bytes()
    target.unlink()
    return content


def verified(repo: Repository, level: str = "full") -> VerifyResult:
    """Verification of everything."""
    return verify(repo, select(repo, []), VerifyOptions(level, percent=100, workers=1))


@dataclass(slots=True)
class Truth:
    """What must come back: by `VOLUME@SNAPSHOT`, the bytes.

    Names are without the `~<4 hex>` of volumes that share one.
    """

    volumes: dict[str, bytes] = field(default_factory=dict)

    def learn(self, result: BackupResult, contents: Mapping[str, bytes]) -> None:
        """A run was committed: from now on these contents must be restorable."""
        for row in result.volumes:
            if row.result == "complete":
                name = row.volume.partition("~")[0]
                self.volumes[f"{name}@{result.snapshot}"] = contents[name]


def check_sound(store: Store, host: Host, truth: Truth, scratch: Path, *, others: Sequence[bytes] = ()) -> None:
    """Every snapshot of `truth` is there and restores to its bytes; verification finds no damage.

    Snapshots beyond `truth` may be there if they restore to one of `others`.
    """
    with Repository.open(store, SECRET, host) as repo:
        everything = {f"{one.volume.name}@{one.snapshot.name}": one for one in select(repo, [])}
        missing = set(truth.volumes) - set(everything)
        assert not missing, f"lost: {missing}"
        for text, one in everything.items():
            content = restored(repo, one, scratch / "restored.img")
            if text in truth.volumes:
                assert content == truth.volumes[text], f"{text} restores to wrong bytes"
            else:
                assert content in others, f"{text} restores to what nobody saved"
        result = verified(repo)
        assert not result.damaged and not result.unrestorable, result.findings


def as_directory(objects: Mapping[str, bytes], place: Path) -> Path:
    """Write objects as the files of a local repository."""
    for name, content in objects.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return place


def check_rescue(objects: Mapping[str, bytes], truth: Truth, scratch: Path) -> None:
    """The emergency reader, which shares no code with the rest, restores the same bytes."""
    place = scratch / "rescue"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    key = place / "key"
    key.write_bytes(KEY)
    key.chmod(0o600)
    repo = as_directory(objects, place / "repository")
    for text, content in truth.volumes.items():
        target = place / "out.img"
        words = ["restore", text, "--to", str(target), "--repo", str(repo), "--keyfile", str(key), "--overwrite"]
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = rescue.main(words)
        assert code == 0, f"restore.py says {code} for {text}: {said.getvalue()}"
        assert target.read_bytes() == content, f"restore.py restores {text} to wrong bytes"


def copy_of(store: MemoryStore) -> MemoryStore:
    """Another store with the same objects."""
    return MemoryStore(store.objects())
