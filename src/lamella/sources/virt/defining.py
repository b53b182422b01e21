"""Defining a restored domain: what libvirt knows already, where its disks may lie, and the definition itself."""

from __future__ import annotations

import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.etree.ElementTree import Element

from lamella.base.durable import sync_directory, write_new
from lamella.base.errors import LamellaError, UsageError
from lamella.sources.virt.domain_xml import tree
from lamella.sources.virt.library import LibvirtError, library, told

PREFIX: Final = "libvirt:"
_NAME: Final = re.compile(r"[^\W.-][\w .+-]{0,63}")
STATE: Final = re.compile(r"[\w-]{1,64}\.permall")
"""Names of the documents that hold the state of a TPM."""
_INACTIVE: Final = 2
"""libvirt's VIR_DOMAIN_XML_INACTIVE."""
_METADATA_ONLY: Final = 2
"""libvirt's VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY."""
_TPM: Final = Path("/var/lib/libvirt/swtpm")
_OURS: Final = "lamella-"


def domain_name(text: str) -> str:
    """The name in `libvirt:NAME`. Raises UsageError."""
    name = text.removeprefix(PREFIX)
    if not _NAME.fullmatch(name):
        raise UsageError(f"not a name for a domain: {name!r}", obj=text, hint="write --to libvirt:NAME")
    return name


@dataclass(frozen=True, slots=True)
class KnownDomains:
    """What libvirt knows before a domain is restored."""

    replaced: str
    """The UUID of the domain that has the wanted name already; empty if there is none."""
    uuids: frozenset[str]
    files: frozenset[str]
    """Every path that a definition names."""


class DomainTarget:
    """The place of a restored domain in the libvirt of this host."""

    def __init__(self, name: str, *, overwrite: bool) -> None:
        self.name = name
        self._overwrite = overwrite

    def known(self) -> KnownDomains:
        """Raises UsageError for a domain of that name that may not be replaced, LibvirtError."""
        uuids: set[str] = set()
        files: set[str] = set()
        replaced = ""
        with _connection() as connection, told():
            for domain in connection.listAllDomains(0):
                if domain.name() == self.name:
                    self._require_replaceable(domain)
                    replaced = domain.UUIDString()
                uuids.add(domain.UUIDString())
                for flags in (0, _INACTIVE):
                    files.update(_paths(tree(domain.XMLDesc(flags))))
        return KnownDomains(replaced, frozenset(uuids), frozenset(files))

    def _require_replaceable(self, domain: Any) -> None:  # noqa: ANN401 - libvirt has no types
        """Raises UsageError."""
        if not self._overwrite:
            raise self._refusal("exists already", "add --overwrite once it is shut off, or choose another name")
        if domain.isActive():
            raise self._refusal("runs", "shut it off first, or choose another name")
        if domain.hasManagedSaveImage(0):
            raise self._refusal(
                "has saved memory, which belongs to its present disks", f"virsh managedsave-remove {self.name}"
            )
        others = [one for one in domain.listAllCheckpoints(0) if not one.getName().startswith(_OURS)]
        if others or domain.snapshotNum(0):
            raise self._refusal("has snapshots or checkpoints of its present disks", "remove them first")

    def _refusal(self, what: str, hint: str) -> UsageError:
        return UsageError(f"the domain {self.name} {what}", obj=f"{PREFIX}{self.name}", hint=hint)

    def directory(self, pool: str | None) -> Path:
        """Where the disks go: a directory, or that of a storage pool. Raises UsageError, LibvirtError."""
        hint = "name a directory or a storage pool of directories: --pool DIR"
        if pool is not None and "/" in pool:
            path = Path(pool).absolute()
        else:
            with _connection() as connection:
                try:
                    with told():
                        text = connection.storagePoolLookupByName(pool or "default").XMLDesc(0)
                except LibvirtError as error:
                    raise UsageError(f"libvirt has no storage pool {pool or 'default'}", hint=hint) from error
            found = tree(text)
            path = Path((found.get("type") in ("dir", "fs", "netfs") and found.findtext("target/path")) or "")
        if not path.is_absolute() or not path.is_dir():
            raise UsageError(f"there is no directory {path}", obj=str(path), hint=hint)
        return path

    def define(self, text: str, identity: str, states: Mapping[str, bytes]) -> str:
        """Put the state of a TPM into its place, and define the domain. Returns where an older state is.

        Raises UsageError if the domain may no longer be replaced, LibvirtError; then nothing was defined.
        """
        self.known()
        with _connection() as connection, told():
            state = _TpmState(identity, states)
            try:
                state.place()
                defined = connection.defineXML(text)
            except BaseException:
                state.undo()
                raise
            for one in defined.listAllCheckpoints(0):  # of the disks that the domain had before
                one.delete(_METADATA_ONLY)
        return str(state.older or "")

    # -- what this host has -------------------------------------------------------------------------------------------

    def is_public(self, path: str) -> bool:
        """Whether there is a file that every user of the host may read."""
        try:
            there = Path(path).resolve(strict=True)
            if not stat.S_ISREG(there.stat().st_mode) or not there.stat().st_mode & stat.S_IROTH:
                return False
            return all(above.stat().st_mode & stat.S_IXOTH for above in there.parents)
        except (OSError, ValueError):
            return False

    def has_network(self, kind: str, name: str) -> bool:
        """Whether there is a virtual network (kind `network`) or a network device of that name."""
        if kind != "network":
            return bool(re.fullmatch(r"[^/\s]{1,15}", name)) and Path("/sys/class/net", name).exists()
        with _connection() as connection, suppress(LibvirtError), told():
            return bool(connection.networkLookupByName(name))
        return False


def chosen_uuid(saved: str, known: KnownDomains) -> tuple[str, bool]:
    """The UUID of the restored domain, and whether another domain has the saved one."""
    elsewhere = saved in known.uuids and saved != known.replaced
    try:
        uuid.UUID(saved)
    except ValueError:
        elsewhere = True
    return known.replaced or (str(uuid.uuid4()) if elsewhere else saved), elsewhere


class _TpmState:
    """The state of an emulated TPM, where libvirt's swtpm looks for it."""

    def __init__(self, identity: str, files: Mapping[str, bytes]) -> None:
        self._files = files
        self._place = _TPM / identity / "tpm2"
        self._placed = False
        self.older: Path | None = None
        """Where a state is that was there before."""

    def place(self) -> None:
        """Write it; nothing for a domain without. Raises LamellaError."""
        if not self._files:
            return
        place = self._place
        try:
            place.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            made = place.with_name("tpm2.lamella-partial")
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir(0o700)
            for name, content in self._files.items():
                write_new(made / name, content)
            sync_directory(made)
            if place.exists():
                older = place.with_name(f"tpm2.before-{uuid.uuid4().hex[:8]}")
                place.rename(older)
                self.older = older
            made.rename(place)
            self._placed = True
            sync_directory(place.parent)
        except OSError as error:
            raise LamellaError(f"cannot write the state of the TPM: {error.strerror}", obj=str(place)) from error

    def undo(self) -> None:
        """As it was before."""
        if self._placed:
            shutil.rmtree(self._place, ignore_errors=True)
        if self.older is not None:
            self.older.rename(self._place)


def _paths(root: Element) -> Iterator[str]:
    for one in root.iter():
        yield from (value for value in (*one.attrib.values(), (one.text or "").strip()) if value.startswith("/"))


@contextmanager
def _connection() -> Iterator[Any]:
    with told():
        found = library().open(None)
    try:
        yield found
    finally:
        with suppress(LibvirtError), told():
            found.close()
