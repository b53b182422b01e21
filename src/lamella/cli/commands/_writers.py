"""Decisions of an admin about writers, for `lamella check`: who acts for whom, and who may write."""

from __future__ import annotations

import os
from collections.abc import Iterable

from lamella.base.clock import iso
from lamella.base.errors import NothingMatched, RepositoryError, UsageError
from lamella.base.ids import WriterId
from lamella.base.signed import trailer_of
from lamella.cli.context import Context
from lamella.format.commit import Head, writer_id
from lamella.format.owners import Admit, Expel, Join, Readmit
from lamella.history.publish import append
from lamella.repository.repository import Repository


def run(context: Context) -> int:
    """Do what was asked for. Raises UsageError for more than one thing."""
    args = context.args
    asked = [(args.join, join), (args.expel, expel), (args.readmit, readmit)]
    asked += [(args.close_enrolment, close_enrolment), (args.admit, admit)]
    wanted = [command for value, command in asked if value]
    if len(wanted) > 1:
        raise UsageError("--join, --expel, --readmit, --close-enrolment and --admit go one at a time")
    return wanted[0](context)


def expel(context: Context) -> int:
    """Let what a writer said after one of its commits count no more."""
    args, out = context.args, context.out
    text, _, number = args.expel.partition("@")
    if number and not number.isdigit():
        raise UsageError(f"not the number of a commit: {number}", obj=args.expel)
    # Whatever is wrong with its chain is no obstacle: that may be why it is expelled.
    with context.repository(read_only=args.dry_run, whole=True, stored=True) as repository:
        writer = find_writer(repository, text)
        head = _head(repository, writer, int(number) if number else None)
        stay = tuple(find_writer(repository, one) for one in args.stay)
        out.line(f"expelled after commit {head.seq}: {described(repository, writer)}")
        made = Expel(os.urandom(16), head, stay)
        if not args.dry_run:
            require_admin(repository)
            if writer == repository.own_writer:
                raise UsageError("this host cannot expel itself", obj=args.expel)
            context.confirm("Ignore everything that this writer published after that commit?")
            append(repository.log, [made], {problem.key for problem in repository.problems})
            repository.reload(whole=True)
            out.line(f"undo it with: lamella check --readmit {made.expel_id.hex()}")
        late = [one for one in repository.catalogue.snapshots if one.expelled]
        if late:
            out.line(f"{len(late)} snapshots no longer count; remove them with: lamella delete --expelled")
    out.document({"dry_run": args.dry_run, "expelled": writer.hex(), "after": head.seq, "id": made.expel_id.hex()})
    return 0


def _head(repository: Repository, writer: WriterId, seq: int | None) -> Head:
    chain = repository.history.chains[writer]
    heads = [commit.head for commit in chain.commits if seq in (None, commit.head.seq)]
    if seq is not None and not heads:
        raise NothingMatched(f"writer {writer.hex()[:8]} has no commit {seq} that can be read", obj=str(seq))
    if len({head for head in heads if head.seq == heads[-1].seq}) > 1:
        raise UsageError("its history forked there: name an earlier commit", obj=writer.hex()[:8])
    return heads[-1]


def readmit(context: Context) -> int:
    """Undo an expulsion."""
    args, out = context.args, context.out
    with context.sound_repository(read_only=args.dry_run) as repository:
        known = [one for one in repository.catalogue.expulsions if one.expel_id.hex().startswith(args.readmit.lower())]
        if len(known) != 1:
            raise NothingMatched(
                f"no single expulsion has the ID {args.readmit}", obj=args.readmit, hint="lamella check"
            )
        if not args.dry_run:
            require_admin(repository)
            repository.publish([Readmit(known[0].expel_id)])
        writer = known[0].head.writer
    out.line(f"{'would be readmitted' if args.dry_run else 'readmitted'}: writer {writer.hex()[:8]}")
    out.document({"dry_run": args.dry_run, "readmitted": writer.hex()})
    return 0


def close_enrolment(context: Context) -> int:
    """Let only the writers that are there, and those that admins admit, count from now on."""
    args, out = context.args, context.out
    with context.sound_repository(read_only=args.dry_run) as repository:
        admission, writers = repository.history.admission, sorted(repository.history.chains)
        closed = admission is not None and admission.closed
        late: list[WriterId] = []
        for writer in writers:
            expelled = ", expelled" if writer in repository.catalogue.expelled else ""
            out.line(f"admitted: {described(repository, writer)}{expelled}")
        if not closed and not args.dry_run:
            require_admin(repository)
            plan = "Will let no other host write from now on, unless an admin admits that host. This cannot be undone."
            context.confirm(plan)
            repository.publish([_admission(repository, [_public(repository, one) for one in writers], closes=True)])
            repository.reload(whole=True)  # a host that looked before this commit was there can be found only after it
            late = sorted(repository.history.strangers)
        for writer in late:
            hint = f"if it is a host of yours, run: lamella check --admit {writer.hex()[:8]}"
            out.warn(f"{described(repository, writer)}: began meanwhile, and is not admitted; {hint}")
    word = "was closed before" if closed else "would be closed" if args.dry_run else "is closed"
    out.line(f"enrolment {word}; an admin admits another host with: lamella check --admit KEY, which that host prints")
    out.document({"dry_run": args.dry_run, "closed": True, "admitted": [writer.hex() for writer in writers]})
    return 0


