"""What type checkers know of the public names; a test holds this list and the table in __init__.py together."""

from lamella.api.host import Host as Host
from lamella.api.vault import (
    PrunedSnapshots as PrunedSnapshots,
    Vault as Vault,
    VolumeSnapshot as VolumeSnapshot,
    open as open,
)
from lamella.base.errors import (
    CheckpointLost as CheckpointLost,
    IntegrityError as IntegrityError,
    Interrupted as Interrupted,
    KeyRefused as KeyRefused,
    LamellaError as LamellaError,
    Locked as Locked,
    NoRepository as NoRepository,
    NothingMatched as NothingMatched,
    ObjectNotFound as ObjectNotFound,
    RepositoryError as RepositoryError,
    RolledBack as RolledBack,
    SourceAtRisk as SourceAtRisk,
    SourceError as SourceError,
    StoreError as StoreError,
    StoreFull as StoreFull,
    StoreRefused as StoreRefused,
    StoreUnavailable as StoreUnavailable,
    UnknownFormat as UnknownFormat,
    UsageError as UsageError,
)
from lamella.base.events import Event as Event, Progress as Progress, Reporter as Reporter, Warned as Warned
from lamella.crypto.recovery import recovery_key as recovery_key
from lamella.crypto.slots import Secret as Secret, key_file as key_file, passphrase as passphrase
from lamella.facade import (
    create_repository as create_repository,
    mirror as mirror,
    open_repository as open_repository,
    source as source,
)
from lamella.memory.host import machine_name as machine_name
from lamella.operations.backup.story import (
    BackupOptions as BackupOptions,
    BackupPlan as BackupPlan,
    BackupResult as BackupResult,
    FailedRequest as FailedRequest,
    Outcome as Outcome,
    Pace as Pace,
    Request as Request,
    VolumeResult as VolumeResult,
    execute_together as execute_together,
    plan_backup as plan_backup,
)
from lamella.operations.copy.copy import (
    CopyOptions as CopyOptions,
    CopyPlan as CopyPlan,
    CopyResult as CopyResult,
    plan_copy as plan_copy,
)
from lamella.operations.look.diff import DiffResult as DiffResult, compare as compare, write_map as write_map
from lamella.operations.look.diff_source import SourceDiff as SourceDiff, compare_source as compare_source
from lamella.operations.look.sizes import Sizes as Sizes, Totals as Totals, sizes_of as sizes_of, totals_of as totals_of
from lamella.operations.mirror.mirror import MirrorResult as MirrorResult
from lamella.operations.moments.monitor import MonitorResult as MonitorResult, monitor as monitor
from lamella.operations.prune.retaining import (
    Policy as Policy,
    RetentionPlan as RetentionPlan,
    plan_retention as plan_retention,
)
from lamella.operations.prune.retention import Age as Age, Retention as Retention, Thinning as Thinning
from lamella.operations.restore.restore import (
    RestoreOptions as RestoreOptions,
    RestorePlan as RestorePlan,
    RestoreResult as RestoreResult,
    plan_restore as plan_restore,
)
from lamella.operations.shared.change_map import ChangeMap as ChangeMap, read_map as read_map
from lamella.operations.shared.findings import Finding as Finding, VerifyResult as VerifyResult
from lamella.operations.shared.heads import fingerprint as fingerprint
from lamella.operations.shared.selection import Selected as Selected, select as select
from lamella.operations.shared.streaming import read_document as read_document
from lamella.operations.verify.verify import VerifyOptions as VerifyOptions, verify as verify
from lamella.repository.create import Created as Created, SlotWanted as SlotWanted
from lamella.repository.repository import Repository as Repository
from lamella.sources.base import Source as Source

__all__: list[str]
_HOME_OF: dict[str, str]
