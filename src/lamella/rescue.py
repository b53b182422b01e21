#!/usr/bin/env python3
"""Lamella emergency reader: restores volumes with nothing but this file, Python >= 3.9 and OpenSSL's libcrypto.

Copy it out of the repository into an empty directory, compare its SHA-256 with the recovery sheet, then run
``python3 -I -S COPY list --repo REPOSITORY``. It only reads the repository, and believes nothing that does not verify.
Written from docs/FORMAT.md alone; [FORMAT n] names its sections. Kept dense: it has to stay one file below 1200 lines.
"""

import sys
# ruff: noqa: E401, E402, E701, I001, UP014, UP037, SIM108, ANN401  (safe imports first; dense on purpose; Python 3.9)
# ruff: noqa: PTH105, PTH108, PTH112, PTH113, PTH114, PTH120, PTH208  (few modules, few attributes to plant)

def _trusted_path(path: "list[str]") -> "list[str]":
    """The interpreter's own places: a storage can plant ``argparse.py`` beside this file, in '' or on PYTHONPATH."""
    version, own = f"python{sys.version_info[0]}.{sys.version_info[1]}", __file__.rpartition("/")[0]
    for lib in (f"{sys.base_prefix}/{sys.platlibdir}", sys.base_prefix + "/lib"):
        first = f"{lib}/{version.replace('.', '')}.zip"
        if first in path:  # everything before the zip entry is the script's directory and PYTHONPATH
            rest = [p for p in path[path.index(first) + 1 :] if p[:1] == "/" and p != own]
            return [first, f"{lib}/{version}", f"{lib}/{version}/lib-dynload", *rest]
    return [p for p in path if p.startswith((sys.base_prefix + "/", sys.exec_prefix + "/")) and p != own]

if __name__ == "__main__" and not sys.flags.isolated: sys.path[:] = _trusted_path(sys.path)

import argparse, base64, collections, contextlib, ctypes, ctypes.util, errno, functools, getpass, hashlib, hmac, os, re
import stat, struct, time, traceback, unicodedata, zlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple, NoReturn
FAILED, USAGE, NO_MATCH, NO_REPOSITORY, WRONG_KEY, DAMAGE, HISTORY, INTERRUPTED = 1, 2, 4, 10, 12, 20, 21, 130
KIB, MIB, OBJECT_MAX, HEAD_READ, PART_MAX = 1 << 10, 1 << 20, 64 << 20, 32 << 10, 8 << 20
HEADER, TRAILER, TAG, ID, ALIGN, FANOUT, NODE_HEADER, DEPTH_MAX = 72, 144, 16, 24, 16, 64, 56, 10
INVALID_NAMES, SLOTS_MAX, SCRYPT_SLOTS, SCRYPT_WORK = 1000, 32, 8, 8 << 22
HOLE, ZERO, DATA, CATALOGUE = 0, 1, 2, bytes(16)
CHUNK, LEAF, INNER, DOCUMENT, COMMIT, SEGMENT = 1, 2, 3, 5, 6, 7
CONTENT_MAX = {CHUNK: 4 * MIB, LEAF: 1592, INNER: 1592, DOCUMENT: PART_MAX, COMMIT: PART_MAX, SEGMENT: PART_MAX}
SIGNED = frozenset((2, 5, 6, 7, 8, 9, *range(0x10, 0x19), 0x8002))  # types of records that end in a signature or zeros
CONSISTENCY = {0: "unknown", 1: "live", 2: "quiesced", 3: "halted", 4: "committed"}
class Problem(Exception):  # Ends the program: exit code and the one line that is shown
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
class Bad(Exception): """One thing read from the repository does not verify or is malformed."""
class Missing(Bad): """An object or a blob is not there."""
class Withheld(Bad): """The storage does not give an object's bytes: nothing can be said about them."""
class Reporter:  # Warnings on stderr, each once and at most 500; history = whether the exit code is to be 21
    def __init__(self) -> None:
        self.history, self._bar = False, 0.0
        self._said: set[str] = set()
    def warn(self, text: str, word: str = "warning", history: bool = False) -> None:
        self.history = self.history or history
        if text not in self._said and len(self._said) < 500:
            self._said.add(text)
            print(f"restore.py: {word}: {text}", file=sys.stderr)
    def progress(self, word: str, done: int, total: int) -> None:
        if sys.stderr.isatty() and (time.monotonic() > self._bar + 0.2 or done >= total):
            self._bar, end = time.monotonic(), "\n" if done >= total else ""
            text = f"\r{word} {done}" + (f" of {total}" if total < sys.maxsize else "")
            print(text + "\x1b[K", end=end, file=sys.stderr, flush=True)
class Cursor:  # Takes fields off the front of bytes; anything that does not fit is Bad
    def __init__(self, data: bytes) -> None: self._data, self._at = data, 0
    def take(self, size: int) -> bytes:
        if size > self.left(): raise Bad("a field is longer than what holds it")
        self._at += size
        return self._data[self._at - size : self._at]
    def number(self, size: int) -> int: return int.from_bytes(self.take(size), "little")
    def text(self) -> str:
        try: return self.take(self.number(1)).decode("utf-8")
        except UnicodeDecodeError: raise Bad("a text is not UTF-8") from None
    def expect(self, value: bytes, what: str) -> None:
        if self.take(len(value)) != value: raise Bad(what)
    def many(self, count: int, size: int) -> "list[bytes]":
        block = self.take(count * size)
        return [block[i : i + size] for i in range(0, len(block), size)]
    def left(self) -> int: return len(self._data) - self._at
    def end(self) -> None:
        if self.left(): raise Bad("bytes after the last field")
