"""`lamella doctor`: trouble on this machine, in its places or at the repository."""

from __future__ import annotations

import argparse

from lamella.cli.arguments import SECRETS
from lamella.cli.context import Context
from lamella.cli.secret import given_source, secret_source
from lamella.cli.terminal import has_terminal
from lamella.crypto.slots import Secret
from lamella.errors import LamellaError, NoRepository
from lamella.operations.doctor import Check, examine

_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = (
        "Without REPO only this machine is examined, without a secret nothing inside the repository.\n\n" + SECRETS
    )
    parser.add_argument("--ask", action="store_true", help="ask for the passphrase if no other secret is given")


def run(context: Context) -> int:
    """Examine, and say everything that was looked at."""
    checks = _checks(context)
    for check in checks:
        context.out.line(f"{'ok     ' if check.ok else 'TROUBLE'}  {check.name}: {check.message}")
    rows = [{"name": check.name, "ok": check.ok, "message": check.message} for check in checks]
    sound = all(check.ok for check in checks)
    context.out.document({"checks": rows, "ok": sound})
    return 0 if sound else _FAILED


def _checks(context: Context) -> list[Check]:
    try:
        named = bool(context.place)
    except LamellaError as error:
        context.config.require_valid()
        context.out.say(f"the repository is left out: {error.message}")
        named = False
    if not named:
        return examine(context.host, None, None)
    secret = _secret(context)
    try:
        with context.store() as store:
            return examine(context.host, store, secret)
    except NoRepository as error:
        text = f"{context.place}: {error.message}"
        return [*examine(context.host, None, None), Check("repository", False, text)]


def _secret(context: Context) -> Secret | None:
    """The secret if one is given. Nothing is asked for without --ask: a look at the machine needs none."""
    source = given_source(context.args, context.env, context.settings)
    if source is None and context.args.ask and has_terminal():
        source = secret_source(context.args, context.env, context.settings)
    if source is None:
        context.out.say("no secret is given: the repository's history is left out")
    return None if source is None else source.read()
