"""Screenshots of the report, of the local page and of a terminal: python -m tools.screenshots DIRECTORY

A machine with three volumes, one of which was not saved. Needs Chromium, but for the terminal: a drawing of the text
that the commands wrote at 80 columns, for both themes (python -m tools.screenshots DIRECTORY terminal).
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from tests.cli.browser import Browser
from tests.cli.page_server import serving
from tests.cli.program import Lamella, Terminal

WIDTH, HEIGHT = 1000, 900
COLUMNS = 80
_COLUMN, _LINE, _EDGE = 8.43, 18, 12
"""Pixels of a monospaced letter of 14 pixels, of a line, and around the text."""
_TERMINAL = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img" aria-label="{label}">
<style>
 rect {{ fill: #fcfcfa; stroke: #c8c8c4 }}
 text {{ fill: #222; font: 14px ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre }}
 .typed {{ font-weight: bold }}
 @media (prefers-color-scheme: dark) {{ rect {{ fill: #1b1c1e; stroke: #3a3b3e }} text {{ fill: #e4e4e0 }} }}
</style>
<rect x="0.5" y="0.5" width="{inner:.0f}" height="{low}" rx="6"/>
{lines}
</svg>
"""
_PROFILE = """\
[repositories.nas]
url = "{base}/nas"
keyfile = "{base}/key"
[profiles.nightly]
sources = ["{base}/images/*.img"]
repositories = ["nas"]
[profiles.nightly.notify]
command = "true"
"""


def machine(base: Path) -> Lamella:
    """Three images, of which one disappears before the last run."""
    (base / "images").mkdir()
    for name, size in (("mail", 6), ("web", 3), ("build", 2)):
        (base / "images" / f"{name}.img").write_bytes(os.urandom(size << 20))
    (base / "key").write_bytes(os.urandom(32))
    (base / "key").chmod(0o600)
    (base / "config.toml").write_text(_PROFILE.format(base=base))
    env = {f"LAMELLA_{name}_DIR": str(base / name.lower()) for name in ("STATE", "CACHE")}
    made = Lamella({**env, "LAMELLA_CONFIG": str(base / "config.toml"), "LAMELLA_REPO": "nas"})
    made.ok("init", "-q")
    for _ in range(3):
        with (base / "images/mail.img").open("r+b") as file:
            file.write(os.urandom(1 << 20))
        made.ok("run", "nightly")
    (base / "images/build.img").unlink()
    made.run("backup", base / "images/mail.img", base / "images/build.img")
    return made


def terminal(lamella: Lamella, commands: Sequence[Sequence[str]]) -> str:
    """A drawing (SVG) of the commands and of what they leave on a terminal of 80 columns."""
    lines: list[str] = []
    for words in commands:
        with Terminal(words, {**lamella.env, "COLUMNS": str(COLUMNS)}) as shown:
            shown.end()
        lines += [f"$ lamella {' '.join(words)}", *screen(shown.seen), ""]
    width, height = COLUMNS * _COLUMN + 2 * _EDGE, (len(lines) - 1) * _LINE + 2 * _EDGE
    rows = [
        f'<text x="{_EDGE}" y="{_EDGE + 13 + number * _LINE}"'
        f"{' class=' + chr(34) + 'typed' + chr(34) if line.startswith('$ ') else ''}>{escape(line)}</text>"
        for number, line in enumerate(lines)
        if line
    ]
    label = "A terminal of 80 columns: " + ", ".join(" ".join(words) for words in commands)
    return _TERMINAL.format(
        width=width, height=height, inner=width - 1, low=height - 1, label=escape(label), lines="\n".join(rows)
    )


def screen(text: str) -> list[str]:
    """What is left on a terminal: of a line that was written over, the last writing; long lines go on below."""
    rows = [
        re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", row.rpartition("\r")[2]) for row in text.replace("\r\n", "\n").split("\n")
    ]
    rows = rows[:-1] if rows and not rows[-1] else rows
    return [row[start : start + COLUMNS] for row in rows for start in range(0, max(1, len(row)), COLUMNS)]


def main(target: Path, only: str = "") -> None:
    """Make them."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lamella-screenshots-") as folder:
        base = Path(folder)
        lamella = machine(base)
        (target / "terminal.svg").write_text(terminal(lamella, [["run", "nightly"], ["status"], ["list"]]))
        print(target / "terminal.svg")
        if only == "terminal":
            return
        lamella.ok("report", "--html", base / "report.html")
        with serving(lamella) as page, Browser(base) as browser:
            browser.go(page.url)
            address = page.url.partition("?")[0]
            for name, place in (
                ("page", address),
                ("volumes", f"{address}volumes"),
                ("report", f"file://{base}/report.html"),
            ):
                browser.go(place)
                for theme in ("light", "dark"):
                    shot = browser.look(dark=theme == "dark", width=WIDTH, height=HEIGHT, kind="webp")
                    made = target / f"{name}-{theme}.webp"
                    made.write_bytes(shot)
                    print(made)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
