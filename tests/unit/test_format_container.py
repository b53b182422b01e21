"""Header, directory and placement of containers (FORMAT 5)."""

from __future__ import annotations

import pytest

from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.base.ids import ChunkId
from lamella.base.trust import Opened
from lamella.format import container
from lamella.format.container import Kind

HEADER = container.Header(1, container.directory_length(2), b"s" * 32, b"h" * 24)
ONE = (Kind.CHUNK, b"a" * 24, 121, 100)
TWO = (Kind.LEAF, b"b" * 24, 100, 80)


def changed(at: int, value: bytes) -> bytes:
    encoded = HEADER.encode()
    return encoded[:at] + value + encoded[at + len(value) :]


def test_lengths_of_the_specification() -> None:
    assert container.directory_length(3) == 24 + 5 + 4 + 32 * 3 + 16
    assert len(HEADER.encode()) == 72
    assert HEADER.bound_part == HEADER.encode()[:12]
    assert [container.max_content(kind) for kind in sorted(Kind)[1:4]] == [4 << 20, 4664, 1592]
    assert {container.max_content(kind) for kind in sorted(Kind)[4:]} == {8 << 20}


@pytest.mark.parametrize("offset", range(200))
def test_aligned_is_the_next_multiple_of_16(offset: int) -> None:
    assert container.aligned(offset) == next(n for n in range(offset, offset + 16) if n % 16 == 0)


@pytest.mark.parametrize(
    ("at", "value"),
    [(8, b"\x00"), (8, b"\x03"), (9, b"\x00"), (9, b"\x02"), (10, b"\x01"), (11, b"\x80")],
)
def test_unknown_cipher_keywrap_or_flag(at: int, value: bytes) -> None:
    with pytest.raises(UnknownFormat):
        container.decode_header(changed(at, value), "p")


IMPOSSIBLE = [0, 1, container.directory_length(0), container.directory_length(1) + 1, container.directory_length(65536)]


@pytest.mark.parametrize("length", [*IMPOSSIBLE, 2**32 - 1])
def test_impossible_directory_lengths(length: int) -> None:
    with pytest.raises(IntegrityError):
        container.decode_header(changed(12, length.to_bytes(4, "little")), "p")


@pytest.mark.parametrize("blobs", [1, 65535])
def test_least_and_most_blobs(blobs: int) -> None:
    length = container.directory_length(blobs)
    assert container.decode_header(changed(12, length.to_bytes(4, "little")), "p").directory_length == length


def test_another_magic_is_not_a_container() -> None:
    with pytest.raises(IntegrityError):
        container.decode_header(changed(0, b"LMLSLOT"), "p")


def test_places_follow_from_the_order() -> None:
    first, second = container.decode_directory(Opened(container.encode_directory([ONE, TWO])), HEADER, "p")
    assert first == container.Blob(Kind.CHUNK, ChunkId(b"a" * 24), container.aligned(72 + 113), 121, 100)
    assert second.offset == container.aligned(first.offset + 121)
    assert container.object_length([first, second]) == second.offset + 100


def test_the_same_id_under_another_kind_is_another_blob() -> None:
    entries = [(Kind.CHUNK, b"a" * 24, 121, 100), (Kind.DOCUMENT, b"a" * 24, 121, 100)]
    assert len(container.decode_directory(Opened(container.encode_directory(entries)), HEADER, "p")) == 2


@pytest.mark.parametrize("entries", [[], [ONE, ONE], [ONE, TWO, (Kind.CHUNK, b"a" * 24, 50, 40)]])
def test_empty_or_repeating_directories(entries: list[tuple[Kind, bytes, int, int]]) -> None:
    with pytest.raises(IntegrityError):
        container.decode_directory(Opened(container.encode_directory(entries)), HEADER, "p")


@pytest.mark.parametrize(
    ("kind", "clen", "rlen"),
    [
        (Kind.CHUNK, 20, 100),
        (Kind.CHUNK, 0, 100),
        (Kind.CHUNK, 122, 100),
        (Kind.CHUNK, 100, (4 << 20) + 1),
        (Kind.LEAF, 100, 4665),
        (Kind.INNER, 100, 1593),
        (Kind.DOCUMENT, 100, (8 << 20) + 1),
        (Kind.COMMIT, 100, 2**32 - 1),
    ],
)
def test_impossible_lengths_of_blobs(kind: Kind, clen: int, rlen: int) -> None:
    with pytest.raises(IntegrityError):
        container.decode_directory(Opened(container.encode_directory([(kind, bytes(24), clen, rlen)])), HEADER, "p")


@pytest.mark.parametrize(("clen", "rlen"), [(21, 0), (21, 100), (121, 100)])
def test_possible_lengths_of_blobs(clen: int, rlen: int) -> None:
    made = container.encode_directory([(Kind.CHUNK, bytes(24), clen, rlen)])
    (blob,) = container.decode_directory(Opened(made), HEADER, "p")
    assert (blob.sealed_length, blob.content_length) == (clen, rlen)


@pytest.mark.parametrize("kind", [0, 8, 255])
def test_unknown_kinds(kind: int) -> None:
    made = bytearray(container.encode_directory([ONE]))
    made[4 + 24 + 3] = kind
    with pytest.raises(UnknownFormat):
        container.decode_directory(Opened(bytes(made)), HEADER, "p")


def test_an_unknown_version_of_the_directory() -> None:
    with pytest.raises(UnknownFormat):
        container.decode_directory(Opened(b"\x02" + container.encode_directory([ONE])[1:]), HEADER, "p")


def test_an_object_above_64_mib() -> None:
    biggest = (8 << 20) + 21
    entries = [(Kind.DOCUMENT, bytes([n]) * 24, biggest, 8 << 20) for n in range(8)]
    with pytest.raises(IntegrityError):
        container.decode_directory(Opened(container.encode_directory(entries)), HEADER, "p")
    assert len(container.decode_directory(Opened(container.encode_directory(entries[:7])), HEADER, "p")) == 7


def test_padding_is_checked_byte_by_byte() -> None:
    blobs = container.decode_directory(Opened(container.encode_directory([ONE, TWO])), HEADER, "p")
    whole = bytearray(b"x" * container.object_length(blobs))
    first, second = blobs
    gaps = [*range(72 + 113, first.offset), *range(first.offset + 121, second.offset)]
    assert gaps
    for at in gaps:
        whole[at] = 0
    container.check_padding(bytes(whole), HEADER, blobs, "p")
    for at in gaps:
        broken = bytes(whole[:at]) + b"\x01" + bytes(whole[at + 1 :])
        with pytest.raises(IntegrityError):
            container.check_padding(broken, HEADER, blobs, "p")
    for length in (len(whole) - 1, len(whole) + 1):
        with pytest.raises(IntegrityError):
            container.check_padding(bytes(whole[:length]).ljust(length, b"\0"), HEADER, blobs, "p")
