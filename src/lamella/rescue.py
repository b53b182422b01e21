#!/usr/bin/env python3
"""Lamella emergency reader: lists and restores volumes with nothing but this file, Python >= 3.9 and OpenSSL's libcrypto.

Copy it out of the repository into an empty directory, compare its SHA-256 with the recovery sheet, then run
``python3 -I -S COPY list --repo REPOSITORY``. It only reads the repository, and believes nothing that does not verify.
Written from docs/FORMAT.md alone; numbers in brackets such as [FORMAT 5] name its sections.
"""

import sys


def _trusted_path(path: "list[str]") -> "list[str]":
    """The interpreter's own module places: a storage can plant ``argparse.py`` beside this file, in '' or on PYTHONPATH."""
    version = "python%d.%d" % sys.version_info[:2]
    here = __file__.rpartition("/")[0]
    libs = [sys.base_prefix + "/" + sys.platlibdir, sys.base_prefix + "/lib"]
    zips = [lib + "/" + version.replace(".", "") + ".zip" for lib in libs]
    for index, entry in enumerate(path):
        if entry in zips:  # everything before the zip entry is the script's directory and PYTHONPATH
            std = entry.rpartition("/")[0] + "/" + version
            return [entry, std, std + "/lib-dynload"] + [p for p in path[index + 1 :] if p[:1] == "/" and p != here]
    return [p for p in path if p.startswith((sys.base_prefix + "/", sys.exec_prefix + "/")) and p != here]


if __name__ == "__main__" and not sys.flags.isolated:
    sys.path[:] = _trusted_path(sys.path)

import argparse  # noqa: E402  (imports come after the line that makes them safe)
import base64  # noqa: E402
import collections  # noqa: E402
import contextlib  # noqa: E402
import ctypes  # noqa: E402
import ctypes.util  # noqa: E402
import errno  # noqa: E402
import hashlib  # noqa: E402
import hmac  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import stat  # noqa: E402
import struct  # noqa: E402
import time  # noqa: E402
import unicodedata  # noqa: E402
import zlib  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from typing import Any, NamedTuple, NoReturn  # noqa: E402

FAILED, USAGE, NO_MATCH, NO_REPOSITORY, WRONG_KEY, DAMAGE, HISTORY, INTERRUPTED = 1, 2, 4, 10, 12, 20, 21, 130
KIB, MIB = 1 << 10, 1 << 20
OBJECT_MAX, HEAD_READ, PART_MAX = 64 * MIB, 32 * KIB, 8 * MIB
HEADER, TRAILER, TAG, ID, ALIGN = 72, 96, 16, 24, 16
FANOUT, NODE_HEADER, DEPTH_MAX = 64, 56, 10
INVALID_NAMES, SLOTS_MAX, SCRYPT_SLOTS, SCRYPT_WORK = 1000, 32, 8, 8 << 22
CATALOGUE = bytes(16)
CHUNK, LEAF, INNER, DOCUMENT, COMMIT, SEGMENT = 1, 2, 3, 5, 6, 7
CONTENT_MAX = {CHUNK: 4 * MIB, LEAF: 1592, INNER: 1592, 4: PART_MAX, DOCUMENT: PART_MAX, COMMIT: PART_MAX, SEGMENT: PART_MAX}
HOLE, ZERO, DATA = 0, 1, 2
CONSISTENCY = ("unknown", "live", "quiesced", "halted", "committed")
DICT_ENTRIES = 400_000  # blob map entries kept in memory; above, they go to a temporary SQLite file


class Problem(Exception):
    """Ends the program: exit code and the one line that is shown."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Bad(Exception):
    """One thing read from the repository does not verify or is malformed."""


class Missing(Bad):
    """An object or a blob is not there."""


class Reporter:
    """Notes and warnings on stderr, each once, and what the exit code has to know."""

    def __init__(self) -> None:
        self.history = False
        self._said: set[str] = set()
        self._bar = 0.0

    def warn(self, text: str, word: str = "warning", history: bool = False) -> None:
        self.history = self.history or history
        if text not in self._said and len(self._said) < 500:
            self._said.add(text)
            print(f"restore.py: {word}: {text}", file=sys.stderr)

    def note(self, text: str) -> None:
        self.warn(text, "note")

    def progress(self, word: str, done: int, total: int) -> None:
        if sys.stderr.isatty() and (time.monotonic() > self._bar + 0.2 or done >= total):
            self._bar = time.monotonic()
            end = "\n" if done >= total else ""
            print(f"\r{word} {100 * done // max(total, 1)} % of {total}\x1b[K", end=end, file=sys.stderr, flush=True)


class Cursor:
    """Takes fields off the front of bytes; anything that does not fit is Bad."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise Bad("a field is longer than what holds it")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self) -> str:
        try:
            return self.take(self.number(1)).decode("utf-8")
        except UnicodeDecodeError:
            raise Bad("a text is not UTF-8") from None

    def expect(self, value: bytes, what: str) -> None:
        if self.take(len(value)) != value:
            raise Bad(what)

    def many(self, count: int, size: int) -> "list[bytes]":
        block = self.take(count * size)
        return [block[i : i + size] for i in range(0, len(block), size)]

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.at)

    def left(self) -> int:
        return len(self.data) - self.at

    def end(self) -> None:
        if self.left():
            raise Bad("bytes after the last field")


# ---- primitives ------------------------------------------------------------------------------------------------------


