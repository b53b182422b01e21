"""Restoring a domain of libvirt: all disks of one moment to new files, then its definition (docs/decisions/0065).

The definition comes last and in one step: until then libvirt knows nothing of the restore, and whoever has the name
stays as he is. Files of a domain that is defined are never touched, whatever they are called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lamella.base.durable import write_durably
from lamella.base.errors import LamellaError, NothingMatched, UsageError
from lamella.operations.restore.restore import RestoreOptions
from lamella.operations.restore.volumes import VolumesPlan, plan_volumes
from lamella.operations.shared.selection import Selected
from lamella.operations.shared.streaming import read_document
from lamella.repository.repository import Repository
from lamella.sources.local_target import PARTIAL_SUFFIX
from lamella.sources.virt.defining import STATE, DomainTarget, KnownDomains, chosen_uuid, domain_name
from lamella.sources.virt.definition import Definition, Wishes, redefined
from lamella.sources.virt.domain_xml import parsed

_PREFIX = b"libvirt:"
_DEFINITION, _VARIABLES = "domain.xml", "nvram"


@dataclass(frozen=True, slots=True)
class DomainPlan:
    """What will be restored and defined."""

    name: str
    uuid: str
    directory: Path
    volumes: VolumesPlan
    definition: Definition
    replaced: bool
    """Whether a domain of that name gets this definition."""
    renewed: bool
    """Whether the domain gets another UUID, and other MAC addresses, than it had."""
    documents: Mapping[str, bytes]
    variables: Path | None
    """Where the UEFI variables go."""
    target: DomainTarget

    @property
    def missing(self) -> list[str]:
        """Disks of the saved domain that the snapshot does not hold."""
        return self.definition.missing_disks

    def define(self) -> str:
        """Define the domain, whose disks are there. Returns where an older state of its TPM is.

        Raises LamellaError; then the domain is not defined.
        """
        if self.variables is not None:
            try:
                write_durably(self.variables, self.documents[_VARIABLES])
            except OSError as error:
                raise LamellaError(f"cannot write {self.variables}: {error.strerror}", obj=self.name) from error
        states = {name: content for name, content in self.documents.items() if STATE.fullmatch(name)}
        return self.target.define(self.definition.xml, self.uuid, states)


def plan_domain(
    repo: Repository, selected: Selected, text: str, pool: str | None, options: RestoreOptions
) -> DomainPlan:
    """Decide how the domain of a saved disk would be restored as `libvirt:NAME`; its files go to `pool`.

    Raises UsageError, SourceError, IntegrityError, StoreError.
    """
    disks = disks_of_moment(repo, selected)
    documents = {row.name: read_document(repo, selected, row.name) for row in selected.snapshot.added.documents}
    if _DEFINITION not in documents:
        raise NothingMatched(f"{selected.text} has no document {_DEFINITION}", obj=selected.text)
    target = DomainTarget(domain_name(text), overwrite=options.overwrite)
    known = target.known()
    directory = target.directory(pool)
    saved = documents[_DEFINITION].decode("utf-8", "replace")
    uuid, renewed = chosen_uuid(parsed(saved).uuid, known)
    stem = _free_stem(directory, f"{target.name}-{selected.snapshot.name}", disks, known)
    paths = {disk: directory / f"{stem}-{disk}.img" for disk in disks}
    variables = directory / f"{stem}_VARS.fd" if _VARIABLES in documents else None
    wishes = Wishes(
        target.name,
        uuid,
        renewed,
        {disk: str(path) for disk, path in paths.items()},
        "" if variables is None else str(variables),
    )
    definition = redefined(saved, wishes, target)
    files = RestoreOptions(options.workers)  # what is there is compared, and never replaced
    volumes = plan_volumes(repo, [(one, paths[disk]) for disk, one in disks.items()], directory, files)
    return DomainPlan(
        target.name,
        uuid,
        directory,
        volumes,
        definition,
        bool(known.replaced),
        renewed,
        documents,
        variables,
        target,
    )


def disks_of_moment(repo: Repository, selected: Selected) -> dict[str, Selected]:
    """All disks of the domain that the run of a snapshot saved, by their targets. Raises UsageError."""
    domain, _, _ = selected.volume.identity.rpartition(b":")
    if not domain.startswith(_PREFIX):
        hint = "restore the volume to a file"
        raise UsageError(f"{selected.volume_name} is no disk of a domain of libvirt", obj=selected.text, hint=hint)
    found: dict[str, Selected] = {}
    names = repo.catalogue.shown_names()
    wanted = (selected.snapshot.name, selected.snapshot.ref.writer)
    for volume in repo.catalogue.volumes.values():
        start, _, disk = volume.identity.rpartition(b":")
        for one in volume.snapshots if start == domain else ():
            if (one.name, one.ref.writer) == wanted:
                found[_disk_name(disk)] = Selected(names[volume.volume_id], volume, one)
    return dict(sorted(found.items()))


def _disk_name(text: bytes) -> str:
    name = text.decode("ascii", "replace")
    if not name.isalnum():
        raise UsageError(f"not the name of a disk: {name!r}")
    return name


def _free_stem(directory: Path, wanted: str, disks: Mapping[str, Selected], known: KnownDomains) -> str:
    """How the names of the files begin: such that no domain has one of them. What a killed restore left is taken."""
    number = 1
    while True:
        stem = wanted if number == 1 else f"{wanted}-{number}"
        paths = {str(directory / f"{stem}-{disk}.img{end}") for disk in disks for end in ("", PARTIAL_SUFFIX)}
        if not (paths | {str(directory / f"{stem}_VARS.fd")}) & known.files:
            return stem
        number += 1
