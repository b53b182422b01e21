#!/usr/bin/env python3
"""Lamella's emergency reader: restores volumes with nothing but this file, Python >= 3.9 and OpenSSL's libcrypto.

It only reads the repository, and believes nothing that does not verify. How to use it:

1. Copy this file out of the repository into an empty directory, and use the copy: whoever can write to the repository
   could have planted files beside the original. Compare the copy's SHA-256 with the recovery sheet.
2. See what is there:    python3 -I -S COPY list --repo REPOSITORY
3. Restore a volume:     python3 -I -S COPY restore VOLUME@SNAPSHOT --repo REPOSITORY --to FILE

The program asks for the passphrase; -h shows which other secrets it accepts. If the repository is far away, fetch what
"needs VOLUME" names, and repeat until it names nothing. Data that was compressed with zstd needs libzstd as well.
Exit codes: 0 done, 1 failed, 2 wrong use, 4 no such volume or snapshot, 10 no repository, 12 wrong key, 20 damage (what
could be restored is in FILE.lamella-partial), 21 history is missing (there may be newer snapshots), 130 interrupted.

Written from docs/FORMAT.md alone, sharing no code with Lamella; [FORMAT n] names a section of that document.
"""

import sys

# ruff: noqa: E402  (the path is made safe before anything is imported)
# ruff: noqa: PTH105, PTH108, PTH112, PTH113, PTH114, PTH120, PTH123, PTH208  (descriptors and names; pathlib adds nothing)

# ---- foundations -----------------------------------------------------------------------------------------------------


def trusted_path(path: list[str]) -> list[str]:
    """Keep the interpreter's own places only: a storage can plant ``argparse.py`` beside this file or on PYTHONPATH."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    own = __file__.rpartition("/")[0]
    for lib in (f"{sys.base_prefix}/{sys.platlibdir}", sys.base_prefix + "/lib"):
        first = f"{lib}/{version.replace('.', '')}.zip"
        if first in path:  # Everything before the zip entry is the script's directory and PYTHONPATH.
            rest = [place for place in path[path.index(first) + 1 :] if place[:1] == "/" and place != own]
            return [first, f"{lib}/{version}", f"{lib}/{version}/lib-dynload", *rest]
    prefixes = (sys.base_prefix + "/", sys.exec_prefix + "/")
    return [place for place in path if place.startswith(prefixes) and place != own]


if __name__ == "__main__" and not sys.flags.isolated:
    sys.path[:] = trusted_path(sys.path)

import argparse
import base64
import collections
import contextlib
import ctypes
import ctypes.util
import errno
import functools
import getpass
import hashlib
import hmac
import importlib
import os
import re
import stat
import struct
import time
import traceback
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, NoReturn, TypeVar

FAILED, USAGE, NO_MATCH, NO_REPOSITORY, WRONG_KEY, DAMAGE, HISTORY, INTERRUPTED = 1, 2, 4, 10, 12, 20, 21, 130
KIB, MIB = 1 << 10, 1 << 20
OBJECT_MAX = 64 * MIB  # of a pack or a commit, without the commit's trailer
PART_MAX = 8 * MIB  # of the content of a blob other than a chunk or a node
TOTAL_MAX = 64 * MIB  # of all contents of a commit, of a checkpoint's segments, of a snapshot's documents
RECORDS_MAX, CARRIED_MAX, SEGMENTS_MAX, PACKS_MAX = 65536, 1 << 18, 256, 65536  # of a commit, a checkpoint, ADD_SNAP
INVALID_NAMES = 1 << 20  # after so many a listing stops


class Problem(Exception):
    """Ends the program with an exit code and one line of text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Bad(Exception):
    """One thing that was read from the repository does not verify or is malformed."""


class Missing(Bad):
    """An object or a blob is not there."""


class Withheld(Bad):
    """The storage does not give an object's bytes, so nothing can be said about them."""


def require(holds: bool, otherwise: str) -> None:
    """Believe what was read only if a condition holds."""
    if not holds:
        raise Bad(otherwise)


class Reporter:
    """Prints warnings, each once and at most 500, and the progress on stderr."""

    def __init__(self) -> None:
        self.history = False  # whether a warning was about history: the exit code is 21 then
        self._said: set[str] = set()
        self._drawn = 0.0

    def warn(self, text: str, word: str = "warning", history: bool = False) -> None:
        self.history = self.history or history
        if text not in self._said and len(self._said) < 500:
            self._said.add(text)
            print(f"restore.py: {word}: {text}", file=sys.stderr)

    def progress(self, word: str, done: int, total: "int | None" = None) -> None:
        finished = total is not None and done >= total
        if sys.stderr.isatty() and (time.monotonic() > self._drawn + 0.2 or finished):
            self._drawn = time.monotonic()
            text = f"\r{word} {done}" + ("" if total is None else f" of {total}")
            print(text + "\x1b[K", end="\n" if finished else "", file=sys.stderr, flush=True)


class Cursor:
    """Takes fields off the front of bytes; a field that does not fit is Bad."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        require(size <= self.left(), "a field is longer than the bytes that hold it")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self) -> str:
        try:
            return self.take(self.number(1)).decode("utf-8")
        except UnicodeDecodeError:
            raise Bad("a text is not UTF-8") from None

    def expect(self, value: bytes, otherwise: str) -> None:
        require(self.take(len(value)) == value, otherwise)

    def many(self, count: int, size: int) -> list[bytes]:
        block = self.take(count * size)
        return [block[i : i + size] for i in range(0, len(block), size)]

    def left(self) -> int:
        return len(self._data) - self._at

    def end(self) -> None:
        require(not self.left(), "bytes after the last field")


def u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def shown(text: str) -> str:
    """Text from the repository, made safe for a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode("ascii") for c in text)


# ---- cryptography ----------------------------------------------------------------------------------------------------

AEAD_TAG = 16  # bytes that authenticate a sealed blob, at its end
ED25519 = 1087  # OpenSSL's number of the algorithm
SET_TAG = 0x11  # OpenSSL's number of EVP_CTRL_AEAD_SET_TAG

POINTER, BYTES, INT, SIZE = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
INT_OUT, SIZE_OUT = ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_size_t)
# For each function of a library: the type of its result, then those of its arguments.
LIBCRYPTO: dict[str, tuple[Any, ...]] = {
    "EVP_aes_256_gcm": (POINTER,),
    "EVP_chacha20_poly1305": (POINTER,),
    "EVP_CIPHER_CTX_new": (POINTER,),
    "EVP_CIPHER_CTX_ctrl": (INT, POINTER, INT, INT, BYTES),
    "EVP_DecryptInit_ex": (INT, POINTER, POINTER, POINTER, BYTES, BYTES),
    "EVP_DecryptUpdate": (INT, POINTER, POINTER, INT_OUT, BYTES, INT),
    "EVP_DecryptFinal_ex": (INT, POINTER, POINTER, INT_OUT),
    "EVP_PKEY_new_raw_public_key": (POINTER, INT, POINTER, BYTES, SIZE),
    "EVP_PKEY_new_raw_private_key": (POINTER, INT, POINTER, BYTES, SIZE),
    "EVP_PKEY_get_raw_public_key": (INT, POINTER, BYTES, SIZE_OUT),
    "EVP_PKEY_free": (None, POINTER),
    "EVP_MD_CTX_new": (POINTER,),
    "EVP_MD_CTX_free": (None, POINTER),
    "EVP_DigestVerifyInit": (INT, POINTER, POINTER, POINTER, POINTER, POINTER),
    "EVP_DigestVerify": (INT, POINTER, BYTES, SIZE, BYTES, SIZE),
}
LIBZSTD: dict[str, tuple[Any, ...]] = {
    "ZSTD_createDCtx": (POINTER,),
    "ZSTD_decompressDCtx": (SIZE, POINTER, POINTER, SIZE, BYTES, SIZE),
    "ZSTD_isError": (ctypes.c_uint, SIZE),
}


def load_library(names: list[str], word: str, functions: dict[str, tuple[Any, ...]]) -> "ctypes.CDLL | None":
    """The first library of these names, or else of the system's search for the word, that has all the functions."""
    for name in [*names, None]:
        with contextlib.suppress(OSError, AttributeError, TypeError):
            library = ctypes.CDLL(name or ctypes.util.find_library(word) or "not found")
            for function, (result, *arguments) in functions.items():
                entry = getattr(library, function)
                entry.restype, entry.argtypes = result, arguments
            return library
    return None


