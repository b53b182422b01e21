"""`lamella fleet prune`: the rules of retention in the repository of each host."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from lamella.cli.arguments import add_dry_run, add_yes
from lamella.cli.commands.fleet._each import add_hosts, work
from lamella.cli.commands.fleet.verify import needs_key
from lamella.cli.context import Context
from lamella.cli.fleet.hosts import chosen
from lamella.cli.policy import add_rules, given_rules, policy_of
from lamella.operations.prune.retaining import require_rules
from lamella.operations.prune.retention import ALL, Retention


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's own arguments."""
    parser.epilog = (
        "Each repository is pruned as `lamella prune` does, with these rules or those of [prune] in the configuration\n"
        "of this machine. That needs an admin's secret of each host."
    )
    add_hosts(parser)
    add_rules(parser)
    add_yes(parser)
    add_dry_run(parser)


def run(context: Context) -> int:
    """Prune, host by host."""
    args = context.args
    given = given_rules(args)
    require_rules(policy_of(context.config.prune, given, args.zone))  # before anybody is asked
    count = len(chosen(context.env, args.host))
    if not args.dry_run:
        context.confirm(f"Will prune the repositories of {count} host{'' if count == 1 else 's'}.")
    words = ["prune", *(["-n"] if args.dry_run else ["-y"]), *rule_words(given)]
    if args.zone:
        words.append(f"--zone={args.zone}")
    return work(context, "prune", lambda host: words, needs_key)


def rule_words(rules: Retention) -> Iterator[str]:
    """Rules as options of `lamella prune`."""
    for name in ("last", "hourly", "daily", "weekly", "monthly", "yearly"):
        count = getattr(rules, name)
        if count:
            yield f"--keep-{name}={'all' if count == ALL else count}"
    if rules.within is not None:
        yield f"--keep-within={rules.within.text}"
    yield from (f"--keep-tag={tag}" for tag in sorted(rules.tags))
    yield from (f"--thin-older={one.age.text}:{one.period.value}" for one in rules.thin)
