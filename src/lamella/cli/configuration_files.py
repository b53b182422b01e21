"""TOML files into a configuration: every unknown key is an error, and a key may be set once in all files."""

from __future__ import annotations

import re
import tomllib
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.base.errors import LamellaError
from lamella.cli.configuration import (
    BackupSettings,
    Configuration,
    LvmSettings,
    PruneSettings,
    RepositorySettings,
)
from lamella.cli.media_set import MediaSet
from lamella.cli.places import is_name
from lamella.cli.rates import read_rates
from lamella.cli.values import chunk_log2, rate, size

if TYPE_CHECKING:
    from lamella.cli.everyday.profiles import Profile

Check = Callable[[Any], object]
"""Takes what a file says and returns what is kept. Raises ValueError, ArgumentTypeError or LamellaError."""


def read(place: Path, files: Sequence[Path]) -> Configuration:
    """The configuration that these files make together."""
    reader = _ConfigurationReader()
    for path in files:
        reader.read(path)
    reader.problems.extend(_unknown_names(reader))
    reader.problems.extend(
        f"{reader.place(f'media.{name}.repositories')}: media.{name}: {what}"
        for name, what in _wrong_media(reader.media, reader.repositories)
    )
    return Configuration(
        place,
        tuple(files),
        reader.repositories,
        BackupSettings(**reader.backup),
        PruneSettings(reader.zone, reader.rules),
        LvmSettings(**reader.lvm),
        reader.default_repository,
        reader.profiles,
        reader.media,
        reader.origins,
        tuple(reader.problems),
    )


def _wrong_media(
    media: Mapping[str, MediaSet], repositories: Mapping[str, RepositorySettings]
) -> Iterator[tuple[str, str]]:
    """The names of sets of media, and what is wrong with each beside the repositories that it names."""
    for name, one in media.items():
        ids = set[str]()
        if name in repositories:
            yield name, "a repository has the same name"
        for member in one.repositories:
            found = repositories.get(member)
            if found is None:
                yield name, f"repositories names {member!r}, which is not configured{near(member, repositories)}"
            elif found.id is None:
                yield name, f"repositories.{member} has no id: `lamella init` and its recovery sheet say it"
            elif found.id in ids:
                yield name, f"two repositories have the id {found.id}"
            else:
                ids.add(found.id)


def _unknown_names(reader: _ConfigurationReader) -> Iterator[str]:
    """Names of repositories that no file configures: a service has no directory that they could be paths in."""
    profiles = [(f"profiles.{one.name}", one) for one in reader.profiles.values()]
    known = {*reader.repositories, *reader.media}
    named = [
        ("default_repository", filter(None, [reader.default_repository])),
        ("backup.repositories", reader.backup.get("repositories", ())),
        *((f"{where}.repositories", one.repositories) for where, one in profiles),
        *((f"{where}.copy_to", one.copy_to) for where, one in profiles),
    ]
    for where, names in named:
        for name in names:
            if "/" in name or ":" in name or name in known:
                continue
            yield f"{reader.place(where)}: {where} names {name!r}, which is not configured{near(name, known)}"


def near(word: str, known: Iterable[str]) -> str:
    """The end of a message about a word that nobody knows: the nearest one, if there is any."""
    from difflib import get_close_matches  # only for a mistake

    found = get_close_matches(word, list(known), 1, 0.5)
    return f"; did you mean {found[0]}?" if found else ""


# -- values -----------------------------------------------------------------------------------------------------------


