"""What became of a backup run, as values."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class VolumeResult:
    """What became of one volume. Sizes in bytes; `resumed_bytes` had been read by a run that was broken off."""

    volume: str
    driver: str
    mode: str
    reason: str
    source_bytes: int = 0
    read_bytes: int = 0
    sampled_bytes: int = 0
    resumed_bytes: int = 0
    changed_chunks: int = 0
    new_chunks: int = 0
    stored_bytes: int = 0
    result: str = "failed"
    consistency: int = 0
    error: str = ""


@dataclass(slots=True)
class BackupResult:
    """What became of a run. `snapshot` is empty if nothing was saved."""

    snapshot: str
    complete: bool
    seconds: float
    metadata_bytes: int
    stored_bytes: int
    fingerprint: str
    volumes: list[VolumeResult]
    warnings: list[str] = field(default_factory=list)
