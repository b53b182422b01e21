"""Every error Lamella raises, sorted by what the caller can do about it.

LamellaError
├── UsageError            the request makes no sense as it stands               exit 2
│   └── NothingMatched    a name, snapshot or source selects nothing            exit 4
├── SourceError           a local volume could not be read or written           exit 3
│   ├── CheckpointLost    the earlier moment cannot be compared with: read all
│   └── SourceAtRisk      reading on would endanger the source                  exit 22
├── StoreError            the destination failed                                exit 1
│   ├── ObjectNotFound    no object of that name
│   ├── StoreUnavailable  may work when tried again (retryable)
│   ├── ObjectCold        there, and to be thawed before anybody can read it
│   ├── StoreRefused      the destination says no, and will say so again
│   └── StoreFull         no space left at the destination
├── RepositoryError       the repository as a whole cannot be used
│   ├── NoRepository      there is none at that place                           exit 10
│   │   └── Absent        its disk, host or bucket is not available now             exit 75
│   ├── Locked            another process holds what is needed                  exit 11
│   └── UnknownFormat     written by a newer or another program
├── KeyRefused            wrong passphrase, key or altered marker               exit 12
├── IntegrityError        an object is not what its name or key says            exit 20
│   └── RolledBack        history went backwards, forked or lacks a part        exit 21
└── Interrupted           the user or the system asked to stop                  exit 130

Only `lamella.cli` prints an error or ends the process.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """A foreign text as one line that cannot move the cursor or colour a terminal; semicolons separate its lines."""
    shown = "".join(c if c.isprintable() or c == "\n" else " " if c.isspace() else "?" for c in text)
    return "; ".join(" ".join(line.split()) for line in shown.split("\n") if line.strip())


def shown_bytes(count: float) -> str:
    """A number of bytes for people: `512 B`, `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} PiB"


class LamellaError(Exception):
    """Base of all errors: one line of text, the object concerned, and what to do next.

    `obj` names the object (a store name, a path, a volume), `hint` the next step; both may be empty.
    """

    exit_code = 1
    retryable = False
    kind = "failed"

    def __init__(self, message: str, *, obj: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.obj = obj
        self.hint = hint


class UsageError(LamellaError):
    """The request contradicts itself or a rule."""

    exit_code = 2
    kind = "usage"


class NothingMatched(UsageError):
    """A volume, snapshot or source name selects nothing."""

    exit_code = 4
    kind = "nothing-matched"


class SourceError(LamellaError):
    """A local volume could not be read, written or found."""

    exit_code = 3
    kind = "source"


class CheckpointLost(SourceError):
    """The checkpoint is gone, foreign, edited or not to be compared: everything must be read and compared."""

    kind = "checkpoint-lost"


class SourceAtRisk(SourceError):
    """Going on would endanger the file system or pool that holds the volume."""

    exit_code = 22
    kind = "source-at-risk"


class SpacePinned(SourceAtRisk):
    """Space is short where moments that were kept of the source take some of it."""


class StoreError(LamellaError):
    """The destination failed; `obj` is the object's name in the store."""

    kind = "store"
    brief = False
    """A wait of some seconds shows whether it passes: longer ones do not help."""
    silent = False
    """The far side took a request and said nothing, for as long as anyone waits: not to be waited for often."""


class ObjectNotFound(StoreError):
    """The store has no object of that name."""

    kind = "not-found"


class StoreUnavailable(StoreError):
    """The store did not answer properly; the same call may succeed later."""

    retryable = True
    kind = "store-unavailable"


class StoreRefused(StoreError):
    """The store refuses the call: permission, read-only, or an existing name with other bytes."""

    kind = "store-refused"


class ObjectCold(StoreError):
    """The object lies in a class from which the service must thaw it first: it is there, and cannot be read now."""

    kind = "cold"


class StoreFull(StoreError):
    """No space is left at the destination."""

    kind = "store-full"


class RepositoryError(LamellaError):
    """The repository as a whole cannot be used for what was asked."""

    kind = "repository"


class NoRepository(RepositoryError):
    """There is no repository at that place."""

    exit_code = 10
    kind = "no-repository"


class Absent(NoRepository):
    """The disk, host or bucket is not available now, and the user allowed that (--if-available)."""

    exit_code = 75
    kind = "absent"


class Locked(RepositoryError):
    """Another process holds what is needed."""

    exit_code = 11
    kind = "locked"


class UnknownFormat(RepositoryError):
    """An object uses a version, kind or flag that this program does not know."""

    kind = "unknown-format"


class KeyRefused(LamellaError):
    """No key slot opens with the secret given."""

    exit_code = 12
    kind = "key-refused"


class IntegrityError(LamellaError):
    """An object is damaged, missing or not what it claims to be."""

    exit_code = 20
    kind = "damage"


class RolledBack(IntegrityError):
    """History went backwards, forked, or a part of it is missing (FORMAT 6)."""

    exit_code = 21
    kind = "rollback"


class Interrupted(LamellaError):
    """A signal asked the program to stop."""

    exit_code = 130
    kind = "interrupted"
