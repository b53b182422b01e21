"""What a test needs from the machine, and what happens when it is not there."""

from __future__ import annotations

import os

import pytest


def required() -> frozenset[str]:
    """The features that must not be missing: the comma-separated words of LAMELLA_REQUIRE."""
    words = os.environ.get("LAMELLA_REQUIRE", "").split(",")
    return frozenset(word.strip() for word in words if word.strip())


def require(feature: str, ok: bool, reason: str) -> None:
    """Go on if `ok`; otherwise skip the running test with `reason`, or fail it if LAMELLA_REQUIRE lists `feature`.

    Features are short words: `root`, `mount`, `loop`, `btrfs`, or the name of a program such as `mkfs.ext4`.
    """
    if ok:
        return
    if feature in required():
        pytest.fail(f"{feature} is required here (LAMELLA_REQUIRE), but: {reason}", pytrace=False)
    pytest.skip(f"{feature}: {reason}")
