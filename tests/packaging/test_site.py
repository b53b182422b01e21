"""The documentation as a site: whole, without a dead link, and without anything that is fetched from elsewhere."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from lamella.cli.arguments import COMMANDS
from tests.features import require
from tools import site


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("mkdocs", find_spec("material") is not None, "mkdocs-material is not installed")
    return site.build_site(tmp_path_factory.mktemp("site"))


def test_every_command_guide_and_key_has_its_place(built: Path) -> None:
    assert {path.stem for path in (built / "reference/commands").glob("*.html")} == set(COMMANDS)
    guides = {path.stem for path in (site.DOCS / "guide").glob("*.md")} - {"README"}
    assert {path.stem for path in (built / "guide").glob("*.html")} - {"index"} == guides
    assert {name for name, _ in site._GUIDES} | {"tutorial"} == guides
    assert (built / "reference" / site.SCHEMA).read_bytes() == (site.DOCS / site.SCHEMA).read_bytes()
    text = (built / "guide/tutorial.html").read_text("utf-8")
    assert "lamella setup" in text and "<h1" in text
    assert "stale_after" in (built / "reference/configuration.html").read_text("utf-8")


def test_nothing_is_fetched_when_the_site_is_read(built: Path) -> None:
    """Scripts, styles, fonts and pictures: all of them lie beside the pages."""
    found = []
    for path in [*built.rglob("*.html"), *built.rglob("*.css")]:
        text = path.read_text("utf-8")
        found += re.findall(r"<(?:script|img|iframe|source)[^>]+src=\"?(?:https?:)?//[^\"> ]+", text)
        found += re.findall(r"<link(?![^>]+rel=\"?canonical)[^>]+href=\"?(?:https?:)?//[^\"> ]+", text)
        found += re.findall(r"url\(\"?(?:https?:)?//[^)]+|@import[^;]+//[^;]+", text)
    assert found == []


def test_a_dead_link_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require("mkdocs", find_spec("material") is not None, "mkdocs-material is not installed")
    made = {"index.md": "[gone](guide/tutorial.md#no-such-heading)\n", "guide/tutorial.md": "# Here\n"}
    monkeypatch.setattr(site, "pages", lambda: made)
    plain = {**site.configuration(tmp_path / "out"), "nav": ["index.md", "guide/tutorial.md"]}
    monkeypatch.setattr(site, "configuration", lambda out: plain)
    with pytest.raises(RuntimeError, match="no-such-heading"):
        site.build_site(tmp_path / "out")
