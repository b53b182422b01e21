"""One backup in a process of its own: `python -m tests.fault.together REPO PLACE MACHINE hold|go IMAGE`.

It prints what became of it as JSON; with `hold` it says when it reads and goes on when its input has a line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lamella.base.errors import LamellaError
from lamella.operations.backup.story import BackupOptions, Request, plan_backup
from lamella.repository.repository import Repository
from lamella.sources.registry import open_source
from lamella.stores.local.store import LocalStore
from lamella_kit.scripted_source import DisturbedSource
from tests.fault.world import SECRET, host_at


def run(repo_path: str, place: str, machine: str, hold: str, image: str) -> dict[str, object]:
    """Back up one image; with `hold` "hold" the first read waits for a line on the input."""
    host = host_at(Path(place), machine)

    def wait_once(number: int, offset: int) -> None:
        if number == 1 and hold == "hold":
            say({"reading": image})
            sys.stdin.readline()

    source = DisturbedSource(open_source(image, machine=host.machine), wait_once)
    with Repository.open(LocalStore.open(repo_path), SECRET, host) as repo:
        result = plan_backup(repo, [Request(None, source)], BackupOptions(chunk_log2=16)).execute()
    return {"snapshot": result.snapshot, "complete": result.complete}


def say(value: dict[str, object]) -> None:
    print(json.dumps(value), flush=True)


def main(words: list[str]) -> None:
    try:
        say(run(*words))
    except LamellaError as error:
        say({"error": type(error).__name__, "exit": error.exit_code, "message": error.message})


if __name__ == "__main__":
    main(sys.argv[1:])
