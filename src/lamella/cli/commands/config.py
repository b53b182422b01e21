"""`lamella config`: begin, show and validate the configuration."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from lamella.base.errors import LamellaError, UsageError
from lamella.cli import configuration
from lamella.cli.actions import add_actions
from lamella.cli.arguments import add_dry_run
from lamella.cli.configuration import Configuration, PruneSettings
from lamella.cli.context import Context
from lamella.cli.places import cache_place, config_place, state_place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = "Files: /etc/lamella/*.toml for root, else ~/.config/lamella/*.toml; LAMELLA_CONFIG names others."
    add = add_actions(parser, "action")
    add_dry_run(add("init", "write a file to begin with, in which every line is a comment"))
    add("path", "print where the configuration is, and the files that are there")
    add("show", "print the effective configuration, and the origin of each value")
    add("validate", "report every error in the configuration files")


def run(context: Context) -> int:
    """Do it."""
    if context.args.action == "show":
        return _show(context, context.config)
    actions = {"validate": _validate, "path": _path, "init": _init}
    return actions[context.args.action](context, configuration.load(config_place(context.env)))


def _path(context: Context, found: Configuration) -> int:
    for path in found.files or (found.place,):
        context.out.line(str(path))
    context.out.document({"place": str(found.place), "files": [str(path) for path in found.files]})
    return 0


def _init(context: Context, found: Configuration) -> int:
    from lamella.cli.everyday.example import EXAMPLE
    from lamella.cli.files import write_file

    place, dry_run = found.place, context.args.dry_run
    path = place if place.suffix == ".toml" else place / "lamella.toml"
    if found.files:
        raise UsageError(f"there is a configuration already: {found.files[0]}", obj=str(found.files[0]))
    if not dry_run:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LamellaError(f"cannot make {path.parent}: {error.strerror}", obj=str(path.parent)) from error
        write_file(path, EXAMPLE.encode(), overwrite=False)
    context.out.line(f"{'would write' if dry_run else 'wrote'} {path}")
    context.out.say("edit it, then: lamella config validate")
    context.out.document({"file": str(path), "dry_run": dry_run})
    return 0


def _validate(context: Context, found: Configuration) -> int:
    out = context.out
    for problem in found.problems:
        out.line(problem)
    if not found.problems:
        files = len(found.files)
        out.line(f"{files} file{'' if files == 1 else 's'} in {found.place}: nothing wrong")
    out.document({"files": [str(path) for path in found.files], "problems": list(found.problems)})
    return UsageError.exit_code if found.problems else 0


def _show(context: Context, found: Configuration) -> int:
    out, env = context.out, context.env
    places = {"configuration": found.place, "state": state_place(env), "cache": cache_place(env)}
    for name, path in places.items():
        out.line(f"# {name}: {path}")
    for key, value in _values(found):
        origin = found.origins.get(key)
        shown = f'"{value}"' if isinstance(value, str) else str(value)
        out.line(f"{key} = {shown}  # {origin or 'default'}")
    out.document(
        {
            "places": {name: str(path) for name, path in places.items()},
            "files": [str(path) for path in found.files],
            "values": [
                {"key": key, "value": value, "origin": str(found.origins[key]) if key in found.origins else None}
                for key, value in _values(found)
            ],
        }
    )
    return 0


def _values(found: Configuration) -> list[tuple[str, str | int | float]]:
    rows: list[tuple[str, str | int | float | None]] = [
        ("default_repository", found.default_repository),
        ("backup.compression", found.backup.compression),
        ("backup.workers", found.backup.workers),
        ("backup.repositories", ", ".join(found.backup.repositories) or None),
        ("backup.domain", found.backup.domain),
        ("backup.read_rate", found.backup.read_rate),
        ("lvm.data_percent", found.lvm.data_percent),
        ("lvm.metadata_percent", found.lvm.metadata_percent),
    ]
    for name, one in sorted(found.repositories.items()):
        rows += [
            (f"repositories.{name}.{key}", getattr(one, key))
            for key in ("url", "keyfile", "passphrase_file", "passphrase_command", "limit_rate", "ssh_command")
        ]
    rows += [("prune.zone", found.prune.zone)]
    rows += sorted(_rules(found.prune))
    return [(key, value) for key, value in rows if value is not None]


def _rules(prune: PruneSettings) -> Iterator[tuple[str, str | int]]:
    """The rules as they are written, by their full keys."""
    for name, table in prune.rules.items():
        for key, value in table.items():
            where = f"prune.volumes.{name}.{key}" if name else f"prune.{key}"
            if isinstance(value, list):
                yield where, ", ".join(map(str, value))
            elif isinstance(value, int | str):
                yield where, value
