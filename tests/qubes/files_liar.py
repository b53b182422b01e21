"""A disposable that was taken over by the file system it mounted: `python files_liar.py HOW`, in place of its programs.

It is started twice, as dom0 starts two programs: the one that attaches the disk lies as well, by never touching it.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tarfile
import time
import zlib

HOW = sys.argv[1]


def exactly(count: int) -> bytes:
    found = b""
    while len(found) < count and (piece := os.read(0, count - len(found))):
        found += piece
    return found


def say(content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(1, left) :]


def hostile_archive() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind, link in (
            ("./good", tarfile.REGTYPE, ""),
            ("./../../escaped", tarfile.REGTYPE, ""),
            ("/absolute", tarfile.REGTYPE, ""),
            ("./device", tarfile.CHRTYPE, ""),
            ("./out", tarfile.SYMTYPE, "../../.."),
            ("./out/through", tarfile.REGTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, 4 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"evil"))
    return out.getvalue()


def main() -> None:
    exactly(8)
    program = zlib.decompress(exactly(int(exactly(8), 16))).decode()
    if "memfd_create" not in program:
        if HOW == "garbage to the disk":
            say(os.urandom(1 << 20))
        while os.read(0, 65536):
            pass
        return
    found = re.search(r"NONCE=([0-9a-f]{32})", program)
    assert found is not None
    nonce = found[1].encode()
    if HOW == "dies":
        return
    if HOW == "silent":
        time.sleep(600)
    if HOW == "garbage":
        say(os.urandom(4 << 20))
        time.sleep(600)
    if HOW == "no module":
        say(nonce + b" hello\n" + nonce + b" end without kernel module nbd\n")
        return
    for line in (b"hello", b"part disk 1000 ext4", b"state disk ext4 clean", b"tar"):
        say(nonce + b" " + line + b"\n")
    say(hostile_archive() + b"\n" + nonce + b" end done 0\n")


main()
