"""The result of a repair, or of its dry run: values for the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lamella.format.lost import Range
from lamella.operations.shared.findings import Finding

ASIDE, BACK, STORED, REBUILT, RECORDED, LEFT = "moved aside", "put back", "stored anew", "rebuilt", "recorded", "left"
GIVEN_UP = "given up"


@dataclass(frozen=True, slots=True)
class RepairStep:
    """One step: what was done (`left`: nothing could be), to which object or snapshot, and how or why."""

    did: str
    obj: str
    message: str = ""

    def row(self) -> dict[str, str]:
        """For JSON."""
        return {"action": self.did, "object": self.obj, "message": self.message}


@dataclass(frozen=True, slots=True)
class Gone:
    """The parts of a snapshot that cannot be brought back: ranges of bytes, documents."""

    obj: str
    lost_bytes: int
    ranges: tuple[Range, ...]
    documents: tuple[str, ...]

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "snapshot": self.obj,
            "lost_bytes": self.lost_bytes,
            "ranges": [{"start": start, "end": end} for start, end in self.ranges],
            "documents": list(self.documents),
        }


@dataclass(slots=True)
class RepairResult:
    """The outcome. `dry`: nothing was written. `problems`: why the history must be accepted before more can be done."""

    dry: bool
    actions: list[RepairStep] = field(default_factory=list)
    gone: list[Gone] = field(default_factory=list)
    found: list[Finding] = field(default_factory=list)
    """The findings of the examination at the beginning."""
    remaining: list[Finding] = field(default_factory=list)
    """The findings at the end; of a dry run, everything."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stored_blobs: int = 0
    stored_bytes: int = 0
    seconds: float = 0.0

    @property
    def damaged(self) -> bool:
        """Whether something is still lost or damaged."""
        return bool(self.gone) or any(one.severity == "damage" for one in self.remaining)

    def did(self, what: str, obj: str, message: str = "") -> None:
        """Add a step."""
        self.actions.append(RepairStep(what, obj, message))
