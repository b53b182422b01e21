"""`lamella restore V... --to DIR/` and `--all`: several volumes, each into a file of its own."""

from __future__ import annotations

from pathlib import Path

from lamella.base.errors import IntegrityError, Interrupted, LamellaError, NothingMatched, UsageError
from lamella.cli.chosen import chosen, thaw_first, warn_of_no_moment
from lamella.cli.commands._restore_words import image_suffix, state_left, warn_of_missing_files
from lamella.cli.commands.restore import facts, restored
from lamella.cli.context import Context
from lamella.cli.output import INCOMPLETE
from lamella.cli.shown import shown_bytes, shown_seconds
from lamella.cli.sources import keeping
from lamella.history.catalogue import Snapshot
from lamella.history.latest import moment
from lamella.operations.access.shown import safe_name
from lamella.operations.restore.restore import RestoreOptions, RestorePlan, RestoreResult
from lamella.operations.restore.second_look import opens_after_all
from lamella.operations.restore.volumes import FAILED, UNCHANGED, RestoredVolume, VolumesPlan, plan_volumes
from lamella.operations.shared.completeness import is_complete
from lamella.operations.shared.kinds import is_tree
from lamella.operations.shared.selection import Selected
from lamella.repository.repository import Repository

GOES_ON = "the same command goes on from here"


def run(context: Context) -> int:
    """Restore them."""
    args = context.args
    if str(args.to).startswith("libvirt:"):
        from lamella.cli.commands import _domain

        return _domain.run(context)
    for option, given in (("--document", args.document), ("--pool", args.pool), ("--in", args.inside or None)):
        if given is not None:
            raise UsageError(f"{option} is for one volume: name it, and a TARGET that is no directory")
    if args.all and args.volume:
        raise UsageError("--all means every volume: name none", hint="or leave out --all")
    if not (args.all or args.volume):
        raise UsageError("no volume is named", hint="name one, or add --all")
    if not args.to.is_dir():
        raise UsageError(f"there is no directory {args.to}", obj=str(args.to), hint="make it first")
    with context.repository() as repository:
        wanted, unknown = _all(context, repository) if args.all else _named(repository, args.volume)
        code = context.warn_of_problems(repository)
        thaw_first(context, repository, wanted)
        rows: list[dict[str, object]] = []
        if trees := [one for one in wanted if is_tree(one.snapshot)]:
            from lamella.cli.commands._trees import restore_trees  # most volumes are disks

            rows, tree_code = restore_trees(context, repository, trees)
            code, wanted = tree_code or code, [one for one in wanted if not is_tree(one.snapshot)]
            if not (wanted or unknown):
                result = "incomplete" if tree_code else "complete"
                context.out.document({**({"dry_run": True} if args.dry_run else {}), "result": result, "volumes": rows})
                return code
        options = RestoreOptions(
            args.workers or context.config.backup.workers,
            overwrite=args.overwrite,
            in_place=args.in_place,
            trust_local=args.trust_local,
            checkpoint_dir=keeping(context).directory,
        )
        plan = plan_volumes(repository, [(one, _file(args.to, one)) for one in wanted], args.to, options)
        return _planned(context, plan, [*unknown, *plan.failed], rows) or code


def _file(directory: Path, one: Selected) -> Path:
    return directory / f"{safe_name(one.volume_name)}{image_suffix(one)}"


def _planned(context: Context, plan: VolumesPlan, failed: list[RestoredVolume], trees: list[dict[str, object]]) -> int:
    args, out = context.args, context.out
    for part in plan.parts:
        warn_of_no_moment(context, part.selected)
    for row in failed:
        _tell(context, row)
    plan.require_space()
    if args.dry_run:
        for line in (line for part in plan.parts for line in part.lines()):
            out.line(line)
        rows = trees + [facts(part) for part in plan.parts] + [_failed(row) for row in failed]
        out.document({"dry_run": True, "result": "incomplete" if failed else "complete", "volumes": rows})
        return INCOMPLETE if failed else 0
    size = shown_bytes(sum(part.data_bytes for part in plan.parts))
    out.say(f"restoring volumes: {len(plan.parts)}, to {args.to}: at most {size} of data")
    if plan.replaced:
        names = ", ".join(path.name for path in plan.replaced)
        context.confirm(f"Will replace the content of {names} in {args.to}, unless it is right already.")
    return _execute(context, plan, failed, trees)


def carried_out(
    context: Context, plan: VolumesPlan, unknown: list[RestoredVolume], trees: list[dict[str, object]]
) -> tuple[list[dict[str, object]], list[RestoredVolume]]:
    """Restore, and tell each volume's result; the rows of the document, and what failed. Raises Interrupted."""
    done: list[RestoredVolume] = []
    rows = trees + [_failed(row) for row in unknown]
    try:
        for part, row in zip(plan.parts, plan.execute(context.out.report), strict=True):
            done.append(row)
            _tell(context, row, part)
            rows.append(_failed(row) if row.error is not None else _row(part, row))
    except KeyboardInterrupt:
        raise _interrupted(context, plan, done, rows) from None
    for part, row in zip(plan.parts, done, strict=True):
        if row.result != FAILED:  # now that the others are there
            warn_of_missing_files(context, part.selected, row.path)
    return rows, [*unknown, *(row for row in done if row.result == FAILED)]


