"""The public interface: what it is called, what it takes, and that it costs nothing until it is used."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import lamella
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
    assert known == lamella._HOME_OF


def test_nothing_inside_uses_the_public_names() -> None:
    """They live above every room: whoever took one from here would look upward, unseen by import-linter."""
    for path in Path(lamella.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
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
    assert imported_after("import lamella\nlamella.LamellaError") == {"lamella", "lamella.base", "lamella.base.errors"}


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
