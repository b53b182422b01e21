"""The same bytes to both readers, `lamella` and `rescue.py`: they accept and refuse the same, and read the same.

`python -m tests.fuzz.two_readers --cases 100000 --seed 1` runs long; a seed that is printed runs alone with
`--seed N --cases 1`. Each case is a repository, a record, or an encoded blob, by its number.

Where an emergency reader may do more (docs/FORMAT.md 5, 8), it may do more here: it uses blobs of a pack whose hint or
length is wrong, and what it understands of a chain after a required record that nobody knows.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from backports import zstd

from lamella import rescue
from lamella.base.errors import IntegrityError, LamellaError, UnknownFormat
from lamella.base.trust import Opened
from lamella.crypto.slots import key_file
from lamella.format import compression, known
from lamella.format.container import Kind
from lamella.format.records import RawRecord
from lamella.history.latest import latest
from lamella.memory.host import Host, machine_name
from lamella.operations.shared.selection import Selected, select
from lamella.operations.shared.streaming import read_document
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from tests.fuzz.mutations import KEYFILE, Mutator, build, change, records_of, repository
from tests.unit import rescue_writer as rw

# One decoder for both: what the blocks of a frame may hold, versions of zstd judge differently.
rescue.zstd_decoder = lambda: partial(rescue.decode_with_module, zstd, "backports.zstd")  # type: ignore[assignment]
SECONDS, MEBIBYTES = 20, 512
"""What one case may take, at most: wall time on a busy machine, and memory beyond what the process had."""
REFUSED = "refused"
SALVAGED = "what is whole in it is used"
_SHOWN_EVERY = 5000
Read = tuple[int, str] | str
"""The size and a hash of what was read, or REFUSED."""


class Seen(NamedTuple):
    """A snapshot as a reader shows it, and what comes out of it."""

    volume: str
    name: str
    size: int
    time_ms: int
    consistency: int
    tags: tuple[str, ...]
    usable: bool
    claim: bool
    content: Read
    documents: tuple[Read, ...]


@dataclass
class View:
    """What a reader makes of a repository."""

    refused: bool = False
    missing: bool = False
    """The history is not whole, which every command says (exit code 21)."""
    snapshots: dict[bytes, Seen] = field(default_factory=dict)
    latest: dict[str, frozenset[bytes]] = field(default_factory=dict)
    partly: bool = False
    """The reader stopped where FORMAT lets an emergency reader go on."""
    salvages: bool = False
    """The reader may use what FORMAT lets an emergency reader use: of data,"""
    salvages_history: bool = False
    """and of the segments of checkpoints."""


def digest(pieces: Iterable[tuple[int, bytes]], size: int) -> Read:
    """Of data at its offsets; zeros do not count, so that holes and zeros are the same."""
    found = hashlib.sha256()
    for at, data in pieces:
        if any(data):
            found.update(at.to_bytes(8, "little") + hashlib.sha256(data).digest())
    return size, found.hexdigest()


# -- the main reader ---------------------------------------------------------------------------------------------------


def by_lamella(objects: dict[str, bytes], place: Path) -> View:
    """What `lamella` reads, on a host that knows nothing."""
    view = View()
    host = Host(machine_name("fuzz"), "fuzz", place / "state", place / "cache")
    try:
        with Repository.open(MemoryStore(objects), key_file(KEYFILE), host, whole=True) as repo:
            view.missing = bool(repo.problems)
            view.partly = bool(repo.catalogue.unread)
            for one in select(repo, []):
                view.snapshots[one.snapshot.ref.encode()] = _seen(repo, one)
            for volume in repo.catalogue.volumes.values():
                counting = [one for one in volume.snapshots if one.counts]
                view.latest[volume.volume_id.hex()] = frozenset(one.ref.encode() for one in latest(counting)[:1])
    except LamellaError:
        view.refused = True
    return view


def _seen(repo: Repository, one: Selected) -> Seen:
    added = one.snapshot.added
    documents = tuple(_document(repo, one, document.name) for document in added.documents)
    return Seen(
        one.volume_name, added.name, added.size, added.time_ms, added.consistency, tuple(sorted(one.snapshot.tags)),
        added.usable, one.snapshot.claim, _content(repo, one), documents,
    )  # fmt: skip


def _content(repo: Repository, one: Selected) -> Read:
    try:
        repo.refresh_map()
        return digest(list(_pieces(repo, one)), one.snapshot.added.size)
    except (LamellaError, UnknownFormat):
        return REFUSED


def _pieces(repo: Repository, one: Selected) -> Iterator[tuple[int, bytes]]:
    tree, domain = repo.tree(one.snapshot), one.snapshot.added.domain_id
    for run in repo.tree_reader(domain).runs(tree):
        if isinstance(run.slot, bytes):
            length = tree.shape.chunk_length(run.first)
            yield run.first << tree.shape.chunk_log2, repo.contents.get(domain, Kind.CHUNK, run.slot, length)


def _document(repo: Repository, one: Selected, name: str) -> Read:
    try:
        content = read_document(repo, one, name)
    except (LamellaError, UnknownFormat):
        return REFUSED
    return digest([(0, content)], len(content))


# -- the emergency reader ----------------------------------------------------------------------------------------------


def by_rescue(objects: dict[str, bytes], place: Path) -> View:
    """What `rescue.py` reads of a directory with these objects."""
    view, report = View(), rescue.Reporter()
    repo = place / "repository"
    for name, content in objects.items():
        path = repo / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (place / "key").write_bytes(KEYFILE)
    try:
        words = ["list", "--repo", str(repo), "--keyfile", str(place / "key")]
        session = rescue.Session(rescue.parse(words), report)
        history = session.history
        assert history is not None
        if not history.chains.commits:
            raise rescue.Problem(rescue.HISTORY, "no commit opens")
        salvaged = any(SALVAGED in text for text in report._said)
        blobs: dict[bytes, Any] = {}
        for volume_id, volume in history.volumes().items():
            counting = [one for one in volume.snapshots if not history.claim(one)]
            view.latest[volume_id.hex()] = frozenset(one.ref for one in history._latest(counting)[:1])
            for one in volume.snapshots:
                domain = one.tree.domain_id
                if domain not in blobs:
                    blobs[domain] = rescue.Blobs(session.repo, domain).scan()
                view.snapshots[one.ref] = _seen_by_rescue(history, volume.name, one, blobs[domain], report)
        view.missing = report.history
        view.salvages_history = salvaged
        view.salvages = any(one.bad_packs for one in blobs.values())
    except rescue.Problem:
        view.refused = True
    finally:
        _close_all(repo)
    return view


def _close_all(place: Path) -> None:
    """Close the directory: the program that `rescue.py` is leaves that to its end."""
    for link in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):
            if link.readlink() == place:
                os.close(int(link.name))


def _seen_by_rescue(history: Any, volume: str, one: Any, blobs: Any, report: Any) -> Seen:  # noqa: ANN401
    documents = tuple(_filled(rescue.DocumentContent(blobs, size, parts), size) for _, size, parts in one.documents)
    content = _filled(rescue.VolumeContent(report, blobs, one.tree), one.tree.size)
    return Seen(
        volume, one.name, one.tree.size, one.when, one.consistency, tuple(history.tags(one)), not one.unusable(),
        history.claim(one), content, documents,
    )  # fmt: skip


class _Written:
    """Stands for the file that `rescue.py` fills."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, bytes]] = []


