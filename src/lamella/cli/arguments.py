"""The tree of commands and options. A command's module is imported when that command is parsed, not before."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

from lamella.base.errors import UsageError

COMMANDS = {
    "setup": "set everything up: find the volumes, make a repository, schedule backups, and prove the first",
    "init": "make a repository",
    "backup": "back up volumes into one snapshot",
    "restore": "write a volume, or a document, back to a file or device",
    "mount": "show every snapshot as a file below a directory",
    "export": "serve a snapshot as a disk without restoring it, or write it to an image",
    "files": "list, find and copy single files inside a snapshot",
    "list": "show volumes and snapshots",
    "info": "show the repository, a volume or a snapshot",
    "diff": "show the differences between two snapshots of a volume",
    "copy": "copy snapshots into another repository",
    "import": "bring the history that another tool kept into the repository",
    "mirror": "copy a whole repository to a second place, byte for byte, without keys",
    "verify": "prove that snapshots can be restored, and record what does not open",
    "drill": "boot a snapshot in a machine without a network, and record whether it came up",
    "prune": "remove the snapshots that no rule keeps, and free their space",
    "delete": "remove snapshots by name",
    "tag": "add and remove tags of snapshots, pin and unpin snapshots",
    "rename": "rename a volume",
    "check": "examine the repository's history, and accept it after a rollback",
    "repair": "repair a damaged repository: restore what still exists, and record what is lost",
    "key": "list, add, remove and change the keys that open the repository",
    "monitor": "free the space that checkpoints of sources hold, without a backup",
    "qubes": "back up and restore whole qubes of Qubes OS, data and settings",
    "serve": "serve a destination to one client on standard input and output",
    "run": "run a profile of the configuration: back up, prune, verify, copy, and report",
    "schedule": "have a profile run by itself",
    "status": "show whether everything is in order, and why not",
    "report": "show how everything stands and how it came to that, as a page of charts",
    "fleet": "look after the repositories of many hosts from one machine",
    "ui": "serve a page for the browser of this machine: status, snapshots, files, restores",
    "config": "begin, show and validate the configuration",
    "completion": "print the script that completes commands and names in a shell",
    "doctor": "examine this machine, its directories and the repository for trouble",
}

EXIT_CODES = """\
exit codes: 0 done, 1 failed, 2 usage, 3 incomplete (some volumes failed, the rest is safe), 4 nothing matched,
10 no repository, 11 locked, 12 wrong key, 20 damage found, 21 rollback, fork or missing history,
22 source at risk, 75 destination absent and --if-available, 130 interrupted.
What a command has committed is safe, whatever its exit code."""

SECRETS = """\
The secret comes from one of LAMELLA_PASSPHRASE, LAMELLA_PASSPHRASE_FILE, LAMELLA_PASSPHRASE_COMMAND,
LAMELLA_PASSPHRASE_FD, --keyfile, --recovery-key-file or LAMELLA_RECOVERY_KEY_FILE, the systemd credential
lamella.passphrase. Without any of these it comes from the configuration, else the command asks at the terminal."""

DEFAULTS: dict[str, Any] = {
    "repos": [],
    "repos_before": [],
    "json": False,
    "json_lines": False,
    "quiet": False,
    "verbose": False,
    "debug": False,
    "lock_wait": 0.0,
    "if_available": False,
    **dict.fromkeys(("limit_rate", "ssh_command", "keyfile", "recovery_key_file", "expect")),  # not given
}

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["CommandParser"]


class CommandModule(Protocol):
    """The interface of a module in lamella.cli.commands."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Describe the command's own arguments."""

    def run(self, context: Any) -> int:  # noqa: ANN401  (a Context, whose import is not cheap)
        """Run the command. Returns the exit code."""