def text(value: object) -> str:
    """A text. Raises ValueError."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("must be a text, and not an empty one")
    return value


def _path(value: object) -> str:
    found = text(value)
    if not found.startswith("/"):
        raise ValueError("must be an absolute path")
    return found


def _url(value: object) -> str:
    found = text(value)
    return found if ":" in found.partition("/")[0] else _path(found)


def _rate(value: object) -> int:
    return rate(text(value))


def boolean(value: object) -> bool:
    """A switch. Raises ValueError."""
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def listed(value: object) -> tuple[str, ...]:
    """A list of texts, none twice. Raises ValueError."""
    if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
        raise ValueError("must be a list of texts, and not an empty one")
    if len(set(value)) != len(value):
        raise ValueError("names something twice")
    return tuple(value)


def _id(value: object) -> str:
    found = text(value).lower()
    if len(found) != 32 or not set(found) <= set("0123456789abcdef"):
        raise ValueError("must be the id of a repository: 32 hexadecimal digits")
    return found


def _age(value: object) -> int:
    from lamella.cli.amounts import age

    return age(text(value))


def _number(limit: int, what: str) -> Check:
    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= limit:
            raise ValueError(f"must be a number of {what}")
        return float(value)

    return check


def _workers(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 64:
        raise ValueError("must be a number from 1 to 64")
    return value


def compression(value: object) -> str:
    """A setting of the compression, as a text or a number. Raises ValueError with the nearest word."""
    from lamella.format.encoder import check_setting

    word = text(str(value) if isinstance(value, int) and not isinstance(value, bool) else value)
    try:
        return check_setting(word)
    except LamellaError as error:
        raise ValueError(f"{error.message}: {error.hint}{near(word, ('auto', 'off', 'portable'))}") from error


def domain(value: object) -> str:
    """The name of a domain. Raises ValueError, UsageError."""
    from lamella.sources.names import check_name

    return check_name(text(value))


def _check_compression(value: object) -> str:
    if value not in ("all", "sample"):
        raise ValueError(f"must be all or sample{near(str(value), ('all', 'sample'))}")
    return text(value)


_PERCENT = _number(100, "percent, above 0 and up to 100")
REPOSITORY: Mapping[str, Check] = {
    "url": _url,
    "keyfile": _path,
    "passphrase_file": _path,
    "passphrase_command": text,
    "limit_rate": lambda value: read_rates(text(value)),
    "ssh_command": text,
    "id": _id,
}
_MEDIA: Mapping[str, Check] = {"repositories": listed, "stale_after": _age}
_BACKUP: Mapping[str, Check] = {
    "compression": compression,
    "workers": _workers,
    "before": text,
    "after": text,
    "hook_seconds": _number(86400, "seconds up to 86400"),
    "checkpoint_dir": _path,
    "domain": domain,
    "repositories": listed,
    "read_rate": _rate,
    "require_consistent": boolean,
    "deltas": boolean,
    "reread": lambda value: size(text(value)),
    "check_compression": _check_compression,
    "chunk_size": lambda value: chunk_log2(text(value)),
    "backing_dirs": lambda value: tuple(map(_path, listed(value))),
    "exclude": listed,
    "scrub": listed,
}
_LVM: Mapping[str, Check] = {"data_percent": _PERCENT, "metadata_percent": _PERCENT}


# -- files ------------------------------------------------------------------------------------------------------------


class _ConfigurationReader:
    """Takes in one file after the other."""

    def __init__(self) -> None:
        self.repositories: dict[str, RepositorySettings] = {}
        self.backup: dict[str, Any] = {}
        self.rules: dict[str, dict[str, object]] = {}
        self.zone = "UTC"
        self.lvm: dict[str, Any] = {}
        self.profiles: dict[str, Profile] = {}
        self.media: dict[str, MediaSet] = {}
        self.default_repository: str | None = None
        self.origins: dict[str, Path] = {}
        self.problems: list[str] = []
        self._path = Path()
        self._texts: dict[Path, str] = {}

    def read(self, path: Path) -> None:
        """Take in one file."""
        self._path = path
        try:
            self._texts[path] = path.read_text("utf-8")
            content = tomllib.loads(self._texts[path])
        except OSError as error:
            self.problems.append(f"{path}: cannot be read: {error.strerror}")
            return
        except (ValueError, RecursionError) as error:
            line = re.search(r"\(at line (\d+), column \d+\)", str(error))
            self.problems.append(f"{path}{f':{line[1]}' if line else ''}: not valid TOML: {error}")
            return
        tables = {
            "prune": self._prune,
            "repositories": self._repositories,
            "profiles": self._profiles,
            "media": self._media,
        }
        for key, value in content.items():
            if key == "default_repository":
                self.default_repository = self._value(key, text, value) or self.default_repository
            elif key == "backup":
                self.backup |= self._values(key, value, _BACKUP)
            elif key == "lvm":
                self.lvm |= self._values(key, value, _LVM)
            elif key in tables:
                tables[key](value)
            else:
                self._unknown("", key, ("default_repository", "backup", "lvm", *tables))

    def _repositories(self, value: object) -> None:
        for name, table in self._table("repositories", value):
            where = f"repositories.{name}"
            if not is_name(name):
                self._problem(where, "a repository's name has no slash and no colon")
                continue
            found = self._values(where, table, REPOSITORY)
            if isinstance(table, dict) and "url" not in table:
                self._problem(where, "url is missing")
            secrets = sorted(found.keys() - {"url", "limit_rate", "ssh_command", "id"})
            if len(secrets) > 1:
                self._problem(where, f"more than one secret: {', '.join(secrets)}")
            if "url" in found:
                self.repositories[name] = RepositorySettings(**found)

    def _media(self, value: object) -> None:
        for name, table in self._table("media", value):
            where = f"media.{name}"
            if not is_name(name):
                self._problem(where, "a set's name has no slash and no colon")
                continue
            found = self._values(where, table, _MEDIA)
            if "repositories" in found:
                self.media[name] = MediaSet(**found)
            elif isinstance(table, dict) and "repositories" not in table:
                self._problem(where, "repositories is missing")

    def _profiles(self, value: object) -> None:
        from lamella.cli.everyday.profiles import (  # most configurations that a command reads have none
            is_profile_name,
            read_profile,
        )

        for name, table in self._table("profiles", value):
            where = f"profiles.{name}"
            if not is_profile_name(name):
                self._problem(where, "a profile's name has letters, digits, dot, dash and underscore only")
                continue
            count = len(self.problems)
            found = read_profile(name, self._values, table)
            if found is not None:
                self.profiles[name] = found
            elif len(self.problems) == count:
                self._problem(where, "sources is missing, or a table qubes or files")

    def _prune(self, value: object) -> None:
        """Rules are checked and collected per volume, "" standing for all."""
        from lamella.cli.policy import zone  # a configuration without [prune] loads nothing of retention

        for key, one in self._table("prune", value):
            if key == "zone":
                self.zone = self._value("prune.zone", lambda one: zone(text(one)) and one, one) or self.zone
            elif key == "volumes":
                for name, table in self._table("prune.volumes", one):
                    for rule, setting in self._table(f"prune.volumes.{name}", table):
                        self._rule(f"prune.volumes.{name}.{rule}", name, rule, setting)
            else:
                self._rule(f"prune.{key}", "", key, one)

    def _rule(self, where: str, volume: str, key: str, value: object) -> None:
        from lamella.cli.policy import KEYS, rule

        if key not in KEYS:
            self._unknown(where.removesuffix(key), key, (*KEYS, *(() if volume else ("zone", "volumes"))))
        elif self._value(where, lambda setting: rule(key, setting), value) is not None:
            self.rules.setdefault(volume, {})[key] = value

    def _values(self, where: str, table: object, checks: Mapping[str, Check]) -> dict[str, Any]:
        """The values of one table, without the wrong ones."""
        found: dict[str, Any] = {}
        for key, value in self._table(where, table):
            if key not in checks:
                self._unknown(f"{where}.", key, checks)
                continue
            kept = self._value(f"{where}.{key}", checks[key], value)
            if kept is not None:
                found[key] = kept
        return found

    def _value(self, where: str, check: Check, value: object) -> Any:  # noqa: ANN401 - as the check returns it
        """The checked form of one value; None, and a problem, if it is wrong or given twice."""
        try:
            kept = check(value)
        except LamellaError as error:
            self._problem(where, f"{error.message}: {error.hint}")
        except (ValueError, ArgumentTypeError) as error:
            self._problem(where, str(error))
        else:
            first = self.origins.setdefault(where, self._path)
            if first is self._path:
                return kept
            self._problem(where, f"is set already, in {self.place(where, first)}")
        return None

    def _table(self, where: str, value: object) -> Iterator[tuple[str, object]]:
        if isinstance(value, dict):
            yield from value.items()
        else:
            self._problem(where, "must be a table")

    def _unknown(self, above: str, key: str, known: Iterable[str]) -> None:
        found = self.place(above + key, self._path)
        self.problems.append(f"{found}: unknown key {above}{key}{near(key, known)}")

    def _problem(self, where: str, text: str) -> None:
        self.problems.append(f"{self.place(where, self._path)}: {where}: {text}")

    def place(self, where: str, path: Path | None = None) -> str:
        """The file and the line of a key; without `path` of one that was found to be good."""
        from lamella.cli import toml_lines  # only for a mistake

        path = path or self.origins[where]
        return toml_lines.place(path, self._texts[path], where)
