"""Decoding a zstd frame, after every check that can be made before (FORMAT 4)."""

from __future__ import annotations

import threading
from collections.abc import Callable

from lamella.base.errors import IntegrityError
from lamella.format import zstd_provider

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
MAX_BLOCK = 128 * 1024
"""Bytes of a block of a zstd frame, at most (RFC 8878, 3.1.1.2.4)."""

Unsqueeze = Callable[[memoryview, int], bytes]


_local = threading.local()


def _zstd_unsqueeze() -> Unsqueeze:
    # It alone keeps its context: 1.16 CPU s for 1 GiB in chunks of 128 KiB, the others 1.64 (measured).
    provider, module = zstd_provider.load("zstandard")
    if provider == "zstandard":
        decompressor = module.ZstdDecompressor(max_window_size=1 << 27)
        # It allocates what the frame header says, which was checked, and writes no further.
        return lambda payload, limit: decompressor.decompress(payload)

    def unsqueeze(payload: memoryview, limit: int) -> bytes:
        # The blocks of a frame may hold far more than its header says, which zstd may see only at the last one.
        stream = module.ZstdDecompressor()
        content: bytes = stream.decompress(payload, limit + 1)
        if not stream.eof:
            raise EOFError("the frame goes on")
        return content

    return unsqueeze


def unzstd(payload: memoryview, expected_length: int, name: str) -> bytes:
    """The content of a frame, which is walked first. Raises IntegrityError, UsageError without a provider."""
    check_frame(payload, expected_length, name)
    unsqueeze: Unsqueeze | None = getattr(_local, "unsqueeze", None)
    if unsqueeze is None:
        unsqueeze = _local.unsqueeze = _zstd_unsqueeze()
    try:
        return unsqueeze(payload, expected_length)
    except Exception as error:  # each provider has its own error class
        if isinstance(error, MemoryError):
            raise
        raise IntegrityError("a blob that does not decompress", obj=name) from error


def check_frame(frame: bytes | memoryview, expected_length: int, name: str) -> None:
    """Walk a zstd frame (RFC 8878 3.1.1) without decoding it.

    Raises IntegrityError unless it is exactly one frame with a content size equal to `expected_length`, no dictionary,
    a window of at most max(expected_length, 1 KiB), no block larger than the window or 128 KiB, and nothing after it.
    """
    if frame[:4] != ZSTD_MAGIC or len(frame) < 6:
        raise IntegrityError("a payload that is not a zstd frame", obj=name)
    position, size, window, checksum = _frame_header(frame, name)
    if size != expected_length or window > max(expected_length, 1024):
        raise IntegrityError("a zstd frame that claims another size than its place implies", obj=name)
    last = False
    blocks = 0
    while not last:
        blocks += 1
        if blocks > 256 + expected_length // 512:
            raise IntegrityError("a zstd frame with far too many blocks", obj=name)
        block = int.from_bytes(frame[position : position + 3], "little")
        if position + 3 > len(frame):
            raise IntegrityError("a zstd frame that ends too early", obj=name)
        last, block_type, length = bool(block & 1), block >> 1 & 3, block >> 3
        if block_type == 3 or length > min(window, MAX_BLOCK):
            raise IntegrityError("a zstd frame with a reserved block, or too large a one", obj=name)
        position += 3 + (1 if block_type == 1 else length)
    if position + (4 if checksum else 0) != len(frame):
        raise IntegrityError("a zstd frame with a wrong end", obj=name)


def _frame_header(frame: bytes | memoryview, name: str) -> tuple[int, int, int, bool]:
    """(offset of the first block, content size, window size, has checksum)."""
    descriptor = frame[4]
    single, checksum = bool(descriptor & 0x20), bool(descriptor & 4)
    if descriptor & 8 or descriptor & 3:
        raise IntegrityError("a zstd frame with a dictionary or a reserved bit", obj=name)
    position = 5
    window = 0
    if not single:
        exponent, mantissa = frame[5] >> 3, frame[5] & 7
        window = (1 << 10 + exponent) + ((1 << 10 + exponent) >> 3) * mantissa
        position = 6
    width = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    if width == 0 or position + width > len(frame):
        raise IntegrityError("a zstd frame without a content size", obj=name)
    size = int.from_bytes(frame[position : position + width], "little") + (256 if width == 2 else 0)
    return position + width, size, size if single else window, checksum
