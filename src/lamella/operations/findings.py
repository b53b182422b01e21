"""What a verification saw: values, never exceptions."""

from __future__ import annotations

from dataclasses import dataclass, field

DAMAGE, NOTE = "damage", "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be.

    `kind`: commit, pack, blob, file, tree, chunk, document, name, source. `severity`: "damage" or "note". `obj` is the
    object's name or `VOLUME@SNAPSHOT`, `affects` the snapshots that need it, as far as known.
    """

    kind: str
    severity: str
    obj: str
    message: str
    affects: tuple[str, ...] = ()


@dataclass(slots=True)
class VerifyResult:
    """The outcome: what was checked, what was found, and what cannot be restored (as `VOLUME@SNAPSHOT`)."""

    checked_bytes: int = 0
    checked_chunks: int = 0
    findings: list[Finding] = field(default_factory=list)
    unrestorable: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def damaged(self) -> bool:
        """Whether anything worse than a note was found."""
        return any(finding.severity == DAMAGE for finding in self.findings)

    def damage(self, kind: str, obj: str, message: str) -> None:
        """Add a finding of damage, once."""
        finding = Finding(kind, DAMAGE, obj, message)
        if finding not in self.findings:
            self.findings.append(finding)

    def note(self, kind: str, obj: str, message: str) -> None:
        """Add something worth knowing that endangers no restore."""
        self.findings.append(Finding(kind, NOTE, obj, message))

    def cannot_restore(self, text: str) -> None:
        """Remember a snapshot that cannot be restored completely."""
        if text not in self.unrestorable:
            self.unrestorable.append(text)
