"""The configuration: TOML files into frozen values, every unknown key an error (design: configuration)."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamella.base.errors import LamellaError, UsageError
from lamella.cli.policy import KEYS, PruneSettings, read_rules, zone
from lamella.cli.values import rate
from lamella.operations.prune.retention import Retention

_MAX_WORKERS = 64
_MAX_HOOK_SECONDS = 86400


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    """One `[repositories.NAME]`: where it is, and at most one source of its secret."""

    url: str
    keyfile: str | None = None
    passphrase_file: str | None = None
    passphrase_command: str | None = None
    limit_rate: int | None = None
    """Bytes a second to and from it; None: as many as go."""


@dataclass(frozen=True, slots=True)
class BackupSettings:
    """`[backup]`: what options of the same name override. `workers` None: as many as suit the machine."""

    compression: str = "auto"
    workers: int | None = None
    before: str | None = None
    after: str | None = None
    hook_seconds: float = 60.0
    checkpoint_dir: str | None = None
    repositories: tuple[str, ...] = ()
    """Where backups go if no repository is named: all of these."""
    read_rate: int | None = None
    """Bytes a second that are read of sources; None: as many as go."""


@dataclass(frozen=True, slots=True)
class LvmSettings:
    """`[lvm]`: how full a thin pool may be, in percent, for a snapshot to be made in it."""

    data_percent: float = 90.0
    metadata_percent: float = 75.0


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything configured, where each value comes from, and what is wrong with it."""

    place: Path
    files: tuple[Path, ...] = ()
    repositories: Mapping[str, RepositorySettings] = field(default_factory=dict)
    backup: BackupSettings = field(default_factory=BackupSettings)
    prune: PruneSettings = field(default_factory=PruneSettings)
    lvm: LvmSettings = field(default_factory=LvmSettings)
    default_repository: str | None = None
    rules: Mapping[str, str | int] = field(default_factory=dict)
    """The rules of `[prune]` as they are written, by their full keys."""
    origins: Mapping[str, Path] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def require_valid(self) -> None:
        """Raises UsageError naming the first problem."""
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise UsageError(self.problems[0] + more, hint="see: lamella config validate")


def load(place: Path) -> Configuration:
    """Read a file, or all *.toml of a directory in order of name; nothing there is an empty configuration.

    Problems are collected, so that all of them can be shown; `require_valid` raises them.
    """
    reader = _Reader()
    files = _files(place)
    for path in files:
        reader.read(path)
    reader.check()
    return Configuration(
        place,
        tuple(files),
        reader.repositories,
        BackupSettings(**reader.backup),
        reader.prune_settings(),
        LvmSettings(**reader.lvm),
        reader.default_repository,
        reader.written_rules(),
        reader.origins,
        tuple(reader.problems),
    )


def _files(place: Path) -> list[Path]:
    return sorted(place.glob("*.toml")) if place.is_dir() else [place] if place.exists() else []


