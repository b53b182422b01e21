"""The findings of a verification: values, never exceptions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lamella.format.lost import Address

if TYPE_CHECKING:
    from lamella.packs.coverage import PackCoverage

DAMAGE, INCOMPLETE, NOTE = "damage", "incomplete", "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be.

    `kind`: commit, pack, blob, file, tree, chunk, document, name, run, source, state, record. `severity`: "damage";
    "incomplete" where a volume that should have been saved was not; or "note". `obj` is the object's name or
    `VOLUME@SNAPSHOT`, `affects` the snapshots that need it, as far as known.
    """

    kind: str
    severity: str
    obj: str
    message: str
    affects: tuple[str, ...] = ()


@dataclass(slots=True)
class VerifyResult:
    """The outcome: what was checked, what was found, and what cannot be restored (as `VOLUME@SNAPSHOT`).

    `checked_bytes` are contents that were read and compared, `checked_chunks` those found, `checked_objects` commits,
    clear files, packs and manifests. `bad` are the addresses at which a blob does not open, `recorded` how many of
    them were published for other hosts.
    """

    checked_bytes: int = 0
    checked_chunks: int = 0
    checked_objects: int = 0
    findings: list[Finding] = field(default_factory=list)
    unrestorable: list[str] = field(default_factory=list)
    bad: set[Address] = field(default_factory=set)
    recorded: int = 0
    seconds: float = 0.0
    cold: dict[str, int] = field(default_factory=dict)
    """Packs that must be thawed before anybody can read them, with their bytes: neither damaged nor proven."""
    coverage: PackCoverage | None = None
    """At level full, or with a budget: what this host has read of the packs so far, the runs before included."""

    @property
    def damaged(self) -> bool:
        """Whether anything was found that is not as it was written."""
        return any(finding.severity == DAMAGE for finding in self.findings)

    @property
    def incomplete(self) -> bool:
        """Whether a volume that should have been saved was not."""
        return any(finding.severity == INCOMPLETE for finding in self.findings)

    def damage(self, kind: str, obj: str, message: str) -> None:
        """Add a finding of damage, once."""
        self._add(Finding(kind, DAMAGE, obj, message))

    def not_saved(self, obj: str, message: str) -> None:
        """Add a volume that a run should have saved and did not, once."""
        self._add(Finding("run", INCOMPLETE, obj, message))

    def note(self, kind: str, obj: str, message: str) -> None:
        """Add something worth knowing that endangers no restore."""
        self.findings.append(Finding(kind, NOTE, obj, message))

    def must_thaw(self, pack: str, size: int = 0) -> None:
        """Remember a pack that nobody can read before it is thawed, and its bytes where they are known."""
        self.cold[pack] = max(size, self.cold.get(pack, 0))

    def cannot_restore(self, text: str) -> None:
        """Remember a snapshot that cannot be restored completely."""
        if text not in self.unrestorable:
            self.unrestorable.append(text)

    def _add(self, finding: Finding) -> None:
        if finding not in self.findings:
            self.findings.append(finding)
