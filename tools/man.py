"""The manual pages in docs/man, made from the tree of commands and options.

`python tools/man.py` writes them; a test checks that they are current. Texts that are not options are here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import cast

from lamella.cli.arguments import COMMANDS, CommandParser, build

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "man"
_GLOBAL = "options of every command"

EXIT_STATUS = {
    0: "Done.",
    1: "Failed; standard error says why.",
    2: "The command line, the configuration or the way a secret is given makes no sense as it stands.",
    3: "Incomplete: some volumes failed, the others are saved and safe.",
    4: "A name, snapshot or source matched nothing.",
    10: "There is no repository at that place.",
    11: "Something else holds a lock that is needed; try again later or use --lock-wait.",
    12: "The secret opens no key slot.",
    20: "Verification or restore found damage.",
    21: "The history went backwards, forked, or a part of it is missing.",
    22: "Reading on would endanger the source: its file system or pool is nearly full.",
    75: "The disk, host or bucket of the repository is not there, and --if-available was given.",
    130: "Interrupted.",
}

ENVIRONMENT = {
    "LAMELLA_REPO": "The repository, when -r is not given.",
    "LAMELLA_PASSPHRASE": "The passphrase. Programs started by lamella do not inherit it.",
    "LAMELLA_PASSPHRASE_FILE": "A file that holds the passphrase; one newline at its end is not part of it.",
    "LAMELLA_PASSPHRASE_COMMAND": "A command that prints the passphrase; split into words, run without a shell.",
    "LAMELLA_PASSPHRASE_FD": "The number of a file descriptor to read the passphrase from.",
    "LAMELLA_RECOVERY_KEY_FILE": "A file that holds the recovery key.",
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN": "Credentials for s3: repositories.",
    "AWS_PROFILE": "A section of the AWS configuration files to take them from instead.",
    "AWS_REGION, AWS_DEFAULT_REGION": "The region of the bucket, unless ?region= names it.",
    "AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL": "The service's address, unless ?endpoint= names it.",
    "AWS_CA_BUNDLE": "A file with certificates to trust for s3:.",
    "CREDENTIALS_DIRECTORY": "Set by systemd; the credential lamella.passphrase in it is a passphrase file.",
    "LAMELLA_NEW_PASSPHRASE, _FILE, _COMMAND, _FD": "The same for the new secret of key add and key change.",
    "LAMELLA_TO_PASSPHRASE, _FILE, _COMMAND, _FD": "The same for the repository that copy copies to.",
    "LAMELLA_TO_RECOVERY_KEY_FILE": "The same for the repository that copy copies to.",
    "LAMELLA_FROM_PASSPHRASE, _FILE, _COMMAND, _FD": "The same for the repository that repair takes lost content from.",
    "LAMELLA_FROM_RECOVERY_KEY_FILE": "The same for the repository that repair takes lost content from.",
    "LAMELLA_CONFIG": "Configuration file, or directory of *.toml; a missing one is an empty configuration.",
    "LAMELLA_STATE_DIR": "Where this host remembers what it saw of each repository.",
    "LAMELLA_CACHE_DIR": "Where caches go; they may be deleted at any time.",
}

FILES = {
    "/etc/lamella/*.toml": "Configuration of root; of other users $XDG_CONFIG_HOME/lamella/*.toml.",
    "/var/lib/lamella": "State of root; of other users $XDG_STATE_HOME/lamella. Losing it costs time, never data.",
    "/var/cache/lamella": "Cache of root; of other users $XDG_CACHE_HOME/lamella.",
}

CONFIGURATION = """\
# the repository that is used when none is named
default_repository = "usb"

[repositories.usb]
url = "/mnt/usb/lamella"
# at most one of keyfile, passphrase_file, passphrase_command
passphrase_file = "/etc/lamella/usb.passphrase"

[repositories.cloud]
url = "s3://backups/hosts/one?region=eu-central-1"
keyfile = "/etc/lamella/key"
# bytes a second in both directions, as --limit-rate
limit_rate = "5M"

[backup]
compression = "auto"
workers = 4

[prune]
# the calendar of all rules; without rules here or on the command line nothing is removed
zone = "Europe/Berlin"
keep_last = 3
keep_daily = 14
keep_monthly = "all"
# also keep_hourly, keep_weekly, keep_yearly, keep_within = "30d", keep_tags = ["release"],
# thin_older = ["1d:hour", "30d:week"]

# rules of one volume, instead of the general ones
[prune.volumes."work:private"]
keep_within = "1y6m"
"""

OUTPUT = """\
Results go to standard output, progress and messages to standard error. With --json standard output holds exactly one
document, errors included; with --json-lines every line on standard error is a JSON object with the key event: progress,
message, warning or error. Progress is drawn only on a terminal. There are no colours."""

SELECTION = """\
VOLUME is the name shown by lamella list, SNAPSHOT any unique beginning of a snapshot's name, ^TAG, or latest.
"""


def pages() -> dict[str, str]:
    """File name and content of every page."""
    parser = build()
    commands = dict(_subparsers(parser))
    made = {"lamella.1": _main_page(parser)}
    for name, text in COMMANDS.items():
        made[f"lamella-{name}.1"] = _command_page(name, text, commands[name])
    return made


def main() -> int:
    """Write all pages and remove those of commands that are gone."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = pages()
    for path in FOLDER.glob("*.1"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, "utf-8")
    print(f"{len(made)} pages in {FOLDER}")
    return 0


