"""The reader of what the thin tools write: recorded output of two versions, the real tools, what is refused."""

from __future__ import annotations

import shutil
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from lamella.base.errors import CheckpointLost
from lamella.sources.lvm.thin_xml import differing, mapped
from tests.features import require

RECORDED = Path(__file__).with_name("thin_reports")
VERSIONS = ["0.9.0", "1.1.0"]
BLOCK = 65536


def blocks(extents: Iterator[object]) -> list[tuple[int, int]]:
    return [(one.start // BLOCK, one.end // BLOCK) for one in extents]  # type: ignore[attr-defined]


def recorded(name: str) -> list[bytes]:
    content = (RECORDED / f"{name}.xml").read_bytes()
    return [content[at : at + 7] for at in range(0, len(content), 7)]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("flavour", ["delta", "delta-verbose"])
def test_every_kind_of_difference(flavour: str, version: str) -> None:
    assert blocks(differing(recorded(f"{flavour}-{version}"), 1, 2)) == [(5, 6), (40, 45), (60, 66)]


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_differs(version: str) -> None:
    assert blocks(differing(recorded(f"nothing-{version}"), 3, 3)) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_mapped(version: str) -> None:
    assert blocks(mapped(recorded(f"dump-{version}"), 2)) == [(0, 5), (5, 6), (6, 20), (45, 50), (60, 66)]


# -- the real tools --------------------------------------------------------------------------------------------------


def metadata(place: Path, devices: dict[int, dict[int, int]], block_sectors: int = 128) -> Path:
    """A metadata device on a file, with these devices: block of the device -> block of the pool."""
    rows = []
    for number, mapping in devices.items():
        rows.append(f'<device dev_id="{number}" mapped_blocks="{len(mapping)}" transaction="0" ')
        rows.append('creation_time="0" snap_time="0">')
        rows += [f'<single_mapping origin_block="{a}" data_block="{mapping[a]}" time="0"/>' for a in sorted(mapping)]
        rows.append("</device>")
    head = '<superblock uuid="" time="0" transaction="1" flags="0" version="2" '
    text = f'{head}data_block_size="{block_sectors}" nr_data_blocks="100000">{"".join(rows)}</superblock>'
    source, target = place / "metadata.xml", place / "metadata.bin"
    source.write_text(text)
    target.write_bytes(bytes(8 << 20))
    subprocess.run(["thin_restore", "-i", source, "-o", target], check=True, capture_output=True, timeout=60)
    return target


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    for name in ("thin_delta", "thin_restore", "thin_dump"):
        require("thin_delta", shutil.which(name) is not None, f"{name} is not installed")
    return tmp_path


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("verbose", [False, True])
def test_the_installed_tools_on_random_metadata(tools: Path, seed: int, verbose: bool) -> None:
    chance = Random(seed)
    data = iter(chance.sample(range(100_000), 5000))
    old = {block: next(data) for block in range(2000) if chance.random() < 0.5}
    new = dict(old)
    for _ in range(chance.choice([0, 1, 30, 300])):
        at, length = chance.randrange(2000), chance.choice([1, 1, 2, 40])
        for block in range(at, at + length):
            new.pop(block, None)
            if chance.random() < 0.7:
                new[block] = next(data)
    device = metadata(tools, {7: old, 9: new}, block_sectors=384)
    options = ["--verbose"] if verbose else []
    command = ["thin_delta", *options, "--thin1", "7", "--thin2", "9", str(device)]
    done = subprocess.run(command, check=True, capture_output=True, timeout=60)
    size = 384 * 512
    found = {at // size for one in differing([done.stdout], 7, 9) for at in range(one.start, one.end, size)}
    assert found == {block for block in {*old, *new} if old.get(block) != new.get(block)}
    command = ["thin_dump", "--dev-id", "9", str(device)]
    done = subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert {at // size for one in mapped([done.stdout], 9) for at in range(one.start, one.end, size)} == set(new)


# -- what is refused -------------------------------------------------------------------------------------------------

HEAD = b'<superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="1000">'
WHOLE = HEAD + b'<diff left="1" right="2"><different begin="5" length="1"/></diff></superblock>'

REFUSED = {
    "nothing": b"",
    "no XML": b"Unable to find mapping tree for snap2 (9)",
    "cut": WHOLE[:-3],
    "something behind": WHOLE + b"<x/>",
    "other devices": WHOLE.replace(b'left="1"', b'left="3"'),
    "exchanged devices": WHOLE.replace(b'left="1" right="2"', b'left="2" right="1"'),
    "no devices": WHOLE.replace(b' left="1"', b""),
    "an unknown kind": WHOLE.replace(b"<different", b"<moved"),
    "no difference at all": HEAD + b"</superblock>",
    "two differences": WHOLE.replace(b"</superblock>", b'<diff left="1" right="2"></diff></superblock>'),
    "another root": WHOLE.replace(b"superblock", b"superlock"),
    "no size of blocks": WHOLE.replace(b' data_block_size="128"', b""),
    "an odd size of blocks": WHOLE.replace(b'"128"', b'"100"'),
    "a huge size of blocks": WHOLE.replace(b'"128"', b'"1280000000"'),
    "no place": WHOLE.replace(b' begin="5" length="1"', b""),
    "no length": WHOLE.replace(b' length="1"', b""),
    "an empty range": WHOLE.replace(b'length="1"', b'length="0"'),
    "a negative place": WHOLE.replace(b'begin="5"', b'begin="-5"'),
    "a fraction": WHOLE.replace(b'begin="5"', b'begin="5.5"'),
    "digits of another script": WHOLE.replace(b'begin="5"', 'begin="\u0665"'.encode()),
    "a number without end": WHOLE.replace(b'begin="5"', b'begin="' + b"5" * 5000 + b'"'),
    "an element without end": WHOLE.replace(b'begin="5"', b'begin="' + b"5" * 300_000 + b'"'),
    "entities": b'<!DOCTYPE x [<!ENTITY a "aaaa">]>' + WHOLE,
    "a range in a range": WHOLE.replace(
        b'length="1"/>', b'length="1"><range begin="1" length="1"><range begin="1" length="1"/></range></different>'
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_understood_is_refused(what: str) -> None:
    for size in (1, 7, 1 << 16, 1 << 20):
        content = REFUSED[what]
        with pytest.raises(CheckpointLost, match="cannot be relied on"):
            list(differing([content[at : at + size] for at in range(0, len(content), size)], 1, 2))


def test_a_kind_that_says_nothing_is_refused_when_it_ends() -> None:
    content = WHOLE.replace(b'<different begin="5" length="1"/>', b"<left_only></left_only>")
    with pytest.raises(CheckpointLost, match="does not say where"):
        list(differing([content], 1, 2))


def test_every_cut_is_refused() -> None:
    for end in range(len(WHOLE)):
        with pytest.raises(CheckpointLost):
            list(differing([WHOLE[:end]], 1, 2))


def test_a_dump_of_another_device_or_with_unknown_parts_is_refused() -> None:
    dump = b"".join(recorded("dump-1.1.0"))
    for content in (dump.replace(b'dev_id="2"', b'dev_id="3"'), dump.replace(b"single_mapping", b"mapping"), dump[:-5]):
        with pytest.raises(CheckpointLost):
            list(mapped([content], 2))


def test_huge_ranges_are_numbers_like_others() -> None:
    most = (1 << 64) - 1
    content = WHOLE.replace(b'begin="5" length="1"', f'begin="{most}" length="{most}"'.encode())
    ((start, end),) = blocks(differing([content], 1, 2))
    assert (start, end) == (most, 2 * most)


def test_memory_does_not_grow_with_the_output() -> None:
    def endless(rows: int) -> Iterator[bytes]:
        yield HEAD + b'<diff left="1" right="2">'
        piece = b'<same begin="1" length="1"/><different begin="5" length="1"/>' * 500
        for _ in range(rows):
            yield piece
        yield b"</diff></superblock>"

    def peak(rows: int) -> int:
        tracemalloc.start()
        count = sum(1 for _ in differing(endless(rows), 1, 2))
        assert count == 500 * rows
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(200) < 2 * peak(20)
