"""Which bytes may be uploaded, and which may be believed.

`Store.put` takes `Sealed` or `Clear` only; decompression and decoders take `Opened` only. mypy then refuses code that
would upload plaintext or parse bytes before they were authenticated.
"""

from __future__ import annotations

from typing import NewType

Sealed = NewType("Sealed", bytes)
"""Encrypted and authenticated: safe to hand to any destination."""

Clear = NewType("Clear", bytes)
"""Deliberately readable by anyone: marker, wrapped key slots, readme, rescue program."""

Opened = NewType("Opened", bytes)
"""Plaintext whose authentication succeeded: may be decoded."""
