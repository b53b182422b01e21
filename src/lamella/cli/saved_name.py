"""`lamella init --save-as NAME`: names the new repository in the configuration."""

from __future__ import annotations

import json
import re
from pathlib import Path

from lamella.base.errors import LamellaError, UsageError
from lamella.cli.context import Context
from lamella.cli.new_files import exists, write_file
from lamella.cli.places import config_place


class SavedName:
    """The file that will name the repository. What would fail later fails here, before the repository is made."""

    def __init__(self, context: Context, name: str) -> None:
        place = config_place(context.env)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
            raise UsageError(f"not a name for a repository: {name}", obj=name, hint="letters, digits, dot, dash, _")
        if place.suffix == ".toml":
            raise UsageError(f"LAMELLA_CONFIG names a file: write [repositories.{name}] into it", obj=str(place))
        if name in context.config.repositories:
            raise UsageError(f"a repository {name} is configured already", obj=name)
        self.path = place / f"{name}.toml"
        if self.path.exists():
            raise exists(self.path)
        self._name, self._keyfile = name, context.args.keyfile
        self._is_default = not context.config.default_repository

    def write(self, url: str) -> None:
        """Write it. Raises LamellaError."""
        lines = [f"default_repository = {_quoted(self._name)}", ""] if self._is_default else []
        lines += [f"[repositories.{_quoted(self._name)}]", f"url = {_quoted(url)}"]
        if self._keyfile:
            lines.append(f"keyfile = {_quoted(str(Path(self._keyfile).absolute()))}")
        else:
            lines.append("# passphrase_file, passphrase_command or keyfile: else the passphrase is asked for")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LamellaError(f"cannot make {self.path.parent}: {error.strerror}", obj=str(self.path)) from error
        write_file(self.path, "".join(f"{line}\n" for line in lines).encode("utf-8"), overwrite=False)


def _quoted(text: str) -> str:
    """A basic string of TOML, which JSON's are where they are all ASCII."""
    return json.dumps(text).replace("\x7f", "\\u007f")
