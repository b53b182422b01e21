"""Encrypted, deduplicating, incremental backups of virtual machine volumes: the public interface, all of it.

    with lamella.open_repository("/vault", key=lamella.key_file(content), host=host, read_only=False) as repo:
        saved = lamella.plan_backup(repo, [lamella.Request(None, lamella.source("disk.img", host=host))]).execute()
        chosen = lamella.select(repo, [f"disk@{saved.snapshot}"])
        lamella.plan_restore(repo, chosen[0], Path("copy.img")).execute()
        assert not lamella.verify(repo, chosen).damaged

A name is imported when it is first used: the table below says from where, and __init__.pyi tells type checkers. Nothing
is read from the environment: the caller says in a `Host` what this host is and where it keeps its state. Names that are
not in `__all__` may change at any time.
"""

_HOMES = {
    "base.errors": "CheckpointLost IntegrityError Interrupted KeyRefused LamellaError Locked NoRepository"
    " NothingMatched ObjectNotFound RepositoryError RolledBack SourceAtRisk SourceError StoreError StoreFull"
    " StoreRefused StoreUnavailable UnknownFormat UsageError",
    "base.events": "Event Progress Reporter Warned",
    "crypto.recovery": "recovery_key",
    "crypto.slots": "Secret key_file passphrase",
    "facade": "create_repository mirror open_repository source",
    "memory.host": "Host machine_name",
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
_HOME_OF = {name: f"lamella.{home}" for home, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    from importlib import import_module  # nothing is imported beforehand: an early Ctrl-C must find an entry point

    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(home), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names, also those not imported yet."""
    return sorted({*globals(), *__all__})
