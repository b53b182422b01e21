"""The published schema of --json against what the commands really print, in both directions.

The fears of who writes a script: a key that the schema promises is missing; a key has another type than it says; a
command prints something that the schema does not know.
"""

from __future__ import annotations

import copy
import json
import os
import shlex
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from lamella.cli.arguments import COMMANDS
from tests.cli.program import ROOT, Lamella

SCHEMA = json.loads((ROOT / "docs" / "lamella-1.schema.json").read_text("utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)
WITHOUT = {"completion", "serve"}
"""These print no document."""
ELSEWHERE = {"files", "drill", "mount", "qubes", "ui", "monitor"}
"""A success needs a guest, a mount, dom0, a browser, or a file system with checkpoints: here only errors are seen."""

Document = dict[str, Any]


STORY = """
list
init -n
init --recovery-sheet {top}/sheet
backup -n {top}/images
= run -n p
= run p
tag web@latest first
backup other={top}/other.img /none.img --document a={top}/key
backup /none.img
= backup {top}/images -r r
list
info
info web --sizes
info --sizes
diff web@^first
diff web@^first --live
verify web --level sample
verify web --level full
verify web --level source
verify --budget 1GiB
restore web --to {top}/out/a.img -n
restore web --to {top}/out/a.img
restore --all --to {top}/out/all/
restore other --document a --to {top}/out/document
rename db data
check
doctor
= doctor --forget-host -n
key list
key add --new-keyfile {top}/key2 --generate
key export-domain web --to {top}/domain
repair -n
copy --to {top}/C --to-keyfile {top}/key
mirror --to {top}/M
import wyng {top}/plain --list
import wyng {top}/plain -n
import wyng {top}/plain copy.img
export --all {top}/out/images
export web --to {top}/out/e.raw
delete web@latest -y
prune --keep-last 1 -n
prune --keep-last 1 -y
= status
= status --notify p
= report --html {top}/out/report.html
= config show
= config validate
= config path
= schedule install --print p
= fleet add web -r {top}/R --keyfile {top}/key --quota 1G
= fleet refresh
= fleet status
= fleet list
= fleet list web
= fleet search
= fleet mirror
= setup -y --name s -r {top}/S --when never --tell nobody {top}/images -n
= setup -y --name s -r {top}/S --when never --tell nobody {top}/images
= drill web -r {top}/none
= files list web -r {top}/none
= monitor -r {top}/none
= mount {top}/none -r {top}/none
= qubes list -r {top}/none
= ui --listen nowhere -r {top}/none
"""
"""From an empty disk on. A line with = says itself which repository it means."""


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """What one command after the other printed."""
    top = tmp_path_factory.mktemp("top")
    for name in ("home", "etc", "images", "out", "out/all", "out/images"):
        (top / name).mkdir()
    for name in ("web", "db"):
        (top / "images" / f"{name}.img").write_bytes(os.urandom(1 << 20) + bytes(1 << 20))
    (top / "other.img").write_bytes(os.urandom(1 << 20))
    with tarfile.open(ROOT / "tests" / "imports" / "wyng" / "plain.tar.xz") as tar:
        tar.extractall(top, filter="data")
    (top / "key").write_bytes(os.urandom(32))
    (top / "key").chmod(0o600)
    (top / "etc" / "p.toml").write_text(
        f'[repositories.r]\nurl = "{top}/R"\nkeyfile = "{top}/key"\n[profiles.p]\nsources = ["{top}/images"]\n'
        'repositories = ["r"]\nprune = { keep_last = 9 }\n'
    )
    env = {"HOME": str(top / "home"), "LAMELLA_CONFIG": str(top / "etc")}
    env |= {f"LAMELLA_{word}_DIR": str(top / word.lower()) for word in ("STATE", "CACHE")}
    lamella = Lamella(env)
    lamella.ok("init", "-q", "-r", top / "C", "--keyfile", top / "key")
    found = []
    for line in STORY.strip().splitlines():
        words = shlex.split(line.format(top=top))
        words = words[1:] if words[0] == "=" else [*words, "--keyfile", f"{top}/key", "-r", f"{top}/R"]
        found.append(lamella.run("--json", *words).json)
    return found


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert set(SCHEMA["$defs"]) == set(COMMANDS) - WITHOUT


def test_what_commands_print_is_as_the_schema_says(documents: list[Document]) -> None:
    wrong = [
        f"{document['command']}: {'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        for document in documents
        for error in VALIDATOR.iter_errors(document)
    ]
    assert wrong == []


def test_every_command_was_seen(documents: list[Document]) -> None:
    done = {document["command"] for document in documents if "error" not in document}
    assert done == set(COMMANDS) - WITHOUT - ELSEWHERE
    assert {document["command"] for document in documents} == set(COMMANDS) - WITHOUT
    assert any("error" in document for document in documents)


def unknown(value: object, schema: Document, place: str) -> Iterator[str]:
    """Keys of a document that the schema does not name."""
    if isinstance(value, dict) and "properties" in schema:
        for key, inner in value.items():
            if key not in schema["properties"]:
                yield f"{place}/{key}"
            else:
                yield from unknown(inner, schema["properties"][key], f"{place}/{key}")
    elif isinstance(value, list) and "items" in schema:
        for inner in value:
            yield from unknown(inner, schema["items"], place)


def test_the_schema_knows_every_key(documents: list[Document]) -> None:
    found = set()
    for document in documents:
        if "error" not in document:
            inner = {key: value for key, value in document.items() if key not in ("schema", "command")}
            found |= set(unknown(inner, SCHEMA["$defs"][document["command"]], document["command"]))
    assert found == set()


@pytest.mark.parametrize("command", ["list", "backup", "verify", "status", "prune"])
def test_a_document_that_breaks_the_promise_is_found(documents: list[Document], command: str) -> None:
    whole = next(one for one in documents if one["command"] == command and "error" not in one and "dry_run" not in one)
    assert VALIDATOR.is_valid(whole)
    for key in SCHEMA["$defs"][command]["required"]:
        less = copy.deepcopy(whole)
        del less[key]
        assert not VALIDATOR.is_valid(less), key
        wrong = copy.deepcopy(whole)
        wrong[key] = {"of": "another type"}
        assert not VALIDATOR.is_valid(wrong), key
    assert not VALIDATOR.is_valid({**whole, "schema": "lamella/2"})
    assert not VALIDATOR.is_valid({**whole, "command": "nonsense"})
    assert VALIDATOR.is_valid({**whole, "a_later_key": 1})
