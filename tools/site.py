"""The documentation as a site: `python -m tools.site OUT` builds it from docs/ with mkdocs-material (extra `docs`).

Guides and specifications are the files that are there. The reference is made from what the program itself says:
commands from the tree of options, the configuration from the table of its keys, Python from the list that a test holds.
A reader's browser fetches nothing from anywhere else.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from lamella.cli.arguments import COMMANDS, CommandParser, build
from tools.man import ENVIRONMENT, EXIT_STATUS
from tools.man_examples import EXAMPLES
from tools.man_topics import CONFIGURATION_TEXT, EXAMPLE, KEYS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SCHEMA = "lamella-1.schema.json"
API = ROOT / "tests" / "unit" / "public_api.txt"
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")

_GUIDES = (
    ("start", "First steps"),
    ("everyday", "Every day"),
    ("qubes", "Qubes OS"),
    ("kvm", "QEMU and Proxmox"),
    ("hosts", "Any host"),
    ("laptop", "Laptop"),
    ("destinations", "Destinations"),
    ("ceph-zfs", "Ceph and ZFS"),
    ("tracking", "What changed"),
    ("files", "Single files"),
    ("exports", "Exports"),
    ("instant", "Instant restore and drills"),
    ("fleet", "Many hosts"),
    ("coming", "Coming from another tool"),
    ("leaving", "Going away"),
    ("deleting", "Deleting"),
    ("copies", "Copies and mirrors"),
    ("damage", "Damage"),
    ("emergency", "Emergency"),
    ("scripts", "Scripts and Python"),
)
_EXPLANATION = (
    ("ARCHITECTURE", "Architecture"),
    ("FORMAT", "The format"),
    ("TREES", "The layout of trees"),
    ("THREATS", "Threats"),
    ("CONCURRENCY", "Concurrency"),
    ("PIPE", "The pipe protocol"),
    ("bench", "Measurements"),
    ("scale", "What grows with what"),
)


def main() -> int:
    """Build the site into the directory that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="directory for the site; what is in it is replaced")
    made = build_site(parser.parse_args().out)
    print(f"{sum(1 for _ in made.rglob('*.html'))} pages in {made}")
    return 0


def build_site(out: Path) -> Path:
    """Build the site into `out`. A page that links to nothing is an error."""
    with tempfile.TemporaryDirectory(prefix="lamella-site-") as folder:
        place = Path(folder)
        (place / "docs").mkdir()
        for name, text in pages().items():
            path = place / "docs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        (place / "mkdocs.yml").write_text(json.dumps(configuration(out.absolute()), indent=1), "utf-8")  # YAML has JSON
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(place / "mkdocs.yml")]
        # With --quiet mkdocs does not count its warnings, and --strict refuses nothing.
        environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError("\n".join(line for line in done.stderr.splitlines() if not line.startswith("INFO")))
    shutil.copy(DOCS / SCHEMA, out / "reference" / SCHEMA)
    return out


def configuration(out: Path) -> dict[str, object]:
    """What mkdocs is told."""
    theme = {
        "name": "material",
        "font": False,
        "features": ["navigation.tabs", "navigation.indexes", "content.code.copy"],
        "palette": [
            {"media": "(prefers-color-scheme: light)", "scheme": "default"},
            {"media": "(prefers-color-scheme: dark)", "scheme": "slate"},
        ],
    }
    reference = [{f"lamella {name}": f"reference/commands/{name}.md"} for name in COMMANDS]
    decisions = [f"decisions/{path.name}" for path in sorted((DOCS / "decisions").glob("[0-9]*.md"))]
    return {
        "site_name": "Lamella",
        "site_dir": str(out),
        "docs_dir": "docs",
        "use_directory_urls": False,
        "theme": theme,
        "plugins": ["search"],
        "markdown_extensions": ["tables", "toc", "attr_list", "pymdownx.superfences"],
        "validation": {"links": {"anchors": "warn", "unrecognized_links": "warn"}, "omitted_files": "warn"},
        "nav": [
            {"Lamella": "index.md"},
            {"Tutorial": "guide/tutorial.md"},
            {"Guides": ["guide/README.md", *({title: f"guide/{name}.md"} for name, title in _GUIDES)]},
            {
                "Explanation": [
                    *({title: f"{name}.md"} for name, title in _EXPLANATION),
                    {"Decisions": ["decisions/README.md", *decisions]},
                ]
            },
            {
                "Reference": [
                    {"Commands": reference},
                    {"Configuration": "reference/configuration.md"},
                    {"Environment": "reference/environment.md"},
                    {"Exit codes": "reference/exit-codes.md"},
                    {"JSON": "reference/json.md"},
                    {"Python": "reference/python.md"},
                ]
            },
        ],
    }