class _Reader:
    """Takes in one file after the other. A key may be set once in all of them."""

    def __init__(self) -> None:
        self.repositories: dict[str, RepositorySettings] = {}
        self.backup: dict[str, Any] = {}
        self.prune: dict[str, dict[str, object]] = {}
        self.zone = "UTC"
        self.lvm: dict[str, float] = {}
        self.default_repository: str | None = None
        self.origins: dict[str, Path] = {}
        self.problems: list[str] = []

    def read(self, path: Path) -> None:
        import tomllib  # most runs have no configuration to read

        try:
            content = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            self.problems.append(f"{path}: cannot be read: {error.strerror}")
            return
        except ValueError as error:
            self.problems.append(f"{path}: not valid TOML: {error}")
            return
        for key, value in content.items():
            if key == "default_repository":
                self.default_repository = self._text(path, key, value) or self.default_repository
            elif key == "backup":
                self._backup(path, value)
            elif key == "prune":
                self._prune(path, value)
            elif key == "lvm":
                self._lvm(path, value)
            elif key == "repositories":
                self._repositories(path, value)
            else:
                self._unknown(path, key)

    def check(self) -> None:
        """What only all files together tell."""
        name = self.default_repository
        if name and is_name(name) and name not in self.repositories:
            path = self.origins["default_repository"]
            self.problems.append(f"{path}: default_repository names {name!r}, which is not configured")

    def _repositories(self, path: Path, value: object) -> None:
        for name, table in self._table(path, "repositories", value):
            where = f"repositories.{name}"
            if not is_name(name):
                self.problems.append(f"{path}: {where}: a repository's name has no slash and no colon")
                continue
            found = {
                key: self._repository_value(path, f"{where}.{key}", key, one)
                for key, one in self._table(path, where, table)
            }
            known = {key: one for key, one in found.items() if one is not None}
            if "url" not in found:
                self.problems.append(f"{path}: {where}: url is missing")
            secrets = sorted(known.keys() - {"url", "limit_rate"})
            if len(secrets) > 1:
                self.problems.append(f"{path}: {where}: more than one secret: {', '.join(secrets)}")
            if "url" in known:
                self.repositories[name] = RepositorySettings(**known)

    def _repository_value(self, path: Path, where: str, key: str, value: object) -> Any:  # noqa: ANN401 - as TOML has it
        if key not in RepositorySettings.__slots__:
            self._unknown(path, where)
            return None
        text = self._text(path, where, value)
        if key == "limit_rate":
            return None if text is None else self._rate(path, where, text)
        is_path = key != "passphrase_command" and not (key == "url" and ":" in (text or "").partition("/")[0])
        if text is not None and is_path and not text.startswith("/"):
            self.problems.append(f"{path}: {where}: must be an absolute path")
            return None
        return text

    def _backup(self, path: Path, value: object) -> None:
        for key, one in self._table(path, "backup", value):
            where = f"backup.{key}"
            if key == "compression":
                text = self._text(path, where, str(one) if isinstance(one, int) else one)
                if text is not None and self._is_compression(path, where, text):
                    self.backup[key] = text
            elif key == "workers":
                if isinstance(one, bool) or not isinstance(one, int) or not 1 <= one <= _MAX_WORKERS:
                    self.problems.append(f"{path}: {where}: must be a number from 1 to {_MAX_WORKERS}")
                elif self._is_new(path, where):
                    self.backup[key] = one
            elif key == "repositories":
                self._destinations(path, where, one)
            elif key == "read_rate":
                text = self._text(path, where, one)
                if text is not None:
                    self.backup[key] = self._rate(path, where, text)
            else:
                self._hook_or_place(path, where, key, one)

    def _destinations(self, path: Path, where: str, value: object) -> None:
        if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
            self.problems.append(f"{path}: {where}: must be a list of repositories, and not an empty one")
        elif len(set(value)) != len(value):
            self.problems.append(f"{path}: {where}: names a repository twice")
        elif self._is_new(path, where):
            self.backup["repositories"] = tuple(value)

    def _lvm(self, path: Path, value: object) -> None:
        for key, one in self._table(path, "lvm", value):
            where = f"lvm.{key}"
            if key not in LvmSettings.__slots__:
                self._unknown(path, where)
            elif isinstance(one, bool) or not isinstance(one, int | float) or not 0 < one <= 100:
                self.problems.append(f"{path}: {where}: must be a number of percent, above 0 and up to 100")
            elif self._is_new(path, where):
                self.lvm[key] = float(one)

    def _hook_or_place(self, path: Path, where: str, key: str, value: object) -> None:
        if key == "hook_seconds":
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_HOOK_SECONDS:
                self.problems.append(f"{path}: {where}: must be a number of seconds up to {_MAX_HOOK_SECONDS}")
            elif self._is_new(path, where):
                self.backup[key] = float(value)
        elif key in ("before", "after", "checkpoint_dir"):
            text = self._text(path, where, value)
            if text is not None and key == "checkpoint_dir" and not text.startswith("/"):
                self.problems.append(f"{path}: {where}: must be an absolute path")
            elif text is not None:
                self.backup[key] = text
        else:
            self._unknown(path, where)

    def _prune(self, path: Path, value: object) -> None:
        """Rules are collected per volume, "" standing for all, and read when every file was seen."""
        for key, one in self._table(path, "prune", value):
            if key == "zone":
                text = self._text(path, "prune.zone", one)
                if text is not None and self._is_valid(path, "prune.zone", zone, text):
                    self.zone = text
            elif key == "volumes":
                for name, table in self._table(path, "prune.volumes", one):
                    for rule, setting in self._table(path, f"prune.volumes.{name}", table):
                        self._rule(path, f"prune.volumes.{name}", name, rule, setting)
            else:
                self._rule(path, "prune", "", key, one)

    def _rule(self, path: Path, where: str, volume: str, key: str, value: object) -> None:
        if key not in KEYS:
            self._unknown(path, f"{where}.{key}")
        elif self._is_new(path, f"{where}.{key}") and self._is_valid(path, where, read_rules, {key: value}):
            self.prune.setdefault(volume, {})[key] = value

    def _is_valid(self, path: Path, where: str, read: Callable[[Any], object], value: object) -> bool:
        try:
            read(value)
        except UsageError as error:
            self.problems.append(f"{path}: {where}: {error.message}")
        except ValueError as error:
            self.problems.append(f"{path}: {where}.{error}")
        else:
            return True
        return False

    def prune_settings(self) -> PruneSettings:
        """What `[prune]` says in all files together."""
        rules = {name: read_rules(table) for name, table in self.prune.items()}
        return PruneSettings(self.zone, rules.pop("", Retention()), rules)

    def written_rules(self) -> dict[str, str | int]:
        """The rules by their full keys, for showing."""
        found: dict[str, str | int] = {}
        for name, table in self.prune.items():
            for key, value in table.items():
                where = f"prune.volumes.{name}.{key}" if name else f"prune.{key}"
                found[where] = value if isinstance(value, int | str) else ", ".join(map(str, value))  # type: ignore[call-overload]
        return found

    def _rate(self, path: Path, where: str, text: str) -> int | None:
        try:
            return rate(text)
        except ArgumentTypeError as error:
            self.problems.append(f"{path}: {where}: {error}")
            return None

    def _is_compression(self, path: Path, where: str, text: str) -> bool:
        from lamella.format.encoder import check_setting  # only where a configuration names a compression

        try:
            check_setting(text)
        except LamellaError as error:
            self.problems.append(f"{path}: {where}: {error.message}: {error.hint}")
            return False
        return True

    def _table(self, path: Path, where: str, value: object) -> Iterator[tuple[str, object]]:
        if isinstance(value, dict):
            yield from value.items()
        else:
            self.problems.append(f"{path}: {where}: must be a table")

    def _text(self, path: Path, where: str, value: object) -> str | None:
        if not isinstance(value, str) or not value or "\0" in value:
            self.problems.append(f"{path}: {where}: must be a text, and not an empty one")
            return None
        return value if self._is_new(path, where) else None

    def _is_new(self, path: Path, where: str) -> bool:
        first = self.origins.setdefault(where, path)
        if first is not path:
            self.problems.append(f"{path}: {where} is set in {first} already")
        return first is path

    def _unknown(self, path: Path, where: str) -> None:
        self.problems.append(f"{path}: unknown key {where}")


def is_name(text: str) -> bool:
    """Whether a REPO is written as a configured name may be: without slash and colon."""
    return bool(text) and "/" not in text and ":" not in text and text not in {".", ".."}
