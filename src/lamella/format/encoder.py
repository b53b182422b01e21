"""Making blob bodies from contents (FORMAT 4). Readers do not load this module."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from lamella.base.errors import UsageError
from lamella.format import zstd_provider
from lamella.format.compression import Codec
from lamella.format.cursor import u8, u32

DEFAULT_LEVEL = 3
_WORDS = ("auto", "off", "portable")
_LEVELS = frozenset(str(level) for level in range(1, 20))

Squeeze = Callable[[bytes | memoryview], bytes]


def _zstd_squeeze(level: int) -> Squeeze:
    name, module = zstd_provider.load()
    if name == "zstandard":
        zstandard = module.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)
        return zstandard.compress  # type: ignore[no-any-return]
    compressor = module.ZstdCompressor(level)
    last = compressor.FLUSH_FRAME

    def squeeze(content: bytes | memoryview) -> bytes:
        # Announcing the size makes the compressor write it into the frame header, which readers insist on.
        compressor.set_pledged_input_size(len(content))
        return compressor.compress(content, last)  # type: ignore[no-any-return]

    return squeeze


class Encoder:
    """Makes bodies from contents with one compression setting; one per thread.

    `setting`: "auto" (level 3), "1".."19", "off", or "portable" (zlib, for readers without zstd). Raises UsageError for
    others.
    """

    def __init__(self, setting: str = "auto") -> None:
        self._squeeze: Squeeze | None = None
        self._codec = Codec.RAW
        if setting == "portable":
            self._codec, self._squeeze = Codec.ZLIB, lambda content: zlib.compress(content, 6)
        elif setting != "off":
            self._codec, self._squeeze = Codec.ZSTD, _zstd_squeeze(_level(setting))

    def encode(self, content: bytes | memoryview) -> bytes:
        """The body: codec, length, payload; raw whenever compressing does not make it smaller."""
        if self._squeeze is not None and len(content) > 0:
            payload = self._squeeze(content)
            if len(payload) < len(content):
                return u8(self._codec) + u32(len(content)) + payload
        return b"".join((u8(Codec.RAW), u32(len(content)), content))


def check_setting(setting: str) -> str:
    """Return `setting` if `Encoder` knows it. Raises UsageError."""
    if setting not in _WORDS:
        _level(setting)
    return setting


def _level(setting: str) -> int:
    if setting == "auto":
        return DEFAULT_LEVEL
    if setting in _LEVELS:
        return int(setting)
    raise UsageError(f"unknown compression {setting!r}", hint="use auto, 1 to 19, off or portable")