def admit(context: Context) -> int:
    """Let one more writer count: by the key that its host was told, or by the first digits of its id."""
    args, out = context.args, context.out
    with context.sound_repository(read_only=args.dry_run) as repository:
        known = {**repository.history.strangers, **repository.history.chains}
        if len(args.admit) == 64:
            public = _key(args.admit)
        else:
            public = _public(repository, find_writer(repository, args.admit, known))
        writer = writer_id(public)
        out.line(described(repository, writer) if writer in known else f"writer {writer.hex()[:8]}, new here")
        if not args.dry_run:
            require_admin(repository)
            context.confirm("Let this host write here?")
            repository.publish([_admission(repository, [public], closes=False)])
    out.line(f"{'would be admitted' if args.dry_run else 'admitted'}: writer {writer.hex()[:8]}")
    out.document({"dry_run": args.dry_run, "admitted": writer.hex()})
    return 0


def _key(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise UsageError("not a key: 64 hexadecimal digits are needed", obj=text) from None


def _public(repository: Repository, writer: WriterId) -> bytes:
    """The public key of a writer, by its newest commit."""
    history = repository.history
    chain = history.chains.get(writer) or history.strangers[writer]
    content = repository.log.reader.content(chain.commits[-1].head)
    if content is None:
        raise RepositoryError("its newest commit cannot be read any more", obj=chain.commits[-1].head.name)
    return trailer_of(content).public


def _admission(repository: Repository, writers: Iterable[bytes], *, closes: bool) -> Admit:
    return Admit(closes, tuple((public, repository.keys.enrolment(public)) for public in writers))


def join(context: Context) -> int:
    """Let one writer own what another one owns."""
    args, out = context.args, context.out
    new_text, _, old_text = args.join.partition("=")
    with context.sound_repository(read_only=args.dry_run) as repository:
        new, old = find_writer(repository, new_text), find_writer(repository, old_text)
        if new == old:
            raise UsageError("OLD and NEW are the same writer", obj=args.join)
        for word, writer in (("new", new), ("old", old)):
            out.line(f"{word}: {described(repository, writer)}")
        if not args.dry_run:
            require_admin(repository)
            context.confirm("Let the new writer own everything that the old writer owns?")
            repository.publish([Join(new, old)])
    out.line(f"{new.hex()[:8]} {'would own' if args.dry_run else 'owns'} what {old.hex()[:8]} owns")
    out.document({"dry_run": args.dry_run, "new": new.hex(), "old": old.hex()})
    return 0


def require_admin(repository: Repository) -> None:
    """Raises RepositoryError unless the secret has the prune key."""
    if repository.keys.prune_seed is None:
        text = "this secret may add backups but not change their owner: nothing was done"
        hint = "use an admin's passphrase, key file or recovery key"
        raise RepositoryError(text, obj=repository.store.url, hint=hint)


def find_writer(repository: Repository, text: str, known: Iterable[WriterId] = ()) -> WriterId:
    """The writer, of those that count or of `known`, whose id begins with these digits, at least eight.

    Raises NothingMatched.
    """
    among = {*repository.history.chains, *known}
    found = [writer for writer in among if writer.hex().startswith(text.lower())]
    if len(text) < 8 or len(found) != 1:
        hint = "write the first eight digits or more; see: lamella info"
        raise NothingMatched(f"{text} names {'no' if not found else 'no single'} writer", obj=text, hint=hint)
    return found[0]


def described(repository: Repository, writer: WriterId) -> str:
    """A writer as its admin may recognise it: what it calls itself, when it was first seen, and its newest commit."""
    said, history = repository.catalogue.writers.get(writer), repository.history
    chain = history.chains.get(writer) or history.strangers[writer]
    label = "" if said is None else f" {said.label}"
    sight = repository.log.sightings.of(writer, 1)
    first = "" if sight is None else f", first seen here {iso(sight.first_ms)}"
    last = chain.commits[-1].body.time_ms if chain.commits else 0
    return f"writer {writer.hex()[:8]}{label}{first}, newest commit {iso(last)}"
