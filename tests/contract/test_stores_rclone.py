"""The store on a remote of rclone obeys the contract, with the real program: a directory here, and a bucket of S3."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lamella.base.errors import ObjectNotFound, StoreUnavailable
from lamella.base.names import MARKER
from lamella.base.trust import Clear, Sealed
from lamella.stores.base import Store
from lamella.stores.rclone.daemon import Daemon, Failed, RcloneRequest
from lamella.stores.rclone.store import RcloneStore
from lamella.stores.url import open_store
from lamella.stores.wrap.patience import Backoff
from lamella.stores.wrap.retrying import RetryingStore
from lamella_kit.store_contract import ReadOnlyStoreContract, StoreContract
from tests.features import require
from tests.s3_services import CREDENTIALS, S3Service, moto


def need_rclone() -> None:
    """Skip or fail the test where rclone is not installed."""
    require("rclone", shutil.which("rclone") is not None, "not installed")


@pytest.fixture(scope="module")
def service() -> Iterator[S3Service]:
    """A service of S3."""
    with moto() as running:
        yield running


class InRclone:
    """Makes stores in new places, each with an rclone of its own, and ends them all."""

    _numbers = itertools.count()

    @pytest.fixture(autouse=True)
    def _places(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        yield from self.places(tmp_path, monkeypatch)

    def places(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        need_rclone()
        self.below = tmp_path
        self.opened: list[Store] = []
        config = tmp_path / "rclone.conf"
        config.write_text(self.remote())
        monkeypatch.setenv("RCLONE_CONFIG", str(config))
        monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)  # some versions of rclone do not start with it
        yield
        for store in self.opened:
            store.close()

    def remote(self) -> str:
        """The configuration of rclone."""
        return "[here]\ntype = local\n"

    def place(self) -> str:
        return f"rclone:here:{self.below}/store-{next(self._numbers)}"

    def connect(self, place: str, *, create: bool = False, read_only: bool = False) -> Store:
        store = open_store(place, create=create, read_only=read_only)
        assert isinstance(store, RcloneStore)
        self.opened.append(store)
        return store

    def inner(self) -> Store:
        return self.connect(self.place(), create=True)


class TestGoneMeanwhile(InRclone):
    def test_a_second_look_decides_whether_an_object_went_away(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """rclone answers with a bare "Not Found" where an object goes away between its own look and its reading."""
        store, name = self.inner(), "p/ab/" + "ab" * 32
        store.put(name, Sealed(b"content"))
        ask = Daemon.ask

        def gone(self: Daemon, request: RcloneRequest, obj: str) -> object:
            if request.verb == "GET":
                raise Failed("Not Found")
            return ask(self, request, obj)

        monkeypatch.setattr(Daemon, "ask", gone)
        with pytest.raises(StoreUnavailable, match="Not Found"):
            store.get(name)
        store.delete(name)
        with pytest.raises(ObjectNotFound):
            store.get(name)


class TestRclone(InRclone, StoreContract):
    def make_store(self) -> Store:
        return self.inner()

    @pytest.mark.parametrize("again", [(), (MARKER, "packs/00/x")])
    def test_a_disk_that_goes_while_it_is_listed(self, again: tuple[str, ...]) -> None:
        """What was read by then is no listing, also where something of the repository is seen in its place."""
        store = self.inner()
        names = [MARKER, *(f"packs/{number:02x}/x" for number in range(40))]
        for name in names:
            store.put(name, Clear(b"content"))
        found = store.list("packs/")
        assert next(iter(found)).name == names[1]
        place = Path(store.url.partition(":here:")[2])
        place.rename(place.with_name("gone"))
        place.mkdir()
        for name in again:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(b"content")
        with pytest.raises(StoreUnavailable):
            list(found)


class TestReadOnlyRclone(InRclone, ReadOnlyStoreContract):
    def make_filled(self, objects: Mapping[str, bytes]) -> Store:
        place = self.place()
        store = self.connect(place, create=True)
        for name, content in objects.items():
            store.put(name, Clear(content))
        store.sync()
        return self.connect(place, read_only=True)


class TestRcloneInS3(InRclone, StoreContract):
    patient = False

    @pytest.fixture(autouse=True)
    def _places(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: S3Service) -> Iterator[None]:
        self.service = service
        yield from self.places(tmp_path, monkeypatch)

    def remote(self) -> str:
        key, secret = CREDENTIALS.values()
        return (
            f"[bucket]\ntype = s3\nprovider = Other\naccess_key_id = {key}\nsecret_access_key = {secret}\n"
            f"endpoint = {self.service.endpoint}\n"
        )

    def place(self) -> str:
        return f"rclone:bucket:{self.service.new_bucket()}/pre/fix"

    def make_store(self) -> Store:
        # An object that goes while it is read is a failure of the moment: the service answers 500, or says Not Found.
        if self.patient:
            return RetryingStore(self.inner(), Backoff(attempts=100, first_seconds=0), sleep=lambda seconds: None)
        return self.inner()

    def test_a_reader_sees_all_of_an_object_or_nothing(self) -> None:
        self.patient = True
        super().test_a_reader_sees_all_of_an_object_or_nothing()
