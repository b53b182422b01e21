"""Where a run continues an interrupted run."""

from __future__ import annotations

from lamella.memory.ledger import ResumeMemory, ResumePoint
from lamella.operations.backup.plan import VolumePlan, partial_tree
from lamella.operations.shared.completeness import tree_is_complete
from lamella.repository.repository import Repository


def resume_point(repo: Repository, plan: VolumePlan) -> ResumePoint | None:
    """The progress of an interrupted run whose moment this host kept; None if no such run agrees in everything.

    Raises StoreError.
    """
    source = plan.request.source
    named = {
        (session.session_id, *root[2:])
        for session in repo.catalogue.sessions
        for root in session.partial_roots
        if session.writer == repo.own_writer and root[:2] == (plan.volume_id, plan.domain_id)
        # What is condemned is not relied on, also if it was one's own.
        if not repo.blobs.condemned.intersection(session.packs)
    }
    expected = (source.identity, source.driver, plan.base_root)
    found = [
        point
        for point in ResumeMemory(repo.memory, repo.keys).points(plan.volume_id)
        if (point.identity, point.driver, point.base_root) == expected
        and (point.session_id, point.root, point.size, point.chunk_log2, point.done) in named
    ]
    for point in sorted(found, key=lambda point: point.done, reverse=True):
        if tree_is_complete(repo, plan.domain_id, partial_tree(plan.volume_id, point)):
            return point
    return None
