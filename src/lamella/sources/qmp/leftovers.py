"""Leftovers of a killed run in QEMU: exports, the copy-before-write job, nodes, descriptors, all with an owner's name.

Bitmaps are no leftovers: the ledger says which of them are needed (`lamella.operations.moments.rotation`).
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Final

from lamella.base.errors import SourceError
from lamella.sources.qmp.wire import Qmp, QmpRefused

END_SECONDS: Final = 30.0
"""A job ends as soon as what it writes at the moment is written."""
_LOOK_SECONDS: Final = 0.005


def prefix_of(owner: str) -> str:
    """The prefix of all names that are made for an owner: with 8 digits more they fit a node's name."""
    return f"lamella-{owner}-"


def clean(qmp: Qmp, prefix: str, server: bool = True) -> bool:
    """Remove everything whose name begins so; whether there was anything. Raises SourceError.

    `server` is False if the NBD server, if there is one, is another program's.
    """
    exports, jobs = _named(qmp, "query-block-exports", "id", prefix), _named(qmp, "query-jobs", "id", prefix)
    nodes = _named(qmp, "query-named-block-nodes", "node-name", prefix)
    for name in exports:
        _gently(qmp, "block-export-del", {"id": name, "mode": "hard"})
    _wait(qmp, "query-block-exports", "id", prefix)
    # The server is started when the nodes are there, and nobody else starts one while it is: so it is ours.
    if server and (exports or nodes) and not qmp.rows("query-block-exports"):
        _gently(qmp, "nbd-server-stop", {})
    for name in jobs:
        _gently(qmp, "job-cancel", {"id": name})
    _wait(qmp, "query-jobs", "id", prefix)
    for name in sorted(_named(qmp, "query-named-block-nodes", "node-name", prefix), key=_scratch_first):
        _gently(qmp, "blockdev-del", {"node-name": name})
    sets = _fdsets(qmp, prefix)
    for number in sets:
        _gently(qmp, "remove-fd", {"fdset-id": number})
    left = _named(qmp, "query-named-block-nodes", "node-name", prefix)
    if left:
        raise SourceError(f"QEMU does not let go of {left[0]}, which a backup made")
    return bool(exports or jobs or nodes or sets)


def _scratch_first(name: str) -> bool:
    """The node of a scratch image goes before the node of the file it is in."""
    return name.endswith("f")


def _gently(qmp: Qmp, command: str, arguments: dict[str, object]) -> None:
    """Parts that are gone already are not asked for again."""
    with suppress(QmpRefused):
        qmp.do(command, arguments)


def _named(qmp: Qmp, command: str, key: str, prefix: str) -> list[str]:
    return [name for row in qmp.rows(command) if isinstance(name := row.get(key), str) and name.startswith(prefix)]


def _fdsets(qmp: Qmp, prefix: str) -> list[object]:
    found = []
    for row in qmp.rows("query-fdsets"):
        fds = row.get("fds")
        rows = [one for one in fds if isinstance(one, dict)] if isinstance(fds, list) else []
        if any(str(one.get("opaque", "")).startswith(prefix) for one in rows):
            found.append(row.get("fdset-id"))
    return found


def _wait(qmp: Qmp, command: str, key: str, prefix: str) -> None:
    """Until no row is named so. Jobs that have ended are dismissed."""
    until = time.monotonic() + END_SECONDS
    while names := _named(qmp, command, key, prefix):
        if time.monotonic() > until:
            raise SourceError(f"QEMU does not end {names[0]}, which a backup started")
        if key == "id" and command == "query-jobs":
            for name in names:
                _gently(qmp, "job-dismiss", {"id": name})
        time.sleep(_LOOK_SECONDS)
