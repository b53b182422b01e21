"""The small qubesd against the client library of Qubes OS, where that is importable: a fair stand-in, so far."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from lamella_kit.fake_qubesd import FakeQubesd
from tests.features import require


@pytest.fixture
def app(system: FakeQubesd) -> Any:  # noqa: ANN401 - a library without types, which is not here everywhere
    try:
        config = importlib.import_module("qubesadmin.config")
        client = importlib.import_module("qubesadmin.app")
    except ImportError as reason:
        require("qubesadmin", False, str(reason))
        raise
    vars(config)["QUBESD_SOCKET"] = str(system.place)
    return client.QubesLocal()


def test_the_client_library_finds_what_it_expects(app: Any, system: FakeQubesd) -> None:  # noqa: ANN401
    assert {(one.name, one.klass, one.get_power_state()) for one in app.domains} >= {
        ("work", "AppVM", "Halted"),
        ("disp1", "DispVM", "Halted"),
        ("dom0", "AdminVM", "Running"),
    }
    work = app.domains["work"]
    assert (str(work.netvm), work.memory, str(work.label), str(work.template)) == ("sys-net", 500, "mine", "tpl")
    assert work.property_is_default("qrexec_timeout") and not work.property_is_default("vcpus")
    assert dict(work.features.items())["menu-items"] == "firefox.desktop xterm.desktop"
    assert [rule.rule for rule in work.firewall.rules][1] == "action=drop"
    assert {one.name for one in work.volumes.values() if one.save_on_stop} == {"private"}
    assert app.pools["varlibqubes"].driver == "file-reflink"
    assert work.get_notes() == system.qubes["work"].notes
    assert [str(one.backend_domain) for one in work.devices["pci"].get_assigned_devices()] == ["dom0"]


def test_the_client_library_is_refused_as_by_qubesd(app: Any) -> None:  # noqa: ANN401
    errors = importlib.import_module("qubesadmin.exc")
    with pytest.raises(errors.QubesException):
        app.domains["work"].netvm = "vault"
    with pytest.raises(errors.QubesException):
        app.add_new_vm("AppVM", "none", "red", template="tpl")
    made = app.add_new_vm("AppVM", "new", "red", template="tpl")
    made.tags.add("t")
    assert "t" in made.tags