def _subparsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, CommandParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                below.fill()
                yield name, cast("CommandParser", below)


# --- pages -----------------------------------------------------------------------------------------------------------


def _main_page(parser: argparse.ArgumentParser) -> str:
    lines = _head("lamella", parser.description or "")
    lines += [".SH SYNOPSIS", r".B lamella", _text("[OPTIONS] COMMAND [ARGUMENTS]")]
    lines += [".SH DESCRIPTION", _text(parser.description or ""), ".PP", _text(SELECTION), ".SH COMMANDS"]
    for name, text in COMMANDS.items():
        lines += [".TP", rf"\fBlamella\-{name}\fR(1)", _text(f"{text[0].upper()}{text[1:]}.")]
    lines += [".SH OPTIONS", "Before or after COMMAND:", *_options(parser, everything=True)]
    lines += [".SH OUTPUT", _text(OUTPUT), ".SH EXIT STATUS"]
    lines += _terms({str(code): text for code, text in EXIT_STATUS.items()})
    lines += [".SH ENVIRONMENT", *_terms(ENVIRONMENT), ".SH FILES", *_terms(FILES)]
    lines += [".SH CONFIGURATION", "Unknown keys are errors.", ".PP", ".nf", _text(CONFIGURATION), ".fi"]
    lines += [".SH SEE ALSO", ", ".join(rf"\fBlamella\-{name}\fR(1)" for name in COMMANDS)]
    return "\n".join(lines) + "\n"


def _command_page(name: str, text: str, parser: CommandParser) -> str:
    lines = _head(f"lamella-{name}", text)
    actions = dict(_subparsers(parser))
    lines += [".SH SYNOPSIS"]
    for action, below in (actions or {"": parser}).items():
        words = f"lamella {name} {action}".strip()
        lines += [rf"\fB{_text(words)}\fR {_text(_synopsis(below))}", ".br"]
    lines += [".SH DESCRIPTION", _text(parser.description or "")]
    if not actions:
        lines += [".SH OPTIONS", *_options(parser)]
    for action, below in actions.items():
        lines += [f".SH {action.upper()}", _text(below.description or ""), *_options(below)]
    lines += ["The options of every command are in", r"\fBlamella\fR(1)."]
    for paragraph in _epilogs([parser, *actions.values()]):
        lines += [".PP", _text(paragraph)]
    lines += [".SH SEE ALSO", r"\fBlamella\fR(1)"]
    return "\n".join(lines) + "\n"


def _head(name: str, text: str) -> list[str]:
    title = f'.TH "{name.upper()}" 1 "" "lamella {version("lamella")}" "Lamella"'
    return [title, ".SH NAME", rf"{_text(name)} \- {_text(text.rstrip('.').lower())}"]


def _epilogs(parsers: Iterable[argparse.ArgumentParser]) -> list[str]:
    """The paragraphs below the options, each once."""
    found = [paragraph for parser in parsers for paragraph in (parser.epilog or "").split("\n\n") if paragraph]
    return list(dict.fromkeys(found))


def _options(parser: argparse.ArgumentParser, *, everything: bool = False) -> list[str]:
    lines: list[str] = []
    for action in _shown(parser, everything=everything):
        lines += [".TP", _option(action), _text(_sentence(action))]
    return [*lines, ".PP"]


def _sentence(action: argparse.Action) -> str:
    text = action.help or ""
    words = "" if action.choices is None or action.metavar else f" One of: {', '.join(map(str, action.choices))}."
    return f"{text[:1].upper()}{text[1:]}.{words}"


def _shown(parser: argparse.ArgumentParser, *, everything: bool) -> Iterator[argparse.Action]:
    for group in parser._action_groups:
        if everything or group.title != _GLOBAL:
            for action in group._group_actions:
                if not isinstance(action, argparse._SubParsersAction) and (everything or action.dest != "help"):
                    yield action


def _option(action: argparse.Action) -> str:
    value = _value(action)
    if not action.option_strings:
        return rf"\fI{_text(value)}\fR"
    names = ", ".join(rf"\fB{_text(name)}\fR" for name in action.option_strings)
    return rf"{names} \fI{_text(value)}\fR" if value else names


def _value(action: argparse.Action) -> str:
    if action.option_strings and action.nargs == 0:
        return ""
    return str(action.metavar or action.dest.upper().replace("_", "-"))


def _synopsis(parser: argparse.ArgumentParser) -> str:
    words = ["[OPTIONS]"]
    for action in _shown(parser, everything=False):
        value = _value(action)
        if action.option_strings and action.required:
            words.append(f"{action.option_strings[-1]} {value}")
        elif not action.option_strings:
            many = "..." if action.nargs in {"+", "*"} else ""
            words.append(f"[{value}]{many}" if action.nargs in {"?", "*"} else f"{value}{many}")
    return " ".join(words)


def _terms(rows: dict[str, str]) -> list[str]:
    return [line for term, text in rows.items() for line in (".TP", rf"\fB{_text(term)}\fR", _text(text))]


def _text(text: str) -> str:
    """Text as roff: nothing in it is a request or an escape."""
    escaped = text.rstrip("\n").replace("\\", r"\e").replace("-", r"\-").replace("%%", "%")
    return "\n".join(rf"\&{line}" if line.startswith((".", "'")) else line for line in escaped.split("\n"))


if __name__ == "__main__":
    sys.exit(main())
