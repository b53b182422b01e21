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
from lamella.repository.slots import read_marker
from lamella.stores.base import Store

_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = (
        "Without REPO only this machine is examined, without a secret nothing inside the repository.\n\n" + SECRETS
    )


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
    given_source(context.args, context.env, context.settings)
    try:
        with context.store() as store:
            return examine(context.host, store, _secret(context, store))
    except NoRepository as error:
        text = f"{context.place}: {error.message}"
        return [*examine(context.host, None, None), Check("repository", False, text)]


def _secret(context: Context, store: Store) -> Secret | None:
    """The secret, if there is anything for it to open, and somebody to give it."""
    try:
        read_marker(store)
    except LamellaError:
        return None  # a check of its own says why
    if given_source(context.args, context.env, context.settings) is None and not has_terminal():
        context.out.say("no secret is given: the repository's history is left out")
        return None
    return secret_source(context.args, context.env, context.settings).read()
