"""`lamella setup`: from nothing to backups that run by themselves, the first of them made and proved."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path

from lamella.base.errors import Interrupted, UsageError
from lamella.cli.arguments import add_dry_run, add_yes
from lamella.cli.commands.setup.asking import Questions, agreed, sheet_place
from lamella.cli.commands.setup.doing import Setup, require_writable
from lamella.cli.commands.setup.finding import missing_directory, same_disk
from lamella.cli.commands.setup.plan import ALL, NOBODY, Answers, SetupPlan, existing
from lamella.cli.context import Context
from lamella.cli.everyday.messages import unheard
from lamella.cli.everyday.profiles import Profile, is_profile_name
from lamella.cli.output import INCOMPLETE
from lamella.cli.places import config_place
from lamella.cli.shown import shown_seconds
from lamella.cli.terminal import can_confirm
from lamella.crypto.slots import MIN_KEY_FILE

_EPILOG = """\
At a terminal setup asks for what no option says. With -y it takes what it would offer, and needs -r REPO. Everything
it does is an ordinary file or command, which -n shows: a key file, a configuration file, init, schedule install, run,
restore, verify. It replaces nothing that exists. A setup that was broken off goes on when the command runs again.

exit codes of setup: 0 all is done, 3 the files and the repository are there, but a later step failed

The secret of a repository that exists already comes from LAMELLA_PASSPHRASE and its like, or from the terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "source",
        nargs="*",
        metavar="SOURCE",
        help="what to save, as for backup; in dom0 qubes: or qubes:NAME (default: what is found, or asked for)",
    )
    parser.add_argument(
        "--name", default="main", help="of the profile, the repository and the files of both (default: main)"
    )
    parser.add_argument("--when", metavar="TIME", help="as in systemd.time(7), or never (default: daily)")
    parser.add_argument(
        "--keep",
        metavar="D,W,M",
        help="keep the newest snapshot of each of D days, W weeks and M months, or all (default: 14,8,12)",
    )
    parser.add_argument(
        "--tell", metavar="WHOM", help="who hears of trouble: a mail address, desktop, or nobody (default: who can)"
    )
    parser.add_argument(
        "--recovery-sheet", type=Path, metavar="FILE", help="the sheet to print (default: in the home directory)"
    )
    parser.add_argument("--domain", metavar="NAME", help="store equal contents of several volumes once, with one key")
    add_yes(parser)
    add_dry_run(parser)


def run(context: Context) -> int:
    """Do it."""
    args = context.args
    if not is_profile_name(args.name):
        raise UsageError(f"no profile can be called {args.name}", obj=args.name)
    asks = not (args.yes or args.json) and can_confirm()
    if not (asks or args.yes or args.dry_run):
        raise UsageError("there is nobody to ask", hint="add -y, and say where the backups go: -r REPO")
    try:
        plan = _plan(context, asks=asks)
        require_writable(plan)
        profile = plan.checked(context.config)
        if args.dry_run:
            _warn(context, plan, profile)
            return _show(context, plan)
        if asks and not _agreed(context, plan, profile):
            raise Interrupted("not confirmed: nothing was done")
    except KeyboardInterrupt:
        raise Interrupted("interrupted: nothing was done") from None
    if not asks:
        _warn(context, plan, profile)
    return _do(Setup(context, plan))


def _plan(context: Context, *, asks: bool) -> SetupPlan:
    args = context.args
    place = config_place(context.env)
    config = place if place.suffix == ".toml" else place / f"{args.name}.toml"
    earlier = existing(context.config, args.name)
    if earlier is None:
        answers = Questions(context, asks=asks).answers(args.name)
        return SetupPlan(answers, config, is_default=not context.config.default_repository)
    url, keyfile, sources, when = earlier
    if args.source or args.when or args.keep or args.tell or args.domain or args.repo not in (None, url, args.name):
        hint = f"change {config}, or give another name: --name NAME"
        raise UsageError(f"{args.name} is set up already", obj=args.name, hint=hint)
    context.out.say(f"{args.name} is configured already: setup goes on with what {config} says")
    sheet = sheet_place(context.env, args.name, args.recovery_sheet)
    answers = Answers(args.name, sources, url, when, ALL, NOBODY, sheet, Path(keyfile))
    return SetupPlan(answers, config, exists=True)


def _show(context: Context, plan: SetupPlan) -> int:
    """The files and the commands, for --dry-run."""
    out, answers = context.out, plan.answers
    commands = list(plan.commands())
    if not answers.keyfile.exists():
        out.line(f"# {answers.keyfile}: {MIN_KEY_FILE} random bytes")
    if not plan.exists:
        for line in [f"# {plan.config}", *plan.text.splitlines()]:
            out.line(line)
    out.line("# then:")
    for words in commands:
        out.line(shlex.join(words))
    files = {} if plan.exists else {str(plan.config): plan.text}
    out.document({"dry_run": True, "files": files, "keyfile": str(answers.keyfile), "commands": commands})
    return 0


def _agreed(context: Context, plan: SetupPlan, profile: Profile) -> bool:
    """Say what will be done, and ask."""
    out, answers = context.out, plan.answers
    out.say(f"will save   {' '.join(answers.sources)}")
    out.say(f"to          {answers.place}")
    out.say(f"when        {answers.when}")
    out.say(f"files       {plan.config}, {answers.keyfile}, {answers.sheet}")
    _warn(context, plan, profile)
    return agreed("Continue?")


def _warn(context: Context, plan: SetupPlan, profile: Profile) -> None:
    """What a person would want to know before it is too late."""
    answers = plan.answers
    together = same_disk(answers.place, answers.sources)
    if together:
        context.out.warn(f"{answers.place} is on the same file system as {together}: one dead disk takes both")
    missing = missing_directory(answers.place)
    if missing:
        context.out.warn(f"there is no directory {missing}, it will be made: is the disk mounted that belongs there?")
    deaf = unheard(profile.hooks, profile.notify)
    if profile.notify.nobody:
        context.out.say("nobody is told of trouble, as you chose: look at lamella status now and then")
    elif deaf:
        context.out.warn(f"{deaf}: see notify in {plan.config}")


def _do(setup: Setup) -> int:
    context, plan = setup.context, setup.plan
    started = time.monotonic()
    try:
        setup.prepare()
        setup.work()
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted("interrupted", hint="nothing is lost: lamella setup goes on from here") from None
    failed, out = setup.failed, context.out
    setup.show_status()
    took = shown_seconds(time.monotonic() - started)
    out.line(f"setup FAILED at: {', '.join(failed)}" if failed else f"set up, saved and proved in {took}")
    if plan.answers.sheet.exists():
        out.line(f"now print {plan.answers.sheet}, keep the paper away from this machine, and delete the file")
    if failed:
        out.line("mend that, then run lamella setup again: it goes on")
    out.document(
        {
            "result": "incomplete" if failed else "complete",
            "profile": plan.answers.name,
            "configuration": str(plan.config),
            "keyfile": str(plan.answers.keyfile),
            "recovery_sheet": str(plan.answers.sheet),
            "repository": plan.answers.place,
            "steps": setup.done,
        }
    )
    return INCOMPLETE if failed else 0
