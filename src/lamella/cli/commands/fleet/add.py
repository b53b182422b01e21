"""`lamella fleet add`: take a host into the fleet."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lamella.base.durable import make_private
from lamella.base.errors import LamellaError, NoRepository, UsageError
from lamella.cli.amounts import age, budget
from lamella.cli.arguments import SECRETS, add_dry_run
from lamella.cli.commands.init import add_kdf_cost, make_repository
from lamella.cli.context import Context
from lamella.cli.fleet.hosts import all_hosts, check_name, fleet_place, host_file
from lamella.cli.fleet.policies import can_be_told, require_below, s3_lifecycle, s3_policy, ssh_line
from lamella.cli.new_files import exists, write_file
from lamella.cli.sheet import Sheet
from lamella.crypto.slots import MIN_KEY_FILE, key_file
from lamella.operations.keyring import add_slot
from lamella.repository.repository import Repository
from lamella.repository.slots import read_marker
from lamella.stores.url import below


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's own arguments."""
    parser.epilog = (
        "Where there is no repository yet, one is made: this machine gets an admin's key file beside the file of the\n"
        "host, the host a writer's key file, with which it backs up, restores, and cannot authorise deletion. Where\n"
        "there is one, give what opens it, or --no-key: then this machine sees how much is stored, and nothing else.\n"
        "What the destination has to be told, so that the host can only add, is printed: a line for ssh, a policy for\n"
        "S3.\n\n"
    ) + SECRETS
    parser.add_argument("host", metavar="HOST", help="its name in the fleet")
    parser.add_argument("--below", metavar="REPO", help="the repository is HOST below this place (instead of -r REPO)")
    parser.add_argument("--no-key", action="store_true", help="this machine is to have no key of the repository")
    parser.add_argument(
        "--host-keyfile",
        type=Path,
        metavar="FILE",
        help="write the key file for the host to FILE, which must not exist",
    )
    parser.add_argument(
        "--recovery-sheet", type=Path, metavar="FILE",
        help="write the recovery key of a new repository to FILE (mode 0600, must not exist)",
    )  # fmt: skip
    parser.add_argument("--quota", metavar="SIZE", type=_kept(budget), help="what the repository may take")
    parser.add_argument(
        "--stale-after", metavar="AGE", type=_kept(age), help="without a good snapshot for so long it is stale (2d)"
    )
    parser.add_argument("--mirror", metavar="REPO", help="the second place, for fleet mirror")
    parser.add_argument("--policy", type=Path, metavar="FILE", help="write the policy for S3 to FILE")
    parser.add_argument(
        "--lifecycle", type=Path, metavar="FILE", help="write the rule that makes packs cold to FILE (s3: cold-after=)"
    )
    add_kdf_cost(parser)
    add_dry_run(parser)


def _kept(check: Callable[[str], object]) -> Callable[[str], str]:
    """A checked value of an option, as it was written."""

    def read(text: str) -> str:
        check(text)
        return text

    return read


def run(context: Context) -> int:
    """Make or open the repository, then write the file: the host is in the fleet from then on."""
    args, out = context.args, context.out
    name = check_name(args.host)
    path = fleet_place(context.env) / f"{name}.toml"
    if path.exists() or path.is_symlink():
        raise UsageError(f"the fleet has a host {name} already", obj=str(path))
    _name_place(context, name)
    require_below(context.place)
    _require_new(context)
    key = path.parent / f"{name}.key"
    made = not args.no_key and not _is_there(context)
    values = {"url": context.place, **_expected(args)}
    if not args.no_key:
        values |= {"keyfile": str(key)} if made else _secret(context)
    if args.dry_run:
        out.line(f"would {'make a repository at' if made else 'name'} {context.place}, and write {path}")
    else:
        _prepare(path.parent)
        with _new_repository(context, key) if made else _known_repository(context):
            write_file(path, host_file(values), overwrite=False)
        out.line(f"{name}: {context.place} is in the fleet; next: lamella fleet refresh {name}")
    told = _tell_policy(context, context.place, name)
    out.document({"host": name, "repository": context.place, "made": made, "dry_run": args.dry_run, **told})
    return 0


def _name_place(context: Context, name: str) -> None:
    """Make REPO the place of the host. Raises UsageError."""
    args = context.args
    if bool(args.below) == bool(args.repo):
        raise UsageError("name the repository by -r REPO, or the place above it by --below REPO")
    if args.below:
        args.repo = below(args.below, name)
    args.repo = _from_anywhere(args.repo)


def _require_new(context: Context) -> None:
    """Raises UsageError for a repository that the fleet has already, and for a key that is not to be had."""
    args = context.args
    if args.no_key and (args.keyfile or args.recovery_key_file):
        raise UsageError("--no-key and a key contradict each other", hint="leave out one of them")
    for host in all_hosts(context.env):
        if host.settings.url and _same(host.settings.url) == _same(context.place):
            text = f"the fleet has this repository already, as {host.name}"
            raise UsageError(text, obj=context.place, hint="each host gets a repository of its own")


def _same(place: str) -> str:
    """A place in one form: of the paths that lead to a directory, the real one."""
    path = place.removeprefix("file:")
    return os.path.realpath(path) if path.startswith("/") else place.rstrip("/")


