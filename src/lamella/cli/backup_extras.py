"""Rare parts of a backup: documents, change maps of other tools, commands around the freeze, facts of streams."""

from __future__ import annotations

import argparse
from dataclasses import replace

from lamella.base.errors import UsageError
from lamella.cli.configuration import BackupSettings
from lamella.cli.files import read_file
from lamella.cli.streams import check_stream_options
from lamella.operations.backup.plan import MAX_DOCUMENT
from lamella.operations.backup.story import BackupOptions
from lamella.operations.shared.change_map import MAX_FILE, ChangeMap, read_map
from lamella.run.spawn import shell_words


def with_extras(options: BackupOptions, args: argparse.Namespace, configured: BackupSettings) -> BackupOptions:
    """The options with what the command line and the configuration name. Raises UsageError."""
    check_stream_options(args)
    return replace(
        options,
        documents=_documents(args.document),
        changes=_changes(args),
        changes_base=args.changes_base or "",
        before=_command(args.before or configured.before),
        after=_command(args.after or configured.after),
    )


def _command(text: str | None) -> tuple[str, ...]:
    return tuple(shell_words(text)) if text else ()


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
