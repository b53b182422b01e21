"""One Qubes system with a few qubes, a repository, and the program as dom0 would run it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.memory.host import Host
from lamella.qubes.admin import Admin
from lamella.stores.memory import MemoryStore
from lamella_kit.fake_qubesd import FakeQubesd
from tests.fault.world import host_at, init

pytest.register_assert_rewrite("tests.qubes.stories")


@pytest.fixture
def system(tmp_path: Path) -> Iterator[FakeQubesd]:
    """A template, a net qube, two app qubes, a standalone, a template for disposables and a named disposable."""
    pool = tmp_path / "pool"
    pool.mkdir()
    with FakeQubesd(tmp_path / "run", {"varlibqubes": pool}, volume_size=1 << 20) as fake:
        populate(fake)
        yield fake


def populate(fake: FakeQubesd) -> None:
    fake.labels["mine"] = "0x123456"
    fake.add("tpl", "TemplateVM", label="black")
    fake.add("sys-net", template="tpl", provides_network="True")
    work = fake.add("work", template="tpl", label="mine", netvm="sys-net", memory="500", maxmem="2000", vcpus="3")
    work.tags |= {"created-by-dom0", "keep"}
    work.features |= {"service.cups": "", "menu-items": "firefox.desktop xterm.desktop", "odd": "None"}
    work.firewall = "action=accept dsthost=192.0.2.1/32 proto=tcp dstports=443-443 comment=c\naction=drop\n"
    work.notes = "first\nsecond \\ n"
    work.devices = {"pci": {"dom0+00_1f.2:0x8086": "device_id='0x8086' mode='required'"}}
    fake.add("vault", template="tpl", netvm="")
    fake.add("own", "StandaloneVM", label="green", kernel="6.12")
    fake.add("dvm", template="tpl", template_for_dispvms="True")
    fake.add("disp1", "DispVM", template="dvm", autostart="True")
    fake.qubes["work"].properties["default_dispvm"] = "dvm"


@pytest.fixture
def admin(system: FakeQubesd) -> Admin:
    return Admin(system.place, system.internal_place, seconds=20)


@pytest.fixture
def store(host: Host) -> MemoryStore:
    made = MemoryStore()
    init(made, host)
    return made


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return host_at(tmp_path / "dom0")