def prf(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def hkdf(ikm: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    """HKDF-SHA-256 of RFC 5869; size <= 8160."""
    prk, block, out = prf(salt, ikm), b"", b""
    for counter in range(1, -(-size // 32) + 1):
        block = prf(prk, block + info + bytes([counter]))
        out += block
    return out[:size]


def _libraries(names: "list[str]", word: str) -> Iterator[ctypes.CDLL]:
    for name in names:
        with contextlib.suppress(OSError):
            yield ctypes.CDLL(name)
    found = ctypes.util.find_library(word)
    if found:
        with contextlib.suppress(OSError):
            yield ctypes.CDLL(found)


def _declare(lib: ctypes.CDLL, table: "dict[str, tuple[Any, list[Any]]]") -> bool:
    for name, (result, arguments) in table.items():
        function = getattr(lib, name, None)
        if function is None:
            return False
        function.restype, function.argtypes = result, arguments
    return True


_P, _I, _Z, _S = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_char_p
_IP = ctypes.POINTER(ctypes.c_int)
_CRYPTO_API: "dict[str, tuple[Any, list[Any]]]" = {
    "EVP_CIPHER_CTX_new": (_P, []),
    "EVP_aes_256_gcm": (_P, []),
    "EVP_chacha20_poly1305": (_P, []),
    "EVP_DecryptInit_ex": (_I, [_P, _P, _P, _S, _S]),
    "EVP_DecryptUpdate": (_I, [_P, _P, _IP, _S, _I]),
    "EVP_CIPHER_CTX_ctrl": (_I, [_P, _I, _I, _S]),
    "EVP_DecryptFinal_ex": (_I, [_P, _P, _IP]),
    "EVP_PKEY_new_raw_public_key": (_P, [_I, _P, _S, _Z]),
    "EVP_PKEY_new_raw_private_key": (_P, [_I, _P, _S, _Z]),
    "EVP_PKEY_get_raw_public_key": (_I, [_P, _S, ctypes.POINTER(_Z)]),
    "EVP_PKEY_free": (None, [_P]),
    "EVP_MD_CTX_new": (_P, []),
    "EVP_MD_CTX_free": (None, [_P]),
    "EVP_DigestVerifyInit": (_I, [_P, _P, _P, _P, _P]),
    "EVP_DigestVerify": (_I, [_P, _S, _Z, _S, _Z]),
}
_ZSTD_API: "dict[str, tuple[Any, list[Any]]]" = {
    "ZSTD_createDCtx": (_P, []),
    "ZSTD_decompressDCtx": (_Z, [_P, _P, _Z, _S, _Z]),
    "ZSTD_isError": (ctypes.c_uint, [_Z]),
}


class Crypto:
    """libcrypto: the two ciphers, nonce 0, tag of 16 bytes at the end; Ed25519."""

    def __init__(self) -> None:
        self._lib = self._find()
        self._out = ctypes.create_string_buffer(MIB)
        self._count = ctypes.c_int(0)
        self._contexts: dict[int, Any] = {}
        for number, cipher in ((1, self._lib.EVP_aes_256_gcm()), (2, self._lib.EVP_chacha20_poly1305())):
            self._contexts[number] = self._lib.EVP_CIPHER_CTX_new()
            if self._lib.EVP_DecryptInit_ex(self._contexts[number], cipher, None, None, None) != 1:
                raise Problem(FAILED, "libcrypto refuses AES-256-GCM or ChaCha20-Poly1305")

    @staticmethod
    def _find() -> ctypes.CDLL:
        names = ["libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.3.dylib"]
        with contextlib.suppress(ImportError):
            import _hashlib

            names.insert(0, _hashlib.__file__)
        for lib in _libraries(names, "crypto"):
            if _declare(lib, _CRYPTO_API):
                return lib
        raise Problem(FAILED, "OpenSSL's libcrypto (1.1.1 or later) was not found on this system")

    def open(self, aead: int, key: bytes, aad: bytes, sealed: bytes) -> "bytes | None":
        """The plaintext, or None when the tag does not verify."""
        size = len(sealed) - TAG
        lib, context, count = self._lib, self._contexts[aead], ctypes.byref(self._count)
        if size < 0 or lib.EVP_DecryptInit_ex(context, None, None, key, bytes(12)) != 1:
            return None
        if size > len(self._out) - 32:
            self._out = ctypes.create_string_buffer(size + MIB)
        good = lib.EVP_DecryptUpdate(context, None, count, aad, len(aad)) == 1
        good = good and lib.EVP_DecryptUpdate(context, self._out, count, sealed, size) == 1 and self._count.value == size
        good = good and lib.EVP_CIPHER_CTX_ctrl(context, 0x11, TAG, sealed[size:]) == 1
        good = good and lib.EVP_DecryptFinal_ex(context, ctypes.byref(self._out, size), count) == 1
        return ctypes.string_at(self._out, size) if good else None

    def verify(self, public: bytes, signature: bytes, message: bytes) -> bool:
        if len(public) != 32 or len(signature) != 64:
            return False
        key, context = self._lib.EVP_PKEY_new_raw_public_key(1087, None, public, 32), self._lib.EVP_MD_CTX_new()
        good = bool(key) and self._lib.EVP_DigestVerifyInit(context, None, None, None, key) == 1
        good = good and self._lib.EVP_DigestVerify(context, signature, 64, message, len(message)) == 1
        self._lib.EVP_MD_CTX_free(context)
        self._lib.EVP_PKEY_free(key)
        return good

    def public(self, seed: bytes) -> bytes:
        """The Ed25519 public key of a 32-byte seed."""
        key, out, size = self._lib.EVP_PKEY_new_raw_private_key(1087, None, seed, 32), bytes(32), _Z(32)
        buffer = ctypes.create_string_buffer(out, 32)
        good = bool(key) and self._lib.EVP_PKEY_get_raw_public_key(key, buffer, ctypes.byref(size)) == 1
        self._lib.EVP_PKEY_free(key)
        return buffer.raw if good else b""


# ---- codecs [FORMAT 4] -----------------------------------------------------------------------------------------------


def inflate(payload: bytes, rlen: int) -> bytes:
    """A zlib stream that ends exactly at the end of payload and holds exactly rlen bytes; memory bounded by rlen."""
    decoder = zlib.decompressobj()
    try:
        content = decoder.decompress(payload, rlen + 1)
    except zlib.error as error:
        raise Bad(f"zlib: {error}") from None
    if len(content) != rlen or not decoder.eof or decoder.unused_data or decoder.unconsumed_tail:
        raise Bad("zlib stream of another length")
    return content


def check_zstd_frame(payload: bytes, rlen: int) -> None:
    """RFC 8878, 3.1.1: one frame and nothing else, its size stated and equal to rlen, no dictionary, a bounded window."""
    frame = Cursor(payload)
    frame.expect(b"\x28\xb5\x2f\xfd", "not a zstd frame")
    descriptor = frame.number(1)
    single = bool(descriptor & 0x20)
    if descriptor & 0x08 or descriptor & 0x03:
        raise Bad("zstd frame with a dictionary or a reserved bit")
    window = 0
    if not single:
        byte = frame.number(1)
        base = 1 << (10 + (byte >> 3))
        window = base + (base >> 3) * (byte & 7)
    flag = descriptor >> 6
    if flag == 0 and not single:
        raise Bad("zstd frame without its content size")
    size = frame.number(1 << flag) + (256 if flag == 1 else 0)
    window = size if single else window
    if size != rlen or window > max(rlen, KIB):
        raise Bad("zstd frame of another size or with too large a window")
    _check_zstd_blocks(frame, 4 if descriptor & 0x04 else 0)


def _check_zstd_blocks(frame: Cursor, checksum: int) -> None:
    last = False
    while not last:
        header = frame.number(3)
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        if kind == 3 or size > 128 * KIB:
            raise Bad("zstd block of a reserved type or too large")
        frame.take(1 if kind == 1 else size)
    frame.take(checksum)
    frame.end()


class Zstd:
    """A zstd decoder: the standard library's, else libzstd, else a module; it only sees frames that were checked."""

    def __init__(self) -> None:
        self._decode: "Callable[[bytes, int], bytes] | None" = None

    def decode(self, payload: bytes, rlen: int) -> bytes:
        check_zstd_frame(payload, rlen)
        if self._decode is None:
            self._decode = self._standard() or self._library() or self._module()
        content = self._decode(payload, rlen)
        if len(content) != rlen:
            raise Bad("zstd frame of another length")
        return content

    @staticmethod
    def _standard(name: str = "compression.zstd") -> "Callable[[bytes, int], bytes] | None":
        try:
            module: Any = __import__(name, fromlist=["zstd"])
        except ImportError:
            return None

        def decode(payload: bytes, rlen: int) -> bytes:
            decoder = module.ZstdDecompressor()
            try:
                content: bytes = decoder.decompress(payload, max_length=rlen + 1)
            except module.ZstdError as error:
                raise Bad(f"zstd: {error}") from None
            if not decoder.eof or decoder.unused_data:
                raise Bad("zstd stream of another length")
            return content

        return decode

    @staticmethod
    def _library() -> "Callable[[bytes, int], bytes] | None":
        for lib in _libraries(["libzstd.so.1", "libzstd.1.dylib"], "zstd"):
            if _declare(lib, _ZSTD_API):
                context, out = lib.ZSTD_createDCtx(), ctypes.create_string_buffer(PART_MAX)

                def decode(payload: bytes, rlen: int, lib: Any = lib, context: Any = context, out: Any = out) -> bytes:
                    size = lib.ZSTD_decompressDCtx(context, out, min(rlen, PART_MAX), payload, len(payload))
                    if lib.ZSTD_isError(size):
                        raise Bad("zstd: the frame does not decode")
                    return ctypes.string_at(out, size)

                return decode
        return None

    @classmethod
    def _module(cls) -> "Callable[[bytes, int], bytes]":
        found = cls._standard("backports.zstd")
        if found is not None:
            return found
        try:
            module: Any = __import__("zstandard")
        except ImportError:
            raise Problem(FAILED, "this data is compressed with zstd: install libzstd (libzstd1 or zstd package)") from None

        def decode(payload: bytes, rlen: int) -> bytes:
            try:
                return bytes(module.ZstdDecompressor().decompress(payload, max_output_size=rlen))
            except module.ZstdError as error:
                raise Bad(f"zstd: {error}") from None

        return decode


# ---- objects ---------------------------------------------------------------------------------------------------------


class Store:
    """The repository directory, read only: regular files below it, no symbolic link followed under its top."""

    def __init__(self, path: str) -> None:
        try:
            self._top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Problem(NO_REPOSITORY, f"{path}: {error.strerror}") from None

    def open(self, name: str, flags: int = 0) -> int:
        """A descriptor of an object (of a directory with flags = O_DIRECTORY), to be closed by the caller."""
        held = os.dup(self._top)
        parts = [part for part in name.split("/") if part]
        try:
            for number, part in enumerate(parts):
                extra = flags if number == len(parts) - 1 else os.O_DIRECTORY
                mode = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | extra
                held, parent = os.open(part, mode, dir_fd=held), held
                os.close(parent)
            kind = os.fstat(held).st_mode
            if not (stat.S_ISDIR(kind) if flags or not parts else stat.S_ISREG(kind)):
                raise Bad(f"{name}: not a regular file")
        except FileNotFoundError:
            os.close(held)
            raise Missing(f"{name}: missing") from None
        except OSError as error:
            os.close(held)
            raise Bad(f"{name}: {error.strerror}") from None
        except Bad:
            os.close(held)
            raise
        return held

    def read(self, name: str, limit: int) -> bytes:
        """A whole object of at most limit bytes."""
        held = self.open(name)
        try:
            size = os.fstat(held).st_size
            if size > limit:
                raise Bad(f"{name}: larger than {limit} bytes")
            return read_at(held, 0, size, name)
        finally:
            os.close(held)

    def names(self, folder: str) -> "list[str]":
        """Sorted names in a folder; none where it is missing."""
        try:
            held = self.open(folder, os.O_DIRECTORY)
        except Missing:
            return []
        try:
            return sorted(os.listdir(held))
        except OSError as error:
            raise Bad(f"{folder}: {error.strerror}") from None
        finally:
            os.close(held)

    def matching(self, folder: str, pattern: str, report: Reporter) -> Iterator[str]:
        """Names in a folder that match; others are reported, and after 1000 of them the listing stops."""
        invalid = 0
        try:
            for name in self.names(folder):
                if re.fullmatch(pattern, name):
                    yield name
                    continue
                invalid += 1
                report.warn(f"{shown(folder)}/{shown(name)}: not a name of this format, ignored")
                if invalid >= INVALID_NAMES:
                    report.warn(f"{folder}/: {invalid} invalid names, the listing stops there")
                    return
        except Bad as error:
            report.warn(str(error))

    def packs(self, report: Reporter) -> Iterator[str]:
        """Hex names of all objects in p/."""
        for folder in self.matching("p", "[0-9a-f]{2}", report):
            yield from self.matching(f"p/{folder}", folder + "[0-9a-f]{62}", report)

    def has_pack(self, name: bytes) -> bool:
        try:
            os.close(self.open(pack_path(name)))
        except Bad:
            return False
        return True


def read_at(held: int, offset: int, size: int, name: str) -> bytes:
    """Exactly size bytes of an open object."""
    data = b""
    try:
        while len(data) < size:
            more = os.pread(held, size - len(data), offset + len(data))
            if not more:
                raise Bad(f"{name}: truncated")
            data = data + more if data else more
    except OSError as error:
        raise Bad(f"{name}: {error.strerror}") from None
    return data


def pack_path(name: bytes) -> str:
    return f"p/{name[:1].hex()}/{name.hex()}"


def shown(text: str) -> str:
    """Text from the repository as it may go to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode("ascii") for c in text)


class Marker(NamedTuple):
    """The marker [FORMAT 2] and R."""

    minor: int
    id_alg: int
    repo_id: bytes
    prune_public: bytes
    r: bytes

    @classmethod
    def load(cls, store: Store) -> "Marker":
        try:
            data = store.read("lamella", 64)
        except Bad as error:
            raise Problem(NO_REPOSITORY, f"no repository here: {error}") from None
        if len(data) != 64 or data[:8] != b"LAMELLA\0":
            raise Problem(NO_REPOSITORY, "no repository here: the object 'lamella' is not a marker")
        if data[8] != 1:
            raise Problem(FAILED, f"format {data[8]} of this repository is not known here (1 is)")
        if data[10] not in (1, 2) or any(data[11:16]):
            raise Problem(FAILED, "the marker has unknown values: altered, or newer than this reader")
        digest = hashlib.sha256(data[:9] + b"\0" + data[10:]).digest()
        return cls(data[9], data[10], data[16:32], data[32:64], digest)


class Domain:
    """Keys of one domain: blob ids and pack keys [FORMAT 3, 4]."""

    def __init__(self, marker: Marker, domain_id: bytes, enc: bytes, id_key: bytes) -> None:
        self.domain_id, self.enc = domain_id, enc
        self._alg, self._key = marker.id_alg, id_key
        self._tail = marker.r + domain_id

    def content_id(self, kind: int, content: bytes) -> bytes:
        prefix = b"lml1" + bytes([kind])
        if self._alg == 2:
            return hashlib.blake2b(content, key=self._key, digest_size=ID, person=prefix + bytes(11)).digest()
        mac = hmac.new(self._key, prefix, "sha256")
        mac.update(content)
        return mac.digest()[:ID]

    def additional(self, header: bytes) -> bytes:
        return header[:12] + self._tail


class Keys:
    """What a secret opens: everything (data_root), or one domain (exported domain key file)."""

    def __init__(self, marker: Marker, data_root: "bytes | None", domain: "Domain | None" = None) -> None:
        self.marker = marker
        self._root = data_root
        self._domains: dict[bytes, Domain] = {}
        if domain is not None:
            self._domains[domain.domain_id] = domain
        self._hdr = self._derive(b"hdr", b"") if data_root else b""

    def _derive(self, purpose: bytes, name: bytes) -> bytes:
        info = b"lamella/1\0" + bytes([len(purpose)]) + purpose + bytes([len(name)]) + name
        return hkdf(self._root or b"", self.marker.r, info, 32)

    def domain(self, domain_id: bytes) -> Domain:
        if domain_id not in self._domains:
            if self._root is None:
                raise Problem(WRONG_KEY, "the domain key file is for another domain")
            word = b"idh" if self.marker.id_alg == 1 else b"idb"
            if domain_id == CATALOGUE:
                enc, id_key = self._derive(b"cat", b"enc"), self._derive(b"cat", word)
            else:
                enc, id_key = self._derive(b"enc", domain_id), self._derive(word, domain_id)
            self._domains[domain_id] = Domain(self.marker, domain_id, enc, id_key)
        return self._domains[domain_id]

    def may_be(self, header: bytes, domain_id: bytes) -> bool:
        """Whether a pack's hint names the domain; without data_root every pack may (its directory has to be tried)."""
        if self._root is None:
            return True
        salt, hint = header[16:48], header[48:72]
        mask = prf(self._hdr, b"hint" + salt)
        candidate = bytes(a ^ mask[i] for i, a in enumerate(hint[:16]))
        return candidate == domain_id and hmac.compare_digest(prf(self._hdr, b"mac" + salt + candidate)[:8], hint[16:])

    @property
    def whole(self) -> bool:
        return self._root is not None


class Entry(NamedTuple):
    """A blob in a pack: offset from the start of the object, gap = zero bytes before it."""

    ident: bytes
    kind: int
    clen: int
    rlen: int
    offset: int
    gap: int


class Container:
    """Header and keys of one pack or commit [FORMAT 5]."""

    def __init__(self, crypto: Crypto, zstd: Zstd, domain: Domain, header: bytes) -> None:
        if len(header) < HEADER or header[:8] != b"LMLPACK\x01":
            raise Bad("not a pack")
        if header[8] not in (1, 2) or header[9] != 1 or header[10:12] != b"\0\0":
            raise Bad("unknown cipher, key wrap or flags")
        self.dir_len = int.from_bytes(header[12:16], "little")
        if self.dir_len < 81 or (self.dir_len - 49) % 32 or self.dir_len > 49 + 32 * 0xFFFF:
            raise Bad("impossible length of the directory")
        self._crypto, self._zstd, self._domain, self._aead = crypto, zstd, domain, header[8]
        self._aad = domain.additional(header)
        self._key = prf(domain.enc, b"pack" + header[8:9] + header[16:48])

    def _body(self, kind: int, ident: bytes, sealed: bytes, rlen: int) -> "tuple[int, bytes]":
        body = self._crypto.open(self._aead, prf(self._key, bytes([kind]) + ident), self._aad, sealed)
        if body is None:
            raise Bad("does not decrypt (altered or damaged)")
        if len(body) < 5 or int.from_bytes(body[1:5], "little") != rlen:
            raise Bad("another length than the directory says")
        return body[0], body[5:]

    def blob(self, kind: int, ident: bytes, sealed: bytes, rlen: int) -> bytes:
        """The content of a sealed blob, checked down to its id."""
        codec, payload = self._body(kind, ident, sealed, rlen)
        if codec == 0:
            content = payload
        elif codec == 1:
            content = inflate(payload, rlen)
        elif codec == 2:
            content = self._zstd.decode(payload, rlen)
        else:
            raise Bad(f"unknown codec {codec}")
        if len(content) != rlen or not hmac.compare_digest(self._domain.content_id(kind, content), ident):
            raise Bad("the content is not the one of its id")
        return content

    def directory(self, data: bytes, kinds: "tuple[int, ...]") -> "list[Entry]":
        """Entries of the directory; data = the object's first 72 + dir_len bytes or more."""
        ident, sealed = data[HEADER : HEADER + ID], data[HEADER + ID : HEADER + self.dir_len]
        if len(sealed) != self.dir_len - ID:
            raise Bad("truncated in the directory")
        count = (self.dir_len - 49) // 32
        codec, content = self._body(0, ident, sealed, 4 + 32 * count)
        if codec != 0 or len(content) != 4 + 32 * count or content[:4] != b"\x01\0" + count.to_bytes(2, "little"):
            raise Bad("malformed directory")
        if not hmac.compare_digest(prf(self._key, b"dir" + content)[:ID], ident):
            raise Bad("the directory is not the one of its id")
        return self._entries(content, kinds)

    def _entries(self, content: bytes, kinds: "tuple[int, ...]") -> "list[Entry]":
        entries, seen, end = [], set(), HEADER + self.dir_len
        for ident, word, rlen in struct.iter_unpack("<24sII", content[4:]):
            kind, clen, gap = word >> 24, word & 0xFFFFFF, -end % ALIGN
            if kind not in kinds or rlen > CONTENT_MAX[kind] or not 21 <= clen <= 21 + rlen or (kind, ident) in seen:
                raise Bad("a directory entry that may not be")
            seen.add((kind, ident))
            entries.append(Entry(ident, kind, clen, rlen, end + gap, gap))
            end += gap + clen
        if end > OBJECT_MAX:
            raise Bad("longer than 64 MiB")
        return entries


class BlobMap:
    """(kind, id) -> all places; 16 bytes each: pack number, offset + gap, clen, rlen. Large ones move to a temporary file."""

    def __init__(self, limit: int = DICT_ENTRIES) -> None:
        self._dict: dict[bytes, bytes] = {}
        self._limit = limit
        self._base: Any = None

    def add(self, pack: int, entries: "list[Entry]") -> None:
        rows = [(bytes([e.kind]) + e.ident, struct.pack("<4I", pack, e.offset + e.gap, e.clen, e.rlen)) for e in entries]
        if self._base is None:
            for key, place in rows:
                held = self._dict.get(key)
                self._dict[key] = place if held is None else held + place
            if len(self._dict) > self._limit:
                self._spill()
        else:
            self._base.executemany("INSERT INTO blob VALUES (?, ?)", rows)

    def _spill(self) -> None:
        try:
            import sqlite3
        except ImportError:
            self._limit = sys.maxsize
            return
        self._base = sqlite3.connect("", isolation_level=None)  # '' = a private file that vanishes by itself
        self._base.executescript("PRAGMA cache_size=-48000; PRAGMA journal_mode=OFF; CREATE TABLE blob (k BLOB, v BLOB); BEGIN")
        self._base.executemany("INSERT INTO blob VALUES (?, ?)", self._dict.items())
        self._dict = {}

    def finish(self) -> None:
        if self._base is not None:
            self._base.executescript("COMMIT; CREATE INDEX place ON blob (k, v)")

    def places(self, kind: int, ident: bytes) -> "list[tuple[int, int, int, int]]":
        key = bytes([kind]) + ident
        if self._base is None:
            joined = self._dict.get(key, b"")
        else:
            joined = b"".join(row[0] for row in self._base.execute("SELECT v FROM blob WHERE k = ?", (key,)))
        return [(a, b, c, d) for a, b, c, d in struct.iter_unpack("<4I", joined)]


class Repository:
    """Store, keys and what is needed to open things with them."""

    def __init__(self, store: Store, keys: Keys, crypto: Crypto, report: Reporter) -> None:
        self.store, self.keys, self.crypto, self.report = store, keys, crypto, report
        self.zstd = Zstd()

    def container(self, domain: Domain, header: bytes) -> Container:
        return Container(self.crypto, self.zstd, domain, header)


class Blobs:
    """All blobs of one domain, found by the heads of the packs [FORMAT 5, 7]."""

    def __init__(self, repo: Repository, domain_id: bytes) -> None:
        self._repo, self._domain = repo, repo.keys.domain(domain_id)
        self._kinds: tuple[int, ...] = (SEGMENT,) if domain_id == CATALOGUE else (CHUNK, LEAF, INNER, DOCUMENT)
        self._map = BlobMap()
        self._packs = bytearray()  # 32 bytes each: the name
        self._open: "collections.OrderedDict[bytes, tuple[int, Container]]" = collections.OrderedDict()
        self.bad_packs: set[bytes] = set()

    def scan(self) -> None:
        """Reads the head of every pack and keeps the directories of this domain."""
        for number, name in enumerate(self._repo.store.packs(self._repo.report)):
            self.scan_pack(bytes.fromhex(name))
            if number % 64 == 63 and sys.stderr.isatty():
                print(f"\r{number + 1} packs looked at\x1b[K\r", end="", file=sys.stderr, flush=True)
        self._map.finish()

    def scan_pack(self, name: bytes) -> None:
        path = pack_path(name)
        try:
            held = self._repo.store.open(path)
        except Bad as error:
            self._repo.report.warn(str(error))
            return
        try:
            self._head(held, name)
        except Bad as error:
            self.bad_packs.add(name)
            if self._repo.keys.whole:  # with one domain's key, packs of others do not open and are no news
                self._repo.report.warn(f"{path}: {error}; ignored")
        finally:
            os.close(held)

    def _head(self, held: int, name: bytes) -> None:
        size = os.fstat(held).st_size
        data = read_at(held, 0, min(size, HEAD_READ), "pack")
        if len(data) < HEADER or data[:8] != b"LMLPACK\x01":
            raise Bad("not a pack")
        if not self._repo.keys.may_be(data, self._domain.domain_id):
            return
        container = self._repo.container(self._domain, data)
        if HEADER + container.dir_len > len(data):
            data += read_at(held, len(data), HEADER + container.dir_len - len(data), "pack")
        entries = container.directory(data, self._kinds)
        end = entries[-1].offset + entries[-1].clen
        if size != end:
            self._repo.report.warn(f"{pack_path(name)}: {size} bytes, {end} expected; what is whole in it is used")
        self._map.add(len(self._packs) // 32, [entry for entry in entries if entry.offset + entry.clen <= size])
        self._packs += name

    def _pack(self, name: bytes) -> "tuple[int, Container]":
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        held = self._repo.store.open(pack_path(name))
        try:
            container = self._repo.container(self._domain, read_at(held, 0, HEADER, "header"))
        except Bad:
            os.close(held)
            raise
        if len(self._open) >= 48:
            os.close(self._open.popitem(last=False)[1][0])
        self._open[name] = held, container
        return self._open[name]

    def located(self, kind: int, ident: bytes) -> bool:
        return bool(self._map.places(kind, ident))

    def read(self, kind: int, ident: bytes, low: int, high: int) -> bytes:
        """The content of a blob of low..high bytes, from the first of its places that verifies."""
        places = self._map.places(kind, ident)
        errors = []
        for number, offset, clen, rlen in places:
            name = bytes(self._packs[32 * number : 32 * number + 32])
            try:
                content = self._read(name, kind, ident, (offset, clen, rlen))
                if not low <= rlen <= high:
                    raise Bad("another length than its position implies")
            except Bad as error:
                self.bad_packs.add(name)
                errors.append(f"{pack_path(name)}: {error}")
                continue
            for text in errors:
                self._repo.report.warn(f"bad copy, another one was used: {text}")
            return content
        if not places:
            raise Missing(f"blob {ident.hex()} is in no pack that is here")
        raise Bad("; ".join(errors))

    def _read(self, name: bytes, kind: int, ident: bytes, place: "tuple[int, int, int]") -> bytes:
        held, container = self._pack(name)
        gap, start = place[0] % ALIGN, place[0] - 2 * (place[0] % ALIGN)  # offset + gap is stored, the gap lies before offset
        data = read_at(held, start, gap + place[1], "blob")
        if any(data[:gap]):
            self._repo.report.warn(f"{pack_path(name)}: padding is not zero at offset {start}")
        return container.blob(kind, ident, data[gap:], place[2])


# ---- secrets [FORMAT 3] ----------------------------------------------------------------------------------------------


def recovery_key(text: str) -> bytes:
    """The 32 bytes of a recovery key as people write it."""
    letters = "".join(text.split()).replace("-", "").upper().translate(str.maketrans("018", "OIB"))
    try:
        data = base64.b32decode(letters)
    except ValueError:
        data = b""
    if len(data) != 35 or hashlib.sha256(b"lamella recovery" + data[:32]).digest()[:3] != data[32:]:
        raise Problem(WRONG_KEY, "this is not a recovery key: its checksum does not fit (a typing mistake?)")
    return data[:32]


def kek_of(slot: bytes, secret: bytes, r: bytes) -> bytes:
    """Key encryption key of a slot for a secret of the slot's type."""
    if slot[8] == 1:
        n, block, lanes = 1 << slot[10], slot[11], slot[12]
        memory = 128 * block * (n + lanes + 2) + MIB
        return hashlib.scrypt(secret, salt=slot[16:48], n=n, r=block, p=lanes, maxmem=memory, dklen=32)
    return hkdf(secret, slot[16:48], b"lamella/1 kek\0" + r + slot[:16], 32)


def check_slot(slot: bytes, name: str) -> None:
    """Form and name of a slot, before any secret is tried on it."""
    if len(slot) != 176 or slot[:8] != b"LMLSLOT\x01" or hashlib.sha256(slot).hexdigest()[:8] != name:
        raise Bad("not a whole key slot")
    cost = slot[10:13]
    if slot[8] not in (1, 2, 3) or slot[9] not in (1, 2) or any(slot[13:16]):
        raise Bad("unknown type or role, or reserved bytes")
    if not (15 <= cost[0] <= 20 and cost[1] == 8 and 1 <= cost[2] <= 4 if slot[8] == 1 else cost == bytes(3)):
        raise Bad("scrypt parameters out of bounds")


def bundle_of(slot: bytes, secret: bytes, marker: Marker, crypto: Crypto) -> "bytes | None":
    """data_root from a slot, None for a wrong secret."""
    kek = kek_of(slot, secret, marker.r)
    mac = prf(hkdf(kek, marker.r, b"mac", 32), slot[:144])
    if not hmac.compare_digest(mac, slot[144:]):
        return None
    wrap = hkdf(kek, marker.r, b"wrap", 96)
    bundle = bytes(a ^ b for a, b in zip(slot[48:144], wrap))  # noqa: B905  (strict= is not in Python 3.9)
    seed = bundle[32:64]
    fits = crypto.public(seed) == marker.prune_public if slot[9] == 1 else not any(seed)
    if not fits or any(bundle[64:]):
        raise Bad("its contents do not fit its role and the marker")
    return bundle[:32]


def unlock(store: Store, marker: Marker, kind: int, secret: bytes, tools: "tuple[Crypto, Reporter]") -> Keys:
    """Tries the slots of the secret's type [FORMAT 3]."""
    crypto, report = tools
    tried = other = work = 0
    for name in list(store.matching("keys", "[0-9a-f]{8}", report))[:SLOTS_MAX]:
        try:
            slot = store.read(f"keys/{name}", 176)
            check_slot(slot, name)
            cost = (1 << slot[10]) * slot[11] * slot[12] if slot[8] == 1 else 0
            if slot[8] != kind or (kind == 1 and (tried >= SCRYPT_SLOTS or work + cost > SCRYPT_WORK)):
                other += 1
                continue
            tried, work = tried + 1, work + cost
            root = bundle_of(slot, secret, marker, crypto)
        except Bad as error:
            report.warn(f"keys/{name}: {error}")
            continue
        if root is not None:
            return Keys(marker, root)
    raise Problem(WRONG_KEY, f"wrong key or altered marker: {tried} slots tried, {other} of another kind or over the limits not tried")


class DomainVolume(NamedTuple):
    """A volume named by an exported domain key file, or the tree of a snapshot: what a restore walks."""

    name: str
    volume_id: bytes
    domain_id: bytes
    root: bytes
    size: int
    log2: int


def load_domain_key(data: bytes, marker: Marker) -> "tuple[Keys, list[DomainVolume]]":
    """An exported domain key file [FORMAT 3]."""
    cursor = Cursor(data)
    try:
        cursor.expect(b"LMLDOMK\x01", "not a domain key file")
        alg = cursor.number(1)
        cursor.expect(bytes(7), "reserved bytes in the domain key file")
        r, domain_id, enc, id_key = cursor.take(32), cursor.take(16), cursor.take(32), cursor.take(32)
        if r != marker.r or alg != marker.id_alg or domain_id == CATALOGUE:
            raise Problem(WRONG_KEY, "the domain key file is of another repository, or the marker was altered")
        volumes = []
        for _ in range(cursor.number(4)):
            name, volume_id, root = cursor.text(), cursor.take(16), cursor.take(ID)
            volumes.append(DomainVolume(name, volume_id, domain_id, root, cursor.number(8), cursor.number(1)))
        cursor.end()
    except Bad as error:
        raise Problem(USAGE, f"domain key file: {error}") from None
    return Keys(marker, None, Domain(marker, domain_id, enc, id_key)), volumes


# ---- commits [FORMAT 8] ----------------------------------------------------------------------------------------------

@dataclasses.dataclass(eq=False)
class Commit:
    """A valid commit; sha is empty for one that is only known by a checkpoint's entry. known: writer -> newest seq seen."""
    writer: bytes
    seq: int
    sha: bytes
    prev: bytes
    when: int
    newest: bytes = b""  # checkpoint_seq || checkpoint_sha256
    has_checkpoint: bool = False
    seen: "tuple[tuple[bytes, int, bytes], ...]" = ()
    known: "dict[bytes, int]" = dataclasses.field(default_factory=dict)

    def path(self) -> str:
        return commit_path(self.writer, self.seq, self.sha)


@dataclasses.dataclass(eq=False)
class Naming:
    """A VOLUME (domain_id set) or RENAME record."""
    commit: Commit
    order: int
    name: str
    signed: bool
    domain_id: bytes = b""
    label: str = ""


@dataclasses.dataclass(eq=False)
class Snapshot:
    """An ADD_SNAP record."""
    commit: Commit
    order: int
    snap_id: bytes
    tree: Tree
    consistency: int
    when: int
    parent: bytes
    name: str
    documents: "list[tuple[str, int, list[bytes]]]"
    packs: "list[bytes]"
    unusable: str

    def ref(self) -> bytes:
        return self.commit.writer + self.commit.seq.to_bytes(8, "little") + self.snap_id


def commit_path(writer: bytes, seq: int, sha: bytes) -> str:
    return f"w/{writer.hex()}/{seq:016x}-{sha.hex()}"


def records_of(cursor: Cursor) -> "list[tuple[int, bytes]]":
    records = []
    while cursor.left():
        records.append((cursor.number(2), cursor.take(cursor.number(4))))
    return records


def parse_snapshot(commit: Commit, order: int, value: bytes) -> Snapshot:
    c = Cursor(value)
    snap_id, volume_id, domain_id = c.many(3, 16)
    log2, consistency, flags = c.number(1), c.number(1), c.number(2)
    size, root, when, parent, name = c.number(8), c.take(ID), c.number(8), c.take(40), c.text()
    documents = [(c.text(), c.number(8), c.many(c.number(2), ID)) for _ in range(c.number(2))]
    packs = c.many(c.number(4), 32)
    required = [kind for kind, _ in records_of(c) if kind < 0x8000]
    if domain_id == CATALOGUE or flags or not 16 <= log2 <= 22:
        raise Bad("ADD_SNAP with impossible values")
    unusable = f"needs feature {required[0]:#06x}, which this reader does not know" if required else ""
    tree = Tree(name, volume_id, domain_id, root, size, log2)
    return Snapshot(commit, order, snap_id, tree, consistency, when, parent, name, documents, packs, unusable)


class History:
    """All commits and the state they add up to."""

    def __init__(self, repo: Repository, keep_packs: bool = False) -> None:
        self.repo, self._keep, self._order = repo, keep_packs, 0
        self.commits: dict[bytes, Commit] = {}
        self.chains: dict[bytes, list[Commit]] = {}
        self.snapshots: dict[bytes, Snapshot] = {}
        self.namings: dict[bytes, list[Naming]] = {}
        self.labels: dict[bytes, str] = {}
        self.runs: dict[tuple[bytes, str], int] = {}
        self.confirmed: set[bytes] = set()
        self.removed: set[bytes] = set()
        self.accepted: set[tuple[bytes, int]] = set()  # forks named by a FORK_SEEN
        self.retired: set[bytes] = set()
        self.audited: set[bytes] = set()
        self.forked: set[bytes] = set()
        self.absent: list[str] = []  # objects that are known to be missing
        self._taken: dict[int, Callable[[Commit, int, bytes], None]] = {
            1: self._writer, 2: self._volume, 3: self._snapshot, 4: self._confirm, 6: self._rename, 0x0D: self._fork_seen,
            0x10: self._remove, 0x14: self._retire, 0x15: self._audited, 0x8001: self._run}  # fmt: skip

    # -- reading

    def load(self) -> "History":
        store, report = self.repo.store, self.repo.report
        for writer in store.matching("w", "[0-9a-f]{32}", report):
            for name in store.matching(f"w/{writer}", "[0-9a-f]{16}-[0-9a-f]{64}", report):
                try:
                    commit, records = self.read(f"w/{writer}/{name}")
                except Bad as error:
                    report.warn(f"w/{writer}/{name}: {error}; ignored", history=True)
                    continue
                self.commits[commit.sha] = commit
                self.chains.setdefault(commit.writer, []).append(commit)
                for kind, value in records:
                    self.take(commit, kind, value)
        self._link()
        return self

    def read(self, path: str) -> "tuple[Commit, list[tuple[int, bytes]]]":
        """A commit, checked from its name to its body."""
        _, writer_hex, name = path.split("/")
        writer, seq, sha = bytes.fromhex(writer_hex), int(name[:16], 16), bytes.fromhex(name[17:])
        data, marker, seq8 = self.repo.store.read(path, OBJECT_MAX), self.repo.keys.marker, seq.to_bytes(8, "little")
        box, public, signature = data[:-TRAILER], data[-TRAILER:-64], data[-64:]
        if hashlib.sha256(data).digest() != sha:
            raise Bad("does not match its name")
        if hashlib.sha256(public).digest()[:16] != writer or public == marker.prune_public:
            raise Bad("is not of this writer")
        message = b"lamella/1 commit\0" + marker.r + writer + seq8 + hashlib.sha256(box).digest()
        if not self.repo.crypto.verify(public, signature, message):
            raise Bad("its signature is wrong")
        c = Cursor(self._body(box))
        c.expect(b"\x01" + bytes(7), "unknown version of a commit")
        c.expect(writer + seq8, "names another writer or number inside")
        commit = Commit(writer, seq, sha, c.take(32), c.number(8), c.take(40))
        if seq == 0 or (seq == 1) != (commit.prev == bytes(32)):
            raise Bad("impossible number or predecessor")
        count = c.number(4)
        commit.seen = tuple(struct.Struct("<16sQ32s").iter_unpack(c.take(56 * count if count <= 4096 else OBJECT_MAX)))
        records = records_of(c)
        commit.has_checkpoint = any(kind == 0x0C for kind, _ in records)
        return commit, records

    def _body(self, box: bytes) -> bytes:
        container = self.repo.container(self.repo.keys.domain(CATALOGUE), box)
        if not self.repo.keys.may_be(box, CATALOGUE):
            raise Bad("is not in the catalogue domain")
        entries, end, body = container.directory(box, (COMMIT,)), HEADER + container.dir_len, b""
        if sum(entry.rlen for entry in entries) > OBJECT_MAX:
            raise Bad("longer than 64 MiB")
        for entry in entries:
            start, end = end, entry.offset + entry.clen
            if any(box[start : entry.offset]):
                raise Bad("padding is not zero")
            body += container.blob(COMMIT, entry.ident, box[entry.offset : end], entry.rlen)
        if end != len(box):
            raise Bad("bytes after the last blob")
        return body

    # -- records

    def take(self, commit: Commit, kind: int, value: bytes) -> None:
        self._order += 1
        try:
            if kind in self._taken:
                self._taken[kind](commit, kind, value)
            elif kind < 0x8000 and not (0 < kind < 0x0E or 0x0F < kind < 0x16):
                self.repo.report.warn(f"{commit.path()}: a record of type {kind:#06x}, made by a newer version; ignored")
        except Bad as error:
            self.repo.report.warn(f"{commit.path()}: record {kind:#06x}: {error}; ignored")

    def _signed(self, commit: Commit, kind: int, value: bytes) -> bool:
        marker, head = self.repo.keys.marker, commit.writer + commit.seq.to_bytes(8, "little") + commit.prev
        framed = kind.to_bytes(2, "little") + len(value).to_bytes(4, "little") + value[:-64]
        signature = value[-64:]
        return any(signature) and self.repo.crypto.verify(
            marker.prune_public, signature, b"lamella/1 prune\0" + marker.r + head + framed)  # fmt: skip

    def _writer(self, commit: Commit, kind: int, value: bytes) -> None:
        self.labels[commit.writer] = Cursor(value).text()

    def _volume(self, commit: Commit, kind: int, value: bytes) -> None:
        c = Cursor(value)
        volume_id, domain_id, _, name, label = c.take(16), c.take(16), c.number(1), c.text(), c.text()
        c.take(c.number(2))
        c.take(64)
        c.end()
        if domain_id == CATALOGUE:
            raise Bad("VOLUME in the catalogue domain")
        naming = Naming(commit, self._order, name, self._signed(commit, kind, value), domain_id, label)
        self.namings.setdefault(volume_id, []).append(naming)

    def _rename(self, commit: Commit, kind: int, value: bytes) -> None:
        c = Cursor(value)
        volume_id, name = c.take(16), c.text()
        c.take(64)
        c.end()
        naming = Naming(commit, self._order, name, self._signed(commit, kind, value))
        self.namings.setdefault(volume_id, []).append(naming)

    def _snapshot(self, commit: Commit, kind: int, value: bytes) -> None:
        snapshot = parse_snapshot(commit, self._order, value)
        snapshot.packs = snapshot.packs if self._keep else []
        self.snapshots.setdefault(snapshot.ref() + snapshot.tree.root, snapshot)

    def _confirm(self, commit: Commit, kind: int, value: bytes) -> None:
        c = Cursor(value)
        self.confirmed.update(ref for ref in c.many(c.number(4), 40) if ref[:16] == commit.writer)

    def _fork_seen(self, commit: Commit, kind: int, value: bytes) -> None:
        c = Cursor(value)
        self.accepted.add((c.take(16), c.number(8)))

    def _remove(self, commit: Commit, kind: int, value: bytes) -> None:
        c = Cursor(value)
        refs = c.many(c.number(4), 40)
        if self._signed(commit, kind, value):
            self.removed.update(refs)
        else:
            self.repo.report.warn(f"{commit.path()}: a removal without a valid signature; ignored")

    def _retire(self, commit: Commit, kind: int, value: bytes) -> None:
        if self._signed(commit, kind, value):
            self.retired.add(value[:16])

    def _audited(self, commit: Commit, kind: int, value: bytes) -> None:
        if self._signed(commit, kind, value):
            self.audited.add(value[:56])

    def _run(self, commit: Commit, kind: int, value: bytes) -> None:
        c = Cursor(value)
        self.runs[commit.writer, c.text()] = c.number(1)

    # -- order

    def _link(self) -> None:
        for writer, chain in self.chains.items():
            chain.sort(key=lambda commit: (commit.seq, commit.sha))
            gaps = [commit for commit in chain if not self._follow(commit)]
            for seq in sorted(seq for seq, count in collections.Counter(c.seq for c in chain).items() if count > 1):
                self.forked.add(writer)
                text = f"fork: writer {writer.hex()} has several commits {seq}; all of them count"
                if (writer, seq) in self.accepted:
                    self.repo.report.note(text)
                else:
                    self.repo.report.warn(text, history=True)
            for gap in gaps:
                self._bridge(chain, gap)
        for writer, seq, sha in sorted({entry for commit in self.commits.values() for entry in commit.seen}):
            start = min((c.seq for c in self.chains.get(writer, []) if c.has_checkpoint), default=0)
            if sha not in self.commits and writer not in self.retired and seq >= start:
                self._lacks(commit_path(writer, seq, sha))

    def _lacks(self, path: str) -> None:
        self.absent.append(path)
        self.repo.report.warn(f"history is missing: {path} is named by another commit and is not here", history=True)

    def _follow(self, commit: Commit) -> bool:
        """Joins a commit to its predecessor; False where that is not here."""
        before = self.commits.get(commit.prev)
        if before is not None and (before.writer, before.seq + 1) != (commit.writer, commit.seq):
            self.repo.report.warn(f"{commit.path()}: does not follow what it names as its predecessor", history=True)
            before = None
        if before is not None:
            newest = before.seq.to_bytes(8, "little") + before.sha if before.has_checkpoint else before.newest
            if newest != commit.newest:
                self.repo.report.warn(f"{commit.path()}: names another checkpoint than its chain")
        commit.known = dict(before.known) if before is not None else {}
        for writer, seq, _ in commit.seen:
            commit.known[writer] = max(seq, commit.known.get(writer, 0))
        return before is not None or commit.seq == 1

    def _bridge(self, chain: "list[Commit]", gap: Commit) -> None:
        """Takes the records before a gap from the newest readable checkpoint after it."""
        for commit in reversed([c for c in chain if c.has_checkpoint and c.seq >= gap.seq]):
            try:
                self._checkpoint(commit, {c.seq for c in chain} if commit.writer not in self.forked else set())
            except Bad as error:
                self.repo.report.warn(f"{commit.path()}: checkpoint: {error}", history=True)
                continue
            if commit.writer + commit.seq.to_bytes(8, "little") + commit.sha not in self.audited:
                self.repo.report.note(f"writer {commit.writer.hex()} was read from its checkpoint {commit.seq}; "
                                      f"its history before commit {gap.seq} was not checked")  # fmt: skip
            return
        self._lacks(commit_path(gap.writer, gap.seq - 1, gap.prev))

    def _checkpoint(self, commit: Commit, present: "set[int]") -> None:
        value = next(value for kind, value in self.read(commit.path())[1] if kind == 0x0C)
        c = Cursor(value)
        c.many(c.number(4), 40)
        segments = c.many(c.number(4), ID + 32)
        blobs, entries = Blobs(self.repo, CATALOGUE), b""
        for segment in segments:
            blobs.scan_pack(segment[ID:])
        if not all(blobs.located(SEGMENT, segment[:ID]) for segment in segments):
            self.absent += [pack_path(s[ID:]) for s in segments if not self.repo.store.has_pack(s[ID:])]
            blobs = Blobs(self.repo, CATALOGUE)
            blobs.scan()
        for segment in segments:
            content = Cursor(blobs.read(SEGMENT, segment[:ID], 8, PART_MAX))
            content.expect(b"\x01" + bytes(7), "unknown version of a segment")
            entries += content.rest()
        c = Cursor(entries + c.rest())
        while c.left():
            author = Commit(commit.writer, c.number(8), b"", c.take(32), c.number(8))
            kind, record = c.number(2), c.take(c.number(4))
            if author.seq not in present:
                self.take(author, kind, record)

    def before(self, a: Commit, b: Commit) -> bool:
        """Whether a is before b by chain and `seen` order."""
        if a.writer != b.writer:
            return b.known.get(a.writer, 0) >= a.seq
        if a.seq >= b.seq or a.writer not in self.forked:
            return a.seq < b.seq
        while b.seq > a.seq and b.prev in self.commits:
            b = self.commits[b.prev]
        return a.sha == b.sha

    def _earlier(self, a: Any, b: Any) -> bool:
        same = (a.commit.writer, a.commit.seq, a.commit.sha) == (b.commit.writer, b.commit.seq, b.commit.sha)
        return a.order < b.order if same else self.before(a.commit, b.commit)

    def edge(self, items: "list[Any]", newest: bool) -> "list[Any]":
        """The items (with commit and order) that no other one is after (newest) or before, smaller writer_id first."""
        best: dict[Any, Any] = {}
        for item in sorted(items, key=lambda i: (i.commit.seq, i.order), reverse=newest):
            best.setdefault(id(item) if item.commit.writer in self.forked else item.commit.writer, item)
        kept = [i for i in best.values()
                if not any(self._earlier(i, j) if newest else self._earlier(j, i) for j in best.values())]  # fmt: skip
        return sorted(kept, key=lambda i: (i.commit.writer, i.commit.seq, i.commit.sha))

    def heads(self) -> "list[Commit]":
        """The newest commit of each chain; of a forked one, the end of each branch."""
        parents = {commit.prev for commit in self.commits.values()}
        ends = [c for c in self.commits.values() if c.sha not in parents]
        return [c for c in ends if c.writer in self.forked or c is self.chains[c.writer][-1]]

    def fingerprint(self) -> str:
        heads = sorted(c.writer + c.seq.to_bytes(8, "little") + c.sha for c in self.heads())
        digest = hashlib.sha256(b"lamella/1 heads\0" + self.repo.keys.marker.r + b"".join(heads)).digest()
        text = base64.b32encode(digest[:10]).decode()
        return "-".join(text[i : i + 4] for i in range(0, 16, 4))

    # -- names

    def naming(self, volume_id: bytes) -> "tuple[str, Naming | None]":
        """The name of a volume and the VOLUME record in force."""
        records = self.namings.get(volume_id, [])
        first = self.edge([r for r in records if r.domain_id], newest=False)
        applies = [r for r in records if r.signed or (first and r.commit.writer == first[0].commit.writer)]
        for record in records:
            if record not in applies:
                self.repo.report.warn(f"{record.commit.path()}: names a volume of another writer; ignored")
        volume = self.edge([r for r in applies if r.domain_id], newest=True)
        last = self.edge(applies, newest=True)
        return (last[0].name if last else volume_id.hex()), (volume[0] if volume else None)

    def volumes(self) -> "dict[bytes, tuple[str, Naming | None, list[Snapshot]]]":
        """volume_id -> unique name as shown, VOLUME record, snapshots by time."""
        held: dict[bytes, list[Snapshot]] = {volume_id: [] for volume_id in self.namings}
        for snapshot in self.snapshots.values():
            held.setdefault(snapshot.tree.volume_id, []).append(snapshot)
        named = {volume_id: self.naming(volume_id) for volume_id in held}
        count = collections.Counter(name for name, _ in named.values())
        result = {}
        for volume_id, (name, record) in named.items():
            unique = f"{name}~{volume_id[:2].hex()}" if count[name] > 1 else name
            result[volume_id] = unique, record, sorted(held[volume_id], key=lambda s: (s.when, s.name))
        return dict(sorted(result.items(), key=lambda item: item[1][0]))

    def select(self, word: str) -> Snapshot:
        """The snapshot that VOLUME[@SNAPSHOT] names."""
        volume, _, wanted = word.partition("@")
        found = [(v, s) for v, (name, _, s) in self.volumes().items() if volume in (name, v.hex())]
        if len(found) != 1:
            also = [name for name, _, _ in self.volumes().values() if name.rpartition("~")[0] == volume]
            hint = f"; there are {', '.join(map(shown, also))}" if also else ""
            raise Problem(NO_MATCH, f"no volume {shown(volume)} (see: list){hint}")
        snapshots = found[0][1]
        if wanted in ("", "latest"):
            chosen = self.edge([s for s in snapshots if s.ref() not in self.removed], newest=True)
        else:
            chosen = [s for s in snapshots if wanted in (s.name, s.snap_id.hex())] or [
                s for s in snapshots if s.name.startswith(wanted)]  # fmt: skip
        if len(chosen) != 1:
            names = ", ".join(f"{shown(s.name)} ({s.snap_id.hex()})" for s in chosen[:20])
            raise Problem(NO_MATCH, f"{shown(word)}: " + (f"choose one of {names}" if chosen else "no such snapshot"))
        return chosen[0]  # type: ignore[no-any-return]

    def state(self, snapshot: Snapshot) -> str:
        run = self.runs.get((snapshot.commit.writer, snapshot.name))
        words = ["complete", "incomplete"][run : run + 1] if run is not None else ["unstated"]
        ids = collections.Counter(s.snap_id for s in self.snapshots.values()) if len(self.snapshots) < 2 else self._ids()
        words += ["unconfirmed"] if snapshot.ref() not in self.confirmed else []
        words += ["removed"] if snapshot.ref() in self.removed else []
        words += ["conflict"] if ids[snapshot.snap_id] > 1 else []
        words += ["unusable"] if snapshot.unusable else []
        return ",".join(words)


# ---- trees and restore [FORMAT 6] ------------------------------------------------------------------------------------

class Walk:
    """The extents of a tree in order. What cannot be read is told to lost(first chunk, chunks, why) and left out."""

    def __init__(self, blobs: Blobs, tree: Tree, report: Reporter, lost: "Callable[[int, int, str], None]") -> None:
        self._blobs, self._tree, self._report, self._lost = blobs, tree, report, lost
        self.chunks = -(-tree.size >> tree.log2)
        self.depth = next((d for d in range(1, DEPTH_MAX + 1) if FANOUT**d >= max(1, self.chunks)), 0)

    def extents(self) -> "Iterator[tuple[int, int, bytes]]":
        """(first chunk, chunks, id): one chunk of data, or with an empty id a run that reads as zero."""
        if not self.depth:
            raise Problem(DAMAGE, f"a volume of {self._tree.size} bytes is too deep for this format")
        yield from self._below(self.depth - 1, 0, self._tree.root)

    def _below(self, level: int, first: int, ident: bytes) -> "Iterator[tuple[int, int, bytes]]":
        span = FANOUT**level
        try:
            count, types, ids = self._node(level, first, ident)
        except Bad as error:
            self._lost(first, min(FANOUT * span, self.chunks - first), str(error))
            return None
        total: Any = 0
        for slot in range(min(FANOUT, -(-(self.chunks - first) // span))):
            start = first + slot * span
            if types[slot] != DATA:
                yield start, min(span, self.chunks - start), b""
            elif level == 0:
                yield start, 1, ids.pop(0)
                total += 1
            else:
                below = yield from self._below(level - 1, start, ids.pop(0))
                total = None if below is None or total is None else total + below
        if total not in (None, count):
            self._lost(first, 0, f"node {ident.hex()} says {count} chunks and has {total}")
        return total

    def _node(self, level: int, first: int, ident: bytes) -> "tuple[int, list[int], list[bytes]]":
        content = self._blobs.read(INNER if level else LEAF, ident, NODE_HEADER, CONTENT_MAX[LEAF])
        c = Cursor(content)
        c.expect(b"LMLN\x01" + bytes([level]), "not a node of this level")
        held = c.number(1)
        place = bytes([self._tree.log2]) + self._tree.volume_id + first.to_bytes(8, "little")
        c.expect(place, "a node of another place, volume or chunk size")
        count, bits = c.number(8), c.number(16)
        ids = c.many(held, ID)
        c.end()
        types = [bits >> 2 * slot & 3 for slot in range(FANOUT)]
        inside = min(FANOUT, -(-(self.chunks - first) // FANOUT**level))
        if 3 in types or types.count(DATA) != held or any(types[inside:]):
            raise Bad("a node with impossible slots")
        if level + 1 < self.depth and set(types[:inside]) in ({HOLE}, {ZERO}):
            self._report.warn(f"node {ident.hex()} should not be stored: all its slots are the same")
        return count, types, ids


def write_at(held: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(held, view, offset)
        view, offset = view[done:], offset + done


def reads_zero(held: int, start: int, end: int) -> bool:
    """Whether a range of a file reads as zero; its holes are skipped."""
    zeros = bytes(MIB)
    while start < end:
        try:
            start = max(start, os.lseek(held, start, os.SEEK_DATA))
        except OSError as error:
            if error.errno == errno.ENXIO:
                return os.fstat(held).st_size >= end
        size = min(MIB, end - start)
        if size > 0 and os.pread(held, size, start) != zeros[:size]:
            return False
        start += max(size, 0)
    return True


class Volume:
    """Fills a file with a tree and compares it."""

    def __init__(self, repo: Repository, blobs: Blobs, tree: Tree) -> None:
        self._repo, self._blobs, self._tree = repo, blobs, tree
        self._lost: list[str] = []
        self._count = 0

    def _lose(self, first: int, chunks: int, why: str) -> None:
        self._count += 1
        if self._count <= 50:
            start, end = first << self._tree.log2, min(first + chunks << self._tree.log2, self._tree.size)
            self._repo.report.warn(f"bytes {start}..{end} cannot be restored: {why}", "damage")

    def _extents(self, word: str) -> "Iterator[tuple[int, int, bytes]]":
        """Extents as (start, end, id) in bytes, with progress; ends with exit 20 if something was lost."""
        walk, log2, size = Walk(self._blobs, self._tree, self._repo.report, self._lose), self._tree.log2, self._tree.size
        for first, chunks, ident in walk.extents():
            end = min(first + chunks << log2, size)
            yield first << log2, end, ident
            self._repo.report.progress(word, end, size)
        if self._count:
            raise Problem(DAMAGE, f"damage: {self._count} ranges cannot be restored; the rest is in the partial file, not compared")

    def fill(self, held: int) -> None:
        os.ftruncate(held, self._tree.size)
        for start, end, ident in self._extents("restoring"):
            if ident:
                try:
                    write_at(held, self._blobs.read(CHUNK, ident, end - start, end - start), start)
                except Bad as error:
                    self._lose(start >> self._tree.log2, 1, str(error))

    def compare(self, held: int) -> None:
        for start, end, ident in self._extents("comparing"):
            if ident:
                same = self._blobs.content_id(CHUNK, read_at(held, start, end - start, "partial file")) == ident
            else:
                same = reads_zero(held, start, end)
            if not same:
                raise Problem(DAMAGE, f"bytes {start}..{end} read back differ from what was written")


class Document:
    """Fills a file with a document's parts and compares it."""

    def __init__(self, blobs: Blobs, size: int, parts: "list[bytes]") -> None:
        self._blobs, self._size, self._parts, self._digest = blobs, size, parts, b""

    def fill(self, held: int) -> None:
        digest, at = hashlib.sha256(), 0
        for part in self._parts:
            try:
                content = self._blobs.read(DOCUMENT, part, 8, PART_MAX)
            except Bad as error:
                raise Problem(DAMAGE, f"the document cannot be restored: {error}") from None
            if content[:8] != b"LMLDOCU\x01" or at + len(content) - 8 > self._size:
                raise Problem(DAMAGE, "the document has malformed parts")
            write_at(held, content[8:], at)
            digest.update(content[8:])
            at += len(content) - 8
        if at != self._size:
            raise Problem(DAMAGE, f"the document has {at} bytes, {self._size} expected")
        self._digest = digest.digest()

    def compare(self, held: int) -> None:
        digest = hashlib.sha256()
        for at in range(0, self._size, MIB):
            digest.update(read_at(held, at, min(MIB, self._size - at), "partial file"))
        if digest.digest() != self._digest:
            raise Problem(DAMAGE, "the document read back differs from what was written")


def save(path: str, overwrite: bool, work: "Volume | Document") -> None:
    """Fills path + '.lamella-partial', compares what the disk gives back and only then gives it its name."""
    if os.path.lexists(path) and not (overwrite and (os.path.isfile(path) or os.path.islink(path))):
        raise Problem(USAGE, f"{path} exists: " + ("it is not a regular file" if overwrite else "--overwrite replaces it"))
    partial = path + ".lamella-partial"
    if os.path.isfile(partial) or os.path.islink(partial):
        os.unlink(partial)
    held = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            work.fill(held)
        finally:
            os.fsync(held)
        with contextlib.suppress(AttributeError, OSError):
            os.posix_fadvise(held, 0, 0, os.POSIX_FADV_DONTNEED)  # read back from the disk, not from memory
        work.compare(held)
    except Bad as error:
        raise Problem(DAMAGE, f"{partial}: {error}") from None
    finally:
        os.close(held)
    if overwrite:
        os.replace(partial, path)
    else:
        os.link(partial, path)  # unlike a rename it never replaces
        os.unlink(partial)
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


# ---- commands --------------------------------------------------------------------------------------------------------

def secret_of(args: argparse.Namespace) -> "tuple[int, bytes]":
    """(slot type, secret), type 0 = an exported domain key file; asks when no source is named."""
    env = os.environb
    sources = [(1, env.get(b"LAMELLA_PASSPHRASE", b""), False), (1, env.get(b"LAMELLA_PASSPHRASE_FILE", b""), True),
               (2, env.get(b"LAMELLA_RECOVERY_KEY_FILE", b""), True)]  # fmt: skip
    named = [(2, args.recovery_key_file), (3, args.keyfile), (0, args.domain_key)]
    sources = [s for s in sources if s[1]] + [(kind, os.fsencode(path), True) for kind, path in named if path]
    if len(sources) > 1:
        raise Problem(USAGE, "more than one secret is given: use one of passphrase, key file, recovery key, domain key")
    kind, value, is_path = sources[0] if sources else (1, b"", False)
    if not sources:
        import getpass

        value = getpass.getpass("Passphrase of the repository: ").encode("utf-8", "surrogateescape")
    if is_path:
        value = read_secret(value)
    try:
        return checked_secret(kind, value, is_path)
    except UnicodeDecodeError:
        raise Problem(USAGE, "the secret is not text in UTF-8") from None


def read_secret(path: bytes) -> bytes:
    try:
        held = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(held, "rb") as file:
            data = file.read(16 * MIB + 1)
    except OSError as error:
        raise Problem(USAGE, f"{os.fsdecode(path)}: {error.strerror}") from None
    return data


def checked_secret(kind: int, value: bytes, is_path: bool) -> "tuple[int, bytes]":
    if kind == 1:
        value = value[:-1] if is_path and value.endswith(b"\n") else value
        return kind, unicodedata.normalize("NFC", value.decode()).encode()
    if kind == 2:
        return kind, recovery_key(value.decode())
    if kind == 3 and not 32 <= len(value) <= MIB:
        raise Problem(USAGE, "a key file has 32 bytes to 1 MiB")
    return kind, value


class Session:
    """An opened repository and the command's options."""

    def __init__(self, args: argparse.Namespace, report: Reporter) -> None:
        path = args.repo or os.environ.get("LAMELLA_REPO")
        if not path:
            raise Problem(USAGE, "no repository: give --repo PATH")
        self.args, self.report, self.store = args, report, Store(path)
        marker, crypto = Marker.load(self.store), Crypto()
        self.volumes: "list[Tree]" = []
        kind, secret = secret_of(args)
        if kind:
            keys = unlock(self.store, marker, kind, secret, (crypto, report))
        else:
            keys, self.volumes = load_domain_key(secret, marker)
        self.repo = Repository(self.store, keys, crypto, report)
        if args.expect and not keys.whole:
            raise Problem(USAGE, "--expect needs a key that opens the commits, not a domain key")

    def history(self, keep_packs: bool = False) -> History:
        history = History(self.repo, keep_packs).load()
        if self.args.expect:
            wanted = re.sub(r"[\s-]", "", self.args.expect).upper()
            if wanted != history.fingerprint().replace("-", ""):
                text = f"head fingerprint is {history.fingerprint()}, not the expected one: older, newer or other state"
                raise Problem(HISTORY, text)
        return history

    def tree(self, word: str) -> Tree:
        """The tree of VOLUME[@SNAPSHOT], from commits or from the domain key file."""
        if not self.repo.keys.whole:
            found = [t for t in self.volumes if word in (t.name, t.name + "@latest", t.volume_id.hex())]
            if len(found) != 1:
                raise Problem(NO_MATCH, f"{shown(word)}: no such volume in the domain key file")
            return found[0]
        snapshot = self.history().select(word)
        if snapshot.unusable:
            raise Problem(FAILED, f"{shown(snapshot.name)} {snapshot.unusable}")
        print(f"snapshot {shown(snapshot.name)}, {utc(snapshot.when)}", file=sys.stderr)
        return snapshot.tree


def utc(milliseconds: int) -> str:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(milliseconds // 1000))
    except (OverflowError, ValueError, OSError):
        return f"{milliseconds}ms"


def print_rows(rows: "list[tuple[str, ...]]") -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(widths[i]) for i, cell in enumerate(row)).rstrip())


def run_list(session: Session) -> int:
    if not session.repo.keys.whole:
        rows = [("VOLUME", "SIZE", "ID")] + [(shown(t.name), str(t.size), t.volume_id.hex()) for t in session.volumes]
        print_rows(rows)
        return 0
    history = session.history()
    print(f"repository {session.repo.keys.marker.repo_id.hex()}, head fingerprint {history.fingerprint()}")
    rows = [("VOLUME", "SNAPSHOT", "TIME", "SIZE", "CONSISTENCY", "DOMAIN", "STATE")]
    found = not session.args.volume
    for volume_id, (name, record, snapshots) in history.volumes().items():
        if session.args.volume and session.args.volume not in (name, volume_id.hex()):
            continue
        found = True
        for s in snapshots:
            label = record.label if record and record.domain_id == s.tree.domain_id else s.tree.domain_id.hex()
            words = dict(enumerate(CONSISTENCY))
            rows.append((shown(name), shown(s.name), utc(s.when), str(s.tree.size),
                         words.get(s.consistency, str(s.consistency)), shown(label), history.state(s)))  # fmt: skip
        if not snapshots:
            rows.append((shown(name), "-", "-", "-", "-", "-", "no snapshot"))
    if not found:
        raise Problem(NO_MATCH, f"no volume {shown(session.args.volume)}")
    print_rows(rows)
    return HISTORY if session.report.history else 0


def run_info(session: Session) -> int:
    marker = session.repo.keys.marker
    print(f"repository: {marker.repo_id.hex()}\nformat: 1.{marker.minor}, id algorithm {marker.id_alg}")
    if session.repo.keys.whole:
        history = session.history()
        print(f"head fingerprint: {history.fingerprint()}")
        for head in sorted(history.heads(), key=lambda c: (c.writer, c.sha)):
            label = shown(history.labels.get(head.writer, ""))
            print(f"writer {head.writer.hex()} {label}: commit {head.seq} of {utc(head.when)}, {head.sha.hex()}")
    return HISTORY if session.report.history else 0


def run_restore(session: Session) -> int:
    args = session.args
    if args.document is None:
        tree = session.tree(args.volume)
        blobs = Blobs(session.repo, tree.domain_id)
        blobs.scan()
        save(args.to, args.overwrite, Volume(session.repo, blobs, tree))
        print(f"restored {shown(args.volume)}: {tree.size} bytes, compared, in {args.to}", file=sys.stderr)
        return 0
    if not session.repo.keys.whole:
        raise Problem(USAGE, "documents are named by the commits, which a domain key does not open")
    snapshot = session.history().select(args.volume)
    found = [d for d in snapshot.documents if d[0] == args.document]
    if len(found) != 1:
        names = ", ".join(shown(d[0]) for d in snapshot.documents) or "none"
        raise Problem(NO_MATCH, f"no document {shown(args.document)} in {shown(snapshot.name)}; there are: {names}")
    blobs = Blobs(session.repo, snapshot.tree.domain_id)
    blobs.scan()
    save(args.to, args.overwrite, Document(blobs, found[0][1], found[0][2]))
    return 0


def run_needs(args: argparse.Namespace, report: Reporter) -> int:
    """Names of objects to fetch, in rounds: marker, keys and commits first, then packs as far as commits name them."""
    try:
        store = Store(args.repo or os.environ.get("LAMELLA_REPO") or "")
        first = [name for name in ("keys/", "w/") if not store.names(name)]
        first = first if store.names("") and "lamella" in store.names("") else ["lamella", *first]
    except Problem:
        first = ["lamella", "keys/", "w/"]
    if first:
        print("\n".join(first))
        report.note("fetch these, then ask again")
        return 0
    session = Session(args, report)
    history = session.history(keep_packs=True) if session.repo.keys.whole else None
    if history and history.absent:
        print("\n".join(sorted(set(history.absent))))
        report.note("commits or catalogue packs are missing; fetch these, then ask again")
        return 0
    snapshot = history.select(args.volume) if history else None
    tree = snapshot.tree if snapshot else session.tree(args.volume)
    blobs = Blobs(session.repo, tree.domain_id)
    blobs.scan()
    unknown = count_unlocated(session, blobs, tree, snapshot)
    names = {pack_path(name) for name in blobs.bad_packs} if unknown or session.repo.keys.whole else set()
    if unknown:
        names |= {pack_path(name) for name in listed_packs(history, snapshot) if not store.has_pack(name)} or {"p/"}
        report.note(f"{unknown} blobs are in no pack that is here; what else is missing shows when these packs are here")
    if names:
        print("\n".join(sorted(names)))
    return 0


def count_unlocated(session: Session, blobs: Blobs, tree: Tree, snapshot: "Snapshot | None") -> int:
    """How many nodes, chunks and document parts are in no pack that is here (below a missing node they are not known)."""
    lost: list[int] = []
    walk = Walk(blobs, tree, session.report, lambda first, chunks, why: lost.append(first))
    count = sum(1 for _, _, ident in walk.extents() if ident and not blobs.located(CHUNK, ident))
    parts = [part for document in (snapshot.documents if snapshot else []) for part in document[2]]
    return count + len(lost) + sum(1 for part in parts if not blobs.located(DOCUMENT, part))


def listed_packs(history: "History | None", snapshot: "Snapshot | None") -> "set[bytes]":
    """Packs named by the ADD_SNAP records of the snapshot's domain."""
    if history is None or snapshot is None:
        return set()
    same = [s for s in history.snapshots.values() if s.tree.domain_id == snapshot.tree.domain_id]
    return {pack for s in same for pack in s.packs}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Problem(USAGE, message)


def parse(argv: "list[str]") -> argparse.Namespace:
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    for option, text in (("--repo", "directory of the repository (or LAMELLA_REPO)"), ("--keyfile", "key file"),
                         ("--recovery-key-file", "file with the recovery key (or LAMELLA_RECOVERY_KEY_FILE)"),
                         ("--domain-key", "exported domain key file: restores without reading commits"),
                         ("--expect", "head fingerprint that the repository must have")):  # fmt: skip
        common.add_argument(option, help=text, metavar="FINGERPRINT" if option == "--expect" else "PATH")
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    epilog = "Secrets also from LAMELLA_PASSPHRASE or LAMELLA_PASSPHRASE_FILE; else the passphrase is asked for."
    parser = Parser(prog="restore.py", description="Emergency reader of Lamella repositories; writes nothing into them.",
                    parents=[common], epilog=epilog, allow_abbrev=False)  # fmt: skip
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    made = {}
    for name, text in (("list", "show volumes and snapshots"), ("info", "show the repository and its writers"),
                       ("restore", "write a volume or a document to a file"),
                       ("needs", "print names of objects that are missing here")):  # fmt: skip
        made[name] = commands.add_parser(name, help=text, parents=[common], epilog=epilog, allow_abbrev=False)
    made["list"].add_argument("volume", nargs="?", metavar="VOLUME")
    for name in ("restore", "needs"):
        made[name].add_argument("volume", metavar="VOLUME[@SNAPSHOT]")
    made["restore"].add_argument("--to", required=True, metavar="FILE")
    made["restore"].add_argument("--document", metavar="NAME", help="restore this document instead of the volume")
    made["restore"].add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    nothing = argparse.Namespace(repo=None, keyfile=None, recovery_key_file=None, domain_key=None, expect=None, debug=False)
    return parser.parse_args(argv, nothing)


def run(argv: "list[str]") -> int:
    args, report = parse(argv), Reporter()
    if args.command == "needs":
        return run_needs(args, report)
    return {"list": run_list, "info": run_info, "restore": run_restore}[args.command](Session(args, report))


def main(argv: "list[str]") -> int:
    """Runs a command; every failure is one line on stderr and an exit code."""
    try:
        return run(argv)
    except Problem as problem:
        code, text = problem.code, str(problem)
    except KeyboardInterrupt:
        code, text = INTERRUPTED, "interrupted"
    except OSError as error:
        code, text = FAILED, f"{error.filename or 'input or output'}: {error.strerror or error}"
    except Exception as error:  # noqa: BLE001  (a person in an emergency gets one line; --debug shows the rest)
        code, text = FAILED, f"internal error: {type(error).__name__}: {error}"
    if "--debug" in argv:
        import traceback

        traceback.print_exc()
    print(f"restore.py: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
