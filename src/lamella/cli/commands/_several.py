"""The result of a backup to several destinations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lamella.base.errors import Absent
from lamella.cli.output import INCOMPLETE

if TYPE_CHECKING:
    from lamella.cli.commands.backup import BackupDestination


def word(destinations: Sequence[BackupDestination]) -> str:
    """The result in one word."""
    if not any(one.code for one in destinations):
        return "complete"
    return "incomplete" if any(one.committed for one in destinations) else "failed"


def exit_code(destinations: Sequence[BackupDestination], *, dry_run: bool) -> int:
    """0 if all is done, 3 if a part of it is, else that of the first failure; what was absent counts only alone."""
    there = [one for one in destinations if not isinstance(one.error, Absent)]
    failed = [one for one in there if one.code]
    if not there:
        return Absent.exit_code
    if not failed:
        return 0
    return INCOMPLETE if dry_run or any(one.committed for one in there) else failed[0].code
