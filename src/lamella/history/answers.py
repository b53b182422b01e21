"""Answers that follow from a history, kept in this host's cache until anything changes that they follow from.

Reading a long history takes seconds, and most looks find it as it was. A kept answer counts only for the state that it
was made from: the commits that the store lists now, the segments that it still has, and everything that this host
remembers of the repository: pins, accepted problems, verdicts. So the store is asked at each look, and an answer can
hide nothing: another listing, or another memory, is another state. Answers are made from sound histories alone.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from lamella.base.errors import IntegrityError, RepositoryError, StoreError
from lamella.base.names import pack_name
from lamella.crypto.local import open_local, seal_local
from lamella.history.chains import Listed
from lamella.history.log import Log
from lamella.packs.cache import Cache

_PURPOSE = "answers"


class KeptAnswer:
    """The answer to one question about a repository: a JSON value, None until it is known.

    The answer is kept under `question`, and counts as long as `apart` is the same: what it follows from besides.
    """

    def __init__(self, question: str, apart: str = "") -> None:
        self.question = question
        self.value: Any = None
        self._apart = apart
        self._memory = b""
        self._state = b""

    def find(self, log: Log, cache: Cache, listed: Listed) -> bool:
        """Whether the answer is known, given the commits that are listed now. Call it before the history is read."""
        with suppress(OSError):  # also where another version's files just take the place of the program's
            self._memory = _memory(log)
        # What this host remembers is read again after it was hashed: a change in between shows at the end.
        log.recall_place()
        if not self._memory:
            return False
        heads = sorted(head.name for seqs in listed.values() for heads in seqs.values() for head in heads)
        words = [self.question, self._apart, log.store.url, log.host.machine, *heads]
        self._state = self._memory + log.keys.root + json.dumps(words).encode("ascii")
        with suppress(IntegrityError, RepositoryError, StoreError):
            sealed = cache.answer(self.question, _hash(self._state))
            if sealed is not None:
                kept = json.loads(zlib.decompress(open_local(log.keys, _PURPOSE, self._state, sealed)))
                if all(log.store.stat(name) == size for name, size in kept["segments"].items()):
                    self.value = kept["answer"]
        return self.value is not None

    def keep(self, log: Log, cache: Cache, value: object) -> None:
        """Keep what was answered from the history that was read, unless something changed since `find` was called.

        Whoever saw other commits meanwhile has pinned these: then what is remembered is not the same. An answer that
        cannot be kept is left out: the next look reads the history.
        """
        self.value = value
        if not self._state or not _is_sound(log):
            return
        with suppress(OSError, RepositoryError, StoreError):
            content = {"answer": value, "segments": {name: log.store.stat(name) for name in _segments(log)}}
            packed = zlib.compress(json.dumps(content).encode("utf-8"), 1)
            if _memory(log) == self._memory:
                sealed = seal_local(log.keys, _PURPOSE, self._state, packed)
                cache.keep_answer(self.question, _hash(self._state), sealed)


@cache
def _program() -> list[int]:
    """When the files of this program were last written: another version may answer otherwise."""
    ours = [module for name, module in sorted(sys.modules.items()) if name.partition(".")[0] == "lamella"]
    return [Path(getattr(one.__loader__, "archive", one.__file__ or "")).stat().st_ctime_ns for one in ours]


def _hash(state: bytes) -> bytes:
    return hashlib.sha256(state).digest()


def _segments(log: Log) -> list[str]:
    """The packs with the segments of the checkpoints that the history was read from."""
    chains = log.history.chains.values()
    carried = {place.pack for chain in chains if chain.carried is not None for place in chain.carried.segments}
    return sorted(map(pack_name, carried | {place.pack for chain in chains for place, _ in chain.carried_parts}))


def _is_sound(log: Log) -> bool:
    """Whether the history is whole and raises no question, and this host's memory neither."""
    history = log.history
    odd = (history.damaged, history.unreadable, history.unexplained, history.notes, history.strangers)
    return not any((*odd, log.found, log.older, log.host.notices.told))


def _memory(log: Log) -> bytes:
    """A hash of the program, and of what this host remembers of the repository and of this place. Raises OSError."""
    found = hashlib.sha256(repr(_program()).encode())
    proofs = log.host.memory(log.repo_id, log.apart).directory
    directories = [log.host.memory(log.repo_id).directory, log.memory.directory, *([proofs] if proofs.is_dir() else [])]
    for directory in dict.fromkeys(directories):
        for path in sorted(directory.iterdir()):
            if path.suffix == ".json":
                found.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.digest()
