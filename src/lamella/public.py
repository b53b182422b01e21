"""Where the names of the public interface come from; __init__.pyi tells type checkers the same."""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "api.host": "Host",
    "api.vault": "PrunedSnapshots Vault VolumeSnapshot open",
    "base.errors": "CheckpointLost IntegrityError Interrupted KeyRefused LamellaError Locked NoRepository"
    " NothingMatched ObjectNotFound RepositoryError RolledBack SourceAtRisk SourceError StoreError StoreFull"
    " StoreRefused StoreUnavailable UnknownFormat UsageError",
    "base.events": "Event Progress Reporter Warned",
    "crypto.recovery": "recovery_key",
    "crypto.slots": "Secret key_file passphrase",
    "facade": "create_repository mirror open_repository source",
    "memory.host": "machine_name",
    "operations.backup.story": "BackupOptions BackupPlan BackupResult FailedRequest Outcome Pace Request VolumeResult"
    " execute_together plan_backup",
    "operations.copy.copy": "CopyOptions CopyPlan CopyResult plan_copy",
    "operations.look.diff": "DiffResult compare write_map",
    "operations.look.diff_source": "SourceDiff compare_source",
    "operations.look.sizes": "Sizes Totals sizes_of totals_of",
    "operations.mirror.mirror": "MirrorResult",
    "operations.moments.monitor": "MonitorResult monitor",
    "operations.prune.retaining": "Policy RetentionPlan plan_retention",
    "operations.prune.retention": "Age Retention Thinning",
    "operations.restore.restore": "RestoreOptions RestorePlan RestoreResult plan_restore",
    "operations.shared.change_map": "ChangeMap read_map",
    "operations.shared.findings": "Finding VerifyResult",
    "operations.shared.heads": "fingerprint",
    "operations.shared.selection": "Selected select",
    "operations.shared.streaming": "read_document",
    "operations.verify.verify": "VerifyOptions verify",
    "repository.create": "Created SlotWanted",
    "repository.repository": "Repository",
    "sources.base": "Source",
}
HOME_OF = {name: f"lamella.{home}" for home, names in _HOMES.items() for name in names.split()}
"""Public name -> the module that it comes from."""


def found(name: str) -> object:
    """The value of a public name, imported now. Raises AttributeError for any other name."""
    home = HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'lamella' has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    return value