def pages() -> dict[str, str]:
    """Path below the site's documents -> Markdown."""
    found = {path.relative_to(DOCS).as_posix(): path.read_text("utf-8") for path in DOCS.rglob("*.md")}
    found["index.md"] = (ROOT / "README.md").read_text("utf-8").replace("](docs/", "](")
    found = {name: _inside(name, text, found) for name, text in found.items()}
    for name, parser in _commands(build()):
        found[f"reference/commands/{name}.md"] = _command(name, parser)
    found["reference/configuration.md"] = _configuration()
    found["reference/environment.md"] = _table("Environment", "Variable", ENVIRONMENT)
    exits = {str(code): text for code, text in EXIT_STATUS.items()}
    found["reference/exit-codes.md"] = _table("Exit codes", "Code", exits)
    found["reference/json.md"] = _json()
    found["reference/python.md"] = _python()
    return found


def _inside(page: str, text: str, known: Collection[str]) -> str:
    """The page with links to files outside of the site as plain text."""

    def kept(match: re.Match[str]) -> str:
        label, target = match.groups()
        place, _, _ = target.partition("#")
        if re.match(r"[a-z]+:", target) or not place:
            return match.group()
        parts: list[str] = list(Path(page).parent.parts)
        for part in Path(place).parts:
            if part == "..":
                del parts[-1:]
            else:
                parts.append(part)
        return match.group() if "/".join(parts) in known else label

    return _LINK.sub(kept, text)


# --- reference -------------------------------------------------------------------------------------------------------


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, CommandParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                below.fill()
                yield name, below


def _command(name: str, parser: CommandParser) -> str:
    lines = [f"# lamella {name}", "", f"{parser.description or ''}", ""]
    for text, line in EXAMPLES[name]:
        lines += [f"{text}:", "", f"    {line}", ""]
    lines += ["```text", parser.format_help().rstrip(), "```", ""]
    for action, below in _commands(parser):
        lines += [f"## lamella {name} {action}", "", "```text", below.format_help().rstrip(), "```", ""]
    return "\n".join(lines)


def _configuration() -> str:
    lines = ["# Configuration", "", CONFIGURATION_TEXT, "", "```toml", EXAMPLE.rstrip(), "```", ""]
    for table, keys in KEYS.items():
        lines += [f"## {table}", "", "| Key | Meaning |", "|---|---|"]
        lines += [f"| `{key}` | {_cell(text)} |" for key, text in keys.items()]
        lines.append("")
    return "\n".join(lines)


def _table(title: str, head: str, rows: dict[str, str]) -> str:
    cells = [f"| `{name}` | {_cell(text)} |" for name, text in rows.items()]
    return "\n".join([f"# {title}", "", f"| {head} | Meaning |", "|---|---|", *cells, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _json() -> str:
    schema = json.loads((DOCS / SCHEMA).read_text("utf-8"))
    lines = ["# JSON", "", schema["description"], "", f"The schema: <a href='{SCHEMA}'>{SCHEMA}</a>.", ""]
    for name, found in schema["$defs"].items():
        required = set(found.get("required", ()))
        lines += [f"## {name}", "", "| Key | Type | Always |", "|---|---|---|"]
        for key, value in found.get("properties", {}).items():
            kind = value.get("type", "any")
            words = kind if isinstance(kind, str) else " or ".join(kind)
            lines.append(f"| `{key}` | {words} | {'yes' if key in required else ''} |")
        lines.append("")
    return "\n".join(lines)


def _python() -> str:
    text = (
        "The names that `import lamella` gives, and nothing else, stay from version to version. The script in"
        " [Scripts and Python](../guide/scripts.md#python) shows the short way."
    )
    return "\n".join(["# Python", "", text, "", "```python", API.read_text("utf-8").rstrip(), "```", ""])


if __name__ == "__main__":
    sys.exit(main())
