"""A release: its notes out of the change fragments, and its version in the one place that names it.

`python tools/release.py notes` prints what is unreleased; `python tools/release.py make VERSION` writes the version
into pyproject.toml, puts the notes on top of CHANGELOG.md and moves the fragments to `changes/VERSION/`. Neither
commits.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("Security", "Change", "New", "Enhancement", "Fix")
"""Kinds of fragments, in the order of the notes: what users must act upon first comes first."""
HEADINGS = {
    "Security": "Security",
    "Change": "Changes that need your attention",
    "New": "New",
    "Enhancement": "Enhancements",
    "Fix": "Fixes",
}
_HEAD = "# Changes\n"
_VERSION = re.compile(r'(?m)^version = "([^"]+)"$')


class BadFragment(ValueError):
    """A fragment that is not as changes/README.md says."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """One change, as users will read it."""

    path: Path
    kind: str
    title: str
    text: str


def fragments(root: Path) -> list[Fragment]:
    """The unreleased ones, by file name. Raises BadFragment."""
    return [_parse(path) for path in sorted((root / "changes/unreleased").glob("*.md"))]


def _parse(path: Path) -> Fragment:
    first, _, rest = path.read_text("utf-8").partition("\n")
    kind, colon, title = first.partition(": ")
    if not colon or kind not in KINDS or not title.strip():
        raise BadFragment(f"{path}: the first line is no `Kind: what changed` with one of {', '.join(KINDS)}")
    return Fragment(path, kind, title.strip(), rest.strip())


def notes(version: str, day: str, found: list[Fragment]) -> str:
    """The section of one release in CHANGELOG.md."""
    lines = [f"## {version} ({day})", ""]
    for kind in KINDS:
        lines += _section(HEADINGS[kind], [one for one in found if one.kind == kind])
    return "\n".join(lines)


def _section(heading: str, found: list[Fragment]) -> Iterator[str]:
    if found:
        yield from (f"### {heading}", "")
    for one in found:
        paragraphs = [f"  {line}".rstrip() for line in one.text.split("\n")] if one.text else []
        yield from (f"- **{one.title[0].upper()}{one.title[1:]}.**", *paragraphs, "")


def make(root: Path, version: str, day: str) -> list[Path]:
    """Turn what is unreleased into a release; returns the files that were written. Raises BadFragment, ValueError."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ValueError(f"{version} is no version such as 1.2.0")
    project, log = root / "pyproject.toml", root / "CHANGELOG.md"
    found, kept = fragments(root), root / "changes" / version
    if not found:
        raise ValueError("nothing is unreleased")
    if kept.exists():
        raise ValueError(f"{version} was released: {kept} exists")
    older = log.read_text("utf-8").removeprefix(_HEAD).lstrip("\n") if log.exists() else ""
    log.write_text(f"{_HEAD}\n{notes(version, day, found)}\n{older}".rstrip("\n") + "\n", "utf-8")
    project.write_text(_VERSION.sub(f'version = "{version}"', project.read_text("utf-8"), count=1), "utf-8")
    kept.mkdir()
    for one in found:
        one.path.rename(kept / one.path.name)
    return [log, project, kept]


def main(words: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("notes")
    actions.add_parser("make").add_argument("version")
    args = parser.parse_args(words)
    day = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    try:
        if args.action == "notes":
            print(notes("unreleased", day, fragments(ROOT)))
        else:
            print("\n".join(map(str, make(ROOT, args.version, day))))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
