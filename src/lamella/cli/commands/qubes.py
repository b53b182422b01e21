"""`lamella qubes`: back up and restore whole qubes of Qubes OS, and set up the qube that stores them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.cli.actions import add_actions
from lamella.cli.arguments import SECRETS, add_dry_run, add_yes
from lamella.cli.context import Context
from lamella.cli.values import workers

if TYPE_CHECKING:
    from lamella.qubes.admin import Admin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions below the command."""
    parser.epilog = SECRETS
    add = add_actions(parser, "action")
    _backup_arguments(add("backup", "back up qubes: their settings, and every volume that outlives a shutdown"))
    _restore_arguments(add("restore", "bring qubes back: create or overwrite them, data and settings"))
    add("list", "show the qubes of this system and of the repository")
    _storage_arguments(add("setup-storage", "print, or install, what a qube needs to store backups"))


def _backup_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "qube", nargs="*", metavar="QUBE", help="back up this qube (default: all qubes that are marked for backups)"
    )
    parser.add_argument("-x", "--exclude", action="append", default=[], metavar="QUBE", help="leave this qube out")
    parser.add_argument("--all", action="store_true", help="back up every qube, dom0 included")
    parser.add_argument("--tag", action="append", default=[], metavar="TAG", help="back up the qubes with this tag")
    parser.add_argument(
        "--label", action="append", default=[], metavar="LABEL", help="back up the qubes with this label"
    )
    state = parser.add_mutually_exclusive_group()
    state.add_argument("--live", action="store_true", help="back up the present state of running qubes (default)")
    state.add_argument(
        "--committed", action="store_true", help="back up the state of running qubes at their last shutdown"
    )
    parser.add_argument(
        "--pause", action="store_true", help="pause running qubes while the backup makes its checkpoints"
    )
    parser.add_argument("--no-template-roots", action="store_true", help="leave out the root volumes of templates")
    parser.add_argument("--workers", type=workers, metavar="N", help="threads (default: as many as suit the machine)")
    add_dry_run(parser)


def _restore_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "qube", nargs="*", metavar="QUBE[@SNAPSHOT]", help="restore this qube (default: every qube in the repository)"
    )
    parser.add_argument("-x", "--exclude", action="append", default=[], metavar="QUBE", help="leave this qube out")
    parser.add_argument("--overwrite", action="store_true", help="replace data and settings of qubes that exist")
    parser.add_argument("--rename-conflicting", action="store_true", help="restore qubes that exist under a new name")
    parser.add_argument("--skip-conflicting", action="store_true", help="leave qubes that exist as they are")
    parser.add_argument(
        "--ignore-missing", action="store_true", help="use the default template instead of a missing one"
    )
    parser.add_argument("--skip-broken", action="store_true", help="leave out qubes whose template is missing")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--only-data", action="store_true", help="restore the volumes without the settings")
    only.add_argument("--only-settings", action="store_true", help="restore the settings without the volumes")
    parser.add_argument(
        "--grant-powers",
        action="store_true",
        help="also set tags, devices and references to qubes that a policy of this system names",
    )
    parser.add_argument("--exact", action="store_true", help="also remove settings that the backup does not contain")
    parser.add_argument(
        "--dom0-to", type=Path, metavar="FOLDER", help="write the saved files of dom0 into this new folder"
    )
    parser.add_argument("--workers", type=workers, metavar="N", help="threads (default: as many as suit the machine)")
    add_yes(parser)
    add_dry_run(parser)


def _storage_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("storage_qube", metavar="QUBE", help="the qube that stores the backups; it needs no trust")
    parser.add_argument("--name", default="main", metavar="NAME", help="name of the destination (default: main)")
    parser.add_argument(
        "--place",
        default="/home/user/lamella",
        metavar="PLACE",
        help="a directory in that qube, or a URL it serves",
    )
    parser.add_argument("--append-only", action="store_true", help="the service refuses to delete or replace anything")
    parser.add_argument("--quota", metavar="SIZE", help="store at most SIZE bytes")
    parser.add_argument("--install", action="store_true", help="write the files in the qube, as root, through qvm-run")
    add_yes(parser)
    add_dry_run(parser)


def run(context: Context) -> int:
    """Do it."""
    action = context.args.action
    if action == "backup":
        from lamella.cli.commands._qubes_backup import backup as done
    elif action == "restore":
        from lamella.cli.commands._qubes_restore import restore as done
    elif action == "list":
        from lamella.cli.commands._qubes_list import listing as done
    else:
        from lamella.cli.commands._qubes_storage import setup_storage as done
    return done(context, _admin(context))


def _admin(context: Context) -> Admin:
    """qubesd. Raises UsageError where there is none."""
    from lamella.qubes.admin import INTERNAL_SOCKET, SOCKET, Admin, require_qubesd

    place = Path(context.env.get("LAMELLA_QUBESD_SOCKET") or SOCKET)
    require_qubesd(place)
    internal = place.with_name("qubesd.internal.sock") if place != SOCKET else INTERNAL_SOCKET
    return Admin(place, internal)
