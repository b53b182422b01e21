"""The kernel's keyring of this login (keyrings(7), add_key(2), keyctl(2)): bytes that it forgets after a while.

A process outside the login cannot read them, and nothing of them is ever written to a disk.
"""

from __future__ import annotations

import ctypes
import os
import platform

from lamella.base.errors import LamellaError

_NUMBERS = {
    "x86_64": (248, 250),
    "aarch64": (217, 219),
    "riscv64": (217, 219),
    "ppc64le": (269, 271),
    "s390x": (278, 280),
}
"""Machine -> numbers of add_key and keyctl, from the kernel's tables of system calls."""
_SESSION, _USER_SESSION = -3, -5
"""KEY_SPEC_SESSION_KEYRING and KEY_SPEC_USER_SESSION_KEYRING, from linux/keyctl.h; below are KEYCTL_..."""
_GET_KEYRING_ID, _SEARCH, _READ, _SET_TIMEOUT, _INVALIDATE = 0, 10, 11, 15, 21
_TYPE = b"user"
_MOST_BYTES = 1 << 10


def keep(name: bytes, content: bytes, seconds: int) -> None:
    """Keep the content for so long under a name. Raises LamellaError where the kernel or the login cannot."""
    require_own()
    number = _call(0, _TYPE, name, content, len(content), _SESSION)
    try:
        _keyctl(_SET_TIMEOUT, number, seconds)
    except LamellaError:
        _keyctl(_INVALIDATE, number)
        raise


def require_own() -> None:
    """Raises LamellaError where the kernel keeps no keys, or the login has no keyring of its own."""
    # A login without a keyring of its own falls back to one that all logins of the user share.
    if _keyctl(_GET_KEYRING_ID, _SESSION, 0) == _keyctl(_GET_KEYRING_ID, _USER_SESSION, 0):
        hint = "log in with pam_keyinit, or start a shell by: keyctl session"
        raise LamellaError("this login has no keyring of its own to keep a key in", hint=hint)


def kept(name: bytes) -> bytes | None:
    """The key under a name; None without one, also where the kernel keeps nothing at all."""
    content = ctypes.create_string_buffer(_MOST_BYTES)
    try:
        length = _keyctl(_READ, _keyctl(_SEARCH, _SESSION, _TYPE, name, 0), content, len(content))
    except LamellaError:
        return None
    return content.raw[:length] if length <= len(content) else None


def forget(name: bytes) -> bool:
    """Forget it now; whether there was anything."""
    try:
        _keyctl(_INVALIDATE, _keyctl(_SEARCH, _SESSION, _TYPE, name, 0))
    except LamellaError:
        return False
    return True


_Argument = int | bytes | ctypes.Array[ctypes.c_char]


def _keyctl(*arguments: _Argument) -> int:
    return _call(1, *arguments)


def _call(which: int, *arguments: _Argument) -> int:
    """One system call: add_key (0) or keyctl (1). Raises LamellaError."""
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        raise LamellaError(f"keeping keys is not supported on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    found = libc.syscall(ctypes.c_long(numbers[which]), *words)
    if found < 0:
        raise LamellaError(f"the kernel keeps no key: {os.strerror(ctypes.get_errno())}")
    return int(found)