def _filled(content: Any, size: int) -> Read:  # noqa: ANN401
    held = os.memfd_create("restored")
    try:
        with contextlib.suppress(OSError):  # a size that no file can have: what is in it is compared all the same
            content.fill(held)
        return digest(list(_data_of(held)), size)
    except (rescue.Problem, rescue.Bad):
        return REFUSED
    finally:
        os.close(held)


def _data_of(held: int) -> Iterator[tuple[int, bytes]]:
    """The chunks of a file that are not zero."""
    at = 0
    while True:
        try:
            at = os.lseek(held, at, os.SEEK_DATA) // rw.CHUNK * rw.CHUNK
        except OSError:
            return
        yield at, os.pread(held, rw.CHUNK, at)
        at += rw.CHUNK


# -- comparing ---------------------------------------------------------------------------------------------------------


def differences(one: View, other: View) -> list[str]:
    """How the emergency reader's view (`other`) differs from the main reader's, beyond what FORMAT allows it."""
    if one.refused or other.refused:
        return (
            [] if one.refused == other.refused else [f"refused by lamella: {one.refused}, restore.py: {other.refused}"]
        )
    if other.salvages_history:
        both = one.snapshots.keys() & other.snapshots.keys()
        return [f"content of {ref.hex()}" for ref in both if not _alike(one.snapshots[ref], other.snapshots[ref])]
    found = []
    if one.missing != other.missing and not one.partly:
        found.append(f"missing: {one.missing} {other.missing}")
    for ref in sorted({*one.snapshots, *other.snapshots}):
        mine, its = one.snapshots.get(ref), other.snapshots.get(ref)
        if mine is None or its is None:
            if not one.partly:  # a REMOVE may be among what only the other reader reads
                found.append(f"{ref.hex()} only here: {mine} {its}")
        else:
            found += _unlike(mine, its, one, other)
    if not one.partly and one.latest != other.latest:
        found.append(f"latest: {one.latest} {other.latest}")
    return found


