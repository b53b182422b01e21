"""What an admin says about writers, for `lamella check`: who acts for whom."""

from __future__ import annotations

from lamella.base.clock import iso
from lamella.base.errors import NothingMatched, RepositoryError, UsageError
from lamella.base.ids import WriterId
from lamella.cli.context import Context
from lamella.format.owners import Join
from lamella.repository.repository import Repository


def join(context: Context) -> int:
    """Let one writer own what another one owns."""
    args, out = context.args, context.out
    new_text, _, old_text = args.join.partition("=")
    with context.sound_repository(read_only=args.dry_run) as repository:
        new, old = find_writer(repository, new_text), find_writer(repository, old_text)
        if new == old:
            raise UsageError("a writer owns what it owns", obj=args.join)
        for word, writer in (("new", new), ("old", old)):
            out.line(f"{word}: {described(repository, writer)}")
        if not args.dry_run:
            require_admin(repository)
            context.confirm("Let the new one own what the old one owns?")
            repository.publish([Join(new, old)])
    out.line(f"{new.hex()[:8]} {'would own' if args.dry_run else 'owns'} what {old.hex()[:8]} owns")
    out.document({"dry_run": args.dry_run, "new": new.hex(), "old": old.hex()})
    return 0


def require_admin(repository: Repository) -> None:
    """Raises RepositoryError unless the secret has the prune key."""
    if repository.keys.prune_seed is None:
        text = "this secret may add backups but not say who owns them: nothing was done"
        hint = "use an admin's passphrase, key file or recovery key"
        raise RepositoryError(text, obj=repository.store.url, hint=hint)


def find_writer(repository: Repository, text: str) -> WriterId:
    """The writer whose id begins with these digits, at least eight. Raises NothingMatched."""
    found = [writer for writer in repository.history.chains if writer.hex().startswith(text.lower())]
    if len(text) < 8 or len(found) != 1:
        hint = "write the first eight digits or more; see: lamella info"
        raise NothingMatched(f"{text} names {'no' if not found else 'no single'} writer", obj=text, hint=hint)
    return found[0]


def described(repository: Repository, writer: WriterId) -> str:
    """A writer as its admin may recognise it: what it calls itself, when it was first seen, and its newest commit."""
    said, chain = repository.catalogue.writers.get(writer), repository.history.chains[writer]
    label = "" if said is None else f" {said.label}"
    sight = repository.log.sightings.of(writer, 1)
    first = "" if sight is None else f", first seen here {iso(sight.first_ms)}"
    last = chain.commits[-1].body.time_ms if chain.commits else 0
    return f"writer {writer.hex()[:8]}{label}{first}, newest commit {iso(last)}"
