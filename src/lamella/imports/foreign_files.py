"""Reading the files of an archive that nobody vouches for: regular files, of a bounded size, unpacked to a bound."""

from __future__ import annotations

import bz2
import io
import os
import stat
import zlib
from pathlib import Path
from typing import Any

from lamella.base.errors import NoRepository, SourceError
from lamella.format import zstd_provider
from lamella.imports.history import shown_name


def read_foreign(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises SourceError, NotThere where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise SourceError(f"{shown_name(str(path))} is no regular file", obj=str(path))
            if found.st_size > limit:
                raise SourceError(f"{shown_name(str(path))} is larger than its kind can be", obj=str(path))
            with open(fd, "rb", closefd=False) as file:
                return file.read(limit)
        finally:
            os.close(fd)
    except FileNotFoundError as error:
        raise NotThere(f"{shown_name(str(path))} is not there", obj=str(path)) from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SourceError(f"cannot read {shown_name(str(path))}: {why}", obj=str(path)) from error


def require_there(path: Path, what: str, hint: str = "") -> None:
    """Raises NoRepository where nothing is at `path`, which ought to be `what`; why it cannot be read is not asked."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoRepository(f"there is no {what} at {shown_name(str(path))}", obj=str(path), hint=hint) from error
    except (OSError, ValueError):
        return


class NotThere(SourceError):
    """A file that the archive names is not there."""


def unpacked(codec: str, content: bytes, limit: int, name: str) -> bytes:
    """What was compressed with zstd, zlib, gzip or bz2, if that is at most `limit` bytes. Raises SourceError.

    Raises UsageError where there is no zstd.
    """
    try:
        found, ended = _unpacked(codec, content, limit + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise SourceError(f"{name} does not decompress", obj=name) from error
    if len(found) > limit or not ended:
        raise SourceError(f"{name} is cut off, or larger than its kind can be", obj=name)
    return found


def _unpacked(codec: str, content: bytes, limit: int) -> tuple[bytes, bool]:
    if codec == "zstd":
        return _unzstd(content, limit)
    if codec == "bz2":
        bzip = bz2.BZ2Decompressor()
        return bzip.decompress(content, limit), bzip.eof
    inflate = zlib.decompressobj(wbits=31 if codec == "gzip" else 15)
    return inflate.decompress(content, limit), inflate.eof


def _unzstd(content: bytes, limit: int) -> tuple[bytes, bool]:
    provider, module = zstd_provider.load()
    failed: Any = module.ZstdError
    try:
        if provider == "zstandard":
            stream = module.ZstdDecompressor(max_window_size=1 << 27).stream_reader(io.BytesIO(content))
            # A frame that is cut off ends like a whole one: whoever knows the length, or the hash, sees it.
            return stream.read(limit), True
        frame = module.ZstdDecompressor()
        return frame.decompress(content, limit), frame.eof
    except failed as error:
        raise ValueError(str(error)) from error
