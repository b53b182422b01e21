"""Modules that came as text: the first part of a packed agent (stores/pipe/bundle.py). Imports nothing of Lamella.

Any Python 3 can read it; what it unpacks needs 3.8.
"""

import importlib.abc
import importlib.machinery
import sys
import types

OLDEST = (3, 8)


class Unpacked(importlib.abc.Loader):
    """Finds and loads the modules of `sources`: dotted name -> source text. Their packages are empty."""

    def __init__(self, sources: dict) -> None:  # type: ignore[type-arg]
        self._sources = sources
        parts = [name.split(".") for name in sources]
        self._packages = {".".join(words[:count]) for words in parts for count in range(1, len(words))}

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> object:
        """As importlib asks."""
        if fullname not in self._sources and fullname not in self._packages:
            return None
        is_package = fullname in self._packages
        return importlib.machinery.ModuleSpec(fullname, self, origin="packed", is_package=is_package)

    def create_module(self, spec: object) -> None:
        """The default one."""

    def exec_module(self, module: types.ModuleType) -> None:
        """Run the module's source."""
        name = module.__name__
        exec(compile(self._sources.get(name, ""), "<" + name + ">", "exec"), module.__dict__)


def install(sources: dict) -> None:  # type: ignore[type-arg]
    """Make the modules importable, before any that are installed. Raises RuntimeError in a Python that is too old."""
    if sys.version_info < OLDEST:
        raise RuntimeError(
            "Lamella needs Python {}.{} or newer here, this is {}.{}".format(*OLDEST + sys.version_info[:2])
        )
    sys.meta_path.insert(0, Unpacked(sources))  # type: ignore[arg-type]