def _from_anywhere(repo: str) -> str:
    """A REPO as a file may name it: whoever reads that runs in another directory."""
    return repo if ":" in repo.partition("/")[0] else str(Path(repo).absolute())


def _is_there(context: Context) -> bool:
    try:
        with context.store(read_only=True) as store:
            read_marker(store)
    except NoRepository:
        return False
    return True


def _expected(args: argparse.Namespace) -> dict[str, str]:
    named = {
        "quota": args.quota,
        "stale_after": args.stale_after,
        "mirror": args.mirror and _from_anywhere(args.mirror),
    }
    return {key: value for key, value in named.items() if value is not None}


def _secret(context: Context) -> Mapping[str, str]:
    """What opens a repository that is there, as the host's file names it. Raises UsageError."""
    env, keyfile, file = context.env, context.args.keyfile, context.env.get("LAMELLA_PASSPHRASE_FILE")
    named = {
        "keyfile": keyfile and str(Path(keyfile).absolute()),
        "passphrase_file": file and str(Path(file).absolute()),
        "passphrase_command": env.get("LAMELLA_PASSPHRASE_COMMAND"),
    }
    found = {key: value for key, value in named.items() if value}
    if len(found) != 1:
        hint = "give --keyfile FILE, LAMELLA_PASSPHRASE_FILE or LAMELLA_PASSPHRASE_COMMAND; or --no-key"
        raise UsageError("there is a repository: this machine needs one lasting way to open it", hint=hint)
    return found


def _prepare(folder: Path) -> None:
    try:
        make_private(folder)
    except OSError as error:
        raise LamellaError(f"cannot make {folder}: {error.strerror}", obj=str(folder)) from error


@contextmanager
def _known_repository(context: Context) -> Iterator[None]:
    """What is there must open, or be a repository at least, before the host counts as looked after."""
    if context.args.no_key:
        with context.store(read_only=True) as store:
            read_marker(store)
            yield
    else:
        with context.sound_repository():
            yield


@contextmanager
def _new_repository(context: Context, key: Path) -> Iterator[None]:
    """A new repository, with a key for this machine and one for the host; no key file stays of a failed attempt."""
    args = context.args
    if args.keyfile is not None:
        raise UsageError(f"there is no repository at {context.place} that --keyfile could open; a new one gets its own")
    if args.host_keyfile is None:
        raise UsageError("there is no repository yet: --host-keyfile FILE takes the key for the host")
    sheet = Sheet(context.out, args.recovery_sheet)
    sheet.require_free()
    for path in (key, args.host_keyfile):
        if path.exists() or path.is_symlink():
            raise exists(path)
    ours, hosts = os.urandom(MIN_KEY_FILE), os.urandom(MIN_KEY_FILE)
    written: list[Path] = []
    try:
        for path, content in ((key, ours), (args.host_keyfile, hosts)):
            write_file(path, content, overwrite=False)
            written.append(path)
        made = make_repository(context, key_file(ours), sheet, admin=True)
    except (LamellaError, KeyboardInterrupt):
        for path in written:
            path.unlink(missing_ok=True)
        raise
    made.finish_sheet(context.out)
    with (
        context.store() as store,
        Repository.open(store, key_file(ours), context.host, lock_wait=args.lock_wait) as repository,
    ):
        add_slot(repository, key_file(hosts), admin=False)
    yield
    context.out.line(f"{args.host_keyfile} is the key for the host: bring it there, and delete it here")


def _tell_policy(context: Context, url: str, name: str) -> dict[str, str]:
    """Say what the destination has to be told; for the document, too."""
    out, kind = context.out, can_be_told(url)
    if kind == "ssh":
        line = ssh_line(url, name, context.args.quota)
        out.line("the line for authorized_keys of that account, with the host's own ssh key:")
        out.line(line)
        return {"authorized_keys": line}
    if kind == "s3":
        policy = s3_policy(url)
        if context.args.policy is not None:
            if not context.args.dry_run:
                write_file(context.args.policy, policy.encode("ascii"), overwrite=False)
            out.line(f"the policy for the host's credential is in {context.args.policy}")
        else:
            out.line("the policy for the host's credential:")
            for line in policy.splitlines():
                out.line(line)
        if context.args.quota:
            out.say("S3 knows no quota: fleet status tells when it is full")
        return {"policy": policy, **_tell_lifecycle(context, url)}
    out.warn("this kind of destination cannot be told that the host may only add: see the guide to destinations")
    return {}


def _tell_lifecycle(context: Context, url: str) -> dict[str, str]:
    """Say by which rule the bucket makes packs cold; for the document, too."""
    out, rule, file = context.out, s3_lifecycle(url), context.args.lifecycle
    if not rule:
        return {}
    if file is None:
        out.line("the rule for the bucket's lifecycle, beside any other rules of the bucket:")
        out.line(rule.rstrip("\n"))
    else:
        if not context.args.dry_run:
            write_file(file, rule.encode("ascii"), overwrite=False)
        out.line(f"the rule for the bucket's lifecycle is in {file}; put it beside any other rules of the bucket")
    return {"lifecycle": rule}