def prf(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def hkdf(ikm: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    """HKDF-SHA-256 of RFC 5869; size is at most 8160 bytes."""
    prk, block, out = prf(salt, ikm), b"", b""
    for counter in range(1, -(-size // 32) + 1):
        block = prf(prk, block + info + bytes([counter]))
        out += block
    return out[:size]


class Crypto:
    """What libcrypto does for this program: opening sealed blobs, and Ed25519."""

    def __init__(self) -> None:
        names = ["libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.3.dylib"]
        with contextlib.suppress(ImportError):
            own = getattr(importlib.import_module("_hashlib"), "__file__", "")
            names.insert(0, own or "")  # its symbols resolve to the library that Python itself uses
        library = load_library(names, "crypto", LIBCRYPTO)
        if library is None:
            raise Problem(FAILED, "OpenSSL's libcrypto (1.1.1 or later) was not found on this system")
        self._library, self._out, self._count = library, ctypes.create_string_buffer(MIB), ctypes.c_int(0)
        self._contexts: dict[int, Any] = {}  # by the format's number of the cipher
        for number, cipher in ((1, library.EVP_aes_256_gcm()), (2, library.EVP_chacha20_poly1305())):
            self._contexts[number] = library.EVP_CIPHER_CTX_new()
            if library.EVP_DecryptInit_ex(self._contexts[number], cipher, None, None, None) != 1:
                raise Problem(FAILED, "libcrypto refuses AES-256-GCM or ChaCha20-Poly1305")

    def open(self, aead: int, key: bytes, additional: bytes, sealed: bytes) -> "bytes | None":
        """The plaintext of what was sealed with nonce 0, or None when the tag does not verify."""
        library, context, count = self._library, self._contexts[aead], ctypes.byref(self._count)
        size = len(sealed) - AEAD_TAG
        if size < 0:
            return None
        if size > len(self._out) - 32:
            self._out = ctypes.create_string_buffer(size + MIB)
        good = (
            library.EVP_DecryptInit_ex(context, None, None, key, bytes(12)) == 1
            and library.EVP_DecryptUpdate(context, None, count, additional, len(additional)) == 1
            and library.EVP_DecryptUpdate(context, self._out, count, sealed, size) == 1
            and library.EVP_CIPHER_CTX_ctrl(context, SET_TAG, AEAD_TAG, sealed[size:]) == 1
            and library.EVP_DecryptFinal_ex(context, ctypes.byref(self._out, size), count) == 1
        )
        return ctypes.string_at(self._out, size) if good else None

    def verify(self, public: bytes, signature: bytes, message: bytes) -> bool:
        """Whether an Ed25519 signature holds."""
        if len(public) != 32 or len(signature) != 64:
            return False
        library = self._library
        key, context = library.EVP_PKEY_new_raw_public_key(ED25519, None, public, 32), library.EVP_MD_CTX_new()
        good = (
            bool(key)
            and library.EVP_DigestVerifyInit(context, None, None, None, key) == 1
            and library.EVP_DigestVerify(context, signature, 64, message, len(message)) == 1
        )
        library.EVP_MD_CTX_free(context)
        library.EVP_PKEY_free(key)
        return good

    def public(self, seed: bytes) -> bytes:
        """The Ed25519 public key of a 32-byte seed; empty if libcrypto refuses the seed."""
        key = self._library.EVP_PKEY_new_raw_private_key(ED25519, None, seed, 32)
        out, size = ctypes.create_string_buffer(32), ctypes.c_size_t(32)
        good = bool(key) and self._library.EVP_PKEY_get_raw_public_key(key, out, ctypes.byref(size)) == 1
        self._library.EVP_PKEY_free(key)
        return out.raw if good else b""


# ---- compression [FORMAT 4] ------------------------------------------------------------------------------------------


def inflate(payload: bytes, rlen: int) -> bytes:
    """A zlib stream that ends exactly at the end of payload and holds exactly rlen bytes; memory bounded by rlen."""
    decoder = zlib.decompressobj()
    try:
        content = decoder.decompress(payload, rlen + 1)
    except zlib.error as error:
        raise Bad(f"zlib: {error}") from None
    require(len(content) == rlen and decoder.eof and not decoder.unused_data, "zlib stream of another length")
    return content


def unzstd(payload: bytes, rlen: int) -> bytes:
    """Exactly one zstd frame of rlen bytes, checked before the decoder sees the frame."""
    check_zstd_frame(payload, rlen)
    return zstd_decoder()(payload, rlen)


def check_zstd_frame(payload: bytes, rlen: int) -> None:
    """RFC 8878, 3.1.1: one frame and nothing else, its size stated and right, no dictionary, a bounded window."""
    frame = Cursor(payload)
    frame.expect(b"\x28\xb5\x2f\xfd", "not a zstd frame")
    descriptor = frame.number(1)
    require(not descriptor & 0x0B, "zstd frame with a dictionary or a reserved bit")
    size, window = zstd_sizes(frame, descriptor)
    require(size == rlen and window <= max(rlen, KIB), "zstd frame of another size or window")
    last, left = False, 256 + rlen // 512
    while not last:
        header, left = frame.number(3), left - 1
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        require(left >= 0 and kind != 3 and size <= min(window, 128 * KIB), "zstd blocks that no frame needs")
        frame.take(1 if kind == 1 else size)
    frame.take(4 if descriptor & 0x04 else 0)  # the checksum, which the decoder compares
    frame.end()


def zstd_sizes(frame: Cursor, descriptor: int) -> tuple[int, int]:
    """The sizes of the content and of the window, as the header of a frame states them."""
    single_segment, flag, window = bool(descriptor & 0x20), descriptor >> 6, 0
    if not single_segment:
        byte = frame.number(1)
        window = (8 + (byte & 7)) << (7 + (byte >> 3))
        require(flag != 0, "zstd frame without its content size")
    size = frame.number(1 << flag) + (256 if flag == 1 else 0)
    return size, size if single_segment else window


ZstdDecoder = Callable[[bytes, int], bytes]


@functools.cache
def zstd_decoder() -> ZstdDecoder:
    """Python's own decoder, else the system's libzstd, else an installed module."""
    for name in ("compression.zstd", "libzstd", "backports.zstd", "zstandard"):
        library = load_library(["libzstd.so.1", "libzstd.1.dylib"], "zstd", LIBZSTD) if name == "libzstd" else None
        if library is not None:
            out = ctypes.create_string_buffer(PART_MAX)
            return functools.partial(decode_with_library, library, library.ZSTD_createDCtx(), out)
        with contextlib.suppress(ImportError):
            return functools.partial(decode_with_module, importlib.import_module(name), name)
    raise Problem(FAILED, "this data is compressed with zstd: install libzstd (package libzstd1 or zstd)")


def decode_with_library(library: ctypes.CDLL, context: int, out: Any, payload: bytes, rlen: int) -> bytes:  # noqa: ANN401
    size = library.ZSTD_decompressDCtx(context, out, min(rlen, PART_MAX), payload, len(payload))
    require(not library.ZSTD_isError(size), "zstd: the frame does not decode")
    return ctypes.string_at(out, size)


def decode_with_module(module: Any, name: str, payload: bytes, rlen: int) -> bytes:  # noqa: ANN401
    limit = {"max_output_size": rlen} if name == "zstandard" else {"max_length": rlen + 1}
    try:
        return bytes(module.ZstdDecompressor().decompress(payload, **limit))
    except module.ZstdError as error:
        raise Bad(f"zstd: {error}") from None


# ---- objects [FORMAT 1, 2] -------------------------------------------------------------------------------------------


def read_at(held: int, offset: int, size: int) -> bytes:
    """Exactly size bytes of an open file."""
    data = b""
    try:
        while len(data) < size:
            more = os.pread(held, size - len(data), offset + len(data))
            require(bool(more), "truncated")
            data = data + more if data else more
    except OSError as error:
        raise Withheld(error.strerror or "cannot be read") from None
    return data


def pack_path(name: bytes) -> str:
    return f"p/{name[:1].hex()}/{name.hex()}"


# What an error of os.open says about an object. After any other error, the storage withholds the object.
OPEN_ERRORS: dict[int, type[Bad]] = {errno.ENOENT: Missing, errno.ELOOP: Bad, errno.ENOTDIR: Bad, errno.ENXIO: Bad}


class Store:
    """The repository directory, read only: regular files below it; below its top no symbolic link is followed."""

    def __init__(self, path: str) -> None:
        try:
            self._top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Problem(NO_REPOSITORY, f"{path}: {error.strerror}") from None
        self.unlisted: set[str] = set()  # folders of which some names may not have been listed

    @contextlib.contextmanager
    def open(self, name: str, directory: bool = False) -> Iterator[int]:
        """The descriptor of an object, or of a directory."""
        parts = [part for part in name.split("/") if part]
        place = self._top
        with contextlib.ExitStack() as opened:
            for number, part in enumerate(parts, 1):
                kind = os.O_DIRECTORY if directory or number < len(parts) else 0
                try:
                    place = os.open(part, os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | kind, dir_fd=place)
                except OSError as error:
                    raise OPEN_ERRORS.get(error.errno or 0, Withheld)(f"{shown(name)}: {error.strerror}") from None
                opened.callback(os.close, place)
            require(directory or stat.S_ISREG(os.fstat(place).st_mode), f"{name}: not a regular file")
            yield place

    def read(self, name: str, limit: int) -> bytes:
        """A whole object of at most limit bytes."""
        with self.open(name) as held:
            size = os.fstat(held).st_size
            require(size <= limit, f"{name}: larger than {limit} bytes")
            return read_at(held, 0, size)

    def names(self, folder: str) -> list[str]:
        """The sorted names in a folder; none if the folder is missing."""
        try:
            with self.open(folder, directory=True) as held:
                return sorted(os.listdir(held))
        except Missing:
            return []
        except OSError as error:
            raise Bad(f"{folder}: {error.strerror}") from None

    def matching(self, folder: str, pattern: str, report: Reporter) -> Iterator[str]:
        """The names in a folder that match; the listing stops after so many others that it would not end."""
        invalid, some = 0, []
        try:
            for name in self.names(folder):
                if re.fullmatch(pattern, name):
                    yield name
                    continue
                invalid += 1
                some += [shown(name)[:80]] if invalid <= 5 else []
                if invalid >= INVALID_NAMES:
                    raise Bad(f"{folder}/: the listing stops after {invalid} names that are not of this format")
        except Bad as error:
            self.unlisted.add(folder)
            report.warn(str(error))
        if invalid:
            report.warn(f"{folder}/: {invalid} names of no object, ignored: {', '.join(some)}")

    def packs(self, report: Reporter) -> Iterator[str]:
        """The hex names of all packs."""
        for folder in self.matching("p", "[0-9a-f]{2}", report):
            yield from self.matching(f"p/{folder}", folder + "[0-9a-f]{62}", report)


class Marker(NamedTuple):
    """What the object "lamella" says; r salts every key, so a changed marker opens nothing."""

    id_alg: int  # 1 = HMAC-SHA-256, 2 = BLAKE2b
    repo_id: bytes
    prune_public: bytes
    enrol_public: bytes
    r: bytes


def load_marker(store: Store) -> Marker:
    try:
        data = store.read("lamella", 96)
    except Bad as error:
        raise Problem(NO_REPOSITORY, f"no repository here: {error}") from None
    if len(data) != 96 or data[:8] != b"LAMELLA\0":
        raise Problem(NO_REPOSITORY, "no repository here: no marker")
    if data[8] != 1 or data[10] not in (1, 2) or any(data[11:16]):
        raise Problem(FAILED, "the marker has unknown values: altered, or a format newer than this reader")
    r = hashlib.sha256(data[:9] + b"\0" + data[10:]).digest()
    return Marker(data[10], data[16:32], data[32:64], data[64:], r)


# ---- keys [FORMAT 3] -------------------------------------------------------------------------------------------------

CATALOGUE = bytes(16)  # the domain_id of commits and their segments
ID = 24  # bytes of a blob's id
DOMAIN_KEY, PASSPHRASE, RECOVERY_KEY, KEY_FILE = 0, 1, 2, 3  # kinds of secrets: 1 to 3 are the types of slots
SLOT, SLOTS_MAX, SCRYPT_SLOTS = 240, 64, 16  # bytes of a slot, signed slots that count, those for passphrases


class Domain:
    """The keys of one domain: they name and open its blobs."""

    def __init__(self, marker: Marker, domain_id: bytes, enc: bytes, id_key: bytes) -> None:
        self.domain_id, self.enc, self.additional = domain_id, enc, marker.r + domain_id
        self._id_alg, self._id_key = marker.id_alg, id_key

    def content_id(self, kind: int, content: bytes) -> bytes:
        """The id that a blob of this kind and content has."""
        word = b"lml1" + bytes([kind])
        if self._id_alg == 2:
            person = word + bytes(11)
            return hashlib.blake2b(content, key=self._id_key, digest_size=ID, person=person).digest()
        mac = hmac.new(self._id_key, word, "sha256")
        mac.update(content)
        return mac.digest()[:ID]


class Keys:
    """What a secret opens: everything (data_root is there), or one domain (from an exported domain key file)."""

    def __init__(self, marker: Marker, data_root: "bytes | None", domain: "Domain | None" = None) -> None:
        self.marker, self.whole, self._root = marker, data_root is not None, data_root or b""
        self._domains = {domain.domain_id: domain} if domain else {}
        self._hdr = self._derive(b"hdr", b"")

    def _derive(self, purpose: bytes, name: bytes) -> bytes:
        info = b"lamella/1\0" + bytes([len(purpose)]) + purpose + bytes([len(name)]) + name
        return hkdf(self._root, self.marker.r, info, 32)

    def domain(self, domain_id: bytes) -> Domain:
        if domain_id not in self._domains:
            if not self.whole:
                raise Problem(WRONG_KEY, "the domain key file is for another domain")
            word = b"idh" if self.marker.id_alg == 1 else b"idb"
            if domain_id == CATALOGUE:
                keys = self._derive(b"cat", b"enc"), self._derive(b"cat", word)
            else:
                keys = self._derive(b"enc", domain_id), self._derive(word, domain_id)
            self._domains[domain_id] = Domain(self.marker, domain_id, *keys)
        return self._domains[domain_id]

    def hint(self, header: bytes) -> "bytes | None":
        """The domain_id in a container's hint, if the hint is valid and data_root is there to read it [FORMAT 5]."""
        if not self.whole:
            return None
        salt, hint = header[16:48], header[48:72]
        domain_id = xor(hint[:16], prf(self._hdr, b"hint" + salt))
        return domain_id if hmac.compare_digest(prf(self._hdr, b"mac" + salt + domain_id)[:8], hint[16:]) else None


def xor(data: bytes, mask: bytes) -> bytes:
    return bytes(byte ^ mask[i] for i, byte in enumerate(data))


def recovery_key(text: str) -> bytes:
    """The 32 bytes of a recovery key as people write it."""
    letters = "".join(text.split()).replace("-", "").upper().translate(str.maketrans("018", "OIB"))
    letters = letters if len(letters) == 56 else re.sub("(....).", r"\1", letters)  # each fifth one checks its group
    try:
        data = base64.b32decode(letters)
    except ValueError:
        data = b""
    if len(data) != 35 or hashlib.sha256(b"lamella recovery" + data[:32]).digest()[:3] != data[32:]:
        raise Problem(WRONG_KEY, "this is not a recovery key: its checksum does not fit (a typing mistake?)")
    return data[:32]


class Slot:
    """A key slot: data_root, wrapped with one secret. Form, name and signature are checked before a secret is tried."""

    def __init__(self, data: bytes, name: str, marker: Marker, crypto: Crypto) -> None:
        whole = len(data) == SLOT and data[:8] == b"LMLSLOT\x01"
        require(whole and hashlib.sha256(data).hexdigest()[:8] == name, "not a whole key slot")
        message = b"lamella/1 slot\0" + marker.r + data[:176]
        require(crypto.verify(marker.prune_public, data[176:], message), "no admin signed it")
        self._data, self.kind, self._role, cost = data, data[8], data[9], data[10:13]
        scrypt = 15 <= cost[0] <= 20 and cost[1] == 8 and 1 <= cost[2] <= 4
        known = scrypt if self.kind == PASSPHRASE else self.kind in (RECOVERY_KEY, KEY_FILE) and not any(cost)
        require(known and self._role in (1, 2) and not any(data[13:16]), "unknown type, role or cost")

    def open(self, secret: bytes, marker: Marker, crypto: Crypto) -> "bytes | None":
        """data_root, or None for a wrong secret."""
        data, (log_n, r, p) = self._data, self._data[10:13]
        if self.kind == PASSPHRASE:
            memory = 128 * r * ((1 << log_n) + p + 2) + MIB
            try:
                kek = hashlib.scrypt(secret, salt=data[16:48], n=1 << log_n, r=r, p=p, maxmem=memory, dklen=32)
            except (MemoryError, ValueError):
                raise Problem(FAILED, f"not enough memory: a passphrase needs {memory // MIB} MiB") from None
        else:
            kek = hkdf(secret, data[16:48], b"lamella/1 kek\0" + marker.r + data[:16], 32)
        if not hmac.compare_digest(prf(hkdf(kek, marker.r, b"mac", 32), data[:144]), data[144:176]):
            return None
        bundle = xor(data[48:144], hkdf(kek, marker.r, b"wrap", 96))
        data_root, seed, enrol = bundle[:32], bundle[32:64], bundle[64:]
        fits = crypto.public(seed) == marker.prune_public if self._role == 1 else not any(seed)
        if not fits or crypto.public(enrol) != marker.enrol_public:
            raise Problem(WRONG_KEY, "a key slot opens, but does not fit its role and the marker")
        return data_root


def unlock(store: Store, marker: Marker, kind: int, secret: bytes, crypto: Crypto, report: Reporter) -> Keys:
    """Try a secret on the slots of its kind that an admin signed, in order of name."""
    slots: list[Slot] = []
    ignored, withheld = [], ""
    for name in store.names("keys"):
        try:
            slot = Slot(store.read(f"keys/{name}", SLOT), name, marker, crypto)
            require(len(slots) < SLOTS_MAX, "more slots than count")
            slots.append(slot)
        except Withheld as error:
            withheld = withheld or f"keys/{shown(name)}: {error}"
        except Bad:
            ignored.append(shown(name)[:80])
    if ignored:
        text = f"{len(ignored)} objects in keys/ that no admin signed are ignored: {', '.join(ignored[:5])}"
        report.warn(text, "note")
    fitting = [slot for slot in slots if slot.kind == kind][: SCRYPT_SLOTS if kind == PASSPHRASE else SLOTS_MAX]
    for slot in fitting:
        data_root = slot.open(secret, marker, crypto)
        if data_root is not None:
            return Keys(marker, data_root)
    if withheld:
        raise Problem(FAILED, f"{withheld}: no slot that can be read opens")
    raise Problem(WRONG_KEY, f"wrong key or altered marker: it opens none of {len(fitting)} slots of its kind")


class Tree(NamedTuple):
    """What a restore walks: a volume of an exported domain key file, or the volume of a snapshot."""

    name: str
    volume_id: bytes
    domain_id: bytes
    root: bytes
    size: int
    log2: int  # of the size of a chunk


def load_domain_key(data: bytes, marker: Marker) -> tuple[Keys, list[Tree]]:
    """The keys and the volumes in an exported domain key file."""
    c = Cursor(data)
    c.expect(b"LMLDOMK\x01", "not a domain key file")
    id_alg = c.number(1)
    c.expect(bytes(7), "reserved bytes are set")
    r, domain_id, enc, id_key = c.take(32), c.take(16), c.take(32), c.take(32)
    if r != marker.r or id_alg != marker.id_alg or domain_id == CATALOGUE:
        raise Problem(WRONG_KEY, "the domain key file is of another repository, or the marker was altered")
    volumes = []
    for _ in range(c.number(4)):
        name, volume_id, root, size, log2 = c.text(), c.take(16), c.take(ID), c.number(8), c.number(1)
        require(16 <= log2 <= 22, "impossible chunk size")
        volumes.append(Tree(name, volume_id, domain_id, root, size, log2))
    c.end()
    return Keys(marker, None, Domain(marker, domain_id, enc, id_key)), volumes


# ---- packs [FORMAT 4, 5, 7] ------------------------------------------------------------------------------------------

HEADER = 72  # bytes of a container before its directory
HEAD_READ = 32 * KIB  # of a pack: enough for the directories of most
ALIGN = 16
CHUNK, LEAF, INNER, DOCUMENT, COMMIT, SEGMENT = 1, 2, 3, 5, 6, 7  # kinds of blobs
INNER_MAX, LEAF_MAX = 1592, 4664
CONTENT_MAX = {CHUNK: 4 * MIB, LEAF: LEAF_MAX, INNER: INNER_MAX} | dict.fromkeys((DOCUMENT, COMMIT, SEGMENT), PART_MAX)
CODECS: tuple[Callable[[bytes, int], bytes], ...] = (lambda payload, _: payload, inflate, unzstd)


class Entry(NamedTuple):
    """A blob as a directory names it."""

    ident: bytes
    kind: int
    clen: int  # bytes when sealed
    rlen: int  # bytes of the content
    at: int  # offset from the start of the object
    gap: int  # zero bytes before it


class Container:
    """Header and keys of a pack or a commit; bound = writer_id || seq of a commit."""

    def __init__(self, crypto: Crypto, domain: Domain, header: bytes, bound: bytes = b"") -> None:
        require(len(header) >= HEADER and header[:8] == b"LMLPACK\x01", "not a pack")
        require(header[8] in (1, 2) and header[9] == 1 and not any(header[10:12]), "unknown cipher or flags")
        self.dir_len = int.from_bytes(header[12:16], "little")
        self._count, rest = divmod(self.dir_len - 49, 32)
        require(not rest and 1 <= self._count <= 0xFFFF, "impossible length of the directory")
        self._crypto, self._domain, self._aead = crypto, domain, header[8]
        self._additional = header[:12] + domain.additional + bound
        self._key = prf(domain.enc, b"pack" + header[8:9] + header[16:48])

    def _body(self, kind: int, ident: bytes, sealed: bytes, rlen: int) -> tuple[int, bytes]:
        """The codec and the payload of a sealed blob."""
        body = self._crypto.open(self._aead, prf(self._key, bytes([kind]) + ident), self._additional, sealed)
        if body is None:
            raise Bad("does not decrypt (altered or damaged)")
        require(len(body) >= 5 and int.from_bytes(body[1:5], "little") == rlen, "another length than stated")
        return body[0], body[5:]

    def blob(self, kind: int, ident: bytes, sealed: bytes, rlen: int) -> bytes:
        """The content of a sealed blob, checked down to its id."""
        codec, payload = self._body(kind, ident, sealed, rlen)
        require(codec < len(CODECS), f"unknown codec {codec}")
        content = CODECS[codec](payload, rlen)
        require(len(content) == rlen and self._domain.content_id(kind, content) == ident, "does not match its id")
        return content

    def directory(self, data: bytes, kinds: tuple[int, ...]) -> list[Entry]:
        """The entries of the directory; data = at least the first 72 + dir_len bytes of the object."""
        ident, sealed = data[HEADER : HEADER + ID], data[HEADER + ID : HEADER + self.dir_len]
        require(len(sealed) == self.dir_len - ID, "truncated in the directory")
        size = 4 + 32 * self._count
        codec, content = self._body(0, ident, sealed, size)
        well_formed = not codec and len(content) == size and content[:4] == struct.pack("<HH", 1, self._count)
        require(well_formed, "malformed directory")
        require(prf(self._key, b"dir" + content)[:ID] == ident, "the directory does not match its id")
        return self._entries(content[4:], kinds)

    def _entries(self, rows: bytes, kinds: tuple[int, ...]) -> list[Entry]:
        entries: list[Entry] = []
        seen: set[tuple[int, bytes]] = set()
        end = HEADER + self.dir_len
        for ident, word, rlen in struct.iter_unpack("<24sII", rows):
            kind, clen, gap = word >> 24, word & 0xFFFFFF, -end % ALIGN
            possible = kind in kinds and rlen <= CONTENT_MAX[kind] and 21 <= clen <= 21 + rlen
            require(possible and (kind, ident) not in seen, "impossible directory entry")
            seen.add((kind, ident))
            entries.append(Entry(ident, kind, clen, rlen, end + gap, gap))
            end += gap + clen
        require(end <= OBJECT_MAX, "longer than 64 MiB")
        return entries


class BlobMap:
    """The places of each blob, as (pack number, offset, clen, rlen, gap), in a private SQLite file that vanishes."""

    def __init__(self) -> None:
        self._base = importlib.import_module("sqlite3").connect("", isolation_level=None)  # only restoring needs it
        for pragma in ("cache_size=-32000", "journal_mode=OFF", "synchronous=OFF"):
            self._base.execute("PRAGMA " + pragma)
        self._base.execute("CREATE TABLE blob (key BLOB, pack INT, at INT, clen INT, rlen INT, gap INT)")
        self._base.execute("BEGIN")

    def __del__(self) -> None:
        self._base.close()

    def add(self, pack: int, entries: list[Entry]) -> None:
        rows = [(bytes([e.kind]) + e.ident, pack, e.at, e.clen, e.rlen, e.gap) for e in entries]
        self._base.executemany("INSERT INTO blob VALUES (?, ?, ?, ?, ?, ?)", rows)

    def finish(self) -> None:
        self._base.execute("CREATE INDEX place ON blob (key, pack, at, clen, rlen, gap)")

    def places(self, kind: int, ident: bytes) -> list[tuple[int, int, int, int, int]]:
        query = "SELECT pack, at, clen, rlen, gap FROM blob WHERE key = ?"
        return list(self._base.execute(query, (bytes([kind]) + ident,)))


class Repository(NamedTuple):
    """An opened repository."""

    store: Store
    keys: Keys
    crypto: Crypto
    report: Reporter


def merged(old: bytes, difference: bytes) -> bytes:
    """A chunk made of another one and of its blocks of 4 KiB that differ; the caller checks the id."""
    end, size = (int.from_bytes(difference[at : at + 4], "little") for at in (0, 5))
    head, end = -(-len(old) // 32768), end + 4
    fits = 9 <= end <= len(difference) and head <= size <= head + len(old) and not any(difference[end:])
    require(fits and difference[4] < len(CODECS), "a malformed difference")
    listed, made, at = CODECS[difference[4]](difference[9:end], size), bytearray(old), head
    require(len(listed) == size, "a difference of another length")
    for start in range(0, len(old), 4096):
        if listed[start >> 15] >> (start >> 12 & 7) & 1:
            step = min(4096, len(old) - start)
            made[start : start + step], at = listed[at : at + step], at + step
    require(at == size and len(made) == len(old), "a difference of another chunk")
    return bytes(made)


class Blobs:
    """The blobs of one domain, found by the directories at the front of the packs."""

    def __init__(self, repo: Repository, domain_id: bytes) -> None:
        self._repo, self.domain = repo, repo.keys.domain(domain_id)
        self._kinds = (SEGMENT,) if domain_id == CATALOGUE else (CHUNK, LEAF, INNER, DOCUMENT)
        self._map = BlobMap()
        self._packs = bytearray()  # the names of the packs in the map, 32 bytes each
        self._open: dict[bytes, tuple[int, Container]] = {}  # the packs used last, with their descriptors
        self.bad_packs: set[bytes] = set()

    def __del__(self) -> None:
        for held, _ in self._open.values():
            os.close(held)

    def scan(self) -> "Blobs":
        """Read the head of every pack, and remember where the blobs of this domain lie."""
        for number, name in enumerate(self._repo.store.packs(self._repo.report)):
            self.scan_pack(bytes.fromhex(name))
            self._repo.report.progress("packs looked at:", number)
        self._map.finish()
        return self

    def scan_pack(self, name: bytes) -> None:
        """Read the head of one pack; a pack that does not open is reported, and no harm is done."""
        try:
            with self._repo.store.open(pack_path(name)) as held:
                self._scan_head(held, name)
        except Bad as error:
            if self._repo.keys.whole:  # With the key of one domain, it is no news that other packs do not open.
                self.bad_packs.add(name)
                self._repo.report.warn(f"{pack_path(name)}: {error}; ignored")

    def _scan_head(self, held: int, name: bytes) -> None:
        size = os.fstat(held).st_size
        data = read_at(held, 0, min(size, HEAD_READ))
        hint = self._repo.keys.hint(data)
        if hint not in (None, self.domain.domain_id):
            return
        container = Container(self._repo.crypto, self.domain, data)
        data += read_at(held, len(data), max(0, HEADER + container.dir_len - len(data)))
        entries = container.directory(data, self._kinds)
        if size != entries[-1].at + entries[-1].clen or (hint is None and self._repo.keys.whole):
            self.bad_packs.add(name)
            self._repo.report.warn(f"{pack_path(name)}: its length or hint is wrong; what is whole in it is used")
        self._map.add(len(self._packs) // 32, [entry for entry in entries if entry.at + entry.clen <= size])
        self._packs += name

    def _container(self, name: bytes) -> tuple[int, Container]:
        """The open descriptor of a pack and its container; the pack that was not used for longest is closed."""
        pack = self._open.pop(name, None)
        if pack is None:
            with self._repo.store.open(pack_path(name)) as held:
                container = Container(self._repo.crypto, self.domain, read_at(held, 0, HEADER))
                pack = os.dup(held), container
            if len(self._open) >= 48:
                os.close(self._open.pop(next(iter(self._open)))[0])
        self._open[name] = pack
        return pack

    def located(self, kind: int, ident: bytes) -> bool:
        return bool(self._map.places(kind, ident))

    def held(self, ident: bytes) -> bool:
        """Whether a chunk, or what the chunk is made of, is in some pack that is here."""
        parts = ident[ID : 2 * ID], ident[2 * ID :]
        return self.located(CHUNK, ident[:ID]) or (len(ident) > ID and all(self.located(CHUNK, one) for one in parts))

    def chunk(self, ident: bytes, size: int) -> bytes:
        """The content of a chunk. A difference has three ids: of the chunk, its base, and of what differs."""
        if len(ident) == ID:
            return self.read(CHUNK, ident, size, size)
        if self.located(CHUNK, ident[:ID]):
            with contextlib.suppress(Bad):
                return self.read(CHUNK, ident[:ID], size, size)
        base = self.read(CHUNK, ident[ID : 2 * ID], size, size)
        content = merged(base, self.read(CHUNK, ident[2 * ID :], 9, 4 * MIB))
        require(self.domain.content_id(CHUNK, content) == ident[:ID], "the difference makes another chunk")
        return content

    def read(self, kind: int, ident: bytes, low: int, high: int) -> bytes:
        """The content of a blob of low to high bytes, from the first of its places that verifies."""
        errors = []
        for number, offset, clen, rlen, gap in self._map.places(kind, ident):
            name = bytes(self._packs[32 * number : 32 * number + 32])
            try:
                require(low <= rlen <= high, "another length than its position implies")
                held, container = self._container(name)
                data = read_at(held, offset - gap, gap + clen)
                if any(data[:gap]):
                    self._repo.report.warn(f"{pack_path(name)}: padding is not zero before {offset}")
                content = container.blob(kind, ident, data[gap:], rlen)
            except Bad as error:
                self.bad_packs.add(name)
                errors.append(f"{pack_path(name)}: {error}")
                continue
            for text in errors:
                self._repo.report.warn(f"bad copy, another one was used: {text}")
            return content
        if not errors:
            raise Missing(f"blob {ident.hex()} is in no pack that is here")
        raise Bad("; ".join(errors))


# ---- commits [FORMAT 8] ----------------------------------------------------------------------------------------------

TRAILER = 192  # bytes after the container of a commit

# Types of records; those from 0x8000 on are optional.
WRITER, VOLUME, ADD_SNAP, CONFIRM, TAG, RENAME = 1, 2, 3, 4, 5, 6
CHECKPOINT, SUCCEEDS, REMOVE, AUDITED, FORGO, REVIVE, REMOVE_LAST = 0x0C, 0x0D, 0x10, 0x15, 0x16, 0x17, 0x18
JOIN, GIVE, EXPEL, READMIT, ADMIT = 0x19, 0x1A, 0x1B, 0x1C, 0x1D
RUN, LOST, SEEN = 0x8001, 0x8002, 0x8003
KNOWN = frozenset((*range(0x01, 0x0E), *range(0x10, 0x1E)))  # of the required ones
SIGNED = frozenset((VOLUME, *range(0x05, 0x0A), *range(0x10, 0x1E), LOST))  # they end in a signature, or in zeros
DELTAS, ORIGIN, REBUILT = 0x0002, 0x8010, 0x8020  # records inside an ADD_SNAP


class Head(NamedTuple):
    """What names a commit."""

    writer: bytes
    seq: int
    sha: bytes


def head_of(name: bytes) -> Head:
    return Head(*struct.unpack("<16sQ32s", name))


def commit_path(writer: bytes, seq: int, sha: bytes) -> str:
    return f"w/{writer.hex()}/{seq:016x}-{sha.hex()}"


class Commit:
    """A valid commit; sha is empty for a commit that is known only by the entries of a checkpoint."""

    def __init__(self, writer: bytes, seq: int, sha: bytes, c: Cursor) -> None:
        self.writer, self.seq, self.sha, self.prev, self.when = writer, seq, sha, c.take(32), c.number(8)
        self.newest, self.carried = b"", b""  # checkpoint_seq || checkpoint_sha256 before it; its own CHECKPOINT
        self.seen: tuple[Head, ...] = ()
        self.known: dict[bytes, int] = {}  # writer -> the newest seq that this commit had seen
        self.proofs: set[bytes] = set()  # what a damaged copy of this commit would still prove

    def name(self) -> bytes:
        return self.writer + u64(self.seq) + self.sha

    def path(self) -> str:
        return commit_path(self.writer, self.seq, self.sha)

    def head(self) -> Head:
        return Head(self.writer, self.seq, self.sha)

    def before(self) -> Head:
        return Head(self.writer, self.seq - 1, self.prev)


RawRecord = tuple[int, bytes]  # type and value


def records_of(c: Cursor) -> list[RawRecord]:
    records: list[RawRecord] = []
    while c.left():
        require(len(records) < RECORDS_MAX, "too many records")
        records.append((c.number(2), c.take(c.number(4))))
    return records


class CommitReader:
    """Opens commits and their checkpoints, and believes nothing that does not verify."""

    def __init__(self, repo: Repository) -> None:
        self._repo = repo
        self._enrolled: dict[tuple[bytes, bytes], bytes] = {}  # by public key and enrolment, who enrolled the writer
        self.admitted: set[bytes] = set()  # writers that the prune key enrolled
        self.absent_packs: set[str] = set()  # objects in which the segments of checkpoints should be

    def read(self, head: Head) -> bytes:
        return self._repo.store.read(commit_path(*head), OBJECT_MAX + TRAILER)

    def open(self, head: Head, data: bytes) -> tuple[Commit, list[RawRecord]]:
        """A commit, checked from its name to its body, and its records."""
        box, container_sha = data[:-TRAILER], data[-96:-64]
        require(hashlib.sha256(data).digest() == head.sha, "does not match its name")
        self._check_trailer(head, data)
        require(hashlib.sha256(box).digest() == container_sha, "its trailer belongs to another commit")
        return self._parse(head, Cursor(self._body(head, box)), {container_sha, directory_proof(box)})

    def _parse(self, head: Head, c: Cursor, proofs: set[bytes]) -> tuple[Commit, list[RawRecord]]:
        c.expect(b"\x01" + bytes(7), "unknown version of a commit")
        c.expect(head.writer + u64(head.seq), "names another writer or number inside")
        commit = Commit(*head, c)
        commit.newest, commit.proofs = c.take(40), proofs
        require(commit.seq > 0 and (commit.seq == 1) == (commit.prev == bytes(32)), "impossible number or predecessor")
        newest = int.from_bytes(commit.newest[:8], "little")
        require(newest < commit.seq and bool(newest) == any(commit.newest[8:]), "impossible checkpoint before it")
        count = c.number(4)
        require(count <= 1024, "more than 1024 heads seen")
        commit.seen = tuple(head_of(name) for name in c.many(count, 56))
        records = records_of(c)
        commit.carried = next((value for kind, value in records if kind == CHECKPOINT and sound(kind, value)), b"")
        return commit, records

    def proofs(self, head: Head, data: bytes) -> set[bytes]:
        """What an object that is no valid commit still proves: that there was a commit of this trailer or directory."""
        proofs = set()
        with contextlib.suppress(Bad):
            self._check_trailer(head, data)
            proofs.add(data[-96:-64])
        with contextlib.suppress(Bad):  # The hint is not asked: it may be what is damaged.
            self._container(head, data).directory(data, (COMMIT,))
            proofs.add(directory_proof(data))
        return proofs

    def _check_trailer(self, head: Head, data: bytes) -> None:
        """Check public key[32] || enrolment[64] || SHA-256 of the container[32] || signature[64] at a commit's end."""
        public, enrolment, signature = data[-TRAILER:-160], data[-160:-96], data[-64:]
        marker, verify = self._repo.keys.marker, self._repo.crypto.verify
        signers = marker.enrol_public, marker.prune_public
        own = hashlib.sha256(public).digest()[:16] == head.writer and public not in signers
        require(own, "is not the writer's")
        if (public, enrolment) not in self._enrolled:
            message = b"lamella/1 enrol\0" + marker.r + public
            by = [key for key in signers if verify(key, enrolment, message)]
            require(bool(by), "nobody enrolled its writer")
            self._enrolled[public, enrolment] = by[0]
        message = b"lamella/1 commit\0" + marker.r + head.writer + u64(head.seq) + data[-TRAILER:-64]
        require(verify(public, signature, message), "its signature is wrong")
        self.admitted |= {head.writer} if self._enrolled[public, enrolment] == marker.prune_public else set()

    def _container(self, head: Head, box: bytes) -> Container:
        bound = head.writer + u64(head.seq)
        return Container(self._repo.crypto, self._repo.keys.domain(CATALOGUE), box, bound)

    def _body(self, head: Head, box: bytes) -> bytes:
        """The parts of a commit's body, opened and joined."""
        container = self._container(head, box)
        require(self._repo.keys.hint(box) == CATALOGUE, "is not in the catalogue domain")
        entries, end, body = container.directory(box, (COMMIT,)), HEADER + container.dir_len, b""
        require(sum(entry.rlen for entry in entries) <= TOTAL_MAX, "longer than 64 MiB")
        for entry in entries:
            start, end = end, entry.at + entry.clen
            require(not any(box[start : entry.at]), "padding is not zero")
            body += container.blob(COMMIT, entry.ident, box[entry.at : end], entry.rlen)
        require(end == len(box), "bytes after the last blob")
        return body

    def checkpoint(self, commit: Commit) -> list[tuple[Commit, int, bytes]]:
        """The records that a commit's checkpoint carries, each as (its own commit, type, value)."""
        c = Cursor(commit.carried)
        c.many(c.number(4), 40)  # earlier checkpoints
        found = []
        known: dict[bytes, int] = {}
        for author, kind, value in self._entries(commit.writer, c):
            if kind == SEEN:  # From here on the authors of the records had seen these commits.
                for writer, seq in struct.iter_unpack("<16sQ", value[2:] if sound(kind, value) else b""):
                    known[writer] = max(seq, known.get(writer, 0))
            author.known = dict(known)
            found.append((author, kind, value))
        return found

    def _entries(self, writer: bytes, c: Cursor) -> Iterator[tuple[Commit, int, bytes]]:
        """The entries in the segments that a checkpoint names, then those that it holds itself."""
        size = count = 0
        for content in self._parts(c.many(c.number(4), ID + 32), c.take(c.left())):
            c, size = Cursor(content), size + len(content)
            while c.left():
                count += 1
                require(size <= TOTAL_MAX and count <= CARRIED_MAX, "carries too much")
                author = Commit(writer, c.number(8), b"", c)
                kind, value = c.number(2), c.take(c.number(4))
                require(author.seq > 0 and kind != CHECKPOINT, "an entry that no commit can have made")
                yield author, kind, value

    def _parts(self, wanted: list[bytes], rest: bytes) -> Iterator[bytes]:
        """The contents of a checkpoint's segments (the id of each, and the pack in which it was put), and the rest."""
        require(len(wanted) <= SEGMENTS_MAX, "too many segments")
        blobs = Blobs(self._repo, CATALOGUE)
        for segment in wanted:
            blobs.scan_pack(segment[ID:])
        if not all(blobs.located(SEGMENT, segment[:ID]) for segment in wanted):
            blobs = Blobs(self._repo, CATALOGUE).scan()
            self.absent_packs |= {pack_path(s[ID:]) for s in wanted if not blobs.located(SEGMENT, s[:ID])}
        for segment in wanted:
            content = blobs.read(SEGMENT, segment[:ID], 8, PART_MAX)
            require(content[:8] == b"\x01" + bytes(7), "unknown version of a segment")
            yield content[8:]
        yield rest


def directory_proof(box: bytes) -> bytes:
    """Salt and id of a container's directory."""
    return box[16:48] + box[HEADER : HEADER + ID]


# What records say: values with the commit and the order of their record.
SaidT = TypeVar("SaidT", "Naming", "Mark", "Snapshot")


class Chains:
    """All commits that count, by writer, and the order in which they came."""

    def __init__(self) -> None:
        self.commits: dict[bytes, Commit] = {}  # by SHA-256
        self.by_writer: dict[bytes, list[Commit]] = collections.defaultdict(list)
        self.forked: set[bytes] = set()  # writers

    def add(self, commit: Commit) -> None:
        self.commits[commit.sha] = commit
        self.by_writer[commit.writer].append(commit)

    def of(self, writer: bytes) -> list[Commit]:
        return self.by_writer.get(writer, [])

    def before(self, a: Commit, b: Commit) -> bool:
        """Whether a came before b: b follows a in a chain, or had seen a."""
        if a.writer != b.writer:
            return b.known.get(a.writer, 0) >= a.seq
        if a.seq >= b.seq or a.writer not in self.forked:
            return a.seq < b.seq
        while b.seq > a.seq and b.prev in self.commits:
            b = self.commits[b.prev]
        return a.sha == b.sha

    def earlier(self, a: SaidT, b: SaidT) -> bool:
        """Whether record a came before record b."""
        return a.order < b.order if a.commit.name() == b.commit.name() else self.before(a.commit, b.commit)

    def first(self, items: Iterable[SaidT]) -> list[SaidT]:
        """The items that no other one is before, smaller writer_id first."""
        return self._edge(sorted(items, key=said_at), lambda item, other: self.earlier(other, item))

    def last(self, items: Iterable[SaidT]) -> list[SaidT]:
        """The items that no other one is after, smaller writer_id first."""
        return self._edge(sorted(items, key=said_at, reverse=True), self.earlier)

    def _edge(self, items: list[SaidT], beaten: Callable[[SaidT, SaidT], bool]) -> list[SaidT]:
        best: dict[Any, SaidT] = {}  # only the first item of a chain can be at the edge; on branches each can
        for item in items:
            best.setdefault(item.order if item.commit.writer in self.forked else item.commit.writer, item)
        edge = [item for item in best.values() if not any(beaten(item, other) for other in best.values())]
        return sorted(edge or best.values(), key=lambda item: item.commit.name())  # In a circle every item is beaten.

    def heads(self) -> list[Commit]:
        """The newest commit of each chain, or the end of each branch of a forked one; ordered by bytes."""
        parents = {commit.prev for commit in self.commits.values()}
        ends = [commit for commit in self.commits.values() if commit.sha not in parents]
        return sorted((c for c in ends if c.writer in self.forked or c is self.of(c.writer)[-1]), key=Commit.name)


def said_at(item: "Naming | Mark | Snapshot") -> tuple[int, int]:
    return item.commit.seq, item.order


# ---- history [FORMAT 8] ----------------------------------------------------------------------------------------------


class Record(NamedTuple):
    """A record, before it is taken apart."""

    commit: Commit
    order: int
    kind: int
    value: bytes
    signed: bool  # with the prune key


class Naming(NamedTuple):
    """What a VOLUME or RENAME record says."""

    commit: Commit
    order: int
    signed: bool
    name: str
    domain_id: bytes  # empty in RENAME
    label: str  # of the domain
    created: set[bytes]  # who created the volume, if that is known by this record


class Mark(NamedTuple):
    """What a TAG or LOST record says: whether the tag applies, whether a part of the snapshot is lost."""

    commit: Commit
    order: int
    signed: bool
    applies: bool


class Snapshot(NamedTuple):
    """What an ADD_SNAP or REVIVE record says."""

    commit: Commit
    order: int
    ref: bytes  # writer_id || seq || snap_id
    tree: Tree
    consistency: int
    when: int
    name: str
    documents: list[tuple[str, int, list[bytes]]]  # name, size, ids of the parts
    packs: list[bytes]
    inner: list[int]  # types of the records inside, in ascending order
    origin: bytes  # of a copy, repo_id || ref of where it was first published; else empty

    def snap_id(self) -> bytes:
        return self.ref[24:]

    def unusable(self) -> str:
        """Why this program cannot restore the snapshot; empty if it can."""
        unknown = [kind for kind in self.inner if kind < 0x8000 and kind != DELTAS]
        return f"needs feature {unknown[0]:#06x}, which this reader does not know" if unknown else ""


def fields(c: Cursor, layout: tuple[Any, ...]) -> None:
    """Check the fields of a record: each is so many bytes, (bytes of a count, the fields of each), or a function."""
    for field in layout:
        if isinstance(field, int):
            c.take(field)
        elif isinstance(field, tuple):
            for _ in range(c.number(field[0])):
                fields(c, field[1:])
        else:
            field(c)


def one_of(*numbers: int) -> Callable[[Cursor], None]:
    """A byte that has one of these values."""
    return lambda c: require(c.number(1) in numbers, "an unknown value")


def lost_parts(c: Cursor) -> None:
    """The parts that LOST names: ranges that ascend, are not empty and do not touch, and their possible sum."""
    lost, count = c.number(8), c.number(4)
    ranges = [struct.unpack("<QQ", one) for one in c.many(count, 16)]
    gaps = all(ranges[i][0] + ranges[i][1] < ranges[i + 1][0] for i in range(len(ranges) - 1))
    total = sum(size for _, size in ranges)
    require(count <= 4096 and gaps and all(size for _, size in ranges), "impossible ranges")
    require(lost <= total and (lost > 0) == (count > 0), "an impossible sum")
    fields(c, ((2, Cursor.text),))


LAYOUTS: dict[int, tuple[Any, ...]] = {
    WRITER: (Cursor.text, Cursor.text),
    VOLUME: (32, one_of(*range(16, 23)), Cursor.text, Cursor.text, lambda c: c.take(c.number(2)), 64, 64),
    CONFIRM: ((4, 40),),
    TAG: (40, one_of(1, 2), Cursor.text, 64),
    RENAME: (16, Cursor.text, 64),
    CHECKPOINT: ((4, 40), (4, ID + 32), lambda c: c.take(c.left())),
    **dict.fromkeys((SUCCEEDS, JOIN, GIVE), (96,)),
    EXPEL: (72, (2, 16), 64),
    READMIT: (80,),
    ADMIT: (one_of(0, 1), (4, 96), 64),
    AUDITED: (120,),
    FORGO: (160,),
    **dict.fromkeys((REMOVE, REMOVE_LAST), ((4, 40), 64)),
    RUN: (Cursor.text, one_of(0, 1), (2, 16, Cursor.text, one_of(0, 1), Cursor.text)),
    LOST: (40, lost_parts, 64),
    SEEN: ((2, 24),),
}


def sound(kind: int, value: bytes) -> bool:
    """Whether a record has the form of its type [FORMAT 8]; those that have another reader are not looked at here."""
    c = Cursor(value)
    try:
        fields(c, LAYOUTS.get(kind, (len(value),)))
    except Bad:
        return False
    return not c.left()


def parse_snapshot(record: Record, c: Cursor, keep_packs: bool) -> Snapshot:
    snap_id, volume_id, domain_id = c.many(3, 16)
    log2, consistency, flags, size, root = c.number(1), c.number(1), c.number(2), c.number(8), c.take(ID)
    when, _, name = c.number(8), c.take(40), c.text()
    documents = [(c.text(), c.number(8), c.many(c.number(2), ID)) for _ in range(c.number(2))]
    packs = c.many(c.number(4), 32)
    inside = records_of(c)
    inner = sorted(kind for kind, _ in inside)
    origin = next((value[:56] for kind, value in inside if kind == ORIGIN and len(value) == 112), b"")
    fit = all(len(parts) == -(-size // (PART_MAX - 8)) for _, size, parts in documents)
    require(fit and sum(size for _, size, _ in documents) <= TOTAL_MAX, "documents of impossible sizes")
    fit = consistency <= max(CONSISTENCY) and len(packs) <= PACKS_MAX and size < 1 << 63 and 16 <= log2 <= 22
    require(fit and domain_id != CATALOGUE and not flags, "ADD_SNAP with impossible values")
    tree = Tree(name, volume_id, domain_id, root, size, log2)
    ref = record.commit.writer + u64(record.commit.seq) + snap_id
    kept = packs if keep_packs else []
    return Snapshot(record.commit, record.order, ref, tree, consistency, when, name, documents, kept, inner, origin)


class Records:
    """What the records of all commits say, added up without regard to their order."""

    def __init__(self, repo: Repository, keep_packs: bool) -> None:
        self._repo, self._keep_packs, self._order = repo, keep_packs, 0
        self.labels: dict[bytes, str] = {}  # of writers
        self.namings: dict[bytes, list[Naming]] = collections.defaultdict(list)  # by volume_id
        self.snapshots: dict[bytes, Snapshot] = {}  # by ref and root
        self.tags: dict[tuple[bytes, str], list[Mark]] = collections.defaultdict(list)  # by ref and tag
        self.losses: dict[bytes, list[Mark]] = collections.defaultdict(list)  # by ref
        self.runs: dict[tuple[bytes, str], int] = {}  # by writer and name of the snapshot
        self.named: dict[int, set[bytes]] = collections.defaultdict(set)  # by type, what these records name
        self.marked: set[bytes] = set()  # snapshots that a REMOVE without its signature names
        self.admins: set[bytes] = set()  # writers that published something with the prune key's signature
        self.given: dict[bytes, set[bytes]] = collections.defaultdict(set)  # by volume_id, who was made an owner
        self.expelled: dict[bytes, tuple[Head, set[bytes]]] = {}  # by EXPEL, the last that counts, and who stays
        self.readmitted: set[bytes] = set()
        self.handovers: set[tuple[bytes, bytes]] = set()  # a writer, and one for whom it acts
        self.succeeded: set[tuple[bytes, bytes]] = set()  # those of them that the older writer signed
        self.revived: dict[bytes, bytes] = {}  # by ref, what a snapshot was before it was published anew
        self._readers: dict[int, Callable[[Record, Cursor], None]] = {
            WRITER: self._writer,
            VOLUME: self._naming,
            RENAME: self._naming,
            ADD_SNAP: self._snapshot,
            REVIVE: self._revive,
            TAG: self._tag,
            RUN: self._run,
            LOST: self._lost,
            **dict.fromkeys((SUCCEEDS, JOIN, GIVE), self._hand_over),
            **dict.fromkeys((EXPEL, READMIT), self._expel),
            **dict.fromkeys((CONFIRM, REMOVE, REMOVE_LAST, AUDITED, FORGO), self._names),
        }

    def take(self, commit: Commit, kind: int, value: bytes) -> None:
        """Add a record; a malformed or an unknown one is reported."""
        self._order += 1
        reader = self._readers.get(kind)
        signed = kind in SIGNED and self.signed(commit, kind, value)
        try:
            if reader is not None:
                require(sound(kind, value), "malformed")
                reader(Record(commit, self._order, kind, value, signed), Cursor(value))
            elif kind < 0x8000 and kind not in KNOWN:
                self._ignored(commit, f"a record of type {kind:#06x}, made by a newer version")
        except Bad as error:
            self._ignored(commit, f"record {kind:#06x}: {error}")

    def _ignored(self, commit: Commit, text: str) -> None:
        self._repo.report.warn(f"{commit.path()}: {text}; ignored")

    def signed(self, commit: Commit, kind: int, value: bytes) -> bool:
        """Whether a record ends in a valid signature by the prune key."""
        marker, head = self._repo.keys.marker, commit.writer + u64(commit.seq) + commit.prev
        message = b"lamella/1 prune\0" + marker.r + head + struct.pack("<HI", kind, len(value)) + value[:-64]
        good = any(value[-64:]) and self._repo.crypto.verify(marker.prune_public, value[-64:], message)
        if good:
            self.admins.add(commit.writer)
        return good

    def _counts(self, record: Record) -> bool:
        """Whether a record that needs the signature has it; reports a record without."""
        if not record.signed:
            self._ignored(record.commit, f"record {record.kind:#06x} without a valid signature")
        return record.signed

    def _writer(self, record: Record, c: Cursor) -> None:
        self.labels[record.commit.writer] = c.text()

    def _naming(self, record: Record, c: Cursor) -> None:
        volume_id, domain_id, label, created = c.take(16), b"", "", set[bytes]()
        if record.kind == VOLUME:
            domain_id, _ = c.take(16), c.take(1)
            require(domain_id != CATALOGUE, "VOLUME in the catalogue domain")
        name = c.text()
        if record.kind == VOLUME:
            label, _ = c.text(), c.take(c.number(2))
            creator, nonce = c.take(16), c.take(16)
            bound = hashlib.sha256(b"lamella/1 volume\0" + creator + nonce).digest()[:16] == volume_id
            created = {creator} if bound or record.signed else set()
        naming = Naming(record.commit, record.order, record.signed, name, domain_id, label, created)
        self.namings[volume_id].append(naming)

    def _snapshot(self, record: Record, c: Cursor) -> None:
        snapshot = parse_snapshot(record, c, self._keep_packs)
        self.snapshots.setdefault(snapshot.ref + snapshot.tree.root, snapshot)

    def _revive(self, record: Record, c: Cursor) -> None:
        removed = c.take(40)
        if self._counts(record):
            self._snapshot(record, Cursor(record.value[40:-64]))
            self.revived[record.commit.writer + u64(record.commit.seq) + record.value[40:56]] = removed

    def _hand_over(self, record: Record, c: Cursor) -> None:
        """Who owns what: by the prune key's word, or SUCCEEDS, with which an older writer key signs for a new one."""
        if record.kind == SUCCEEDS:
            new, public = record.commit.writer, c.take(32)
            message = b"lamella/1 succeeds\0" + self._repo.keys.marker.r + new
            signed = self._repo.crypto.verify(public, c.take(64), message)
            require(signed and record.commit.seq == 1, "without the older writer's signature")
            self.succeeded.add((new, hashlib.sha256(public).digest()[:16]))
            self.handovers |= self.succeeded
        elif self._counts(record):
            first, second = c.take(16), c.take(16)
            self.handovers |= {(first, second)} if record.kind == JOIN else set()
            self.given[first] |= {second} if record.kind == GIVE else set()

    def _expel(self, record: Record, c: Cursor) -> None:
        ident = c.take(16)
        if self._counts(record) and record.kind == READMIT:
            self.readmitted.add(ident)
        elif record.signed:
            self.expelled[ident] = head_of(c.take(56)), set(c.many(c.number(2), 16))

    def _names(self, record: Record, c: Cursor) -> None:
        """What a record names: a commit, of FORGO also the one left before it, or else the refs of snapshots."""
        names = [c.take(c.left() - 64)] if record.kind in (AUDITED, FORGO) else c.many(c.number(4), 40)
        if record.kind == CONFIRM:
            names = [ref for ref in names if ref[:16] == record.commit.writer]
        if record.kind not in SIGNED or self._counts(record):
            self.named[REMOVE if record.kind == REMOVE_LAST else record.kind].update(names)
        elif record.kind in (REMOVE, REMOVE_LAST):
            self.marked.update(names)

    def _tag(self, record: Record, c: Cursor) -> None:
        ref, operation, text = c.take(40), c.number(1), c.text()
        self.tags[ref, text].append(Mark(record.commit, record.order, record.signed, operation == 1))

    def _run(self, record: Record, c: Cursor) -> None:
        name = c.text()
        self.runs[record.commit.writer, name] = c.number(1)

    def _lost(self, record: Record, c: Cursor) -> None:
        mark = Mark(record.commit, record.order, record.signed, any(record.value[40:-64]))
        self.losses[c.take(40)].append(mark)


class Volume(NamedTuple):
    """A volume as the commands show it: its name made unique, the VOLUME record in force, its snapshots by time."""

    name: str
    naming: "Naming | None"
    snapshots: list[Snapshot]


class History:
    """All commits, what they say together, and what is missing of them."""

    def __init__(self, repo: Repository, keep_packs: bool = False) -> None:
        self._repo, self.warn = repo, repo.report.warn
        self.reader, self.records, self.chains = CommitReader(repo), Records(repo, keep_packs), Chains()
        self.missing: set[Head] = set()  # commits that are known, and not here or not readable
        self.absent: set[str] = set()  # their objects
        self._start: dict[bytes, int] = {}  # writer -> the audited checkpoint with which its chain begins
        self._audited: set[Head] = set()  # checkpoints that the prune key vouches for
        self.closed = False  # only admitted writers count
        self._unopened: dict[Head, tuple[set[bytes], str]] = {}  # no valid commit: what it proves, and why
        self._named: set[Head] = set()  # commits that others name
        self._gaps: set[Head] = set()  # commits that the next commit of their chain names and does not follow
        self._forgone: list[tuple[Head, Head]] = []  # what is given up, and what was left before it (seq 0: nothing)
        self._forks: dict[bytes, str] = {}  # by writer, what to say of it
        self._limits: dict[bytes, Head] = {}  # of expelled writers, the last commit that counts
        self.late: set[bytes] = set()  # refs of snapshots of expelled writers, published after that
        self._here: dict[tuple[bytes, int], set[bytes]] = collections.defaultdict(set)  # (writer, seq) -> SHA-256

    # -- reading all commits

    def load(self) -> "History":
        store, report = self._repo.store, self._repo.report
        read: list[tuple[Commit, list[RawRecord]]] = []
        for writer in store.matching("w", "[0-9a-f]{32}", report):
            for name in store.matching(f"w/{writer}", "[0-9a-f]{16}-[0-9a-f]{64}", report):
                found = self._open(Head(bytes.fromhex(writer), int(name[:16], 16), bytes.fromhex(name[17:])))
                if found is not None:
                    self.chains.add(found[0])
                    read.append(found)
        self._find_beginnings(read)
        self.chains = Chains()
        for commit, records in read:
            if commit.seq >= self._start.get(commit.writer, 0):  # What is before that says nothing any more.
                self._note(commit, records)
        for writer_id in list(self.chains.by_writer):
            self._link(writer_id)
        for folder in sorted(store.unlisted):
            if folder == "w" or folder.startswith("w/"):  # Any number of commits may be there.
                self.missing.add(Head(bytes.fromhex(folder[2:]) or bytes(16), 0, bytes(32)))
                self.warn(f"history is missing: {folder}/ was not listed to its end", history=True)
        self._expel()
        self._judge()
        return self

    def _open(self, head: Head) -> "tuple[Commit, list[RawRecord]] | None":
        """A commit and its records. What does not open is kept for _judge, with what it proves all the same."""
        data = b""
        try:
            data = self.reader.read(head)
            return self.reader.open(head, data)
        except Bad as error:
            proofs = {b""} if isinstance(error, Withheld) else self.reader.proofs(head, data)
            self._unopened[head] = (proofs, str(error))
            return None

    def _find_beginnings(self, read: list[tuple[Commit, list[RawRecord]]]) -> None:
        """Find who is admitted, and the newest audited checkpoint of each chain here: it begins there."""
        found = [(commit, *record) for commit, records in read for record in records]
        for chain in self.chains.by_writer.values():
            found += self._carried(chain)
        for author, kind, value in found:
            if kind in (AUDITED, ADMIT) and sound(kind, value) and self.records.signed(author, kind, value):
                if kind == AUDITED:
                    self._audited.add(head_of(value[:56]))
                    continue
                self.closed, c = self.closed or any(value[:1]), Cursor(value[1:])
                self.reader.admitted |= {hashlib.sha256(one[:32]).digest()[:16] for one in c.many(c.number(4), 96)}
        for head in self._audited:
            begin = self.chains.commits.get(head.sha)
            if begin is None or not begin.carried or begin.head() != head:
                continue
            # One that cannot be read gives way to the commits before it, if there are any.
            if self._carried([begin]) or all(commit.seq >= begin.seq for commit in self.chains.of(begin.writer)):
                self._start[begin.writer] = max(begin.seq, self._start.get(begin.writer, 0))

    def _carried(self, chain: list[Commit]) -> list[tuple[Commit, int, bytes]]:
        """The records in a checkpoint of a chain that can be read."""
        for commit in sorted((c for c in chain if c.carried), key=Commit.name, reverse=True):
            with contextlib.suppress(Bad):
                return self.reader.checkpoint(commit)
        return []

    def _note(self, commit: Commit, records: list[RawRecord]) -> None:
        """Remember that a commit is here; if its writer counts, what it says as well, and the commits that it names."""
        self._here[commit.writer, commit.seq].add(commit.sha)
        if not self._admits(commit.writer):
            self.warn(f"writer {commit.writer.hex()} is not admitted: what it published counts for nothing", "note")
            return
        self.chains.add(commit)
        for kind, value in records:
            self.records.take(commit, kind, value)
        c = Cursor(commit.carried or bytes(4))
        names = [commit.newest, *c.many(c.number(4), 40)]
        self._named |= {*commit.seen, *(head_of(commit.writer + name) for name in names)}

    # -- joining the commits of a writer

    def _link(self, writer: bytes) -> None:
        """Join a writer's commits; find forks and gaps."""
        chain = self.chains.of(writer)
        chain.sort(key=lambda commit: (commit.seq, commit.sha))
        for seq in sorted(seq for seq, count in collections.Counter(c.seq for c in chain).items() if count > 1):
            self.chains.forked.add(writer)
            self._forks[writer] = f"fork: writer {writer.hex()} has several commits {seq}; all of them count"
        gaps = []
        last = None
        for commit in chain:
            if not self._follow(commit, last):
                gaps.append(commit)
            last = None if writer in self.chains.forked else commit
        self._gaps |= {gap.before() for gap in gaps}
        for gap in gaps:
            self._bridge(chain, gap)

    def _follow(self, commit: Commit, last: "Commit | None") -> bool:
        """Join a commit to its predecessor; False if that is not here. Behind a gap it still saw what last had seen."""
        before = self.chains.commits.get(commit.prev)
        if before is not None and (before.writer, before.seq + 1) != (commit.writer, commit.seq):
            self.warn(f"{commit.path()}: does not follow what it names as its predecessor", history=True)
            before = None
        if before is not None and commit.newest != (before.name()[16:] if before.carried else before.newest):
            self.warn(f"{commit.path()}: names another checkpoint than its chain")
        commit.known = dict((before or last or commit).known)
        for head in commit.seen:
            # A seq beyond the newest is as good as the newest; another commit of a seq that is here counts nothing.
            here = self._here.get((head.writer, head.seq))
            if not here or head.sha in here:
                commit.known[head.writer] = max(head.seq, commit.known.get(head.writer, 0))
        return before is not None or commit.seq == 1

    def _bridge(self, chain: list[Commit], gap: Commit) -> None:
        """Take the records before a gap from a readable checkpoint after it."""
        present = set() if gap.writer in self.chains.forked else {commit.seq for commit in chain}
        after = [commit for commit in chain if commit.carried and commit.seq >= gap.seq]
        # An audited beginning of the chain first, else the newest.
        for commit in sorted(after, key=lambda c: (c is gap and c.head() in self._audited, c.seq), reverse=True):
            try:
                carried = self.reader.checkpoint(commit)
            except Bad as error:
                self.warn(f"{commit.path()}: checkpoint: {error}", history=True)
                continue
            for author, kind, value in carried:
                if author.seq not in present:
                    self.records.take(author, kind, value)
            if commit.head() not in self._audited:
                text = f"writer {commit.writer.hex()} was read from its checkpoint {commit.seq}"
                self.warn(f"{text}; its history before commit {gap.seq} was not checked", "note")
            return
        if self._start.get(gap.writer) == gap.seq:  # The commits before it were deleted: nothing else says it.
            self.missing.add(gap.before())
            text = "its chain begins with it, and what it repeats is not here"
            self.warn(f"history is missing: {gap.path()}: {text}", history=True)

    # -- what is missing

    def _admits(self, writer: bytes) -> bool:
        """Whether a writer counts; once enrolment is closed, only those that an admin admitted do."""
        return not self.closed or writer in self.reader.admitted

    def _judge(self) -> None:
        """Find the commits that are known and not here: history is missing, unless a FORGO excuses them."""
        self._forgone = [(head_of(row[:56]), head_of(row[:16] + row[56:])) for row in self.records.named[FORGO]]
        left = {there for _, there in self._forgone if there.seq}
        self._named |= self._audited | self._gaps | left
        for writer in sorted(self._forks.keys() - self._limits.keys()):
            self.warn(self._forks[writer], history=True)
        for head, (proofs, why) in sorted(self._unopened.items()):
            intact = any(proofs & commit.proofs for commit in self.chains.of(head.writer))
            proven = proofs and not intact and (proofs == {b""} or self._admits(head.writer))
            if self._waited_for(head) and (head in self._named or proven):
                self._lack(head, "cannot be read: " + why)
            else:
                self.warn(f"{commit_path(*head)}: {why}; ignored, no commit is missed for it", "note")
        newest: dict[bytes, int] = dict(sorted(self._here))
        for head in sorted(self._named - self._unopened.keys()):
            gone = head in self._gaps or (head in left and head.sha not in self._here.get(head[:2], ()))
            if (gone or head.seq > newest.get(head.writer, 0)) and self._waited_for(head):
                self._lack(head, "is named by another commit and is not here")

    def _expel(self) -> None:
        """Leave out what expelled writers said after the last commit that counts; their snapshots stay as claims."""
        records = self.records
        for head, stay in (what for ident, what in records.expelled.items() if ident not in records.readmitted):
            self._limits[head.writer] = min(head, self._limits.get(head.writer, head))
            more = {head.writer}
            while more:
                more = {new for new, old in records.succeeded if old in more} - self._limits.keys() - stay
                self._limits.update((new, Head(new, 0, b"")) for new in more)
        tables: list[Any] = [records.namings, records.tags, records.losses] if self._limits else []
        for table in tables:
            for key, items in table.items():
                table[key] = [item for item in items if item.signed or self._counts(item.commit)]
        self.late = {s.ref for s in records.snapshots.values() if not self._counts(s.commit)} - records.revived.keys()
        records.handovers = {
            (new, old) for new, old in records.handovers if self._limits.get(new, Head(new, 1, b"")).seq
        }

    def _counts(self, commit: Commit) -> bool:
        """Whether its writer was not expelled before it."""
        head = self._limits.get(commit.writer)
        end = self.chains.commits.get(head.sha) if head and commit.sha else None
        on_branch = end is None or commit is end or self.chains.before(commit, end)
        return head is None or (commit.seq <= head.seq and on_branch)

    def _lack(self, head: Head, why: str) -> None:
        self.missing.add(head)
        self.absent.add(commit_path(*head))
        self.warn(f"history is missing: {commit_path(*head)} {why}", history=True)

    def _waited_for(self, head: Head) -> bool:
        """Whether a commit that cannot be read is missed: not before its chain's beginning, nor if FORGO excuses it."""
        begun = max(1, self._start.get(head.writer, 0)) <= head.seq <= self._limits.get(head.writer, head).seq
        for one, left in self._forgone:
            begun &= head != one and not (left.writer == head.writer and left.seq < head.seq < one.seq)
        return begun

    def suspects(self, volume_id: bytes) -> set[bytes]:
        """The writers whose chains lack something and may have said more about a volume."""
        records = self.records
        touched = {naming.commit.writer for naming in records.namings.get(volume_id, []) if naming.domain_id}
        touched |= {s.commit.writer for s in records.snapshots.values() if s.tree.volume_id == volume_id}
        touched |= records.admins
        return {head.writer for head in self.missing if head.writer in touched or not self.chains.of(head.writer)}

    # -- what there is

    def fingerprint(self) -> str:
        message = [b"lamella/1 heads\0", self._repo.keys.marker.r, *(commit.name() for commit in self.chains.heads())]
        letters = base64.b32encode(hashlib.sha256(b"".join(message)).digest()[:10]).decode()
        return "-".join(letters[i : i + 4] for i in range(0, 16, 4))

    def line(self, writers: Iterable[bytes]) -> set[bytes]:
        """Writers, and all that act for them."""
        found, more = set(writers), set(writers)
        while more:
            more = {new for new, old in self.records.handovers if old in more} - found
            found |= more
        return found

    def owners(self, volume_id: bytes) -> set[bytes]:
        """The writers that may say what a volume is: its creator, whom it was given to, and who acts for those."""
        created = (naming.created for naming in self.records.namings.get(volume_id, []))
        return self.line(set().union(self.records.given.get(volume_id, ()), *created))

    def first(self, s: Snapshot) -> bytes:
        """The ref that a snapshot had before it was published anew."""
        chain = [s.ref]
        while self.records.revived.get(chain[-1], s.ref) not in chain:
            chain.append(self.records.revived[chain[-1]])
        return chain[-1]

    def claim(self, s: Snapshot) -> bool:
        """Whether it was added to a volume of others: it stands for itself, and is never the volume's latest."""
        return s.ref in self.late or self.first(s)[:16] not in self.owners(s.tree.volume_id)

    def _naming(self, volume_id: bytes) -> "tuple[str, Naming | None]":
        """The name of a volume and the VOLUME record in force; of a volume without owners, anybody's."""
        namings, owners = self.records.namings.get(volume_id, []), self.owners(volume_id)
        applies = [naming for naming in namings if naming.signed or naming.commit.writer in owners]
        for naming in namings:
            if naming not in applies:
                self.warn(f"{naming.commit.path()}: names a volume of another writer; ignored", "note")
        volume = self.chains.last([naming for naming in applies or namings if naming.domain_id])
        last = self.chains.last(applies) or volume
        return (last[0].name if last else f"volume-{volume_id.hex()[:8]}"), (volume[0] if volume else None)

    def volumes(self, removed: bool = False) -> dict[bytes, Volume]:
        """All volumes by volume_id, in the order of their names; with removed, removed snapshots are among theirs."""
        namings = self.records.namings.items()
        snapshots: dict[bytes, list[Snapshot]] = {v: [] for v, names in namings if any(one.domain_id for one in names)}
        for s in self.records.snapshots.values():
            if removed or self.stands(s):
                snapshots.setdefault(s.tree.volume_id, []).append(s)
        named = {volume_id: self._naming(volume_id) for volume_id in snapshots}
        count = collections.Counter(name for volume_id, (name, _) in named.items() if self.owners(volume_id))
        volumes = {}
        for volume_id, (name, naming) in sorted(named.items(), key=lambda item: item[1][0]):
            plain = naming is None or (self.owners(volume_id) and count[name] == 1)
            unique = name if plain else f"{name}~{volume_id[:2].hex()}"
            volumes[volume_id] = Volume(unique, naming, sorted(snapshots[volume_id], key=moment))
        return volumes

    def stands(self, s: Snapshot) -> bool:
        return s.ref not in self.records.named[REMOVE]

    def select(self, word: str) -> Snapshot:
        """The snapshot that VOLUME[@SNAPSHOT] names."""
        volume, _, wanted = word.partition("@")
        chosen = self._choose(self._snapshots(volume), wanted)
        if len(chosen) != 1:
            names = ", ".join(f"{shown(s.name)} ({s.snap_id().hex()})" for s in chosen[:20])
            raise Problem(NO_MATCH, f"{shown(word)}: " + (f"choose one of {names}" if chosen else "no such snapshot"))
        if chosen[0].unusable():
            raise Problem(FAILED, f"{shown(chosen[0].name)} {chosen[0].unusable()}")
        return chosen[0]

    def _snapshots(self, volume: str) -> list[Snapshot]:
        """All snapshots, removed ones included, of the volume of this name or volume_id."""
        volumes = self.volumes(removed=True)
        found = [row.snapshots for volume_id, row in volumes.items() if volume in (row.name, volume_id.hex())]
        full = [row.snapshots for ident, row in volumes.items() if volume == f"{row.name}~{ident[:2].hex()}"]
        found = found or full
        if len(found) != 1:
            also = [shown(row.name) for row in volumes.values() if row.name.rpartition("~")[0] == volume]
            raise Problem(NO_MATCH, f"no volume {shown(volume)}; see list {' '.join(also)}")
        return found[0]

    def _choose(self, snapshots: list[Snapshot], wanted: str) -> list[Snapshot]:
        """The snapshots that a name, snap_id, "latest", "^TAG" or the beginning of a name fits."""
        counting = [s for s in snapshots if self.stands(s) and not self.claim(s)]
        if wanted in ("", "latest"):
            return self._latest(counting)[:1]
        if wanted[0] == "^":
            return [s for s in counting if wanted[1:] in self.tags(s)]
        # A removed snapshot may have come back under its name. If it did not, who knows its whole name may try.
        named = [s for s in snapshots if wanted in (s.name, s.snap_id().hex())]
        exact = [s for s in named if s in counting] or [s for s in named if self.stands(s)] or named
        return exact or [s for s in counting if s.name.startswith(wanted)]

    def _latest(self, counting: list[Snapshot]) -> list[Snapshot]:
        """The latest snapshot, and after it those that are not known to be earlier."""
        newest = {place[:32]: seq for place, seq in sorted(map(self._place, counting), key=lambda place: place[1])}
        ends = [s for s in counting if newest[self._place(s)[0][:32]] == self._place(s)[1]]
        found = [s for s in ends if not any(self._before(s, other) for other in ends if other is not s)]
        latest = sorted(found or ends, key=moment, reverse=True)
        if len(latest) > 1:
            also = ", ".join(shown(s.name) for s in latest[1:])
            self.warn(f"{shown(latest[0].name)} is taken for the latest, by its time; as late may be: {also}")
        return latest

    def _place(self, s: Snapshot) -> tuple[bytes, int]:
        """Where a snapshot was first published (repo_id || ref), and the number of that commit."""
        place = s.origin or self._repo.keys.marker.repo_id + self.first(s)
        return place, int.from_bytes(place[32:40], "little")

    def _before(self, a: Snapshot, b: Snapshot) -> bool:
        """Whether a came before b: by the chain where both were first published, else by time if one is a copy."""
        (place_a, seq_a), (place_b, seq_b) = self._place(a), self._place(b)
        if place_a[:32] == place_b[:32]:
            return seq_a < seq_b
        own = place_a[16:] == a.ref and place_b[16:] == b.ref
        return self.chains.earlier(a, b) if own else moment(a) < moment(b)

    def tags(self, s: Snapshot) -> list[str]:
        """The tags that were given and not taken away since, by who gave them or with the prune key's signature."""
        may = self.owners(s.tree.volume_id) | self.line([self.first(s)[:16]])
        tags = ((text, marks) for (ref, text), marks in self.records.tags.items() if ref == s.ref)
        mine = [(text, [mark for mark in marks if mark.signed or mark.commit.writer in may]) for text, marks in tags]
        return sorted(text for text, marks in mine if any(self._tag_stands(given, marks) for given in marks))

    def _tag_stands(self, given: Mark, marks: list[Mark]) -> bool:
        ends = (m for m in marks if not m.applies and (m.signed or m.commit.writer == given.commit.writer))
        return given.applies and not any(self.chains.earlier(given, end) for end in ends)

    def repeated(self) -> set[bytes]:
        """The snap_ids that more than one snapshot has."""
        ids = collections.Counter(s.snap_id() for s in self.records.snapshots.values() if self.stands(s))
        return {snap_id for snap_id, count in ids.items() if count > 1}

    def state(self, s: Snapshot, repeated: set[bytes]) -> str:
        """The state of a snapshot as "list" shows it."""
        records = self.records
        run = records.runs.get((s.commit.writer, s.name))
        words = [{None: "unstated", 0: "complete", 1: "incomplete"}.get(run, "unknown")]
        marks = {
            "unconfirmed": s.ref not in records.named[CONFIRM],
            "removed": not self.stands(s),
            "marked-removed": s.ref in records.marked,
            "claim": self.claim(s),
            "expelled": s.ref in self.late,
            "conflict": s.snap_id() in repeated,
            "unusable": bool(s.unusable()),
            "rebuilt": REBUILT in s.inner,
            "parts-lost": any(loss.applies for loss in self.chains.last(records.losses.get(s.ref, []))),
        }
        words += [word for word, applies in marks.items() if applies]
        return ",".join(words + ["^" + shown(tag) for tag in self.tags(s)])


def moment(s: Snapshot) -> tuple[int, str, bytes]:
    return s.when, s.name, s.ref


# ---- restoring [FORMAT 6] --------------------------------------------------------------------------------------------

FANOUT, DEPTH_MAX, NODE_HEADER = 64, 10, 56
HOLE, ZERO, DATA, DELTA = 0, 1, 2, 3  # types of a node's slots

Extent = tuple[int, int, bytes]


class Walk:
    """The extents of a tree in order. What cannot be read goes to lost(first chunk, chunks, why) and is left out."""

    def __init__(self, blobs: Blobs, tree: Tree, lost: Callable[[int, int, str], None]) -> None:
        self._blobs, self._tree, self._lost = blobs, tree, lost
        self._chunks = -(-tree.size >> tree.log2)
        depths = range(1, DEPTH_MAX + 1)
        self._depth = next((depth for depth in depths if FANOUT**depth >= max(1, self._chunks)), 0)
        if not self._depth:
            raise Problem(DAMAGE, f"impossible size of a volume: {tree.size}")

    def extents(self) -> Iterator[Extent]:
        """(first chunk, chunks, id): one chunk of data, or with an empty id a run that reads as zero."""
        yield from self._below(self._depth - 1, 0, self._tree.root)

    def _slots_inside(self, level: int, first: int) -> int:
        """How many slots of a node begin before the end of the volume."""
        span: int = FANOUT**level
        return min(FANOUT, -(-(self._chunks - first) // span))

    def _below(self, level: int, first: int, ident: bytes) -> Iterator[Extent]:
        """The extents below a node."""
        span = FANOUT**level
        try:
            types, ids = self._node(level, first, ident)
        except Bad as error:
            self._lost(first, min(FANOUT * span, self._chunks - first), str(error))
            return
        children = iter(ids)
        for slot in range(self._slots_inside(level, first)):
            start = first + slot * span
            if types[slot] in (HOLE, ZERO):
                yield start, min(span, self._chunks - start), b""
            elif level == 0:
                yield start, 1, next(children)
            else:
                yield from self._below(level - 1, start, next(children))

    def _node(self, level: int, first: int, ident: bytes) -> tuple[list[int], list[bytes]]:
        """The types of a node's slots, and the ids of its DATA and DELTA slots: three in one of a DELTA slot."""
        kind, longest = (INNER, INNER_MAX) if level else (LEAF, LEAF_MAX)
        c = Cursor(self._blobs.read(kind, ident, NODE_HEADER, longest))
        c.expect(b"LMLN\x01" + bytes([level]), "not a node of this level")
        held = c.number(1)
        c.expect(bytes([self._tree.log2]) + self._tree.volume_id + u64(first), "a node of another position or volume")
        count, bits = c.number(8), c.number(16)
        types = [bits >> 2 * slot & 3 for slot in range(FANOUT)]
        ids = [c.take(3 * ID if kind == DELTA else ID) for kind in types if kind in (DATA, DELTA)]
        c.end()
        inside = self._slots_inside(level, first)
        possible = len(ids) == held and not any(types[inside:]) and not (level and DELTA in types)
        require(possible, "a node with impossible slots")
        canonical = level + 1 == self._depth or set(types[:inside]) not in ({HOLE}, {ZERO})
        fits = count <= held * FANOUT**level and (level > 0 or count == held)
        require(canonical and fits, "a node that should not be stored, or with a wrong count")
        return types, ids


def write_at(held: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(held, view, offset)
        view, offset = view[done:], offset + done


def reads_zero(held: int, start: int, end: int) -> bool:
    """Whether a range of a file reads as zero; holes are skipped."""
    zeros = bytes(min(MIB, end - start))
    while start < end:
        try:
            start = max(start, os.lseek(held, start, os.SEEK_DATA))
        except OSError as error:
            if error.errno == errno.ENXIO:  # There is no data from here on.
                return os.fstat(held).st_size >= end
        size = max(0, min(MIB, end - start))
        if os.pread(held, size, start) != zeros[:size]:
            return False
        start += size
    return True


class VolumeContent:
    """Fills a file with a volume, and compares."""

    def __init__(self, report: Reporter, blobs: Blobs, tree: Tree) -> None:
        self._report, self._blobs, self._tree, self._lost = report, blobs, tree, 0

    def fill(self, held: int) -> None:
        os.ftruncate(held, self._tree.size)
        for start, end, ident in self._extents("restoring"):
            try:
                if ident:
                    write_at(held, self._blobs.chunk(ident, end - start), start)
            except Bad as error:
                self._lose(start >> self._tree.log2, 1, str(error))

    def compare(self, held: int) -> None:
        for start, end, ident in self._extents("comparing"):
            if ident:
                same = self._blobs.domain.content_id(CHUNK, read_at(held, start, end - start)) == ident[:ID]
            else:
                same = reads_zero(held, start, end)
            if not same:
                raise Problem(DAMAGE, f"bytes {start}..{end} read back differ from what was written")

    def _extents(self, word: str) -> Iterator[Extent]:
        """The extents as (start, end, id) in bytes, with progress; ends with exit code 20 if something was lost."""
        log2, size = self._tree.log2, self._tree.size
        for first, chunks, ident in Walk(self._blobs, self._tree, self._lose).extents():
            end = min(first + chunks << log2, size)
            yield first << log2, end, ident
            self._report.progress(word, end, size)
        if self._lost:
            raise Problem(DAMAGE, f"{self._lost} ranges cannot be restored; the rest is in the partial file")

    def _lose(self, first: int, chunks: int, why: str) -> None:
        self._lost += 1
        start, end = first << self._tree.log2, min(first + chunks << self._tree.log2, self._tree.size)
        if self._lost <= 50:
            self._report.warn(f"bytes {start}..{end} cannot be restored: {why}", "damage")


class DocumentContent:
    """Fills a file with the parts of a document, and compares."""

    def __init__(self, blobs: Blobs, size: int, parts: list[bytes]) -> None:
        self._blobs, self._size, self._parts = blobs, size, parts

    def fill(self, held: int) -> None:
        for at, data in self._contents():
            write_at(held, data, at)

    def compare(self, held: int) -> None:
        for at, data in self._contents():
            require(read_at(held, at, len(data)) == data, "what was read back differs from what was written")

    def _contents(self) -> Iterator[tuple[int, bytes]]:
        at = 0
        for part in self._parts:
            size = min(PART_MAX, self._size - at + 8)
            content = self._blobs.read(DOCUMENT, part, size, size)
            require(content[:8] == b"LMLDOCU\x01", "malformed part of a document")
            yield at, content[8:]
            at += size - 8


def save(path: str, overwrite: bool, content: "VolumeContent | DocumentContent") -> None:
    """Fill path + '.lamella-partial', compare what the disk gives back, and only then give the file its name."""
    if os.path.lexists(path) and not (overwrite and (os.path.isfile(path) or os.path.islink(path))):
        raise Problem(USAGE, f"{path} exists: " + ("not a regular file" if overwrite else "--overwrite replaces it"))
    partial = path + ".lamella-partial"
    if os.path.isfile(partial) or os.path.islink(partial):
        os.unlink(partial)
    held = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            content.fill(held)
        finally:
            os.fsync(held)
        with contextlib.suppress(AttributeError, OSError):  # Read back from the disk, not from memory.
            os.posix_fadvise(held, 0, 0, os.POSIX_FADV_DONTNEED)
        content.compare(held)
    except Bad as error:
        raise Problem(DAMAGE, f"{partial}: {error}") from None
    finally:
        os.close(held)
    if not overwrite and os.path.lexists(path):
        raise Problem(USAGE, f"{path} appeared; the data is in {partial}")
    os.replace(partial, path)
    try:
        held = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        os.fsync(held)
        os.close(held)
    except OSError as error:  # CIFS cannot sync a directory; a directory may be written and not read.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES}:
            raise
        os.sync()


# ---- commands --------------------------------------------------------------------------------------------------------

CONSISTENCY = {0: "unknown", 1: "live", 2: "quiesced", 3: "halted", 4: "committed", 5: "changed"}


def secret_of(args: argparse.Namespace) -> tuple[int, bytes]:
    """The kind of the secret and the secret; asks for a passphrase when no source is named."""
    environ = os.environ
    sources = [
        (PASSPHRASE, environ.get("LAMELLA_PASSPHRASE"), False),
        (PASSPHRASE, environ.get("LAMELLA_PASSPHRASE_FILE"), True),
        (RECOVERY_KEY, environ.get("LAMELLA_RECOVERY_KEY_FILE"), True),
        (RECOVERY_KEY, args.recovery_key_file, True),
        (KEY_FILE, args.keyfile, True),
        (DOMAIN_KEY, args.domain_key, True),
    ]
    given = [(kind, value, is_path) for kind, value, is_path in sources if value]
    if len(given) > 1:
        raise Problem(USAGE, "more than one secret is given: use one")
    if not given:
        try:
            answer = getpass.getpass("Passphrase of the repository, or recovery key: ")
        except EOFError:
            raise Problem(USAGE, "no secret: give --recovery-key-file, --keyfile or LAMELLA_PASSPHRASE_FILE") from None
        written = re.fullmatch(r"\s*(\w{4,5}-){13}\w{4,5}\s*", answer)
        given = [(RECOVERY_KEY if written else PASSPHRASE, answer, False)]
    kind, value, is_path = given[0]
    if not is_path:
        return kind, secret_in(kind, os.fsencode(value))
    with open(value, "rb") as file:
        content = file.read(16 * MIB)
    if kind == PASSPHRASE:  # What editors add belongs to the file.
        content = content.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").removesuffix(b"\r")
    return kind, secret_in(kind, content)


def secret_in(kind: int, content: bytes) -> bytes:
    """The secret that a file or an answer holds."""
    if kind == KEY_FILE and not 32 <= len(content) <= MIB:
        raise Problem(USAGE, "a key file has 32 bytes to 1 MiB")
    try:
        if kind == PASSPHRASE:
            return unicodedata.normalize("NFC", content.decode()).encode()
        return recovery_key(content.decode()) if kind == RECOVERY_KEY else content
    except UnicodeDecodeError:
        raise Problem(USAGE, "the secret is not text in UTF-8") from None


class Session:
    """An opened repository and the options of the command."""

    def __init__(self, args: argparse.Namespace, report: Reporter) -> None:
        if not args.repo:
            raise Problem(USAGE, "no repository: give --repo PATH")
        self.args, self.report = args, report
        self.volumes: list[Tree] = []  # of the exported domain key file
        self.repo = self._unlock()
        whole = self.repo.keys.whole
        if not whole and (args.expect or getattr(args, "document", None)):
            raise Problem(USAGE, "a domain key does not open the commits")
        self.history = History(self.repo, keep_packs=args.command == "needs").load() if whole else None
        found = self.history.fingerprint() if self.history and args.expect else ""
        if found and re.sub(r"[\s-]", "", args.expect).upper() != found.replace("-", ""):
            raise Problem(HISTORY, f"the head fingerprint is {found}, not the expected one: another state")

    def _unlock(self) -> Repository:
        store = Store(self.args.repo)
        marker, crypto = load_marker(store), Crypto()
        kind, secret = secret_of(self.args)
        if kind != DOMAIN_KEY:
            return Repository(store, unlock(store, marker, kind, secret, crypto, self.report), crypto, self.report)
        try:
            keys, self.volumes = load_domain_key(secret, marker)
        except Bad as error:
            raise Problem(USAGE, f"domain key file: {error}") from None
        return Repository(store, keys, crypto, self.report)

    def select(self) -> "tuple[Tree, Snapshot | None]":
        """What VOLUME[@SNAPSHOT] names, in the commits or in the domain key file."""
        word, history = self.args.volume, self.history
        if history:
            try:
                snapshot = history.select(word)
            except Problem as problem:
                if not history.missing:
                    raise
                raise Problem(HISTORY, f"{problem}; it may be in the part of the history that is missing") from None
            return snapshot.tree, snapshot
        found = [t for t in self.volumes if word in (t.name, t.name + "@latest", t.volume_id.hex())]
        if len(found) != 1:
            raise Problem(NO_MATCH, f"{shown(word)}: no such volume in the domain key file")
        return found[0], None


def utc(milliseconds: int) -> str:
    """A time as people read it, at the latest the end of the year 9999."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(min(milliseconds // 1000, 253402300799)))


# -- list and info


def run_list(session: Session) -> int:
    args, history = session.args, session.history
    if history is None:
        rows: list[Any] = [(shown(t.name), "-", "-", str(t.size), "-", t.domain_id.hex(), "-") for t in session.volumes]
    else:
        print(f"repository {session.repo.keys.marker.repo_id.hex()}, head fingerprint {history.fingerprint()}")
        for commit in history.chains.heads() if args.command == "info" else []:
            writer = f"{commit.writer.hex()} {shown(history.records.labels.get(commit.writer, ''))}"
            print(f"writer {writer}: commit {commit.seq} of {utc(commit.when)}")
        if history.closed:
            print("enrolment is closed")
        rows = list(snapshot_rows(history, args.volume, removed=args.command == "info"))
    if not rows and args.volume:
        raise Problem(HISTORY if history and history.missing else NO_MATCH, f"no volume {shown(args.volume)}")
    rows.insert(0, ("VOLUME", "SNAPSHOT", "TIME", "SIZE", "CONSISTENCY", "DOMAIN", "STATE"))
    widths = [max(len(row[i]) for row in rows) for i in range(7)]
    for row in rows:
        print("  ".join(cell.ljust(widths[i]) for i, cell in enumerate(row)).rstrip())
    return HISTORY if session.report.history else 0


def snapshot_rows(history: History, wanted: "str | None", removed: bool) -> Iterator[tuple[str, ...]]:
    """A row for each snapshot of one volume, or of all."""
    repeated = history.repeated()
    for volume_id, volume in history.volumes(removed=removed).items():
        if wanted not in (None, volume.name, volume_id.hex()):
            continue
        name, naming = shown(volume.name), volume.naming
        for s in volume.snapshots:
            label = naming.label if naming and naming.domain_id == s.tree.domain_id else s.tree.domain_id.hex()
            consistency = CONSISTENCY.get(s.consistency, str(s.consistency))
            state = history.state(s, repeated)
            yield name, shown(s.name), utc(s.when), str(s.tree.size), consistency, shown(label), state
        if not volume.snapshots:
            yield name, "-", "-", "-", "-", "-", "no snapshot"


# -- restore


def run_restore(session: Session) -> int:
    args, history = session.args, session.history
    tree, snapshot = session.select()
    if history and snapshot:
        check_history(history, snapshot, args.volume)
        announce(history, snapshot)
    blobs = Blobs(session.repo, tree.domain_id).scan()
    content: VolumeContent | DocumentContent = VolumeContent(session.report, blobs, tree)
    if snapshot and args.document is not None:
        content = document_content(blobs, snapshot, args.document)
    save(args.to, args.overwrite, content)
    print(f"restored and compared: {shown(tree.name)} to {args.to}", file=sys.stderr)
    return HISTORY if history and history.missing else 0


def check_history(history: History, s: Snapshot, word: str) -> None:
    """Refuse to restore where missing history may be about this volume, unless the snapshot is named in full."""
    if not history.missing:
        return
    volume, _, wanted = word.partition("@")
    in_full = wanted not in ("", "latest") and wanted[0] != "^" and wanted in (s.name, s.snap_id().hex())
    first = commit_path(*min(history.missing))
    text = f"history is missing ({len(history.missing)} commits that cannot be read, {first} is one)"
    if not in_full and history.suspects(s.tree.volume_id):
        advice = "bring them back from a copy of the repository, or name a snapshot in full, as"
        but = "although it may not be the newest; or: lamella check --give-up"
        raise Problem(HISTORY, f"{text}: {advice} {volume}@{s.name}, {but}")
    history.warn(text + (": there may be newer snapshots" if in_full else ", of writers that never wrote this volume"))


def announce(history: History, s: Snapshot) -> None:
    """Say which snapshot is restored, before it begins."""
    volume, writer = history.volumes(removed=True)[s.tree.volume_id], s.commit.writer
    by = f"{writer.hex()[:8]} {shown(history.records.labels.get(writer, ''))}".rstrip()
    print(f"restoring {shown(volume.name)}@{shown(s.name)} of {utc(s.when)}, written by {by}", file=sys.stderr)


def document_content(blobs: Blobs, s: Snapshot, wanted: str) -> DocumentContent:
    found = [(size, parts) for name, size, parts in s.documents if name == wanted]
    if len(found) != 1:
        names = ", ".join(shown(name) for name, _, _ in s.documents) or "none"
        raise Problem(NO_MATCH, f"no document {shown(wanted)}; there are: {names}")
    return DocumentContent(blobs, *found[0])


# -- needs


def run_needs(args: argparse.Namespace, report: Reporter) -> int:
    """Name the objects to fetch, in rounds: marker, keys and commits, then packs as far as commits name them."""
    names, session = missing_places(args.repo), None
    if not names:
        session = Session(args, report)
        names = session.history.absent | session.history.reader.absent_packs if session.history else set()
        try:
            names |= needed_packs(session)
        except Problem as problem:
            if not names:
                raise
            report.warn(str(problem))
    for name in sorted(names, key=lambda name: (name != "lamella", name)):
        print(name)
    return HISTORY if session and session.history and session.history.missing else 0


def missing_places(repo: "str | None") -> set[str]:
    """What is needed before anything can be opened: the marker, and the folders of which nothing is here."""
    if not repo or not os.path.isdir(repo):
        return {"lamella", "keys/", "w/"}
    store = Store(repo)
    folders = {folder + "/" for folder in ("keys", "w") if not store.names(folder)}
    return folders | ({"lamella"} - set(store.names("")))


def needed_packs(session: Session) -> set[str]:
    """Packs that are bad, and those listed by the domain's ADD_SNAP records if blobs are in no pack that is here."""
    tree, snapshot = session.select()
    blobs = Blobs(session.repo, tree.domain_id).scan()
    lost = anything_lost(session, blobs, tree, snapshot)
    bad = {pack_path(name) for name in blobs.bad_packs}
    if not lost:
        return bad
    session.report.warn("blobs are in no pack here; what else is missing shows when these packs are here", "note")
    snapshots = session.history.records.snapshots.values() if session.history else []
    listed = {pack_path(pack) for s in snapshots if s.tree.domain_id == tree.domain_id for pack in s.packs}
    here = {pack_path(bytes.fromhex(name)) for name in session.repo.store.packs(session.report)}
    return bad | (listed - here or {"p/"})


def anything_lost(session: Session, blobs: Blobs, tree: Tree, snapshot: "Snapshot | None") -> bool:
    """Whether a node does not open, or a blob of a tree or of its documents is in no pack that is here."""
    lost: list[int] = []
    walk = Walk(blobs, tree, lambda first, chunks, why: lost.append(first))
    lost += [first for first, _, ident in walk.extents() if ident and not blobs.held(ident)]
    parts = [part for _, _, parts in (snapshot.documents if snapshot else []) for part in parts]
    return bool(lost) or not all(blobs.located(DOCUMENT, part) for part in parts)


# -- the command line


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Problem(USAGE, message)


def shared_options() -> Parser:
    parser = Parser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    for option, text in (
        ("--repo", "directory of the repository (or LAMELLA_REPO)"),
        ("--keyfile", "key file"),
        ("--recovery-key-file", "file with the recovery key (or LAMELLA_RECOVERY_KEY_FILE)"),
        ("--domain-key", "exported domain key file: restores without reading commits"),
    ):
        parser.add_argument(option, help=text, metavar="PATH")
    parser.add_argument("--expect", help="head fingerprint that the repository must have", metavar="VALUE")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    secrets = "Passphrase from LAMELLA_PASSPHRASE or LAMELLA_PASSPHRASE_FILE; else it is asked for."
    shared: dict[str, Any] = {"parents": [shared_options()], "allow_abbrev": False, "epilog": secrets}
    parser = Parser(prog="restore.py", description="Emergency reader of Lamella repositories", **shared)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in (("list", "show volumes and snapshots"), ("info", "show the writers as well")):
        commands.add_parser(name, help=text, **shared).add_argument("volume", nargs="?", metavar="VOLUME")
    restore = commands.add_parser("restore", help="write a volume or a document to a file", **shared)
    restore.add_argument("volume", metavar="VOLUME[@SNAPSHOT]")
    restore.add_argument("--to", required=True, metavar="FILE")
    restore.add_argument("--document", metavar="NAME", help="restore this document instead of the volume")
    restore.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    needs = commands.add_parser("needs", help="name missing objects", **shared)
    needs.add_argument("volume", metavar="VOLUME[@SNAPSHOT]")
    nothing = dict.fromkeys(("keyfile", "recovery_key_file", "domain_key", "expect", "debug"))
    return parser.parse_args(argv, argparse.Namespace(repo=os.environ.get("LAMELLA_REPO"), **nothing))


def main(argv: list[str]) -> int:
    """Run a command; every failure is one line on stderr and an exit code."""
    try:
        args, report = parse(argv), Reporter()
        if args.command == "needs":
            return run_needs(args, report)
        return (run_restore if args.command == "restore" else run_list)(Session(args, report))
    except Problem as problem:
        code, text = problem.code, str(problem)
    except Bad as bad:
        code, text = FAILED, str(bad)
    except (KeyboardInterrupt, EOFError):
        code, text = INTERRUPTED, "interrupted"
    except OSError as error:
        code, text = FAILED, f"{os.fsdecode(error.filename or 'I/O')}: {error.strerror or error}"
    except Exception as error:  # noqa: BLE001  (a person in an emergency gets one line; --debug shows the rest)
        code, text = FAILED, f"internal error: {type(error).__name__}: {error}"
    if "--debug" in argv:
        traceback.print_exc()
    print(f"restore.py: {shown(text)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    if sys.getfilesystemencoding() != "utf-8" and sys.executable and os.path.isfile(sys.argv[0]):
        # Names are UTF-8 in every repository, whatever the locale says here.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", "-I", "-S", *sys.argv])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: neither a core dump nor a debugger shows the keys
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:]))