def _alike(mine: Seen, its: Seen) -> bool:
    """Whether the same comes out, as far as the main reader gets anything."""
    return mine.content in (REFUSED, its.content)


def _unlike(mine: Seen, its: Seen, one: View, other: View) -> list[str]:
    if other.salvages:
        its = its._replace(
            content=mine.content if mine.content == REFUSED else its.content,
            documents=tuple(m if m == REFUSED else i for m, i in zip(mine.documents, its.documents, strict=False)),
        )
    if one.partly:  # tags and names may have been given in what only the other reader reads
        its = its._replace(tags=mine.tags, volume=mine.volume)
    return [] if mine == its else [f"{mine} != {its}"]


# -- cases -------------------------------------------------------------------------------------------------------------


def of_repository(seed: int, place: Path) -> tuple[list[str], str]:
    """One repository."""
    made: Mutator = repository(seed)
    for left in ("state", "cache", "repository"):
        shutil.rmtree(place / left, ignore_errors=True)
    one, other = by_lamella(dict(made.objects), place), by_rescue(dict(made.objects), place)
    outcome = REFUSED if one.refused else "history missing" if one.missing else "read"
    return [f"{made.touched}: {text}" for text in differences(one, other)], outcome


_RECORDS: list[tuple[int, bytes]] = []


class _Collector(rw.Writer):
    """Remembers the records of its commits."""

    def commit(
        self, chain: rw.Chain, records: bytes, seen: list[bytes] | None = None, checkpoint: bool = False
    ) -> bytes:
        _RECORDS.extend(records_of(records))
        return super().commit(chain, records, seen, checkpoint)


def of_record(seed: int) -> tuple[list[str], str]:
    """One record's value, of a type that both readers use."""
    if not _RECORDS:
        build(_Collector())
    chosen = random.Random(seed)
    kind, value = chosen.choice([row for row in _RECORDS if row[0] in rescue.LAYOUTS or row[0] == rescue.ADD_SNAP])
    if kind == rescue.ADD_SNAP and chosen.random() < 0.5:  # its small numbers: few changes would hit them
        at = chosen.choice((48, 49, 50, 59))
        value = value[:at] + bytes([chosen.choice((0, 4, 5, 15, 22, 23, 127, 255))]) + value[at + 1 :]
    else:
        for _ in range(chosen.choice((1, 1, 2, 3))):
            value = change(chosen, value)
    try:
        mine = known.understood(RawRecord(kind, value)) is not None
    except IntegrityError:
        mine = False
    try:
        its = rescue.sound(kind, value)
        if kind in (rescue.ADD_SNAP, rescue.VOLUME):
            _read_by_rescue(kind, value)
    except rescue.Bad:
        its = False
    outcome = "read" if mine else REFUSED
    return [] if mine == its else [f"record {kind:#06x} {value.hex()}: lamella {mine}, restore.py {its}"], outcome


def _read_by_rescue(kind: int, value: bytes) -> None:
    commit = rescue.Commit(bytes(16), 1, b"", rescue.Cursor(bytes(40)))
    record = rescue.Record(commit, 1, kind, value, signed=False)
    if kind == rescue.ADD_SNAP:
        rescue.parse_snapshot(record, rescue.Cursor(value), keep_packs=True)
    else:
        rescue.require(value[16:32] != bytes(16), "the catalogue")