def _execute(context: Context, plan: VolumesPlan, unknown: list[RestoredVolume], trees: list[dict[str, object]]) -> int:
    rows, failed = carried_out(context, plan, unknown, trees)
    context.out.document({"result": "incomplete" if failed else "complete", "volumes": rows})
    if not failed:
        return 0
    names = ", ".join(row.volume for row in failed)
    context.out.warn(f"{len(failed)} of {len(rows)} volumes were not restored: {names}; {GOES_ON}")
    return INCOMPLETE if len(failed) < len(rows) else LamellaError.exit_code


# -- which volumes ----------------------------------------------------------------------------------------------------


def _named(repository: Repository, texts: list[str]) -> tuple[list[Selected], list[RestoredVolume]]:
    """The snapshots that the user named. Raises NothingMatched, UsageError for a volume that is named twice.

    What may be missing is the trouble of that volume alone.
    """
    found: list[Selected] = []
    unknown: list[RestoredVolume] = []
    for text in dict.fromkeys(texts):
        try:
            found.append(chosen(repository, text))
        except IntegrityError as error:
            unknown.append(RestoredVolume(text, Path(), FAILED, error=error))
    names = [one.volume_name for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"{twice} is named twice, and both restores would write one file",
            obj=twice,
            hint="restore one of them separately",
        )
    return found, unknown


def _all(context: Context, repository: Repository) -> tuple[list[Selected], list[RestoredVolume]]:
    """The latest whole snapshot of every volume that has snapshots."""
    repository.refresh_map()
    found: list[Selected] = []
    unknown: list[RestoredVolume] = []
    for name in sorted(repository.catalogue.shown_names().values()):
        try:
            found.append(_whole(context, repository, name))
        except NothingMatched:
            context.out.detail(f"{name} has no snapshot")
        except LamellaError as error:
            unknown.append(RestoredVolume(name, Path(), FAILED, error=error))
    if not (found or unknown):
        raise NothingMatched("no volume has a snapshot", hint="see: lamella list")
    return found, unknown


def _whole(context: Context, repository: Repository, name: str) -> Selected:
    latest = chosen(repository, name)

    def is_whole(one: Snapshot) -> bool:
        return one.added.usable and (is_complete(repository, one) or opens_after_all(repository, one))

    if is_whole(latest.snapshot):
        return latest
    rows = sorted((one for one in latest.volume.snapshots if one.counts), key=moment, reverse=True)
    for one in rows:
        if is_whole(one):
            older = Selected(latest.volume_name, latest.volume, one)
            context.out.warn(f"{latest.text} lacks parts in the repository: taking {older.text}, the latest whole one")
            return older
    raise IntegrityError(f"no snapshot of {name} is whole", obj=name, hint=f"look with: lamella verify {name}")


# -- what is told -----------------------------------------------------------------------------------------------------


def _tell(context: Context, row: RestoredVolume, part: RestorePlan | None = None) -> None:
    """One line for each volume, as soon as it is known."""
    if row.error is not None or part is None:
        error = row.error or LamellaError("not restored")
        context.out.warn(f"{row.volume}: {error.message}" + (f"; {error.hint}" if error.hint else ""))
    elif row.result == UNCHANGED:
        text = f"{part.volume}@{part.snapshot} is in {row.path} already: compared {shown_bytes(row.compared_bytes)}"
        context.out.line(f"{text} in {shown_seconds(row.seconds)}")
    else:
        done = RestoreResult(row.path, row.bytes_written, row.compared_bytes, 0, row.seconds)
        context.out.line(restored(context, part, done))


def _row(part: RestorePlan, row: RestoredVolume) -> dict[str, object]:
    done = {"result": row.result, "bytes_written": row.bytes_written, "compared_bytes": row.compared_bytes}
    return {**facts(part), **done, "target": str(row.path), "seconds": row.seconds, **part.use_of_kept()}


def _failed(row: RestoredVolume) -> dict[str, object]:
    error = row.error or LamellaError("not restored")
    target = {"target": str(row.path)} if row.path.name else {}
    return {"volume": row.volume, **target, "result": row.result, "error": error.message, "kind": error.kind}


def _interrupted(
    context: Context, plan: VolumesPlan, done: list[RestoredVolume], rows: list[dict[str, object]]
) -> Interrupted:
    """What is whole, what lies there unfinished, and how to go on; as the document, too."""
    whole = ", ".join(row.volume for row in done if row.result != FAILED)
    rest = plan.parts[len(done) :]
    state = f"restored and compared: {whole}" if whole else "no volume is restored yet"
    if rest and rest[0].left is not None:
        state = f"{state}; {state_left(rest[0])}"
    names = [part.volume for part in rest]
    error = Interrupted("interrupted", hint=f"{state}; not restored yet: {', '.join(names)}; {GOES_ON}")
    said = {"exit": error.exit_code, "kind": error.kind, "object": "", "hint": error.hint, "message": error.message}
    context.out.document({"result": "interrupted", "volumes": rows, "not_restored": names, "error": said})
    return error
