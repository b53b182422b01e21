"""The configuration as frozen values; `configuration_files` reads the files (design: configuration)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.base.errors import UsageError

if TYPE_CHECKING:
    from lamella.cli.everyday.profiles import Profile
    from lamella.cli.media_set import MediaSet
    from lamella.cli.rates import Rates


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    """One `[repositories.NAME]`: where it is, and at most one source of its secret."""

    url: str
    keyfile: str | None = None
    passphrase_file: str | None = None
    passphrase_command: str | None = None
    limit_rate: int | Rates | None = None
    """Bytes a second to and from it, perhaps by the time of day; None: as many as go."""
    ssh_command: str | None = None
    """Instead of `ssh`, with options before those of Lamella."""
    id: str | None = None
    """32 hexadecimal digits: the only repository that counts as this one; None: whichever is there."""


@dataclass(frozen=True, slots=True)
class BackupSettings:
    """`[backup]`: what options of the same name override. `workers` None: as many as suit the machine."""

    compression: str = "auto"
    workers: int | None = None
    before: str | None = None
    after: str | None = None
    hook_seconds: float = 60.0
    checkpoint_dir: str | None = None
    domain: str | None = None
    """The domain of volumes that are backed up for the first time."""
    repositories: tuple[str, ...] = ()
    """Where backups go if no repository is named: all of these."""
    read_rate: int | None = None
    """Bytes a second that are read of sources; None: as many as go."""
    require_consistent: bool = False
    deltas: bool = False
    """Changed chunks are stored as differences from what they were, where that was kept."""
    reread: int = 0
    check_compression: str = "sample"
    chunk_size: int | None = None
    """The binary logarithm of the chunk size of volumes that are backed up for the first time."""
    backing_dirs: tuple[str, ...] = ()
    """Directories whose files a disk image may need, beside its own."""
    exclude: tuple[str, ...] = ()
    """Patterns to leave out of directories and patterns, beside those of the command line."""
    scrub: tuple[str, ...] = ()
    """Patterns of files to leave out of the volumes themselves, likewise."""


@dataclass(frozen=True, slots=True)
class LvmSettings:
    """`[lvm]`: how full a thin pool may be, in percent, for a snapshot to be made in it."""

    data_percent: float = 90.0
    metadata_percent: float = 75.0


@dataclass(frozen=True, slots=True)
class PruneSettings:
    """`[prune]`: rules as they are written, "" standing for all volumes, and the zone of their calendar.

    `lamella.cli.policy` reads them: no other command needs to know what rules are.
    """

    zone: str = "UTC"
    rules: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


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
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    media: Mapping[str, MediaSet] = field(default_factory=dict)
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
    files = sorted(place.glob("*.toml")) if place.is_dir() else [place] if place.exists() else []
    if not files:
        return Configuration(place)
    from lamella.cli.configuration_files import read  # most runs have no configuration to read

    return read(place, files)
