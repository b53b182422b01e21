"""Where zstd comes from: the first found of the standard library (3.14), `backports.zstd` and `zstandard`."""

from __future__ import annotations

from typing import Any

from lamella.base.errors import UsageError


def provider(first: str = "") -> str:
    """Name of the zstd module in use, `first` if that is installed, empty if none is."""
    for name in (first, "compression.zstd", "backports.zstd", "zstandard"):
        try:
            if name:
                __import__(name)
                return name
        except ImportError:
            continue
    return ""


def load(first: str = "") -> tuple[str, Any]:
    """The name of the zstd module in use, and the module. Raises UsageError without one."""
    name = provider(first)
    if not name:
        hint = "install backports.zstd or zstandard, or use --compression portable"
        raise UsageError("no zstd provider is installed", hint=hint)
    module = __import__(name, fromlist=["_"])
    return name, module
