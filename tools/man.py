"""The manual pages in docs/man, made from the tree of commands and options.

`python -m tools.man` writes them; a test checks that they are current. Texts that are not options are here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import cast

from lamella.cli.arguments import COMMANDS, CommandParser, build
from tools.man_examples import EXAMPLES
from tools.man_topics import CONFIGURATION_TEXT, DOCUMENTS, EXAMPLE, KEYS
from tools.roff import literal, markdown, terms, text

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "man"
_DOCUMENTS = FOLDER.parent
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

OUTPUT = """\
Results go to standard output, progress and messages to standard error. With --json standard output holds exactly one
document, errors included; with --json-lines every line on standard error is a JSON object with the key event: progress,
message, warning or error. Progress is drawn only on a terminal. There are no colours."""

SELECTION = """\
VOLUME is the name shown by lamella list, SNAPSHOT any unique beginning of a snapshot's name, ^TAG, or latest.
"""


def pages() -> dict[str, str]:
    """Path below the folder and content of every page."""
    parser = build()
    commands = dict(_subparsers(parser))
    made = {"man1/lamella.1": _main_page(parser)}
    for name, purpose in COMMANDS.items():
        made[f"man1/lamella-{name}.1"] = _command_page(name, purpose, commands[name])
    made["man5/lamella-configuration.5"] = _page(_configuration())
    made["man7/lamella-environment.7"] = _page(_environment())
    for (name, section), (document, purpose) in DOCUMENTS.items():
        content = (_DOCUMENTS / document).read_text("utf-8")
        made[f"man{section}/{name}.{section}"] = _page(
            [*_head(name, purpose, section), ".SH DESCRIPTION", *markdown(content)]
        )
    return made


def main() -> int:
    """Write all pages and remove those of commands that are gone."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = pages()
    for path in FOLDER.glob("man?/*"):
        if path.relative_to(FOLDER).as_posix() not in made:
            path.unlink()
    for name, content in made.items():
        (FOLDER / name).parent.mkdir(exist_ok=True)
        (FOLDER / name).write_text(content, "utf-8")
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
    lines += [".SH SYNOPSIS", r".B lamella", text("[OPTIONS] COMMAND [ARGUMENTS]")]
    lines += [".SH DESCRIPTION", text(parser.description or ""), ".PP", text(SELECTION), ".SH COMMANDS"]
    for name, purpose in COMMANDS.items():
        lines += [".TP", rf"\fBlamella\-{name}\fR(1)", text(f"{purpose[0].upper()}{purpose[1:]}.")]
    lines += [".SH OPTIONS", "Before or after COMMAND:", *_options(parser, everything=True)]
    lines += [".SH OUTPUT", text(OUTPUT), ".SH EXIT STATUS"]
    lines += terms({str(code): text for code, text in EXIT_STATUS.items()})
    lines += [".SH FILES", *terms(FILES)]
    others = [
        *((name, section) for name, section in DOCUMENTS),
        ("lamella-configuration", 5),
        ("lamella-environment", 7),
    ]
    named = [*((f"lamella-{name}", 1) for name in COMMANDS), *sorted(others)]
    lines += [".SH SEE ALSO", ", ".join(rf"\fB{text(name)}\fR({section})" for name, section in named)]
    return _page(lines)


def _page(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def _configuration() -> Iterator[str]:
    yield from _head("lamella-configuration", "what can be configured, and how", 5)
    yield from (".SH DESCRIPTION", text(CONFIGURATION_TEXT))
    for table, keys in KEYS.items():
        yield from (rf'.SH "{text(table)}"', *terms(keys))
    yield from (".SH EXAMPLE", *literal(EXAMPLE.splitlines()))
    yield from (".SH SEE ALSO", r"\fBlamella\-config\fR(1), \fBlamella\-run\fR(1), \fBlamella\-prune\fR(1)")


def _environment() -> Iterator[str]:
    yield from _head("lamella-environment", "variables that lamella reads", 7)
    yield from (".SH DESCRIPTION", "Options of the command line win over variables, variables over the configuration.")
    yield from (".SH VARIABLES", *terms(ENVIRONMENT), ".SH SEE ALSO", r"\fBlamella\fR(1)")


def _command_page(name: str, purpose: str, parser: CommandParser) -> str:
    lines = _head(f"lamella-{name}", purpose)
    actions = dict(_subparsers(parser))
    lines += [".SH SYNOPSIS"]
    for action, below in (actions or {"": parser}).items():
        words = f"lamella {name} {action}".strip()
        lines += [rf"\fB{text(words)}\fR {text(_synopsis(below))}", ".br"]
    lines += [".SH DESCRIPTION", text(parser.description or "")]
    if not actions:
        lines += [".SH OPTIONS", *_options(parser)]
    for action, below in actions.items():
        lines += [f".SH {action.upper()}", text(below.description or ""), *_options(below)]
    lines += ["The options of every command are in", r"\fBlamella\fR(1)."]
    for paragraph in _epilogs([parser, *actions.values()]):
        lines += [".PP", text(paragraph)]
    lines += [".SH EXAMPLES"]
    for what, line in EXAMPLES[name]:
        lines += [".TP", text(what), rf"\fB{text(line)}\fR"]
    return _page(
        [*lines, ".SH SEE ALSO", r"\fBlamella\fR(1), \fBlamella\-environment\fR(7), \fBlamella\-emergency\fR(7)"]
    )


def _head(name: str, purpose: str, section: int = 1) -> list[str]:
    title = f'.TH "{name.upper()}" {section} "" "lamella {version("lamella")}" "Lamella"'
    return [title, ".SH NAME", rf"{text(name)} \- {text(purpose.rstrip('.').lower())}"]


def _epilogs(parsers: Iterable[argparse.ArgumentParser]) -> list[str]:
    """The paragraphs below the options, each once."""
    found = [paragraph for parser in parsers for paragraph in (parser.epilog or "").split("\n\n") if paragraph]
    return list(dict.fromkeys(found))


def _options(parser: argparse.ArgumentParser, *, everything: bool = False) -> list[str]:
    lines: list[str] = []
    for action in _shown(parser, everything=everything):
        lines += [".TP", _option(action), text(_sentence(action))]
    return [*lines, ".PP"]


def _sentence(action: argparse.Action) -> str:
    said = action.help or ""
    words = "" if action.choices is None or action.metavar else f" One of: {', '.join(map(str, action.choices))}."
    return f"{said[:1].upper()}{said[1:]}.{words}"


def _shown(parser: argparse.ArgumentParser, *, everything: bool) -> Iterator[argparse.Action]:
    for group in parser._action_groups:
        if everything or group.title != _GLOBAL:
            for action in group._group_actions:
                if not isinstance(action, argparse._SubParsersAction) and (everything or action.dest != "help"):
                    yield action


def _option(action: argparse.Action) -> str:
    value = _value(action)
    if not action.option_strings:
        return rf"\fI{text(value)}\fR"
    names = ", ".join(rf"\fB{text(name)}\fR" for name in action.option_strings)
    return rf"{names} \fI{text(value)}\fR" if value else names


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


if __name__ == "__main__":
    sys.exit(main())