def of_body(seed: int) -> tuple[list[str], str]:
    """One encoded blob: its codec, its length, a stream or frame."""
    chosen = random.Random(seed)
    content = chosen.choice((b"", b"a", b"ab" * 3000, chosen.randbytes(300), bytes(5000), b"0123456789" * 30000))
    codec = chosen.choice((rw.RAW, rw.ZLIB, rw.ZSTD, rw.ZSTD))
    body = rw.encode(codec, content)
    for _ in range(chosen.choice((1, 1, 1, 2, 3))):
        body = body[:5] + change(chosen, body[5:]) if chosen.random() < 0.9 else change(chosen, body)
    length = chosen.choice(
        (len(content), len(content), len(content), len(content) + 1, int.from_bytes(body[1:5], "little"))
    )
    length = min(length, 8 << 20)
    try:
        mine: bytes | None = compression.decode(Opened(body), length, "fuzz")
    except (IntegrityError, UnknownFormat):
        mine = None
    its = _decoded_by_rescue(body, length)
    outcome = REFUSED if mine is None else "read"
    return [] if mine == its else [f"body {body[:200].hex()} of {length}: {_short(mine)} {_short(its)}"], outcome


def _short(content: bytes | None) -> str:
    return REFUSED if content is None else f"{len(content)} bytes"


def _decoded_by_rescue(body: bytes, length: int) -> bytes | None:
    try:
        rescue.require(len(body) >= 5 and int.from_bytes(body[1:5], "little") == length, "length")
        rescue.require(body[0] < len(rescue.CODECS), "codec")
        content: bytes = rescue.CODECS[body[0]](body[5:], length)
        rescue.require(len(content) == length, "length")
    except rescue.Bad:
        return None
    return content


def case(seed: int, place: Path) -> tuple[list[str], str]:
    """The case of this number: what differs, and what became of it."""
    kind = seed % 5
    try:
        if kind == 0:
            found, outcome = of_repository(seed, place)
        else:
            found, outcome = of_record(seed) if kind < 3 else of_body(seed)
    except Exception as error:  # noqa: BLE001 - whatever a reader raises that is no refusal is a finding
        found, outcome = [f"{type(error).__name__}: {error}"], "raised"
    return found, f"{('repository', 'record', 'record', 'body', 'body')[kind]}: {outcome}"


def memory_peak() -> int:
    """The greatest resident memory since the last call, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak


def run(first: int, cases: int, seconds: float = float("inf")) -> tuple[Counter[str], list[str]]:
    """Run cases until their number or the time is used up: how many came out how, and what is wrong."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    begun = time.monotonic()
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=folder) as name, Path(os.devnull).open("w") as nowhere:
        place = Path(name)
        with contextlib.redirect_stderr(nowhere):
            case(5 * first, place)  # what is loaded once counts for no case
            base = memory_peak()
            for seed in range(first, first + cases):
                since = time.monotonic()
                if since - begun > seconds:
                    break
                found, outcome = case(seed, place)
                counts[outcome] += 1
                peak = memory_peak() - base if not seed % 5 else 0
                if time.monotonic() - since > SECONDS or peak > MEBIBYTES << 20:
                    found.append(f"took {time.monotonic() - since:.1f} s and {peak >> 20} MiB")
                wrong += [f"seed {seed}: {text}" for text in found]
    return counts, wrong


def main() -> int:
    """Run by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=100_000)
    args = parser.parse_args()
    begun = time.monotonic()
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for first in range(args.seed, args.seed + args.cases, _SHOWN_EVERY):
        some, found = run(first, min(_SHOWN_EVERY, args.seed + args.cases - first))
        counts += some
        wrong += found
        for text in found[:200]:
            print(text[:2000])
        print(f"{sum(counts.values())} cases, {len(wrong)} differences", flush=True)
    print(
        f"seed {args.seed}, {sum(counts.values())} cases in {time.monotonic() - begun:.0f} s: {len(wrong)} differences"
    )
    for outcome, count in sorted(counts.items()):
        print(f"  {outcome}: {count}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