def u64(number: int) -> bytes: return number.to_bytes(8, "little")
def shown(text: str) -> str:  # Text from the repository as it may go to a terminal
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode("ascii") for c in text)
# ---- primitives ------------------------------------------------------------------------------------------------------
def prf(key: bytes, message: bytes) -> bytes: return hmac.digest(key, message, "sha256")
def hkdf(ikm: bytes, salt: bytes, info: bytes, size: int) -> bytes:  # HKDF-SHA-256 of RFC 5869; size <= 8160
    prk, block, out = prf(salt, ikm), b"", b""
    for counter in range(1, -(-size // 32) + 1):
        block = prf(prk, block + info + bytes([counter]))
        out += block
    return out[:size]
_C = ctypes
_TYPES: "dict[str, Any]" = {"p": _C.c_void_p, "i": _C.c_int, "z": _C.c_size_t, "s": _C.c_char_p, "u": _C.c_uint,
                            "v": None, "n": _C.POINTER(_C.c_int), "m": _C.POINTER(_C.c_size_t)}
_CRYPTO_API = """EVP_CIPHER_CTX_new:p EVP_aes_256_gcm:p EVP_chacha20_poly1305:p EVP_DecryptInit_ex:ipppss
    EVP_DecryptUpdate:ippnsi EVP_CIPHER_CTX_ctrl:ipiis EVP_DecryptFinal_ex:ippn EVP_PKEY_new_raw_public_key:pipsz
    EVP_PKEY_new_raw_private_key:pipsz EVP_PKEY_get_raw_public_key:ipsm EVP_PKEY_free:vp EVP_MD_CTX_new:p
    EVP_MD_CTX_free:vp EVP_DigestVerifyInit:ippppp EVP_DigestVerify:ipszsz"""
_ZSTD_API = "ZSTD_createDCtx:p ZSTD_decompressDCtx:zppzsz ZSTD_isError:uz"
def load_library(names: "list[str]", word: str, api: str) -> "ctypes.CDLL | None":
    """The first library of the system that has every function of an api (name:types, the result's first)."""
    for find in [lambda name=name: name for name in names] + [lambda: ctypes.util.find_library(word)]:
        with contextlib.suppress(OSError, AttributeError, TypeError):
            lib = ctypes.CDLL(find() or "not found")
            for function, types in (item.split(":") for item in api.split()):
                entry = getattr(lib, function)
                entry.restype, entry.argtypes = _TYPES[types[0]], [_TYPES[t] for t in types[1:]]
            return lib
    return None
class Crypto:  # libcrypto: the two ciphers with nonce 0 and a tag of 16 bytes at the end; Ed25519
    def __init__(self) -> None:
        names = ["libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.3.dylib"]
        with contextlib.suppress(ImportError):
            import _hashlib
            names.insert(0, _hashlib.__file__)  # its symbols resolve to the library Python itself uses
        lib = load_library(names, "crypto", _CRYPTO_API)
        if lib is None: raise Problem(FAILED, "OpenSSL's libcrypto (1.1.1 or later) was not found on this system")
        self._lib, self._out, self._count = lib, ctypes.create_string_buffer(MIB), ctypes.c_int(0)
        self._contexts: dict[int, Any] = {}
        for number, cipher in ((1, lib.EVP_aes_256_gcm()), (2, lib.EVP_chacha20_poly1305())):
            self._contexts[number] = lib.EVP_CIPHER_CTX_new()
            if lib.EVP_DecryptInit_ex(self._contexts[number], cipher, None, None, None) != 1:
                raise Problem(FAILED, "libcrypto refuses AES-256-GCM or ChaCha20-Poly1305")
    def open(self, aead: int, key: bytes, aad: bytes, sealed: bytes) -> "bytes | None":
        """The plaintext, or None when the tag does not verify."""
        size = len(sealed) - TAG
        lib, context, count = self._lib, self._contexts[aead], ctypes.byref(self._count)
        if size < 0 or lib.EVP_DecryptInit_ex(context, None, None, key, bytes(12)) != 1: return None
        if size > len(self._out) - 32: self._out = ctypes.create_string_buffer(size + MIB)
        good = lib.EVP_DecryptUpdate(context, None, count, aad, len(aad)) == 1
        good = good and lib.EVP_DecryptUpdate(context, self._out, count, sealed, size) == 1
        good = good and lib.EVP_CIPHER_CTX_ctrl(context, 0x11, TAG, sealed[size:]) == 1
        good = good and lib.EVP_DecryptFinal_ex(context, ctypes.byref(self._out, size), count) == 1
        return ctypes.string_at(self._out, size) if good else None
    def verify(self, public: bytes, signature: bytes, message: bytes) -> bool:
        if len(public) != 32 or len(signature) != 64: return False
        key, context = self._lib.EVP_PKEY_new_raw_public_key(1087, None, public, 32), self._lib.EVP_MD_CTX_new()
        good = bool(key) and self._lib.EVP_DigestVerifyInit(context, None, None, None, key) == 1
        good = good and self._lib.EVP_DigestVerify(context, signature, 64, message, len(message)) == 1
        self._lib.EVP_MD_CTX_free(context)
        self._lib.EVP_PKEY_free(key)
        return good
    def public(self, seed: bytes) -> bytes:  # The Ed25519 public key of a 32-byte seed
        key, size = self._lib.EVP_PKEY_new_raw_private_key(1087, None, seed, 32), ctypes.c_size_t(32)
        out = ctypes.create_string_buffer(32)
        good = bool(key) and self._lib.EVP_PKEY_get_raw_public_key(key, out, ctypes.byref(size)) == 1
        self._lib.EVP_PKEY_free(key)
        return out.raw if good else b""
# ---- codecs [FORMAT 4] -----------------------------------------------------------------------------------------------
def inflate(payload: bytes, rlen: int) -> bytes:
    """A zlib stream that ends exactly at the end of payload and holds exactly rlen bytes; memory bounded by rlen."""
    decoder = zlib.decompressobj()
    try: content = decoder.decompress(payload, rlen + 1)
    except zlib.error as error: raise Bad(f"zlib: {error}") from None
    if len(content) != rlen or not decoder.eof or decoder.unused_data: raise Bad("zlib stream of another length")
    return content
def check_zstd_frame(payload: bytes, rlen: int) -> None:
    """RFC 8878, 3.1.1: one frame and nothing else, its size stated and right, no dictionary, a bounded window."""
    frame = Cursor(payload)
    frame.expect(b"\x28\xb5\x2f\xfd", "not a zstd frame")
    descriptor = frame.number(1)
    single, flag, window = bool(descriptor & 0x20), descriptor >> 6, 0
    if descriptor & 0x0B: raise Bad("zstd frame with a dictionary or a reserved bit")
    if not single:
        byte = frame.number(1)
        window = (8 + (byte & 7)) << (7 + (byte >> 3))
    if flag == 0 and not single: raise Bad("zstd frame without its content size")
    size = frame.number(1 << flag) + (256 if flag == 1 else 0)
    if size != rlen or (size if single else window) > max(rlen, KIB): raise Bad("zstd frame of another size or window")
    last = False
    while not last:
        header = frame.number(3)
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        if kind == 3 or size > 128 * KIB: raise Bad("zstd block of a reserved type or too large")
        frame.take(1 if kind == 1 else size)
    frame.take(4 if descriptor & 0x04 else 0)  # the checksum, which the decoder compares
    frame.end()
@functools.lru_cache(maxsize=None)  # noqa: UP033  (Python 3.9)
def zstd_decoder() -> "Callable[[bytes, int], bytes]":
    """A zstd decoder: the standard library's, else the system's libzstd, else a module; it only sees checked frames."""
    for name in ("compression.zstd", "libzstd", "backports.zstd", "zstandard"):
        lib = load_library(["libzstd.so.1", "libzstd.1.dylib"], "zstd", _ZSTD_API) if name == "libzstd" else None
        if lib is not None:
            return functools.partial(_library_decode, lib, lib.ZSTD_createDCtx(), ctypes.create_string_buffer(PART_MAX))
        with contextlib.suppress(ImportError):
            return functools.partial(_module_decode, __import__(name, fromlist=["zstd"]), name)
    raise Problem(FAILED, "this data is compressed with zstd: install libzstd (package libzstd1 or zstd)")
def _library_decode(lib: Any, context: Any, out: Any, payload: bytes, rlen: int) -> bytes:
    size = lib.ZSTD_decompressDCtx(context, out, min(rlen, PART_MAX), payload, len(payload))
    if lib.ZSTD_isError(size): raise Bad("zstd: the frame does not decode")
    return ctypes.string_at(out, size)
def _module_decode(module: Any, name: str, payload: bytes, rlen: int) -> bytes:
    limit = {"max_output_size": rlen} if name == "zstandard" else {"max_length": rlen + 1}
    try: return bytes(module.ZstdDecompressor().decompress(payload, **limit))
    except module.ZstdError as error: raise Bad(f"zstd: {error}") from None
def unzstd(payload: bytes, rlen: int) -> bytes:
    check_zstd_frame(payload, rlen)
    return zstd_decoder()(payload, rlen)
# ---- objects ---------------------------------------------------------------------------------------------------------
def read_at(held: int, offset: int, size: int) -> bytes:  # Exactly size bytes of an open file
    data = b""
    try:
        while len(data) < size:
            more = os.pread(held, size - len(data), offset + len(data))
            if not more: raise Bad("truncated")
            data = data + more if data else more
    except OSError as error: raise Withheld(error.strerror or "cannot be read") from None
    return data
def pack_path(name: bytes) -> str: return f"p/{name[:1].hex()}/{name.hex()}"
class Store:
    """The repository directory, read only: regular files below it, no symbolic link followed under its top."""
    def __init__(self, path: str) -> None:
        try: self._top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error: raise Problem(NO_REPOSITORY, f"{path}: {error.strerror}") from None
    @contextlib.contextmanager
    def open(self, name: str, directory: int = 0) -> "Iterator[int]":
        """A descriptor of an object (of a directory with directory = O_DIRECTORY)."""
        held, parts = os.dup(self._top), [part for part in name.split("/") if part]
        try:
            for part in parts:
                extra = directory if part is parts[-1] else os.O_DIRECTORY
                parent, held = held, -1
                try: held = os.open(part, os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | extra, dir_fd=parent)
                except OSError as error:
                    text = f"{shown(name)}: {error.strerror}"
                    kinds = {errno.ENOENT: Missing, errno.ELOOP: Bad, errno.ENOTDIR: Bad, errno.ENXIO: Bad}
                    raise kinds.get(error.errno or 0, Withheld)(text) from None
                finally: os.close(parent)
            if not directory and not stat.S_ISREG(os.fstat(held).st_mode): raise Bad(f"{name}: not a regular file")
            yield held
        finally:
            if held >= 0: os.close(held)
    def read(self, name: str, limit: int) -> bytes:  # A whole object of at most limit bytes
        with self.open(name) as held:
            size = os.fstat(held).st_size
            if size > limit: raise Bad(f"{name}: larger than {limit} bytes")
            return read_at(held, 0, size)
    def names(self, folder: str) -> "list[str]":  # Sorted names in a folder; none where it is missing
        try:
            with self.open(folder, os.O_DIRECTORY) as held: return sorted(os.listdir(held))
        except Missing: return []
        except OSError as error: raise Bad(f"{folder}: {error.strerror}") from None
    def matching(self, folder: str, pattern: str, report: Reporter) -> "Iterator[str]":
        """Names in a folder that match; the listing stops after 1000 others."""
        invalid: list[str] = []
        try:
            for name in self.names(folder):
                if re.fullmatch(pattern, name):
                    yield name
                    continue
                invalid.append(shown(name)[:80])
                if len(invalid) >= INVALID_NAMES:
                    report.warn(f"{folder}/: the listing stops after {INVALID_NAMES} names that are not of this format")
                    break
        except Bad as error: report.warn(str(error))
        if invalid: report.warn(f"{folder}/: {len(invalid)} names of no object, ignored: {', '.join(invalid[:5])}")
    def packs(self, report: Reporter) -> "Iterator[str]":  # Hex names of all objects in p/
        for folder in self.matching("p", "[0-9a-f]{2}", report):
            yield from self.matching(f"p/{folder}", folder + "[0-9a-f]{62}", report)
Marker = NamedTuple("Marker", [("minor", int), ("id_alg", int), ("repo_id", bytes), ("prune", bytes), ("r", bytes)])
def load_marker(store: Store) -> Marker:
    try: data = store.read("lamella", 64)
    except Bad as error: raise Problem(NO_REPOSITORY, f"no repository here: {error}") from None
    if len(data) != 64 or data[:8] != b"LAMELLA\0": raise Problem(NO_REPOSITORY, "no repository here: no marker")
    if data[8] != 1 or data[10] not in (1, 2) or any(data[11:16]):
        raise Problem(FAILED, "the marker has unknown values: altered, or a format newer than this reader")
    r = hashlib.sha256(data[:9] + b"\0" + data[10:]).digest()
    return Marker(data[9], data[10], data[16:32], data[32:64], r)
class Domain:  # Keys of one domain: blob ids and pack keys [FORMAT 3, 4]
    def __init__(self, marker: Marker, domain_id: bytes, enc: bytes, id_key: bytes) -> None:
        self.domain_id, self.enc, self.additional = domain_id, enc, marker.r + domain_id
        self._alg, self._key = marker.id_alg, id_key
    def content_id(self, kind: int, content: bytes) -> bytes:
        word = b"lml1" + bytes([kind])
        key = self._key
        if self._alg == 2: return hashlib.blake2b(content, key=key, digest_size=ID, person=word + bytes(11)).digest()
        mac = hmac.new(key, word, "sha256")
        mac.update(content)
        return mac.digest()[:ID]
class Keys:
    """What a secret opens: everything (data_root), or one domain (exported domain key file)."""
    def __init__(self, marker: Marker, data_root: "bytes | None", domain: "Domain | None" = None) -> None:
        self.marker, self._root, self.whole = marker, data_root, data_root is not None
        self._domains = {domain.domain_id: domain} if domain else {}
        self._hdr, self._vouch = self._derive(b"hdr", b""), self._derive(b"vouch", b"")
    def _derive(self, purpose: bytes, name: bytes) -> bytes:
        info = b"lamella/1\0" + bytes([len(purpose)]) + purpose + bytes([len(name)]) + name
        return hkdf(self._root or b"", self.marker.r, info, 32)
    def domain(self, domain_id: bytes) -> Domain:
        if domain_id not in self._domains:
            if not self.whole: raise Problem(WRONG_KEY, "the domain key file is for another domain")
            word = b"idh" if self.marker.id_alg == 1 else b"idb"
            pairs = [(b"enc", domain_id), (word, domain_id)]
            if domain_id == CATALOGUE: pairs = [(b"cat", b"enc"), (b"cat", word)]
            self._domains[domain_id] = Domain(self.marker, domain_id, *(self._derive(*pair) for pair in pairs))
        return self._domains[domain_id]
    def vouch(self, public: bytes) -> bytes: return prf(self._vouch, public)[:16]
    def hint(self, header: bytes) -> "bytes | None":
        """The domain_id that a container's hint names, if it is a valid one and data_root is there to read it."""
        if not self.whole: return None
        salt, hint = header[16:48], header[48:72]
        mask = prf(self._hdr, b"hint" + salt)
        domain_id = bytes(a ^ mask[i] for i, a in enumerate(hint[:16]))
        return domain_id if hmac.compare_digest(prf(self._hdr, b"mac" + salt + domain_id)[:8], hint[16:]) else None
# A blob in a pack: offset from the start of the object, gap = zero bytes before it.
Entry = NamedTuple("Entry", [("ident", bytes), ("kind", int), ("clen", int), ("rlen", int), ("at", int), ("gap", int)])
class Container:  # Header and keys of one pack or commit (bound: a commit's writer_id || seq) [FORMAT 5]
    def __init__(self, crypto: Crypto, domain: Domain, header: bytes, bound: bytes = b"") -> None:
        if len(header) < HEADER or header[:8] != b"LMLPACK\x01": raise Bad("not a pack")
        if header[8] not in (1, 2) or header[9] != 1 or any(header[10:12]): raise Bad("unknown cipher or flags")
        self.dir_len = int.from_bytes(header[12:16], "little")
        if self.dir_len < 81 or (self.dir_len - 49) % 32 or self.dir_len > 49 + 32 * 0xFFFF:
            raise Bad("impossible length of the directory")
        self._crypto, self._domain, self._aead = crypto, domain, header[8]
        self._aad = header[:12] + domain.additional + bound
        self._key = prf(domain.enc, b"pack" + header[8:9] + header[16:48])
    def _body(self, kind: int, ident: bytes, sealed: bytes, rlen: int) -> "tuple[int, bytes]":
        body = self._crypto.open(self._aead, prf(self._key, bytes([kind]) + ident), self._aad, sealed)
        if body is None: raise Bad("does not decrypt (altered or damaged)")
        if len(body) < 5 or int.from_bytes(body[1:5], "little") != rlen: raise Bad("another length than stated")
        return body[0], body[5:]
    def blob(self, kind: int, ident: bytes, sealed: bytes, rlen: int) -> bytes:
        """The content of a sealed blob, checked down to its id."""
        codec, payload = self._body(kind, ident, sealed, rlen)
        if codec > 2: raise Bad(f"unknown codec {codec}")
        content = (lambda data, _: data, inflate, unzstd)[codec](payload, rlen)
        if len(content) != rlen or self._domain.content_id(kind, content) != ident: raise Bad("not what its id says")
        return content
    def directory(self, data: bytes, kinds: "tuple[int, ...]") -> "list[Entry]":
        """Entries of the directory; data = the object's first 72 + dir_len bytes or more."""
        ident, sealed = data[HEADER : HEADER + ID], data[HEADER + ID : HEADER + self.dir_len]
        if len(sealed) != self.dir_len - ID: raise Bad("truncated in the directory")
        count = (self.dir_len - 49) // 32
        codec, content = self._body(0, ident, sealed, 4 + 32 * count)
        if codec or len(content) != 4 + 32 * count or content[:4] != struct.pack("<HH", 1, count): raise Bad("odd form")
        if prf(self._key, b"dir" + content)[:ID] != ident: raise Bad("the directory is not the one of its id")
        entries, seen, end = [], set(), HEADER + self.dir_len
        for ident, word, rlen in struct.iter_unpack("<24sII", content[4:]):
            kind, clen, gap = word >> 24, word & 0xFFFFFF, -end % ALIGN
            if kind not in kinds or rlen > CONTENT_MAX[kind] or not 21 <= clen <= 21 + rlen or (kind, ident) in seen:
                raise Bad("a directory entry that may not be")
            seen.add((kind, ident))
            entries.append(Entry(ident, kind, clen, rlen, end + gap, gap))
            end += gap + clen
        if end > OBJECT_MAX: raise Bad("longer than 64 MiB")
        return entries
class BlobMap:
    """(kind, id) -> all places: pack number, offset, clen, rlen, gap. In a private SQLite file that vanishes."""
    def __init__(self) -> None:
        self._base = __import__("sqlite3").connect("", isolation_level=None)  # only restoring needs it
        for text in ("PRAGMA cache_size=-32000", "PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF",
                     "CREATE TABLE blob (k BLOB, p INT, o INT, c INT, r INT, g INT)", "BEGIN"): self._base.execute(text)
    def __del__(self) -> None: self._base.close()
    def add(self, pack: int, entries: "list[Entry]") -> None:
        rows = [(bytes([e.kind]) + e.ident, pack, e.at, e.clen, e.rlen, e.gap) for e in entries]
        self._base.executemany("INSERT INTO blob VALUES (?, ?, ?, ?, ?, ?)", rows)
    def finish(self) -> None: self._base.execute("CREATE INDEX place ON blob (k, p, o, c, r, g)")
    def places(self, kind: int, ident: bytes) -> "list[tuple[int, int, int, int, int]]":
        return list(self._base.execute("SELECT p, o, c, r, g FROM blob WHERE k = ?", (bytes([kind]) + ident,)))
# Store, keys and what is needed to open things with them.
Repository = NamedTuple("Repository", [("store", Store), ("keys", Keys), ("crypto", Crypto), ("report", Reporter)])
class Blobs:  # All blobs of one domain, found by the heads of the packs [FORMAT 5, 7]
    def __init__(self, repo: Repository, domain_id: bytes) -> None:
        self._repo, self.domain = repo, repo.keys.domain(domain_id)
        self._kinds: tuple[int, ...] = (SEGMENT,) if domain_id == CATALOGUE else (CHUNK, LEAF, INNER, DOCUMENT)
        self._map, self._packs = BlobMap(), bytearray()  # 32 bytes a pack: its name
        self._containers: "collections.OrderedDict[bytes, tuple[int, Container]]" = collections.OrderedDict()
        self.bad_packs: set[bytes] = set()
    def scan(self) -> "Blobs":  # Reads the head of every pack and keeps the directories of this domain
        for number, name in enumerate(self._repo.store.packs(self._repo.report)):
            self.scan_pack(bytes.fromhex(name))
            self._repo.report.progress("packs looked at:", number, sys.maxsize)
        self._map.finish()
        return self
    def scan_pack(self, name: bytes) -> None:
        try:
            with self._repo.store.open(pack_path(name)) as held: self._head(held, name)
        except Bad as error:
            if self._repo.keys.whole:  # with one domain's key, packs of others do not open and are no news
                self.bad_packs.add(name)
                self._repo.report.warn(f"{pack_path(name)}: {error}; ignored")
    def _head(self, held: int, name: bytes) -> None:
        size = os.fstat(held).st_size
        data = read_at(held, 0, min(size, HEAD_READ))
        hint = self._repo.keys.hint(data)
        if hint not in (None, self.domain.domain_id): return
        container = Container(self._repo.crypto, self.domain, data)
        data += read_at(held, len(data), max(0, HEADER + container.dir_len - len(data)))
        entries = container.directory(data, self._kinds)
        end = entries[-1].at + entries[-1].clen
        if size != end or (hint is None and self._repo.keys.whole):
            self.bad_packs.add(name)
            self._repo.report.warn(f"{pack_path(name)}: its length or hint is wrong; what is whole in it is used")
        self._map.add(len(self._packs) // 32, [entry for entry in entries if entry.at + entry.clen <= size])
        self._packs += name
    def _pack(self, name: bytes) -> "tuple[int, Container]":
        if name not in self._containers:
            with self._repo.store.open(pack_path(name)) as held:
                made = Container(self._repo.crypto, self.domain, read_at(held, 0, HEADER))
                self._containers[name] = os.dup(held), made
            if len(self._containers) > 48: os.close(self._containers.popitem(last=False)[1][0])
        self._containers.move_to_end(name)
        return self._containers[name]
    def located(self, kind: int, ident: bytes) -> bool: return bool(self._map.places(kind, ident))
    def read(self, kind: int, ident: bytes, low: int, high: int) -> bytes:
        """The content of a blob of low..high bytes, from the first of its places that verifies."""
        errors = []
        for number, offset, clen, rlen, gap in self._map.places(kind, ident):
            name = bytes(self._packs[32 * number : 32 * number + 32])
            try:
                if not low <= rlen <= high: raise Bad("another length than its position implies")
                held, container = self._pack(name)
                data = read_at(held, offset - gap, gap + clen)
                if any(data[:gap]): self._repo.report.warn(f"{pack_path(name)}: padding is not zero before {offset}")
                content = container.blob(kind, ident, data[gap:], rlen)
            except Bad as error:
                self.bad_packs.add(name)
                errors.append(f"{pack_path(name)}: {error}")
                continue
            for text in errors: self._repo.report.warn(f"bad copy, another one was used: {text}")
            return content
        if not errors: raise Missing(f"blob {ident.hex()} is in no pack that is here")
        raise Bad("; ".join(errors))
# ---- secrets [FORMAT 3] ----------------------------------------------------------------------------------------------
def recovery_key(text: str) -> bytes:  # The 32 bytes of a recovery key as people write it
    letters = "".join(text.split()).replace("-", "").upper().translate(str.maketrans("018", "OIB"))
    try: data = base64.b32decode(letters)
    except ValueError: data = b""
    if len(data) != 35 or hashlib.sha256(b"lamella recovery" + data[:32]).digest()[:3] != data[32:]:
        raise Problem(WRONG_KEY, "this is not a recovery key: its checksum does not fit (a typing mistake?)")
    return data[:32]
def check_slot(slot: bytes, name: str) -> None:  # Form and name of a slot, before any secret is tried on it
    if len(slot) != 176 or slot[:8] != b"LMLSLOT\x01" or hashlib.sha256(slot).hexdigest()[:8] != name:
        raise Bad("not a whole key slot")
    cost, limits = slot[10:13], (range(15, 21), (8,), range(1, 5)) if slot[8] == 1 else ((0,), (0,), (0,))
    if slot[8] not in (1, 2, 3) or slot[9] not in (1, 2) or any(slot[13:16]): raise Bad("unknown type or role")
    if any(cost[i] not in limits[i] for i in range(3)): raise Bad("scrypt parameters out of bounds")
def open_slot(slot: bytes, secret: bytes, marker: Marker, crypto: Crypto) -> "bytes | None":
    """data_root from a slot, None for a wrong secret."""
    if slot[8] == 1:
        n, r, p = 1 << slot[10], slot[11], slot[12]
        kek = hashlib.scrypt(secret, salt=slot[16:48], n=n, r=r, p=p, maxmem=128 * r * (n + p + 2) + MIB, dklen=32)
    else: kek = hkdf(secret, slot[16:48], b"lamella/1 kek\0" + marker.r + slot[:16], 32)
    if not hmac.compare_digest(prf(hkdf(kek, marker.r, b"mac", 32), slot[:144]), slot[144:]): return None
    wrap = hkdf(kek, marker.r, b"wrap", 96)
    bundle = bytes(byte ^ wrap[i] for i, byte in enumerate(slot[48:144]))
    seed = bundle[32:64]
    fits = crypto.public(seed) == marker.prune if slot[9] == 1 else not any(seed)
    if not fits or any(bundle[64:]): raise Bad("its contents do not fit its role and the marker")
    return bundle[:32]
def unlock(store: Store, marker: Marker, kind: int, secret: bytes, tools: "tuple[Crypto, Reporter]") -> Keys:
    """Tries the slots of the secret's type [FORMAT 3]."""
    tried = other = bad = work = 0
    for name in list(store.matching("keys", "[0-9a-f]{8}", tools[1]))[:SLOTS_MAX]:
        try:
            slot = store.read(f"keys/{name}", 176)
            check_slot(slot, name)
            cost = (1 << slot[10]) * slot[11] * slot[12] if slot[8] == 1 else 0
            if slot[8] != kind or (kind == 1 and (tried >= SCRYPT_SLOTS or work + cost > SCRYPT_WORK)):
                other += 1
                continue
            tried, work = tried + 1, work + cost
            root = open_slot(slot, secret, marker, tools[0])
            if root is not None: return Keys(marker, root)
        except Bad as error:
            bad += 1
            tools[1].warn(f"keys/{name}: {error}")
    raise Problem(WRONG_KEY, f"wrong key or altered marker: {tried} slots tried, {other} not tried, {bad} bad")
# What a restore walks: a volume of an exported domain key file, or the tree of a snapshot.
Tree = NamedTuple("Tree", [("name", str), ("volume_id", bytes), ("domain_id", bytes), ("root", bytes), ("size", int),
                           ("log2", int)])
def load_domain_key(data: bytes, marker: Marker) -> "tuple[Keys, list[Tree]]":  # An exported domain key file [FORMAT 3]
    c = Cursor(data)
    c.expect(b"LMLDOMK\x01", "not a domain key file")
    alg = c.number(1)
    c.expect(bytes(7), "reserved bytes are set")
    r, domain_id, enc, id_key, volumes = c.take(32), c.take(16), c.take(32), c.take(32), []
    if r != marker.r or alg != marker.id_alg or domain_id == CATALOGUE:
        raise Problem(WRONG_KEY, "the domain key file is of another repository, or the marker was altered")
    for _ in range(c.number(4)):
        name, volume_id, root, size, log2 = c.text(), c.take(16), c.take(ID), c.number(8), c.number(1)
        if not 16 <= log2 <= 22: raise Bad("impossible chunk size")
        volumes.append(Tree(name, volume_id, domain_id, root, size, log2))
    c.end()
    return Keys(marker, None, Domain(marker, domain_id, enc, id_key)), volumes
# ---- commits [FORMAT 8] ----------------------------------------------------------------------------------------------
Head = NamedTuple("Head", [("writer", bytes), ("seq", int), ("sha", bytes)])  # What names a commit
def head_of(name: bytes) -> Head: return Head(*struct.unpack("<16sQ32s", name))
class Commit:
    """A valid commit; sha is empty for one known only by a checkpoint's entry. known: writer -> newest seq seen."""
    def __init__(self, writer: bytes, seq: int, sha: bytes, c: Cursor) -> None:
        self.writer, self.seq, self.sha, self.prev, self.when = writer, seq, sha, c.take(32), c.number(8)
        self.newest, self.has_checkpoint = b"", False  # newest = checkpoint_seq || checkpoint_sha256
        self.seen: tuple[Head, ...] = ()
        self.known: dict[bytes, int] = {}
        self.proofs: set[bytes] = set()  # what a damaged copy of it would still prove
    def name(self) -> bytes: return self.writer + u64(self.seq) + self.sha
    def path(self) -> str: return commit_path(self.writer, self.seq, self.sha)
    def before(self) -> Head: return Head(self.writer, self.seq - 1, self.prev)
# A VOLUME (domain_id set) or RENAME record.
Naming = NamedTuple("Naming", [("commit", Commit), ("order", int), ("signed", bool), ("name", str),
                               ("domain_id", bytes), ("label", str)])
# A TAG record.
Tagging = NamedTuple("Tagging", [("commit", Commit), ("order", int), ("signed", bool), ("removed", bool)])
# An ADD_SNAP record; ref = writer_id || seq || snap_id.
Snapshot = NamedTuple("Snapshot", [("commit", Commit), ("order", int), ("ref", bytes), ("tree", Tree),
                                   ("consistency", int), ("when", int), ("name", str),
                                   ("documents", "list[tuple[str, int, list[bytes]]]"), ("packs", "list[bytes]"),
                                   ("unusable", str), ("inner", "list[int]")])
Loss = NamedTuple("Loss", [("commit", Commit), ("order", int), ("lost", bool)])  # A LOST record
def commit_path(writer: bytes, seq: int, sha: bytes) -> str: return f"w/{writer.hex()}/{seq:016x}-{sha.hex()}"
def proof_of(box: bytes) -> bytes: return box[16:48] + box[HEADER : HEADER + ID]  # Salt and id of the directory
def records_of(c: Cursor) -> "list[tuple[int, bytes]]":
    return [(c.number(2), c.take(c.number(4))) for _ in iter(c.left, 0)]
def parse_snapshot(commit: Commit, order: int, c: Cursor, keep_packs: bool) -> Snapshot:
    snap_id, volume_id, domain_id = c.many(3, 16)
    log2, consistency, flags, size, root = c.number(1), c.number(1), c.number(2), c.number(8), c.take(ID)
    when, _, name = c.number(8), c.take(40), c.text()
    documents = [(c.text(), c.number(8), c.many(c.number(2), ID)) for _ in range(c.number(2))]
    packs = c.many(c.number(4), 32)[: None if keep_packs else 0]
    inner = sorted(kind for kind, _ in records_of(c))
    if domain_id == CATALOGUE or flags or not 16 <= log2 <= 22: raise Bad("ADD_SNAP with impossible values")
    unusable = f"needs feature {inner[0]:#06x}, which this reader does not know" if inner and inner[0] < 0x8000 else ""
    tree, ref = Tree(name, volume_id, domain_id, root, size, log2), commit.writer + u64(commit.seq) + snap_id
    return Snapshot(commit, order, ref, tree, consistency, when, name, documents, packs, unusable, inner)
class History:  # All commits and the state they add up to [FORMAT 8]
    def __init__(self, repo: Repository, keep_packs: bool = False) -> None:
        self.repo, self.warn, self._keep, self._order = repo, repo.report.warn, keep_packs, 0
        self.commits: dict[bytes, Commit] = {}
        self.chains: dict[bytes, list[Commit]] = collections.defaultdict(list)
        self.snapshots: dict[bytes, Snapshot] = {}  # by ref and root
        self.namings: dict[bytes, list[Naming]] = collections.defaultdict(list)
        self.labels: dict[bytes, str] = {}
        self.taggings: dict[tuple[bytes, str], list[Tagging]] = collections.defaultdict(list)  # by ref and tag
        self.runs: dict[tuple[bytes, str], int] = {}
        self.losses: dict[bytes, list[Loss]] = collections.defaultdict(list)
        self.sets: dict[int, set[bytes]] = collections.defaultdict(set)  # by record type, what these records name
        self._start: dict[bytes, int] = {}  # writer -> the audited checkpoint with which its chain begins
        self._audited: set[bytes] = set()  # names of checkpoint commits that the prune key vouches for
        self._admins: set[bytes] = set()  # writers that published something with the prune key's signature
        self._unopened: dict[Head, tuple[set[bytes], str]] = {}  # what no commit is: what it proves, and why
        self._named: set[Head] = set()  # commits that others name
        self._gaps: set[Head] = set()  # those that the next commit of their chain names and does not follow
        self._places: dict[tuple[bytes, int], set[bytes]] = collections.defaultdict(set)  # the commits of a number
        self.marked: set[bytes] = set()  # snapshots that a REMOVE without its signature names
        self.forked: set[bytes] = set()
        self.missing: set[Head] = set()  # commits that are known, and not here or not readable
        self.absent: set[str] = set()  # objects that are known to be missing
    def load(self) -> "History":
        store, report, read = self.repo.store, self.repo.report, []
        for writer in store.matching("w", "[0-9a-f]{32}", report):
            for name in store.matching(f"w/{writer}", "[0-9a-f]{16}-[0-9a-f]{64}", report):
                found = self._look(Head(bytes.fromhex(writer), int(name[:16], 16), bytes.fromhex(name[17:])))
                if found is None: continue
                self.commits[found[0].sha] = found[0]
                self.chains[found[0].writer].append(found[0])
                read.append(found)
        self._audits(read)
        for commit, records in read:
            if commit.seq >= self._start.get(commit.writer, 0):
                for kind, value in records: self.take(commit, kind, value)
                self._note(commit, [value for kind, value in records if kind == 0x0C])
            else: self.chains[commit.writer].remove(self.commits.pop(commit.sha))
        for writer_id in self.chains: self._link(writer_id)
        self._judge()
        return self
    def _look(self, head: Head) -> "tuple[Commit, list[tuple[int, bytes]]] | None":
        """A commit and its records. What does not open is kept for _judge, with what it proves all the same."""
        data = b""
        try:
            data = self.repo.store.read(commit_path(*head), OBJECT_MAX + TRAILER)
            return self.open(head, data)
        except Bad as error:
            proofs = {b""} if isinstance(error, Withheld) else self._proofs(head, data)
            self._unopened[head] = proofs, str(error)
            return None
    def _proofs(self, head: Head, data: bytes) -> "set[bytes]":
        proofs = set() if self._faults(head, data) else {data[-96:-64]}
        with contextlib.suppress(Bad):  # the hint is not asked: it may be what is damaged
            box = Container(self.repo.crypto, self.repo.keys.domain(CATALOGUE), data, head.writer + u64(head.seq))
            box.directory(data, (COMMIT,))
            proofs.add(proof_of(data))
        return proofs
    def _note(self, commit: Commit, checkpoints: "list[bytes]") -> None:  # A commit that counts, and those it names
        self._places[commit.writer, commit.seq].add(commit.sha)
        self._named |= {*commit.seen, head_of(commit.writer + commit.newest)}
        for c in map(Cursor, checkpoints):
            with contextlib.suppress(Bad):
                self._named |= {head_of(commit.writer + earlier) for earlier in c.many(c.number(4), 40)}
    def _judge(self) -> None:
        """What is known and not here [FORMAT 8]: history is missing, unless FORGO excuses it."""
        self._named |= {head_of(name) for name in self._audited} | self._gaps
        for head, (proofs, why) in sorted(self._unopened.items()):
            intact = any(proofs & commit.proofs for commit in self.chains.get(head.writer, []))
            if self._waited_for(head) and (head in self._named or (proofs and not intact)):
                self._lack(head, "cannot be read: " + why)
            else: self.warn(f"{commit_path(*head)}: {why}; ignored, no commit is missed for it", "note")
        for head in sorted(self._named - self._unopened.keys()):
            newest = max((commit.seq for commit in self.chains.get(head.writer, [])), default=0)
            if (head.seq > newest or head in self._gaps) and self._waited_for(head):
                self._lack(head, "is named by another commit and is not here")
    def _lack(self, head: Head, why: str) -> None:
        self.missing.add(head)
        self.absent.add(commit_path(*head))
        self.warn(f"history is missing: {commit_path(*head)} {why}", history=True)
    def _waited_for(self, head: Head) -> bool:
        """Whether a commit that cannot be read is missed: not before its chain's beginning, nor if FORGO excuses it."""
        there = [commit.seq for commit in self.chains.get(head.writer, [])]
        def excuses(given_up: Head) -> bool:
            before = head.seq < given_up.seq and not any(head.seq <= seq < given_up.seq for seq in there)
            return given_up.writer == head.writer and (before or given_up == head)
        begun = head.seq >= max(1, self._start.get(head.writer, 0))
        return begun and not any(excuses(head_of(name)) for name in self.sets[0x16])
    def suspects(self, volume_id: bytes) -> "set[bytes]":
        """Writers of chains that lack something and may have said more about a volume [FORMAT 8]."""
        touched = {r.commit.writer for r in self.namings.get(volume_id, []) if r.domain_id} | self._admins
        touched |= {s.commit.writer for s in self.snapshots.values() if s.tree.volume_id == volume_id}
        return {head.writer for head in self.missing if head.writer in touched or not self.chains.get(head.writer)}
    def _audits(self, read: "list[tuple[Commit, list[tuple[int, bytes]]]]") -> None:
        """Where chains begin: at the newest audited checkpoint that is here. Commits before it say nothing any more."""
        found = [(commit, value) for commit, records in read for kind, value in records if kind == 0x15]
        for chain in self.chains.values():
            for commit in sorted((c for c in chain if c.has_checkpoint), key=Commit.name, reverse=True):
                with contextlib.suppress(Bad):
                    found += [(author, value) for author, kind, value in self._entries(commit) if kind == 0x15]
                    break
        signed = [value for author, value in found if len(value) == 120 and self._signed(author, 0x15, value)]
        self._audited = {value[:56] for value in signed}
        for name in self._audited:
            begin = self.commits.get(name[24:])
            if begin is not None and begin.has_checkpoint and begin.name() == name:
                self._start[begin.writer] = max(begin.seq, self._start.get(begin.writer, 0))
    def _faults(self, head: Head, data: bytes) -> str:  # What is wrong with a commit's trailer; empty if nothing is
        public, vouch, inner, marker = data[-TRAILER:-112], data[-112:-96], data[-96:-64], self.repo.keys.marker
        if hashlib.sha256(public).digest()[:16] != head.writer or public == marker.prune: return "is not the writer's"
        message = b"lamella/1 commit\0" + marker.r + head.writer + u64(head.seq) + inner
        if not self.repo.crypto.verify(public, data[-64:], message): return "its signature is wrong"
        return "" if vouch == self.repo.keys.vouch(public) else "nobody vouches for its writer"
    def open(self, head: Head, data: bytes) -> "tuple[Commit, list[tuple[int, bytes]]]":
        """A commit, checked from its name to its body, and its records."""
        (writer, seq, sha), box = head, data[:-TRAILER]
        if hashlib.sha256(data).digest() != sha: raise Bad("does not match its name")
        wrong = self._faults(head, data)
        if wrong: raise Bad(wrong)
        if hashlib.sha256(box).digest() != data[-96:-64]: raise Bad("its trailer is another one's")
        c = Cursor(self._body(box, writer + u64(seq)))
        c.expect(b"\x01" + bytes(7), "unknown version of a commit")
        c.expect(writer + u64(seq), "names another writer or number inside")
        commit = Commit(writer, seq, sha, c)
        commit.newest, commit.proofs = c.take(40), {data[-96:-64], proof_of(box)}
        if seq == 0 or (seq == 1) != (commit.prev == bytes(32)): raise Bad("impossible number or predecessor")
        count = c.number(4)
        if count > 4096: raise Bad("more than 4096 heads seen")
        commit.seen = tuple(head_of(name) for name in c.many(count, 56))
        records = records_of(c)
        commit.has_checkpoint = any(kind == 0x0C for kind, _ in records)
        return commit, records
    def _body(self, box: bytes, bound: bytes) -> bytes:
        container = Container(self.repo.crypto, self.repo.keys.domain(CATALOGUE), box, bound)
        if self.repo.keys.hint(box) != CATALOGUE: raise Bad("is not in the catalogue domain")
        entries, end, body = container.directory(box, (COMMIT,)), HEADER + container.dir_len, b""
        if sum(entry.rlen for entry in entries) > OBJECT_MAX: raise Bad("longer than 64 MiB")
        for entry in entries:
            start, end = end, entry.at + entry.clen
            if any(box[start : entry.at]): raise Bad("padding is not zero")
            body += container.blob(COMMIT, entry.ident, box[entry.at : end], entry.rlen)
        if end != len(box): raise Bad("bytes after the last blob")
        return body
    def take(self, commit: Commit, kind: int, value: bytes) -> None:
        """Adds a record to the state; unknown and malformed ones are reported."""
        self._order += 1
        try:
            signed = kind in SIGNED and self._signed(commit, kind, value)
            if kind in (2, 6): self._name(commit, kind, value, signed)
            elif kind == 3 or (kind == 0x17 and signed):
                c = Cursor(value if kind == 3 else value[40:-64])
                snapshot = parse_snapshot(commit, self._order, c, self._keep)
                self.snapshots.setdefault(snapshot.ref + snapshot.tree.root, snapshot)
                self.sets[kind].add(snapshot.ref)
            elif kind == 5: self._tag(commit, Cursor(value), signed)
            elif kind in (4, 0x0D, 0x10, 0x15, 0x16, 0x17, 0x18): self._set(commit, kind, value, signed)
            elif kind in (1, 0x8001, 0x8002): self._word(commit, kind, Cursor(value))
            elif kind < 0x8000 and not (0 < kind < 0x0E or 0x0F < kind < 0x19):
                self.warn(f"{commit.path()}: a record of type {kind:#06x}, made by a newer version; ignored")
        except Bad as error: self.warn(f"{commit.path()}: record {kind:#06x}: {error}; ignored")
    def _signed(self, commit: Commit, kind: int, value: bytes) -> bool:
        marker, head = self.repo.keys.marker, commit.writer + u64(commit.seq) + commit.prev
        framed = b"lamella/1 prune\0" + marker.r + head + struct.pack("<HI", kind, len(value)) + value[:-64]
        good = any(value[-64:]) and self.repo.crypto.verify(marker.prune, value[-64:], framed)
        if good: self._admins.add(commit.writer)
        return good
    def _word(self, commit: Commit, kind: int, c: Cursor) -> None:
        if kind == 1: self.labels[commit.writer] = c.text()
        elif kind == 0x8002:
            ref, said, _ = c.take(40), c.take(max(14, c.left() - 64)), c.take(64)
            self.losses[ref].append(Loss(commit, self._order, any(said)))
        else: self.runs.update({(commit.writer, c.text()): c.number(1)})
    def _name(self, commit: Commit, kind: int, value: bytes, signed: bool) -> None:
        c, domain_id, label = Cursor(value), b"", ""
        volume_id = c.take(16)
        if kind == 2:
            domain_id, _ = c.take(16), c.take(1)
            if domain_id == CATALOGUE: raise Bad("VOLUME in the catalogue domain")
        name = c.text()
        if kind == 2: label, _ = c.text(), c.take(c.number(2))
        c.take(64)
        c.end()
        self.namings[volume_id].append(Naming(commit, self._order, signed, name, domain_id, label))
    def _tag(self, commit: Commit, c: Cursor, signed: bool) -> None:
        ref, op, text, _ = c.take(40), c.number(1), c.text(), c.take(64)
        c.end()
        if op not in (1, 2): raise Bad("an unknown operation")
        self.taggings[ref, text].append(Tagging(commit, self._order, signed, op == 2))
    def tags(self, s: Snapshot) -> "list[str]":
        """Tags that were given and not taken away since, by who gave them or with the prune key's signature."""
        def stands(t: Tagging, rows: "list[Tagging]") -> bool:
            ends = (g for g in rows if g.removed and (g.signed or g.commit.writer == t.commit.writer))
            return not t.removed and not any(self._earlier(t, g) for g in ends)
        mine = ((text, rows) for (ref, text), rows in self.taggings.items() if ref == s.ref)
        return sorted(text for text, rows in mine if any(stands(t, rows) for t in rows))
    def _set(self, commit: Commit, kind: int, value: bytes, signed: bool) -> None:
        c, kind = Cursor(value), 0x10 if kind == 0x18 else kind  # REMOVE_LAST is a REMOVE
        if kind in (4, 0x10): names = c.many(c.number(4), 40)  # CONFIRM, REMOVE: refs
        else: names = [c.take({0x0D: 24, 0x15: 56, 0x16: 56, 0x17: 40}[kind])]  # FORK_SEEN, AUDITED, FORGO, REVIVE
        if kind == 4: names = [ref for ref in names if ref[:16] == commit.writer]
        if kind < 0x10 or signed: self.sets[kind].update(names)
        else:
            if kind == 0x10: self.marked.update(names)
            self.warn(f"{commit.path()}: record {kind:#06x} without a valid signature; ignored")
    def _link(self, writer: bytes) -> None:  # Joins a writer's commits; finds forks and gaps
        chain = self.chains[writer]
        chain.sort(key=lambda commit: (commit.seq, commit.sha))
        for seq in sorted(s for s, count in collections.Counter(c.seq for c in chain).items() if count > 1):
            self.forked.add(writer)
            accepted = writer + u64(seq) in self.sets[0x0D]
            text = f"fork: writer {writer.hex()} has several commits {seq}; all of them count"
            self.warn(text, "note" if accepted else "warning", history=not accepted)
        lasts = [None, *([None] * len(chain) if writer in self.forked else chain)]
        gaps = [commit for commit, last in zip(chain, lasts) if not self._follow(commit, last)]  # noqa: B905
        self._gaps |= {gap.before() for gap in gaps}
        for gap in gaps: self._bridge(chain, gap)
    def _follow(self, commit: Commit, last: "Commit | None") -> bool:
        """Joins a commit to its predecessor; False where that is not here. Behind a gap it still saw what last had."""
        before = self.commits.get(commit.prev)
        if before is not None and (before.writer, before.seq + 1) != (commit.writer, commit.seq):
            self.warn(f"{commit.path()}: does not follow what it names as its predecessor", history=True)
            before = None
        if before is not None and commit.newest != (before.name()[16:] if before.has_checkpoint else before.newest):
            self.warn(f"{commit.path()}: names another checkpoint than its chain")
        commit.known = dict((before or last or commit).known)
        for head in commit.seen:  # beyond the newest is as good as the newest; another commit of that number is nothing
            here = self._places.get((head.writer, head.seq))
            if not here or head.sha in here: commit.known[head.writer] = max(head.seq, commit.known.get(head.writer, 0))
        return before is not None or commit.seq == 1
    def _bridge(self, chain: "list[Commit]", gap: Commit) -> None:
        """Takes the records before a gap from the newest readable checkpoint after it."""
        after = [c for c in chain if c.has_checkpoint and c.seq >= gap.seq]
        for commit in sorted(after, key=lambda c: (c is gap and c.name() in self._audited, c.seq), reverse=True):
            try: self._checkpoint(commit, set() if commit.writer in self.forked else {c.seq for c in chain})
            except Bad as error:
                self.warn(f"{commit.path()}: checkpoint: {error}", history=True)
                continue
            if commit.name() not in self._audited:
                self.warn(f"writer {commit.writer.hex()} was read from its checkpoint {commit.seq}; its history before "
                          f"commit {gap.seq} was not checked", "note")
            return
        if self._start.get(gap.writer) == gap.seq:  # what was before it is gone for good
            self.missing.add(gap.before())
            self.warn(f"history is missing: {gap.path()}: its chain begins with it, and what it repeats is not here",
                      history=True)
    def _checkpoint(self, commit: Commit, present: "set[int]") -> None:
        for author, kind, record in self._entries(commit):
            if author.seq not in present: self.take(author, kind, record)
    def _checkpoint_of(self, commit: Commit) -> bytes:
        data = self.repo.store.read(commit.path(), OBJECT_MAX + TRAILER)
        return dict(self.open(head_of(commit.name()), data)[1])[0x0C]
    def _entries(self, commit: Commit) -> "list[tuple[Commit, int, bytes]]":
        """The records that a checkpoint carries, each with its commit and, from SEEN, what that one knew."""
        c, blobs, entries = Cursor(self._checkpoint_of(commit)), Blobs(self.repo, CATALOGUE), b""
        c.many(c.number(4), 40)
        segments = c.many(c.number(4), ID + 32)
        for segment in segments: blobs.scan_pack(segment[ID:])
        if not all(blobs.located(SEGMENT, segment[:ID]) for segment in segments):
            blobs = Blobs(self.repo, CATALOGUE).scan()
            self.absent |= {pack_path(s[ID:]) for s in segments if not blobs.located(SEGMENT, s[:ID])}
        for segment in segments:
            content = blobs.read(SEGMENT, segment[:ID], 8, PART_MAX)
            if content[:8] != b"\x01" + bytes(7): raise Bad("unknown version of a segment")
            entries += content[8:]
        c, found = Cursor(entries + c.take(c.left())), []
        known: dict[bytes, int] = {}
        while c.left():
            author = Commit(commit.writer, c.number(8), b"", c)
            kind, record = c.number(2), c.take(c.number(4))
            if kind == 0x8003:
                for writer, seq in struct.iter_unpack("<16sQ", record[2 : 2 + 24 * (len(record) // 24)]):
                    known[writer] = max(seq, known.get(writer, 0))
            author.known = dict(known)
            found.append((author, kind, record))
        return found
    def before(self, a: Commit, b: Commit) -> bool:  # Whether a is before b by chain and `seen` order
        if a.writer != b.writer: return b.known.get(a.writer, 0) >= a.seq
        if a.seq >= b.seq or a.writer not in self.forked: return a.seq < b.seq
        while b.seq > a.seq and b.prev in self.commits: b = self.commits[b.prev]
        return a.sha == b.sha
    def _earlier(self, a: Any, b: Any) -> bool:
        return a.order < b.order if a.commit.name() == b.commit.name() else self.before(a.commit, b.commit)
    def edge(self, items: "list[Any]", newest: bool) -> "list[Any]":
        """The items (with commit and order) that no other one is after (newest) or before, smaller writer_id first."""
        best: dict[Any, Any] = {}
        for item in sorted(items, key=lambda i: (i.commit.seq, i.order), reverse=newest):
            best.setdefault(item.order if item.commit.writer in self.forked else item.commit.writer, item)
        late = [i for i in best.values()
                if not any(self._earlier(i, j) if newest else self._earlier(j, i) for j in best.values())]
        return sorted(late or best.values(), key=lambda i: i.commit.name())  # in a circle each is after another one
    def heads(self) -> "list[Commit]":
        """The newest commit of each chain; of a forked one, the end of each branch; ordered by bytes."""
        parents = {commit.prev for commit in self.commits.values()}
        ends = [c for c in self.commits.values() if c.sha not in parents]
        return sorted((c for c in ends if c.writer in self.forked or c is self.chains[c.writer][-1]), key=Commit.name)
    def fingerprint(self) -> str:
        message = [b"lamella/1 heads\0", self.repo.keys.marker.r, *(c.name() for c in self.heads())]
        digest = hashlib.sha256(b"".join(message)).digest()
        return "-".join(base64.b32encode(digest[:10]).decode()[i : i + 4] for i in range(0, 16, 4))
    def naming(self, volume_id: bytes) -> "tuple[str, Naming | None]":
        """The name of a volume and the VOLUME record in force."""
        records = self.namings.get(volume_id, [])
        first = self.edge([r for r in records if r.domain_id], newest=False)
        applies = [r for r in records if r.signed or (first and r.commit.writer == first[0].commit.writer)]
        for record in records:
            if record not in applies: self.warn(f"{record.commit.path()}: names a volume of another writer; ignored")
        volume, last = self.edge([r for r in applies if r.domain_id], newest=True), self.edge(applies, newest=True)
        return (last[0].name if last else volume_id.hex()), (volume[0] if volume else None)
    def volumes(self, removed: bool = False) -> "dict[bytes, tuple[str, Naming | None, list[Snapshot]]]":
        """volume_id -> unique name as shown, VOLUME record, snapshots by time."""
        held: dict[bytes, list[Snapshot]] = {volume_id: [] for volume_id in self.namings}
        for s in self.snapshots.values():
            if removed or s.ref not in self.sets[0x10]: held.setdefault(s.tree.volume_id, []).append(s)
        named = {volume_id: self.naming(volume_id) for volume_id in held}
        count = collections.Counter(name for name, _ in named.values())
        for snapshots in held.values(): snapshots.sort(key=lambda s: (s.when, s.name, s.ref))
        return {v: (f"{name}~{v[:2].hex()}" if count[name] > 1 else name, record, held[v])
                for v, (name, record) in sorted(named.items(), key=lambda item: item[1][0])}
    def select(self, word: str) -> Snapshot:  # The snapshot that VOLUME[@SNAPSHOT] names
        volume, _, wanted = word.partition("@")
        rows = [(v, name, s) for v, (name, _, s) in self.volumes(removed=True).items()]
        found = [s for v, name, s in rows if volume in (name, v.hex())]
        if len(found) != 1:
            also = [shown(name) for _, name, _ in rows if name.rpartition("~")[0] == volume]
            raise Problem(NO_MATCH, f"no volume {shown(volume)}; see list {' '.join(also)}")
        live = [s for s in found[0] if s.ref not in self.sets[0x10]]
        named = [s for s in found[0] if wanted in (s.name, s.ref[24:].hex())]
        chosen = [s for s in named if s in live] or named  # what was removed may have come back under its name
        copied = any(0x8010 in s.inner or s.ref in self.sets[0x17] for s in live)  # or came back by REVIVE
        if wanted in ("", "latest"):
            chosen = live if copied else self.edge(live, True)
            if copied or all(any(self._earlier(a, b) for b in chosen) for a in chosen):  # copies, or a circle
                chosen = sorted(chosen, key=lambda s: (s.when, s.name, s.ref))[-1:]
        elif wanted[0] == "^": chosen = [s for s in live if wanted[1:] in self.tags(s)]
        elif not chosen: chosen = [s for s in live if s.name.startswith(wanted)]
        if len(chosen) != 1:
            names = ", ".join(f"{shown(s.name)} ({s.ref[24:].hex()})" for s in chosen[:20])
            raise Problem(NO_MATCH, f"{shown(word)}: " + (f"choose one of {names}" if chosen else "no such snapshot"))
        if not chosen[0].unusable: return chosen[0]
        raise Problem(FAILED, f"{shown(chosen[0].name)} {chosen[0].unusable}")
    def states(self) -> "Callable[[Snapshot], str]":
        ids = collections.Counter(s.ref[24:] for s in self.snapshots.values() if s.ref not in self.sets[0x10])
        run = {None: "unstated", 0: "complete", 1: "incomplete"}
        def state(s: Snapshot) -> str:
            marks = (("unconfirmed", s.ref not in self.sets[4]), ("removed", s.ref in self.sets[0x10]),
                     ("marked-removed", s.ref in self.marked),
                     ("conflict", ids[s.ref[24:]] > 1), ("unusable", bool(s.unusable)), ("rebuilt", 0x8020 in s.inner),
                     ("parts-lost", any(loss.lost for loss in self.edge(self.losses.get(s.ref, []), True))))
            said = run.get(self.runs.get((s.commit.writer, s.name)), "unknown")
            return ",".join([said] + [word for word, here in marks if here] + ["^" + shown(t) for t in self.tags(s)])
        return state
# ---- trees and restore [FORMAT 6] ------------------------------------------------------------------------------------
class Walk:
    """The extents of a tree in order. What cannot be read is told to lost(first chunk, chunks, why) and left out."""
    def __init__(self, blobs: Blobs, tree: Tree, report: Reporter, lost: "Callable[[int, int, str], None]") -> None:
        self._blobs, self._tree, self._report, self._lost = blobs, tree, report, lost
        self.chunks = -(-tree.size >> tree.log2)
        self.depth = next((d for d in range(1, DEPTH_MAX + 1) if FANOUT**d >= max(1, self.chunks)), 0)
        if not self.depth or tree.size >> 63: raise Problem(DAMAGE, f"impossible size of a volume: {tree.size}")
    def extents(self) -> "Iterator[tuple[int, int, bytes]]":
        """(first chunk, chunks, id): one chunk of data, or with an empty id a run that reads as zero."""
        yield from self._below(self.depth - 1, 0, self._tree.root)
    def _below(self, level: int, first: int, ident: bytes) -> "Generator[tuple[int, int, bytes], None, int | None]":
        span, total, whole = FANOUT**level, 0, True
        try: count, types, ids = self._node(level, first, ident)
        except Bad as error:
            self._lost(first, min(FANOUT * span, self.chunks - first), str(error))
            return None
        for slot in range(min(FANOUT, -(-(self.chunks - first) // span))):
            start = first + slot * span
            if types[slot] != DATA: yield start, min(span, self.chunks - start), b""
            elif level == 0:
                yield start, 1, ids.pop(0)
                total += 1
            else:
                below = yield from self._below(level - 1, start, ids.pop(0))
                whole, total = whole and below is not None, total + (below or 0)
        if whole and total != count: self._lost(first, 0, f"node {ident.hex()} says {count} chunks and has {total}")
        return total if whole else None
    def _node(self, level: int, first: int, ident: bytes) -> "tuple[int, list[int], list[bytes]]":
        c = Cursor(self._blobs.read(INNER if level else LEAF, ident, NODE_HEADER, CONTENT_MAX[LEAF]))
        c.expect(b"LMLN\x01" + bytes([level]), "not a node of this level")
        held = c.number(1)
        c.expect(bytes([self._tree.log2]) + self._tree.volume_id + u64(first), "a node of another place or volume")
        count, bits, ids = c.number(8), c.number(16), c.many(held, ID)
        c.end()
        types = [bits >> 2 * slot & 3 for slot in range(FANOUT)]
        inside = min(FANOUT, -(-(self.chunks - first) // FANOUT**level))
        if 3 in types or types.count(DATA) != held or any(types[inside:]): raise Bad("a node with impossible slots")
        if level + 1 < self.depth and set(types[:inside]) in ({HOLE}, {ZERO}):
            self._report.warn(f"node {ident.hex()} should not be stored: all its slots are the same")
        return count, types, ids
def write_at(held: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(held, view, offset)
        view, offset = view[done:], offset + done
def reads_zero(held: int, start: int, end: int) -> bool:  # Whether a range of a file reads as zero; holes are skipped
    zeros = bytes(min(MIB, end - start))
    while start < end:
        try: start = max(start, os.lseek(held, start, os.SEEK_DATA))
        except OSError as error:
            if error.errno == errno.ENXIO: return os.fstat(held).st_size >= end
        size = max(0, min(MIB, end - start))
        if os.pread(held, size, start) != zeros[:size]: return False
        start += size
    return True

class Volume:  # Fills a file with a tree and compares it
    def __init__(self, report: Reporter, blobs: Blobs, tree: Tree) -> None:
        self._report, self._blobs, self._tree, self._lost = report, blobs, tree, 0
    def _lose(self, first: int, chunks: int, why: str) -> None:
        self._lost += 1
        start, end = first << self._tree.log2, min(first + chunks << self._tree.log2, self._tree.size)
        if self._lost <= 50: self._report.warn(f"bytes {start}..{end} cannot be restored: {why}", "damage")
    def _extents(self, word: str) -> "Iterator[tuple[int, int, bytes]]":
        """Extents as (start, end, id) in bytes, with progress; ends with exit 20 if something was lost."""
        log2, size = self._tree.log2, self._tree.size
        for first, chunks, ident in Walk(self._blobs, self._tree, self._report, self._lose).extents():
            end = min(first + chunks << log2, size)
            yield first << log2, end, ident
            self._report.progress(word, end, size)
        if self._lost: raise Problem(DAMAGE, f"{self._lost} ranges cannot be restored; the rest is in the partial file")
    def fill(self, held: int) -> None:
        os.ftruncate(held, self._tree.size)
        for start, end, ident in self._extents("restoring"):
            try:
                if ident: write_at(held, self._blobs.read(CHUNK, ident, end - start, end - start), start)
            except Bad as error: self._lose(start >> self._tree.log2, 1, str(error))
    def compare(self, held: int) -> None:
        for start, end, ident in self._extents("comparing"):
            if ident: same = self._blobs.domain.content_id(CHUNK, read_at(held, start, end - start)) == ident
            else: same = reads_zero(held, start, end)
            if not same: raise Problem(DAMAGE, f"bytes {start}..{end} read back differ from what was written")
class Document:  # Fills a file with a document's parts and compares it
    def __init__(self, blobs: Blobs, size: int, parts: "list[bytes]") -> None:
        self._blobs, self._size, self._parts = blobs, size, parts
    def _contents(self) -> "Iterator[tuple[int, bytes]]":
        at = 0
        for part in self._parts:
            content = self._blobs.read(DOCUMENT, part, 8, PART_MAX)
            if content[:8] != b"LMLDOCU\x01": raise Bad("malformed part of a document")
            yield at, content[8:]
            at += len(content) - 8
        if at != self._size: raise Bad(f"the document has {at} bytes, {self._size} expected")
    def fill(self, held: int) -> None:
        for at, data in self._contents(): write_at(held, data, at)
    def compare(self, held: int) -> None:
        for at, data in self._contents():
            if read_at(held, at, len(data)) != data: raise Bad("what was read back differs from what was written")
def save(path: str, overwrite: bool, work: "Volume | Document") -> None:
    """Fills path + '.lamella-partial', compares what the disk gives back and only then gives it its name."""
    if os.path.lexists(path) and not (overwrite and (os.path.isfile(path) or os.path.islink(path))):
        raise Problem(USAGE, f"{path} exists: " + ("not a regular file" if overwrite else "--overwrite replaces it"))
    partial = path + ".lamella-partial"
    if os.path.isfile(partial) or os.path.islink(partial): os.unlink(partial)
    held = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try: work.fill(held)
        finally: os.fsync(held)
        with contextlib.suppress(AttributeError, OSError):
            os.posix_fadvise(held, 0, 0, os.POSIX_FADV_DONTNEED)  # read back from the disk, not from memory
        work.compare(held)
    except Bad as error: raise Problem(DAMAGE, f"{partial}: {error}") from None
    finally: os.close(held)
    if not overwrite and os.path.lexists(path): raise Problem(USAGE, f"{path} appeared; the data is in {partial}")
    os.replace(partial, path)
    os.fsync(os.open(os.path.dirname(path) or ".", os.O_RDONLY))  # the end of the program closes it
# ---- commands --------------------------------------------------------------------------------------------------------
def secret_of(args: argparse.Namespace) -> "tuple[int, bytes]":
    """(slot type, secret), type 0 = an exported domain key file; asks when no source is named."""
    env = [(1, "PASSPHRASE", False), (1, "PASSPHRASE_FILE", True), (2, "RECOVERY_KEY_FILE", True)]
    sources = [(kind, os.environ.get("LAMELLA_" + name), is_path) for kind, name, is_path in env]
    sources += [(2, args.recovery_key_file, True), (3, args.keyfile, True), (0, args.domain_key, True)]
    given = [(kind, os.fsencode(value), is_path) for kind, value, is_path in sources if value]
    if len(given) > 1: raise Problem(USAGE, "more than one secret is given: use one")
    if not given: given = [(1, os.fsencode(getpass.getpass("Passphrase of the repository: ")), False)]
    kind, value, is_path = given[0]
    if is_path:
        with os.fdopen(os.open(value, os.O_RDONLY | os.O_CLOEXEC), "rb") as file: value = file.read(16 * MIB)
    try:
        if kind == 2: return kind, recovery_key(value.decode())
        if kind == 1:
            value = value[:-1] if is_path and value.endswith(b"\n") else value
            return kind, unicodedata.normalize("NFC", value.decode()).encode()
    except UnicodeDecodeError: raise Problem(USAGE, "the secret is not text in UTF-8") from None
    if kind == 3 and not 32 <= len(value) <= MIB: raise Problem(USAGE, "a key file has 32 bytes to 1 MiB")
    return kind, value
class Session:  # An opened repository and the command's options
    def __init__(self, args: argparse.Namespace, report: Reporter) -> None:
        if not args.repo: raise Problem(USAGE, "no repository: give --repo PATH")
        self.args, self.report, store = args, report, Store(args.repo)
        marker, crypto = load_marker(store), Crypto()
        kind, secret = secret_of(args)
        self.volumes: "list[Tree]" = []
        try:
            if kind: keys = unlock(store, marker, kind, secret, (crypto, report))
            else: keys, self.volumes = load_domain_key(secret, marker)
        except Bad as error: raise Problem(USAGE, f"domain key file: {error}") from None
        self.repo = Repository(store, keys, crypto, report)
        more = args.expect or getattr(args, "document", None)
        if more and not keys.whole: raise Problem(USAGE, "a domain key does not open the commits")
        self.history = History(self.repo, args.command == "needs").load() if keys.whole else None
        found = self.history.fingerprint() if self.history and args.expect else ""
        if found and re.sub(r"[\s-]", "", args.expect).upper() != found.replace("-", ""):
            raise Problem(HISTORY, f"the head fingerprint is {found}, not the expected one: another state")
    def select(self) -> "tuple[Tree, Snapshot | None]":
        """What VOLUME[@SNAPSHOT] names, in the commits or in the domain key file."""
        word, history = self.args.volume, self.history
        if history:
            try: snapshot = history.select(word)
            except Problem as problem:
                if not history.missing: raise
                raise Problem(HISTORY, f"{problem}; it may be in the part of the history that is missing") from None
            return snapshot.tree, snapshot
        found = [t for t in self.volumes if word in (t.name, t.name + "@latest", t.volume_id.hex())]
        if len(found) != 1: raise Problem(NO_MATCH, f"{shown(word)}: no such volume in the domain key file")
        return found[0], None
def utc(milliseconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(min(milliseconds // 1000, 253402300799)))
def run_list(session: Session) -> int:
    args, history = session.args, session.history
    rows: "list[tuple[str, ...]]" = [("VOLUME", "SNAPSHOT", "TIME", "SIZE", "CONSISTENCY", "DOMAIN", "STATE")]
    if history is None:
        rows += [(shown(t.name), "-", "-", str(t.size), "-", t.domain_id.hex(), "-") for t in session.volumes]
    else:
        print(f"repository {session.repo.keys.marker.repo_id.hex()}, head fingerprint {history.fingerprint()}")
        for c in history.heads() if args.command == "info" else []:
            print(f"writer {c.writer.hex()} {shown(history.labels.get(c.writer, ''))}: commit {c.seq} of {utc(c.when)}")
        state = history.states()
        for volume_id, (name, record, snapshots) in history.volumes(removed=args.command == "info").items():
            if args.volume not in (None, name, volume_id.hex()): continue
            for s in snapshots:
                label = record.label if record and record.domain_id == s.tree.domain_id else s.tree.domain_id.hex()
                word = CONSISTENCY.get(s.consistency, str(s.consistency))
                rows.append((shown(name), shown(s.name), utc(s.when), str(s.tree.size), word, shown(label), state(s)))
            if not snapshots: rows.append((shown(name), "-", "-", "-", "-", "-", "no snapshot"))
    if len(rows) == 1 and args.volume:
        raise Problem(HISTORY if history and history.missing else NO_MATCH, f"no volume {shown(args.volume)}")
    widths = [max(len(row[i]) for row in rows) for i in range(7)]
    for row in rows: print("  ".join(cell.ljust(widths[i]) for i, cell in enumerate(row)).rstrip())
    return HISTORY if session.report.history else 0
def check_history(history: History, s: Snapshot, word: str) -> None:
    """Refuses to restore where history is missing that may be about this volume, unless a snapshot is named in full."""
    if not history.missing: return
    volume, _, wanted = word.partition("@")
    whole = wanted not in ("", "latest") and wanted[0] != "^" and wanted in (s.name, s.ref[24:].hex())
    first = commit_path(*min(history.missing))
    text = f"history is missing ({len(history.missing)} commits that cannot be read, {first} is one)"
    if not whole and history.suspects(s.tree.volume_id):
        raise Problem(HISTORY, f"{text}: bring them back from a copy of the repository, or name a snapshot in full, as "
                               f"{volume}@{s.name}, although it may not be the newest; or: lamella check --give-up")
    history.warn(text + (": there may be newer snapshots" if whole else ", of writers that never wrote this volume"))
def announce(history: History, s: Snapshot) -> None:  # Which snapshot is restored, before it begins
    name, writer = history.volumes(removed=True)[s.tree.volume_id][0], s.commit.writer
    by = f"{writer.hex()[:8]} {shown(history.labels.get(writer, ''))}".rstrip()
    print(f"restoring {shown(name)}@{shown(s.name)} of {utc(s.when)}, written by {by}", file=sys.stderr)
def run_restore(session: Session) -> int:
    args, history = session.args, session.history
    tree, snapshot = session.select()
    if history and snapshot:
        check_history(history, snapshot, args.volume)
        announce(history, snapshot)
    blobs: Blobs = Blobs(session.repo, tree.domain_id).scan()
    work: "Volume | Document" = Volume(session.report, blobs, tree)
    if snapshot and args.document is not None:
        found = [d for d in snapshot.documents if d[0] == args.document]
        names = ", ".join(shown(d[0]) for d in snapshot.documents) or "none"
        if len(found) != 1: raise Problem(NO_MATCH, f"no document {shown(args.document)}; there are: {names}")
        work = Document(blobs, found[0][1], found[0][2])
    save(args.to, args.overwrite, work)
    print(f"restored and compared: {shown(tree.name)} to {args.to}", file=sys.stderr)
    return HISTORY if history and history.missing else 0
def run_needs(args: argparse.Namespace, report: Reporter) -> int:
    """Names of objects to fetch, in rounds: marker, keys and commits first, then packs as far as commits name them."""
    names = {"lamella", "keys/", "w/"}
    if args.repo and os.path.isdir(args.repo):
        store = Store(args.repo)
        names -= {folder + "/" for folder in ("keys", "w") if store.names(folder)} | set(store.names(""))
    session = None if names else Session(args, report)
    if session:
        names |= session.history.absent if session.history else set()
        try: names |= needed_packs(session)
        except Problem as problem:
            if not names: raise
            report.warn(str(problem))
    for name in sorted(names, key=lambda name: (name != "lamella", name)): print(name)
    return HISTORY if session and session.history and session.history.missing else 0
def needed_packs(session: Session) -> "set[str]":
    """Packs that are bad, and those listed by the domain's ADD_SNAP records if blobs are in no pack that is here."""
    tree, snapshot = session.select()
    blobs, lost = Blobs(session.repo, tree.domain_id).scan(), []
    walk = Walk(blobs, tree, session.report, lambda first, chunks, why: lost.append(first))
    lost += [first for first, _, ident in walk.extents() if ident and not blobs.located(CHUNK, ident)]
    lost += [0 for d in (snapshot.documents if snapshot else []) for part in d[2] if not blobs.located(DOCUMENT, part)]
    names = {pack_path(name) for name in blobs.bad_packs}
    if lost:
        session.report.warn("blobs are in no pack here; what else is missing shows when these packs are here", "note")
        every = session.history.snapshots.values() if session.history else []
        listed = {pack_path(pack) for s in every if s.tree.domain_id == tree.domain_id for pack in s.packs}
        names |= (listed - {pack_path(bytes.fromhex(n)) for n in session.repo.store.packs(session.report)}) or {"p/"}
    return names
class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn: raise Problem(USAGE, message)
def parse(argv: "list[str]") -> argparse.Namespace:
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    for option, text in (("--repo", "directory of the repository (or LAMELLA_REPO)"), ("--keyfile", "key file"),
                         ("--recovery-key-file", "file with the recovery key (or LAMELLA_RECOVERY_KEY_FILE)"),
                         ("--domain-key", "exported domain key file: restores without reading commits"),
                         ("--expect", "head fingerprint that the repository must have")):
        common.add_argument(option, help=text, metavar="VALUE" if option == "--expect" else "PATH")
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    shared: "dict[str, Any]" = {"parents": [common], "allow_abbrev": False, "epilog":
                                "Passphrase from LAMELLA_PASSPHRASE or LAMELLA_PASSPHRASE_FILE; else it is asked for."}
    parser = Parser(prog="restore.py", description="Emergency reader of Lamella repositories", **shared)
    made, commands = {}, parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in (("list", "show volumes and snapshots"), ("info", "show the writers as well"),
                       ("restore", "write a volume or a document to a file"), ("needs", "name missing objects")):
        made[name] = commands.add_parser(name, help=text, **shared)
    for name in ("list", "info"): made[name].add_argument("volume", nargs="?", metavar="VOLUME")
    for name in ("restore", "needs"): made[name].add_argument("volume", metavar="VOLUME[@SNAPSHOT]")
    made["restore"].add_argument("--to", required=True, metavar="FILE")
    made["restore"].add_argument("--document", metavar="NAME", help="restore this document instead of the volume")
    made["restore"].add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    nothing = dict.fromkeys(("keyfile", "recovery_key_file", "domain_key", "expect", "debug"))
    return parser.parse_args(argv, argparse.Namespace(repo=os.environ.get("LAMELLA_REPO"), **nothing))
def main(argv: "list[str]") -> int:  # Runs a command; every failure is one line on stderr and an exit code
    try:
        args, report = parse(argv), Reporter()
        if args.command == "needs": return run_needs(args, report)
        return (run_restore if args.command == "restore" else run_list)(Session(args, report))
    except Problem as problem: code, text = problem.code, str(problem)
    except (KeyboardInterrupt, EOFError): code, text = INTERRUPTED, "interrupted"
    except OSError as error: code, text = FAILED, f"{os.fsdecode(error.filename or 'I/O')}: {error.strerror or error}"
    except Exception as error:  # noqa: BLE001  (a person in an emergency gets one line; --debug shows the rest)
        code, text = FAILED, f"internal error: {type(error).__name__}: {error}"
    if "--debug" in argv: traceback.print_exc()
    print(f"restore.py: {shown(text)}", file=sys.stderr)
    return code

if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:]))
