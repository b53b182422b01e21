"""Codecs of bodies: what is refused before, while and after decompressing (FORMAT 4)."""

from __future__ import annotations

import importlib
import os
import sys
import tracemalloc
import zlib
from typing import Any

import pytest

from lamella.base.errors import IntegrityError, UnknownFormat, UsageError
from lamella.base.trust import Opened
from lamella.format import zstd, zstd_provider
from lamella.format.compression import Codec, decode
from lamella.format.encoder import Encoder, check_setting
from lamella.format.zstd import check_frame

MAGIC = b"\x28\xb5\x2f\xfd"
SINGLE, CHECKSUM, RESERVED, UNUSED = 0x20, 0x04, 0x08, 0x10


def block(kind: int, length: int, data: bytes, last: bool = False) -> bytes:
    return (length << 3 | kind << 1 | last).to_bytes(3, "little") + data


def raw(data: bytes, last: bool = False) -> bytes:
    return block(0, len(data), data, last)


def rle(byte: bytes, length: int, last: bool = False) -> bytes:
    return block(1, length, byte, last)


def frame(size: int, *blocks: bytes, flags: int = SINGLE, width: int = 4, between: bytes = b"") -> bytes:
    """A frame with a content size of `width` bytes; `between` is the window descriptor or dictionary id."""
    code = {1: 0, 2: 1, 4: 2, 8: 3}[width]
    field = (size - 256 if width == 2 else size).to_bytes(width, "little")
    return MAGIC + bytes([code << 6 | flags]) + between + field + b"".join(blocks)


def body(codec: int, length: int, payload: bytes) -> Opened:
    return Opened(bytes([codec]) + length.to_bytes(4, "little") + payload)


ALL_PROVIDERS = ["compression.zstd", "backports.zstd", "zstandard"]


def installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