class CommandParser(argparse.ArgumentParser):
    """Parses one level of the tree. Fills itself when it is used; raises UsageError instead of ending the process."""

    def __init__(self, *args: Any, fill: Callable[[CommandParser], None] | None = None, **options: Any) -> None:  # noqa: ANN401
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **options)
        self._fills = [fill] if fill else []

    def fill(self) -> None:
        """Add the arguments, at first use."""
        while self._fills:
            self._fills.pop()(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: ANN401
        """As in argparse, with the arguments added first, and with options between the words."""
        self.fill()
        got = super().parse_known_args(args, namespace)
        return got if self._subparsers or not got[1] else import_module("lamella.cli.word_order").again(self, args, got)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        from lamella.cli.near import misunderstood

        raise misunderstood(message, self.prog)


def load(command: str) -> CommandModule:
    """The module of a command."""
    return cast("CommandModule", import_module(f"lamella.cli.commands.{command.replace('-', '_')}"))


def build() -> CommandParser:
    """The whole tree."""
    parser = CommandParser(
        prog="lamella",
        description="Encrypted, deduplicating, incremental backups of virtual machine volumes.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="store_true", default=argparse.SUPPRESS, help="print the version and exit")
    add_global(parser, repos="repos_before")
    add_commands(parser, "command", COMMANDS)
    return parser


def add_commands(parser: argparse.ArgumentParser, dest: str, commands: Mapping[str, str], below: str = "") -> Commands:
    """The commands with these names and help texts; the module of each is `below` and its name, read when needed."""
    made = parser.add_subparsers(dest=dest, metavar=dest.upper(), parser_class=CommandParser)
    for name, text in commands.items():
        made.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", fill=_filling(below + name))
    return made


def _filling(name: str) -> Callable[[CommandParser], None]:
    def fill(parser: CommandParser) -> None:
        load(name).add_arguments(parser)
        add_global(parser)

    return fill


def lazy(name: str, module: str = "lamella.cli.values") -> Callable[[str], object]:
    """A function of a module that is imported with the first such option: most commands are given none."""

    def read(text: str) -> object:
        return getattr(import_module(module), name)(text)

    return read


_seconds, _rates, _fingerprint = lazy("seconds"), lazy("read_rates", "lamella.cli.rates"), lazy("fingerprint")


def add_global(parser: argparse.ArgumentParser, *, repos: str = "repos") -> None:
    """The options of every command, before and after its name; an option not given keeps its value."""

    def add(*names: str, **options: Any) -> None:  # noqa: ANN401
        group.add_argument(*names, default=argparse.SUPPRESS, **options)

    group = parser.add_argument_group("options of every command")
    add(
        "-r",
        "--repo",
        dest=repos,
        action="append",
        metavar="REPO",
        help="repository: a path, ssh://, sftp://, s3://, rclone:, qubes://, or a configured name; several for backup",
    )
    add("--keyfile", metavar="FILE", help="open the repository with this key file")
    add("--recovery-key-file", metavar="FILE", help="open the repository with the recovery key in this file")
    add("--lock-wait", metavar="SECONDS", type=_seconds, help="wait up to SECONDS for a locked repository (default 0)")
    add("--limit-rate", metavar="RATE", type=_rates, help="transfer at most RATE bytes a second (5M, 1M@08:00-18:00)")
    add("--ssh-command", metavar="COMMAND", help="reach ssh:// and sftp:// repositories by COMMAND instead of ssh")
    add(
        "--expect",
        metavar="FINGERPRINT",
        type=_fingerprint,
        help="end with 21 unless REPO has this head fingerprint, which check and info show for the present state",
    )
    add("--if-available", action="store_true", help="end with 75 if the disk, host or bucket of REPO is absent")
    add("--json", action="store_true", help="print the result as one JSON document")
    add("--json-lines", action="store_true", help="print progress and messages on stderr, a JSON object on each line")
    add("-q", "--quiet", action="store_true", help="print warnings and errors only")
    add("-v", "--verbose", action="store_true", help="print more details")
    add("--debug", action="store_true", help="show tracebacks of errors")


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """-n, for every command that writes."""
    parser.add_argument("-n", "--dry-run", action="store_true", help="show what would be done, and change nothing")


def add_yes(parser: argparse.ArgumentParser) -> None:
    """-y, for commands that ask before they act."""
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask for confirmation")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; `command` is None where none is named. Raises UsageError; ends the process after --help.

    `repos` are all repositories named, `repo` the last of them, which is the one of a command that works on one.
    """
    namespace = argparse.Namespace(version=False, **DEFAULTS)
    args = build().parse_args(argv, namespace)
    args.repos = list(dict.fromkeys((*args.repos_before, *args.repos)))
    args.repo = ([*args.repos_before, *args.repos] or [None])[-1]
    if args.quiet and args.verbose:
        raise UsageError("--quiet and --verbose contradict each other")
    return args
