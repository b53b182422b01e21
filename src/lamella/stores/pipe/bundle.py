"""The agent for a far side without Lamella: our own modules as one text, for a bare `python3 -I -S`.

The far side runs a fixed command (`COMMAND`) that reads the text from its standard input; nothing is written to a file
and no shell sees anything of ours. Only these modules go; they use the standard library alone and Python 3.8.
"""

from __future__ import annotations

import ast
import zlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from lamella.stores.pipe.frames import BOOT_MAGIC

MODULES = (
    "base.durable",
    "base.errors",
    "base.names",
    "base.signed",
    "base.trust",
    "run.beside",
    "run.holders",
    "run.pipeline",
    "stores.base",
    "stores.local.directory",
    "stores.local.making",
    "stores.local.flock",
    "stores.local.refusal",
    "stores.local.reserve",
    "stores.local.root",
    "stores.local.store",
    "stores.local.taken",
    "stores.local.writing",
    "stores.pipe.frames",
    "stores.pipe.guarded",
    "stores.pipe.server",
    "stores.pipe.agent",
)
_FIRST = "stores.pipe.unpacked"

# Reads BOOT_MAGIC, the length and the text; in words that every login shell takes literally between single quotes.
_LOADER = (
    "import os,zlib;"
    "r=lambda n:(lambda b:b+r(n-len(b)) if b and len(b)<n else b)(os.read(0,n));"
    "r(8);exec(zlib.decompress(r(int(r(8),16))))"
)
ARGV = ("python3", "-X", "utf8", "-I", "-S", "-c", _LOADER)
"""The command as words, where no shell is in between. Names are UTF-8 on the disk, whatever the far locale says."""
ARGV_WITH_LIBRARIES = tuple(word for word in ARGV if word != "-S")
"""The same for a program that uses what is installed there, cryptography for one."""
COMMAND = f"exec python3 -X utf8 -I -S -c '{_LOADER}'"
"""The same as one line for a login shell."""


@cache
def agent_source() -> str:
    """The whole program."""
    return program(MODULES, "stores.pipe.agent")


@cache
def boot() -> bytes:
    """The first thing to send: the program, packed."""
    return packed(agent_source())


def program(modules: Sequence[str], entry: str) -> str:
    """Modules below `lamella` as one text, which ends by calling `main` of the module `entry`."""
    sources = {f"lamella.{name}": _bare(_text(name)) for name in modules}
    return f"{_bare(_text(_FIRST))}\ninstall({sources!r})\nfrom lamella.{entry} import main\nmain()\n"


def packed(text: str) -> bytes:
    """A program as `ARGV` reads it."""
    content = zlib.compress(text.encode("utf-8"), 9)
    return BOOT_MAGIC + b"%08x" % len(content) + content


def _text(name: str) -> str:
    *folders, module = name.split(".")
    return files("lamella").joinpath(*folders, f"{module}.py").read_text("utf-8")


def _bare(source: str) -> str:
    """The module without comment lines and docstrings: half as many bytes to send at every connection.

    Lines are taken out and none is rewritten: `ast.unparse` may use what only this Python understands.
    """
    lines: list[str | None] = list(source.splitlines())
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        for text in [one for one in body if _is_text(one)] if isinstance(body, list) else []:
            instead = " " * text.col_offset + "pass" if len(body or ()) == 1 else None
            lines[text.lineno - 1 : text.end_lineno] = [instead] + [None] * ((text.end_lineno or 0) - text.lineno)
    return "\n".join(line for line in lines if line is not None and line.strip() and not line.lstrip().startswith("#"))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
