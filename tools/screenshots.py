"""Screenshots of the report and of the local page, in both themes: python -m tools.screenshots DIRECTORY

A machine with three volumes, one of which was not saved. Needs Chromium.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from tests.cli.browser import Browser
from tests.cli.page_server import serving
from tests.cli.program import Lamella

WIDTH, HEIGHT = 1000, 900
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


def main(target: Path) -> None:
    """Make them."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lamella-screenshots-") as folder:
        base = Path(folder)
        lamella = machine(base)
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
    main(Path(sys.argv[1]))
