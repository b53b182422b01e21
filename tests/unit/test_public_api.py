"""The public interface: what it is called, what it takes, and that it costs nothing until it is used."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC
from pathlib import Path

import pytest

import lamella
from lamella import public
from tests.unit.small_repository import ADMIN, image

LISTED = Path(__file__).with_name("public_api.txt")


OPAQUE = {"Repository", "Source", "Reporter"}
"""To be passed on: what they can do is not promised."""


def described(name: str) -> list[str]:
    """A public name with everything a caller can rely on, one line each."""
    found = getattr(lamella, name)
    if name in OPAQUE:
        return [f"class {name}: ..."]
    if inspect.isclass(found):
        return [f"class {name}{_bases(found)}", *(f"    {line}" for line in _members(found))]
    if callable(found):
        return [f"def {name}{_signature(found)}"]
    return [f"{name} = {found}".replace("lamella.base.events.", "")]


def _bases(found: type) -> str:
    names = [base.__name__ for base in found.__bases__ if base.__module__.startswith("lamella") or base is Exception]
    return f"({', '.join(names)})" if names else ""


def _signature(function: Callable[..., object]) -> str:
    return re.sub(r"<function (\w+) at \w+>", r"\1", str(inspect.signature(function)))


def _default(field: dataclasses.Field[object]) -> str:
    if field.default is not dataclasses.MISSING:
        return f" = {field.default!r}"
    factory = field.default_factory
    return "" if factory is dataclasses.MISSING else f" = {getattr(factory, '__name__', '...')}()"


def _members(found: type) -> list[str]:
    if issubclass(found, lamella.LamellaError):
        return [f"exit_code = {found.exit_code}"]
    fields = dataclasses.fields(found) if dataclasses.is_dataclass(found) else ()
    lines = [f"{field.name}: {field.type}{_default(field)}" for field in fields]
    for name, member in sorted(vars(found).items()):
        if name.startswith("_") or name in {line.split(":")[0] for line in lines}:
            continue
        if isinstance(member, property):
            lines.append(f"property {name}")
        elif isinstance(member, classmethod):
            lines.append(f"classmethod {name}{_signature(member.__func__)}")
        elif inspect.isfunction(member):
            lines.append(f"def {name}{_signature(member)}")
    return lines


def test_the_interface_is_the_one_listed() -> None:
    """When this fails the interface changed: that is for a release to say, not for an accident."""
    assert sorted(lamella.__all__) == list(lamella.__all__)
    now = [line for name in lamella.__all__ for line in described(name)]
    assert now == LISTED.read_text("utf-8").splitlines()


def test_every_name_can_be_had_and_no_other() -> None:
    assert set(lamella.__all__) <= set(dir(lamella))
    for name in lamella.__all__:
        assert getattr(lamella, name) is getattr(lamella, name)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = lamella.no_such_name  # type: ignore[attr-defined]


def test_type_checkers_know_the_same_names() -> None:
    stub = ast.parse(Path(lamella.__file__).with_name("__init__.pyi").read_text("utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    known = {one.asname: node.module for node in imports for one in node.names}
    assert known == public.HOME_OF


IMPORT_OF_THE_PACKAGE = re.compile(r"\bimport\b.*\blamella(?![.\w])|\bfrom\s+lamella\s+import\b")
"""Whatever imports the package itself has such a line; only modules with one are parsed."""


@pytest.mark.parametrize(
    "line", ["import lamella", "import os, lamella as short", "from lamella import open", "    import lamella\n"]
)
def test_an_import_of_the_package_is_seen(line: str) -> None:
    assert IMPORT_OF_THE_PACKAGE.search(line)
    assert not IMPORT_OF_THE_PACKAGE.search("import lamella.base\nfrom lamella.base import errors\n")


def test_nothing_inside_uses_the_public_names() -> None:
    """They live above every room: whoever took one from here would look upward, unseen by import-linter."""
    for path in Path(lamella.__file__).parent.rglob("*.py"):
        text = path.read_text("utf-8")
        for node in ast.walk(ast.parse(text)) if IMPORT_OF_THE_PACKAGE.search(text) else ():
            if isinstance(node, ast.Import):
                assert "lamella" not in [one.name for one in node.names], path
            if isinstance(node, ast.ImportFrom) and node.module == "lamella":
                assert not {one.name for one in node.names} & set(lamella.__all__), path


def imported_after(program: str) -> set[str]:
    """The modules of Lamella and its dependencies that a program has imported at its end."""
    program += "\nimport sys\nprint(*sorted(sys.modules))"
    source = Path(lamella.__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(source)!r})\n{program}"],
        capture_output=True, check=True, text=True, timeout=60,
    )  # fmt: skip
    words = set(result.stdout.splitlines()[-1].split())
    return {word for word in words if word.split(".")[0] in {"lamella", "cryptography", "backports", "sqlite3"}}


def test_importing_lamella_is_light() -> None:
    assert imported_after("import lamella") == {"lamella"}


def test_help_is_light() -> None:
    help_ = "from lamella.cli.main import main\nassert main(['--help'], {}) == 0"
    heavy = {name for name in imported_after(help_) if not name.startswith(("lamella.cli", "lamella.base.errors"))}
    assert heavy == {"lamella", "lamella.base"}


def test_errors_need_nothing_else() -> None:
    assert imported_after("import lamella\nlamella.LamellaError") == {
        "lamella",
        "lamella.base",
        "lamella.base.errors",
        "lamella.public",
    }


def script() -> str:
    """The script of the guide."""
    text = (Path(__file__).parents[2] / "docs" / "guide" / "scripts.md").read_text("utf-8")
    (found,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_script_of_the_guide_runs(tmp_path: Path) -> None:
    assert len(script().splitlines()) <= 25
    for name in ("vm", "restored", "backup"):
        (tmp_path / name).mkdir()
    contents = {name: image(tmp_path / "vm" / f"{name}.img", "abc.0d").read_bytes() for name in ("web", "scratch1")}
    (tmp_path / "key").write_bytes(ADMIN.value)
    env = {f"LAMELLA_{what}_DIR": str(tmp_path / what.lower()) for what in ("STATE", "CACHE")}
    url = str(tmp_path / "backup" / "lamella")
    key = lamella.key_file(ADMIN.value)
    lamella.create_repository(url, slots=[lamella.SlotWanted(key, True)], host=lamella.Host.here(env))
    places = {"/mnt/backup": tmp_path / "backup", "/etc/lamella/main.key": tmp_path / "key", "/srv": tmp_path}
    program = script()
    for written, place in places.items():
        program = program.replace(written, str(place))
    for _ in range(4):
        done = subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, **env}, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        (restored,) = (tmp_path / "restored").iterdir()
        assert restored.name == "web.img" and restored.read_bytes() == contents["web"]
        restored.unlink()
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("removed 1 snapshots")
    assert len(lines) == 5 and re.fullmatch(r"web@\S+  \d{4}-\d\d-\d\d \d\d:\d\d UTC  \d+ MiB  \w+", lines[0])


def test_the_short_way_refuses_what_its_commands_refuse(tmp_path: Path) -> None:
    host = lamella.Host(lamella.machine_name("x"), "box", tmp_path / "state", tmp_path / "cache")
    url, key = str(tmp_path / "vault"), tmp_path / "key"
    key.write_bytes(ADMIN.value)
    lamella.create_repository(url, slots=[lamella.SlotWanted(lamella.key_file(ADMIN.value), True)], host=host)
    disk = image(tmp_path / "disk.img", "abc.0d")
    with pytest.raises(lamella.UsageError, match="0 secrets"), lamella.open(url, host=host):
        pass
    with pytest.raises(lamella.UsageError, match="2 secrets"), lamella.open(url, keyfile=key, passphrase="x"):
        pass
    with pytest.raises(lamella.KeyRefused), lamella.open(url, passphrase="x", host=host):
        pass
    with lamella.open(url, keyfile=key, host=host) as repo:
        for wrong, sources in (
            (lamella.UsageError, ()),
            (lamella.NothingMatched, (tmp_path / "*.raw",)),
            (lamella.SourceError, (disk, tmp_path / "none.img")),
        ):
            with pytest.raises(wrong):
                repo.backup(*sources)
        assert repo.snapshots() == [] and repo.problems == []
        repo.backup(disk, documents={"notes": b"x"})
        (saved,) = repo.snapshots("disk")
        assert saved.time.tzinfo is UTC and abs(saved.time.timestamp() - time.time()) < 600
        assert (saved.size, saved.whole, saved.tags) == (disk.stat().st_size, True, ())
        with pytest.raises(lamella.UsageError, match="exists already"):
            repo.restore("disk", disk)
        with pytest.raises(lamella.UsageError, match="not a rule"):
            repo.prune(keep_dayly=1)
        with pytest.raises(lamella.UsageError, match="no rule"):
            repo.prune()
        repo.backup(f"disk={disk}")
        would = repo.prune(keep_last=1, dry_run=True)
        assert (len(would.removed), len(would.kept), len(repo.snapshots())) == (1, 1, 2)
        assert repo.prune("disk", keep_last=1).removed == would.removed
        assert [one.text for one in repo.snapshots()] == list(would.kept)
        # Others work while this program holds it open.
        with lamella.open(url, keyfile=key, host=host, read_only=True) as beside:
            assert beside.volumes() == ["disk"]
            with pytest.raises(lamella.LamellaError):
                beside.backup(disk)


def test_the_short_way_tells_of_damage(tmp_path: Path) -> None:
    host = lamella.Host(lamella.machine_name("x"), "box", tmp_path / "state", tmp_path / "cache")
    url, key = str(tmp_path / "vault"), tmp_path / "key"
    key.write_bytes(ADMIN.value)
    lamella.create_repository(url, slots=[lamella.SlotWanted(lamella.key_file(ADMIN.value), True)], host=host)
    with lamella.open(url, keyfile=key, host=host) as repo:
        assert repo.backup(image(tmp_path / "disk.img", "abc.0d")).complete
    pack = max(
        (path for path in (tmp_path / "vault/p").rglob("*") if path.is_file()), key=lambda one: one.stat().st_size
    )
    pack.write_bytes(bytes(pack.stat().st_size))
    with lamella.open(url, keyfile=key, host=host) as repo:
        assert repo.verify(level="full").damaged
        with pytest.raises(lamella.IntegrityError):
            repo.restore("disk", tmp_path / "out.img")
        assert not (tmp_path / "out.img").exists()


def test_a_program_restores_nothing_from_a_history_that_went_backwards(tmp_path: Path) -> None:
    """The older data would come without a word: nobody reads the warnings of a program."""
    host = lamella.Host(lamella.machine_name("x"), "box", tmp_path / "state", tmp_path / "cache")
    key = lamella.key_file(ADMIN.value)
    lamella.create_repository(str(tmp_path / "R"), slots=[lamella.SlotWanted(key, True)], host=host)
    (tmp_path / "key").write_bytes(ADMIN.value)
    disk = image(tmp_path / "disk.img", "abc.0d")
    with lamella.open(str(tmp_path / "R"), keyfile=tmp_path / "key", host=host) as repo:
        repo.backup(disk)
        shutil.copytree(tmp_path / "R", tmp_path / "older")
        repo.backup(disk)
    shutil.rmtree(tmp_path / "R")
    (tmp_path / "older").rename(tmp_path / "R")
    with lamella.open(str(tmp_path / "R"), keyfile=tmp_path / "key", host=host) as repo:
        assert repo.problems
        for call in (
            lambda: repo.restore("disk", tmp_path / "out.img"),
            lambda: repo.backup(disk),
            lambda: repo.prune(keep_last=1),
            repo.verify,
        ):
            with pytest.raises(lamella.RolledBack):
                call()


def test_no_command_loads_the_short_way() -> None:
    for path in Path(lamella.__file__).parent.rglob("*.py"):
        if path.parent.name != "api" and path.name != "public.py":
            assert "lamella.api" not in path.read_text("utf-8"), path


def test_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create, back up, select, compare, restore and verify with nothing but public names."""
    monkeypatch.setenv("LAMELLA_REPO", "/nowhere")  # the interface does not look
    monkeypatch.setenv("LAMELLA_STATE_DIR", "/nowhere")
    host = lamella.Host(lamella.machine_name("x"), "box", tmp_path / "state", tmp_path / "cache")
    key = lamella.key_file(ADMIN.value)
    url = str(tmp_path / "vault")
    made = lamella.create_repository(url, slots=[lamella.SlotWanted(key, True)], host=host)
    disk = image(tmp_path / "disk.img", "abc.0d")
    before = disk.read_bytes()
    with lamella.open_repository(url, key=key, host=host, read_only=False) as repo:
        assert repo.repo_id == made.repo_id
        request = lamella.Request(None, lamella.source(str(disk), host=host))
        options = lamella.BackupOptions(documents={"notes": b"xyz"})
        first = lamella.plan_backup(repo, [request], options).execute()
        marks = lamella.fingerprint(repo)
        image(disk, "abx.0d")
        lamella.plan_backup(repo, [request]).execute()
        assert lamella.fingerprint(repo) != marks
    with lamella.open_repository(url, key=key, host=host) as repo:
        old, new = lamella.select(repo, [f"disk@{first.snapshot}", "disk"])
        assert lamella.compare(repo, old, new).changed_bytes > 0
        assert lamella.read_document(repo, old, "notes") == b"xyz"
        result = lamella.plan_restore(repo, old, tmp_path / "out.img").execute()
        assert result.compared_bytes == len(before)
        found = lamella.verify(repo, [old, new], lamella.VerifyOptions(level="full"))
        assert found.findings == []
        with pytest.raises(lamella.StoreRefused):
            lamella.plan_backup(repo, [request]).execute()
    assert (tmp_path / "out.img").read_bytes() == before
    with (
        pytest.raises(lamella.KeyRefused),
        lamella.open_repository(url, key=lamella.key_file(b"?" * 32), host=host),
    ):
        pass
    with pytest.raises(lamella.NoRepository), lamella.open_repository(str(tmp_path / "none"), key=key, host=host):
        pass
