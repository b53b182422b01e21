"""Where zstd comes from: the first found of the standard library (3.14), `backports.zstd` and `zstandard`."""

from __future__ import annotations

from typing import Any

from lamella.base.errors import UsageError


def provider() -> str:
    """Name of the zstd module in use, empty if none is installed."""
    for name in ("compression.zstd", "backports.zstd", "zstandard"):
        try:
            __import__(name)
        except ImportError:
            continue
        return name
    return ""


def load() -> tuple[str, Any]:
    """The name of the zstd module in use, and the module. Raises UsageError without one."""
    name = provider()
    if not name:
        hint = "install backports.zstd or zstandard, or use --compression portable"
        raise UsageError("no zstd provider is installed", hint=hint)
    module = __import__(name, fromlist=["_"])
    return name, module
