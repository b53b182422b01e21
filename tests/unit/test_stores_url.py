"""Which text names which store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lamella
from lamella.base.errors import NoRepository, UsageError
from lamella.base.trust import Sealed
from lamella.stores.url import SCHEMES, below, open_store


@pytest.mark.parametrize("form", ["{0}", "file:{0}", "file://{0}", "file://localhost{0}", "FILE:{0}", "{0}/"])
def test_a_path_and_a_file_url_name_a_directory(tmp_path: Path, form: str) -> None:
    place = tmp_path / "re:po %20"
    repo = form.format(place)
    with pytest.raises(NoRepository):
        open_store(repo)
    store = open_store(repo, create=True)
    store.put("a", Sealed(b"x"))
    assert (place / "a").read_bytes() == b"x"
    assert store.url == str(place)
    again = open_store(store.url, read_only=True)
    assert again.get("a") == b"x"
    assert not again.abilities.write


@pytest.mark.parametrize("repo", ["repo", "./repo", "./re:po", "user@host"])
def test_a_text_without_a_scheme_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store(repo, create=True).url == str(tmp_path / repo)
    assert (tmp_path / repo).is_dir()


@pytest.mark.parametrize(
    "repo",
    ["ftp://host/vault", "re:po", "host:/path", "user@host:path", ":x"],
)
@pytest.mark.parametrize("create", [True, False])
def test_an_unknown_scheme_is_refused_and_never_made_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo: str, create: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        open_store(repo, create=create)
    assert repr(repo.partition(":")[0]) in caught.value.message
    assert "./" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("repo", ["", "a\0b", "file:", "file:relative", "file://host/path", "file://host"])
def test_what_names_no_place_is_refused(repo: str) -> None:
    with pytest.raises(UsageError):
        open_store(repo)


def test_creating_read_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        open_store(str(tmp_path / "repo"), create=True, read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_no_store_is_imported_before_it_is_used() -> None:
    modules = {target.partition(":")[0] for target in SCHEMES.values()}
    program = "import sys, lamella.stores.url; print(*[name for name in sys.modules if name.startswith('lamella.')])"
    loaded = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(lamella.__path__[0]).parent)},
    )
    assert "lamella.stores.url" in loaded.stdout.split()
    assert modules.isdisjoint(loaded.stdout.split())


@pytest.mark.parametrize(
    ("repo", "found"),
    [
        ("/srv/backup", "/srv/backup/laptop"),
        ("/srv/backup//", "/srv/backup/laptop"),
        ("/", "/laptop"),
        ("/srv/what?", "/srv/what?/laptop"),
        ("s3://bucket", "s3://bucket/laptop"),
        ("s3://bucket/place/", "s3://bucket/place/laptop"),
        ("S3://bucket/place?region=x&append-only=yes", "S3://bucket/place/laptop?region=x&append-only=yes"),
        ("s3://bucket/?endpoint=http://h:1/", "s3://bucket/laptop?endpoint=http://h:1/"),
    ],
)
def test_a_place_below(repo: str, found: str) -> None:
    assert below(repo, "laptop") == found
