"""Saving a tree of files: its volume is made on what the last snapshot has, and only what is new is read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.errors import IntegrityError
from lamella.crypto.derive import prf
from lamella.operations.backup.mapped import changes
from lamella.operations.backup.plan import INCREMENTAL
from lamella.operations.backup.stages import Frozen, Read, Way
from lamella.operations.shared import reading
from lamella.operations.shared.completeness import is_complete
from lamella.operations.shared.snapshot_bytes import SnapshotBytes
from lamella.operations.writing.chunks import VolumeRead, Watch
from lamella.packs.tree import Tree
from lamella.sources.tree.known import KnownFile, KnownTree, rebuilt
from lamella.sources.tree.layout import ContentPlace
from lamella.sources.tree.reader import FileTree
from lamella.sources.tree.source import FrozenTree

if TYPE_CHECKING:
    from lamella.history.catalogue import Snapshot
    from lamella.operations.backup.read import Attempts
    from lamella.repository.repository import Repository
    from lamella.sources.tree.image import TreeImage


def read_files(attempts: Attempts, frozen: Frozen, way: Way) -> Read:
    """Read what is new in a tree. Raises IntegrityError, StoreError."""
    volume, repo, log2 = cast(FrozenTree, frozen.volume), attempts.repo, frozen.shape.chunk_log2
    shape = frozen.shape
    place = repo.host.cache_dir / "trees" / f"{repo.repo_id.hex()}-{shape.volume_id.hex()}"
    file = KnownFile(place, prf(repo.keys.local_key("tree"), shape.volume_id))
    known = _known(repo, way, file, log2)
    image = volume.image(known, log2)
    frozen = replace(frozen, shape=shape._replace(size=image.size))
    base = None if way.base is None else repo.tree(way.base)
    if known is None:
        tasks = reading.everything(image, frozen.shape)
    else:
        way = replace(way, mode=INCREMENTAL, reason="")
        tasks = changes(image, frozen.shape, image.delta(), ChunkSet())
    reader, name = attempts.reader(frozen, base), frozen.plan.volume
    tree = reader.read(image, tasks, name, attempts.reporter, attempts.recorder.watch(frozen, way))
    tree = _corrected(attempts, frozen, image, tree)
    volume.finished(image)
    for warning in volume.warnings(image):
        attempts.warn(f"{name}: {warning}")
    try:
        file.save(tree.root, image.known(), len(image.plan.scan.folders), image.known_folders())
    except OSError as error:
        attempts.warn(f"{name}: the next run reads its list of files from the repository: {error.strerror}")
    return Read(frozen, way, tree, int(image.consistency()))


def _known(repo: Repository, way: Way, file: KnownFile, log2: int) -> KnownTree | None:
    """What the base has, if this host can rely on it; None: all files are read."""
    base = way.base
    if base is None or base.added.chunk_log2 != log2:
        return None
    # Another writer could say of a file that it did not change.
    if way.mode != INCREMENTAL and not (base.ref.writer == repo.own_writer and is_complete(repo, base)):
        return None
    known = file.load(base.added.root, log2)
    if known is None:
        try:
            known = _rebuilt(repo, base, log2)
        except IntegrityError:
            return None  # whoever verifies says so; here all files are read, and stored anew where that is needed
    return known if known.size == base.added.size else None


def _rebuilt(repo: Repository, base: Snapshot, log2: int) -> KnownTree:
    """What the base has, from the base itself. Raises IntegrityError, StoreError."""
    content = SnapshotBytes(repo, base)
    tree = FileTree(content.read, content.size)
    first = tree.superblock()
    return rebuilt(log2, tree.folders(), ContentPlace(first.owners_address, first.owners_length, 0), tree.owners_raw())


def _corrected(attempts: Attempts, frozen: Frozen, image: TreeImage, tree: VolumeRead) -> VolumeRead:
    """Write the listings anew that were read before it was known that a file in them changed."""
    shape = frozen.shape
    if not (stale := image.stale()):
        return tree
    attempts.session.flush()
    delta = Delta.bounded(1 << shape.chunk_log2, shape.size, shape.size, stale, ChunkSet())
    tasks = changes(image, shape, delta, ChunkSet())
    reader = attempts.reader(frozen, Tree(shape, tree.root))
    again = reader.read(image, tasks, frozen.plan.volume, attempts.reporter, Watch())
    figures = again.figures._replace(changed_chunks=0)
    return VolumeRead(again.root, type(figures)(*(a + b for a, b in zip(tree.figures, figures, strict=True))))
