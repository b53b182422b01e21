"""`python -m tests.torture`: random histories, until something is wrong or the time is over.

python -m tests.torture --minutes 60             # from the seed of the moment
python -m tests.torture --seed 7 --histories 1   # one history, by its seed
python -m tests.torture --replay FILE            # steps as they were printed
python -m tests.torture --deltas DIRECTORY       # sources in an empty directory on Btrfs or XFS, saved with differences
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from tests.torture.faults import FAULTS, put_back
from tests.torture.run import Complaint, Figures, Torture
from tests.torture.shrink import shrunk
from tests.torture.steps import History, draw


@contextlib.contextmanager
def in_memory() -> Iterator[Path]:
    """A place that is gone afterwards, in memory where there is room: every command flushes what it writes."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="lamella-torture-", dir=memory) as name:
        yield Path(name) / "world"


def told(history: History, figures: Figures, *, log: bool = False, tracked: Path | None = None) -> list[Complaint]:
    """Carry out one history, from its beginning."""
    with in_memory() as place:
        return Torture(history, place, figures, print if log else None, tracked).run()


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="the first seed (default: the moment)")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--histories", type=int, default=1 << 30)
    parser.add_argument("--fault", choices=sorted(FAULTS), help="put this fault back, to see that it is found")
    parser.add_argument("--replay", type=Path, help="carry out the steps of this file, and say all of them")
    parser.add_argument("--keep-going", action="store_true", help="go on after something wrong")
    parser.add_argument("--deltas", type=Path, metavar="DIRECTORY", help="where the sources lie; emptied each time")
    parser.add_argument("--verbose", action="store_true", help="say every step")
    args = parser.parse_args(words)
    figures = Figures()
    with put_back(args.fault):
        if args.replay:
            found = told(History.parse(args.replay.read_text()), figures, log=True, tracked=args.deltas)
            print(*found, sep="\n")
            return int(bool(found))
        return _searched(args, figures)


def _searched(args: argparse.Namespace, figures: Figures) -> int:
    first = int(time.time()) if args.seed is None else args.seed
    ends = time.monotonic() + args.minutes * 60
    wrong = False
    while figures.histories < args.histories and time.monotonic() < ends:
        history = draw(first + figures.histories)
        found = told(history, figures, log=args.verbose, tracked=args.deltas)
        if found:
            wrong = True
            print(f"seed {history.seed}:", *found, sep="\n  ", flush=True)
            small, text = shrunk(history, found[0], partial(told, tracked=args.deltas))
            print(f"shortened to (replay it with --replay FILE):\n{small}\n{text}\n", flush=True)
            if not args.keep_going:
                break
    print(f"from seed {first}: {figures}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
