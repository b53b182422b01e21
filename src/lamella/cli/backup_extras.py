"""What few backups carry: documents of the user, and the change map of another tool."""

from __future__ import annotations

import argparse
from dataclasses import replace

from lamella.base.errors import UsageError
from lamella.cli.files import read_file
from lamella.operations.backup.plan import MAX_DOCUMENT
from lamella.operations.backup.story import BackupOptions
from lamella.operations.shared.change_map import MAX_FILE, ChangeMap, read_map


def with_extras(options: BackupOptions, args: argparse.Namespace) -> BackupOptions:
    """The options with the files that the command line names. Raises UsageError."""
    changes, base = _changes(args), args.changes_base or ""
    return replace(options, documents=_documents(args.document), changes=changes, changes_base=base)


def _changes(args: argparse.Namespace) -> ChangeMap | None:
    if (args.changes_from is None) != (args.changes_base is None):
        raise UsageError("--changes-from and --changes-base go together")
    if args.changes_from is None:
        return None
    return read_map(read_file(args.changes_from, MAX_FILE), args.changes_from)


def _documents(texts: list[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise UsageError(f"not a document: {text!r}", hint="write --document NAME=FILE")
        if name in found:
            raise UsageError(f"two documents are called {name}", obj=name)
        found[name] = read_file(path, MAX_DOCUMENT)
    return found
