"""How much code each command loads: a ceiling for every command, which only ever gets lower.

What dom0 loads is what its owner has to trust. `python tools/load.py --modules` shows where the lines are.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import load
from tools.load import Load, Weight, closure, listed, total, weigh

# Command -> code lines and statements of the modules that a real run loads, and code lines of the closure of imports.
# A ceiling is lowered when code went. Raising one needs a decision record that names the modules and their lines.
CEILINGS = {
    "list": (Weight(4_995, 4_455), 4_555),
    "restore": (Weight(6_749, 6_042), 5_537),
    "backup": (Weight(9_479, 8_413), 7_943),
    "qubes backup": (Weight(10_006, 8_934), 8_480),
    "qubes restore": (Weight(8_178, 7_356), 6_600),
    "qubes restore --paranoid": (Weight(8_735, 7_788), 7_668),
}


@pytest.fixture(scope="module")
def loads() -> dict[str, Load]:
    return {found.command: found for found in load.measure()}


@pytest.mark.parametrize("command", CEILINGS)
def test_a_run_loads_no_more_than_its_ceiling(loads: dict[str, Load], command: str) -> None:
    ceiling, _ = CEILINGS[command]
    found = total(loads[command].run)
    assert found.code_lines <= ceiling.code_lines, f"{command}: {found}\n{listed(loads[command].run)}"
    assert found.statements <= ceiling.statements, f"{command}: {found}\n{listed(loads[command].run)}"


@pytest.mark.parametrize("command", CEILINGS)
def test_the_closure_of_imports_is_no_more_than_its_ceiling(loads: dict[str, Load], command: str) -> None:
    _, ceiling = CEILINGS[command]
    found = total(loads[command].closure)
    assert found.code_lines <= ceiling, f"{command}: {found}\n{listed(loads[command].closure)}"


def test_a_paranoid_restore_does_not_look_into_packs(loads: dict[str, Load]) -> None:
    found = loads["qubes restore --paranoid"]
    packs = {f"lamella.packs.{name}" for name in ("packs", "blobmap", "contents", "heads", "segments", "census")}
    decoders = {"lamella.format.zstd", "lamella.format.zstd_provider"}
    assert {"lamella.packs.blobmap", "lamella.packs.contents"} <= loads["qubes restore"].run, "which looks into them"
    assert not (packs | decoders) & (found.run | found.closure)


def test_a_backup_without_a_change_map_loads_nothing_about_change_maps(loads: dict[str, Load]) -> None:
    maps = {"lamella.base.chunkset", "lamella.base.delta", "lamella.operations.backup.mapped"}
    for command in ("backup", "qubes backup"):
        assert not maps & (loads[command].run | loads[command].closure)


def test_every_run_loads_at_least_the_closure_of_the_command_line(loads: dict[str, Load]) -> None:
    for found in loads.values():
        assert closure("lamella.cli.main") <= found.run


def test_blanks_comments_and_docstrings_weigh_nothing() -> None:
    text = '"""Two\nlines."""\n\n# why\nX = (\n    1,\n)  # here\n\n\n'
    text += 'def f() -> str:\n    """What."""\n    return """a\n\nb"""\n'
    assert weigh(text) == Weight(code_lines=7, statements=3)


def test_long_lines_hide_no_statement() -> None:
    assert weigh("a = 1; b = 2; c = 3\n") == Weight(code_lines=1, statements=3)


def test_the_closure_follows_what_runs_at_import(tmp_path: Path) -> None:
    files = {
        "__init__.py": "",
        "a.py": "import os\nfrom typing import TYPE_CHECKING\nfrom lamella.pack import b\n"
        "if TYPE_CHECKING:\n    from lamella import types_only\nelse:\n    import lamella.instead\n"
        "def later() -> None:\n    from lamella import late\n",
        "pack/__init__.py": "from lamella.below import name\n",
        "pack/b.py": "class Inner:\n    import lamella.inner\n",
        **{f"{name}.py": "" for name in ("types_only", "instead", "late", "below", "inner", "other")},
    }
    (tmp_path / "lamella/pack").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / "lamella" / name).write_text(text)
    found = closure("lamella.a", source=tmp_path)
    names = {name.removeprefix("lamella").removeprefix(".") for name in found}
    assert names == {"", "a", "instead", "pack", "pack.b", "below", "inner"}
