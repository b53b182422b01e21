"""What may happen to a volume between two moments: directed cases; image_changes has random ones for files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lamella_kit.source_reading import GRAIN, KIB, MIB, pattern
from lamella_kit.volumes import ChangingVolume

CHANGES: dict[str, Callable[[ChangingVolume], None]] = {}
"""What may happen to a volume of about `SIZE` bytes between two moments, by name."""

SIZE = 4 * MIB + 5 * KIB + 17


def _change(function: Callable[[ChangingVolume], None]) -> Callable[[ChangingVolume], None]:
    CHANGES[function.__name__.removeprefix("_").replace("_", " ")] = function
    return function


@_change
def _nothing(volume: ChangingVolume) -> None:
    assert volume.content()


@_change
def _one_byte(volume: ChangingVolume) -> None:
    volume.write(1_234_567, b"!")


@_change
def _the_first_and_the_last_byte(volume: ChangingVolume) -> None:
    volume.write(0, b"!")
    volume.write(len(volume.content()) - 1, b"!")


@_change
def _all_of_it(volume: ChangingVolume) -> None:
    volume.write(0, pattern(len(volume.content()), 77))


@_change
def _all_of_it_with_the_same_bytes(volume: ChangingVolume) -> None:
    volume.write(0, volume.content())


@_change
def _shrunk_within_a_chunk(volume: ChangingVolume) -> None:
    volume.resize(3 * GRAIN + 100)


@_change
def _shrunk_to_the_grid(volume: ChangingVolume) -> None:
    volume.resize(3 * GRAIN)


@_change
def _shrunk_to_nothing(volume: ChangingVolume) -> None:
    volume.resize(0)


@_change
def _grown_by_a_hole(volume: ChangingVolume) -> None:
    volume.resize(SIZE + 3 * GRAIN)


@_change
def _grown_by_a_byte(volume: ChangingVolume) -> None:
    volume.write(SIZE, b"!")


@_change
def _grown_by_data_after_a_hole(volume: ChangingVolume) -> None:
    volume.write(SIZE + 10 * GRAIN + 5, b"far away")


@_change
def _shrunk_then_grown(volume: ChangingVolume) -> None:
    volume.resize(GRAIN + 100)
    volume.resize(SIZE)


@_change
def _shrunk_then_filled_again(volume: ChangingVolume) -> None:
    volume.resize(100)
    volume.write(100, pattern(SIZE - 100, 78))


@_change
def _made_anew_under_its_name(volume: ChangingVolume) -> None:
    size = len(volume.content())
    volume.remove()
    volume.fill(pattern(size, 79))


@_change
def _replaced_by_a_shorter_one(volume: ChangingVolume) -> None:
    volume.replace(pattern(2 * GRAIN + 9, 80))


@_change
def _replaced_by_a_copy_with_one_change(volume: ChangingVolume) -> None:
    content = bytearray(volume.content())
    content[2_000_000] ^= 1
    volume.replace(bytes(content))


@_change
def _replaced_by_zeros(volume: ChangingVolume) -> None:
    volume.write(0, bytes(len(volume.content())))


def overwrite(image: Path, offset: int, content: bytes) -> None:
    """Write into an image, as a guest would: no new file, nothing flushed."""
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(content)
