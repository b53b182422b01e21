"""Writes tests/slow.txt: the tests that `make test` leaves to `make test-all`, from how long they took.

    make test-all PYTEST_ARGS=--junitxml=took.xml
    python3 tools/slow_tests.py took.xml

A test is on the list if any of its cases took longer than a second and a half: what is left takes two processors less
than ten minutes. Names that the file does not know stay as they are on the list. Standard library only.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "slow.txt"
SECONDS = 1.5


def main(places: list[str]) -> int:
    """Read what pytest wrote, and write the list."""
    took: dict[str, float] = {}
    for place in places:
        for case in ElementTree.parse(place).getroot().iter("testcase"):
            name = name_of(case.get("classname", ""), case.get("name", ""))
            if name and not name.startswith(("tests/guest/", "tests/unit/")):  # the first have a list of their own
                took[name] = max(took.get(name, 0.0), float(case.get("time", "0")))
    before = LIST.read_text("utf-8").split() if LIST.exists() else []
    kept = {name for name in before if name not in took}
    slow = sorted(kept | {name for name, seconds in took.items() if seconds > SECONDS})
    LIST.write_text("".join(f"{name}\n" for name in slow), "utf-8")
    print(f"{len(slow)} tests in {LIST.relative_to(ROOT)}")
    return 0


def name_of(classname: str, name: str) -> str:
    """`FILE::CLASS::TEST` without parameters, from what JUnit calls class and name; empty for a file that is gone."""
    parts = classname.split(".")
    for count in range(len(parts), 0, -1):
        path = Path(*parts[:count]).with_suffix(".py")
        if (ROOT / path).is_file():
            return "::".join([path.as_posix(), *parts[count:], name.partition("[")[0]])
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
