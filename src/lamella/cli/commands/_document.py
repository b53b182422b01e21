"""`lamella restore --document NAME`: a document of a snapshot, written back."""

from __future__ import annotations

from lamella.cli.context import Context
from lamella.cli.new_files import write_file
from lamella.cli.shown import shown_bytes
from lamella.operations.shared.selection import Selected
from lamella.operations.shared.streaming import read_document
from lamella.repository.repository import Repository


def run(context: Context, repository: Repository, selected: Selected) -> int:
    """Write it."""
    args, out = context.args, context.out
    content = read_document(repository, selected, args.document)
    if not args.dry_run:
        if args.to.exists():
            context.confirm(f"Will replace the content of {args.to} by document {args.document}.")
        write_file(args.to, content, overwrite=args.overwrite)
    out.line(
        f"{'would write' if args.dry_run else 'wrote'} document {args.document} of {selected.text} to {args.to}:"
        f" {shown_bytes(len(content))}"
    )
    out.document(
        {
            **({"dry_run": True} if args.dry_run else {}),
            "volume": selected.volume_name,
            "snapshot": selected.snapshot.name,
            "document": args.document,
            "target": str(args.to),
            "bytes_written": 0 if args.dry_run else len(content),
        }
    )
    return 0
