"""What may happen to an image between two moments: directed cases; image_changes has the random ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from lamella.testing.source_reading import GRAIN, KIB, MIB, pattern

CHANGES: dict[str, Callable[[Path], None]] = {}
"""What may happen to an image of `SIZE` bytes between two moments, by name."""

SIZE = 4 * MIB + 5 * KIB + 17


def _change(function: Callable[[Path], None]) -> Callable[[Path], None]:
    CHANGES[function.__name__.removeprefix("_").replace("_", " ")] = function
    return function


@_change
def _nothing(image: Path) -> None:
    assert image.exists()


@_change
def _one_byte(image: Path) -> None:
    overwrite(image, 1_234_567, b"!")


@_change
def _the_first_and_the_last_byte(image: Path) -> None:
    overwrite(image, 0, b"!")
    overwrite(image, image.stat().st_size - 1, b"!")


@_change
def _all_of_it(image: Path) -> None:
    overwrite(image, 0, pattern(image.stat().st_size, 77))


@_change
def _all_of_it_with_the_same_bytes(image: Path) -> None:
    overwrite(image, 0, image.read_bytes())


@_change
def _shrunk_within_a_chunk(image: Path) -> None:
    os.truncate(image, 3 * GRAIN + 100)


@_change
def _shrunk_to_the_grid(image: Path) -> None:
    os.truncate(image, 3 * GRAIN)


@_change
def _shrunk_to_nothing(image: Path) -> None:
    os.truncate(image, 0)


@_change
def _grown_by_a_hole(image: Path) -> None:
    os.truncate(image, SIZE + 3 * GRAIN)


@_change
def _grown_by_a_byte(image: Path) -> None:
    overwrite(image, SIZE, b"!")


@_change
def _grown_by_data_after_a_hole(image: Path) -> None:
    overwrite(image, SIZE + 10 * GRAIN + 5, b"far away")


@_change
def _shrunk_then_grown(image: Path) -> None:
    os.truncate(image, GRAIN + 100)
    os.truncate(image, SIZE)


@_change
def _shrunk_then_filled_again(image: Path) -> None:
    os.truncate(image, 100)
    overwrite(image, 100, pattern(SIZE - 100, 78))


@_change
def _made_anew_under_its_name(image: Path) -> None:
    size = image.stat().st_size
    image.unlink()
    image.write_bytes(pattern(size, 79))


@_change
def _replaced_by_a_shorter_one(image: Path) -> None:
    new = image.with_name("new")
    new.write_bytes(pattern(2 * GRAIN + 9, 80))
    new.rename(image)


@_change
def _replaced_by_a_copy_with_one_change(image: Path) -> None:
    new = image.with_name("new")
    new.write_bytes(image.read_bytes())
    overwrite(new, 2_000_000, b"!")
    new.rename(image)


@_change
def _replaced_by_zeros(image: Path) -> None:
    overwrite(image, 0, bytes(image.stat().st_size))


def overwrite(image: Path, offset: int, content: bytes) -> None:
    """Write into an image, as a guest would: no new file, nothing flushed."""
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(content)
