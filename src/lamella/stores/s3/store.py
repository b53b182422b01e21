"""A store in an S3 bucket. A PUT that was answered is durable, so `sync` has nothing to do.

Objects are created and never replaced: with `If-None-Match: *` where the service enforces it, otherwise after a check
that the name is free. In the second case two *processes* can put different bytes under one name at the same moment.
Names of packs, commits and segments contain the hash of their bytes, so this matters only for two `init` at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, cast

from lamella.base.errors import ObjectNotFound, StoreError, StoreRefused, StoreUnavailable, UsageError
from lamella.base.names import PACKS
from lamella.base.trust import Clear, Sealed
from lamella.stores.base import MOST_OTHERS, Abilities, Entry, checked_name, checked_prefix, range_end
from lamella.stores.cold import LEAST_COLD
from lamella.stores.memory import NameLocks, ReadersWriterLock
from lamella.stores.s3.place import S3Place, parse_place
from lamella.stores.versions import Judge

if TYPE_CHECKING:
    from lamella.stores.cold import Warmth
    from lamella.stores.s3.client import S3Client

_SMALL = 1 << 16
"""Bytes of an object that may be sent twice."""


class S3Store:
    """Objects below a prefix of a bucket; made by `open`. Its lock holds between the users of one handle only."""

    def __init__(self, place: S3Place, url: str, client: S3Client, *, read_only: bool) -> None:
        self._place = place
        self._url = url
        self._open_client: S3Client | None = client
        writes = not read_only
        deletes = writes and not place.append_only
        self._abilities = Abilities(
            exclusive_lock=False,
            delete=deletes,
            write=writes,
            immutable=place.append_only,
            cold_from=LEAST_COLD if place.cold_after else 0,
        )
        self._lock = ReadersWriterLock()
        self._names = NameLocks()
        self._refuses_taken = client.is_amazon
        self._asked = client.is_amazon
        """The service is known to refuse a put under a taken name: no look before it is needed."""
        self._versions: dict[str, str] = {}
        self._cold: set[str] = set()

    @classmethod
    def open(
        cls,
        place: str,
        /,
        *,
        create: bool = False,
        read_only: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> S3Store:
        """Open the store at `//bucket/prefix?options`; `environment` holds the usual AWS variables.

        Makes no request, except with `create`: then the bucket must exist. Raises UsageError, NoRepository, StoreError.
        """
        found = parse_place(place, environment or {})
        store = cls(found, f"s3:{place}", _client(found, environment or {}), read_only=read_only)
        if create:
            store._client.require_bucket()
        return store

    @property
    def url(self) -> str:
        """The place as it was given; it holds no credentials."""
        return self._url

    @property
    def abilities(self) -> Abilities:
        """No lock between processes; immutable where `append-only=yes` says so (`lamella doctor` proves it)."""
        return self._abilities

    def put(self, name: str, content: Sealed | Clear) -> None:
        """Store an object, all or nothing; durable on return.

        Raises StoreRefused for an existing name with other bytes and for anything the service forbids, StoreFull,
        StoreUnavailable, NoRepository.
        """
        self._check_writable(checked_name(name))
        storage_class = self._place.storage_class if name.startswith(PACKS) else None
        with self._names.held(name):
            if not self._refuses_taken and self._holds(name, content):
                return
            if self._client.put(name, content, storage_class=storage_class):
                if not self._asked and len(content) <= _SMALL:
                    self._ask(name, content, storage_class)
                return
            self._refuses_taken = True
            if not self._holds(name, content):
                raise StoreUnavailable("the name was taken and is free again", obj=name)

    def _ask(self, name: str, content: bytes, storage_class: str | None) -> None:
        """Learn whether the service refuses taken names: then no put needs a look before. Once, with the same bytes."""
        self._asked = True
        with suppress(StoreError):
            self._refuses_taken = not self._client.put(name, content, storage_class=storage_class)

    def _holds(self, name: str, content: bytes) -> bool:
        """Whether the object is there with these bytes. Raises StoreRefused if it holds others."""
        try:
            same = self._client.size(name) == len(content) and (not content or self.get(name) == content)
        except ObjectNotFound:
            return False
        if not same:
            raise StoreRefused("the store holds other bytes under this name", obj=name)
        return True

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly `length` bytes from `offset` (all from there when None).

        Raises ObjectNotFound; StoreError when the object ends before; StoreUnavailable, StoreRefused.
        """
        checked_name(name)
        part = None
        if offset >= 0 and (length is None or length > 0):
            end = None if length is None else offset + length
            part = self._client.read(name, offset, end, self._versions.get(name, ""))
        if part is None:
            range_end(name, self.stat(name), offset, length)
            return b""
        range_end(name, part.size, offset, length)
        return part.content

    def stat(self, name: str) -> int:
        """Return the object's size in bytes. Raises ObjectNotFound."""
        return self._client.size(checked_name(name), self._versions.get(name, ""))

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix`, a request for each 1000. Raises StoreRefused for too many invalid names."""
        return self._listed(checked_prefix(prefix), self._client)

    def _listed(self, prefix: str, client: S3Client) -> Iterator[Entry]:
        invalid = 0
        for row in client.listing(prefix):
            try:
                if row.may_be_cold:
                    self._cold.add(checked_name(row.name))
                yield Entry(checked_name(row.name), row.size)
            except StoreRefused:
                invalid += 1
                if invalid > MOST_OTHERS:
                    text = f"more than {MOST_OTHERS} objects in the bucket have invalid names"
                    raise StoreRefused(text, obj=self._url) from None

    def delete(self, name: str) -> None:
        """Remove an object; no error if there is none. Raises StoreRefused where that is not allowed."""
        self._check_writable(checked_name(name))
        if not self._abilities.delete:
            raise StoreRefused("this store was opened for adding only", obj=name)
        self._client.delete(name)

    def sync(self) -> None:
        """Nothing to wait for: S3 answers a PUT when it is durable."""
        self._client  # noqa: B018 - raises when closed

    def lock(self, *, exclusive: bool, wait_seconds: float = 0.0) -> AbstractContextManager[None]:
        """Hold a lock between the users of this handle. Other processes are not excluded, as `abilities` says."""
        return self._lock.held(exclusive=exclusive, wait_seconds=wait_seconds)

    def close(self) -> None:
        """Close connections; further calls raise StoreError."""
        client, self._open_client = self._open_client, None
        if client is not None:
            client.close()

    # -- versions and probes (lamella.stores.versions) ----------------------------------------------------------------

    def reinstate(self, name: str, is_genuine: Judge) -> bool:
        """Read from an older version of `name` that `is_genuine` accepts, from now on; False if there is none."""
        try:
            for row in self._client.versions(checked_name(name)):
                part = self._client.read(name, 0, None, row.version)
                if part is not None and is_genuine(part.content):
                    self._versions[name] = row.version
                    return True
        except (StoreRefused, ObjectNotFound):
            return False  # this credential may not read versions, or they are gone meanwhile
        return False

    def try_replacing(self, name: str, content: bytes) -> bool:
        """Try to put other bytes under a taken name, without the condition; True if a reader gets them now."""
        try:
            self._client.put(checked_name(name), content, new=False)
        except StoreRefused:
            return False
        return self.get(name) == content

    def try_erasing(self, name: str) -> bool:
        """Try to remove an object, version by version and as such; True if a reader does not find it any more."""
        self._versions.pop(checked_name(name), None)
        with suppress(StoreRefused):
            for row in self._client.versions(name):
                self._client.delete(name, row.version)
        with suppress(StoreRefused):
            self._client.delete(name)
        return not self._is_there(name)

    def _is_there(self, name: str) -> bool:
        try:
            self.stat(name)
        except ObjectNotFound:
            return False
        return True

    # -- what must be thawed (lamella.stores.cold) ---------------------------------------------------------------------

    def cold_names(self) -> Collection[str]:
        """Names in a class that may not be read at once, by the listings made so far."""
        return self._cold

    def warmth(self, name: str) -> Warmth:
        """Whether an object can be read now. Raises ObjectNotFound."""
        return self._client.warmth(checked_name(name))

    def thaw(self, name: str, days: int, tier: str) -> None:
        """Ask the service for a copy that can be read for so many days. Raises StoreRefused, ObjectNotFound."""
        self._client.thaw(checked_name(name), days, tier)

    def _check_writable(self, name: str) -> None:
        if not self._abilities.write:
            raise StoreRefused("the store was opened for reading only", obj=name)

    @property
    def _client(self) -> S3Client:
        if self._open_client is None:
            raise StoreError("the store is closed", obj=self._url)
        return self._open_client


def _client(place: S3Place, environment: Mapping[str, str]) -> S3Client:
    try:
        module = import_module("lamella.stores.s3.client")
    except ImportError as error:
        hint = "install it: pip install 'lamella[s3]', or your distribution's python3-botocore"
        raise UsageError(f"s3: needs the Python package botocore ({error})", hint=hint) from error
    return cast("S3Client", module.S3Client(place, environment))