PROVIDERS = [name for name in ALL_PROVIDERS if installed(name)]


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The zstd module that lamella then uses."""
    name: str = request.param
    use_provider(monkeypatch, name)
    return name


def use_provider(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(zstd_provider, "provider", lambda first="": name)
    monkeypatch.delattr(zstd._local, "unsqueeze", raising=False)


@pytest.fixture(autouse=True)
def forget_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zstd, "_local", type(zstd._local)())


# --- frames ----------------------------------------------------------------------------------------------------------

TEXT = b"0123456789" * 30
GOOD = {
    "one raw block": frame(300, raw(TEXT, last=True)),
    "two raw blocks": frame(300, raw(TEXT[:100]), raw(TEXT[100:], last=True)),
    "an empty last block": frame(300, raw(TEXT), raw(b"", last=True)),
    "size in 8 bytes": frame(300, raw(TEXT, last=True), width=8),
    "size in 2 bytes": frame(300, raw(TEXT, last=True), width=2),
    "a window of 1 KiB": frame(300, raw(TEXT, last=True), flags=0, between=b"\x00"),
    "the unused bit": frame(300, raw(TEXT, last=True), flags=SINGLE | UNUSED),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_frames(name: str, provider: str) -> None:
    assert decode(body(2, 300, GOOD[name]), 300, "x") == TEXT


def test_one_byte_of_size(provider: str) -> None:
    assert decode(body(2, 5, frame(5, raw(b"hello", last=True), width=1)), 5, "x") == b"hello"


def test_a_run(provider: str) -> None:
    assert decode(body(2, 5000, frame(5000, rle(b"z", 5000, last=True))), 5000, "x") == b"z" * 5000


def test_an_empty_frame(provider: str) -> None:
    assert decode(body(2, 0, frame(0, raw(b"", last=True), width=1)), 0, "x") == b""


def test_a_checksum_is_checked(provider: str) -> None:
    module: Any = pytest.importorskip("zstandard")
    made = module.ZstdCompressor(write_checksum=True).compress(TEXT)
    assert made[4] & CHECKSUM
    assert decode(body(2, 300, made), 300, "x") == TEXT
    with pytest.raises(IntegrityError):
        decode(body(2, 300, made[:-1] + bytes([made[-1] ^ 1])), 300, "x")


LAST = raw(TEXT, last=True)
BAD_FRAMES = {
    "empty": b"",
    "magic only": MAGIC,
    "magic and descriptor": MAGIC + b"\x20",
    "another magic": b"\x27" + GOOD["one raw block"][1:],
    "an older version's magic": b"\x27\xb5\x2f\xfd" + GOOD["one raw block"][4:],
    "skippable frame": b"\x50\x2a\x4d\x18\x05\0\0\0hello",
    "skippable frame before": b"\x50\x2a\x4d\x18\x05\0\0\0hello" + GOOD["one raw block"],
    "skippable frame after": GOOD["one raw block"] + b"\x5f\x2a\x4d\x18\x00\0\0\0",
    "two frames": frame(150, raw(TEXT[:150], last=True)) + frame(150, raw(TEXT[150:], last=True)),
    "a second, empty frame": GOOD["one raw block"] + frame(0, raw(b"", last=True), width=1),
    "trailing byte": GOOD["one raw block"] + b"\0",
    "no content size": MAGIC + b"\x00\x00" + LAST,
    "size too small": frame(299, LAST),
    "size too large": frame(301, LAST),
    "size of 2^64 - 1": frame(2**64 - 1, LAST, width=8),
    "dictionary id of 1 byte": frame(300, LAST, flags=SINGLE | 1, between=b"\x07"),
    "dictionary id of 2 bytes": frame(300, LAST, flags=SINGLE | 2, between=b"\x07\0"),
    "dictionary id of 4 bytes": frame(300, LAST, flags=SINGLE | 3, between=b"\x07\0\0\0"),
    "dictionary id 0": frame(300, LAST, flags=SINGLE | 1, between=b"\x00"),
    "reserved bit": frame(300, LAST, flags=SINGLE | RESERVED),
    "window just too large": frame(300, LAST, flags=0, between=b"\x01"),
    "window of terabytes": frame(300, LAST, flags=0, between=b"\xff"),
    "reserved block": frame(300, block(3, 300, TEXT, last=True)),
    "no last block": frame(300, raw(TEXT)),
    "block past the end": frame(300, block(0, 301, TEXT, last=True)),
    "block of 2 MiB": frame(300, block(0, (1 << 21) - 1, TEXT, last=True)),
    "run without its byte": frame(300, block(1, 300, b"", last=True)),
    "no checksum behind its flag": frame(300, LAST, flags=SINGLE | CHECKSUM),
    "half a checksum": frame(300, LAST + b"\0\0", flags=SINGLE | CHECKSUM),
    "checksum without its flag": frame(300, LAST + b"\0\0\0\0"),
    "half a block header": frame(300, b"\x01\x00"),
    "half a size": MAGIC + b"\xa0\x2c\x01",
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_bad_frames_are_refused_before_decompressing(name: str) -> None:
    with pytest.raises(IntegrityError):
        check_frame(BAD_FRAMES[name], 300, "x")


REASONS = {"dictionary": "dictionary", "reserved bit": "reserved", "window": "claims", "another magic": "not a zstd"}


@pytest.mark.parametrize("name", [name for name in BAD_FRAMES if name.startswith(tuple(REASONS))])
def test_bad_frames_are_refused_for_the_right_reason(name: str) -> None:
    reason = next(reason for start, reason in REASONS.items() if name.startswith(start))
    with pytest.raises(IntegrityError, match=reason):
        check_frame(BAD_FRAMES[name], 300, "x")


CONTENT_LIES = {
    "less than it says": frame(300, raw(TEXT[:-1], last=True)),
    "more than it says": frame(300, raw(TEXT), raw(b"!", last=True)),
    "a longer run than it says": frame(300, rle(b"a", 300), rle(b"a", 1, last=True)),
    "a broken compressed block": frame(300, block(2, 4, b"\xff\xff\xff\xff", last=True)),
    "a wrong checksum": frame(300, LAST + b"\0\0\0\0", flags=SINGLE | CHECKSUM),
}


@pytest.mark.parametrize("name", CONTENT_LIES)
def test_lies_that_only_decompressing_shows(name: str, provider: str) -> None:
    check_frame(CONTENT_LIES[name], 300, "x")
    with pytest.raises(IntegrityError):
        decode(body(2, 300, CONTENT_LIES[name]), 300, "x")


@pytest.mark.parametrize("window", [None, 0, 8 << 3, 10 << 3])
def test_a_bomb_behind_an_honest_header(window: int | None, provider: str) -> None:
    size, piece = 1 << 20, 1 << (17 if window is None else min(17, 10 + (window >> 3)))
    flags, between = (SINGLE, b"") if window is None else (0, bytes([window]))
    runs = rle(b"a", piece) * ((64 << 20) // piece) + rle(b"a", piece, last=True)
    made = frame(size, runs, flags=flags, between=between)
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            decode(body(2, size, made), size, "x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * size + 2 * len(made)


@pytest.mark.parametrize("window", range(256))
def test_windows_as_the_standard_computes_them(window: int) -> None:
    base = 1 << 10 + (window >> 3)
    size = base + base // 8 * (window & 7)
    made = frame(size, raw(b"x", last=True), flags=0, width=8, between=bytes([window]))
    check_frame(made, size, "x")
    if size > 1024:
        smaller = frame(size - 1, raw(b"x", last=True), flags=0, width=8, between=bytes([window]))
        with pytest.raises(IntegrityError):
            check_frame(smaller, size - 1, "x")


# --- zlib ------------------------------------------------------------------------------------------------------------


def test_zlib_bomb_costs_nothing() -> None:
    payload = zlib.compress(bytes(64 << 20), 9)
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            decode(body(1, 4096, payload), 4096, "x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


DEFLATED = zlib.compress(TEXT)
RAW_DEFLATE = zlib.compressobj(wbits=-15)
BAD_ZLIB = {
    "nothing": b"",
    "cut": DEFLATED[:-1],
    "without checksum": DEFLATED[:-4],
    "wrong checksum": DEFLATED[:-1] + bytes([DEFLATED[-1] ^ 1]),
    "tail": DEFLATED + b"\0",
    "two streams": zlib.compress(TEXT[:150]) + zlib.compress(TEXT[150:]),
    "one byte more": zlib.compress(TEXT + b"!"),
    "one byte less": zlib.compress(TEXT[:-1]),
    "no zlib header": RAW_DEFLATE.compress(TEXT) + RAW_DEFLATE.flush(),
    "a dictionary": b"\x78\xbb" + zlib.adler32(b"dict").to_bytes(4, "big") + DEFLATED[2:],
    "never finished": zlib.compressobj().compress(TEXT),
}


@pytest.mark.parametrize("name", BAD_ZLIB)
def test_bad_zlib_streams(name: str) -> None:
    with pytest.raises(IntegrityError):
        decode(body(1, 300, BAD_ZLIB[name]), 300, "x")


def test_an_empty_zlib_stream() -> None:
    assert decode(body(1, 0, zlib.compress(b"")), 0, "x") == b""
    with pytest.raises(IntegrityError):
        decode(body(1, 0, zlib.compress(b"a")), 0, "x")


# --- bodies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\0", b"\0\0\0", b"\0\1\0\0"])
def test_bodies_too_short_for_their_head(content: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode(Opened(content), 0, "x")


@pytest.mark.parametrize("codec", [3, 4, 128, 255])
def test_unknown_codecs(codec: int) -> None:
    with pytest.raises(UnknownFormat):
        decode(body(codec, 3, b"abc"), 3, "x")


@pytest.mark.parametrize("payload", [b"ab", b"abcd"])
def test_raw_payload_of_another_length(payload: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode(body(0, 3, payload), 3, "x")


def test_a_length_other_than_expected() -> None:
    with pytest.raises(IntegrityError):
        decode(body(0, 3, b"abc"), 4, "x")


# --- encoder ---------------------------------------------------------------------------------------------------------

CONTENTS = {
    "empty": b"",
    "one byte": b"a",
    "text": TEXT,
    "a window of exactly 1 KiB": b"ab" * 512,
    "zeros of a chunk": bytes(1 << 17),
    "random": os.urandom(5000),
    "half": os.urandom(40_000) + bytes(90_000),
    "4 MiB": b"".join(n.to_bytes(4, "little") for n in range(1 << 20)),
}
SETTINGS = ["auto", "1", "3", "19", "off", "portable"]


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_encoded_can_be_decoded(setting: str, name: str, provider: str) -> None:
    content = CONTENTS[name]
    if setting == "19" and len(content) > 1 << 20:
        content = content[: 1 << 18]
    made = Encoder(setting).encode(memoryview(content))
    assert decode(Opened(made), len(content), "x") == content
    assert int.from_bytes(made[1:5], "little") == len(content)
    assert made[0] == Codec.RAW or len(made) - 5 < len(content)
    assert len(made) - 5 <= len(content)


@pytest.mark.parametrize(("setting", "codec"), [("auto", 2), ("7", 2), ("portable", 1), ("off", 0)])
def test_codec_of_a_setting(setting: str, codec: int) -> None:
    assert Encoder(setting).encode(TEXT)[0] == codec
    assert check_setting(setting) == setting


@pytest.mark.parametrize("setting", SETTINGS)
def test_contents_that_do_not_get_smaller_stay_raw(setting: str) -> None:
    for content in (b"", b"abc", os.urandom(2000)):
        assert Encoder(setting).encode(content) == b"\0" + len(content).to_bytes(4, "little") + content


BAD_SETTINGS = ["", "0", "20", "-1", "+3", " 3", "3 ", "03", "1.0", "AUTO", "zstd", "\u0663", "1" * 5000, "none"]


@pytest.mark.parametrize("setting", BAD_SETTINGS, ids=range(len(BAD_SETTINGS)))
def test_bad_settings(setting: str) -> None:
    with pytest.raises(UsageError):
        Encoder(setting)
    with pytest.raises(UsageError):
        check_setting(setting)


def test_an_encoder_works_again_and_again(provider: str) -> None:
    encoder = Encoder("auto")
    for length in (300, 5, 100_000, 0, 300):
        content = b"ab" * length
        assert decode(Opened(encoder.encode(content)), len(content), "x") == content


@pytest.mark.parametrize("writer", PROVIDERS)
def test_each_provider_reads_what_the_other_wrote(writer: str, provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        use_provider(patch, writer)
        made = [Encoder("auto").encode(content) for content in CONTENTS.values()]
    for content, encoded in zip(CONTENTS.values(), made, strict=True):
        assert decode(Opened(encoded), len(content), "x") == content


def test_decoding_prefers_the_provider_that_keeps_its_context() -> None:
    pytest.importorskip("zstandard")
    assert zstd_provider.provider("zstandard") == "zstandard"
    assert zstd_provider.provider("no such module") == zstd_provider.provider()


def test_without_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ALL_PROVIDERS:
        monkeypatch.setitem(sys.modules, name, None)
    assert zstd_provider.provider() == ""
    with pytest.raises(UsageError) as caught:
        Encoder("auto")
    assert "portable" in caught.value.hint
    assert decode(Opened(Encoder("portable").encode(TEXT)), 300, "x") == TEXT
