"""`lamella config`: begin, show and validate the configuration."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from lamella.base.errors import LamellaError, UsageError
from lamella.cli import configuration
from lamella.cli.actions import add_actions
from lamella.cli.arguments import add_dry_run
from lamella.cli.configuration import Configuration, PruneSettings
from lamella.cli.context import Context
from lamella.cli.places import cache_place, config_place, state_place

if TYPE_CHECKING:
    from lamella.cli.everyday.profiles import Profile


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
    from lamella.cli.new_files import write_file

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
    out, problems = context.out, [*found.problems, *_impossible_times(found)]
    for problem in problems:
        out.line(problem)
    if not problems:
        files = len(found.files)
        out.line(f"{files} file{'' if files == 1 else 's'} in {found.place}: nothing wrong")
    out.document({"files": [str(path) for path in found.files], "problems": problems})
    return UsageError.exit_code if problems else 0


def _impossible_times(found: Configuration) -> Iterator[str]:
    """The times of profiles that systemd would refuse, where it can be asked: reading them costs a process each."""
    from lamella.cli.everyday.units import require_time
    from lamella.cli.toml_lines import place

    for name, profile in found.profiles.items():
        where = f"profiles.{name}.schedule.when"
        if (path := found.origins.get(where)) is not None:
            try:
                require_time(profile.schedule.when, where)
            except UsageError as error:
                yield f"{place(path, path.read_text('utf-8'), where)}: {error.message}"


def _show(context: Context, found: Configuration) -> int:
    out, env = context.out, context.env
    places = {"configuration": found.place, "state": state_place(env), "cache": cache_place(env)}
    for name, path in places.items():
        out.line(f"# {name}: {path}")
    for key, value in _values(found):
        out.line(f"{key} = {_literal(value)}  # {found.origins.get(key, 'default')}")
    out.document(
        {
            "places": {name: str(path) for name, path in places.items()},
            "files": [str(path) for path in found.files],
            "values": [
                {"key": key, "value": value, "origin": str(origin) if (origin := found.origins.get(key)) else None}
                for key, value in _values(found)
            ],
        }
    )
    return 0


def _literal(value: str | float) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _values(found: Configuration) -> list[tuple[str, str | int | float]]:
    rows: list[tuple[str, str | int | float | None]] = [
        ("default_repository", found.default_repository),
        *((f"backup.{one.name}", _shown(one.name, getattr(found.backup, one.name))) for one in fields(found.backup)),
        *((f"lvm.{one.name}", getattr(found.lvm, one.name)) for one in fields(found.lvm)),
    ]
    for name, one in sorted(found.repositories.items()):
        rows += [
            (f"repositories.{name}.{key}", value if isinstance(value := getattr(one, key), int | None) else str(value))
            for key in ("url", "id", "keyfile", "passphrase_file", "passphrase_command", "limit_rate", "ssh_command")
        ]
    for name, media in sorted(found.media.items()):
        rows += [
            (f"media.{name}.repositories", ", ".join(media.repositories)),
            (f"media.{name}.stale_after", _length(media.stale_after)),
        ]
    rows += [("prune.zone", found.prune.zone)]
    rows += sorted(_rules(found.prune))
    for name, profile in sorted(found.profiles.items()):
        rows += _profile(f"profiles.{name}", profile)
    return [(key, value) for key, value in rows if value is not None]


def _shown(key: str, value: object) -> str | int | float | None:
    """A setting of `[backup]` as it would be written."""
    if isinstance(value, tuple):
        return ", ".join(value) or None
    if key == "chunk_size" and isinstance(value, int):
        return f"{1 << value >> 10}K"
    return value if isinstance(value, str | int | float) else None


def _profile(where: str, profile: Profile) -> Iterator[tuple[str, str | int | float | None]]:
    """A profile by its full keys, as it would be written; what `[backup]` or `[prune]` says instead is left out."""
    values = asdict(profile)
    values["verify"] = False if profile.verify is None else profile.verify
    values["prune"] = profile.prune or profile.prune is not None
    values["stale_after"] = _length(profile.stale_after)
    del values["name"]
    for key, value in values.items():
        for inner, one in value.items() if isinstance(value, dict) else [("", value)]:
            shown = (", ".join(map(str, one)) or None) if isinstance(one, list | tuple) else one
            yield f"{where}.{key}.{inner}" if inner else f"{where}.{key}", shown


def _length(ms: int) -> str:
    hours = ms // 3_600_000
    return f"{hours}h" if hours % 24 else f"{hours // 24}d"


def _rules(prune: PruneSettings) -> Iterator[tuple[str, str | int]]:
    """The rules as they are written, by their full keys."""
    for name, table in prune.rules.items():
        for key, value in table.items():
            where = f"prune.volumes.{name}.{key}" if name else f"prune.{key}"
            if isinstance(value, list):
                yield where, ", ".join(map(str, value))
            elif isinstance(value, int | str):
                yield where, value
