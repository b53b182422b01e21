"""The head fingerprint: a short text that names the whole history at one moment (FORMAT 8)."""

from __future__ import annotations

import base64
import hashlib

from lamella.base.errors import RolledBack
from lamella.format.commit import fingerprint_message
from lamella.repository.repository import Repository


def fingerprint(repo: Repository) -> str:
    """16 characters in groups of 4; it changes with every commit."""
    digest = hashlib.sha256(fingerprint_message(repo.keys.root, repo.history.heads)).digest()[:10]
    text = base64.b32encode(digest).decode("ascii")
    return "-".join(text[start : start + 4] for start in range(0, 16, 4))


def require_fingerprint(repo: Repository, expected: str | None) -> None:
    """Raises RolledBack if a fingerprint is expected, and the repository has another one."""
    found = fingerprint(repo)
    if expected is not None and found != expected:
        text = f"the head fingerprint is {found}, not the expected one: this is another state"
        raise RolledBack(text, obj=repo.store.url, hint="it changes with every commit: what does lamella list show?")
