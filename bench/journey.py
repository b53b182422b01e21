"""One repeat of everything: the image goes through its states, each program does each step beside the others.

Within a step the order of the programs is turned around in every other repeat, so that neither always finds the machine
as the other left it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.images import Patch, Workload
from bench.measure import Sample, Series, run, settle
from bench.plain import WORK
from bench.programs import Lamella, Peer, document, module_path, peers

Step = tuple[str, Callable[[], Sample]]

STARTS = 7
"""Starts of an interpreter measured in each repeat: they are short, and vary."""


class Journey:
    """Collects a series for each step, named `step/program`."""

    def __init__(self, work: Path, load: Workload, *, with_peers: bool = True) -> None:
        self.work = work
        self.load = load
        self.series: dict[str, Series] = {}
        self.lamella = Lamella(work)
        self.careful = Lamella(work, folder="careful", options=("--check-compression", "all"))
        self.peers: list[Peer] = peers(work) if with_peers else []
        self._packed = work / "dense.zst"
        self._target = work / "restored"
        self._repeat = 0

    def repeat(self, number: int) -> None:
        """Do every step once, the image in s0 before and after."""
        self._repeat = number
        self._warm()
        self.lamella.init()
        self.careful.init()
        for peer in self.peers:
            peer.init()
        self._full()
        self._unchanged()
        self._changed("1 %", self.load.to_s1)
        self._changed("8 MiB", self.load.to_s2)
        self._verify()
        self._restore()
        self._start()
        self.load.back.apply(self.load.image)

    # -- steps --------------------------------------------------------------------------------------------------------

    def _full(self) -> None:
        dense, packed, image = self.load.dense, self._packed, self.load.image
        words = 'zstd -q -f -3 "-T$1" "$2" -o "$3" && sync "$3"'

        def zstd(threads: int) -> Sample:
            packed.unlink(missing_ok=True)
            return run(["sh", "-c", words, "sh", str(threads), dense, packed])

        steps: list[Step] = [
            ("full/lamella", lambda: self._backup(self.lamella, "full")),
            ("full/lamella, every chunk decoded", lambda: self.careful.backup(image)),
            *self._peer_steps("full", lambda peer: peer.backup(image)),
        ]
        if shutil.which("zstd"):
            steps[1:1] = [("full/zstd -3 -T2", lambda: zstd(2)), ("full/zstd -3 -T1", lambda: zstd(1))]
        self._do(steps)
        programs: list[Lamella | Peer] = [self.lamella, *self.peers]
        for program in programs:
            size, objects = program.size()
            self.series[f"full/{program.name}"].facts |= {"repository_bytes": size, "objects": objects}
        if shutil.which("zstd"):
            self.series["full/zstd -3 -T2"].facts["repository_bytes"] = packed.stat().st_size

    def _unchanged(self) -> None:
        plain: list[Step] = [(f"unchanged/{word}", self._plain(word)) for word in WORK]
        self._do(
            [
                ("unchanged/lamella", lambda: self._backup(self.lamella, "unchanged")),
                *plain,
                *self._peer_steps("unchanged", lambda peer: peer.backup(self.load.image)),
            ]
        )

    def _plain(self, word: str) -> Callable[[], Sample]:
        return lambda: run([sys.executable, "-m", "bench.plain", word, self.load.dense], module_path())

    def _changed(self, step: str, patch: Patch) -> None:
        patch.apply(self.load.image)
        before = {program.name: program.size() for program in self.peers}
        self._do(
            [
                (f"{step}/lamella", lambda: self._backup(self.lamella, step)),
                *self._peer_steps(step, lambda peer: peer.backup(self.load.image)),
            ]
        )
        for program in self.peers:
            (bytes_now, objects), (bytes_before, _) = program.size(), before[program.name]
            facts = self.series[f"{step}/{program.name}"].facts
            facts |= {"stored_bytes": bytes_now - bytes_before, "objects": objects}

    def _verify(self) -> None:
        def verify(level: str) -> Sample:
            return self.lamella.call("verify", "--level", level)

        for level in ("structure", "sample", "full"):
            self._do([(f"verify {level}/lamella", lambda level=level: verify(level))])  # type: ignore[misc]
        self._do([("list/lamella", lambda: self.lamella.call("list"))])

    def _restore(self) -> None:
        out = self.work / "unpacked.raw"
        words = 'zstd -q -f -d "$1" -o "$2" && sync "$2"'

        def unpack() -> Sample:
            sample = run(["sh", "-c", words, "sh", self._packed, out])
            out.unlink()
            return sample

        def restore(program: Peer | Lamella) -> Sample:
            sample, restored = program.restore(self.load.image, self._target)
            self._same(restored)
            if program is self.lamella:
                said = document(sample)
                facts = {key: said[key] for key in ("bytes_written", "compared_bytes")}
                self.series.setdefault("restore/lamella", Series()).facts |= facts
            if self._target.is_dir():
                shutil.rmtree(self._target)
            else:
                self._target.unlink()
            return sample

        steps: list[Step] = [("restore/lamella", lambda: restore(self.lamella))]
        if self._packed.exists():
            steps.append(("restore/zstd -d", unpack))
        self._do([*steps, *self._peer_steps("restore", restore)])

    def _start(self) -> None:
        bare = [sys.executable, "-c", "pass"]
        for _ in range(STARTS):
            self._do(
                [
                    ("start/lamella --help", lambda: self.lamella.call("--help", opened=False)),
                    ("start/python -c pass", lambda: run(bare)),
                ],
                settled=False,
            )

    # -- the machinery ------------------------------------------------------------------------------------------------

    def _do(self, steps: Iterable[Step], *, settled: bool = True) -> None:
        ordered = list(steps)
        for name, work in reversed(ordered) if self._repeat % 2 else ordered:
            if settled:
                settle()
            sample = work()
            self.series.setdefault(name, Series()).samples.append(sample)
            if settled:
                print(f"  {self._repeat + 1}: {name:<40} {sample.wall:8.2f} s", file=sys.stderr, flush=True)

    def _peer_steps(self, step: str, work: Callable[[Peer], Sample]) -> list[Step]:
        return [(f"{step}/{peer.name}", lambda peer=peer: work(peer)) for peer in self.peers]  # type: ignore[misc]

    def _backup(self, program: Lamella, step: str) -> Sample:
        sample = program.backup(self.load.image)
        said = document(sample)
        row = said["volumes"][0]
        facts = {"metadata_bytes": said["metadata_bytes"], "mode": row["mode"], "objects": program.size()[1]}
        facts |= {key: row[key] for key in ("read_bytes", "stored_bytes", "changed_chunks", "new_chunks")}
        self.series.setdefault(f"{step}/{program.name}", Series()).facts |= facts
        return sample

    def _warm(self) -> None:
        """Bring the image and the dense copy into the page cache."""
        for path in (self.load.image, self.load.dense):
            run([sys.executable, "-m", "bench.plain", "read", path], module_path())

    def _same(self, restored: Path) -> None:
        """Raises BenchError unless the restored file equals the image: a fast wrong restore is no figure."""
        run(["cmp", self.load.image, restored])
